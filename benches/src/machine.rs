//! What was measured on: written beside every figure.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use nix::sys::{
    statfs::{self, FsType},
    utsname,
};
use sqlx::{Connection as _, SqliteConnection};

use crate::context::Context;

/// The workspace that this program was built from.
pub(crate) const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The machine and the versions of one run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    /// When the run began, RFC 3339.
    pub(crate) at: String,
    /// Of Dormouse.
    pub(crate) version: String,
    /// Of the repository when the run began; with `-dirty` something is not committed.
    pub(crate) revision: String,
    pub(crate) rustc: String,
    /// Of the programs: `release`, or `debug`, whose figures are worth nothing.
    pub(crate) profile: String,
    /// Whether the programs are of that revision: those of another build may not be.
    pub(crate) programs: String,
    /// Whether it was a quick run, whose figures are worth nothing either.
    pub(crate) quick: bool,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// File system and device of the data.
    pub(crate) disk: String,
    pub(crate) sqlite: String,
    /// Version and settings; none in a run without it.
    pub(crate) postgres: Option<String>,
}

impl Machine {
    pub(crate) async fn look(context: &Context) -> anyhow::Result<Self> {
        let postgres = match context.postgres() {
            Some(server) => Some(server.describe().await?),
            None => None,
        };
        let kernel = utsname::uname().context("uname")?;
        let release = kernel.release().to_string_lossy();
        Ok(Self {
            at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision(),
            rustc: said("rustc", &["--version"]).unwrap_or_else(|| "unknown".to_owned()),
            profile: context.programs().profile().to_owned(),
            programs: context.programs().origin().to_owned(),
            quick: context.is_quick(),
            cores: std::thread::available_parallelism()?.get(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            memory_bytes: memory_bytes()?,
            kernel: format!("{} {release}", kernel.sysname().to_string_lossy()),
            disk: disk(context.disk())?,
            sqlite: sqlite().await?,
            postgres,
        })
    }
}

/// Whoever flushes to memory measures nothing.
pub(crate) fn refuse_memory(folder: &Path) -> anyhow::Result<()> {
    const RAMFS: FsType = FsType(0x8584_58f6);
    let found = statfs::statfs(folder).with_context(|| format!("--disk {}", folder.display()))?;
    if [statfs::TMPFS_MAGIC, RAMFS].contains(&found.filesystem_type()) {
        bail!(
            "--disk {} lies in memory, where flushing costs nothing; name a folder on the disk that is meant",
            folder.display()
        );
    }
    Ok(())
}

fn revision() -> String {
    let head = said("git", &["-C", WORKSPACE, "rev-parse", "--short=12", "HEAD"]);
    let changes = said("git", &["-C", WORKSPACE, "status", "--porcelain", "--untracked-files=no"]);
    match (head, changes) {
        (Some(head), Some(changes)) if changes.is_empty() => head,
        (Some(head), _) => format!("{head}-dirty"),
        (None, _) => "unknown".to_owned(),
    }
}

/// What a command prints; none if it fails, as `git` does outside a repository.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first `name : value` of a file below /proc.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn memory_bytes() -> anyhow::Result<u64> {
    let total = field("/proc/meminfo", "MemTotal").context("/proc/meminfo has no MemTotal")?;
    let kilobytes: u64 = total.trim_end_matches(" kB").parse().context("MemTotal of /proc/meminfo")?;
    Ok(kilobytes * 1024)
}

/// File system and device of the mount that a folder is in.
fn disk(folder: &Path) -> anyhow::Result<String> {
    // number parent device root mount options … - type source
    let text = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mount = PathBuf::from(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        folder.starts_with(&mount).then_some((mount, after.next()?, after.next()?))
    });
    let (_, kind, device) =
        mounts.max_by_key(|(mount, _, _)| mount.components().count()).context("no mount")?;
    Ok(format!("{kind} on {device}"))
}

async fn sqlite() -> anyhow::Result<String> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(format!("{version}, journal_mode WAL, synchronous FULL"))
}
