//! The wake scheduler: claims due wakes while there are free slots (invariant 4).
//!
//! One pass asks the store what is due and hands each claim to the supervisor, which launches it
//! on its own task: one slow or broken image never holds up the others. Between passes it sleeps
//! until the next wake or time limit is due, a notice comes, or a slot becomes free; a slow poll
//! stands beneath, so a lost notice costs latency, never a wake (invariant 7).
//!
//! A node that drains, has lost its lease or has no room on its disk claims nothing
//! ([`Condition`]); what is due stays due, for others.
//!
//! It never launches by itself, and knows no clock but the answers of the store.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use dormouse_core::{
    fault,
    store::{self, Claim, Claimant, Kind, NodeLease, Notice, Notices, Store},
    timings::{self, Laps},
};
use dormouse_proto::code::{Coded, Retry};
use futures_util::FutureExt;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    attempts::AttemptId,
    condition::Condition,
    eager::{self, Desk},
    launcher::Launch,
    node::Slots,
    pace::Pace,
    supervisor::{self, Start, chain},
};

/// How wakes are claimed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest sleep between two looks.
    pub poll: Duration,
    /// From a look that failed to the next.
    pub retry_after: Duration,
    /// From a claim to its registration; the row is due again after it.
    pub launch_deadline: Duration,
    /// Wakes claimed by one look.
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(5),
            retry_after: Duration::from_millis(500),
            launch_deadline: dormouse_core::limits::Limits::default().launch_deadline,
            batch: 64,
        }
    }
}

impl Options {
    /// So long after its claim a process is killed if it has not registered: a tenth before the
    /// row is due again, so that its next attempt meets no living process of this one.
    fn register_within(&self) -> Duration {
        self.launch_deadline / 10 * 9
    }
}

/// Asks for a look. Cheap to clone. A nudge carries no data: the scheduler looks for itself.
#[derive(Clone, Debug)]
pub struct Handle {
    nudge: Arc<Notify>,
}

impl Handle {
    /// Many nudges may cause one look.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }
}

/// Claims due wakes for one node.
#[derive(Debug)]
pub struct WakeScheduler {
    options: Options,
    store: Store,
    lease: NodeLease,
    slots: Slots,
    condition: Condition,
    supervisor: supervisor::Handle,
    nudge: Arc<Notify>,
    pace: Pace,
    ends: Ends,
    desk: Desk,
}

/// Where claims are taken from when more is due than is taken: the oldest wakes first, but one in
/// [`Ends::ONE_IN`] from those that became due last. So a start behind a long backlog has its turn soon, and
/// the backlog keeps most of the machine.
#[derive(Debug, Default)]
struct Ends {
    /// Launches since the last one from the newest end.
    since: usize,
}

impl Ends {
    const ONE_IN: usize = 4;

    /// How many of the next `room` launches are of the newest end.
    fn newest_of(&mut self, room: usize) -> usize {
        self.since += room;
        let newest = self.since / Self::ONE_IN;
        self.since %= Self::ONE_IN;
        newest.min(room)
    }
}

/// What a pass found.
struct Pass {
    next_in: Duration,
    /// All slots are taken, or as many launches are under way as the machine carries well, or the node
    /// claims nothing: nothing is looked for until that changes.
    full: bool,
}

impl WakeScheduler {
    /// For a node that holds its lease and has settled.
    pub fn new(
        options: Options,
        store: Store,
        lease: NodeLease,
        slots: Slots,
        condition: Condition,
        supervisor: supervisor::Handle,
        desk: Desk,
    ) -> (Self, Handle) {
        let nudge = Arc::new(Notify::new());
        let handle = Handle { nudge: Arc::clone(&nudge) };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let (pace, ends) = (Pace::new(processors, slots.total()), Ends::default());
        (Self { options, store, lease, slots, condition, supervisor, nudge, pace, ends, desk }, handle)
    }

    /// Runs until `shutdown`; fails only if trying again cannot help.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), store::Error> {
        self.open_desk();
        let ended = self.claim_until(&shutdown).await;
        self.desk.close().await;
        ended
    }

    /// Starts are claimed as they come. In a cluster they are not: whichever node has room takes them, and not the
    /// one that all controllers happen to ask.
    fn open_desk(&self) {
        if self.store.kind() == Kind::Sqlite {
            self.desk.open(eager::Work {
                claimant: Claimant {
                    lease: self.lease.clone(),
                    launch_deadline: self.options.launch_deadline,
                },
                register_within: self.options.register_within(),
                slots: self.slots.clone(),
                pace: self.pace.clone(),
                condition: self.condition.clone(),
                supervisor: self.supervisor.clone(),
                nudge: Arc::clone(&self.nudge),
            });
        }
    }

    async fn claim_until(&mut self, shutdown: &CancellationToken) -> Result<(), store::Error> {
        let mut notices = self.store.notices();
        let mut changes = self.condition.subscribe();
        let mut limits_at = Instant::now();
        loop {
            changes.mark_unchanged();
            // While we look how many slots are free nobody else takes one.
            self.desk.caught_up(false);
            let pass = match self.pass(&mut limits_at).await {
                Ok(pass) => pass,
                Err(error) if error.retry() == Retry::Never => return Err(error),
                Err(error) => {
                    warn!(error = %chain(&error), code = %error.code(), "claiming due wakes failed");
                    Pass { next_in: self.options.retry_after, full: false }
                }
            };
            self.desk.caught_up(!pass.full && !pass.next_in.is_zero());
            // A zero pause too: somebody may wait for the shutdown.
            let pause = pass.next_in.min(self.options.poll);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                // It lives as long as we do.
                _ = changes.changed() => {}
                () = self.slots.freed(), if pass.full => {}
                () = self.pace.freed(), if pass.full => {}
                () = self.nudge.notified(), if !pass.full => {}
                open = woken(&mut notices), if !pass.full => if !open { return Ok(()) },
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes no input: the database says what is due, by its own clock.
    /// `limits_at`: when a time limit is due next, as far as is known.
    async fn pass(&mut self, limits_at: &mut Instant) -> Result<Pass, store::Error> {
        if let Some(at) = self.desk.limit() {
            *limits_at = (*limits_at).min(at);
        }
        if Instant::now() >= *limits_at {
            *limits_at = Instant::now() + self.expire().await?.min(self.options.poll);
        }
        let free = self.slots.free().min(self.pace.room()).min(self.options.batch);
        if free == 0 || !self.condition.now().claims() {
            return Ok(Pass { next_in: limits_at.saturating_duration_since(Instant::now()), full: true });
        }
        // Taken before the claim: the row's deadline cannot be earlier than this one.
        let register_by = Instant::now() + self.options.register_within();
        let limit = u32::try_from(free).unwrap_or(u32::MAX);
        let newest = u32::try_from(self.ends.newest_of(free)).unwrap_or(0);
        let mut laps = Laps::begin();
        let claimed =
            self.store.claim_from_both_ends(&self.lease, limit, newest, self.options.launch_deadline).await?;
        laps.pass(timings::Launch::Claim);
        if !claimed.claims.is_empty() {
            fault::point("scheduler.claimed");
            debug!(n = claimed.claims.len(), "claimed");
        }
        for claim in claimed.claims {
            if let Some(limit) = limit_in(&claim, self.options.launch_deadline) {
                *limits_at = (*limits_at).min(Instant::now() + limit);
            }
            let (of, under_way) = (claim.attempt_ref(), self.pace.begin().of(claim.digest));
            let (launch, slot) = (launch_of(claim, laps.clone()), self.slots.take());
            let start = Start { of, launch, register_by, slot, under_way };
            if !self.supervisor.start(start).await {
                break; // It ended: the claims heal by their deadline or at the next start.
            }
        }
        let full = self.slots.free() == 0 || self.pace.room() == 0;
        let limits_in = limits_at.saturating_duration_since(Instant::now());
        Ok(Pass { next_in: claimed.next_due_in.min(limits_in), full })
    }

    /// Ends instances whose time limit passed; answers when the next one's does.
    async fn expire(&self) -> Result<Duration, store::Error> {
        loop {
            let expired = self.store.expire().await?;
            if expired.ended.is_empty() {
                return Ok(expired.next_in);
            }
        }
    }
}

/// Returns when somebody set a wake; takes everything that was told until then, so that many
/// notices cause one look. False: the store is closed.
async fn woken(notices: &mut Notices) -> bool {
    loop {
        match notices.next().await {
            Some(Notice::Wakes | Notice::Everything) => break,
            Some(Notice::Instance(_) | Notice::Ended(_) | Notice::Tokens | Notice::Images) => {}
            None => return false,
        }
    }
    loop {
        match notices.next().now_or_never() {
            Some(Some(_)) => {}
            Some(None) => return false,
            None => return true,
        }
    }
}

/// How long the instance's time limit leaves it. Both moments are of the database's clock, and
/// `until` was so long after the claim.
pub(crate) fn limit_in(claim: &Claim, launch_deadline: Duration) -> Option<Duration> {
    let claimed_at = claim.until - launch_deadline;
    claim.deadline_at.map(|deadline| deadline.since(claimed_at))
}

pub(crate) fn launch_of(claim: Claim, laps: Laps) -> Launch {
    let Claim { tenant, id, instance, attempt, token, workflow, digest, env, .. } = claim;
    let env: BTreeMap<String, String> = env;
    Launch {
        id: AttemptId { tenant, instance: id, attempt },
        key: instance,
        image: digest,
        workflow: Some(workflow),
        token,
        env,
        laps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_launch_in_four_is_of_the_newest_end_however_few_are_claimed_at_once() {
        let mut ends = Ends::default();
        let ones: Vec<usize> = (0..8).map(|_| ends.newest_of(1)).collect();
        assert_eq!(ones, [0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!((ends.newest_of(16), ends.newest_of(6), ends.newest_of(2)), (4, 1, 1));
    }
}
