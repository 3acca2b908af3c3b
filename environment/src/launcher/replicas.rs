//! The file with the core replicas' addresses, which every process holds open as a descriptor.
//!
//! It is written in place, never replaced: a process reads through the descriptor it was given,
//! and a new file under the same name would be invisible to it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The file. Blocking: a few bytes.
#[derive(Clone, Debug)]
pub struct Replicas {
    path: PathBuf,
}

impl Replicas {
    /// In a data directory; made empty if it is missing.
    pub fn open(data: &Path) -> io::Result<Self> {
        let path = data.join("replicas");
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        Ok(Self { path })
    }

    /// Replaces the addresses. A reader may meet the moment between the two calls: it then sees
    /// the new lines followed by the rest of a longer old text, or finds no address that answers
    /// and reads again.
    pub fn write(&self, addresses: &[String]) -> io::Result<()> {
        let mut text = addresses.join("\n");
        text.push('\n');
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))
    }

    /// For a process: it may read and nothing else.
    pub(super) fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}
