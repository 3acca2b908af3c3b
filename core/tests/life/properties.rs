//! What must hold in every reachable state. [`Healer`] ends all faults and runs on, so that
//! "never stuck" is a property of one state: from here, with faults over, it gets home.

use std::{rc::Rc, time::Duration};

use dormouse_core::domain::{
    id::{Attempt, Session},
    instance::{Cancel, Exit, Life, State, Status},
    outcome::{EndedBy, Outcome},
    wake::{Wait, Waits},
};

use crate::{
    actions::{Action, Rules},
    mix::ByFingerprint,
    row::{approval, operation, policy},
    state::{Breaches, Budget, FUTURE, NOW, Phase, Power, Request, Row, World, node_id},
};

/// What holds always. The numbers are those of the invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Property {
    /// 1: a suspend or an ending is acknowledged only if it is what the row says.
    AcknowledgedIsStored,
    /// 2: nothing of attempt <= n is acknowledged after n+1 registered.
    ZombiesAreFenced,
    /// 2: a running row takes writes of its newest attempt and session only.
    OnlyTheWriterWrites,
    /// 4: a due wake is claimed once, never while a launch, a run or a pause is under way.
    ClaimedOnce,
    /// 4: only its deadline makes an open row due.
    OpenWakeStays,
    /// 5: a signal's result is saved exactly once, in order.
    SignalsOnceInOrder,
    /// 5: a suspended instance with an unread signal it waits for has a due wake.
    SignalWakes,
    /// 6: an ending never changes: who has ended refuses every request.
    EndingsAreFinal,
    /// 7: each state has exactly the facts it needs.
    Shape,
    /// 7: who has not ended is PENDING until its first registration, and never again.
    PendingUntilRegistered,
    /// 7: nobody waits for what the workflow already has.
    WaitsForWhatIsMissing,
    /// 7: nobody waits for a resume that has been given already.
    ResumeWakes,
    /// 7: with faults over it ends, is paused with its wake, or waits for an unsent signal.
    GetsHome,
    /// 7: the same when a node that is down or stopped never comes back.
    GetsHomeWithoutNode,
    /// 7: a cancel is effective: with faults over the instance ends, unaided.
    CancelIsEffective,
    /// A suspend or an ending that is stored is answered again as the first time.
    RepeatsAreAnswered,
    /// It fails only after more crashes in a row, without progress, than are forgiven.
    CrashesAreCountedInARow,
    /// Crashes end an instance that is being cancelled as CANCELLED.
    CancelledIsNotFailed,
    /// Nobody is killed before the grace is over, once the cancel is felt, or for an older attempt.
    GraceIsKept,
    /// No signal wakes who does not wait for it, no second cancel wakes a clean-up.
    WokenForAReason,
    /// An attempt is told truly why it is launched.
    ReasonIsTrue,
    /// An exit report of an older attempt touches nothing.
    OldExitTouchesNothing,
    /// Nobody overwrites what the instance itself recorded.
    OwnRecordStays,
    /// A database outage costs no node its lease.
    OutageCostsNoLease,
}

impl Property {
    pub(crate) const ALL: [Self; 24] = [
        Self::AcknowledgedIsStored,
        Self::ZombiesAreFenced,
        Self::OnlyTheWriterWrites,
        Self::ClaimedOnce,
        Self::OpenWakeStays,
        Self::SignalsOnceInOrder,
        Self::SignalWakes,
        Self::EndingsAreFinal,
        Self::Shape,
        Self::PendingUntilRegistered,
        Self::WaitsForWhatIsMissing,
        Self::ResumeWakes,
        Self::GetsHome,
        Self::GetsHomeWithoutNode,
        Self::CancelIsEffective,
        Self::RepeatsAreAnswered,
        Self::CrashesAreCountedInARow,
        Self::CancelledIsNotFailed,
        Self::GraceIsKept,
        Self::WokenForAReason,
        Self::ReasonIsTrue,
        Self::OldExitTouchesNothing,
        Self::OwnRecordStays,
        Self::OutageCostsNoLease,
    ];

    pub(crate) fn holds(self, world: &World, healer: &mut Healer) -> bool {
        let (row, breaches) = (&world.row, &world.breaches);
        match self {
            Self::AcknowledgedIsStored => !breaches.unstored_acknowledged,
            Self::ZombiesAreFenced => !breaches.zombie_acknowledged,
            Self::OnlyTheWriterWrites => !breaches.not_the_writer_acknowledged,
            Self::ClaimedOnce => !breaches.claimed_twice,
            Self::OpenWakeStays => !breaches.open_wake_moved,
            Self::SignalsOnceInOrder => {
                let without_gaps = row.taken & row.taken.wrapping_add(1) == 0;
                !breaches.signal_taken_twice && !breaches.signal_lost && without_gaps
            }
            Self::SignalWakes => {
                let waits = row.asleep().is_some_and(|waits| waits.signals().next().is_some());
                !(waits && row.unread()) || row.wake_has_come()
            }
            Self::EndingsAreFinal => !breaches.ending_changed && (!row.has_ended() || refuses_all(&row.life)),
            Self::Shape => shape(row),
            Self::PendingUntilRegistered => {
                let pending = row.life.status() == Status::Pending;
                row.has_ended() || pending == (world.registered == Attempt::NONE)
            }
            Self::WaitsForWhatIsMissing => waits_for_what_is_missing(row),
            Self::ResumeWakes => {
                let waits = row.asleep().is_some_and(Waits::for_resume);
                !waits || row.life.paused || row.life.wake_at().is_some()
            }
            Self::GetsHome => {
                let home = healer.heal(world, None);
                rests(&home) && healer.finishes(&home)
            }
            Self::GetsHomeWithoutNode => (0..world.nodes.len()).all(|node| {
                let lost = world.nodes[node].power != Power::Up && world.nodes[1 - node].power == Power::Up;
                !lost || rests(&healer.heal(world, Some(node)))
            }),
            Self::CancelIsEffective => {
                row.life.cancel == Cancel::No || row.has_ended() || healer.heal(world, None).row.has_ended()
            }
            Self::RepeatsAreAnswered => !breaches.repeat_refused,
            Self::CrashesAreCountedInARow => !breaches.failed_too_early,
            Self::CancelledIsNotFailed => {
                let crashed = matches!(
                    row.life.state,
                    State::Ended { outcome: Outcome::Failed, by: EndedBy::Node, .. }
                );
                !crashed || row.life.cancel == Cancel::No
            }
            Self::GraceIsKept => !breaches.grace_cut && !row.is_killed_early(row.life.attempt),
            Self::WokenForAReason => !breaches.woken_for_nothing,
            Self::ReasonIsTrue => !breaches.reason_is_wrong,
            Self::OldExitTouchesNothing => !breaches.old_exit_touched_row,
            Self::OwnRecordStays => !breaches.own_record_overwritten,
            Self::OutageCostsNoLease => !breaches.outage_cost_a_lease,
        }
    }
}

/// What must happen somewhere, else the search looked at too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reached {
    Completed,
    Failed,
    CancelledAfterCleanUp,
    /// A process of an older attempt lives beside a registered newer one.
    Zombie,
}

impl Reached {
    pub(crate) const ALL: [Self; 4] =
        [Self::Completed, Self::Failed, Self::CancelledAfterCleanUp, Self::Zombie];

    pub(crate) fn is_reached(self, world: &World) -> bool {
        let outcome = world.row.life.outcome();
        match self {
            Self::Completed => outcome == Some(Outcome::Completed),
            Self::Failed => outcome == Some(Outcome::Failed),
            Self::CancelledAfterCleanUp => outcome == Some(Outcome::Cancelled) && world.row.made_its_ending(),
            Self::Zombie => {
                world.procs.iter().any(|p| p.phase != Phase::Gone && p.attempt < world.registered)
            }
        }
    }
}

/// Each request that an ended row may still get. Writes are looked at as they are delivered.
fn refuses_all(life: &Life) -> bool {
    let crashed = Exit::Crashed { newest_checkpoint: life.attempt };
    let given_back = Exit::GivenBack { retry_in: Duration::ZERO };
    let limited = Life { deadline_at: Some(NOW), ..life.clone() };
    let changed = [
        life.signal(&approval(), NOW).ok(),
        life.pause().ok(),
        life.resume().ok(),
        life.cancel(NOW).ok(),
        life.stop(NOW).ok(),
        life.register(life.attempt, NOW).ok(),
        life.claim(&node_id(0), FUTURE, NOW),
        life.exited(life.attempt, crashed, &policy(0), NOW),
        life.exited(life.attempt, given_back, &policy(0), NOW),
        life.settle(&node_id(0), life.attempt, NOW),
        life.cancel_overdue(life.attempt, Duration::ZERO, NOW),
        limited.expire(NOW),
    ];
    changed.iter().all(Option::is_none)
}

/// The CHECKs of the table.
fn shape(row: &Row) -> bool {
    let life = &row.life;
    let (wake, node, open) = (life.wake_at().is_some(), life.node().is_some(), life.is_open());
    match life.status() {
        Status::Ended(_) => !wake && !node && !open && !life.paused,
        Status::Running => !wake && node && !open && life.waits().is_none(),
        // A cancel ends at once what never ran: there is nobody to feel it.
        Status::Pending => wake && open == node && life.waits().is_none() && life.cancel == Cancel::No,
        Status::Suspended => {
            let Some(waits) = life.waits() else { return false };
            let signals_alone = waits.earliest_due().is_none() && !waits.for_resume() && !waits.for_retry();
            let asked = matches!(life.cancel, Cancel::Asked { .. });
            open == node && (wake || (signals_alone && !open && !asked))
        }
    }
}

fn waits_for_what_is_missing(row: &Row) -> bool {
    let missing = operation(row.saved);
    row.life.waits().is_none_or(|waits| {
        waits.iter().all(|wait| match wait {
            Wait::Due { name, .. } | Wait::Signal { name, .. } => *name == missing,
            Wait::Resume | Wait::Retry => true,
        })
    })
}

/// At rest and accounted for: ended, paused with a wake, or waiting for a signal nobody sent.
fn rests(world: &World) -> bool {
    let row = &world.row;
    let paused = row.life.paused && row.wake_has_come() && row.life.cancel == Cancel::No;
    row.has_ended() || paused || waits_for_unsent_signal(row)
}

fn waits_for_unsent_signal(row: &Row) -> bool {
    let signals_alone = |waits: &Waits| {
        waits.signals().next().is_some() && waits.earliest_due().is_none() && !waits.for_resume()
    };
    row.asleep().is_some_and(signals_alone) && !row.unread()
}

/// Runs worlds home: everybody is up again, nothing fails any more, controllers are silent;
/// always the most urgent action, until nothing is left to do. Remembers where each way led.
pub(crate) struct Healer {
    rules: Rules,
    homes: ByFingerprint<Rc<World>>,
    finishing: ByFingerprint<bool>,
}

impl Healer {
    /// Longer than any way home; who is still on the way then runs in circles.
    const LONGEST_WAY: usize = 300;

    pub(crate) fn new(rules: Rules) -> Self {
        let patient = Rules { max_attempts: Attempt(200), ..rules };
        Self { rules: patient, homes: ByFingerprint::default(), finishing: ByFingerprint::default() }
    }

    /// Where `world` gets to; if a node is named, its machine is gone with its processes.
    fn heal(&mut self, world: &World, lost: Option<usize>) -> Rc<World> {
        // The history decides nothing on the way; without it more ways are the same.
        let mut at = World {
            budget: Budget::default(),
            breaches: Breaches::default(),
            registered: Attempt::NONE,
            crashes_in_a_row: 0,
            ..world.clone()
        };
        if let Some(node) = lost {
            at.nodes[node].power = Power::Lost;
            for p in at.procs.iter_mut().filter(|p| p.node == node) {
                (p.phase, p.session, p.ask) = (Phase::Gone, Session::NONE, None);
            }
        }
        self.run(at)
    }

    fn run(&mut self, mut at: World) -> Rc<World> {
        let mut way = Vec::new();
        let mut options = Vec::new();
        let home = loop {
            let fingerprint = at.fingerprint();
            if let Some(home) = self.homes.get(&fingerprint) {
                break Rc::clone(home);
            }
            way.push(fingerprint);
            options.clear();
            at.actions(&self.rules, &mut options);
            match most_urgent(&at, &options) {
                Some(action) if way.len() < Self::LONGEST_WAY => {
                    at = at.apply(action, &self.rules);
                    at.breaches = Breaches::default();
                    (at.registered, at.crashes_in_a_row) = (Attempt::NONE, 0);
                }
                Some(_) | None => break Rc::new(at),
            }
        };
        self.homes.extend(way.into_iter().map(|passed| (passed, Rc::clone(&home))));
        home
    }

    /// Resumed, and given each signal it waits for, it reaches an ending.
    fn finishes(&mut self, home: &Rc<World>) -> bool {
        if home.row.has_ended() {
            return true;
        }
        let fingerprint = home.fingerprint();
        if let Some(known) = self.finishing.get(&fingerprint) {
            return *known;
        }
        let mut at = Rc::clone(home);
        for _ in 0..8 {
            let mut helped = World::clone(&at);
            if helped.row.life.paused {
                helped.row.resume(self.rules.bug);
            } else if waits_for_unsent_signal(&helped.row) {
                helped.row.signal(self.rules.bug);
            }
            at = self.run(helped);
        }
        let ended = at.row.has_ended();
        self.finishing.insert(fingerprint, ended);
        ended
    }
}

fn most_urgent(world: &World, options: &[Action]) -> Option<Action> {
    let urgent = options.iter().filter_map(|action| Some((urgency(*action, world)?, *action)));
    urgent.min_by_key(|(urgency, _)| *urgency).map(|(_, action)| action)
}

fn urgency(action: Action, world: &World) -> Option<u8> {
    Some(match action {
        Action::DatabaseUp | Action::NodeBack { .. } => 0,
        Action::Deliver { .. } => 1,
        Action::Watch { node } | Action::LoseLease { node } if world.nodes[node].power == Power::Lost => 2,
        Action::LearnLost { .. } => 2,
        Action::TakeOver { .. } | Action::Settle { .. } | Action::Renew { .. } => 3,
        Action::Spawn { .. } | Action::Record { .. } => 4,
        Action::ReportExit { .. } => 5,
        Action::Register { .. } | Action::Repeat { .. } => 6,
        Action::Send { request, .. } => match request {
            Request::FeelCancel
            | Request::End
            | Request::Ack { .. }
            | Request::Suspend { resume: true, .. } => 7,
            Request::Save { .. } | Request::SaveDue { .. } => 8,
            Request::Suspend { .. } => 9,
        },
        Action::SeeDue { .. } => 10,
        Action::DuePasses | Action::RetryPasses => 11,
        Action::Claim { .. } => 12,
        Action::LaunchDeadlinePasses => 13,
        _ => return None,
    })
}
