//! The uploads that one connection has open. Its chunks may arrive in any order, since each
//! travels on a stream of its own: a chunk waits until those before it are written. How many wait
//! is bounded by the transport's budget of bytes in flight. What is unfinished when its connection
//! ends leaves nothing behind, and what gets no bytes for a while is given up: it occupies disk and
//! a place that others wait for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use dormouse_core::domain::id::{Name, Tenant};
use dormouse_proto::{
    call::{Member, Refusal},
    code::Code,
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, timeout},
};

use super::server::{Shared, blocking, refuse};
use crate::{
    images::{Stored, Upload},
    limits::{UPLOAD_PATIENCE, UPLOADS, UPLOADS_OF_CONNECTION, UPLOADS_OF_TENANT},
};

/// Of one connection.
pub(super) struct Uploads {
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
    shared: Arc<Shared>,
    tenant: Tenant,
}

struct Open {
    name: Name,
    version: Option<Name>,
    /// None: being written this moment, finished, or broken.
    upload: Mutex<Option<Upload>>,
    /// How many bytes are written; none: it is over.
    written: watch::Sender<Option<u64>>,
    /// When bytes came last.
    alive: Mutex<Instant>,
    _permit: OwnedSemaphorePermit,
    _member: Member,
}

/// What a finished upload is to be registered as.
pub(super) struct Finished {
    pub(super) name: Name,
    pub(super) version: Option<Name>,
    pub(super) stored: Stored,
}

impl Uploads {
    pub(super) fn new(shared: &Arc<Shared>, tenant: Tenant) -> Self {
        let shared = Arc::clone(shared);
        Self { open: Mutex::default(), next: AtomicU64::new(1), shared, tenant }
    }

    /// Opens one; answers its number.
    pub(super) fn open(
        &self,
        name: Name,
        version: Option<Name>,
        begin: impl FnOnce() -> Result<Upload, Refusal>,
    ) -> Result<u64, Refusal> {
        let too_many = |max, of| {
            let message = format!(
                "{max} uploads of {of} are under way, which is the limit; repeat it when one is over"
            );
            Refusal { retryable: true, ..Refusal::new(Code::ResourceExhausted, message) }
        };
        if self.lock().len() >= UPLOADS_OF_CONNECTION {
            return Err(too_many(UPLOADS_OF_CONNECTION, "this connection"));
        }
        let member = self.shared.uploads_of.join(&self.tenant);
        let member = member.ok_or_else(|| too_many(UPLOADS_OF_TENANT, "this tenant"))?;
        let permit = Arc::clone(&self.shared.uploads).try_acquire_owned();
        let permit = permit.map_err(|_| too_many(UPLOADS, "all clients"))?;
        let upload = begin()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open {
            name,
            version,
            upload: Mutex::new(Some(upload)),
            written: watch::Sender::new(Some(0)),
            alive: Mutex::new(Instant::now()),
            _permit: permit,
            _member: member,
        };
        self.lock().insert(number, Arc::new(open));
        Ok(number)
    }

    /// Writes one chunk when it is its turn; answers how many bytes are written.
    pub(super) async fn write(&self, number: u64, offset: u64, data: Vec<u8>) -> Result<u64, Refusal> {
        let open = self.find(number)?;
        *open.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let mut written = open.written.subscribe();
        let turn = written.wait_for(|written| written.is_none_or(|written| written >= offset));
        match timeout(UPLOAD_PATIENCE, turn).await.map(|turn| turn.ok().and_then(|written| *written)) {
            Ok(Some(at)) if at == offset => {}
            Ok(Some(at)) => {
                return Err(refuse(&crate::images::StoreError::Offset { given: offset, expected: at }));
            }
            Ok(None) => return Err(unknown(number)),
            Err(_) => {
                self.give_up(number, &open);
                return Err(Refusal::new(
                    Code::FailedPrecondition,
                    format!("the bytes before chunk.offset {offset} did not come; begin the upload anew"),
                ));
            }
        }
        let Some(mut upload) = take(&open) else { return Err(unknown(number)) };
        let (upload, result) = blocking(move || {
            let result = upload.write(offset, &data);
            (upload, result)
        })
        .await?;
        match result {
            Ok(()) => {
                let received = upload.received();
                *open.upload.lock().unwrap_or_else(PoisonError::into_inner) = Some(upload);
                open.written.send_replace(Some(received));
                Ok(received)
            }
            Err(error) => {
                self.give_up(number, &open);
                Err(refuse(&error))
            }
        }
    }

    /// Checks and stores the whole.
    pub(super) async fn finish(&self, number: u64) -> Result<Finished, Refusal> {
        let open = self.find(number)?;
        self.give_up(number, &open);
        let Some(upload) = take(&open) else { return Err(unknown(number)) };
        let stored = blocking(move || upload.finish()).await?.map_err(|error| refuse(&error))?;
        Ok(Finished { name: open.name.clone(), version: open.version.clone(), stored })
    }

    /// Gives up what got no bytes for [`UPLOAD_PATIENCE`].
    pub(super) fn give_up_idle(&self) {
        let is_idle = |open: &Open| {
            let alive = *open.alive.lock().unwrap_or_else(PoisonError::into_inner);
            alive.elapsed() >= UPLOAD_PATIENCE
        };
        let idle: Vec<(u64, Arc<Open>)> = {
            let open = self.lock();
            open.iter().filter(|(_, open)| is_idle(open)).map(|(n, open)| (*n, Arc::clone(open))).collect()
        };
        for (number, open) in idle {
            self.give_up(number, &open);
        }
    }

    /// It takes nothing more; chunks that wait for their turn hear it.
    fn give_up(&self, number: u64, open: &Open) {
        self.lock().remove(&number);
        open.written.send_replace(None);
    }

    fn find(&self, number: u64) -> Result<Arc<Open>, Refusal> {
        self.lock().get(&number).cloned().ok_or_else(|| unknown(number))
    }

    /// Nothing is left half done under this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(open: &Open) -> Option<Upload> {
    open.upload.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn unknown(number: u64) -> Refusal {
    Refusal::new(
        Code::NotFound,
        format!("upload {number} is not open on this connection; begin the upload anew"),
    )
}
