//! Which folder the demo audits: the one that was named, or one that stands on most machines,
//! or one that is made on the spot.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::exit::Usage;

/// Folders of system packages: they stand still, everybody may read them.
const USUAL: [&str; 5] =
    ["/usr/share/zoneinfo", "/usr/share/doc", "/usr/share/man", "/usr/share/perl", "/usr/lib/python3"];
/// Few enough to be hashed while a person watches, enough to be killed in the middle.
const FILES: std::ops::RangeInclusive<u64> = 300..=20_000;
const BYTES_MAX: u64 = 1 << 30;
const OWN_FILES: u32 = 400;

/// A tree of files.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

pub(super) fn choose(named: Option<&Path>, stage: &Path) -> anyhow::Result<Folder> {
    if let Some(root) = named {
        let root = fs::canonicalize(root).with_context(|| Usage(format!("--folder {}", root.display())))?;
        let folder = measure(&root, u64::MAX)?;
        if folder.files < 20 {
            let n = folder.files;
            bail!(Usage(format!("--folder {} holds {n} files; name one with 20 or more", root.display())));
        }
        return Ok(folder);
    }
    let usual = USUAL.iter().filter_map(|root| measure(Path::new(root), *FILES.end()).ok());
    let mut fitting = usual.filter(|folder| FILES.contains(&folder.files) && folder.bytes <= BYTES_MAX);
    match fitting.next() {
        Some(folder) => Ok(folder),
        None => make(&stage.join("folder")),
    }
}

/// Counts regular files that can be read; gives up beyond `most`.
fn measure(root: &Path, most: u64) -> anyhow::Result<Folder> {
    let mut folder = Folder { root: root.to_owned(), files: 0, bytes: 0 };
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                fs::File::open(entry.path())
                    .with_context(|| format!("cannot read {}", entry.path().display()))?;
                folder.files += 1;
                folder.bytes += entry.metadata()?.len();
            }
        }
        if folder.files > most {
            bail!("{} has more than {most} files", root.display());
        }
    }
    Ok(folder)
}

/// A folder of our own, where a machine has none of the usual ones.
fn make(root: &Path) -> anyhow::Result<Folder> {
    for n in 0..OWN_FILES {
        let dir = root.join(format!("shelf-{:02}", n % 20));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("record-{n:04}.txt")), format!("record {n}\n").repeat(200))?;
    }
    measure(root, u64::from(OWN_FILES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_usual_folders_gets_one() {
        let stage = tempfile::tempdir().expect("a folder");
        let made = make(&stage.path().join("folder")).expect("made");
        assert_eq!(made.files, u64::from(OWN_FILES));
        assert!(measure(&made.root, 10).is_err(), "gives up beyond the limit");
    }

    #[test]
    fn a_folder_with_too_little_in_it_is_refused() {
        let stage = tempfile::tempdir().expect("a folder");
        let error = choose(Some(stage.path()), stage.path()).expect_err("empty");
        assert!(error.to_string().contains("20 or more"), "{error}");
    }
}
