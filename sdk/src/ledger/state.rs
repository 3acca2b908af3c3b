//! The ledger's content, and what answers make of it. No waiting and no locks here.

use std::{
    collections::{BTreeMap, HashMap},
    panic::Location,
    time::Duration,
};

use dormouse_proto::{
    code::Code,
    instance::{self, checkpoint, client_frame, instance_event, server_frame, suspend_outcome},
};
use tokio::time::Instant;

use super::{
    Ending, Fate, Reply, Request,
    inbox::{Cancelled, Inbox},
    shelf::Shelf,
};
use crate::{
    error::{Failure, Result},
    fault::{self, Point},
    operation::{Operation, RESULT, Stored, Value},
};

/// Whether operations may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// A suspension is under way.
    Frozen,
    /// The ending is under way, or the process is about to end.
    Closing,
    /// The driver is gone. Only in tests: a real process ends with it.
    Gone,
}

/// The database's clock, as far as this process can know it: never ahead of it, because the sample
/// was taken before the answer that brought it arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    sample: i64,
    at: Instant,
}

impl Clock {
    pub(super) fn learn(&mut self, sample: i64) {
        if sample > 0 {
            *self = Self { sample, at: Instant::now() };
        }
    }

    pub(super) fn now(&self) -> i64 {
        let elapsed = i64::try_from(self.at.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.sample.saturating_add(elapsed)
    }

    /// How long until `due_at`; zero if it passed.
    pub(super) fn until(&self, due_at: i64) -> Duration {
        Duration::from_micros(u64::try_from(due_at.saturating_sub(self.now())).unwrap_or(0))
    }
}

/// A wait that the workflow stands at.
#[derive(Debug)]
pub(super) struct OpenWait {
    pub(super) operation: Operation,
    pub(super) due_at: Option<i64>,
    pub(super) signal: Option<Box<str>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// What was stored before this launch.
    pub(super) shelf: Shelf,
    /// What core answered in it.
    pub(super) answers: HashMap<Operation, Vec<(u32, Stored)>>,
    pub(super) used: HashMap<Operation, &'static Location<'static>>,
    pub(super) clock: Clock,
    pub(super) inbox: Inbox,
    pub(super) inbox_at: Instant,
    pub(super) phase: Phase,
    pub(super) waits: BTreeMap<u64, OpenWait>,
    pub(super) next_wait: u64,
    /// Steps that run, and other operations that are not waits.
    pub(super) busy: usize,
    /// Operations that a pause holds back.
    pub(super) held: usize,
    /// Requests without an answer.
    pub(super) in_flight: usize,
    /// A request to feel the cancellation is under way.
    pub(super) feeling: bool,
    /// The workflow's future is being polled right now.
    pub(super) polling: bool,
    /// When the workflow last did something.
    pub(super) active_at: Instant,
    /// Not suspended again before.
    pub(super) suspend_after: Option<Instant>,
    pub(super) progress: Option<instance::Progress>,
    pub(super) progress_at: Option<Instant>,
    pub(super) heartbeat_at: Option<Instant>,
    pub(super) ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    Feel,
    /// A pause holds it back.
    Held,
    Wait,
}

pub(super) enum Absorbed {
    Reply(Reply),
    Fate(Fate),
}

impl State {
    /// `now` is the database's clock.
    pub(super) fn new(now: i64) -> Self {
        let at = Instant::now();
        Self {
            shelf: Shelf::default(),
            answers: HashMap::new(),
            used: HashMap::new(),
            clock: Clock { sample: now, at },
            inbox: Inbox::default(),
            inbox_at: at,
            phase: Phase::Open,
            waits: BTreeMap::new(),
            next_wait: 0,
            busy: 0,
            held: 0,
            in_flight: 0,
            feeling: false,
            polling: false,
            active_at: at,
            suspend_after: None,
            progress: None,
            progress_at: None,
            heartbeat_at: None,
            ending: None,
        }
    }

    /// Takes what is stored there.
    pub(super) fn take(&mut self, operation: &Operation, slot: u32) -> Option<Stored> {
        self.take_answer(operation, slot).or_else(|| self.shelf.take(operation, slot))
    }

    fn take_answer(&mut self, operation: &Operation, slot: u32) -> Option<Stored> {
        let slots = self.answers.get_mut(operation)?;
        let at = slots.iter().position(|(stored, _)| *stored == slot)?;
        let (_, stored) = slots.swap_remove(at);
        if slots.is_empty() {
            self.answers.remove(operation);
        }
        Some(stored)
    }

    /// Whether the operation's result is here.
    pub(super) fn has_result(&self, operation: &Operation) -> bool {
        let answered = |slots: &Vec<(u32, Stored)>| slots.iter().any(|(slot, _)| *slot == RESULT);
        self.answers.get(operation).is_some_and(answered) || self.shelf.has(operation, RESULT)
    }

    pub(super) fn store(&mut self, name: instance::OperationName, stored: Stored) {
        let operation = Operation { name: name.name.into(), key: name.key.into() };
        let slots = self.answers.entry(operation).or_default();
        // An answer that was repeated says the same again: checkpoints do not change.
        if !slots.iter().any(|(slot, _)| *slot == name.slot) {
            slots.push((name.slot, stored));
        }
    }

    pub(super) fn news(&mut self, inbox: Option<instance::Inbox>) {
        if let Some(inbox) = inbox {
            self.inbox.merge(inbox);
            self.inbox_at = Instant::now();
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self.phase {
            Phase::Frozen | Phase::Closing | Phase::Gone => Verdict::Wait,
            Phase::Open if self.ending.is_some() || self.feeling => Verdict::Wait,
            Phase::Open if self.inbox.cancelled == Cancelled::Asked => Verdict::Feel,
            Phase::Open if self.inbox.paused => Verdict::Held,
            Phase::Open => Verdict::Go,
        }
    }

    /// Whether core may hear this now: beside a suspension or an ending nothing else is said.
    pub(super) fn may_send(&self, operation: &client_frame::Operation) -> bool {
        match self.phase {
            Phase::Open => true,
            Phase::Frozen => matches!(operation, client_frame::Operation::Suspend(_)),
            Phase::Closing => is_ending(operation),
            Phase::Gone => false,
        }
    }

    /// The verdict, and its consequence in the same breath: nothing is frozen in between.
    pub(super) fn admit(&mut self) -> Verdict {
        let verdict = self.verdict();
        if verdict == Verdict::Go {
            self.busy += 1;
        }
        verdict
    }

    /// Whether the keeper has something to decide.
    pub(super) fn is_watched(&self) -> bool {
        !self.waits.is_empty() || self.held > 0 || self.ending.is_some()
    }

    /// Core refused the request: what it had reserved is free again.
    pub(super) fn refused(&mut self, request: &Request) {
        if let Some(number) = request.offered {
            self.inbox.withdraw(number);
        }
        match &request.operation {
            client_frame::Operation::Checkpoint(checkpoint) if is_feeling(checkpoint) => self.feeling = false,
            client_frame::Operation::Suspend(_) => self.thaw(),
            _ => {}
        }
    }

    pub(super) fn thaw(&mut self) {
        if self.phase == Phase::Frozen {
            self.phase = Phase::Open;
        }
        self.active_at = Instant::now();
    }

    pub(super) fn absorb(&mut self, request: &Request, outcome: server_frame::Outcome) -> Result<Absorbed> {
        use server_frame::Outcome;
        let reply = match (&request.operation, outcome) {
            (client_frame::Operation::Checkpoint(asked), Outcome::Checkpoint(answer)) => {
                self.checkpoint_stored(asked, request.offered, answer)?
            }
            (client_frame::Operation::GetCheckpoint(_), Outcome::Found(answer)) => {
                Reply::Found(answer.stored.and_then(Stored::of_wire).map(|(_, stored)| stored))
            }
            (client_frame::Operation::Suspend(_), Outcome::Suspend(answer)) => {
                self.clock.learn(answer.now);
                if answer.kind == suspend_outcome::Kind::Suspended as i32 {
                    fault::pass(Point::AfterSuspend);
                    return Ok(Absorbed::Fate(Fate::Suspended));
                }
                self.news(answer.inbox);
                self.thaw();
                Reply::Done
            }
            (asked, Outcome::Event(_)) if is_ending(asked) => {
                fault::pass(Point::AfterComplete);
                return Ok(Absorbed::Fate(Fate::Ended));
            }
            (client_frame::Operation::Event(_), Outcome::Event(_)) => Reply::Done,
            (client_frame::Operation::PollSignals(_), Outcome::Inbox(inbox)) => {
                self.news(Some(inbox));
                Reply::Done
            }
            (_, outcome) => {
                self.refused(request);
                let message = format!("core answered with something else: {outcome:?}");
                return Err(Failure::new(Code::Internal.as_str(), message));
            }
        };
        Ok(Absorbed::Reply(reply))
    }

    pub(super) fn checkpoint_stored(
        &mut self,
        asked: &instance::Checkpoint,
        offered: Option<u64>,
        answer: instance::CheckpointStored,
    ) -> Result<Reply> {
        self.clock.learn(answer.now);
        if let Some(number) = offered {
            self.inbox.taken(number);
        }
        let feeling = is_feeling(asked);
        if feeling {
            self.feeling = false;
        }
        let Some(stored) = answer.stored else {
            if feeling {
                // Nobody has asked for a cancel, says core; what said otherwise here is not worth asking again.
                self.inbox.cancelled = Cancelled::No;
            }
            return Ok(Reply::Saved);
        };
        fault::pass(Point::AfterCheckpoint);
        if !answer.existed && matches!(asked.value, Some(checkpoint::Value::Payload(_))) {
            // Whoever sent these bytes has them.
            return Ok(Reply::Saved);
        }
        let Some((name, stored)) = Stored::of_wire(stored) else {
            let message = "core answered with a checkpoint that this release cannot read";
            return Err(Failure::new(Code::Internal.as_str(), message));
        };
        if feeling && matches!(stored.value, Value::Cancelled) {
            self.inbox.cancelled = Cancelled::Felt;
        }
        self.store(name, stored);
        Ok(Reply::Saved)
    }
}

fn is_ending(operation: &client_frame::Operation) -> bool {
    let client_frame::Operation::Event(event) = operation else {
        return false;
    };
    matches!(event.event, Some(instance_event::Event::Completed(_) | instance_event::Event::Failed(_)))
}

/// Whether the answer changes nothing for other operations.
pub(super) fn is_ordinary(request: &Request) -> bool {
    match &request.operation {
        client_frame::Operation::Checkpoint(checkpoint) => !matches!(
            checkpoint.value,
            Some(checkpoint::Value::TakeSignal(_) | checkpoint::Value::FeelCancel(_))
        ),
        client_frame::Operation::Event(_) | client_frame::Operation::GetCheckpoint(_) => true,
        _ => false,
    }
}

pub(super) fn is_feeling(checkpoint: &instance::Checkpoint) -> bool {
    matches!(checkpoint.value, Some(checkpoint::Value::FeelCancel(_)))
}
