//! The release before this one: its programs, and the sources that they were built of.
//!
//! `tests/build-previous` builds them out of the repository's history, before tests start; here they
//! are only found.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::binaries::{self, profile_directory};

/// A directory with programs of that release that are to be used as they are.
pub const VARIABLE: &str = "DORMOUSE_TEST_PREVIOUS";
const REMEDY: &str = "run ./test, or tests/build-previous";

/// Which release a program is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// What this workspace builds.
    This,
    /// The one before.
    Previous,
}

impl Release {
    /// The path of one of its programs.
    pub fn binary(self, name: &str) -> PathBuf {
        match self {
            Self::This => binaries::binary(name),
            Self::Previous => binary(name),
        }
    }
}

/// The path of a program of the release before this one.
///
/// Panics, with what to run, if it is missing.
pub fn binary(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(path.is_file(), "{} is not built; {REMEDY}", path.display());
    path
}

/// Where its programs are.
pub fn directory() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| below_target().join("debug"), PathBuf::from)
}

/// Its version, such as `0.1.0`.
pub fn release() -> String {
    named("release")
}

/// Its sources.
///
/// Panics, with what to run, if they are missing.
pub fn sources() -> PathBuf {
    let path = below_target().join("source");
    assert!(path.is_dir(), "{} is not there; {REMEDY}", path.display());
    path
}

fn below_target() -> PathBuf {
    let profile = profile_directory();
    let target = profile.parent().expect("a profile's directory is below the target directory");
    target.join("previous-release").join(named("commit"))
}

/// The value of a line of `tests/previous-release`.
fn named(key: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("previous-release");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{} has no line {key:?}", path.display())).to_owned()
}
