//! What the services are told, and what they tell: layers, refusals, logs, and changes while they
//! run.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use dormouse_management_sdk::Status;
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database, Layout, Part},
    fault, wait,
    workload::{Amount, Example, Run},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The three programs, with what makes them services.
const SERVICES: [(&str, &[&str]); 3] =
    [("dormouse", &["up"]), ("dormouse-core", &[]), ("dormouse-environment", &[])];

/// A program with nothing of the developer's own set-up.
#[expect(clippy::disallowed_methods, reason = "runs the programs as an operator does")]
fn command(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary(program));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"DORMOUSE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn say(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command(program, arguments, variables).output().expect("it is built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn every_service_refuses_the_same_mistakes_in_the_same_words() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("dormouse.toml");
    fs::write(&file, "data_dir = 'data'\nretention = '30 days'\n").expect("written");
    let file = file.to_str().expect("text");
    for (program, first) in SERVICES {
        let refused = |arguments: &[&str], variables: &[(&str, &str)], sentence: &str| {
            let said = say(program, &[first, arguments].concat(), variables);
            assert_eq!(said.status.code(), Some(2), "{program} {arguments:?}");
            let text = text(&said.stderr);
            assert!(text.starts_with("error: ") && text.contains(sentence), "{program}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        };
        let of_file = format!("retention is \"30 days\" ({file}:2); it must be a time such as");
        refused(&["--config", file], &[], &of_file);
        refused(&[], &[("DORMOUSE_CONFIG", file)], &of_file);
        refused(&["--config", file, "--retention", "30d"], &[], &of_file);
        let of_variable = "payload_bytes is \"5MiB\" (variable DORMOUSE_PAYLOAD_BYTES); it must be a size";
        refused(&[], &[("DORMOUSE_PAYLOAD_BYTES", "5MiB")], of_variable);
        refused(&["--crashes=-1"], &[], "crashes is \"-1\" (flag --crashes); it must be a whole number");
        refused(&["--config", "/nowhere/d.toml"], &[], "/nowhere/d.toml (flag --config) cannot be read");
    }
    assert!(!dir.path().join("data").exists(), "what is refused does nothing");
}

#[test]
fn config_show_says_what_is_in_force_and_who_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("dormouse.toml");
    fs::write(&file, "slots = 7\ndatabase = 'postgres://u:secret@db/d'\n").expect("written");
    let file = file.to_str().expect("text");
    let variables = [("DORMOUSE_LEASE", "20s"), ("RUST_LOG", "debug")];
    let line = ["config", "show", "--config", file, "--log-format", "json", "-o", "json"];
    let said = say("dormouse", &line, &variables);
    assert!(said.status.success() && !text(&said.stdout).contains("secret"), "{said:?}");
    let entries: Vec<Value> = serde_json::from_slice(&said.stdout).expect("JSON");
    let entry = |key: &str| {
        let found = entries.iter().find(|entry| entry["key"] == key);
        let found = found.unwrap_or_else(|| panic!("no {key}"));
        (found["value"].as_str().unwrap_or_default(), found["from"].as_str().expect("text"))
    };
    assert_eq!(entry("slots"), ("7", &*format!("{file}:1")));
    assert_eq!(entry("database"), ("postgres://u:***@db/d", &*format!("{file}:2")));
    assert_eq!(entry("lease"), ("20s", "variable DORMOUSE_LEASE"));
    assert_eq!(entry("log"), ("debug", "variable RUST_LOG"));
    assert_eq!(entry("log_format"), ("json", "flag --log-format"));
    assert_eq!(entry("retention"), ("30d", "default"));
    assert_eq!(entry("data_dir"), ("", "default"));

    let table = say("dormouse", &["config", "show", "--config", file], &[]);
    assert!(text(&table.stdout).lines().any(|line| line.starts_with("slots ") && line.ends_with(":1")));
}

/// What a service has logged so far.
fn log(cluster: &Cluster, program: &str) -> String {
    fs::read_to_string(cluster.scratch().join(format!("{program}.log"))).expect("it has begun")
}

async fn until_logged(cluster: &Cluster, program: &str, sentence: &str) {
    wait::until(&format!("{program} logs {sentence:?}"), async || {
        let log = log(cluster, program);
        if log.contains(sentence) { Ok(()) } else { Err(log) }
    })
    .await;
}

/// The programs of a layout, by part.
fn programs(layout: Layout) -> Vec<(Part, &'static str)> {
    let name = |part: &Part| match part {
        Part::Both => "dormouse",
        Part::Core => "dormouse-core",
        Part::Environment => "dormouse-environment",
    };
    layout.parts().iter().map(|part| (*part, name(part))).collect()
}

#[tokio::test]
async fn the_log_filter_changes_while_the_services_run() {
    for layout in [Layout::Together, Layout::Apart] {
        let mut cluster = Cluster::up_as(layout, Database::Sqlite).await;
        let file = cluster.scratch().join("dormouse.toml");
        fs::write(&file, "slots = 4\n").expect("written");
        cluster.set_variable("DORMOUSE_CONFIG", file.to_str().expect("text"));
        cluster.kill_services();
        cluster.start_services().await;
        for (_, program) in programs(layout) {
            assert!(!log(&cluster, program).contains("DEBUG"), "{program} logs more than it was asked to");
        }

        fs::write(&file, "slots = 5\nlog = 'debug'\n").expect("written");
        reload(&mut cluster, layout, "the configuration was read again").await;
        for (_, program) in programs(layout) {
            let log = log(&cluster, program);
            let changed = |line: &str| line.contains("at the next start") && line.contains("slots");
            assert!(log.lines().any(changed), "{log}");
        }
        audit(&cluster, "a").await;
        for (_, program) in programs(layout) {
            until_logged(&cluster, program, "DEBUG").await;
        }

        // What would be refused at a start changes nothing, and ends nothing.
        fs::write(&file, "log = 'error'\nslots = 'many'\n").expect("written");
        reload(&mut cluster, layout, "everything stays as it is").await;
        audit(&cluster, "b").await;
        for (_, program) in programs(layout) {
            let log = log(&cluster, program);
            let after = log.split("everything stays as it is").nth(1).expect("it was logged");
            assert!(after.contains("DEBUG"), "{program}: {after}");
        }
    }
}

/// Work for both services.
async fn audit(cluster: &Cluster, id: &str) {
    let example = Example::Fixity;
    cluster.push(example.program()).await;
    let run = Run::start(cluster, example, id, &Amount::default(), &[]).await;
    cluster.until_ended(id, Status::Completed).await;
    run.check(cluster).await;
}

/// SIGHUP to every service; waits until each has answered it.
async fn reload(cluster: &mut Cluster, layout: Layout, answer: &str) {
    for (part, program) in programs(layout) {
        fault::send(cluster.service(part).pid(), Signal::SIGHUP);
        until_logged(cluster, program, answer).await;
    }
}

#[tokio::test]
async fn json_lines_are_objects_with_the_fields_at_the_top() {
    let mut cluster = Cluster::up_as(Layout::Apart, Database::Sqlite).await;
    cluster.kill_services();
    for (_, program) in programs(Layout::Apart) {
        fs::remove_file(cluster.scratch().join(format!("{program}.log"))).expect("it was written");
    }
    cluster.set_variable("DORMOUSE_LOG_FORMAT", "json");
    cluster.set_variable("DORMOUSE_LOG", "debug");
    cluster.start_services().await;
    audit(&cluster, "audit").await;

    let core = json_lines(&cluster.scratch().join("dormouse-core.log"));
    let registered = said(&core, "registered");
    assert_eq!((&registered["instance"], &registered["tenant"]), (&"audit".into(), &"default".into()));
    assert_eq!((&registered["attempt"], &registered["session"]), (&1.into(), &1.into()));

    until_logged(&cluster, "dormouse-environment", "\"launched\"").await;
    let environment = json_lines(&cluster.scratch().join("dormouse-environment.log"));
    let launched = said(&environment, "launched");
    assert_eq!((&launched["instance"], &launched["tenant"]), (&"audit".into(), &"default".into()));
    let node = cluster.client().health().await.expect("it answers").node;
    assert_eq!((&launched["attempt"], &launched["node"]), (&1.into(), &node.as_str().into()));
}

/// Whole lines only: the last one may be on its way.
fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("written");
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
        let time = line["timestamp"].as_str().expect("text");
        assert!(time.contains('T') && time.ends_with('Z'), "{time}");
        line
    });
    lines.collect()
}

fn said<'a>(lines: &'a [Value], message: &str) -> &'a Value {
    let found = lines.iter().find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("nothing said {message:?}: {lines:?}"))
}

#[test]
fn a_journal_is_told_no_times() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused_late = |journal: bool| {
        let path = dir.path().join(format!("{journal}.log"));
        let file = fs::File::create(&path).expect("made");
        let metadata = file.metadata().expect("it is there");
        let device = if journal { metadata.dev() } else { metadata.dev() + 1 };
        let stream = format!("{device}:{}", metadata.ino());
        // The data directory is a file, so it ends after its logs have begun.
        let mut command = command("dormouse-core", &["--data-dir"], &[("JOURNAL_STREAM", &*stream)]);
        let status = command.arg(&path).stderr(file).status().expect("it is built");
        assert!(!status.success());
        fs::read_to_string(path).expect("UTF-8")
    };
    let to_journal = refused_late(true);
    assert!(to_journal.trim_start().starts_with("ERROR"), "{to_journal}");
    let inherited = refused_late(false);
    assert!(inherited.starts_with("20"), "the variable of another stream means nothing: {inherited}");
}
