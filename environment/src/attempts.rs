//! The directories of attempts, and what ended attempts leave behind.
//!
//! ```text
//! attempts/<instance>.<attempt>/   process.json, stdout, stderr, work/, tmp/: its process may live
//! outputs/<instance>/<attempt>.stdout, .stderr, .work    of ended attempts; tenant: whose
//! spares/<number>/                 as of an attempt: a process that belongs to none lives there
//! ```
//!
//! So `attempts/` holds no more entries than processes, and a restart that looks for living ones
//! does not walk through the outputs of all that ever slept. An attempt that wrote nothing
//! leaves nothing.
//!
//! It never removes a directory whose process may live: only who has seen the end calls
//! [`Attempts::archive`].

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use dormouse_core::domain::id::{Attempt, Digest, InstanceId, Tenant};
use sha2::{Digest as _, Sha256};

use crate::process::ProcessRecord;

/// One attempt of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId {
    /// Whose instance.
    pub tenant: Tenant,
    /// Which instance.
    pub instance: InstanceId,
    /// Which attempt.
    pub attempt: Attempt,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.instance, self.attempt)
    }
}

/// The instance's name in a path. Ids are unique per tenant only and take most of a name's length
/// already, so other tenants than the default get a prefix out of their name's digest; `~` is
/// in no id.
fn instance_label(tenant: &Tenant, instance: &InstanceId) -> String {
    if *tenant == Tenant::default_tenant() {
        return instance.to_string();
    }
    let digest = Digest(Sha256::digest(tenant.as_str()).into()).to_string();
    format!("~{}~{instance}", &digest[..16])
}

/// A process's own files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptDirectory {
    /// `attempts/<instance>.<attempt>`
    pub path: PathBuf,
}

impl AttemptDirectory {
    /// Who runs here.
    pub fn record(&self) -> PathBuf {
        self.path.join("process.json")
    }

    /// Where it starts.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Its temporary files.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    /// What it writes there.
    pub fn stream(&self, stream: Stream) -> PathBuf {
        self.path.join(stream.as_str())
    }

    /// Removes it as most attempts leave it, without looking what is there. An error: there is more.
    fn remove_as_made(&self) -> io::Result<()> {
        for file in [self.stream(Stream::Stdout), self.stream(Stream::Stderr), self.record()] {
            ignore_missing(fs::remove_file(file))?;
        }
        fs::remove_dir(self.tmp())?;
        fs::remove_dir(&self.path)
    }

    /// Makes the process known, in one write of less than a page: whoever kills this service
    /// leaves it whole or empty, and empty is as good as not there. So no rename is needed, and
    /// every change of a directory counts in a launch. Not flushed to the disk: after a power cut
    /// no process of this boot lives.
    pub fn write_record(&self, record: &ProcessRecord) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        let n = File::create(self.record())?.write(&text)?;
        if n == text.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Who runs here; `None` if nobody was made known.
    pub fn load_record(&self) -> io::Result<Option<ProcessRecord>> {
        match fs::read(self.record()) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// One of the two output files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Its name on the wire and on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// Reads that name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.as_str() == word)
    }
}

/// How much of what ended attempts wrote is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes on disk per instance; the newest attempts stay.
    pub instance_bytes: u64,
    /// Bytes on disk in all; the instances that ended longest ago go first.
    pub node_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { instance_bytes: 100 << 20, node_bytes: 10 << 30 }
    }
}

/// All attempts of this node. Blocking; cheap to clone.
#[derive(Clone, Debug)]
pub struct Attempts {
    living: PathBuf,
    spares: PathBuf,
    ended: PathBuf,
    retention: Retention,
}

impl Attempts {
    /// Below a data directory; makes the two folders if they are missing.
    pub fn open(data: &Path, retention: Retention) -> io::Result<Self> {
        let this = Self {
            living: data.join("attempts"),
            ended: data.join("outputs"),
            spares: data.join("spares"),
            retention,
        };
        fs::create_dir_all(&this.living)?;
        fs::create_dir_all(&this.ended)?;
        fs::create_dir_all(&this.spares)?;
        Ok(this)
    }

    /// Makes the directory of a process that belongs to no attempt yet. The number is used once in
    /// a life of this service, and [`Self::spares`] are gone before the first one.
    pub(crate) fn create_spare(&self, number: u64) -> io::Result<AttemptDirectory> {
        let directory = AttemptDirectory { path: self.spares.join(number.to_string()) };
        fs::create_dir(&directory.path)?;
        fs::create_dir(directory.work())?;
        fs::create_dir(directory.tmp())?;
        Ok(directory)
    }

    /// Makes a spare's directory, with all that is in it, that of an attempt: the process there
    /// keeps its working directory and its outputs. Refused as [`Self::create`].
    pub(crate) fn rename_spare(
        &self,
        spare: &AttemptDirectory,
        id: &AttemptId,
    ) -> io::Result<AttemptDirectory> {
        let directory = self.directory(id);
        match fs::rename(&spare.path, &directory.path) {
            // What a launch that was cut off left behind.
            Err(e) if is_taken(&e) && directory.load_record()?.is_none() => {
                fs::remove_dir_all(&directory.path)?;
                fs::rename(&spare.path, &directory.path)?;
            }
            done => done?,
        }
        Ok(directory)
    }

    /// The way back of [`Self::rename_spare`]: the process there is a spare again and keeps all of it. The name is
    /// free, since the process left it at the hand-over. Only for a directory that is as it was made: what is in
    /// it would be the next instance's.
    pub(crate) fn rename_back(&self, id: &AttemptId, number: u64) -> io::Result<AttemptDirectory> {
        let spare = AttemptDirectory { path: self.spares.join(number.to_string()) };
        fs::rename(self.directory(id).path, &spare.path)?;
        Ok(spare)
    }

    /// Every directory of a spare.
    pub(crate) fn spares(&self) -> io::Result<Vec<AttemptDirectory>> {
        let entries = fs::read_dir(&self.spares)?;
        entries.map(|entry| Ok(AttemptDirectory { path: entry?.path() })).collect()
    }

    /// Where an attempt's process has its files while it may live.
    pub fn directory(&self, id: &AttemptId) -> AttemptDirectory {
        let label = instance_label(&id.tenant, &id.instance);
        AttemptDirectory { path: self.living.join(format!("{label}.{}", id.attempt)) }
    }

    /// Makes an attempt's directory with everything in it but the record. What a launch that was
    /// cut off left behind is removed first; a directory with a record is refused: its process
    /// may live.
    pub fn create(&self, id: &AttemptId) -> io::Result<AttemptDirectory> {
        let directory = self.directory(id);
        match fs::create_dir(&directory.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && directory.load_record()?.is_none() => {
                fs::remove_dir_all(&directory.path)?;
                fs::create_dir(&directory.path)?;
            }
            Err(e) => return Err(e),
        }
        fs::create_dir(directory.work())?;
        fs::create_dir(directory.tmp())?;
        Ok(directory)
    }

    /// Every directory in which a process may live.
    pub fn living(&self) -> io::Result<Vec<AttemptDirectory>> {
        let entries = fs::read_dir(&self.living)?;
        entries.map(|entry| Ok(AttemptDirectory { path: entry?.path() })).collect()
    }

    /// Removes a directory that holds no process and nothing worth keeping.
    pub fn discard(&self, directory: &AttemptDirectory) -> io::Result<()> {
        ignore_missing(fs::remove_dir_all(&directory.path))
    }

    /// Called once the attempt's processes are gone and its exit is told: keeps its output, and
    /// its working directory if it is not empty (instead of the one of the attempt before),
    /// removes the rest, and holds the instance to its limit. A second call changes nothing.
    pub fn archive(&self, id: &AttemptId) -> io::Result<()> {
        let directory = self.directory(id);
        let outputs = self.outputs(&id.tenant, &id.instance);
        let mut kept = false;
        for stream in Stream::ALL {
            let from = directory.stream(stream);
            if fs::metadata(&from).is_ok_and(|file| file.len() > 0) {
                self.make_outputs(&id.tenant, &id.instance)?;
                ignore_missing(fs::rename(
                    from,
                    outputs.join(format!("{}.{}", id.attempt, stream.as_str())),
                ))?;
                kept = true;
            }
        }
        let work = directory.work();
        // Succeeds only on an empty one.
        if fs::remove_dir(&work).is_err() && work.exists() {
            self.make_outputs(&id.tenant, &id.instance)?;
            for kept in Kept::list(&outputs)?.into_iter().filter(Kept::is_work) {
                kept.remove(&outputs)?;
            }
            fs::rename(work, outputs.join(format!("{}.work", id.attempt)))?;
            kept = true;
        }
        if directory.remove_as_made().is_err() {
            self.discard(&directory)?;
        }
        if kept { hold_to(&outputs, self.retention.instance_bytes) } else { Ok(()) }
    }

    /// The file with an attempt's output, wherever it is now; `None` if it wrote nothing or it
    /// was dropped by the limits.
    pub fn find(&self, id: &AttemptId, stream: Stream) -> Option<PathBuf> {
        let living = self.directory(id).stream(stream);
        let ended =
            self.outputs(&id.tenant, &id.instance).join(format!("{}.{}", id.attempt, stream.as_str()));
        // It may move from the first place to the second while we look.
        [&living, &ended].into_iter().find(|path| path.exists()).cloned()
    }

    /// The attempts of an instance that have output here or may still write some, oldest first.
    pub fn of_instance(&self, tenant: &Tenant, instance: &InstanceId) -> io::Result<Vec<Attempt>> {
        let mut attempts: Vec<_> = match Kept::list(&self.outputs(tenant, instance)) {
            Ok(kept) => kept.iter().filter(|kept| !kept.is_work()).map(|kept| kept.attempt).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let prefix = format!("{}.", instance_label(tenant, instance));
        for directory in self.living()? {
            let name = directory.path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_prefix(&prefix)).and_then(|n| n.parse().ok());
            attempts.extend(number.map(Attempt));
        }
        attempts.sort_unstable();
        attempts.dedup();
        Ok(attempts)
    }

    /// Removes what an instance's ended attempts left, for its deletion.
    pub fn remove_instance(&self, tenant: &Tenant, instance: &InstanceId) -> io::Result<()> {
        ignore_missing(fs::remove_dir_all(self.outputs(tenant, instance)))
    }

    /// Whose outputs are here. Of whom that cannot be told they go by the node's limit.
    pub fn kept_instances(&self) -> io::Result<Vec<(Tenant, InstanceId)>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.ended)? {
            kept.extend(owner(&entry?.path()));
        }
        Ok(kept)
    }

    /// Holds all outputs together to the node's limit: removes those of whole instances, the one
    /// that changed longest ago first. Walks through all outputs: to be called rarely.
    pub fn hold_node_limit(&self) -> io::Result<u64> {
        let mut instances = Vec::new();
        for entry in fs::read_dir(&self.ended)? {
            let path = entry?.path();
            // Gone meanwhile: nothing to hold.
            let Ok(changed) = fs::metadata(&path).and_then(|m| m.modified()) else { continue };
            instances.push((changed, disk_bytes(&path), path));
        }
        let mut total: u64 = instances.iter().map(|(_, bytes, _)| bytes).sum();
        instances.sort_unstable_by_key(|(changed, ..): &(SystemTime, u64, PathBuf)| *changed);
        let mut dropped = 0;
        for (_, bytes, path) in instances {
            if total <= self.retention.node_bytes {
                break;
            }
            ignore_missing(fs::remove_dir_all(path))?;
            total -= bytes;
            dropped += bytes;
        }
        Ok(dropped)
    }

    fn outputs(&self, tenant: &Tenant, instance: &InstanceId) -> PathBuf {
        self.ended.join(instance_label(tenant, instance))
    }

    fn make_outputs(&self, tenant: &Tenant, instance: &InstanceId) -> io::Result<()> {
        let folder = self.outputs(tenant, instance);
        fs::create_dir_all(&folder)?;
        if *tenant == Tenant::default_tenant() || folder.join(TENANT).exists() {
            return Ok(());
        }
        fs::write(folder.join(TENANT), tenant.as_str())
    }
}

/// The file in an instance's outputs that names its tenant, if that is not the default one.
const TENANT: &str = "tenant";

/// Whose outputs lie in a folder.
fn owner(outputs: &Path) -> Option<(Tenant, InstanceId)> {
    let label = outputs.file_name()?.to_str()?;
    let Some(instance) = label.strip_prefix('~').and_then(|rest| rest.split_once('~')) else {
        return Some((Tenant::default_tenant(), InstanceId::parse(label).ok()?));
    };
    let tenant = Tenant::parse(&fs::read_to_string(outputs.join(TENANT)).ok()?).ok()?;
    let instance = InstanceId::parse(instance.1).ok()?;
    // Written by us, or it is not believed.
    (instance_label(&tenant, &instance) == label).then_some((tenant, instance))
}

/// One entry of an instance's outputs: `<attempt>.<what>`.
struct Kept {
    attempt: Attempt,
    name: OsString,
}

impl Kept {
    fn list(outputs: &Path) -> io::Result<Vec<Self>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(outputs)? {
            let name = entry?.file_name();
            let number =
                name.to_str().and_then(|name| name.split_once('.')).and_then(|(n, _)| n.parse().ok());
            kept.extend(number.map(|number| Self { attempt: Attempt(number), name }));
        }
        kept.sort_unstable_by_key(|kept| kept.attempt);
        Ok(kept)
    }

    fn is_work(&self) -> bool {
        Path::new(&self.name).extension().is_some_and(|what| what == "work")
    }

    fn remove(&self, outputs: &Path) -> io::Result<()> {
        let path = outputs.join(&self.name);
        ignore_missing(if self.is_work() { fs::remove_dir_all(path) } else { fs::remove_file(path) })
    }
}

/// Removes the oldest attempts' files until the rest fits. The newest attempt's always stay:
/// each of its streams has a limit of its own.
fn hold_to(outputs: &Path, limit: u64) -> io::Result<()> {
    let kept = match Kept::list(outputs) {
        Ok(kept) => kept,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let newest = kept.last().map(|kept| kept.attempt);
    let sizes: Vec<u64> = kept.iter().map(|kept| disk_bytes(&outputs.join(&kept.name))).collect();
    let mut total: u64 = sizes.iter().sum();
    for (kept, bytes) in kept.iter().zip(sizes) {
        if total <= limit || Some(kept.attempt) == newest {
            break;
        }
        kept.remove(outputs)?;
        total -= bytes;
    }
    Ok(())
}

/// What a file or a folder takes on disk: holes take nothing. What vanishes meanwhile counts 0.
/// Without recursion: a workflow may have made its folders as deep as it liked.
fn disk_bytes(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            todo.extend(fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

/// Something is there already: a folder that is not empty, or a file.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, attempt: u32) -> AttemptId {
        let instance = InstanceId::parse(name).expect("an id");
        AttemptId { tenant: Tenant::default_tenant(), instance, attempt: Attempt(attempt) }
    }

    /// An attempt that wrote so much and is over.
    fn ended(attempts: &Attempts, name: &str, attempt: u32, bytes: usize) {
        let id = id(name, attempt);
        let directory = attempts.create(&id).expect("made");
        fs::write(directory.stream(Stream::Stdout), vec![b'x'; bytes]).expect("written");
        attempts.archive(&id).expect("put away");
    }

    fn kept(attempts: &Attempts, name: &str) -> Vec<u32> {
        let id = id(name, 0);
        let kept = attempts.of_instance(&id.tenant, &id.instance).expect("listed");
        kept.into_iter().map(|attempt| attempt.0).collect()
    }

    #[test]
    fn an_instance_keeps_its_newest_outputs_within_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let retention = Retention { instance_bytes: 250_000, ..Retention::default() };
        let attempts = Attempts::open(folder.path(), retention).expect("made");
        for attempt in 1..=5 {
            ended(&attempts, "many", attempt, 100_000);
        }
        assert_eq!(kept(&attempts, "many"), [4, 5]);
        ended(&attempts, "many", 6, 900_000);
        assert_eq!(kept(&attempts, "many"), [6], "the newest stays, however large");
        ended(&attempts, "many", 10, 10);
        ended(&attempts, "many", 9, 10);
        assert_eq!(kept(&attempts, "many"), [9, 10], "by number, not by text");
    }

    #[test]
    fn a_node_drops_what_ended_longest_ago() {
        let folder = tempfile::tempdir().expect("a folder");
        let retention = Retention { node_bytes: 250_000, ..Retention::default() };
        let attempts = Attempts::open(folder.path(), retention).expect("made");
        for name in ["a", "b", "c"] {
            ended(&attempts, name, 1, 100_000);
        }
        let old = File::open(folder.path().join("outputs/b")).expect("there");
        old.set_modified(SystemTime::UNIX_EPOCH).expect("set");
        assert!(attempts.hold_node_limit().expect("held") >= 100_000);
        assert_eq!(["a", "b", "c"].map(|name| kept(&attempts, name).len()), [1, 0, 1]);
        assert_eq!(attempts.hold_node_limit().expect("held"), 0);
    }

    #[test]
    fn a_working_directory_is_kept_until_the_next_attempt_leaves_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = Attempts::open(folder.path(), Retention::default()).expect("made");
        for attempt in [1, 2] {
            let id = id("work", attempt);
            let directory = attempts.create(&id).expect("made");
            fs::write(directory.work().join("result"), "x").expect("written");
            fs::write(directory.tmp().join("scratch"), "x").expect("written");
            attempts.archive(&id).expect("put away");
        }
        let outputs = folder.path().join("outputs/work");
        assert!(!outputs.join("1.work").exists() && outputs.join("2.work/result").exists());
        attempts.remove_instance(&id("work", 1).tenant, &id("work", 1).instance).expect("removed");
        assert!(!outputs.exists());
    }

    #[test]
    fn outputs_are_named_by_their_tenant_and_instance() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = Attempts::open(folder.path(), Retention::default()).expect("made");
        let other = AttemptId { tenant: Tenant::parse("acme").expect("a name"), ..id("same", 1) };
        for id in [&id("same", 1), &other] {
            let directory = attempts.create(id).expect("made");
            fs::write(directory.stream(Stream::Stderr), "x").expect("written");
            attempts.archive(id).expect("put away");
        }
        fs::create_dir(folder.path().join("outputs/~0123456789abcdef~nobody")).expect("made");
        let mut kept = attempts.kept_instances().expect("looked");
        kept.sort_unstable();
        assert_eq!(
            kept,
            [(other.tenant.clone(), other.instance), (Tenant::default_tenant(), id("same", 1).instance)]
        );
    }

    #[test]
    fn invariant_8_tenants_with_the_same_id_share_no_directory() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempts = Attempts::open(folder.path(), Retention::default()).expect("made");
        let mine = id("same", 1);
        let other = AttemptId { tenant: Tenant::parse("odd.tenant").expect("a name"), ..mine.clone() };
        assert_ne!(attempts.directory(&mine), attempts.directory(&other));
        assert_eq!(attempts.directory(&other).path.parent(), attempts.directory(&mine).path.parent());
        attempts.create(&other).expect("made");
        assert_eq!(attempts.of_instance(&mine.tenant, &mine.instance).expect("listed"), []);
    }
}
