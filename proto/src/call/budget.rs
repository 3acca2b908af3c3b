//! Counts the requests and the bytes of one connection that are in flight.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits;

/// What one connection may have in flight. Cheap to clone; nobody closes its semaphores.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// The share of one request, given back when it is dropped.
#[derive(Debug, Default)]
#[cfg_attr(
    not(feature = "server"),
    expect(dead_code, reason = "held, not read: dropping them gives them back")
)]
pub(crate) struct Share {
    request: Option<OwnedSemaphorePermit>,
    bytes: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(limits::REQUESTS_IN_FLIGHT)),
            bytes: Arc::new(Semaphore::new(limits::BYTES_IN_FLIGHT)),
        }
    }

    /// Adds what is missing in `share`: one request. May be dropped at any moment.
    #[cfg(feature = "server")]
    pub(crate) async fn request(&self, share: &mut Share) {
        if share.request.is_none() {
            share.request = Some(acquire(&self.requests, 1).await);
        }
    }

    /// Adds what is missing in `share`: `bytes`. May be dropped at any moment.
    #[cfg(feature = "server")]
    pub(crate) async fn bytes(&self, share: &mut Share, bytes: usize) {
        if share.bytes.is_none() {
            share.bytes = Some(acquire(&self.bytes, bytes).await);
        }
    }

    /// The share of a request of `bytes`.
    pub(crate) async fn share(&self, bytes: usize) -> Share {
        let request = acquire(&self.requests, 1).await;
        Share { request: Some(request), bytes: Some(acquire(&self.bytes, bytes).await) }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: usize) -> OwnedSemaphorePermit {
    let permits = u32::try_from(permits).expect("a frame is smaller than 4 GiB");
    Arc::clone(semaphore).acquire_many_owned(permits).await.expect("nobody closes this semaphore")
}
