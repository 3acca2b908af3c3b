//! What the demo claims at its end, measured from outside: what really ran (the workflow wrote
//! a line per step to a file of its own), what was saved (the checkpoints), and whether the
//! manifest is true (read by `sha256sum`, or hashed here where there is none).

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, bail};
use dormouse_management_sdk::Client;
use sha2::{Digest as _, Sha256};

/// Counts of steps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) saved: u64,
    pub(super) run_once: u64,
    pub(super) run_again: u64,
    pub(super) saved_and_run_again: u64,
}

/// The manifest against the files.
pub(super) struct Verified {
    pub(super) lines: usize,
    pub(super) matching: usize,
    pub(super) by_sha256sum: bool,
}

pub(super) async fn collect(client: &Client, id: &str, side_file: &Path) -> anyhow::Result<Proof> {
    let mut saved = HashMap::new();
    let mut cursor = None;
    loop {
        let page = client.checkpoints(id, cursor, 0, false).await?;
        saved.extend(page.checkpoints.into_iter().filter(|c| c.kind == "step").map(|c| {
            let step = if c.key.is_empty() { c.name } else { format!("{} {}", c.name, c.key) };
            (step.escape_debug().to_string(), c.attempt)
        }));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let ran = fs::read_to_string(side_file).context("what the steps wrote cannot be read")?;
    compare(&saved, &ran)
}

/// `saved`: step to the attempt that saved it. `ran`: "attempt step" lines.
fn compare(saved: &HashMap<String, u32>, ran: &str) -> anyhow::Result<Proof> {
    let mut runs: HashMap<&str, Vec<u32>> = HashMap::new();
    for line in ran.lines() {
        let Some((attempt, step)) = line.split_once(' ') else { bail!("unexpected line {line:?}") };
        runs.entry(step).or_default().push(attempt.parse().context("no attempt")?);
    }
    let mut proof = Proof { saved: saved.len() as u64, ..Proof::default() };
    for (step, attempts) in &runs {
        match attempts.len() {
            1 => proof.run_once += 1,
            _ => proof.run_again += 1,
        }
        let by = saved.get(*step).with_context(|| format!("step {step} ran and was never saved"))?;
        proof.saved_and_run_again += attempts.iter().filter(|attempt| *attempt > by).count() as u64;
    }
    Ok(proof)
}

pub(super) fn verify(manifest: &Path) -> anyhow::Result<Verified> {
    let text = fs::read(manifest).context("the manifest cannot be read")?;
    let lines = text.split(|byte| *byte == b'\n').count() - 1; // each line ends with one
    if let Some(verdict) = sha256sum(manifest)? {
        if !verdict {
            bail!("sha256sum -c does not accept the manifest");
        }
        return Ok(Verified { lines, matching: lines, by_sha256sum: true });
    }
    let mut matching = 0;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'\\') {
        let (Some(sha256), Some(name)) = (line.get(..64), line.get(66..)) else {
            bail!("a line is too short")
        };
        let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name);
        if hash(Path::new(name))?.as_bytes() != sha256 {
            bail!("{} does not match the manifest", name.display());
        }
        matching += 1;
    }
    Ok(Verified { lines, matching, by_sha256sum: false })
}

/// What `sha256sum` says; none where it is not installed.
#[expect(clippy::disallowed_methods, reason = "a program that knows nothing of us is the better witness")]
fn sha256sum(manifest: &Path) -> anyhow::Result<Option<bool>> {
    let run = std::process::Command::new("sha256sum")
        .args(["--check", "--quiet", "--strict"])
        .arg(manifest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match run {
        Ok(status) => Ok(Some(status.success())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("sha256sum cannot be run"),
    }
}

fn hash(path: &Path) -> anyhow::Result<String> {
    let mut sha256 = Sha256::new();
    io::copy(&mut File::open(path).with_context(|| path.display().to_string())?, &mut sha256)?;
    Ok(format!("{:x}", sha256.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_step_that_runs_again_is_seen() {
        let saved =
            HashMap::from([("hash a".to_owned(), 1), ("hash b".to_owned(), 2), ("hash c".to_owned(), 1)]);
        let proof = compare(&saved, "1 hash a\n1 hash b\n2 hash b\n1 hash c\n2 hash c\n").expect("lines");
        assert_eq!(proof, Proof { saved: 3, run_once: 1, run_again: 2, saved_and_run_again: 1 });
        assert!(compare(&HashMap::new(), "1 hash a\n").is_err(), "ran and was never saved");
    }
}
