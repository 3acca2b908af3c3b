//! Ends of processes that most likely leave nothing to decide, told together and off the path.
//!
//! A process that left with code 0 has, as a rule, recorded an ending or a suspension before: its end is
//! accounting. Such ends wait a moment for others, and the store notes all of them in one statement: under load
//! they cost no transaction each, and alone none that the next start would wait behind.
//!
//! A process that may serve another instance waits for this, with its slot: then nothing is waited for, and only
//! what comes while others are told is told together.
//!
//! It decides nothing: the store says of which something is left to decide, and those are told one by one, as
//! are all ends that look like a crash. What was not told when the service dies is found by its record at
//! the next start.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dormouse_core::{
    domain::outcome::ExitReport,
    store::{AttemptRef, Store},
};
use tokio::{sync::oneshot, time::sleep};
use tracing::debug;

/// How long an end waits for others. Nobody waits for it: a crash that looked like an end in order is launched
/// again so much later.
const GATHER: Duration = Duration::from_millis(50);

/// Ends that wait to be told. Whoever is the first tells those that came until then.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    waiting: Mutex<Vec<Entry>>,
    /// Held by who tells at once.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Entry {
    of: AttemptRef,
    report: ExitReport,
    noted: oneshot::Sender<bool>,
}

impl Ledger {
    /// Notes an end. False: not noted, since something is left to decide or the store did not answer.
    pub(super) async fn note(&self, store: &Store, of: AttemptRef, report: ExitReport) -> bool {
        let (noted, answer) = oneshot::channel();
        if self.queue(Entry { of, report, noted }) == 1 {
            sleep(GATHER).await;
            tell(store, self.take()).await;
        }
        answer.await.unwrap_or(false)
    }

    /// The same at once, for who waits for the answer.
    pub(super) async fn note_now(&self, store: &Store, of: AttemptRef, report: ExitReport) -> bool {
        let (noted, answer) = oneshot::channel();
        self.queue(Entry { of, report, noted });
        let turn = self.turn.lock().await;
        // Others may have told it meanwhile.
        tell(store, self.take()).await;
        drop(turn);
        answer.await.unwrap_or(false)
    }

    /// Answers how many wait now.
    fn queue(&self, entry: Entry) -> usize {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(entry);
        waiting.len()
    }

    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn tell(store: &Store, entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    let exits = entries.iter().map(|entry| (entry.of, entry.report.clone())).collect();
    let undecided = store.account_exits(exits).await;
    if let Err(error) = &undecided {
        debug!(%error, "ends were not noted together; each is told alone");
    }
    for Entry { of, noted, .. } in entries {
        let done = undecided.as_ref().is_ok_and(|undecided| !undecided.contains(&of));
        // Its task waits for the answer as long as the service lives.
        let _ = noted.send(done);
    }
}
