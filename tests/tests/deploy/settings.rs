//! The settings file that is handed out: each line in it is taken by the programs, also those that
//! wait behind a `#` for somebody who wants them.

use std::{fs, process::Command};

use dormouse_tests::binaries::binary;

use super::read;

#[test]
fn each_setting_of_the_file_is_one_of_ours() {
    let text = read("dormouse.toml");
    let offered = |line: &str| {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let count = text.lines().filter(|line| offered(line)).count();
    assert!(count >= 4, "the file offers {count} settings");
    let all: String =
        text.lines().map(|line| if offered(line) { &line[1..] } else { line }.to_owned() + "\n").collect();

    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [("as-it-is.toml", text), ("all.toml", all)] {
        let file = dir.path().join(name);
        fs::write(&file, text).expect("written");
        let mut command = Command::new(binary("dormouse"));
        command.args(["config", "show", "--config"]).arg(&file);
        let output = command.output().expect("it is built");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
