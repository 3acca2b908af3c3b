//! The image: what it builds, installs and starts is there, and it does not run as root.

use super::{PROGRAMS, check_command, check_variable, read};

/// Instructions of the file, joined over their continued lines: name, rest.
fn instructions() -> Vec<(String, String)> {
    let text = read("Containerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let parse = |line: &str| {
        let (name, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?} is no instruction"));
        (name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    joined.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

/// Those of the last stage: what is run.
pub(crate) fn last_stage() -> Vec<(String, String)> {
    let all = instructions();
    let from = all.iter().rposition(|(name, _)| name == "FROM").expect("there is a base");
    all[from..].to_vec()
}

fn values<'a>(of: &'a [(String, String)], wanted: &str) -> Vec<&'a str> {
    of.iter().filter(|(name, _)| name == wanted).map(|(_, rest)| rest.as_str()).collect()
}

#[test]
fn every_instruction_is_known() {
    const KNOWN: [&str; 11] = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "CMD",
    ];
    for (name, rest) in instructions() {
        assert!(KNOWN.contains(&name.as_str()), "{name} {rest}");
    }
}

#[test]
fn it_builds_and_installs_every_program() {
    let all = instructions();
    let build = values(&all, "RUN").join(" ");
    for program in PROGRAMS {
        assert!(build.contains(&format!("--package {program} ")), "{program} is not built: {build}");
        assert!(build.contains(&format!("target/release/{program} ")), "{program} is not installed: {build}");
    }
    assert!(build.contains("--locked"), "what is built is what was tested: {build}");
}

#[test]
fn it_runs_as_a_user_without_rights() {
    let last = last_stage();
    assert_eq!(values(&last, "USER"), ["dormouse"]);
    let made = values(&last, "RUN").join(" ");
    assert!(made.contains("useradd --system") && made.contains(" dormouse"), "{made}");
    // The mounted volumes take over owner and mode of what they cover.
    assert!(made.contains("--owner dormouse --group dormouse --mode 0700 /var/lib/dormouse"), "{made}");
}

#[test]
fn its_variables_and_its_command_are_ours() {
    let last = last_stage();
    for assignment in values(&last, "ENV").iter().flat_map(|line| line.split(' ')) {
        check_variable(assignment.split_once('=').expect("NAME=VALUE").0);
    }
    let command: Vec<String> = serde_json::from_str(values(&last, "CMD")[0]).expect("the exec form");
    check_command(&command.iter().map(String::as_str).collect::<Vec<_>>());
    let ports = values(&last, "EXPOSE");
    assert_eq!(ports, ["8001/udp 8002/udp"], "where core and environment listen");
}
