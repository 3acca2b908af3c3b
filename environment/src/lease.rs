//! Keeps this node's lease: renews it, tells how the node is, and hears what is asked of it.
//!
//! A database that does not answer takes nothing from the node: nobody can take the lease while
//! nobody is answered (DESIGN, section 8), so renewals are repeated and processes stay. Only a
//! refusal ends the lease; it is this component's error, and who runs it ends the processes.
//!
//! On SQLite the lock on the data directory is the lease, and an idle machine writes nothing:
//! there it only looks what is asked.

use std::{path::PathBuf, time::Duration};

use dormouse_core::store::{self, Drain, Kind, NodeLease, Notice, Notices, Store};
use dormouse_proto::code::{Coded, Retry};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    condition::{Condition, EMPTYING},
    machine::{Machine, full_disk},
    supervisor::chain,
};

/// Shortest time from one renewal to the next: notices may come in swarms.
const BETWEEN: Duration = Duration::from_millis(100);

/// Renews a node's lease.
#[derive(Debug)]
pub struct LeaseKeeper {
    store: Store,
    lease: NodeLease,
    condition: Condition,
    data: PathBuf,
}

impl LeaseKeeper {
    /// For the holder of a lease; `data` is its data directory.
    pub fn new(store: Store, lease: NodeLease, condition: Condition, data: PathBuf) -> Self {
        Self { store, lease, condition, data }
    }

    /// Renews a third of the lease after the last renewal, and at once when something was asked,
    /// until `shutdown`. Fails if the lease is lost or taken.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), store::Error> {
        let mut notices = self.store.notices();
        let every = self.store.lease() / 3;
        loop {
            let begun = Instant::now();
            let pause = match self.renew().await {
                Ok(()) if self.condition.is_emptying() => every.min(EMPTYING),
                Ok(()) => every,
                Err(error) if is_final(&error) => return Err(error),
                // Often enough to meet the end of an outage before anybody has watched a lease long.
                Err(_) => every / 5,
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                open = asked(&mut notices) => {
                    if !open { return Ok(()) }
                    sleep_until(begun + BETWEEN).await;
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// One renewal: looks at the machine, tells the database, notes what it answers.
    pub async fn renew(&self) -> Result<(), store::Error> {
        let data = self.data.clone();
        let looked = spawn_blocking(move || (Machine::look(), full_disk(&data))).await;
        if let Ok((machine, disk)) = looked {
            // A disk that cannot be asked does not stop claims: a launch there will say why.
            let full_disk = disk.unwrap_or_default();
            self.condition.change(|facts| (facts.machine, facts.full_disk) = (machine, full_disk));
        }
        let answer = match self.store.kind() {
            Kind::Postgres => self.store.renew_node(&self.lease, self.condition.report()).await,
            Kind::Sqlite => self.look().await,
        };
        let now = Instant::now();
        match &answer {
            Ok(asked) => self.answered(*asked),
            Err(error) if is_final(error) => {}
            Err(error) => {
                if self.condition.now().unanswered.is_none() {
                    warn!(error = %chain(error), "the node's lease is not renewed now; its processes stay");
                }
                self.condition.change(|facts| _ = facts.unanswered.get_or_insert(now));
            }
        }
        answer.map(drop)
    }

    fn answered(&self, asked: Drain) {
        let before = self.condition.now();
        if let Some(since) = before.unanswered {
            info!(after = ?since.elapsed(), "the database answers again; the node's lease is renewed");
        }
        if before.asked != asked {
            info!(asked = asked.as_str(), "a drain was asked for, or taken back");
        }
        self.condition.change(|facts| (facts.asked, facts.unanswered) = (asked, None));
    }

    /// What is asked of this node, without writing.
    async fn look(&self) -> Result<Drain, store::Error> {
        let nodes = self.store.nodes().await?;
        let own = nodes.iter().find(|node| node.lease.node == self.lease.node);
        Ok(own.map(|node| node.drain).unwrap_or_default())
    }
}

fn is_final(error: &store::Error) -> bool {
    error.retry() == Retry::Never
}

/// Returns when somebody may have asked for something; false: the store is closed.
async fn asked(notices: &mut Notices) -> bool {
    loop {
        match notices.next().await {
            Some(Notice::Everything) => return true,
            Some(
                Notice::Wakes | Notice::Instance(_) | Notice::Ended(_) | Notice::Tokens | Notice::Images,
            ) => {}
            None => return false,
        }
    }
}
