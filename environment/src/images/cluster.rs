//! Images between this node and the database: on PostgreSQL the bytes lie there in chunks, so
//! that every node can launch what one of them was sent.
//!
//! [`publish`] stores a file of this node, [`Fetches`] brings what is missing here. Both hold one
//! chunk in memory. A fetched file gets its name only when its bytes have the digest that they
//! should have ([`super::Upload`]), so what the database or the network did to them is found
//! before anything is executed.
//!
//! On SQLite there is one node and its files are the images: nothing here does anything.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use dormouse_core::{
    domain::id::Digest,
    store::{self, IMAGE_CHUNK_BYTES, ImageBytes, Kind, NewImage, Store, image_chunks},
};
use dormouse_proto::code::{Code, Coded};
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{Images, OpenError, StoreError};

/// Why an image cannot be had here now. None of it is the instance's fault.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No such image.
    #[error("image {digest} is neither on this node nor in the database; push it again")]
    Nowhere {
        /// Which.
        digest: Digest,
    },
    /// Its bytes are a file of some other node.
    #[error(
        "image {digest} is not on this node, and its bytes are not in the database; start the node that it was pushed to, or push it again"
    )]
    Elsewhere {
        /// Which.
        digest: Digest,
    },
    /// This machine cannot execute it.
    #[error(
        "image {digest} is built for {architecture}, this node is {own}; start a node of that kind, or push an image for this one under another version"
    )]
    Architecture {
        /// Which.
        digest: Digest,
        /// What it needs.
        architecture: String,
        /// What this is.
        own: &'static str,
    },
    /// A chunk is missing, or the chunks together do not give the digest.
    #[error(
        "the bytes of image {digest} are damaged in the database; a node that has its file stores them again, else push it again"
    )]
    Damaged {
        /// Which.
        digest: Digest,
    },
    /// The disk is full, or the limit of this node is smaller than the image.
    #[error("image {digest} cannot be stored on this node")]
    Store {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The database.
    #[error("image {digest} cannot be read from the database now")]
    Database {
        /// Which.
        digest: Digest,
        /// Its words.
        #[source]
        source: store::Error,
    },
    /// It goes on; the next launch finds it here.
    #[error("image {digest} is still being fetched from the database")]
    Slow {
        /// Which.
        digest: Digest,
    },
    /// The service ends.
    #[error("image {digest} was not fetched: the service is shutting down")]
    Stopped {
        /// Which.
        digest: Digest,
    },
}

/// Why a file did not get into the database.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The file.
    #[error(transparent)]
    File(#[from] OpenError),
    /// Reading it.
    #[error("the image's file cannot be read")]
    Read(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A defect of ours.
    #[error("the thread that reads an image panicked")]
    Panicked(#[from] JoinError),
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::File(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Read(_) | Self::Panicked(_) => Code::Internal,
        }
    }
}

/// Stores the bytes of a file of this node, unless they are in the database already. Answers into
/// how many chunks they are cut; 0 where the database is not where images are. They can be
/// fetched once a name points at them ([`Store::put_image`]).
pub async fn publish(store: &Store, images: &Images, image: &NewImage) -> Result<u32, PublishError> {
    if store.kind() == Kind::Sqlite {
        return Ok(0);
    }
    if !store.begin_image_bytes(image).await? {
        put_chunks(store, images, image.digest, image.size).await?;
    }
    Ok(image_chunks(image.size))
}

/// Stores the bytes of images that have a name but no bytes in the database, as far as their files
/// are here: release 0.1.0 kept them on one node only, and what was found damaged is replaced.
pub async fn publish_missing(store: &Store, images: &Images) -> Result<u64, PublishError> {
    const PAGE: u32 = 100;
    let (mut after, mut published) = (None, 0);
    loop {
        let page = store.images_without_bytes(after, PAGE).await?;
        for digest in &page {
            let bytes = store.image_bytes(*digest).await?;
            let Some(ImageBytes { size, chunks: 0, .. }) = bytes else { continue };
            if images.contains(digest) {
                match put_chunks(store, images, *digest, size).await {
                    Ok(()) => store.complete_image_bytes(*digest, image_chunks(size)).await?,
                    Err(PublishError::File(error)) => {
                        warn!(%error, "an image cannot be stored in the database");
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                info!(%digest, "the image's bytes are in the database now");
                published += 1;
            }
        }
        match page.last() {
            Some(last) => after = Some(*last),
            None => return Ok(published),
        }
    }
}

async fn put_chunks(store: &Store, images: &Images, digest: Digest, size: u64) -> Result<(), PublishError> {
    let file = {
        let images = images.clone();
        spawn_blocking(move || images.open_verified(&digest)).await??
    };
    for number in 1..=image_chunks(size) {
        let file = Arc::clone(&file);
        let offset = u64::from(number - 1) * IMAGE_CHUNK_BYTES as u64;
        let len = (size - offset).min(IMAGE_CHUNK_BYTES as u64);
        let data = spawn_blocking(move || -> io::Result<Vec<u8>> {
            let mut data = vec![0; usize::try_from(len).unwrap_or(IMAGE_CHUNK_BYTES)];
            file.read_exact_at(&mut data, offset)?;
            Ok(data)
        });
        store.put_image_chunk(digest, number, data.await??).await?;
    }
    Ok(())
}

/// Images that are fetched at the same time. Each takes one of the store's readers in turns.
const AT_ONCE: usize = 2;

/// What became of a fetch; many launches may wait for it.
type Outcome = Result<(), Arc<FetchError>>;

/// Fetches images that launches miss. Cheap to clone.
///
/// A fetch belongs to no launch: a launch that gives up before the end leaves it running, and the
/// next finds the file. There is one of each image at a time.
#[derive(Clone, Debug)]
pub struct Fetches {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    images: Images,
    under_way: Mutex<HashMap<Digest, watch::Receiver<Option<Outcome>>>>,
    turns: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Fetches {
    /// Between this database and these files.
    pub fn new(store: Store, images: Images) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                images,
                under_way: Mutex::default(),
                turns: Semaphore::new(AT_ONCE),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Whether images can be had at all from anywhere else.
    pub fn possible(&self) -> bool {
        self.shared.store.kind() == Kind::Postgres
    }

    /// Brings the image here, and waits for it until a moment. Dropping the future only stops
    /// the waiting.
    pub async fn fetch(&self, digest: Digest, until: Instant) -> Outcome {
        let mut done = self.join(digest);
        match timeout_at(until, done.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
            Ok(Err(_)) => Err(Arc::new(FetchError::Stopped { digest })),
            Err(_) => Err(Arc::new(FetchError::Slow { digest })),
        }
    }

    /// Gives up what is under way: whoever waits is told. Nothing is left of it on the disk.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// The fetch of this image that is under way, or a new one.
    fn join(&self, digest: Digest) -> watch::Receiver<Option<Outcome>> {
        let mut under_way = self.shared.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // One that panicked told nobody, and is begun anew.
        if let Some(fetch) = under_way.get(&digest).filter(|fetch| fetch.has_changed().is_ok()) {
            return fetch.clone();
        }
        let (done, fetch) = watch::channel(None);
        under_way.insert(digest, fetch.clone());
        drop(under_way);
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = shared.stop.cancelled() => Err(FetchError::Stopped { digest }),
                outcome = shared.fetch(digest) => outcome,
            };
            shared.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            done.send_replace(Some(outcome.map_err(Arc::new)));
        });
        fetch
    }
}

impl Shared {
    async fn fetch(&self, digest: Digest) -> Result<(), FetchError> {
        let _turn = self.turns.acquire().await.map_err(|_| FetchError::Stopped { digest })?;
        let bytes = self.store.image_bytes(digest).await;
        let bytes = bytes.map_err(|source| FetchError::Database { digest, source })?;
        let bytes = bytes.ok_or(FetchError::Nowhere { digest })?;
        let own = std::env::consts::ARCH;
        if bytes.architecture != own {
            return Err(FetchError::Architecture { digest, architecture: bytes.architecture, own });
        }
        if bytes.chunks == 0 {
            return Err(FetchError::Elsewhere { digest });
        }
        let started = Instant::now();
        let mut fetched = self.try_fetch(digest, &bytes).await;
        if let Err(FetchError::Damaged { .. }) = fetched {
            // Perhaps it was stored anew while we read.
            fetched = self.try_fetch(digest, &bytes).await;
        }
        match &fetched {
            Ok(()) => info!(%digest, bytes = bytes.size, took = ?started.elapsed(), "fetched an image"),
            Err(FetchError::Damaged { .. }) => {
                warn!(%digest, "the chunks of an image do not give its digest; nobody fetches them any more");
                let doubted = self.store.doubt_image_bytes(digest).await;
                doubted.map_err(|source| FetchError::Database { digest, source })?;
            }
            Err(_) => {}
        }
        fetched
    }

    async fn try_fetch(&self, digest: Digest, bytes: &ImageBytes) -> Result<(), FetchError> {
        let failed = |source: StoreError| match source {
            StoreError::Digest { .. } | StoreError::Size { .. } | StoreError::Inspect(_) => {
                FetchError::Damaged { digest }
            }
            source @ (StoreError::TooLarge { .. } | StoreError::Offset { .. } | StoreError::Io(_)) => {
                FetchError::Store { digest, source }
            }
        };
        let cut_off = |_: JoinError| FetchError::Stopped { digest };
        let (images, size) = (self.images.clone(), bytes.size);
        let upload = spawn_blocking(move || {
            let upload = images.begin(size, digest)?;
            // A full disk is found before the bytes travel.
            upload.reserve()?;
            Ok(upload)
        });
        let mut upload = upload.await.map_err(cut_off)?.map_err(failed)?;
        for number in 1..=bytes.chunks {
            let chunk = self.store.image_chunk(digest, number).await;
            let chunk = chunk.map_err(|source| FetchError::Database { digest, source })?;
            let chunk = chunk.ok_or(FetchError::Damaged { digest })?;
            let written = spawn_blocking(move || {
                let offset = upload.received();
                upload.write(offset, &chunk).map(|()| upload)
            });
            upload = written.await.map_err(cut_off)?.map_err(failed)?;
        }
        let stored = spawn_blocking(move || upload.finish()).await.map_err(cut_off)?;
        stored.map(drop).map_err(failed)
    }
}
