//! Images on this node: files named by their digest.
//!
//! A file gets its name only when it is complete, checked, flushed and closed: it is written
//! without a name (`O_TMPFILE`), so a service that dies leaves nothing behind, and linked to its
//! name at the end. Names are never written again, so what is executed is what was checked.
//!
//! It never executes an image, and knows nothing of image names and versions (the store does).
//! [`cluster`] carries bytes between these files and the database.

pub mod cluster;
mod inspect;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_core::domain::id::Digest;
use dormouse_proto::code::{Code, Coded};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    time::ClockId,
};
use sha2::{Digest as _, Sha256};

pub use self::inspect::{InspectError, Inspection, inspect};

/// Bytes of the largest image.
pub const DEFAULT_MAX_BYTES: u64 = 512 << 20;

/// Large enough that hashing, not reading, takes the time.
const BUFFER: usize = 1 << 20;

/// The images of one data directory. Everything here blocks: to be called off the async threads.
#[derive(Clone, Debug)]
pub struct Images {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    max_bytes: u64,
    verified: Mutex<Verified>,
}

/// Files that were hashed by this process. The inner lock lets one caller hash while the others
/// of the same image wait for it.
type Verified = HashMap<Digest, Arc<Mutex<Option<Sound>>>>;

/// A file that was hashed and is held open: what is executed is this very file, whatever its name leads to by
/// then.
#[derive(Clone, Debug)]
struct Sound {
    file: Arc<File>,
    stamp: Stamp,
}

/// Images that are held open; beyond it all are let go, and hashed again when they are executed.
const HELD: usize = 256;

/// A file that was hashed: if any of this differs, it is hashed again. The kernel sets the time of a change and
/// lets nobody choose it; so whoever changes a byte, the owner included, changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    links: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file system's times move in steps of some milliseconds. A file that changed so shortly before it was
/// hashed may change once more within the same step, unnoticed: it is hashed again at its next launch.
const STEP: Duration = Duration::from_millis(100);

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let file = file.metadata()?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            links: file.nlink(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }

    /// Whether its last change is long enough ago for another one to be seen.
    fn is_settled(&self) -> bool {
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        let step = i128::try_from(STEP.as_nanos()).unwrap_or(i128::MAX);
        nanos((now.tv_sec, now.tv_nsec)) - nanos(self.changed) > step
    }
}

fn nanos((seconds, nanos): (i64, i64)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// An image that has its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// What it says of itself.
    pub inspection: Inspection,
}

/// Why a file did not become an image. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Beyond the limit.
    #[error("image.size is {size} bytes, at most {max} are allowed; strip the binary or raise the limit")]
    TooLarge {
        /// What was announced.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A chunk that does not continue what was received.
    #[error("chunk.offset is {given}, {expected} is next; send the bytes in order")]
    Offset {
        /// Where the chunk begins.
        given: u64,
        /// Where it should.
        expected: u64,
    },
    /// More or fewer bytes than announced.
    #[error("{received} bytes came of the {announced} of image.size; send the whole file")]
    Size {
        /// What came.
        received: u64,
        /// What was announced.
        announced: u64,
    },
    /// Other bytes than announced.
    #[error("the bytes have the digest {found}, not image.digest {announced}; send the file again")]
    Digest {
        /// Of what came.
        found: Digest,
        /// What was announced.
        announced: Digest,
    },
    /// Not an image for this machine.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The disk.
    #[error("the image cannot be stored")]
    Io(#[from] io::Error),
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } | Self::Offset { .. } | Self::Size { .. } | Self::Digest { .. } => {
                Code::InvalidArgument
            }
            Self::Inspect(source) => source.code(),
            Self::Io(source) if source.kind() == io::ErrorKind::StorageFull => Code::ResourceExhausted,
            Self::Io(_) => Code::Internal,
        }
    }
}

/// Why an image cannot be executed here.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such file.
    #[error("image {digest} is not on this node; push it again")]
    Missing {
        /// Its name.
        digest: Digest,
    },
    /// The bytes are not those of the name.
    #[error("the file of image {digest} is damaged: its bytes have the digest {found}; push it again")]
    Damaged {
        /// Its name.
        digest: Digest,
        /// What its bytes give.
        found: Digest,
    },
    /// The disk.
    #[error("image {digest} cannot be read")]
    Io {
        /// Its name.
        digest: Digest,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } => Code::NotFound,
            Self::Damaged { .. } | Self::Io { .. } => Code::Internal,
        }
    }
}

impl Images {
    /// Below a data directory; makes the folder if it is missing.
    pub fn open(data: &Path, max_bytes: u64) -> io::Result<Self> {
        let folder = data.join("images");
        fs::create_dir_all(&folder)?;
        let shared = Shared { folder, max_bytes, verified: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.shared.folder
    }

    /// Begins to receive an image of that size and digest. Refuses before a byte is taken.
    pub fn begin(&self, size: u64, digest: Digest) -> Result<Upload, StoreError> {
        let mut upload = self.upload(size)?;
        upload.announced = Some(digest);
        Ok(upload)
    }

    /// Stores a local file under the digest of its bytes.
    pub fn store_file(&self, path: &Path) -> Result<Stored, StoreError> {
        let mut source = File::open(path)?;
        let mut upload = self.upload(source.metadata()?.len())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return upload.finish(),
                Ok(n) => upload.write(upload.received, &buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn upload(&self, size: u64) -> Result<Upload, StoreError> {
        let max = self.shared.max_bytes;
        if size > max {
            return Err(StoreError::TooLarge { size, max });
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.shared.folder, flags, Mode::from_raw_mode(0o600))
            .map_err(io::Error::from)?;
        Ok(Upload {
            images: self.clone(),
            file: File::from(file),
            hasher: Sha256::new(),
            announced: None,
            size,
            received: 0,
        })
    }

    /// Whether a file of that name is here; says nothing of its bytes.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The file, for reading and executing, once its bytes are known to be those of its name.
    /// They are hashed once per process and file, and again if the file has changed.
    pub fn open_verified(&self, digest: &Digest) -> Result<Arc<File>, OpenError> {
        let failed = |source| OpenError::Io { digest: *digest, source };
        let entry = self.entry(digest);
        let mut known = lock(&entry);
        if let Some(Sound { file, stamp }) = &*known
            && Stamp::of(file).is_ok_and(|now| now == *stamp)
        {
            return Ok(Arc::clone(file));
        }
        *known = None;
        let file = match File::open(self.path(digest)) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing { digest: *digest });
            }
            Err(source) => return Err(failed(source)),
        };
        // Taken before the bytes are read: a change meanwhile differs from it.
        let stamp = Stamp::of(&file).map_err(failed)?;
        let settled = stamp.is_settled();
        let found = hash(&file).map_err(failed)?;
        if found != *digest {
            return Err(OpenError::Damaged { digest: *digest, found });
        }
        if settled {
            *known = Some(Sound { file: Arc::clone(&file), stamp });
        }
        Ok(file)
    }

    /// Removes the file; what executes it runs on. Answers whether it was there.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        lock(&self.shared.verified).remove(digest);
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The names of all files here.
    pub fn list(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.shared.folder)? {
            // Others are not ours, or the second name of a moment.
            digests.extend(entry?.file_name().to_str().and_then(|name| Digest::parse(name).ok()));
        }
        Ok(digests)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.shared.folder.join(digest.to_string())
    }

    fn entry(&self, digest: &Digest) -> Arc<Mutex<Option<Sound>>> {
        let mut verified = lock(&self.shared.verified);
        if verified.len() >= HELD && !verified.contains_key(digest) {
            verified.clear();
        }
        Arc::clone(verified.entry(*digest).or_default())
    }

    /// Gives a complete, flushed file its name. A name that exists stays, unless its bytes are
    /// not what they should be.
    fn link(&self, file: &File, digest: &Digest) -> io::Result<()> {
        let name = self.path(digest);
        match link_descriptor(file, &name) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.open_verified(digest) {
                Ok(_) => {}
                Err(OpenError::Io { source, .. }) => return Err(source),
                Err(OpenError::Missing { .. } | OpenError::Damaged { .. }) => {
                    // Two that repair at once need two names; the process and descriptor are one.
                    let aside = format!("{digest}.{}.{}", std::process::id(), file.as_raw_fd());
                    let aside = self.shared.folder.join(aside);
                    link_descriptor(file, &aside)?;
                    fs::rename(&aside, name)?;
                }
            },
            Err(e) => return Err(e),
        }
        File::open(&self.shared.folder)?.sync_all()
    }
}

/// Nothing is left half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn link_descriptor(file: &File, name: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, source, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// An image that is being received. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    images: Images,
    file: File,
    hasher: Sha256,
    announced: Option<Digest>,
    size: u64,
    received: u64,
}

impl Upload {
    /// Bytes so far: the next chunk's offset.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the room on the disk for all that is to come, where the file system can.
    pub fn reserve(&self) -> Result<(), StoreError> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(&self.file, FallocateFlags::empty(), 0, self.size) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
            Err(error) => Err(StoreError::Io(error.into())),
        }
    }

    /// Takes the next bytes. After an error of the disk the upload is of no more use.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if offset != self.received {
            return Err(StoreError::Offset { given: offset, expected: self.received });
        }
        let received = self.received.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if received > self.size {
            return Err(StoreError::Size { received, announced: self.size });
        }
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.received = received;
        Ok(())
    }

    /// Checks size, digest and kind, flushes, closes, and only then gives the file its name.
    pub fn finish(self) -> Result<Stored, StoreError> {
        if self.received != self.size {
            return Err(StoreError::Size { received: self.received, announced: self.size });
        }
        let digest = Digest(self.hasher.finalize().into());
        if let Some(announced) = self.announced.filter(|announced| *announced != digest) {
            return Err(StoreError::Digest { found: digest, announced });
        }
        let inspection = inspect(&self.file)?;
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(0o555)).map_err(io::Error::from)?;
        self.file.sync_all()?;
        // Named through a descriptor that only reads: at no moment does the name lead to a file
        // that somebody may write (its exec would be refused).
        let reader = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        drop(self.file);
        self.images.link(&reader, &digest)?;
        Ok(Stored { digest, size: self.size, inspection })
    }
}

fn hash(file: &File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Digest(hasher.finalize().into())),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                offset += u64::try_from(n).unwrap_or(u64::MAX);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
