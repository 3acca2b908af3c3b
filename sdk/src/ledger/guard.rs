//! What an operation holds while it uses the ledger; dropping it gives it back, whatever happens.

use std::sync::Arc;

use tokio::time::Instant;

use super::Ledger;
use crate::operation::Operation;

/// A claimed name. Dropped before the operation is over, the name is free again: a wait inside a
/// `select!` that lost may be asked for again.
#[derive(Debug)]
pub(crate) struct Use {
    pub(super) ledger: Arc<Ledger>,
    pub(super) operation: Operation,
    pub(super) done: bool,
}

impl Use {
    pub(crate) fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The operation is over: its name stays taken, what was stored for it is not needed any more.
    pub(crate) fn done(mut self) {
        self.done = true;
        let mut state = self.ledger.lock();
        state.answers.remove(&self.operation);
        state.shelf.forget(&self.operation);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.done {
            self.ledger.lock().used.remove(&self.operation);
        }
    }
}

/// Something runs that must not be cut off.
#[derive(Debug)]
pub(crate) struct Busy(pub(super) Arc<Ledger>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        state.active_at = Instant::now();
        let keeper = state.busy == 0 && state.is_watched();
        drop(state);
        if keeper {
            self.0.watch.notify_one();
        }
    }
}

/// An operation that a pause holds back.
#[derive(Debug)]
pub(super) struct Held(Arc<Ledger>);

impl Held {
    pub(super) fn begin(ledger: &Arc<Ledger>) -> Self {
        ledger.lock().held += 1;
        ledger.watch.notify_one();
        Self(Arc::clone(ledger))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
    }
}

/// An open wait.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    pub(super) ledger: Arc<Ledger>,
    pub(super) id: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.waits.remove(&self.id);
        state.active_at = Instant::now();
    }
}

/// An unread signal that is kept for one wait until it asks for it.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(super) ledger: Arc<Ledger>,
    pub(super) number: u64,
    pub(super) asked: bool,
}

impl Offer {
    /// The wait asks core; from here on the answer decides about the signal.
    pub(super) fn ask(mut self) -> u64 {
        self.asked = true;
        self.number
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if !self.asked {
            self.ledger.lock().inbox.withdraw(self.number);
            self.ledger.changed.notify_waiters();
        }
    }
}
