//! The units of systemd: sections, keys and values that it knows, commands that exist, and nothing
//! that would harm the workflows which outlive a service.

use std::{fs, process::Command};

use dormouse_tests::binaries::binary;

use super::{check_command, check_variable, folder, read};

const UNITS: [&str; 3] = ["dormouse.service", "dormouse-core.service", "dormouse-environment.service"];
/// Those whose processes include workflows.
const WITH_WORKFLOWS: [&str; 2] = ["dormouse.service", "dormouse-environment.service"];
/// The features that the texts say are needed begin with this version.
const OLDEST_SYSTEMD: u32 = 250;

/// What a value may be.
enum Value {
    Any,
    Bool,
    OneOf(&'static [&'static str]),
    Time,
    Number,
}

/// The keys that our units use; another one is a typing error, or is added here.
const KEYS: [(&str, &[(&str, Value)]); 3] = [
    (
        "Unit",
        &[
            ("Description", Value::Any),
            ("Documentation", Value::Any),
            ("Wants", Value::Any),
            ("After", Value::Any),
            ("Conflicts", Value::Any),
        ],
    ),
    (
        "Service",
        &[
            ("Type", Value::OneOf(&["simple", "exec", "notify"])),
            ("ExecStart", Value::Any),
            ("ExecReload", Value::OneOf(&["/bin/kill -HUP $MAINPID"])),
            ("User", Value::OneOf(&["dormouse"])),
            ("Group", Value::OneOf(&["dormouse"])),
            ("StateDirectory", Value::OneOf(&["dormouse"])),
            ("StateDirectoryMode", Value::OneOf(&["0700"])),
            ("Environment", Value::Any),
            ("EnvironmentFile", Value::Any),
            ("LoadCredential", Value::Any),
            ("KillMode", Value::OneOf(&["process"])),
            ("TimeoutStopSec", Value::Time),
            ("TimeoutStartSec", Value::Time),
            ("Restart", Value::OneOf(&["on-failure", "always"])),
            ("RestartSec", Value::Time),
            ("RestartPreventExitStatus", Value::Number),
            ("OOMPolicy", Value::OneOf(&["continue"])),
            ("LimitNOFILE", Value::Number),
            ("TasksMax", Value::OneOf(&["infinity"])),
            ("NoNewPrivileges", Value::Bool),
            ("CapabilityBoundingSet", Value::OneOf(&[""])),
            ("AmbientCapabilities", Value::OneOf(&[""])),
            ("ProtectSystem", Value::OneOf(&["full", "strict"])),
            ("ProtectHome", Value::Bool),
            ("PrivateTmp", Value::Bool),
            ("PrivateDevices", Value::Bool),
            ("ProtectKernelTunables", Value::Bool),
            ("ProtectKernelModules", Value::Bool),
            ("ProtectKernelLogs", Value::Bool),
            ("ProtectControlGroups", Value::Bool),
            ("ProtectClock", Value::Bool),
            ("ProtectHostname", Value::Bool),
            ("ProtectProc", Value::OneOf(&["invisible"])),
            ("RestrictAddressFamilies", Value::Any),
            ("RestrictNamespaces", Value::Bool),
            ("RestrictRealtime", Value::Bool),
            ("RestrictSUIDSGID", Value::Bool),
            ("LockPersonality", Value::Bool),
            ("MemoryDenyWriteExecute", Value::Bool),
            ("SystemCallArchitectures", Value::OneOf(&["native"])),
            ("SystemCallFilter", Value::Any),
            ("UMask", Value::OneOf(&["0077"])),
        ],
    ),
    ("Install", &[("WantedBy", Value::OneOf(&["multi-user.target"]))]),
];

/// Torn down with the service, or they take from a workflow what its author counts on.
const HARMFUL_TO_WORKFLOWS: [&str; 13] = [
    "PrivateTmp",
    "DynamicUser",
    "RuntimeDirectory",
    "ProtectHome",
    "PrivateDevices",
    "ProtectClock",
    "MemoryDenyWriteExecute",
    "ProtectKernelTunables",
    "ProtectProc",
    "SystemCallFilter",
    "RestrictNamespaces",
    "RestrictAddressFamilies",
    "UMask",
];

/// A unit's lines: section, key, value.
struct Unit {
    name: &'static str,
    lines: Vec<(String, String, String)>,
}

impl Unit {
    fn read(name: &'static str) -> Self {
        let mut section = String::new();
        let mut lines = Vec::new();
        for line in read(&format!("systemd/{name}")).lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                title.clone_into(&mut section);
                continue;
            }
            let (key, value) =
                line.split_once('=').unwrap_or_else(|| panic!("{name}: {line:?} sets nothing"));
            lines.push((section.clone(), key.to_owned(), value.to_owned()));
        }
        Self { name, lines }
    }

    fn values(&self, wanted: &str) -> Vec<&str> {
        let found = self.lines.iter().filter(|(_, key, _)| key == wanted);
        found.map(|(_, _, value)| value.as_str()).collect()
    }

    fn value(&self, key: &str) -> &str {
        match self.values(key)[..] {
            [value] => value,
            ref values => panic!("{}: {key} is set {} times", self.name, values.len()),
        }
    }
}

fn is_good(value: &str, kind: &Value) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match kind {
        Value::Any => !value.is_empty(),
        Value::Bool => value == "yes" || value == "no",
        Value::OneOf(words) => words.contains(&value),
        Value::Time => {
            value == "infinity"
                || ["s", "min", "h"].iter().any(|unit| value.strip_suffix(unit).is_some_and(number))
        }
        Value::Number => number(value),
    }
}

#[test]
fn every_section_key_and_value_is_one_that_systemd_knows() {
    for unit in UNITS.map(Unit::read) {
        for (section, key, value) in &unit.lines {
            let keys = KEYS.iter().find(|(name, _)| name == section).map(|(_, keys)| *keys);
            let keys = keys.unwrap_or_else(|| panic!("{}: unknown section [{section}]", unit.name));
            let kind = keys.iter().find(|(name, _)| name == key).map(|(_, kind)| kind);
            let kind = kind.unwrap_or_else(|| panic!("{}: unknown key {key} in [{section}]", unit.name));
            assert!(is_good(value, kind), "{}: {key}={value}", unit.name);
        }
    }
}

#[test]
fn every_command_and_variable_is_one_of_ours() {
    for unit in UNITS.map(Unit::read) {
        let words: Vec<&str> = unit.value("ExecStart").split(' ').collect();
        assert!(words[0].starts_with("/usr/local/bin/"), "{}: {}", unit.name, words[0]);
        check_command(&words);
        for assignment in unit.values("Environment") {
            let (name, _) = assignment.split_once('=').expect("NAME=VALUE");
            check_variable(name);
        }
    }
}

/// Type=notify with a service that never tells would hang its start for ever.
#[test]
fn each_service_starts_and_stops_as_the_programs_do() {
    for unit in UNITS.map(Unit::read) {
        assert_eq!(unit.value("Type"), "notify", "{}", unit.name);
        assert_eq!(unit.value("Restart"), "on-failure", "{}", unit.name);
        assert_eq!(unit.value("RestartPreventExitStatus"), "2", "{}: wrong usage", unit.name);
        assert_eq!(unit.value("NoNewPrivileges"), "yes", "{}", unit.name);
    }
}

#[test]
fn nothing_harms_workflows_that_outlive_the_service() {
    for unit in WITH_WORKFLOWS.map(Unit::read) {
        assert_eq!(unit.value("KillMode"), "process", "{}", unit.name);
        assert_eq!(unit.value("OOMPolicy"), "continue", "{}", unit.name);
        for key in HARMFUL_TO_WORKFLOWS {
            assert!(unit.values(key).is_empty(), "{}: {key} harms workflows, as the unit says", unit.name);
        }
    }
}

/// What both have in common is the same, so that one is not corrected without the other.
#[test]
fn both_units_with_workflows_say_the_same_of_them() {
    let [one, other] = WITH_WORKFLOWS.map(|name| {
        let text = read(&format!("systemd/{name}"));
        let from = text.find("# Workflows outlive the service").expect("the comment begins");
        text[from..].to_owned()
    });
    assert_eq!(one, other);
}

/// On a machine with systemd, its own judgement.
#[test]
fn systemd_itself_finds_nothing_wrong() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("no systemd-analyze on this machine");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let number = version.split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok());
    if number.is_none_or(|number| number < OLDEST_SYSTEMD) {
        println!("systemd is older than {OLDEST_SYSTEMD}: {version}");
        return;
    }
    let copies = tempfile::tempdir().expect("a directory");
    let programs = binary("dormouse").parent().expect("in a folder").display().to_string();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    for name in UNITS {
        // It looks whether the programs are there.
        let text = read(&format!("systemd/{name}")).replace("/usr/local/bin", &programs);
        fs::write(copies.path().join(name), text).expect("written");
        command.arg(copies.path().join(name));
    }
    let output = command.output().expect("it ran a moment ago");
    let said = String::from_utf8_lossy(&output.stderr);
    // It also speaks of other units of the machine.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("dormouse")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

/// `u NAME ID "DESCRIPTION" HOME SHELL`.
#[test]
fn the_user_of_the_units_is_made() {
    let text = read("systemd/dormouse.sysusers.conf");
    let line = text.lines().find(|line| !line.starts_with('#')).expect("one user");
    assert!(line.starts_with("u dormouse - "), "{line}");
    assert!(line.contains(" /var/lib/dormouse "), "{line}: its home is the data directory");
    assert!(folder().join("systemd").is_dir());
}
