//! What people use around workflows: `watch`, `new`, `completions`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use dormouse_management_sdk::Status;
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database},
    workload::{Amount, Example, Run},
};
use serde_json::Value;

#[expect(clippy::disallowed_methods, reason = "runs programs as a person does")]
fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        // Cargo's own are about this workspace.
        if ["DORMOUSE_", "RUST_LOG", "CARGO_", "RUSTFLAGS"]
            .iter()
            .any(|ours| name.as_encoded_bytes().starts_with(ours.as_bytes()))
            && name != "CARGO_HOME"
        {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn done(mut command: Command) -> Output {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test]
async fn watch_prints_each_change_and_ends_when_all_have_ended() {
    let cluster = Cluster::up(Database::Sqlite).await;
    cluster.push(Example::Order.program()).await;
    let mut orders = Vec::new();
    for id in ["first", "second"] {
        orders.push(Run::start(&cluster, Example::Order, id, &Amount::default(), &[]).await);
        cluster.until_suspended(id).await;
    }
    let data_dir = cluster.data_dir();
    let watch = |arguments: &[&str]| {
        let mut command = command(binary("dormouse"), &["--data-dir", data_dir.to_str().expect("text")]);
        command.args(arguments).stdout(Stdio::piped()).process_group(0);
        command.spawn().expect("it is built")
    };
    let mut of_two = watch(&["watch", "first", "second", "-o", "json"]);
    let newest = watch(&["watch"]);
    let ids = watch(&["watch", "-o", "ids"]);
    let events = watch(&["events", "first", "-f", "-o", "json"]);
    // It shows both before anything changes.
    let mut lines = BufReader::new(of_two.stdout.take().expect("piped")).lines();
    let mut documents = Vec::new();
    while ["first", "second"].iter().any(|id| documents.iter().all(|document: &Value| document["id"] != **id))
    {
        documents.push(document(&lines.next().expect("it goes on").expect("UTF-8")));
    }
    assert!(documents.iter().all(|document| document["status"] == "SUSPENDED"), "{documents:?}");
    let waiting = documents[0]["waiting_for"].as_str().expect("a sentence");
    assert!(waiting.contains("approval"), "{waiting}");

    for order in &mut orders {
        order.approve(&cluster).await;
        cluster.until_ended(&order.id, Status::Completed).await;
    }
    documents.extend(lines.map(|line| document(&line.expect("UTF-8"))));
    assert!(of_two.wait().expect("ours").success());
    for id in ["first", "second"] {
        let of_it: Vec<_> = documents.iter().filter(|document| document["id"] == id).collect();
        let last = of_it.last().expect("it was shown");
        assert_eq!((&last["status"], of_it.len() >= 2), (&"COMPLETED".into(), true), "{of_it:?}");
    }

    let newest = newest.wait_with_output().expect("ours");
    let text = String::from_utf8(newest.stdout).expect("UTF-8");
    assert!(
        newest.status.success() && !text.contains('\u{1b}'),
        "plain lines where there is no terminal: {text}"
    );
    for (id, status) in [("first", "SUSPENDED"), ("first", "COMPLETED"), ("second", "COMPLETED")] {
        assert!(text.lines().any(|line| line.contains(id) && line.contains(status)), "{id} {status}: {text}");
    }
    let ids = ids.wait_with_output().expect("ours");
    let mut ids: Vec<_> = String::from_utf8(ids.stdout).expect("UTF-8").lines().map(str::to_owned).collect();
    ids.sort();
    assert_eq!(ids, ["first", "second"]);
    let events = events.wait_with_output().expect("ours");
    assert!(events.status.success(), "`events -f` ends with its instance");
    let events = String::from_utf8(events.stdout).expect("UTF-8");
    let kinds: Vec<_> = events.lines().map(|line| document(line)["kind"].clone()).collect();
    assert_eq!(kinds.last(), Some(&"completed".into()), "{kinds:?}");
    assert!(kinds.contains(&"suspended".into()), "from the beginning on: {kinds:?}");
}

fn document(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn watching_what_is_not_there_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = command(binary("dormouse"), &["watch", "a", "--data-dir"]).arg(dir.path()).output();
    assert_eq!(output.expect("it starts").status.code(), Some(4), "there are no services");
}

#[test]
fn completions_are_scripts_that_know_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = done(command(binary("dormouse"), &["completions", shell])).stdout;
        let script = String::from_utf8(script).expect("UTF-8");
        for word in ["checkpoints", "completions", "database-file", "newest"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("dormouse.bash");
    fs::write(&path, done(command(binary("dormouse"), &["completions", "bash"])).stdout).expect("written");
    done(command("bash", &["-n", path.to_str().expect("text")]));
}

/// Where the new project is built; kept, so that the SDK is compiled for it once.
fn shared_target() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // TARGET/PROFILE/deps/test-HASH
    test.ancestors().nth(3).expect("cargo's folders").join("new-project")
}

/// Whether an executable of this machine is whole: it asks for no loader (`PT_INTERP`).
fn is_static(elf: &[u8]) -> bool {
    const INTERPRETER: usize = 3;
    let number = |at: usize, bytes: usize| {
        elf[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).all(|n| number(table + n * size, 4) != INTERPRETER)
}

#[test]
fn a_new_project_passes_its_test_and_runs() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    let dir = tempfile::tempdir().expect("a folder");
    let sdk = workspace.join("sdk");
    let mut new = command(binary("dormouse"), &["new", "hello", "-o", "json", "--sdk"]);
    new.arg(&sdk).current_dir(dir.path());
    let made = document(&String::from_utf8(done(new).stdout).expect("UTF-8"));
    let project = dir.path().join("hello");
    assert_eq!(made["path"], project.to_str().expect("text"));

    let mut again = command(binary("dormouse"), &["new", "hello"]);
    let refused = again.current_dir(dir.path()).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(2), "nothing is overwritten");

    // The versions of this workspace: they are here, whether or not there is a network.
    fs::copy(workspace.join("Cargo.lock"), project.join("Cargo.lock")).expect("written");
    let cargo = |arguments: &[&str]| {
        let mut cargo = command(env!("CARGO"), arguments);
        cargo.args(["--offline", "--quiet"]).current_dir(&project);
        cargo.env("CARGO_TARGET_DIR", shared_target()).env("CARGO_PROFILE_DEV_DEBUG", "0");
        done(cargo)
    };
    cargo(&["test"]);
    cargo(&["build"]);
    let program = shared_target().join(made["target"].as_str().expect("text")).join("debug/hello");
    assert!(is_static(&fs::read(&program).expect("it was built")), "it needs a loader");

    let mut run = command(binary("dormouse"), &["run", "--input", "\"Ada\"", "--id", "a", "--data-dir"]);
    run.arg(dir.path().join("data")).arg(&program);
    let said = String::from_utf8(done(run).stdout).expect("UTF-8");
    assert_eq!(said.lines().last(), Some("\"Hello, Ada! Goodbye!\""), "{said}");
}
