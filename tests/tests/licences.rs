//! Licences, without the network: each dependency's is one that `deny.toml` allows, and ours are there.
//! What needs the network, advisories, is the forge's job.

#![expect(clippy::disallowed_methods, reason = "runs cargo, which ends by itself")]

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

const OURS: &str = "MIT OR Apache-2.0";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None: a package of this workspace.
    source: Option<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").into()
}

/// Every package that is compiled for this machine: those of others are not downloaded here.
fn packages() -> Vec<Package> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features"]);
    cargo.args(["--filter-platform", "host-tuple"]);
    let output = cargo.current_dir(root()).output().expect("cargo is there: it runs this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    metadata.packages
}

/// The list in `deny.toml`.
fn allowed() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    let file = DeTable::parse(&text).expect("deny.toml is TOML");
    let licences = file.get_ref().get("licenses").and_then(|section| section.get_ref().get("allow"));
    let list = licences.and_then(|allow| allow.get_ref().as_array()).expect("it has licenses.allow, a list");
    let name = |value: &DeValue<'_>| value.as_str().expect("a licence's name").to_owned();
    list.iter().map(|value| name(value.get_ref())).collect()
}

/// Whether the expression can be kept with these licences: `A OR B`, `A AND B`, parentheses, and
/// `/`, as older packages write OR. AND binds closer.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let good = any(&mut rest, allowed);
    assert!(rest.is_empty(), "{expression:?} is no licence expression: {rest:?} is left");
    good
}

fn any(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut good = all(rest, allowed);
    while taken(rest, "OR") {
        good |= all(rest, allowed);
    }
    good
}

fn all(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut good = one(rest, allowed);
    while taken(rest, "AND") {
        good &= one(rest, allowed);
    }
    good
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    if taken(rest, "(") {
        let good = any(rest, allowed);
        assert!(taken(rest, ")"), "a parenthesis stays open");
        return good;
    }
    let [name, after @ ..] = *rest else { panic!("a licence is missing") };
    *rest = after;
    if taken(rest, "WITH") {
        let [exception, after @ ..] = *rest else { panic!("an exception is missing") };
        *rest = after;
        return allowed.contains(&format!("{name} WITH {exception}"));
    }
    allowed.contains(*name)
}

fn taken(rest: &mut &[&str], word: &str) -> bool {
    match *rest {
        [first, after @ ..] if *first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

#[test]
fn each_dependency_has_a_licence_that_is_allowed() {
    let allowed = allowed();
    let packages = packages();
    assert!(packages.len() > 100, "cargo metadata listed {} packages", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package.license.as_ref().is_some_and(|license| is_allowed(license, &allowed)))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(
        refused.is_empty(),
        "not allowed by deny.toml; choose another crate, or give the reason there: {refused:#?}"
    );
}

#[test]
fn our_packages_and_files_say_the_same() {
    let ours: Vec<Package> = packages().into_iter().filter(|package| package.source.is_none()).collect();
    assert!(ours.len() >= 10, "{} packages of our own", ours.len());
    for package in &ours {
        assert_eq!(package.license.as_deref(), Some(OURS), "{}", package.name);
    }
    for (file, begins) in [("LICENSE-MIT", "MIT License"), ("LICENSE-APACHE", "Apache License")] {
        let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.trim_start().starts_with(begins), "{file} begins with {:?}", text.lines().next());
    }
}

#[test]
fn an_expression_is_read_as_it_is_meant() {
    let allowed: BTreeSet<String> =
        ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "MIT AND Zlib",
        "(GPL-3.0 OR MIT) AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-3.0 AND MIT OR Zlib",
    ] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in
        ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT OR Zlib) AND GPL-3.0", "GPL-3.0 OR MIT AND ISC"]
    {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}
