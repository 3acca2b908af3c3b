//! The benchmark program works: each figure is there, its report and its JSON lines can be read, and runs can be
//! held against each other. Nothing is asserted about time.

#![expect(clippy::disallowed_methods, reason = "it starts the program")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use dormouse_tests::binaries::binary;

/// What it starts, which cargo does not build for this test.
const PROGRAMS: [&str; 9] = [
    "dormouse",
    "dormouse-core",
    "dormouse-environment",
    "dormouse-workload",
    "probe-exit",
    "probe-open",
    "probe-quinn",
    "probe-server",
    "probe-sqlite",
];

fn benches(arguments: &[&str]) -> Output {
    for program in PROGRAMS {
        binary(program);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-benches"));
    command.arg("--quick").args(arguments).output().expect("it is built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// First cells of the tables of docs/benchmarks.md: `` `name` `` each.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let page = fs::read_to_string(path).expect("the page is there");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    rows.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect()
}

fn lines(folder: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join("figures.jsonl")).expect("it is written");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

#[test]
fn every_figure_is_measured_written_and_documented() {
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().to_str().expect("UTF-8");
    let run = benches(&["all", "--store", "sqlite", "--out", folder]);
    assert!(run.status.success(), "{}{}", text(&run.stdout), text(&run.stderr));

    let lines = lines(out.path());
    let report = fs::read_to_string(out.path().join("report.md")).expect("it is written");
    let mut measured = BTreeSet::new();
    for line in &lines {
        let id = line["id"].as_str().expect("a figure has an id");
        measured.insert(id.to_owned());
        let numbers = ["median", "lowest", "highest"].map(|name| line[name].as_f64());
        assert!(numbers.iter().all(|number| number.is_some_and(f64::is_finite)), "{line}");
        assert!(line["machine"]["cores"].is_u64() && line["machine"]["revision"].is_string(), "{line}");
        assert!(report.contains(&format!("| {id} |")), "report.md has no row {id}");
    }
    let documented = documented();
    let missing: Vec<_> = documented.difference(&measured).collect();
    assert!(missing.is_empty(), "docs/benchmarks.md names what was not measured: {missing:?}");
    // `W1.cpu` is a part of `W1`.
    let is_named = |id: &String| {
        documented
            .iter()
            .any(|name| id.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    let unnamed: Vec<_> = measured.iter().filter(|id| !is_named(id)).collect();
    assert!(unnamed.is_empty(), "docs/benchmarks.md does not name {unnamed:?}");
    for line in lines.iter().filter(|line| line["held"].is_object()) {
        let held = &line["held"];
        assert!(held["met"].is_boolean() && held["used"].is_number() && held["target"].is_string(), "{line}");
    }
    assert!(report.contains("Its figures are worth nothing"), "a quick run says that it is one");
    for line in report.lines().filter(|line| line.starts_with("![")) {
        let file = line.rsplit_once('(').expect("an image has a file").1.trim_end_matches(')');
        let svg = fs::read_to_string(out.path().join(file)).expect("a chart is beside the report");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{file}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{file}");
    }
}

/// Another entry would show nothing more: all of them take the store as an argument.
#[test]
fn postgres_is_measured_too() {
    let out = tempfile::tempdir().expect("a folder");
    let run = benches(&["W1", "--store", "postgres", "--out", out.path().to_str().expect("UTF-8")]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let lines = lines(out.path());
    let of = |id: &str| lines.iter().find(|line| line["id"] == id && line["store"] == "postgres");
    assert!(of("commit").is_some(), "a workload brings its limits with it");
    assert!(of("W1").is_some_and(|line| line["held"]["ratio"].is_number()));
}

#[test]
fn a_run_is_held_against_another() {
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().to_str().expect("UTF-8");
    let first = benches(&["fsync", "timer", "--store", "sqlite", "--out", folder]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let old = out.path().join("figures.jsonl");
    let second = benches(&["fsync", "--store", "sqlite", "--compare", old.to_str().expect("UTF-8")]);
    assert!(second.status.success(), "{}", text(&second.stderr));
    let report = text(&second.stdout);
    assert!(report.contains("## Since the run before"), "{report}");
    let gone = report.lines().find(|line| line.starts_with("| timer |") && line.contains("not measured"));
    assert!(gone.is_some(), "what was not measured again is named: {report}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is() {
    for (arguments, sentence) in [
        (["W99", "--store", "sqlite"], "NAME W99 is unknown"),
        (["fsync", "--disk", "/dev/shm"], "lies in memory, where flushing costs nothing"),
        (["fsync", "--disk", "/nowhere"], "--disk /nowhere"),
        (["fsync", "--compare", "/nowhere"], "--compare /nowhere: it cannot be read"),
    ] {
        let run = benches(&arguments);
        assert!(!run.status.success(), "{arguments:?}");
        let said = text(&run.stderr);
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    }
}
