//! Finds the programs that the tests run, and refuses stale ones.
//!
//! Cargo builds the binaries of other packages only when it is told to. A test that silently ran
//! last week's service would prove nothing, so each binary is compared with every source it was
//! built from, as listed in the file that cargo writes beside it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

const REMEDY: &str = "run ./test, or cargo build --workspace --bins";

/// The path of a program of this workspace, built from its present sources.
///
/// Panics, with what to run, if it is missing or older than one of its sources.
pub fn binary(name: &str) -> PathBuf {
    let path = profile_directory().join(name);
    if let Err(why) = is_current(&path) {
        panic!("{why}; {REMEDY}");
    }
    path
}

/// Where cargo puts the programs of the profile that these tests are built with.
pub(crate) fn profile_directory() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    // target/PROFILE/deps/test-HASH, or target/PROFILE/program.
    let folder = test.parent().expect("it is in a folder");
    let folder =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    folder.to_path_buf()
}

fn is_current(program: &Path) -> Result<(), String> {
    let built = modified(program).ok_or_else(|| format!("{} is not built", program.display()))?;
    let listing = program.with_extension("d");
    let text = fs::read_to_string(&listing).map_err(|error| {
        format!("cannot tell whether {} is current: {}: {error}", program.display(), listing.display())
    })?;
    for source in sources(&text) {
        match modified(&source) {
            None => {
                return Err(format!(
                    "{} was built from {}, which is gone",
                    program.display(),
                    source.display()
                ));
            }
            Some(changed) if changed > built => {
                return Err(format!("{} is older than {}", program.display(), source.display()));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// `program: source source …`, as for make: a space in a path is escaped.
fn sources(listing: &str) -> Vec<PathBuf> {
    let first_rule = listing.lines().next().unwrap_or_default();
    let Some((_, sources)) = first_rule.split_once(": ") else { return Vec::new() };
    let whole = sources.replace("\\ ", "\u{0}");
    whole.split(' ').filter(|path| !path.is_empty()).map(|path| path.replace('\u{0}', " ").into()).collect()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_space_in_a_path_is_no_end_of_it() {
        let found = sources("/t/debug/p: /w/a.rs /w/my\\ work/b.rs\n");
        assert_eq!(found, [PathBuf::from("/w/a.rs"), PathBuf::from("/w/my work/b.rs")]);
    }

    #[test]
    fn a_program_older_than_a_source_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let (program, source) = (dir.path().join("program"), dir.path().join("source.rs"));
        fs::write(&source, "").expect("written");
        fs::write(&program, "").expect("written");
        fs::write(dir.path().join("program.d"), format!("{}: {}\n", program.display(), source.display()))
            .expect("written");
        assert_eq!(is_current(&program), Ok(()));

        let later = modified(&program).expect("it exists") + Duration::from_secs(1);
        fs::File::options().append(true).open(&source).expect("it exists").set_modified(later).expect("set");
        assert!(is_current(&program).is_err_and(|why| why.contains("is older than")));

        fs::remove_file(&source).expect("removed");
        assert!(is_current(&program).is_err_and(|why| why.contains("is gone")));
        fs::remove_file(&program).expect("removed");
        assert!(is_current(&program).is_err_and(|why| why.contains("is not built")));
    }
}
