//! Where core is: what this node tells its processes, and keeps telling them.
//!
//! On PostgreSQL that is the list of core replicas, without those that drain and those that this node
//! has watched without a sign of life; while none is left of it, the last known ones stay, for they may
//! be back before anybody knows. Each process begins at another of them, so the order says nothing.
//! An address that leads nowhere costs a process a try, never its attempt.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_core::{
    domain::id::ReplicaId,
    store::{Kind, Replica, ReplicaLease, Store},
    watch::Watch,
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::launcher::Replicas;

/// How soon processes hear that core is somewhere else now.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that are farther apart do not count as watching.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// Where processes find core.
#[derive(Clone, Debug)]
pub enum Core {
    /// "host:port" of its replicas.
    At(Vec<String>),
    /// Another process of this machine writes its address into this file, and writes it anew when
    /// it changes.
    File(PathBuf),
    /// On PostgreSQL the list of core replicas, once there is one; else as the other says.
    Listed(Box<Self>),
}

/// Looks where core is. What it finds is read through [`Known`].
#[derive(Debug)]
pub(crate) struct Cores {
    source: Core,
    store: Store,
    watch: Watch<ReplicaLease, u64>,
    known: Known,
}

/// What was found last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    addresses: Vec<String>,
    silent: BTreeSet<ReplicaId>,
}

impl Known {
    /// "host:port" each.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.lock().addresses.clone()
    }

    /// Replicas that were watched without a sign of life for their whole lease.
    pub(crate) fn silent(&self) -> BTreeSet<ReplicaId> {
        self.lock().silent.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        // Nothing is left half done under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cores {
    /// Waits until core has said where it listens: without that nothing can be launched.
    pub(crate) async fn find(source: Core, store: Store) -> Self {
        let watch = Watch::with_longest_gap(LONGEST_GAP);
        let mut cores = Self { source, store, watch, known: Known::default() };
        let mut told = false;
        loop {
            let addresses = cores.look().await;
            if !addresses.is_empty() {
                cores.known.lock().addresses = addresses;
                return cores;
            }
            if !told {
                info!(source = ?cores.source, "waiting for core to say where it listens");
                told = true;
            }
            sleep(LOOK / 10).await;
        }
    }

    /// What is known, now and later.
    pub(crate) fn known(&self) -> Known {
        self.known.clone()
    }

    /// Keeps the addresses that processes read as they are.
    pub(crate) async fn follow(mut self, replicas: &Replicas) -> Infallible {
        loop {
            sleep(LOOK).await;
            let now = self.look().await;
            if now.is_empty() || now == self.known.lock().addresses {
                continue;
            }
            match replicas.write(&now) {
                Ok(()) => {
                    info!(cores = now.join(" "), "core is somewhere else now");
                    self.known.lock().addresses = now;
                }
                Err(error) => warn!(%error, "the addresses of core cannot be handed on; trying again"),
            }
        }
    }

    /// The addresses as they are now; none: keep those that are known.
    async fn look(&mut self) -> Vec<String> {
        let listed = self.watch_list().await;
        match (&self.source, listed) {
            (Core::Listed(otherwise), Listed::Nobody) => stated(otherwise),
            (Core::Listed(_), Listed::Alive(addresses)) => addresses,
            (Core::Listed(_), Listed::Unknown) => Vec::new(),
            (source, _) => stated(source),
        }
    }

    /// Looks into the list and takes note of who is silent.
    async fn watch_list(&mut self) -> Listed {
        // There is one core, and it writes no signs of life.
        if self.store.kind() == Kind::Sqlite {
            return Listed::Nobody;
        }
        let asked = Instant::now();
        let Ok(replicas) = self.store.replicas().await else {
            // Whoever needs the database says so.
            self.watch.missed();
            return Listed::Unknown;
        };
        self.watch.saw(
            asked,
            Instant::now(),
            replicas.iter().map(|replica| (replica.lease.clone(), replica.renewals)),
        );
        let is_silent = |replica: &Replica| self.watch.silence(&replica.lease) >= replica.lease_length;
        let silent: BTreeSet<_> =
            replicas.iter().filter(|r| is_silent(r)).map(|r| r.lease.replica.clone()).collect();
        let listed = judge(&replicas, &silent);
        note_changes(&self.known.lock().silent, &silent);
        self.known.lock().silent = silent;
        listed
    }
}

/// What the list of core replicas says.
#[derive(Debug, PartialEq, Eq)]
enum Listed {
    /// Nobody has ever entered, or all have left.
    Nobody,
    /// These take sessions; none: keep those that are known.
    Alive(Vec<String>),
    /// It cannot be read now.
    Unknown,
}

fn judge(replicas: &[Replica], silent: &BTreeSet<ReplicaId>) -> Listed {
    if replicas.is_empty() {
        return Listed::Nobody;
    }
    let takes = |replica: &&Replica| !replica.report.draining && !silent.contains(&replica.lease.replica);
    let alive = replicas.iter().filter(takes);
    let addresses: BTreeSet<String> = alive.map(|replica| replica.address.clone()).collect();
    Listed::Alive(addresses.into_iter().collect())
}

fn note_changes(before: &BTreeSet<ReplicaId>, now: &BTreeSet<ReplicaId>) {
    for id in now.difference(before) {
        warn!(%id, "a core replica shows no sign of life; processes are sent to the others");
    }
    for id in before.difference(now) {
        info!(%id, "a core replica is not silent any more, or gone");
    }
}

/// What a source that is no list says; none while core is still starting.
fn stated(source: &Core) -> Vec<String> {
    match source {
        Core::At(addresses) => addresses.clone(),
        Core::File(path) => {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        Core::Listed(otherwise) => stated(otherwise),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::{domain::time::Micros, store::ReplicaReport};

    use super::*;

    fn replica(id: &str, draining: bool) -> Replica {
        Replica {
            lease: ReplicaLease { replica: ReplicaId::parse(id).expect("an id"), epoch: 1 },
            renewals: 0,
            lease_length: Duration::from_secs(15),
            name: String::new(),
            address: format!("{id}:8001"),
            version: String::new(),
            report: ReplicaReport { sessions: 0, draining },
            started_at: Micros(0),
            renewed_at: Micros(0),
        }
    }

    #[test]
    fn processes_are_sent_to_who_neither_drains_nor_is_silent() {
        let silent = BTreeSet::from([ReplicaId::parse("c").expect("an id")]);
        let all = [replica("b", false), replica("a", false), replica("c", false), replica("d", true)];
        assert_eq!(judge(&all, &silent), Listed::Alive(vec!["a:8001".to_owned(), "b:8001".to_owned()]));
        assert_eq!(judge(&all[2..], &silent), Listed::Alive(Vec::new()), "the known ones stay");
        assert_eq!(judge(&[], &silent), Listed::Nobody);
    }
}
