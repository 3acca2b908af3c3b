//! Known mistakes, each one rule left out. For each the search must find a counterexample:
//! else it would not find the mistake in the real code either.
//!
//! A rule of the row is left out around the real [`Life`]: what it is asked, or what it
//! answers, is bent as code without that rule would have it. The other mistakes are those of
//! nodes and processes, and live in `actions`.

use std::time::Duration;

use dormouse_core::domain::{
    id::{Attempt, Name, NodeId},
    instance::{Cancel, End, Exit, Life, Refusal, Rest, State, Suspend, Writer},
    outcome::{EndedBy, Outcome},
    wake::{Waits, WakeReason},
};

use crate::{
    Scenario,
    actions::Rules,
    properties::Property,
    row::policy,
    state::{FUTURE, NOW, Row, node_id},
};

/// One mistake, and where its counterexample is.
pub(crate) struct Mistake {
    pub(crate) bug: Bug,
    pub(crate) what: &'static str,
    pub(crate) scenario: &'static Scenario,
    pub(crate) breaks: &'static [Property],
}

macro_rules! bugs {
    ($($bug:ident $what:literal, $scenario:ident => $($breaks:ident)|+;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Bug {
            /// The code as it is.
            None,
            $(#[doc = $what] $bug),+
        }

        pub(crate) const MISTAKES: &[Mistake] = &[$(Mistake {
            bug: Bug::$bug,
            what: $what,
            scenario: &crate::$scenario,
            breaks: &[$(Property::$breaks),+],
        }),+];
    };
}

bugs! {
    // Rules of the row.
    SuspendIgnoresUnread "suspend does not look at unread signals", SIGNALS => SignalWakes | GetsHome;
    SuspendIgnoresCancel "suspend does not look at a cancel that is asked", PAUSE_AND_CANCEL => CancelIsEffective;
    SuspendRepeatAny "a suspended row answers any suspend of its last attempt with suspended", SLEEP => AcknowledgedIsStored;
    SuspendRepeatNone "a suspend whose answer got lost is fenced when it comes again", SLEEP => RepeatsAreAnswered;
    EndRepeatAny "an ended row accepts its ending from who did not make it", ENDINGS => AcknowledgedIsStored;
    StopIgnoresState "a stop does not look whether the instance has ended", ENDINGS => EndingsAreFinal;
    ExitWithoutAttempt "exit report not guarded by the attempt", SLEEP => OldExitTouchesNothing;
    ExitWithoutState "exit report guarded by the attempt, not by the state", SLEEP => OwnRecordStays;
    ProgressIsIgnored "all crashes are counted, also those before a checkpoint", TWO_FAULTS => CrashesAreCountedInARow;
    SuspendKeepsCrashes "crashes before a suspension are counted", PAUSE => CrashesAreCountedInARow;
    SettleForgetsProgress "crashes before what a lost attempt saved are counted", CRASHES => CrashesAreCountedInARow;
    ExitIgnoresCancel "crashes fail an instance that is being cancelled", ENDINGS => CancelledIsNotFailed;
    ClaimKeepsAttempt "a claim does not raise the attempt", SLEEP => WaitsForWhatIsMissing;
    SignalWakesClaimed "a signal sets the wake of an open row", SIGNALS => ClaimedOnce | OpenWakeStays;
    RegisterReopens "register accepts a suspended row that nobody claimed", SLEEP => GetsHome | GetsHomeWithoutNode;
    NoAttemptFence "writes name the session only, not the attempt", SLEEP => OnlyTheWriterWrites | ZombiesAreFenced;
    NoSessionFence "writes name the attempt only, not the session", SLEEP => OnlyTheWriterWrites | WaitsForWhatIsMissing;
    PauseParksWithoutWake "suspending for a pause sets no wake, resume does", PAUSE => GetsHome;
    PauseHoldsCancel "a paused instance keeps its cancel's wake held", PAUSE_AND_CANCEL => GetsHome | CancelIsEffective;
    PauseClearsWake "pausing clears the wake", PAUSE => Shape | GetsHome;
    CancelWakesCleanUp "a second cancel wakes a clean-up that sleeps", CLEAN_UP => WokenForAReason;
    ReasonIgnoresCancel "the reason of a wake does not look at a cancel", CLEAN_UP => ReasonIsTrue;
    CancelWakesClaimed "a cancel sets the wake of an open row", PAUSE_AND_CANCEL => OpenWakeStays;
    OverdueIgnoresAttempt "a grace is not guarded by the attempt", ENDINGS => GraceIsKept;
    OverdueIgnoresFelt "a grace ends who has felt its cancel", ENDINGS => GraceIsKept;
    SignalWakesAll "a signal wakes who waits for something else", SIGNALS => WokenForAReason;
    PendingSuspends "a first launch that fails leaves the row suspended", SLEEP => PendingUntilRegistered;
    RetryKeepsWait "a failed relaunch keeps the old wait", SIGNALS => SignalWakes;
    // Rules of nodes and processes.
    EnvWritesRunning "the environment writes RUNNING after the launch", SLEEP => OwnRecordStays;
    ClaimTwoSteps "a claim reads first and writes later", SLEEP => ClaimedOnce;
    ClaimWithoutLease "a claim does not ask for the node's lease", TWO_FAULTS => GetsHomeWithoutNode;
    TakeoverRunningOnly "takeover returns RUNNING rows, leaves open claims", SLEEP => GetsHomeWithoutNode;
    SettleRunningOnly "a restarted node settles RUNNING rows, leaves open claims", TWO_FAULTS => GetsHome;
    NoSettle "a restarted node trusts only exits it can see", SLEEP => GetsHome;
    AckBeforeSave "a signal is acknowledged, then its result is saved", SIGNALS => SignalsOnceInOrder;
    SaveBeforeAck "a signal's result is saved, then it is acknowledged", SIGNALS => SignalsOnceInOrder;
    OutageLosesLease "a lease is watched through a database outage", SLEEP => OutageCostsNoLease;
}

pub(crate) fn claim(bug: Bug, life: &Life, node: usize) -> Option<Life> {
    let claimed = life.claim(&node_id(node), FUTURE, NOW);
    match bug {
        Bug::ClaimKeepsAttempt if life.attempt != Attempt::NONE => {
            claimed.map(|next| Life { attempt: life.attempt, ..next })
        }
        // It was due when it was read; what it is now, the statement does not ask.
        Bug::ClaimTwoSteps => claimed.or_else(|| {
            let from = match &life.state {
                State::Pending { .. } => Rest::Pending,
                State::Launching { from, .. } => from.clone(),
                State::Suspended { waits, .. } => Rest::Suspended(waits.clone()),
                State::Running { .. } => Rest::Suspended(Waits::retry()),
                State::Ended { .. } => return None,
            };
            let stale =
                Life { state: State::Launching { node: node_id(node), until: NOW, from }, ..life.clone() };
            stale.claim(&node_id(node), FUTURE, NOW)
        }),
        _ => claimed,
    }
}

pub(crate) fn wake_reason(bug: Bug, life: &Life) -> WakeReason {
    match bug {
        Bug::ReasonIgnoresCancel => Life { cancel: Cancel::No, ..life.clone() }.wake_reason(NOW),
        _ => life.wake_reason(NOW),
    }
}

pub(crate) fn register(bug: Bug, life: &Life, by: Attempt) -> Result<Life, Refusal> {
    match &life.state {
        // The state is set to RUNNING where the attempt is right; the row names no node then.
        State::Suspended { .. } if bug == Bug::RegisterReopens => {
            let node = NodeId::parse("nobody").expect("a word is a node id");
            Life { state: State::Running { node }, ..life.clone() }.register(by, NOW)
        }
        _ => life.register(by, NOW),
    }
}

fn running(life: &Life, node: usize) -> Life {
    Life { state: State::Running { node: node_id(node) }, ..life.clone() }
}

/// Who a write says it is from, as far as its fence looks.
pub(crate) fn writer(bug: Bug, life: &Life, by: Writer) -> Writer {
    match bug {
        Bug::NoSessionFence => Writer { session: life.session, ..by },
        Bug::NoAttemptFence => Writer { attempt: life.attempt, ..by },
        _ => by,
    }
}

pub(crate) fn suspend(bug: Bug, row: &Row, by: Writer, waits: Waits) -> Result<Suspend, Refusal> {
    let life = &row.life;
    let unread = |_: &_| row.unread();
    match (bug, &life.state) {
        (Bug::SuspendIgnoresUnread, _) => life.suspend(by, waits, |_| false, NOW),
        (Bug::SuspendIgnoresCancel, _) => {
            let blind = Life { cancel: Cancel::No, ..life.clone() };
            let answer = blind.suspend(by, waits, unread, NOW)?;
            Ok(stored(answer, |next| next.cancel = life.cancel))
        }
        (Bug::SuspendRepeatNone, State::Suspended { .. }) => Err(Refusal::Fenced { by }),
        (Bug::SuspendRepeatAny, State::Suspended { .. }) if life.attempt == by.attempt => Ok(Suspend::Again),
        (Bug::SuspendKeepsCrashes, _) => {
            let answer = life.suspend(by, waits, unread, NOW)?;
            Ok(stored(answer, |next| next.crashes = life.crashes))
        }
        (Bug::PauseParksWithoutWake, _) if waits.for_resume() => {
            let blind = Life { paused: true, ..life.clone() };
            let answer = blind.suspend(by, waits, unread, NOW)?;
            Ok(stored(answer, |next| {
                next.paused = life.paused;
                set_wake(next, false);
            }))
        }
        _ => life.suspend(by, waits, unread, NOW),
    }
}

fn stored(answer: Suspend, bend: impl FnOnce(&mut Life)) -> Suspend {
    match answer {
        Suspend::Suspended(mut next) => {
            bend(&mut next);
            Suspend::Suspended(next)
        }
        Suspend::Again | Suspend::Continue => answer,
    }
}

fn set_wake(life: &mut Life, awake: bool) {
    if let State::Suspended { wake_at, .. } = &mut life.state {
        *wake_at = awake.then_some(NOW);
    }
}

pub(crate) fn end(bug: Bug, life: &Life, by: Writer) -> Result<End, Refusal> {
    match &life.state {
        State::Ended { outcome, at, .. } if bug == Bug::EndRepeatAny => {
            let state = State::Ended { outcome: *outcome, at: *at, by: EndedBy::Instance };
            Life { state, ..life.clone() }.end(by, Outcome::Completed, NOW)
        }
        _ => life.end(by, Outcome::Completed, NOW),
    }
}

pub(crate) fn exited(rules: &Rules, life: &Life, of: Attempt, node: usize, exit: Exit) -> Option<Life> {
    let (bug, policy) = (rules.bug, policy(rules.crash_limit));
    let next = match (bug, &life.state) {
        (Bug::ExitWithoutAttempt, _) => life.exited(life.attempt, exit, &policy, NOW),
        (Bug::ExitWithoutState, State::Suspended { .. }) => {
            running(life, node).exited(of, exit, &policy, NOW)
        }
        (Bug::ExitIgnoresCancel, _) => {
            let next = Life { cancel: Cancel::No, ..life.clone() }.exited(of, exit, &policy, NOW);
            next.map(|next| Life { cancel: life.cancel, ..next })
        }
        _ => life.exited(of, exit, &policy, NOW),
    };
    next.map(|next| requeued(bug, life, next))
}

pub(crate) fn settle(bug: Bug, row: &Row, node: usize) -> Option<Life> {
    let newest_checkpoint = match bug {
        Bug::SettleForgetsProgress => Attempt::NONE,
        _ => row.newest_checkpoint,
    };
    let next = row.life.settle(&node_id(node), newest_checkpoint, NOW);
    next.map(|next| requeued(bug, &row.life, next))
}

fn requeued(bug: Bug, before: &Life, next: Life) -> Life {
    match (bug, before.waits(), &next.state) {
        (Bug::RetryKeepsWait, Some(waits), State::Suspended { wake_at, .. }) => {
            let state = State::Suspended { waits: waits.clone(), wake_at: *wake_at };
            Life { state, ..next }
        }
        (Bug::PendingSuspends, None, State::Pending { wake_at }) => {
            let state = State::Suspended { waits: Waits::retry(), wake_at: Some(*wake_at) };
            Life { state, ..next }
        }
        _ => next,
    }
}

/// A signal, stored already, of the only name there is.
pub(crate) fn signal(bug: Bug, life: &Life, name: &Name) -> Result<Life, Refusal> {
    match &life.state {
        State::Launching { from: Rest::Suspended(waits), .. }
            if bug == Bug::SignalWakesClaimed && waits.for_signal(name) =>
        {
            Ok(launched_again(life.clone()))
        }
        State::Suspended { .. } if bug == Bug::SignalWakesAll => {
            let mut next = life.signal(name, NOW)?;
            set_wake(&mut next, true);
            Ok(next)
        }
        _ => life.signal(name, NOW),
    }
}

fn launched_again(mut life: Life) -> Life {
    if let State::Launching { until, .. } = &mut life.state {
        *until = NOW;
    }
    life
}

pub(crate) fn cancel(bug: Bug, life: &Life) -> Result<Life, Refusal> {
    let next = life.cancel(NOW)?;
    match bug {
        Bug::CancelWakesClaimed => Ok(launched_again(next)),
        Bug::CancelWakesCleanUp => {
            let mut next = next;
            set_wake(&mut next, true);
            Ok(next)
        }
        Bug::PauseHoldsCancel if next.outcome().is_none() => Ok(Life { paused: life.paused, ..next }),
        _ => Ok(next),
    }
}

pub(crate) fn overdue(bug: Bug, late: &Life, of: Attempt, grace: Duration) -> Option<Life> {
    match bug {
        Bug::OverdueIgnoresAttempt => late.cancel_overdue(late.attempt, grace, NOW),
        Bug::OverdueIgnoresFelt if late.cancel == Cancel::Felt => {
            let asked = Life { cancel: Cancel::Asked { since: NOW - grace }, ..late.clone() };
            asked.cancel_overdue(of, grace, NOW)
        }
        _ => late.cancel_overdue(of, grace, NOW),
    }
}

pub(crate) fn pause(bug: Bug, life: &Life) -> Result<Life, Refusal> {
    match bug {
        Bug::PauseHoldsCancel => {
            let paused = Life { cancel: Cancel::No, ..life.clone() }.pause()?;
            Ok(Life { cancel: life.cancel, ..paused })
        }
        Bug::PauseClearsWake => life.pause().map(|mut next| {
            set_wake(&mut next, false);
            next
        }),
        _ => life.pause(),
    }
}

pub(crate) fn resume(bug: Bug, life: &Life) -> Result<Life, Refusal> {
    let mut next = life.resume()?;
    if bug == Bug::PauseParksWithoutWake && life.waits().is_some_and(Waits::for_resume) {
        set_wake(&mut next, true);
    }
    Ok(next)
}

pub(crate) fn stop(bug: Bug, life: &Life) -> Result<Life, Refusal> {
    match &life.state {
        State::Ended { .. } if bug == Bug::StopIgnoresState => running(life, 0).stop(NOW),
        _ => life.stop(NOW),
    }
}
