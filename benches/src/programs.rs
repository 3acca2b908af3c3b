//! Where the programs are that a run starts: the services, and the probes without Dormouse's code.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The folder of the programs that cargo built with this one, in the same profile.
#[derive(Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        let own = env::current_exe().context("the path of this program")?;
        let folder = own.parent().context("a program is in a folder")?.to_path_buf();
        Ok(Self { folder })
    }

    /// A program of this workspace, such as `dormouse`.
    pub(crate) fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        if !path.is_file() {
            bail!(
                "{} is not built; run cargo build{} --workspace --bins",
                path.display(),
                profile(&self.folder)
            );
        }
        Ok(path)
    }
}

fn profile(folder: &Path) -> &'static str {
    if folder.ends_with("release") { " --release" } else { "" }
}
