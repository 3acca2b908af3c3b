//! This core in the list of core replicas, so that processes and environments find it.
//!
//! It enters at the start, shows a sign of life every third of a lease, says that it drains before it
//! sends its sessions away, and leaves when the last one has gone. It also tidies up: a replica that
//! was killed and never came back is forgotten after a day of watching. Nothing that it does or fails
//! to do decides who may write; an outage of the database costs a warning.
//!
//! On SQLite nobody watches: it enters and leaves, and writes nothing in between.

use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::identity::{Identity, random_id};
use super::push::Sessions;
use crate::domain::id::ReplicaId;
use crate::store::{self, Kind, NewReplica, Renewal, ReplicaLease, ReplicaReport, Store};
use crate::watch::Watch;

/// How long the last words to the table may take: an orderly end does not wait for a database that is away.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);
/// Between two tries to enter.
const RETRY: Duration = Duration::from_secs(1);
/// A replica without a sign of life is forgotten after so long …
const FORGET_AFTER: Duration = Duration::from_hours(24);
/// … and that is looked at this often.
const LOOK: Duration = Duration::from_mins(1);

/// This core's place in the list.
#[derive(Debug)]
pub(super) struct Presence {
    store: Store,
    sessions: Arc<Sessions>,
    me: NewReplica,
    /// Held for as long as this core is in the list.
    _identity: Identity,
    watch: Watch<ReplicaLease, u64>,
}

impl Presence {
    pub(super) fn new(
        store: Store,
        sessions: Arc<Sessions>,
        identity: Identity,
        name: String,
        address: String,
    ) -> Self {
        let me = NewReplica {
            id: identity.id.clone(),
            name,
            address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lease: store.lease(),
        };
        Self { store, sessions, me, _identity: identity, watch: Watch::with_longest_gap(LOOK * 5) }
    }

    /// `host:port` that others are told.
    pub(super) fn address(&self) -> &str {
        &self.me.address
    }

    /// Keeps the place until `shutdown`; then says that this core drains, cancels `hand_over`, waits for
    /// `drained` and leaves.
    pub(super) async fn keep(
        mut self,
        shutdown: CancellationToken,
        hand_over: CancellationToken,
        drained: CancellationToken,
    ) {
        let lease = self.stay(&shutdown).await;
        // Before the first session is sent away, so that it is not sent back here.
        if let (Some(lease), Kind::Postgres) = (&lease, self.store.kind()) {
            last_words("saying that it drains", self.store.renew_replica(lease, self.report(true))).await;
        }
        hand_over.cancel();
        let Some(lease) = lease else { return };
        drained.cancelled().await;
        last_words("leaving the list of core replicas", self.store.leave_replica(&lease)).await;
    }

    /// Until `shutdown`; answers the place that it then has.
    async fn stay(&mut self, shutdown: &CancellationToken) -> Option<ReplicaLease> {
        loop {
            let lease = shutdown.run_until_cancelled(self.enter()).await?;
            info!(id = %lease.replica, address = %self.me.address, "in the list of core replicas");
            match shutdown.run_until_cancelled(self.renew(&lease)).await {
                None => return Some(lease),
                Some(Lost::Gone) => {
                    info!(id = %lease.replica, "gone from the list of core replicas; entering again")
                }
                Some(Lost::Taken) => self.take_another_id(),
            }
        }
    }

    /// Tries until it is done.
    async fn enter(&self) -> ReplicaLease {
        loop {
            match self.store.enter_replica(self.me.clone()).await {
                Ok(lease) => return lease,
                Err(error) => {
                    warn!(%error, "not in the list of core replicas; trying again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Renews until the place is lost.
    async fn renew(&mut self, lease: &ReplicaLease) -> Lost {
        if self.store.kind() == Kind::Sqlite {
            return std::future::pending().await;
        }
        let mut sign = interval(self.me.lease / 3);
        let mut look = interval(LOOK);
        for timer in [&mut sign, &mut look] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer.tick().await; // the first one is now
        }
        loop {
            tokio::select! {
                _ = sign.tick() => match self.store.renew_replica(lease, self.report(false)).await {
                    Ok(Renewal::Kept) => {}
                    Ok(Renewal::Gone) => return Lost::Gone,
                    Ok(Renewal::Taken) => return Lost::Taken,
                    Err(error) => warn!(%error, "no sign of life could be shown; trying again"),
                },
                _ = look.tick() => self.tidy_up().await,
            }
        }
    }

    fn report(&self, draining: bool) -> ReplicaReport {
        ReplicaReport { sessions: u64::try_from(self.sessions.count()).unwrap_or(u64::MAX), draining }
    }

    /// A copied data directory: two cores with one id would overwrite each other's address for ever.
    fn take_another_id(&mut self) {
        match random_id() {
            Ok(id) => {
                warn!(taken = %self.me.id, %id, "another core has this id, as a copied data directory has; taking another one for now");
                self.me.id = id;
            }
            Err(error) => warn!(%error, "no other id could be chosen; keeping this one"),
        }
    }

    /// Forgets replicas that were killed and never came back.
    async fn tidy_up(&mut self) {
        let asked = Instant::now();
        let replicas = match self.store.replicas().await {
            Ok(replicas) => replicas,
            Err(error) => {
                debug!(%error, "the list of core replicas cannot be read now");
                return self.watch.missed();
            }
        };
        self.watch.saw(
            asked,
            Instant::now(),
            replicas.iter().map(|replica| (replica.lease.clone(), replica.renewals)),
        );
        for replica in replicas {
            if self.watch.silence(&replica.lease) >= FORGET_AFTER {
                self.forget(&replica.lease.replica, &replica.lease, replica.renewals).await;
            }
        }
    }

    async fn forget(&self, id: &ReplicaId, lease: &ReplicaLease, renewals: u64) {
        match self.store.forget_replica(lease, renewals).await {
            Ok(true) => info!(%id, "a core replica without a sign of life for a day was forgotten"),
            Ok(false) => {}
            Err(error) => debug!(%error, %id, "a silent core replica cannot be forgotten now"),
        }
    }
}

/// Why the place is not held any more.
enum Lost {
    Gone,
    Taken,
}

async fn last_words<T>(what: &str, words: impl Future<Output = store::Result<T>>) {
    match timeout(LAST_WORDS_WITHIN, words).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => warn!(%error, "{what} failed; others notice by its silence"),
        Err(_) => warn!("{what} took too long; others notice by its silence"),
    }
}

/// What this machine is called.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
