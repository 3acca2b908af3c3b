//! The file with the core replicas' addresses, which every process holds open as a descriptor.
//!
//! It is written in place, never replaced: a process reads through the descriptor it was given,
//! and a new file under the same name would be invisible to it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The file, and what stands in it. Blocking: a few bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas {
    path: PathBuf,
    current: Arc<Mutex<Vec<String>>>,
}

impl Replicas {
    /// In a data directory, with these addresses; made if it is missing.
    pub(super) fn open(data: &Path, addresses: &[String]) -> io::Result<Self> {
        let path = data.join("replicas");
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let this = Self { path, current: Arc::default() };
        this.write(addresses)?;
        Ok(this)
    }

    /// What new processes are told.
    pub(super) fn current(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// Held while the file is written, so that file and memory are the same.
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the addresses. A reader may meet the moment between the two calls: it then sees
    /// the new lines followed by the rest of a longer old text, or finds no address that answers
    /// and reads again.
    pub fn write(&self, addresses: &[String]) -> io::Result<()> {
        let mut current = self.lock();
        let mut text = addresses.join("\n");
        text.push('\n');
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))?;
        addresses.clone_into(&mut current);
        Ok(())
    }

    /// For a process: it may read and nothing else.
    pub(super) fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}
