//! The examples as work to disturb: each with an input, what it needs from outside, and a check that
//! its ending is right and that nothing which was saved ran again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use dormouse_management_sdk::{Error, Payload, StartInstance, Status};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::controller::Controller;

/// Names the file to which the examples append `attempt step` for each step they ran.
const SIDE_FILE_VARIABLE: &str = "DORMOUSE_SIDE_FILE";

/// One of the examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Example {
    /// Waits for a signal.
    Order,
    /// Many steps, a few at once.
    Fixity,
    /// Computes, synchronously, with checkpoints of its own.
    Batch,
}

impl Example {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Order, Self::Fixity, Self::Batch];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Fixity => "fixity",
            Self::Batch => "batch",
        }
    }
}

/// How much work, and what is special about it.
#[derive(Clone, Debug)]
pub struct Amount {
    /// Files of a fixity audit.
    pub files: usize,
    /// Milliseconds for each of them.
    pub pace_ms: u64,
    /// Seconds that a fixity audit sleeps before it writes its manifest.
    pub settle_seconds: u64,
    /// The batch searches below this …
    pub below: u64,
    /// … and saves its state after each so many numbers.
    pub block: u64,
}

impl Default for Amount {
    /// A second's work or less.
    fn default() -> Self {
        Self { files: 60, pace_ms: 0, settle_seconds: 0, below: 200_000, block: 10_000 }
    }
}

/// A started instance of an example.
#[derive(Debug)]
pub struct Run {
    /// Which example.
    pub example: Example,
    /// The instance.
    pub id: String,
    input: Value,
    folder: PathBuf,
    approved: bool,
}

impl Run {
    /// Starts one, with further variables for its processes. Its image must have been pushed.
    pub async fn start(
        controller: &Controller,
        example: Example,
        id: &str,
        amount: &Amount,
        variables: &[(&str, &str)],
    ) -> Self {
        let (run, start) = Self::prepare(controller, example, id, amount, variables);
        controller.start(start).await;
        run
    }

    /// The same, but the start itself is left to the caller.
    pub fn prepare(
        controller: &Controller,
        example: Example,
        id: &str,
        amount: &Amount,
        variables: &[(&str, &str)],
    ) -> (Self, StartInstance) {
        let folder = controller.scratch().join(format!("run-{id}"));
        fs::create_dir(&folder).expect("ids of a test differ");
        let input = input(example, &folder, amount);
        let run = Self { example, id: id.to_owned(), input, folder, approved: false };
        let mut start = StartInstance::of(example.program()).id(id).input(&run.input).expect("JSON");
        start = start.env(SIDE_FILE_VARIABLE, run.side_file().display().to_string());
        for (name, value) in variables {
            start = start.env(*name, *value);
        }
        (run, start)
    }

    /// What an order waits for, once; nothing for the others.
    pub async fn approve(&mut self, controller: &Controller) {
        self.try_approve(controller).await.expect("it has not ended");
    }

    /// The same, if it has not ended.
    pub async fn try_approve(&mut self, controller: &Controller) -> Result<(), Error> {
        if self.example == Example::Order && !self.approved {
            let payload = Payload::json(&json!({"granted": true})).expect("JSON");
            controller.client().signal(&self.id, "approval", Some(payload)).await?;
            self.approved = true;
        }
        Ok(())
    }

    /// The steps that ran so far, each with its attempt, as the workflow itself wrote them down.
    pub fn steps_ran(&self) -> Vec<(u32, String)> {
        let text = match fs::read_to_string(self.side_file()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => panic!("{}: {error}", self.side_file().display()),
        };
        let parse = |line: &str| {
            let (attempt, step) = line.split_once(' ').expect("attempt step");
            (attempt.parse().expect("a number"), step.to_owned())
        };
        text.lines().map(parse).collect()
    }

    /// Waits for the ending, then checks all of it.
    pub async fn check(&self, controller: &Controller) {
        let ended = controller.until_ended(&self.id, Status::Completed).await;
        let output = ended.output_json().unwrap_or_else(|| panic!("{} has no output", self.id));
        match self.example {
            Example::Order => self.check_order(&output),
            Example::Fixity => self.check_fixity(&output),
            Example::Batch => self.check_batch(&output),
        }
        self.check_nothing_saved_ran_again(controller).await;
        controller.until_no_process(&self.id).await;
    }

    fn check_order(&self, output: &Value) {
        assert_eq!(output["status"], "shipped", "{}: {output}", self.id);
        assert_eq!(output["charged_cents"], self.input["amount_cents"], "{}: {output}", self.id);
        // One entry for each effect: what was asked for twice was recognised by its key.
        let ledger = fs::read_dir(self.folder.join("ledger")).expect("the order made it");
        let mut effects: Vec<String> = ledger
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .map(|name| name.split('-').next().unwrap_or_default().to_owned())
            .collect();
        effects.sort();
        assert_eq!(effects, ["charge", "reserve", "ship"], "the effects of {}", self.id);
    }

    fn check_fixity(&self, output: &Value) {
        let expected = manifest(&self.folder.join("root"));
        let written = fs::read(self.folder.join("manifest")).expect("the audit wrote it");
        assert!(
            written == expected,
            "the manifest of {} differs: {} bytes, {} expected; see {}",
            self.id,
            written.len(),
            expected.len(),
            self.folder.display()
        );
        let digest = format!("{:x}", Sha256::digest(&expected));
        assert_eq!(output["manifest_sha256"], digest.as_str(), "{}: {output}", self.id);
    }

    fn check_batch(&self, output: &Value) {
        let below = self.input["below"].as_u64().expect("we wrote it");
        let (start, steps) = longest_below(usize::try_from(below).expect("small"));
        assert_eq!(*output, json!({"start": start, "steps": steps}), "{}", self.id);
    }

    /// A step whose result is stored may have run in attempts up to the one that stored it, and in
    /// none after it; and never twice in one attempt.
    async fn check_nothing_saved_ran_again(&self, controller: &Controller) {
        let mut saved_by = BTreeMap::new();
        for checkpoint in controller.checkpoints(&self.id).await {
            if checkpoint.slot == 0 {
                let key =
                    if checkpoint.key.is_empty() { String::new() } else { format!(" {}", checkpoint.key) };
                let label = format!("{}{key}", checkpoint.name).escape_debug().to_string();
                saved_by.insert(label, checkpoint.attempt);
            }
        }
        let ran = self.steps_ran();
        assert!(!ran.is_empty(), "{} ran no step at all", self.id);
        let mut seen = BTreeSet::new();
        for (attempt, step) in ran {
            let saved =
                saved_by.get(&step).unwrap_or_else(|| panic!("{}: {step} ran and is not saved", self.id));
            assert!(
                attempt <= *saved,
                "{}: {step} was saved by attempt {saved} and ran again in {attempt}",
                self.id
            );
            assert!(
                seen.insert((attempt, step.clone())),
                "{}: {step} ran twice in attempt {attempt}",
                self.id
            );
        }
    }

    fn side_file(&self) -> PathBuf {
        self.folder.join("side-file")
    }
}

fn input(example: Example, folder: &Path, amount: &Amount) -> Value {
    match example {
        Example::Order => json!({
            "number": "A-17", "item": "hazelnut", "quantity": 12, "amount_cents": 4200,
            "ledger": folder.join("ledger"),
        }),
        Example::Fixity => {
            plant(&folder.join("root"), amount.files);
            json!({
                "root": folder.join("root"), "manifest": folder.join("manifest"),
                "pace_ms": amount.pace_ms, "settle_seconds": amount.settle_seconds,
            })
        }
        Example::Batch => json!({"below": amount.below, "block": amount.block}),
    }
}

/// A folder tree with odd names in it.
fn plant(root: &Path, files: usize) {
    const ODD: [&[u8]; 8] =
        [b"a b", b"a\nb", b"a\\b", b"%41", b"\xff\xfe", b"-n", "Haselmaus 🐭".as_bytes(), b"tab\there"];
    fs::create_dir_all(root.join("sub/empty")).expect("own directory");
    for number in 0..files {
        let name = match ODD.get(number) {
            Some(odd) => root.join("sub").join(OsStr::from_bytes(odd)),
            None => root.join(format!("file-{number:05}")),
        };
        fs::write(name, format!("content {number}\n").repeat(number % 50)).expect("own directory");
    }
}

/// What `sha256sum` prints of every file below `root`, sorted by path.
fn manifest(root: &Path) -> Vec<u8> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("own directory") {
            let path = entry.expect("own directory").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut text = Vec::new();
    for path in files {
        let digest = format!("{:x}", Sha256::digest(fs::read(&path).expect("own file")));
        let name = path.as_os_str().as_bytes();
        let escaped: Vec<u8> = name
            .iter()
            .flat_map(|byte| match byte {
                b'\n' => b"\\n".to_vec(),
                b'\\' => b"\\\\".to_vec(),
                byte => vec![*byte],
            })
            .collect();
        if escaped != name {
            text.push(b'\\');
        }
        text.extend([digest.as_bytes(), b"  ", &escaped, b"\n"].concat());
    }
    text
}

/// The smallest start below `limit` with the longest Collatz sequence, and its steps. Another way than
/// the example's: each number's steps follow from those of a smaller one.
fn longest_below(limit: usize) -> (usize, u64) {
    let mut steps = vec![0_u64; limit];
    let mut longest = (1, 0);
    for start in 2..limit {
        let (mut number, mut taken) = (start, 0);
        while number >= start {
            number = if number % 2 == 0 { number / 2 } else { 3 * number + 1 };
            taken += 1;
        }
        steps[start] = taken + steps[number];
        if steps[start] > longest.1 {
            longest = (start, steps[start]);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_counted() {
        assert_eq!([2, 4, 10, 30].map(longest_below), [(1, 0), (3, 7), (9, 19), (27, 111)]);
    }
}
