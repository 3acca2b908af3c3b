//! The table "state × request", row by row: one state of each kind against each request.

use std::{collections::BTreeSet, time::Duration};

use super::{
    id::{Attempt, Key, Name, NodeId, Session},
    instance::{Cancel, CrashPolicy, End, Exit, Life, Refusal, Rest, State, Status, Suspend, Writer},
    outcome::{EndedBy, Outcome},
    time::Micros,
    wake::{Wait, Waits, WakeReason},
};

const NOW: Micros = Micros::seconds(1000);
const LATER: Micros = Micros::seconds(2000);
const A2: Attempt = Attempt(2);
const BY: Writer = Writer { attempt: A2, session: Session(1) };
const POLICY: CrashPolicy = CrashPolicy {
    limit: 3,
    backoff: Duration::from_secs(1),
    backoff_max: Duration::from_mins(5),
    jitter: 0.0,
};

fn name(text: &str) -> Name {
    Name::parse("name", text).unwrap()
}

fn node() -> NodeId {
    NodeId::parse("node-a").unwrap()
}

fn for_signal() -> Waits {
    Waits::new(vec![Wait::Signal {
        name: name("approval"),
        key: Key::none(),
        signal: name("approval"),
        due_at: None,
    }])
    .unwrap()
}

fn sleep() -> Waits {
    Waits::new(vec![Wait::Due { name: name("rest"), key: Key::none(), due_at: LATER }]).unwrap()
}

fn for_resume() -> Waits {
    Waits::new(vec![Wait::Resume]).unwrap()
}

fn life(state: State) -> Life {
    Life { state, attempt: A2, session: Session(1), crashes: 2, ..Life::start(NOW, None) }
}

fn running() -> Life {
    life(State::Running { node: node() })
}

fn suspended() -> Life {
    life(State::Suspended { waits: for_signal(), wake_at: None })
}

fn open(from: Rest) -> Life {
    Life { session: Session::NONE, ..life(State::Launching { node: node(), until: LATER, from }) }
}

fn ended(outcome: Outcome, by: EndedBy) -> Life {
    life(State::Ended { outcome, at: NOW, by })
}

fn every_state() -> Vec<Life> {
    vec![
        Life::start(NOW, None),
        open(Rest::Pending),
        open(Rest::Suspended(for_signal())),
        running(),
        suspended(),
        life(State::Suspended { waits: sleep(), wake_at: Some(LATER) }),
        ended(Outcome::Completed, EndedBy::Instance),
        ended(Outcome::Failed, EndedBy::Node),
        ended(Outcome::Cancelled, EndedBy::Controller),
    ]
}

fn nothing_unread(_: &Name) -> bool {
    false
}

/// The CHECKs of the table: each state has exactly the facts it needs (invariant 7).
fn shape(life: &Life) {
    let wake = life.wake_at();
    match life.status() {
        Status::Pending => assert!(wake.is_some() && life.waits().is_none(), "{life:?}"),
        Status::Running => {
            assert!(wake.is_none() && life.node().is_some() && life.waits().is_none(), "{life:?}");
        }
        Status::Suspended => {
            let waits = life.waits().expect("a suspended instance waits for something");
            let signals_alone = waits.earliest_due().is_none() && !waits.for_resume() && !waits.for_retry();
            let asked = matches!(life.cancel, Cancel::Asked { .. });
            assert!(wake.is_some() || (signals_alone && !life.is_open() && !asked), "{life:?}");
        }
        Status::Ended(_) => assert!(wake.is_none() && life.node().is_none() && !life.paused, "{life:?}"),
    }
    assert_eq!(life.node().is_some(), life.is_open() || life.status() == Status::Running);
}

#[test]
fn invariant_7_every_answer_has_a_shape_that_cannot_be_stuck() {
    for cancel in [Cancel::No, Cancel::Asked { since: NOW }, Cancel::Felt] {
        for paused in [false, true] {
            if paused && cancel != Cancel::No {
                continue;
            }
            let asleep_and_asked = |life: &Life| {
                life.wake_at().is_none()
                    && life.status() == Status::Suspended
                    && matches!(cancel, Cancel::Asked { .. })
            };
            let states = every_state().into_iter().map(|state| Life { paused, cancel, ..state });
            for life in states.filter(|life| !asleep_and_asked(life)) {
                for next in every_answer(&life) {
                    shape(&next);
                    assert!(
                        life.outcome().is_none() || next == life,
                        "an ending changed: {life:?} -> {next:?}"
                    );
                }
            }
        }
    }
}

/// What every request makes of this row.
fn every_answer(life: &Life) -> Vec<Life> {
    let now = LATER + Duration::from_secs(1);
    let mut all: Vec<Option<Life>> = vec![
        life.claim(&node(), now + Duration::from_secs(30), now),
        life.register(A2, now).ok(),
        life.feel_cancel(BY).ok(),
        life.exited(A2, Exit::Crashed { newest_checkpoint: Attempt::NONE }, &POLICY, now),
        life.exited(A2, Exit::Crashed { newest_checkpoint: A2 }, &POLICY, now),
        life.exited(A2, Exit::GivenBack { retry_in: Duration::from_secs(1) }, &POLICY, now),
        life.exited(
            A2,
            Exit::Crashed { newest_checkpoint: Attempt::NONE },
            &CrashPolicy { limit: 0, ..POLICY },
            now,
        ),
        life.settle(&node(), Attempt::NONE, now),
        life.settle(&node(), A2, now),
        life.signal(&name("approval"), now).ok(),
        life.signal(&name("other"), now).ok(),
        life.pause().ok(),
        life.resume().ok(),
        life.cancel(now).ok(),
        life.cancel_overdue(A2, Duration::ZERO, now),
        life.stop(now).ok(),
        Life { deadline_at: Some(NOW), ..life.clone() }.expire(now),
    ];
    for outcome in [Outcome::Completed, Outcome::Failed] {
        all.push(match life.end(BY, outcome, now) {
            Ok(End::Ended(next)) => Some(next),
            Ok(End::Again) | Err(_) => None,
        });
    }
    for waits in [for_signal(), sleep(), for_resume()] {
        all.push(match life.suspend(BY, waits, nothing_unread, NOW) {
            Ok(Suspend::Suspended(next)) => Some(next),
            Ok(Suspend::Again | Suspend::Continue) | Err(_) => None,
        });
    }
    all.into_iter().flatten().map(|next| Life { deadline_at: life.deadline_at, ..next }).collect()
}

#[test]
fn claim_takes_what_is_due_and_nothing_else() {
    let claim = |life: &Life| life.claim(&node(), LATER, NOW);
    let fresh = Life::start(NOW, None);
    let claimed = claim(&fresh).expect("due now");
    assert_eq!(
        (claimed.attempt, claimed.session, claimed.wake_at()),
        (Attempt(1), Session::NONE, Some(LATER))
    );
    assert_eq!(claimed.status(), Status::Pending, "people see it as it was");
    assert_eq!(claim(&Life { paused: true, ..fresh }), None, "the flag holds the wake");
    assert_eq!(claim(&Life::start(LATER, None)), None, "not due");
    assert_eq!(claim(&suspended()), None, "waits for a signal alone");
    assert_eq!(claim(&running()), None);
    assert_eq!(claim(&open(Rest::Pending)), None, "invariant 4: being launched");
    let missed =
        open(Rest::Suspended(sleep())).claim(&node(), Micros::seconds(9000), LATER).expect("deadline passed");
    assert_eq!((missed.attempt, missed.waits()), (Attempt(3), Some(&sleep())));
}

#[test]
fn register_takes_the_newest_attempt_while_it_is_open_or_running() {
    let registered = open(Rest::Suspended(sleep())).register(A2, NOW).expect("open");
    assert_eq!(
        (registered.status(), registered.session, registered.wake_at()),
        (Status::Running, Session(1), None)
    );
    let again = registered.register(A2, NOW).expect("a reconnect");
    assert_eq!(again.session, Session(2));
    assert_eq!(registered.admit(Writer { attempt: A2, session: Session(1) }), Ok(()));
    assert!(again.admit(Writer { attempt: A2, session: Session(1) }).is_err(), "the older session is fenced");
    for life in [suspended(), Life::start(NOW, None), ended(Outcome::Completed, EndedBy::Instance)] {
        let refused = life.register(life.attempt, NOW);
        assert!(matches!(refused, Err(Refusal::Fenced { .. })), "{life:?} was reopened");
    }
    for other in [Attempt(1), Attempt(3)] {
        assert!(open(Rest::Pending).register(other, NOW).is_err());
    }
}

#[test]
fn the_grace_of_a_cancel_begins_with_the_process_that_can_feel_it() {
    let asked = Life { cancel: Cancel::Asked { since: NOW }, ..open(Rest::Suspended(sleep())) };
    let registered = asked.register(A2, LATER).unwrap();
    assert_eq!(registered.cancel, Cancel::Asked { since: LATER });
    let reconnected = registered.register(A2, Micros::seconds(5000)).unwrap();
    assert_eq!(reconnected.cancel, Cancel::Asked { since: LATER }, "a reconnect wins no time");
    let grace = Duration::from_mins(5);
    assert_eq!(registered.cancel_overdue(A2, grace, LATER), None);
    assert_eq!(registered.cancel_overdue(Attempt(1), grace, LATER + grace), None);
    let killed = registered.cancel_overdue(A2, grace, LATER + grace).expect("overdue");
    assert_eq!(killed.outcome(), Some(Outcome::Cancelled));
}

#[test]
fn suspend_stores_the_waits_and_the_earliest_due_time() {
    let Ok(Suspend::Suspended(next)) = running().suspend(BY, sleep(), nothing_unread, NOW) else {
        panic!("not suspended");
    };
    assert_eq!((next.wake_at(), next.waits(), next.crashes), (Some(LATER), Some(&sleep()), 0));
    assert_eq!(next.suspend(BY, sleep(), nothing_unread, NOW), Ok(Suspend::Again), "the answer got lost");
    assert!(next.suspend(BY, for_signal(), nothing_unread, NOW).is_err(), "not what the row says");
    let Ok(Suspend::Suspended(next)) = running().suspend(BY, for_signal(), nothing_unread, NOW) else {
        panic!("not suspended");
    };
    assert_eq!(next.wake_at(), None, "signals alone");
}

#[test]
fn suspend_goes_on_when_something_is_there_already() {
    let unread: BTreeSet<Name> = [name("approval")].into();
    let goes_on = |life: &Life, waits, now| {
        life.suspend(BY, waits, |n| unread.contains(n), now) == Ok(Suspend::Continue)
    };
    assert!(goes_on(&running(), for_signal(), NOW), "an unread signal");
    assert!(goes_on(&running(), sleep(), LATER), "a due time passed");
    assert!(!goes_on(&running(), sleep(), NOW));
    assert!(goes_on(&running(), for_resume(), NOW), "not paused any more");
    assert!(
        goes_on(&Life { cancel: Cancel::Asked { since: NOW }, ..running() }, sleep(), NOW),
        "a cancel to feel"
    );
    assert!(!goes_on(&Life { cancel: Cancel::Felt, ..running() }, sleep(), NOW), "the clean-up may sleep");
}

#[test]
fn a_paused_instance_suspends_with_a_wake_that_the_flag_holds() {
    let paused = running().pause().unwrap();
    let Ok(Suspend::Suspended(asleep)) = paused.suspend(BY, for_resume(), nothing_unread, NOW) else {
        panic!("not suspended");
    };
    assert!(!asleep.is_due(LATER));
    let resumed = asleep.resume().unwrap();
    assert!(resumed.is_due(NOW));
    assert_eq!(resumed.wake_reason(NOW), WakeReason::Resume);
}

#[test]
fn endings_are_taken_once_and_repeated_for_who_made_them() {
    let Ok(End::Ended(done)) = running().end(BY, Outcome::Completed, NOW) else { panic!("not ended") };
    assert_eq!(done.outcome(), Some(Outcome::Completed));
    assert_eq!(done.end(BY, Outcome::Completed, LATER), Ok(End::Again));
    assert!(done.end(BY, Outcome::Failed, LATER).is_err(), "another ending");
    let older = Writer { attempt: Attempt(1), ..BY };
    assert!(done.end(older, Outcome::Completed, LATER).is_err());
    let stopped = running().stop(NOW).unwrap();
    let felt = Life { cancel: Cancel::Felt, ..stopped };
    assert!(
        felt.end(BY, Outcome::Completed, LATER).is_err(),
        "its output was not stored, so it is not confirmed"
    );
}

#[test]
fn a_felt_cancel_makes_every_ending_a_cancellation() {
    let felt = Life { cancel: Cancel::Asked { since: NOW }, ..running() }.feel_cancel(BY).unwrap();
    for returned in [Outcome::Completed, Outcome::Failed] {
        let Ok(End::Ended(done)) = felt.end(BY, returned, NOW) else { panic!("not ended") };
        assert_eq!(done.outcome(), Some(Outcome::Cancelled));
        assert_eq!(done.end(BY, returned, NOW), Ok(End::Again));
    }
}

#[test]
fn crashes_count_from_the_last_progress() {
    let crash =
        |life: &Life, newest_checkpoint| life.exited(A2, Exit::Crashed { newest_checkpoint }, &POLICY, NOW);
    let again = crash(&running(), Attempt(1)).unwrap();
    assert_eq!((again.crashes, again.waits()), (3, Some(&Waits::retry())));
    assert_eq!(again.wake_at(), Some(NOW + Duration::from_secs(4)));
    assert_eq!(crash(&running(), A2).unwrap().crashes, 1, "it had saved something");
    let last = crash(&Life { crashes: 3, ..running() }, Attempt(1)).unwrap();
    assert_eq!(last.outcome(), Some(Outcome::Failed));
    let cancelled = Life { crashes: 3, cancel: Cancel::Asked { since: NOW }, ..running() };
    assert_eq!(crash(&cancelled, Attempt(1)).unwrap().outcome(), Some(Outcome::Cancelled));
    assert_eq!(crash(&open(Rest::Pending), Attempt::NONE).unwrap().status(), Status::Pending);
    for life in [suspended(), ended(Outcome::Failed, EndedBy::Instance), Life::start(NOW, None)] {
        assert_eq!(crash(&life, A2), None, "{life:?} recorded its own end");
    }
    let old = running().exited(Attempt(1), Exit::Crashed { newest_checkpoint: A2 }, &POLICY, NOW);
    assert_eq!(old, None, "the exit of an older attempt");
}

#[test]
fn the_pause_after_a_crash_doubles_up_to_its_cap_and_is_spread() {
    let pauses: Vec<u64> = [1, 2, 3, 9, 10, 400].map(|n| POLICY.pause(n).as_secs()).into();
    assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    let spread = CrashPolicy { jitter: 7.0, ..POLICY };
    assert_eq!(spread.pause(1), Duration::from_millis(1200));
}

#[test]
fn what_is_given_back_is_no_crash() {
    let back =
        |life: &Life| life.exited(A2, Exit::GivenBack { retry_in: Duration::from_secs(5) }, &POLICY, NOW);
    let given = back(&open(Rest::Suspended(sleep()))).unwrap();
    assert_eq!((given.crashes, given.wake_at()), (2, Some(NOW + Duration::from_secs(5))));
    assert_eq!(back(&running()), None, "it runs");
    let settled = running().settle(&node(), Attempt(1), NOW).unwrap();
    assert_eq!((settled.crashes, settled.wake_at()), (2, Some(NOW)));
    let progressed = running().settle(&node(), A2, NOW).unwrap();
    assert_eq!(progressed.crashes, 0, "it had saved something: the next crash is the first since");
    assert_eq!(running().settle(&NodeId::parse("node-b").unwrap(), A2, NOW), None);
    assert_eq!(suspended().settle(&node(), A2, NOW), None);
}

#[test]
fn a_signal_wakes_only_who_waits_for_it() {
    let signal = |life: &Life, n: &str| life.signal(&name(n), NOW);
    let woken = signal(&suspended(), "approval").unwrap();
    assert_eq!((woken.wake_at(), woken.wake_reason(NOW)), (Some(NOW), WakeReason::Signal));
    assert_eq!(signal(&suspended(), "other"), Ok(suspended()));
    for life in [running(), open(Rest::Suspended(for_signal())), Life::start(LATER, None)] {
        assert_eq!(signal(&life, "approval"), Ok(life.clone()), "it would launch twice");
    }
    let retrying = life(State::Suspended { waits: Waits::retry(), wake_at: Some(LATER) });
    assert_eq!(signal(&retrying, "approval"), Ok(retrying), "a signal does not shorten a backoff");
    assert!(signal(&ended(Outcome::Completed, EndedBy::Instance), "approval").is_err());
    let due = life(State::Suspended { waits: for_signal(), wake_at: Some(Micros::seconds(1)) });
    assert_eq!(
        signal(&due, "approval").unwrap().wake_at(),
        Some(Micros::seconds(1)),
        "never later than it was"
    );
}

#[test]
fn cancel_ends_what_never_ran_and_wakes_what_sleeps() {
    for life in [Life::start(LATER, None), open(Rest::Pending)] {
        assert_eq!(life.cancel(NOW).unwrap().outcome(), Some(Outcome::Cancelled));
    }
    let paused = suspended().pause().unwrap();
    let woken = paused.cancel(NOW).unwrap();
    assert!(woken.is_due(NOW) && !woken.paused);
    assert_eq!(woken.wake_reason(NOW), WakeReason::Cancel);
    assert_eq!(woken.cancel(LATER), Ok(woken.clone()), "a second cancel changes nothing");
    assert_eq!(woken.pause(), Err(Refusal::BeingCancelled));
    let opened = open(Rest::Suspended(sleep())).cancel(NOW).unwrap();
    assert_eq!(opened.wake_at(), Some(LATER), "nobody moves the wake of an open row");
    let cleaning =
        Life { cancel: Cancel::Felt, ..life(State::Suspended { waits: sleep(), wake_at: Some(LATER) }) };
    assert_eq!(cleaning.cancel(NOW), Ok(cleaning), "the clean-up sleeps on");
}

#[test]
fn a_time_limit_ends_whatever_has_not_ended() {
    for life in every_state() {
        let limited = Life { deadline_at: Some(NOW), paused: life.outcome().is_none(), ..life.clone() };
        let expired = limited.expire(NOW);
        assert_eq!(expired.is_some(), life.outcome().is_none());
        assert!(expired.is_none_or(|next| next.outcome() == Some(Outcome::Failed)));
        assert_eq!(limited.expire(NOW - Duration::from_micros(1)), None);
    }
}

#[test]
fn waits_are_equal_in_any_order_and_never_empty() {
    let [a, b] = [Wait::Resume, Wait::Due { name: name("x"), key: Key::none(), due_at: NOW }];
    assert_eq!(Waits::new(vec![a.clone(), b.clone()]), Waits::new(vec![b, a.clone(), a]));
    assert_eq!(Waits::new(vec![]), None);
}
