//! What was measured on: written beside every figure.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use nix::sys::statfs::{self, FsType};

/// Whoever flushes to memory measures nothing.
pub(crate) fn refuse_memory(folder: &Path) -> anyhow::Result<()> {
    let kind =
        statfs::statfs(folder).with_context(|| format!("--disk {}", folder.display()))?.filesystem_type();
    let ramfs = FsType(0x8584_58f6);
    if kind == statfs::TMPFS_MAGIC || kind == ramfs {
        bail!(
            "--disk {} lies in memory, where flushing costs nothing; name a folder on the disk that is meant",
            folder.display()
        );
    }
    Ok(())
}

/// The machine and the versions of one run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    /// When the run began, RFC 3339.
    pub(crate) at: String,
    /// Of the repository; `-dirty` with changes that are not committed.
    pub(crate) revision: String,
    pub(crate) version: String,
    pub(crate) rustc: String,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// The file system and the device of the data.
    pub(crate) disk: String,
    /// With its version and what it is set to.
    pub(crate) sqlite: String,
    pub(crate) postgres: Option<String>,
    pub(crate) build: String,
}

pub(crate) fn memory_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .context("/proc/meminfo has no MemTotal")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
