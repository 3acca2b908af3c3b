//! The life of one instance: each state with its facts, each request as a pure function.
//!
//! This is the table "state × request" of the design, and the same rules as its checked
//! model. The store locks the row, calls one of these, and writes what it answers; a method
//! that returns `None` or a [`Refusal`] changes nothing. Keeps invariants 2, 4, 6 and 7.

use std::time::Duration;

use super::{
    id::{Attempt, Name, NodeId, Session},
    outcome::{EndedBy, Outcome},
    time::Micros,
    wake::{Waits, WakeReason},
};

/// The right to write: the attempt and the session that a registration opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    /// Which attempt.
    pub attempt: Attempt,
    /// Which of its registrations.
    pub session: Session,
}

/// What an instance is doing. Each state carries the facts that only it has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Never registered; launched at `wake_at`.
    Pending {
        /// From when on it may be launched.
        wake_at: Micros,
    },
    /// Open: claimed, not yet registered. Nothing but its end moves the wake.
    Launching {
        /// Who launches it.
        node: NodeId,
        /// The launch deadline: from then on it is simply due again.
        until: Micros,
        /// What it was before, and is again if the launch fails.
        from: Rest,
    },
    /// A registered process works on it.
    Running {
        /// Where.
        node: NodeId,
    },
    /// No process; it waits.
    Suspended {
        /// For what.
        waits: Waits,
        /// From when on it may be launched; none while it waits for signals alone.
        wake_at: Option<Micros>,
    },
    /// Final.
    Ended {
        /// How.
        outcome: Outcome,
        /// When.
        at: Micros,
        /// By whom.
        by: EndedBy,
    },
}

/// What an instance was before its claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rest {
    /// Never registered.
    Pending,
    /// Suspended for these.
    Suspended(Waits),
}

/// How far a cancellation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// Not asked for.
    No,
    /// Asked for, not felt by the workflow yet.
    Asked {
        /// When; or when the attempt registered that is to feel it.
        since: Micros,
    },
    /// The workflow has felt it and cleans up.
    Felt,
}

/// What people see of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Never registered.
    Pending,
    /// A registered process works on it.
    Running,
    /// No process; it waits, or is being launched again.
    Suspended,
    /// Ended.
    Ended(Outcome),
}

impl Status {
    /// The word on the wire, in the tables and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Suspended => "SUSPENDED",
            Self::Ended(outcome) => outcome.as_str(),
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [
            Self::Pending,
            Self::Running,
            Self::Suspended,
            Self::Ended(Outcome::Completed),
            Self::Ended(Outcome::Failed),
            Self::Ended(Outcome::Cancelled),
        ];
        all.into_iter().find(|status| status.as_str() == word)
    }
}

/// Why a request has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The writer is not the newest attempt and session of a running instance.
    #[error("attempt {} session {} may not write any more: a newer one took over; end this process", by.attempt, by.session.0)]
    Fenced {
        /// Who asked.
        by: Writer,
    },
    /// Endings are final.
    #[error("the instance is {outcome} and takes no requests; start a new instance")]
    Ended {
        /// How it ended.
        outcome: Outcome,
    },
    /// A cancel overrules a pause.
    #[error("the instance is being cancelled and cannot be paused; wait for its ending or stop it")]
    BeingCancelled,
}

/// The answer to a suspend that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspend {
    /// Write this; the process ends.
    Suspended(Life),
    /// Stored by this attempt before: the answer got lost; write nothing.
    Again,
    /// Something is there already; write nothing, the process goes on.
    Continue,
}

/// The answer to an ending that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Write this.
    Ended(Life),
    /// Stored by this attempt before; write nothing.
    Again,
}

/// When crashes end an instance, and how long the pauses between are.
#[derive(Clone, Copy, Debug)]
pub struct CrashPolicy {
    /// Crashes in a row without progress that are forgiven.
    pub limit: u32,
    /// Pause after the first; doubles.
    pub backoff: Duration,
    /// Longest pause, before jitter.
    pub backoff_max: Duration,
    /// Drawn by the caller from −0.2 to 0.2: spreads the retries of many.
    pub jitter: f64,
}

impl CrashPolicy {
    /// The pause after the `crashes`-th crash in a row.
    pub fn pause(&self, crashes: u32) -> Duration {
        let doublings = crashes.saturating_sub(1).min(31);
        let pause = self.backoff.saturating_mul(1 << doublings).min(self.backoff_max);
        pause.mul_f64(1.0 + self.jitter.clamp(-0.2, 0.2))
    }
}

/// How an attempt came to its end without saying so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its process ended, or could not be started: counts as a crash.
    Crashed {
        /// The attempt that wrote the newest checkpoint; `Attempt::NONE` if there is none.
        newest_checkpoint: Attempt,
    },
    /// The node could not launch it for a reason that is not the instance's fault.
    GivenBack {
        /// When to try again.
        retry_in: Duration,
    },
}

/// The row of an instance, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// What it is doing.
    pub state: State,
    /// The newest attempt; `Attempt::NONE` before the first claim.
    pub attempt: Attempt,
    /// The newest session of that attempt; `Session::NONE` until it registers.
    pub session: Session,
    /// Nothing is claimed while this is set.
    pub paused: bool,
    /// How far a cancellation is.
    pub cancel: Cancel,
    /// Crashes in a row since the last progress.
    pub crashes: u32,
    /// When its time limit ends it; also while it is paused.
    pub deadline_at: Option<Micros>,
}

impl Life {
    /// A fresh instance that may be launched from `wake_at` on.
    pub fn start(wake_at: Micros, deadline_at: Option<Micros>) -> Self {
        Self {
            state: State::Pending { wake_at },
            attempt: Attempt::NONE,
            session: Session::NONE,
            paused: false,
            cancel: Cancel::No,
            crashes: 0,
            deadline_at,
        }
    }

    /// What people see: an open instance is what it was before its claim.
    pub fn status(&self) -> Status {
        match &self.state {
            State::Pending { .. } | State::Launching { from: Rest::Pending, .. } => Status::Pending,
            State::Running { .. } => Status::Running,
            State::Suspended { .. } | State::Launching { from: Rest::Suspended(_), .. } => Status::Suspended,
            State::Ended { outcome, .. } => Status::Ended(*outcome),
        }
    }

    /// From when on it may be claimed; none: nothing is due.
    pub fn wake_at(&self) -> Option<Micros> {
        match &self.state {
            State::Pending { wake_at } | State::Launching { until: wake_at, .. } => Some(*wake_at),
            State::Suspended { wake_at, .. } => *wake_at,
            State::Running { .. } | State::Ended { .. } => None,
        }
    }

    /// The node that launches or runs it.
    pub fn node(&self) -> Option<&NodeId> {
        match &self.state {
            State::Launching { node, .. } | State::Running { node } => Some(node),
            State::Pending { .. } | State::Suspended { .. } | State::Ended { .. } => None,
        }
    }

    /// What it waits for; also while it is being launched because of that.
    pub fn waits(&self) -> Option<&Waits> {
        match &self.state {
            State::Suspended { waits, .. } | State::Launching { from: Rest::Suspended(waits), .. } => {
                Some(waits)
            }
            State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Ended { .. } => {
                None
            }
        }
    }

    /// Claimed and not yet registered.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Launching { .. })
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.state {
            State::Ended { outcome, .. } => Some(*outcome),
            State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Suspended { .. } => None,
        }
    }

    /// Whether a claim would take it now.
    pub fn is_due(&self, now: Micros) -> bool {
        !self.paused && self.wake_at().is_some_and(|wake_at| wake_at <= now)
    }

    /// Why the next attempt is launched. Asked before the claim.
    pub fn wake_reason(&self, now: Micros) -> WakeReason {
        match &self.state {
            State::Launching { .. } => WakeReason::LaunchMissed,
            State::Pending { .. } if self.attempt == Attempt::NONE => WakeReason::Start,
            State::Pending { .. } | State::Running { .. } | State::Ended { .. } => WakeReason::Retry,
            State::Suspended { .. } if matches!(self.cancel, Cancel::Asked { .. }) => WakeReason::Cancel,
            State::Suspended { waits, .. } if waits.for_resume() => WakeReason::Resume,
            State::Suspended { waits, .. } if waits.for_retry() => WakeReason::Retry,
            State::Suspended { waits, .. } if waits.earliest_due().is_some_and(|due| due <= now) => {
                WakeReason::Due
            }
            State::Suspended { .. } => WakeReason::Signal,
        }
    }

    /// `node`, whose lease the caller holds, takes the due wake for one launch until `until`.
    /// None: not due, or paused.
    pub fn claim(&self, node: &NodeId, until: Micros, now: Micros) -> Option<Self> {
        if !self.is_due(now) {
            return None;
        }
        let from = match &self.state {
            State::Pending { .. } => Rest::Pending,
            State::Launching { from, .. } => from.clone(),
            State::Suspended { waits, .. } => Rest::Suspended(waits.clone()),
            State::Running { .. } | State::Ended { .. } => return None,
        };
        Some(Self {
            state: State::Launching { node: node.clone(), until, from },
            attempt: self.attempt.next(),
            session: Session::NONE,
            ..self.clone()
        })
    }

    /// The process of attempt `by`, which proved itself by its token, opens a session.
    /// The next session is [`Self::session`] of the answer.
    pub fn register(&self, by: Attempt, now: Micros) -> Result<Self, Refusal> {
        let fenced = Refusal::Fenced { by: Writer { attempt: by, session: Session::NONE } };
        if by != self.attempt {
            return Err(fenced);
        }
        let (node, first) = match &self.state {
            State::Launching { node, .. } => (node.clone(), true),
            State::Running { node } => (node.clone(), false),
            State::Pending { .. } | State::Suspended { .. } | State::Ended { .. } => return Err(fenced),
        };
        let cancel = match self.cancel {
            // The grace is the process's time to feel it: it begins when there is a process.
            Cancel::Asked { .. } if first => Cancel::Asked { since: now },
            unchanged => unchanged,
        };
        Ok(Self { state: State::Running { node }, session: self.session.next(), cancel, ..self.clone() })
    }

    /// The fence of every write (invariant 2): running, by this very attempt and session.
    pub fn admit(&self, by: Writer) -> Result<(), Refusal> {
        match &self.state {
            State::Running { .. } if self.writer() == by => Ok(()),
            State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Ended { .. } => Err(Refusal::Fenced { by }),
        }
    }

    fn writer(&self) -> Writer {
        Writer { attempt: self.attempt, session: self.session }
    }

    /// Suspends for `waits`. `unread` says whether a signal of that name is unread; `now` is
    /// read after the row's lock.
    pub fn suspend(
        &self,
        by: Writer,
        waits: Waits,
        unread: impl Fn(&Name) -> bool,
        now: Micros,
    ) -> Result<Suspend, Refusal> {
        match &self.state {
            State::Running { .. } if self.writer() == by => {}
            // The same attempt asks for the same again: its answer got lost. Whatever else
            // it asks for comes from before a reconnect and is not what the row says.
            State::Suspended { waits: stored, .. } if self.attempt == by.attempt && *stored == waits => {
                return Ok(Suspend::Again);
            }
            State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Ended { .. } => return Err(Refusal::Fenced { by }),
        }
        if matches!(self.cancel, Cancel::Asked { .. }) || self.goes_on(&waits, unread, now) {
            return Ok(Suspend::Continue);
        }
        // A resume is waited for with a wake that the flag holds: whoever clears the flag
        // need not know the state.
        let wake_at = if waits.for_resume() { Some(now) } else { waits.earliest_due() };
        Ok(Suspend::Suspended(Self {
            state: State::Suspended { waits, wake_at },
            crashes: 0,
            ..self.clone()
        }))
    }

    /// Whether what is waited for is there already. A paused instance waits for its resume
    /// alone: it could use nothing else.
    fn goes_on(&self, waits: &Waits, unread: impl Fn(&Name) -> bool, now: Micros) -> bool {
        if waits.for_resume() {
            return !self.paused;
        }
        waits.for_retry() || waits.signals().any(unread) || waits.earliest_due().is_some_and(|due| due <= now)
    }

    /// The workflow feels its cancellation; its clean-up may then suspend like any other.
    /// An `Ok` that equals the row means there is nothing to write.
    pub fn feel_cancel(&self, by: Writer) -> Result<Self, Refusal> {
        self.admit(by)?;
        let cancel = match self.cancel {
            Cancel::Asked { .. } | Cancel::Felt => Cancel::Felt,
            Cancel::No => Cancel::No,
        };
        Ok(Self { cancel, ..self.clone() })
    }

    /// The workflow returned: `outcome` is Completed or Failed, and CANCELLED is written
    /// instead if the workflow has felt a cancel.
    pub fn end(&self, by: Writer, outcome: Outcome, now: Micros) -> Result<End, Refusal> {
        let outcome = if self.cancel == Cancel::Felt { Outcome::Cancelled } else { outcome };
        match &self.state {
            State::Running { .. } if self.writer() == by => {
                Ok(End::Ended(self.ended(outcome, EndedBy::Instance, now)))
            }
            State::Ended { outcome: stored, by: EndedBy::Instance, .. }
                if self.attempt == by.attempt && *stored == outcome =>
            {
                Ok(End::Again)
            }
            State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Ended { .. } => Err(Refusal::Fenced { by }),
        }
    }

    /// Attempt `of` is over without having said so. None: accounting only, nothing to write.
    pub fn exited(&self, of: Attempt, exit: Exit, policy: &CrashPolicy, now: Micros) -> Option<Self> {
        if of != self.attempt || self.node().is_none() {
            return None;
        }
        match exit {
            Exit::GivenBack { retry_in } => self.is_open().then(|| self.requeued(now + retry_in)),
            Exit::Crashed { newest_checkpoint } => {
                let progressed = newest_checkpoint == of;
                let crashes = if progressed { 1 } else { self.crashes.saturating_add(1) };
                let counted = Self { crashes, ..self.clone() };
                Some(if crashes <= policy.limit {
                    counted.requeued(now + policy.pause(crashes))
                } else if self.cancel == Cancel::No {
                    counted.ended(Outcome::Failed, EndedBy::Node, now)
                } else {
                    counted.ended(Outcome::Cancelled, EndedBy::Node, now)
                })
            }
        }
    }

    /// `node`, which knows no process of this attempt, or whose lease is lost, gives it back
    /// to the wake queue; not the instance's fault. None: not that node's, nothing to write.
    /// `newest_checkpoint` is the attempt that wrote it: what was saved ends the row of crashes
    /// that came before, whether this attempt then crashed or was lost.
    pub fn settle(&self, node: &NodeId, newest_checkpoint: Attempt, now: Micros) -> Option<Self> {
        let crashes = if newest_checkpoint == self.attempt { 0 } else { self.crashes };
        (self.node() == Some(node)).then(|| Self { crashes, ..self.requeued(now) })
    }

    /// Back to the wake queue: the attempt is over and its claim closed.
    fn requeued(&self, wake_at: Micros) -> Self {
        let state = match &self.state {
            State::Pending { .. } | State::Launching { from: Rest::Pending, .. } => {
                State::Pending { wake_at }
            }
            // Whatever it waited for, it now waits for its retry: a signal must not shorten
            // the backoff, and the old waits are looked at again by the code itself.
            State::Launching { from: Rest::Suspended(_), .. }
            | State::Running { .. }
            | State::Suspended { .. } => State::Suspended { waits: Waits::retry(), wake_at: Some(wake_at) },
            State::Ended { .. } => return self.clone(),
        };
        Self { state, ..self.clone() }
    }

    /// A signal of this name was stored. An `Ok` that equals the row means there is nothing
    /// to write: registration or the push brings it.
    pub fn signal(&self, name: &Name, now: Micros) -> Result<Self, Refusal> {
        self.not_ended()?;
        match &self.state {
            State::Suspended { waits, wake_at } if waits.for_signal(name) => {
                Ok(self.woken(waits, *wake_at, now))
            }
            State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Ended { .. } => Ok(self.clone()),
        }
    }

    /// Suspended for `waits`, and due now at the latest.
    fn woken(&self, waits: &Waits, wake_at: Option<Micros>, now: Micros) -> Self {
        let wake_at = Some(wake_at.map_or(now, |due| due.min(now)));
        Self { state: State::Suspended { waits: waits.clone(), wake_at }, ..self.clone() }
    }

    /// Holds every wake until a resume.
    pub fn pause(&self) -> Result<Self, Refusal> {
        self.not_ended()?;
        match self.cancel {
            Cancel::No => Ok(Self { paused: true, ..self.clone() }),
            Cancel::Asked { .. } | Cancel::Felt => Err(Refusal::BeingCancelled),
        }
    }

    /// Ends a pause. The wake was never touched: it is simply not held any more.
    pub fn resume(&self) -> Result<Self, Refusal> {
        self.not_ended()?;
        Ok(Self { paused: false, ..self.clone() })
    }

    /// Asks the workflow to clean up and end. What never ran ends at once.
    pub fn cancel(&self, now: Micros) -> Result<Self, Refusal> {
        self.not_ended()?;
        if self.status() == Status::Pending {
            return Ok(self.ended(Outcome::Cancelled, EndedBy::Controller, now));
        }
        let cancel = match self.cancel {
            Cancel::No => Cancel::Asked { since: now },
            asked => asked,
        };
        let unpaused = Self { cancel, paused: false, ..self.clone() };
        Ok(match &self.state {
            // Felt already: the clean-up's own sleeps are not cut short by a second cancel.
            State::Suspended { waits, wake_at } if self.cancel != Cancel::Felt => {
                unpaused.woken(waits, *wake_at, now)
            }
            State::Suspended { .. }
            | State::Pending { .. }
            | State::Launching { .. }
            | State::Running { .. }
            | State::Ended { .. } => unpaused,
        })
    }

    /// A running process had its grace and did not feel the cancel. None: nothing to write.
    pub fn cancel_overdue(&self, of: Attempt, grace: Duration, now: Micros) -> Option<Self> {
        match (&self.state, self.cancel) {
            (State::Running { .. }, Cancel::Asked { since })
                if self.attempt == of && since + grace <= now =>
            {
                Some(self.ended(Outcome::Cancelled, EndedBy::Node, now))
            }
            (
                State::Pending { .. }
                | State::Launching { .. }
                | State::Running { .. }
                | State::Suspended { .. }
                | State::Ended { .. },
                Cancel::No | Cancel::Asked { .. } | Cancel::Felt,
            ) => None,
        }
    }

    /// Ends it at once, without asking the workflow.
    pub fn stop(&self, now: Micros) -> Result<Self, Refusal> {
        self.not_ended()?;
        Ok(self.ended(Outcome::Cancelled, EndedBy::Controller, now))
    }

    /// Its time limit passed. None: it has none, it is not over, or it has ended.
    pub fn expire(&self, now: Micros) -> Option<Self> {
        let over = self.deadline_at.is_some_and(|deadline| deadline <= now);
        (over && self.outcome().is_none()).then(|| self.ended(Outcome::Failed, EndedBy::Deadline, now))
    }

    fn ended(&self, outcome: Outcome, by: EndedBy, at: Micros) -> Self {
        Self { state: State::Ended { outcome, at, by }, paused: false, ..self.clone() }
    }

    fn not_ended(&self) -> Result<(), Refusal> {
        match self.outcome() {
            Some(outcome) => Err(Refusal::Ended { outcome }),
            None => Ok(()),
        }
    }
}
