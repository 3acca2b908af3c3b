//! Which core replica this is: an id in a file of the data directory, held as long as it runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tracing::warn;

use crate::domain::id::ReplicaId;

/// A core that was killed keeps its lock until a child that it had just forked has started its program.
const TRIES: u32 = 50;
const TRY_PAUSE: Duration = Duration::from_millis(10);

/// Why a core cannot call itself by the id in its data directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// Another core runs there.
    #[error("another core uses this data directory: it holds {}; stop that one or choose another --data-dir", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// The disk.
    #[error("the core's id in {} cannot be read or written; check the folder's owner and its free space", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The id, and the lock on its file.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: ReplicaId,
    /// Closing it gives the lock back.
    _held: File,
}

impl Identity {
    /// Reads the id or chooses one. Blocks: a few milliseconds, half a second if another core holds it.
    pub(super) fn open(path: &Path) -> Result<Self, IdentityFileError> {
        let failed = |source| IdentityFileError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        if !lock(&file).map_err(failed)? {
            return Err(IdentityFileError::Held { path: path.to_owned() });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let text = text.trim();
        let id = match ReplicaId::parse(text) {
            Ok(id) => id,
            Err(error) => {
                if !text.is_empty() {
                    // Nothing hangs on it but a line in a list.
                    warn!(%error, path = %path.display(), "the core's id is unreadable; choosing another");
                }
                choose(&mut file).map_err(failed)?
            }
        };
        Ok(Self { id, _held: file })
    }
}

fn lock(file: &File) -> io::Result<bool> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => thread::sleep(TRY_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

fn choose(file: &mut File) -> io::Result<ReplicaId> {
    let id = random_id()?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    Ok(id)
}

/// An id that no other has.
pub(super) fn random_id() -> io::Result<ReplicaId> {
    let mut bits = [0; 10];
    getrandom::fill(&mut bits).map_err(io::Error::other)?;
    Ok(ReplicaId::from_random(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_and_held_by_one_core() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("core.id");
        let first = Identity::open(&path).expect("free");
        let id = first.id.clone();
        let refused = Identity::open(&path).expect_err("held").to_string();
        assert!(refused.contains("another core uses this data directory"), "{refused}");
        drop(first);
        assert_eq!(Identity::open(&path).expect("free again").id, id);
    }

    #[test]
    fn an_unreadable_id_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("core.id");
        std::fs::write(&path, "\u{7}").expect("written");
        let id = Identity::open(&path).expect("replaced").id;
        assert_eq!(Identity::open(&path).expect("readable").id, id);
    }
}
