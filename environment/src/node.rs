//! This node: the lock on its data directory, its id, how many processes it runs.
//!
//! The lock is the node's lease on SQLite: whoever holds it is the only one who claims wakes and
//! supervises processes from this directory (invariant 4). The kernel gives it back when the
//! process ends, however it ends. On PostgreSQL the row of the table `node` is the lease, and the
//! lock still keeps two services off one directory.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use dormouse_core::domain::id::{InstanceId, NodeId};
pub use dormouse_core::server::host_name;
use dormouse_proto::code::{Code, Coded};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;

use crate::machine::memory_bytes;

/// The services' directory, held by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    node: NodeId,
    /// Closing it gives the lock back.
    _lock: File,
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another service works there.
    #[error(
        "the data directory {path} is in use by process {holder}; stop that one or choose another --data-dir"
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Its process number, as it noted it.
        holder: String,
    },
    /// It holds something that is no node id.
    #[error("the file {path} holds no node id; restore it, or remove it if no instance runs on this node")]
    Node {
        /// The file.
        path: PathBuf,
    },
    /// The disk.
    #[error("the data directory {path} cannot be used")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl Coded for DirectoryError {
    fn code(&self) -> Code {
        match self {
            Self::Held { .. } | Self::Node { .. } => Code::FailedPrecondition,
            Self::Io { .. } => Code::Internal,
        }
    }
}

impl DataDirectory {
    /// Makes the directory (owner only) if it is missing, and takes its lock, or fails: within 50 ms
    /// if the holder lives, within 5 s if it was killed a moment ago. Blocking.
    pub fn lock(path: &Path) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        // Paths go into processes that start elsewhere.
        let path = path.canonicalize().map_err(failed)?;
        let failed = |source| DirectoryError::Io { path: path.clone(), source };
        let lock = open_lock(&path).map_err(failed)?;
        if !take(&lock).map_err(failed)? {
            let holder = holder(&lock).unwrap_or_else(|| "(unknown)".to_owned());
            return Err(DirectoryError::Held { path, holder });
        }
        note_holder(&lock).map_err(failed)?;
        let node = node_id(&path)?;
        Ok(Self { path, node, _lock: lock })
    }

    /// Whether a service works there now. It may begin or end at any moment.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let lock = match File::open(path.join("lock")) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Where it is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's id, chosen once for this directory.
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path.join("lock"))
}

/// Tries for a moment: [`DataDirectory::is_held`] of another process holds the lock while it
/// looks. Longer if the process that took it is gone: a child of a service that was killed holds
/// it until its exec, and a busy machine takes its time for that.
fn take(lock: &File) -> io::Result<bool> {
    for tried in 1..=TRIES_AFTER_THE_DEAD {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if tried >= TRIES && holder_lives(lock) => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(TRY_PAUSE),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

const TRIES: u32 = 5;
const TRIES_AFTER_THE_DEAD: u32 = 500;
const TRY_PAUSE: Duration = Duration::from_millis(10);

/// Whether the process that is noted in the lock exists.
fn holder_lives(lock: &File) -> bool {
    holder(lock).is_none_or(|pid| Path::new("/proc").join(pid).exists())
}

/// For the message that others get.
fn note_holder(lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
}

fn holder(lock: &File) -> Option<String> {
    let mut bytes = [0; 32];
    let read = lock.read_at(&mut bytes, 0).ok()?;
    let number = str::from_utf8(&bytes[..read]).ok()?.trim();
    (!number.is_empty()).then(|| number.to_owned())
}

/// Reads the id, or chooses one; complete or not there at all.
fn node_id(path: &Path) -> Result<NodeId, DirectoryError> {
    let file = path.join("node");
    let failed = |source| DirectoryError::Io { path: path.to_owned(), source };
    match fs::read_to_string(&file) {
        Ok(text) => NodeId::parse(text.trim()).map_err(|_| DirectoryError::Node { path: file }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut bits = [0; 10];
            getrandom::fill(&mut bits).map_err(|e| failed(io::Error::other(e)))?;
            let text = InstanceId::from_random(bits).to_string();
            let new = path.join("node.new");
            fs::write(&new, format!("{text}\n")).map_err(failed)?;
            File::open(&new).and_then(|new| new.sync_all()).map_err(failed)?;
            fs::rename(&new, &file).map_err(failed)?;
            NodeId::parse(&text).map_err(|_| DirectoryError::Node { path: file })
        }
        Err(e) => Err(failed(e)),
    }
}

/// Processes at the same time: max(16, 8 × cores), fewer if memory is short.
pub fn default_slots() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let by_cores = cores.saturating_mul(8).max(16);
    let by_memory = memory_bytes().map(|bytes| usize::try_from(bytes / SLOT_BYTES).unwrap_or(usize::MAX));
    by_memory.map_or(by_cores, |slots| by_cores.min(slots.max(1)))
}

/// What a process is expected to need. A small machine gets few slots rather than a busy
/// out-of-memory killer.
const SLOT_BYTES: u64 = 32 << 20;

/// The node's slots. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    shared: Arc<SlotsShared>,
}

#[derive(Debug, Default)]
struct SlotsShared {
    total: usize,
    used: AtomicUsize,
    freed: Notify,
    /// Processes that wait for an instance. They fill what is free, and give way.
    spares: AtomicUsize,
    /// Told whenever a slot is taken or freed, for whoever keeps the spares.
    changed: Notify,
}

/// The place of a process that waits for an instance.
#[derive(Debug)]
pub(crate) struct SparePlace {
    shared: Arc<SlotsShared>,
}

impl Drop for SparePlace {
    fn drop(&mut self) {
        self.shared.spares.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One of them, free again when this is dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<SlotsShared>,
}

impl Slots {
    /// So many, all free.
    pub fn new(total: usize) -> Self {
        Self { shared: Arc::new(SlotsShared { total, ..SlotsShared::default() }) }
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.shared.total
    }

    /// How many are taken; above the total if more were adopted.
    pub fn used(&self) -> usize {
        self.shared.used.load(Ordering::Acquire)
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.total().saturating_sub(self.used())
    }

    /// Takes one, also when none is free: for what runs already, or was claimed.
    pub fn take(&self) -> Slot {
        self.shared.used.fetch_add(1, Ordering::AcqRel);
        self.taken()
    }

    /// Takes one if one is free.
    pub(crate) fn take_free(&self) -> Option<Slot> {
        let more = |used| (used < self.shared.total).then_some(used + 1);
        self.shared.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(self.taken())
    }

    fn taken(&self) -> Slot {
        self.shared.changed.notify_one();
        Slot { shared: Arc::clone(&self.shared) }
    }

    /// Returns once a slot became free since the last call.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(1, Ordering::AcqRel);
        self.shared.freed.notify_one();
        self.shared.changed.notify_one();
    }
}

/// Of processes that wait for an instance: they take what nobody needs, and no slot from anybody.
impl Slots {
    pub(crate) fn take_spare(&self) -> SparePlace {
        self.shared.spares.fetch_add(1, Ordering::AcqRel);
        SparePlace { shared: Arc::clone(&self.shared) }
    }

    /// How many more may wait; below zero: so many have to give way.
    pub(crate) fn room_for_spares(&self) -> i64 {
        let taken = self.used() + self.shared.spares.load(Ordering::Acquire);
        let count = |n| i64::try_from(n).unwrap_or(i64::MAX);
        count(self.total()) - count(taken)
    }

    /// Returns once a slot was taken or freed since the last call.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_4_one_service_holds_a_directory_and_the_next_gets_it_with_the_same_id() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data");
        assert!(!DataDirectory::is_held(&path).expect("looked"));
        let first = DataDirectory::lock(&path).expect("free");
        let node = first.node().clone();
        assert!(DataDirectory::is_held(&path).expect("looked"));
        let refused = DataDirectory::lock(&path).expect_err("held").to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(first);
        assert!(!DataDirectory::is_held(&path).expect("looked"));
        assert_eq!(DataDirectory::lock(&path).expect("free again").node(), &node);
    }

    #[test]
    fn a_damaged_id_is_told_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("node"), "\u{7}").expect("written");
        let refused = DataDirectory::lock(folder.path()).expect_err("no id").to_string();
        assert!(refused.contains("holds no node id"), "{refused}");
    }

    #[tokio::test]
    async fn a_freed_slot_is_told_also_if_nobody_waited_at_that_moment() {
        let slots = Slots::new(2);
        let (a, _b, _adopted) = (slots.take(), slots.take(), slots.take());
        assert_eq!((slots.free(), slots.used()), (0, 3));
        drop(a);
        slots.freed().await;
        assert_eq!(slots.used(), 2);
        assert!(default_slots() >= 1);
    }
}
