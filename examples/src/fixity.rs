//! A fixity audit, as archives do it: hash every file of a tree, write a manifest.
//!
//! Each file is a step of its own, found again by its path, so a killed audit goes on where
//! it was. The list of files is not saved, only its digest: it is cheap to walk the tree again,
//! and a list of tens of thousands of names would not fit into one checkpoint. A file that
//! appears, vanishes or changes before the manifest is written, in this launch or between two,
//! fails the audit: a manifest that was true for no moment is worth nothing.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, BufWriter, Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::side_file;

/// What to audit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Audit {
    /// The tree. Absolute: an instance runs in a working directory of its own.
    pub root: PathBuf,
    /// Where the manifest goes. Absolute; replaced as a whole, at the end.
    pub manifest: PathBuf,
    /// Files hashed at a time, 1 to 64.
    #[serde(default = "four")]
    pub parallel: usize,
    /// Pause after each file, in milliseconds: spares a busy disk.
    #[serde(default)]
    pub pace_ms: u64,
    /// Wait so long after hashing, then look whether a file has changed since.
    #[serde(default)]
    pub settle_seconds: u64,
}

fn four() -> usize {
    4
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Report {
    /// Files in the manifest.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links, sockets and the like, which have no content of their own.
    pub skipped: u64,
    /// Where the manifest is.
    pub manifest: PathBuf,
    /// SHA-256 of the manifest itself.
    pub manifest_sha256: String,
}

/// What one step saves of a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Hashed {
    sha256: String,
    bytes: u64,
    /// Nanoseconds since 1970, as the file system has it.
    modified: i128,
}

/// Audits `audit.root` and writes `audit.manifest`.
pub async fn fixity(ctx: Context, audit: Audit) -> Result<Report> {
    for (field, path) in [("root", &audit.root), ("manifest", &audit.manifest)] {
        if !path.is_absolute() {
            return Err(refused(format!("{field} {} is relative; give an absolute path", path.display())));
        }
    }
    let tree = walk(&audit)?;
    let total = tree.files.len() as u64;
    let listed = ctx.step("list", async || tree.listing(ctx.attempt())).await?;
    if listed != tree.digest() {
        let message =
            format!("files in {} came or went during the audit; {STAND_STILL}", audit.root.display());
        return Err(Failure::new("TREE_CHANGED", message).permanent());
    }
    let done = std::sync::atomic::AtomicU64::new(0);
    let hashed: BTreeMap<PathBuf, Hashed> = stream::iter(tree.files)
        .map(|path| {
            let (ctx, root, done, pace) = (&ctx, &audit.root, &done, Duration::from_millis(audit.pace_ms));
            async move {
                let hashed = hash_step(ctx, &path, root, pace).await?;
                let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                ctx.progress(done, total);
                Ok::<_, Failure>((path, hashed))
            }
        })
        .buffer_unordered(audit.parallel.clamp(1, 64))
        .try_collect()
        .await?;
    if audit.settle_seconds > 0 {
        ctx.sleep("settle", Duration::from_secs(audit.settle_seconds)).await?;
    }
    let bytes = hashed.values().map(|hashed| hashed.bytes).sum();
    let manifest_sha256 = write_step(&ctx, &audit.manifest, hashed).await?;
    Ok(Report { files: total, bytes, skipped: tree.skipped, manifest: audit.manifest, manifest_sha256 })
}

async fn hash_step(ctx: &Context, path: &Path, root: &Path, pace: Duration) -> Result<Hashed> {
    let key = key(path.strip_prefix(root).unwrap_or(path));
    let (attempt, path, label) = (ctx.attempt(), path.to_owned(), format!("hash {key}"));
    ctx.step_blocking("hash", move || {
        let hashed = hash(&path)?;
        std::thread::sleep(pace);
        side_file::ran(attempt, &label)?;
        Ok::<_, Failure>(hashed)
    })
    .key(key)
    .await
}

async fn write_step(ctx: &Context, manifest: &Path, hashed: BTreeMap<PathBuf, Hashed>) -> Result<String> {
    let (attempt, manifest) = (ctx.attempt(), manifest.to_owned());
    ctx.step_blocking("write-manifest", move || {
        // In the same step: once the manifest is written, the tree may live on.
        hashed.iter().try_for_each(|(path, hashed)| unchanged(path, hashed))?;
        let sha256 = write(&manifest, &hashed).map_err(|error| at(&manifest, &error))?;
        side_file::ran(attempt, "write-manifest")?;
        Ok::<_, Failure>(sha256)
    })
    .await
}

struct Tree {
    /// Sorted by their bytes, so that the manifest is the same each time.
    files: Vec<PathBuf>,
    skipped: u64,
}

impl Tree {
    /// The step that fixes what is audited.
    fn listing(&self, attempt: u32) -> Result<String> {
        side_file::ran(attempt, "list")?;
        Ok(self.digest())
    }

    fn digest(&self) -> String {
        let mut sha256 = Sha256::new();
        for file in &self.files {
            sha256.update(file.as_os_str().as_bytes());
            // No name contains it, so no two lists read alike.
            sha256.update([0]);
        }
        format!("{:x}", sha256.finalize())
    }
}

/// Every regular file below the root, but for the manifest; links are not followed.
fn walk(audit: &Audit) -> Result<Tree> {
    let mut tree = Tree { files: Vec::new(), skipped: 0 };
    let mut folders = vec![audit.root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| at(&folder, &error))? {
            let entry = entry.map_err(|error| at(&folder, &error))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(|error| at(&path, &error))?;
            if kind.is_dir() {
                folders.push(path);
            } else if !kind.is_file() {
                tree.skipped += 1;
            } else if path != audit.manifest && path != draft(&audit.manifest) {
                tree.files.push(path);
            }
        }
    }
    tree.files.sort();
    Ok(tree)
}

/// Hashes a file and makes sure that it stood still meanwhile.
fn hash(path: &Path) -> Result<Hashed> {
    let mut file = File::open(path).map_err(|error| at(path, &error))?;
    let before = file.metadata().map_err(|error| at(path, &error))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut bytes = 0u64;
    loop {
        match file.read(&mut buffer).map_err(|error| at(path, &error))? {
            0 => break,
            n => {
                sha256.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    let after = file.metadata().map_err(|error| at(path, &error))?;
    if bytes != after.len() || modified(&before) != modified(&after) {
        return Err(changed(path));
    }
    Ok(Hashed { sha256: format!("{:x}", sha256.finalize()), bytes, modified: modified(&after) })
}

fn unchanged(path: &Path, hashed: &Hashed) -> Result<()> {
    let now = fs::symlink_metadata(path).map_err(|error| at(path, &error))?;
    if now.len() == hashed.bytes && modified(&now) == hashed.modified { Ok(()) } else { Err(changed(path)) }
}

fn modified(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// Writes the manifest beside its place, then moves it there: it is never seen half done.
fn write(manifest: &Path, hashed: &BTreeMap<PathBuf, Hashed>) -> io::Result<String> {
    let draft = draft(manifest);
    let mut sha256 = Sha256::new();
    let mut out = BufWriter::new(File::create(&draft)?);
    for (path, hashed) in hashed {
        let line = line(&hashed.sha256, path.as_os_str());
        sha256.update(&line);
        out.write_all(&line)?;
    }
    out.into_inner()?.sync_all()?;
    fs::rename(&draft, manifest)?;
    if let Some(folder) = manifest.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(format!("{:x}", sha256.finalize()))
}

/// One line as `sha256sum` writes it: a name with a newline, a carriage return or a backslash is
/// escaped, and a backslash at the beginning of the line says so.
fn line(sha256: &str, path: &OsStr) -> Vec<u8> {
    let name = path.as_bytes();
    let mut line = Vec::with_capacity(sha256.len() + name.len() + 4);
    if name.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b'\\')) {
        line.push(b'\\');
    }
    line.extend_from_slice(sha256.as_bytes());
    line.extend_from_slice(b"  ");
    for byte in name {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\\' => line.extend_from_slice(b"\\\\"),
            other => line.push(*other),
        }
    }
    line.push(b'\n');
    line
}

fn draft(manifest: &Path) -> PathBuf {
    let mut name = manifest.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// A step's key for a path: the path itself where it is text, with `%` and what is no text
/// written as `%XX`, so that two paths never share a key; very long ones by their hash.
fn key(path: &Path) -> String {
    let mut key = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        key.push_str(&chunk.valid().replace('%', "%25"));
        chunk.invalid().iter().for_each(|byte| key.push_str(&format!("%{byte:02X}")));
    }
    if key.len() > 1000 { format!("%hash:{:x}", Sha256::digest(key.as_bytes())) } else { key }
}

/// What to do about a tree that moves.
const STAND_STILL: &str = "audit a tree that stands still";

fn refused(message: String) -> Failure {
    Failure::new("INVALID_INPUT", message).permanent()
}

fn at(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new("FILE_VANISHED", format!("{} is not there; {STAND_STILL}", path.display()))
                .permanent()
        }
        _ => Failure::new("FILE_UNREADABLE", format!("{}: {error}", path.display())),
    }
}

fn changed(path: &Path) -> Failure {
    let message = format!("{} changed while it was audited; {STAND_STILL}", path.display());
    Failure::new("FILE_CHANGED", message).permanent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_paths_differ() {
        let names: [&[u8]; 6] = [b"a%FF", b"a\xff", b"a%25FF", b"a\nb", b"a/b", b"a"];
        let keys: std::collections::BTreeSet<_> =
            names.iter().map(|name| key(Path::new(OsStr::from_bytes(name)))).collect();
        assert_eq!(keys.len(), names.len(), "{keys:?}");
        let long = "x".repeat(4000);
        assert!(key(Path::new(&long)).len() < 100);
    }

    #[test]
    fn odd_names_are_written_as_sha256sum_writes_them() {
        assert_eq!(line("00", OsStr::new("/a b")), b"00  /a b\n");
        assert_eq!(line("00", OsStr::new("/a\nb\\")), b"\\00  /a\\nb\\\\\n");
    }
}
