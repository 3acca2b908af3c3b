//! Whole workflows against core in memory: what an author may rely on.

mod blocking;
mod cancel;
mod names;
mod pause;
mod random;
mod steps;
mod waits;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Counts what happened outside of what is durable.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicU32>);

impl Counter {
    /// Counts one more and says how many there are.
    fn count(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
