//! Where `now` comes from: the database's clock (invariant 10), or a test's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::domain::time::Micros;

/// Whose time counts.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// PostgreSQL's clock; on SQLite the machine's.
    #[default]
    Database,
    /// A test's: it stands still until it is set.
    Manual(ManualClock),
}

/// A clock that only its owner moves. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock that shows `at`.
    pub fn new(at: Micros) -> Self {
        Self(Arc::new(AtomicI64::new(at.0)))
    }

    /// What it shows.
    pub fn now(&self) -> Micros {
        Micros(self.0.load(Ordering::SeqCst))
    }

    /// Shows `at` from now on; also back in time, as real clocks do.
    pub fn set(&self, at: Micros) {
        self.0.store(at.0, Ordering::SeqCst);
    }

    /// Shows a time so much later.
    pub fn advance(&self, by: Duration) {
        self.set(self.now() + by);
    }
}

/// The machine's clock. Only SQLite's time comes from here: database and machine are one.
pub(super) fn machine_now() -> Micros {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the machine's clock is the database's"
    )]
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}
