//! What ran, counted outside: a workflow (the program `sleeper`) appends `instance attempt` to a file
//! of the test's when an attempt of it begins, so that a test need not believe what the services say
//! of themselves.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Names the file to workflows.
pub const VARIABLE: &str = "DORMOUSE_TALLY_FILE";

/// A file with a line for each attempt that ran.
#[derive(Clone, Debug)]
pub struct Tally {
    path: PathBuf,
}

impl Tally {
    /// A file of its own in this directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(format!("tally-{:08x}", fastrand::u32(..))) }
    }

    /// For [`StartInstance::env`](dormouse_management_sdk::StartInstance::env), with [`VARIABLE`].
    pub fn value(&self) -> String {
        self.path.display().to_string()
    }

    /// The attempts of each instance that ran, in the order in which they began. An attempt that
    /// ran twice is there twice.
    pub fn attempts(&self) -> BTreeMap<String, Vec<u32>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => panic!("{}: {error}", self.path.display()),
        };
        let mut attempts: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for line in text.lines() {
            let (instance, attempt) = line.split_once(' ').expect("instance attempt");
            let attempt = attempt.parse().expect("a number");
            attempts.entry(instance.to_owned()).or_default().push(attempt);
        }
        attempts
    }

    /// How many attempts ran, of all instances.
    pub fn count(&self) -> usize {
        self.attempts().values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_ran_twice_is_there_twice() {
        let dir = tempfile::tempdir().expect("a folder");
        let tally = Tally::in_dir(dir.path());
        assert_eq!(tally.count(), 0);
        fs::write(&tally.path, "a 1\nb 1\na 2\na 2\n").expect("written");
        let expected = [("a".to_owned(), vec![1, 2, 2]), ("b".to_owned(), vec![1])];
        assert_eq!(tally.attempts(), BTreeMap::from(expected));
        assert_eq!(tally.count(), 4);
    }
}
