//! Eager starts: claimed where they were asked for, in the transaction that makes the instance.
//!
//! What is due at once, on a node with room and nothing else that waits, need not go through the queue of wakes:
//! that saves a commit and a look for what is due, about a third of the way from a start to its process. All
//! else goes there, and so does everything while anything waits: who came first is launched first.
//!
//! The wake scheduler opens the desk, says when nothing waits, and closes it before its node stops claiming. Keeps
//! invariant 4's part here as the scheduler does: slot and lease are held before the claim, and each claim is
//! handed to the supervisor once.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_core::{
    fault,
    store::{self, Claim, Claimant, StartRequest, Started, Store},
    timings::{self, Laps},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::Instrument as _;

use crate::{
    condition::Condition,
    node::{Slot, Slots},
    pace::{Pace, UnderWay},
    scheduler::{launch_of, limit_in},
    supervisor::{self, Start},
};

/// Where a node's eager starts are let in. Cheap to clone; closed until a scheduler opens it.
#[derive(Clone, Debug, Default)]
pub struct Desk {
    open: Arc<Mutex<Option<Open>>>,
}

/// What an eager start works with.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) claimant: Claimant,
    pub(crate) register_within: Duration,
    pub(crate) slots: Slots,
    pub(crate) pace: Pace,
    pub(crate) condition: Condition,
    pub(crate) supervisor: supervisor::Handle,
    /// Wakes the scheduler.
    pub(crate) nudge: Arc<Notify>,
}

#[derive(Debug)]
struct Open {
    work: Work,
    /// Nothing that is due waits for a launch, as far as the scheduler knows.
    caught_up: bool,
    /// When the first time limit is due of those that were let in since the scheduler asked.
    limit_at: Option<Instant>,
    /// Those that were let in and are not handed over yet.
    inside: TaskTracker,
}

impl Desk {
    pub(crate) fn open(&self, work: Work) {
        let open = Open { work, caught_up: false, limit_at: None, inside: TaskTracker::new() };
        *self.lock() = Some(open);
    }

    /// Whether the scheduler's last look left nothing that is due.
    pub(crate) fn caught_up(&self, caught_up: bool) {
        self.lock().iter_mut().for_each(|open| open.caught_up = caught_up);
    }

    /// When the first time limit is due of those that were let in since the last call.
    pub(crate) fn limit(&self) -> Option<Instant> {
        self.lock().as_mut().and_then(|open| open.limit_at.take())
    }

    /// Returns once nobody is inside any more.
    pub(crate) async fn close(&self) {
        let open = self.lock().take();
        if let Some(open) = open {
            open.inside.close();
            open.inside.wait().await;
        }
    }

    /// A place for a start that may be due at once; `None`: it is to wait as any other.
    pub(crate) fn place(&self) -> Option<Place> {
        let open = self.lock();
        let open = open.as_ref().filter(|open| open.caught_up && open.work.condition.now().claims())?;
        if open.work.pace.room() == 0 {
            return None;
        }
        Some(Place {
            slot: open.work.slots.take_free()?,
            under_way: open.work.pace.begin(),
            register_by: Instant::now() + open.work.register_within,
            work: open.work.clone(),
            desk: self.clone(),
            inside: open.inside.clone(),
            _inside: open.inside.token(),
        })
    }

    /// One that was let in has a time limit.
    fn limits_in(&self, limit: Duration) {
        let at = Instant::now() + limit;
        for open in self.lock().iter_mut() {
            open.limit_at = Some(open.limit_at.map_or(at, |other| other.min(at)));
        }
    }

    /// Plain data: nothing is left half done under this lock.
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room on this node, taken before the claim. Dropped it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    slot: Slot,
    under_way: UnderWay,
    /// Taken before the claim: the row's deadline cannot be earlier than this one.
    register_by: Instant,
    work: Work,
    desk: Desk,
    inside: TaskTracker,
    _inside: TaskTrackerToken,
}

impl Place {
    /// Starts, and launches what was claimed, also if the caller stops waiting meanwhile.
    pub(crate) async fn start(self, store: Store, request: StartRequest) -> store::Result<Started> {
        let inside = self.inside.clone();
        let starting = async move {
            let (started, claim) = store.start_claimed(request, self.work.claimant.clone()).await?;
            if let Some(claim) = claim {
                fault::point("scheduler.claimed"); // as the others
                self.launch(claim).await;
            }
            Ok(started)
        };
        match inside.spawn(starting.in_current_span()).await {
            Ok(started) => started,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime is being shut down.
            Err(_) => Err(store::Error::Closed),
        }
    }

    /// Hands the claim to the supervisor.
    async fn launch(self, claim: Claim) {
        if let Some(limit) = limit_in(&claim, self.work.claimant.launch_deadline) {
            self.desk.limits_in(limit);
            self.work.nudge.notify_one();
        }
        let (of, under_way) = (claim.attempt_ref(), self.under_way.of(claim.digest));
        let mut laps = Laps::begin();
        laps.pass(timings::Launch::Claim); // it took no time of its own
        let launch = launch_of(claim, laps);
        let start = Start { of, launch, register_by: self.register_by, slot: self.slot, under_way };
        // Should it have ended, the claim heals by its deadline or at the next start.
        self.work.supervisor.start(start).await;
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::{
        domain::id::NodeId,
        store::{Drain, NodeLease},
    };

    use super::*;

    fn work(slots: usize) -> Work {
        let slots = Slots::new(slots);
        let lease = NodeLease { node: NodeId::parse("n").expect("an id"), epoch: 1 };
        Work {
            claimant: Claimant { lease, launch_deadline: Duration::from_secs(30) },
            register_within: Duration::from_secs(27),
            pace: Pace::new(2, slots.total()),
            condition: Condition::new(slots.clone(), Vec::new()),
            slots,
            supervisor: supervisor::Handle::of_nobody(),
            nudge: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_start_is_let_in_only_while_nothing_waits_and_there_is_room() {
        let desk = Desk::default();
        assert!(desk.place().is_none(), "nobody has opened it");
        let work = work(2);
        let (slots, condition) = (work.slots.clone(), work.condition.clone());
        desk.open(work);
        assert!(desk.place().is_none(), "the scheduler has not looked yet");
        desk.caught_up(true);
        let places = [desk.place(), desk.place()];
        assert!(places.iter().all(Option::is_some) && desk.place().is_none(), "so many slots");
        assert_eq!(slots.free(), 0);
        drop(places);
        assert_eq!(slots.free(), 2, "what was not used is free again");
        condition.change(|facts| facts.asked = Drain::Wait);
        assert!(desk.place().is_none(), "a draining node claims nothing");
        condition.change(|facts| facts.asked = Drain::No);
        desk.caught_up(false);
        assert!(desk.place().is_none(), "others wait");
    }

    #[tokio::test]
    async fn closing_waits_for_who_is_inside() {
        let desk = Desk::default();
        desk.open(work(1));
        desk.caught_up(true);
        let place = desk.place().expect("room");
        let mut closing = std::pin::pin!(desk.close());
        assert!(futures_util::poll!(&mut closing).is_pending());
        assert!(desk.place().is_none());
        drop(place);
        closing.await;
    }

    #[test]
    fn the_earliest_limit_is_told_once() {
        let desk = Desk::default();
        desk.open(work(1));
        let before = Instant::now();
        desk.limits_in(Duration::from_secs(9));
        desk.limits_in(Duration::from_secs(3));
        desk.limits_in(Duration::from_secs(6));
        let told = desk.limit().expect("there is one");
        assert!(told >= before + Duration::from_secs(3) && told < before + Duration::from_secs(6));
        assert_eq!(desk.limit(), None);
    }
}
