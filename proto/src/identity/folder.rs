//! The folder that holds the files: locked while they are read or written, each whole or not there, keys for
//! their owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::KeyPair;

use super::{Damage, IdentityError};

/// The folder, locked as long as this lives.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    lock: File,
}

impl Folder {
    pub(super) fn lock(dir: &Path) -> Result<Self, IdentityError> {
        let failed = |action| move |source| IdentityError::File { action, path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create"))?;
        // The folder itself is what is locked: no file of its own, nothing to clean up.
        let lock = File::open(dir).map_err(failed("open"))?;
        lock.lock().map_err(failed("lock"))?;
        Ok(Self { dir: dir.to_owned(), lock })
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { action: "read", path, source }),
        }
    }

    pub(super) fn read_key(&self, name: &str) -> Result<Option<KeyPair>, IdentityError> {
        let Some(pem) = self.read(name)? else { return Ok(None) };
        let path = self.dir.join(name);
        let metadata = fs::metadata(&path).map_err(|source| IdentityError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        KeyPair::from_pem(&pem).map(Some).map_err(|error| self.damaged(name, Damage::Key(error)))
    }

    /// Writes a file that is whole or not there, also after a power cut.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), IdentityError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        let written = (|| {
            // One that a cut-off start left behind is overwritten; its permissions may be anything.
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.lock.sync_all()
        })();
        written.map_err(|source| IdentityError::File { action: "write", path, source })
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(IdentityError::File { action: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn damaged(&self, name: &str, source: Damage) -> IdentityError {
        IdentityError::Damaged { path: self.dir.join(name), source }
    }
}
