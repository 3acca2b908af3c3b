//! The requests of the table against the real [`Life`], with what the store does beside it:
//! checkpoints, signals and due times, as counters.

use std::time::Duration;

use dormouse_core::domain::{
    id::{Attempt, Key, Name, Session},
    instance::{Cancel, CrashPolicy, End, Exit, Life, Rest, State, Suspend, Writer},
    outcome::EndedBy,
    wake::{Wait, Waits},
};

use crate::{
    actions::Rules,
    bugs::{self, Bug},
    state::{CLEAN_UP, FUTURE, NOW, Op, Request, Row},
};

/// Every backoff ends at [`FUTURE`].
pub(crate) fn policy(crash_limit: u32) -> CrashPolicy {
    CrashPolicy { limit: crash_limit, backoff: STEP, backoff_max: STEP, jitter: 0.0 }
}
const STEP: Duration = Duration::from_secs(1);

/// What a process hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Stored, or stored before.
    Done,
    /// Not suspended: something is there already.
    Continue,
    Suspended,
    /// A newer attempt, a newer session, or not running any more: end the process.
    Fenced,
}

impl Row {
    pub(crate) fn claim(&mut self, node: usize, bug: Bug) {
        if let Some(next) = bugs::claim(bug, &self.life, node) {
            self.life = next;
        }
    }

    /// The session, or none if it is fenced.
    pub(crate) fn register(&mut self, by: Attempt, bug: Bug) -> Option<Session> {
        let next = bugs::register(bug, &self.life, by).ok()?;
        self.life = next;
        Some(self.life.session)
    }

    /// One fenced write of a process.
    pub(crate) fn write(&mut self, by: Writer, request: Request, bug: Bug) -> Answer {
        let admitted = bugs::writer(bug, &self.life, by);
        match request {
            Request::Suspend { pos, op, resume } => self.suspend(admitted, self.waits(pos, op, resume), bug),
            Request::End => self.end(admitted, bug),
            Request::FeelCancel => self.feel_cancel(admitted),
            Request::Save { .. } | Request::Ack { .. } | Request::SaveDue { .. } => {
                if self.life.admit(admitted).is_err() {
                    return Answer::Fenced;
                }
                self.save(admitted.attempt, request, bug);
                Answer::Done
            }
        }
    }

    /// What a suspend waits for. Its due time is the one that is saved.
    pub(crate) fn waits(&self, pos: u8, op: Option<Op>, resume: bool) -> Waits {
        let due_at = self.due_at.unwrap_or(FUTURE);
        let (name, key) = (operation(pos), Key::none());
        let wait = match op {
            None | Some(Op::Step) => None,
            Some(Op::Sleep) => Some(Wait::Due { name, key, due_at }),
            Some(Op::Signal) => Some(Wait::Signal { name, key, signal: approval(), due_at: None }),
            Some(Op::SignalOrTime) => {
                Some(Wait::Signal { name, key, signal: approval(), due_at: Some(due_at) })
            }
        };
        let resume = resume.then_some(Wait::Resume);
        Waits::new(wait.into_iter().chain(resume).collect()).expect("the scripts wait for something")
    }

    fn suspend(&mut self, by: Writer, waits: Waits, bug: Bug) -> Answer {
        match bugs::suspend(bug, self, by, waits) {
            Ok(Suspend::Suspended(next)) => {
                self.life = next;
                Answer::Suspended
            }
            Ok(Suspend::Again) => Answer::Suspended,
            Ok(Suspend::Continue) => Answer::Continue,
            Err(_) => Answer::Fenced,
        }
    }

    fn end(&mut self, by: Writer, bug: Bug) -> Answer {
        match bugs::end(bug, &self.life, by) {
            Ok(End::Ended(next)) => {
                self.life = next;
                Answer::Done
            }
            Ok(End::Again) => Answer::Done,
            Err(_) => Answer::Fenced,
        }
    }

    fn feel_cancel(&mut self, by: Writer) -> Answer {
        match self.life.feel_cancel(by) {
            Ok(next) if next != self.life => {
                self.life = next;
                self.saved = CLEAN_UP;
                self.due_at = None;
                self.newest_checkpoint = by.attempt;
                Answer::Done
            }
            Ok(_) => Answer::Done,
            Err(_) => Answer::Fenced,
        }
    }

    /// First writer wins: what stands there already is left as it is.
    fn save(&mut self, by: Attempt, request: Request, bug: Bug) {
        match request {
            Request::Save { pos, consumes } if pos == self.saved => {
                self.saved += 1;
                self.due_at = None;
                self.newest_checkpoint = by;
                if let Some(id) = consumes {
                    self.taken |= 1 << id;
                    if id == self.acked && bug != Bug::SaveBeforeAck {
                        self.acked += 1;
                    }
                }
            }
            Request::SaveDue { pos } if pos == self.saved && self.due_at.is_none() => {
                self.due_at = Some(FUTURE);
                self.newest_checkpoint = by;
            }
            Request::Ack { id } if id == self.acked => self.acked += 1,
            _ => {} // there already
        }
    }

    /// A process of attempt `of` is gone, or could not be started.
    pub(crate) fn exited(&mut self, of: Attempt, node: usize, rules: &Rules) {
        let progress = self.newest_checkpoint;
        let ignored = rules.bug == Bug::ProgressIsIgnored;
        let newest_checkpoint = if ignored { Attempt::NONE } else { progress };
        self.exit(of, node, Exit::Crashed { newest_checkpoint }, rules);
    }

    /// It could not be launched, and that is not its fault.
    pub(crate) fn given_back(&mut self, of: Attempt, node: usize, rules: &Rules) {
        self.exit(of, node, Exit::GivenBack { retry_in: STEP }, rules);
    }

    fn exit(&mut self, of: Attempt, node: usize, exit: Exit, rules: &Rules) {
        if let Some(next) = bugs::exited(rules, &self.life, of, node, exit) {
            self.life = next;
        }
    }

    /// Back to the wake queue, by the node itself or by who took over from it.
    pub(crate) fn settle(&mut self, node: usize, bug: Bug) {
        if let Some(next) = bugs::settle(bug, self, node) {
            self.life = next;
        }
    }

    pub(crate) fn signal(&mut self, bug: Bug) {
        if let Ok(next) = bugs::signal(bug, &self.life, &approval()) {
            self.life = next;
            self.sent += 1;
        }
    }

    pub(crate) fn cancel(&mut self, bug: Bug) {
        if let Ok(next) = bugs::cancel(bug, &self.life) {
            self.life = next;
        }
    }

    pub(crate) fn pause(&mut self, bug: Bug) {
        if let Ok(next) = bugs::pause(bug, &self.life) {
            self.life = next;
        }
    }

    pub(crate) fn resume(&mut self, bug: Bug) {
        if let Ok(next) = bugs::resume(bug, &self.life) {
            self.life = next;
        }
    }

    pub(crate) fn stop(&mut self, bug: Bug) {
        if let Ok(next) = bugs::stop(bug, &self.life) {
            self.life = next;
        }
    }

    /// The time limit passes, and somebody looks.
    pub(crate) fn limit_passes(&mut self) {
        let limited = Life { deadline_at: Some(NOW), ..self.life.clone() };
        if let Some(next) = limited.expire(NOW) {
            self.life = next;
        }
    }

    /// The grace of a cancel passes, and the node of attempt `of` looks.
    pub(crate) fn grace_passes(&mut self, of: Attempt, bug: Bug) {
        let mut late = self.life.clone();
        if let Cancel::Asked { since } = &mut late.cancel {
            *since = NOW - STEP;
        }
        if let Some(next) = bugs::overdue(bug, &late, of, STEP) {
            self.life = next;
        }
    }

    /// The node of attempt `of` looks, and the grace is not over.
    pub(crate) fn is_killed_early(&self, of: Attempt) -> bool {
        self.life.cancel_overdue(of, STEP, NOW).is_some()
    }

    /// Whether this suspend or ending is what the row says already.
    pub(crate) fn says(&self, request: Request) -> bool {
        match request {
            Request::Suspend { pos, op, resume } => self.asleep() == Some(&self.waits(pos, op, resume)),
            Request::End => self.made_its_ending(),
            Request::Save { .. } | Request::SaveDue { .. } | Request::Ack { .. } | Request::FeelCancel => {
                false
            }
        }
    }

    pub(crate) fn made_its_ending(&self) -> bool {
        matches!(self.life.state, State::Ended { by: EndedBy::Instance, .. })
    }

    /// The due time that is saved passes, wherever that moment is written.
    pub(crate) fn due_passes(&mut self) {
        self.due_at = Some(NOW);
        match &mut self.life.state {
            State::Suspended { waits, wake_at } => {
                if waits.earliest_due().is_some() && wake_at.is_some() {
                    *wake_at = Some(NOW);
                }
                *waits = passed(waits);
            }
            State::Launching { from: Rest::Suspended(waits), .. } => *waits = passed(waits),
            State::Pending { .. }
            | State::Launching { from: Rest::Pending, .. }
            | State::Running { .. }
            | State::Ended { .. } => {}
        }
    }

    /// Whether a backoff or a launch deadline is still to come.
    pub(crate) fn pending_wake(&self) -> bool {
        let is_due_time = self.asleep().is_some_and(|waits| waits.earliest_due().is_some());
        self.life.wake_at() == Some(FUTURE) && !is_due_time
    }

    /// That moment passes.
    pub(crate) fn wake_passes(&mut self) {
        match &mut self.life.state {
            State::Pending { wake_at } | State::Launching { until: wake_at, .. } => *wake_at = NOW,
            State::Suspended { wake_at, .. } => *wake_at = Some(NOW),
            State::Running { .. } | State::Ended { .. } => {}
        }
    }
}

fn passed(waits: &Waits) -> Waits {
    let past = waits.iter().cloned().map(|wait| match wait {
        Wait::Due { name, key, .. } => Wait::Due { name, key, due_at: NOW },
        Wait::Signal { name, key, signal, due_at: Some(_) } => {
            Wait::Signal { name, key, signal, due_at: Some(NOW) }
        }
        other @ (Wait::Signal { due_at: None, .. } | Wait::Resume | Wait::Retry) => other,
    });
    Waits::new(past.collect()).expect("as many as before")
}

/// The name of the operation at this position of the script.
pub(crate) fn operation(pos: u8) -> Name {
    Name::parse("operation.name", &pos.to_string()).expect("digits are a name")
}

/// The only signal there is.
pub(crate) fn approval() -> Name {
    Name::parse("signal.name", "approval").expect("a word is a name")
}
