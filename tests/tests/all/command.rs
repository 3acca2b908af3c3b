//! The `dormouse` command as its user sees it: exit codes, what stands on stdout and what on
//! stderr, and `run` being interrupted, killed, continued and repeated.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use dormouse_management_sdk::{Client, Status, Target};
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database},
    process, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A data directory that only `run` uses, and what lies beside it.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a temporary directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).expect("made");
        for number in 0..40 {
            std::fs::write(tree.join(format!("file {number}")), format!("{number}")).expect("written");
        }
        Self { dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// An audit that takes about two seconds.
    fn input(&self) -> String {
        let (root, manifest) = (self.dir.path().join("tree"), self.dir.path().join("manifest"));
        json!({"root": root, "manifest": manifest, "parallel": 1, "pace_ms": 50}).to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.arg("--data-dir").arg(self.data());
        command
    }

    fn dormouse(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().expect("it is built"))
    }

    fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.spawn().expect("it is built")
    }

    /// Waits until the audit has saved some of its steps, and not all.
    async fn until_in_the_middle(&self, id: &str) {
        wait::until("the audit is in the middle", async || {
            let client = Client::connect(Target::data_dir(self.data())).await.map_err(|e| e.to_string())?;
            let instance = client.instance(id).await.map_err(|e| e.to_string())?;
            match instance.checkpoints {
                3..35 => Ok(()),
                n => Err(format!("{n} checkpoints, {}", instance.status)),
            }
        })
        .await;
    }

    /// Processes of instances in the data directory.
    fn processes(&self) -> usize {
        let attempts = self.data().join("attempts");
        process::with_variable("TMPDIR")
            .iter()
            .filter(|(dir, _)| Path::new(dir).starts_with(&attempts))
            .count()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let attempts = self.data().join("attempts");
        for (dir, pid) in process::with_variable("TMPDIR") {
            if Path::new(&dir).starts_with(&attempts) {
                // It may end by itself meanwhile.
                let _ = kill(Pid::from_raw(pid.number()), Signal::SIGKILL);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "runs the command as a person does")]
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("dormouse"));
    command.args(arguments).stdin(Stdio::null());
    for variable in ["DORMOUSE_DATA_DIR", "DORMOUSE_SERVER", "DORMOUSE_DATABASE", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The last line of stdout.
    fn output(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

fn signal(child: &Child, signal: Signal) {
    let number = i32::try_from(child.id()).expect("a pid fits");
    kill(Pid::from_raw(number), signal).expect("it runs");
}

fn end(child: Child) -> Said {
    Said::of(child.wait_with_output().expect("it is our child"))
}

fn fixity() -> String {
    binary("fixity").display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_ends_everything_and_continues_by_its_id() {
    let desk = Desk::new();
    let (fixity, input) = (fixity(), desk.input());
    let running = desk.begin(&["run", &fixity, "--id", "audit", "--input", &input]);
    desk.until_in_the_middle("audit").await;
    signal(&running, Signal::SIGINT);
    let interrupted = end(running).ends_with(130);
    let again = format!("dormouse run {fixity} --id audit --data-dir {}", desk.data().display());
    assert!(interrupted.err.contains(&again), "{}", interrupted.err);
    assert_eq!(interrupted.out, "");
    assert_eq!(desk.processes(), 0, "a process was left");

    let other = desk.dormouse(&["run", &fixity, "--id", "audit", "--input", "{}"]).ends_with(3);
    assert!(other.err.contains("ALREADY_EXISTS") && other.err.contains("input"), "{}", other.err);

    // The input may be left out.
    let ended = desk.dormouse(&["run", &fixity, "--id", "audit"]).ends_with(0);
    assert_eq!(ended.output()["files"], 40);
    let once_more = desk.dormouse(&["run", &fixity, "--id", "audit", "--input", &input]).ends_with(0);
    assert_eq!(once_more.out, ended.out);
    assert!(once_more.err.contains("ended already"), "{}", once_more.err);
    let document = desk.dormouse(&["run", &fixity, "--id", "audit", "-o", "json"]).ends_with(0).json();
    assert_eq!((&document["status"], &document["output"]), (&json!("COMPLETED"), &ended.output()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_continued_by_adopting_its_process() {
    let desk = Desk::new();
    let running = desk.begin(&["run", &fixity(), "--id", "audit", "--input", &desk.input()]);
    desk.until_in_the_middle("audit").await;
    signal(&running, Signal::SIGKILL);
    end(running);
    assert_eq!(desk.processes(), 1, "the workflow's process died with its services");

    // Other bytes: they would take over at the next launch, and there is none.
    let changed = desk.dir.path().join("changed");
    std::fs::copy(fixity(), &changed).expect("copied");
    let mut bytes = std::fs::OpenOptions::new().append(true).open(&changed).expect("own file");
    std::io::Write::write_all(&mut bytes, b"changed").expect("written");
    drop(bytes);
    let changed = changed.display().to_string();
    let ended = desk.dormouse(&["run", &changed, "--id", "audit", "-o", "json"]).ends_with(0);
    assert!(ended.err.contains("takes over at the next launch"), "{}", ended.err);
    assert_eq!((&ended.json()["attempt"], &ended.json()["status"]), (&json!(1), &json!("COMPLETED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ending_has_its_exit_code() {
    let cluster = Cluster::up(Database::Sqlite).await;
    let data = cluster.data_dir().display().to_string();
    let dormouse = |arguments: &[&str]| {
        let mut command = command(arguments);
        Said::of(command.args(["--data-dir", &data]).output().expect("it is built"))
    };
    let order = binary("order").display().to_string();
    assert_eq!(
        dormouse(&["image", "push", &order, "--name", "shop", "-o", "ids"]).ends_with(0).out,
        "shop:1\n"
    );
    let input =
        json!({"number": "A-1", "item": "hazelnut", "quantity": 1, "amount_cents": 1, "bank_outages": 0});
    let input = input.to_string();

    let id = dormouse(&["start", "shop", "--input", &input, "--id", "order-1"]).ends_with(0).out;
    assert_eq!(id, "order-1\n");
    cluster.until("order-1", "waits", |instance| instance.checkpoints >= 3).await;
    let late = dormouse(&["wait", "order-1", "--for", "0s"]).ends_with(12);
    assert_eq!(late.out, "");
    dormouse(&["signal", "order-1", "approval", "--payload", "{\"granted\":true}"]).ends_with(0);
    let ended = dormouse(&["wait", "order"]).ends_with(0);
    assert_eq!(ended.output()["status"], "shipped");

    let failed = dormouse(&["start", "shop", "--input", "7", "--wait"]).ends_with(10);
    assert!(failed.err.contains("FAILED"), "{}", failed.err);
    dormouse(&["start", "shop", "--input", &input, "--id", "late", "--in", "1h"]).ends_with(0);
    dormouse(&["stop", "late"]).ends_with(0);
    dormouse(&["wait", "late"]).ends_with(11);
    let refused = dormouse(&["stop", "late"]).ends_with(3);
    assert!(refused.err.contains("FAILED_PRECONDITION"), "{}", refused.err);
    dormouse(&["get", "nobody"]).ends_with(3);
    dormouse(&["list", "--limit", "none"]).ends_with(2);
    dormouse(&["start", "shop", "--input", "{"]).ends_with(2);
    dormouse(&["--server", "127.0.0.1:9", "health"]).ends_with(4);
    let nowhere = cluster.scratch().join("nothing").display().to_string();
    let never = Said::of(command(&["list", "--data-dir", &nowhere]).output().expect("it is built"));
    assert!(never.ends_with(4).err.contains("dormouse up"));
    assert!(dormouse(&["up"]).ends_with(3).err.contains("in use by process"));
}

#[tokio::test(flavor = "multi_thread")]
async fn get_prints_exactly_the_documented_fields_and_run_is_a_client_of_up() {
    let cluster = Cluster::up(Database::Sqlite).await;
    let data = cluster.data_dir().display().to_string();
    let batch = binary("batch").display().to_string();
    let input = "{\"below\": 20000, \"block\": 5000}";
    let arguments = ["run", &batch, "--id", "sum", "--input", input, "--data-dir", &data];
    let ran = Said::of(command(&arguments).output().expect("it is built")).ends_with(0);
    assert!(ran.err.contains("using them"), "{}", ran.err);
    assert_eq!(cluster.get("sum").await.status, Status::Completed);

    let document =
        Said::of(command(&["get", "sum", "-o", "json", "--data-dir", &data]).output().expect("it is built"));
    let document = document.ends_with(0);
    let fields = [
        "id",
        "workflow",
        "image",
        "status",
        "attempt",
        "node",
        "input",
        "output",
        "failure",
        "waiting_for",
        "wake_at",
        "created_at",
        "started_at",
        "ended_at",
        "retry_of",
    ];
    let places: Vec<_> = fields.iter().map(|field| document.out.find(&format!("\n  \"{field}\":"))).collect();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{}", document.out);
    assert_eq!(document.json().as_object().expect("an object").len(), fields.len());
    assert_eq!(document.json()["output"], ran.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn up_ends_in_order_when_it_is_asked() {
    for (asked, code) in [(Signal::SIGTERM, 0), (Signal::SIGINT, 130)] {
        let desk = Desk::new();
        let any = "127.0.0.1:0";
        let up = desk.begin(&["up", "--core", any, "--environment", any, "-o", "json"]);
        wait::until("the services answer", async || {
            Client::connect(Target::data_dir(desk.data())).await.map(drop).map_err(|e| e.to_string())
        })
        .await;
        signal(&up, asked);
        let ended = end(up).ends_with(code);
        assert_eq!(ended.json()["database"], "sqlite");
    }
}
