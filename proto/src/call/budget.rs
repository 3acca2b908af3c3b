//! Counts what is in flight: requests, their bytes, and those that are carried out.
//!
//! A connection has a budget of its own; on a server it also takes part in [`Allowance`]s that several
//! connections share, such as those of one tenant and of the whole service. Whoever finds one used up waits:
//! its peer then feels the connection's flow control. Everybody asks in one order: requests, then bytes, then a
//! turn, each from the connection outwards. A frame that waits for room has a deadline, so that many half ones
//! cannot wait for each other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits;

/// How much may be in flight at a time.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Requests without an answer.
    pub requests: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Requests that are carried out, or whose answer waits to be read: an answer may hold a payload of the
    /// largest size, however small its request was.
    pub turns: usize,
}

/// What several connections may have in flight together. Cheap to clone; nobody closes its semaphores.
#[derive(Clone, Debug)]
pub struct Allowance {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "turns are a server's"))]
    turns: Arc<Semaphore>,
}

/// What one connection may have in flight, and the allowances that it takes part in. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// The connection's own first.
    levels: Vec<Allowance>,
}

/// The share of one request, given back when it is dropped. A permit for each level.
#[derive(Debug, Default)]
pub(crate) struct Share {
    requests: Vec<OwnedSemaphorePermit>,
    bytes: Vec<OwnedSemaphorePermit>,
}

impl Allowance {
    /// So much, all of it free. No frame is larger than what `bytes` must at least be.
    pub fn new(in_flight: InFlight) -> Self {
        let InFlight { requests, bytes, turns } = in_flight;
        let of = |permits: usize| Arc::new(Semaphore::new(permits));
        Self { requests: of(requests), bytes: of(bytes.max(limits::BULK_FRAME_MAX_BYTES)), turns: of(turns) }
    }
}

impl Budget {
    pub(crate) fn new() -> Self {
        let own = InFlight {
            requests: limits::REQUESTS_IN_FLIGHT,
            bytes: limits::BYTES_IN_FLIGHT,
            turns: limits::TURNS,
        };
        Self { levels: vec![Allowance::new(own)] }
    }

    /// Takes part in what others share. Before the first request.
    #[cfg(feature = "server")]
    pub(crate) fn within(&mut self, allowance: Allowance) {
        self.levels.push(allowance);
    }

    /// Adds what is missing in `share`: one request. May be dropped at any moment.
    pub(crate) async fn request(&self, share: &mut Share) {
        while let Some(level) = self.levels.get(share.requests.len()) {
            share.requests.push(acquire(&level.requests, 1).await);
        }
    }

    /// Adds what is missing in `share` of the connection's own: `bytes`, those of a frame that is announced. May
    /// be dropped at any moment.
    pub(crate) async fn own_bytes(&self, share: &mut Share, bytes: usize) {
        share.bytes_of(&self.levels, 0, bytes).await;
    }

    /// Adds what is missing in `share` of what others share too: `bytes`, those that have arrived. What is merely
    /// announced must not keep others waiting. May be dropped at any moment.
    #[cfg(feature = "server")]
    pub(crate) async fn shared_bytes(&self, share: &mut Share, bytes: usize) {
        for level in 1..self.levels.len() {
            share.bytes_of(&self.levels, level, bytes).await;
        }
    }

    /// The share of a request of `bytes`.
    pub(crate) async fn share(&self, bytes: usize) -> Share {
        let mut share = Share::default();
        self.request(&mut share).await;
        self.own_bytes(&mut share, bytes).await;
        share
    }

    /// The right to be carried out.
    #[cfg(feature = "server")]
    pub(crate) async fn turn(&self) -> Vec<OwnedSemaphorePermit> {
        let mut turn = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            turn.push(acquire(&level.turns, 1).await);
        }
        turn
    }
}

impl Share {
    /// Adds what is missing at one level; those before it have theirs.
    async fn bytes_of(&mut self, levels: &[Allowance], level: usize, bytes: usize) {
        let semaphore = &levels[level].bytes;
        match self.bytes.get_mut(level) {
            Some(held) => {
                let missing = bytes.saturating_sub(held.num_permits());
                let more = acquire(semaphore, missing).await;
                held.merge(more);
            }
            None => self.bytes.push(acquire(semaphore, bytes).await),
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: usize) -> OwnedSemaphorePermit {
    let permits = u32::try_from(permits).expect("a frame is smaller than 4 GiB");
    Arc::clone(semaphore).acquire_many_owned(permits).await.expect("nobody closes this semaphore")
}
