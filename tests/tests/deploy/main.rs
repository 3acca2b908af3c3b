//! What `deploy/` holds is right: it is read as its readers would, and what it names exists.
//!
//! Nothing is installed and no container is made here: the files are parsed, and every program,
//! flag and variable in them is looked up in what the programs say of themselves.

#![expect(clippy::disallowed_methods, reason = "runs programs that end by themselves")]

mod compose;
mod containerfile;
mod readiness;
mod settings;
mod topology;
mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use dormouse_tests::binaries::binary;

/// The programs that a package installs.
const PROGRAMS: [&str; 3] = ["dormouse", "dormouse-core", "dormouse-environment"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `PROGRAM SUBCOMMAND… --help` prints.
fn help(words: &[&str]) -> String {
    static KNOWN: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .entry(words.join(" "))
        .or_insert_with(|| {
            let (program, subcommands) = words.split_first().expect("a program");
            let output = Command::new(binary(program)).args(subcommands).arg("--help").output();
            let output = output.expect("it is built");
            assert!(output.status.success(), "{words:?} --help: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("help is text")
        })
        .clone()
}

/// A command line of ours: its program, its subcommands and each of its flags exist.
fn check_command(words: &[&str]) {
    let line = words.join(" ");
    let (program, arguments) = words.split_first().unwrap_or_else(|| panic!("no program in {line:?}"));
    let program = program.rsplit('/').next().expect("a split has a first part");
    assert!(PROGRAMS.contains(&program), "{line:?}: {program} is none of {PROGRAMS:?}");
    let mut command = vec![program];
    let mut listing = help(&command);
    for word in arguments {
        if !word.starts_with('-') && is_subcommand(&listing, word) {
            command.push(word);
            listing = help(&command);
        }
    }
    for flag in arguments.iter().filter(|word| word.starts_with("--")) {
        let name = flag.split('=').next().expect("a split has a first part");
        assert!(flags(&listing).contains(name), "{line:?}: {} has no flag {name}", command.join(" "));
    }
}

/// `  word   what it does`, below `Commands:`.
fn is_subcommand(listing: &str, word: &str) -> bool {
    let commands = listing.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    lines.into_iter().any(|line| line.split_whitespace().next() == Some(word) && line.starts_with("  "))
}

/// Every `--flag` in a help text, aliases too.
fn flags(listing: &str) -> BTreeSet<&str> {
    let words = listing.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--")).collect()
}

/// A variable of ours is one that a program looks at.
fn check_variable(name: &str) {
    if name.starts_with("DORMOUSE_") {
        let known = PROGRAMS.iter().any(|program| has_word(&help(&[program]), name))
            || has_word(&help(&["dormouse", "up"]), name);
        assert!(known, "no program's --help names the variable {name}");
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|other| other == word)
}

#[test]
fn what_is_not_there_is_noticed() {
    for line in [
        &["dormouse", "up", "--nonsense"][..],
        &["dormouse-kernel"],
        &["dormouse-core", "--listen", "x", "--slots-of-core"],
    ] {
        let refused = std::panic::catch_unwind(|| check_command(line));
        assert!(refused.is_err(), "{line:?} was taken");
    }
    assert!(std::panic::catch_unwind(|| check_variable("DORMOUSE_NONSENSE")).is_err());
    check_command(&["/usr/local/bin/dormouse", "image", "push", "x", "--name=y"]);
    check_variable("DORMOUSE_DATA_DIR");
}
