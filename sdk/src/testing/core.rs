//! Core and environment of one instance, in memory, with a clock that can be moved on.
//!
//! It answers the same requests with the same rules as the real ones (first writer wins, a signal is
//! consumed with the checkpoint that takes it, a suspension is answered with `continue` when there is
//! something already), so that what a test shows holds there. What concerns several writers is left
//! out: here is only one.

use std::{collections::BTreeMap, time::Duration};

use dormouse_proto::instance::{
    self, Cancel, checkpoint, client_frame::Operation, instance_event::Event, server_frame::Outcome,
    stored_checkpoint, suspend_outcome,
};
use prost::Message as _;
use tokio::time::Instant;

/// Where the clock of every test starts, in microseconds since 1970.
const EPOCH: i64 = 1_800_000_000_000_000;

/// What a test does to the instance from outside.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Signal { name: String, payload: instance::Payload },
    Cancel,
    Pause,
    Resume,
}

/// How the instance ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    Completed(instance::Payload),
    Failed(instance::Failure),
}

/// What becomes of a request.
pub(crate) enum Answer {
    Outcome(Box<Outcome>),
    /// The process crashes here, before it hears anything.
    Crash,
    /// Nobody waits for an answer.
    Nothing,
}

impl Answer {
    fn of(outcome: Outcome) -> Self {
        Self::Outcome(Box::new(outcome))
    }
}

/// A simulated crash at the n-th checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Crash {
    /// It was about to be stored.
    Before(usize),
    /// It is stored, the workflow does not know.
    After(usize),
}

type Key = (String, String, u32);

#[derive(Debug)]
struct Sent {
    name: String,
    payload: instance::Payload,
    consumed: bool,
}

#[derive(Debug)]
pub(crate) struct Core {
    instance_id: String,
    workflow: String,
    input: instance::Payload,
    checkpoints: BTreeMap<Key, instance::StoredCheckpoint>,
    /// Names in the order in which they were stored.
    pub(crate) saved: Vec<Key>,
    signals: Vec<Sent>,
    paused: bool,
    cancel: Cancel,
    pub(crate) attempt: u32,
    wake_reason: &'static str,
    waits: Vec<instance::Wait>,
    /// What is still to be done from outside, the earliest first.
    plan: Vec<(i64, Action)>,
    crashes: Vec<Crash>,
    pub(crate) events: Vec<instance::CustomEvent>,
    pub(crate) progress: Option<instance::Progress>,
    pub(crate) ended: Option<Ended>,
    clock: Instant,
    skipped: Duration,
}

impl Core {
    pub(crate) fn new(
        workflow: &str,
        input: instance::Payload,
        plan: &[(Duration, Action)],
        crashes: Vec<Crash>,
    ) -> Self {
        let mut plan: Vec<_> =
            plan.iter().map(|(after, action)| (EPOCH + micros(*after), action.clone())).collect();
        plan.sort_by_key(|(at, _)| *at);
        Self {
            instance_id: "test".to_owned(),
            workflow: workflow.to_owned(),
            input,
            checkpoints: BTreeMap::new(),
            saved: Vec::new(),
            signals: Vec::new(),
            paused: false,
            cancel: Cancel::No,
            attempt: 0,
            wake_reason: "start",
            waits: Vec::new(),
            plan,
            crashes,
            events: Vec::new(),
            progress: None,
            ended: None,
            clock: Instant::now(),
            skipped: Duration::ZERO,
        }
    }

    fn now(&self) -> i64 {
        EPOCH + micros(self.elapsed())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.elapsed() + self.skipped
    }

    /// The next launch.
    pub(crate) fn launch(&mut self) -> instance::Registered {
        self.attempt += 1;
        self.waits.clear();
        self.registered()
    }

    /// What the attempt gets to hear when it registers.
    pub(crate) fn registered(&self) -> instance::Registered {
        instance::Registered {
            session: 1,
            instance_id: self.instance_id.clone(),
            attempt: self.attempt,
            workflow: self.workflow.clone(),
            input: Some(self.input.clone()),
            wake_reason: self.wake_reason.to_owned(),
            checkpoints: self.checkpoints.values().map(|stored| stored.encode_to_vec().into()).collect(),
            next_cursor: 0,
            inbox: Some(self.inbox()),
            now: self.now(),
            started_at: EPOCH,
            streamed: false,
        }
    }

    pub(crate) fn inbox(&self) -> instance::Inbox {
        let unread = (1..).zip(&self.signals).filter(|(_, signal)| !signal.consumed);
        instance::Inbox {
            paused: self.paused,
            cancel: self.cancel.into(),
            unread: unread
                .map(|(number, signal)| instance::UnreadSignal { number, name: signal.name.clone() })
                .collect(),
        }
    }

    /// How long until the next thing is done from outside.
    pub(crate) fn next_action_in(&self) -> Option<Duration> {
        let (at, _) = self.plan.first()?;
        Some(Duration::from_micros(u64::try_from(at - self.now()).unwrap_or(0)))
    }

    /// Does what is due; whether there was anything.
    pub(crate) fn act(&mut self) -> bool {
        let now = self.now();
        let due = self.plan.iter().take_while(|(at, _)| *at <= now).count();
        let planned: Vec<_> = self.plan.drain(..due).collect();
        for (_, action) in planned {
            self.act_now(action);
        }
        due > 0
    }

    /// Does it at once.
    pub(crate) fn act_now(&mut self, action: Action) {
        match action {
            Action::Signal { name, payload } => {
                self.signals.push(Sent { name, payload, consumed: false });
            }
            Action::Cancel => {
                self.cancel = self.cancel.max(Cancel::Asked);
                self.paused = false;
            }
            Action::Pause => self.paused = self.cancel == Cancel::No,
            Action::Resume => self.paused = false,
        }
    }

    /// Moves the clock on until the suspended instance wakes. `Err`: it never will.
    pub(crate) fn sleep_until_wake(&mut self) -> Result<(), String> {
        loop {
            self.act();
            if let Some(reason) = self.wake() {
                self.wake_reason = reason;
                return Ok(());
            }
            let now = self.now();
            let due_at = self.waits.iter().filter_map(|wait| wait.due_at).min().filter(|_| !self.paused);
            let action_at = self.plan.first().map(|(at, _)| *at);
            let Some(next) = due_at.into_iter().chain(action_at).min() else {
                return Err(self.describe_waits());
            };
            self.skipped += Duration::from_micros(u64::try_from(next - now).unwrap_or(0));
        }
    }

    fn wake(&self) -> Option<&'static str> {
        if self.cancel == Cancel::Asked {
            return Some("cancel");
        }
        if self.paused {
            return None;
        }
        if self.waits.iter().any(|wait| wait.resume) {
            return Some("resume");
        }
        if self.waits.iter().any(|wait| self.is_signalled(wait)) {
            return Some("signal");
        }
        let now = self.now();
        self.waits.iter().any(|wait| wait.due_at.is_some_and(|at| at <= now)).then_some("due")
    }

    fn is_signalled(&self, wait: &instance::Wait) -> bool {
        wait.signal.as_ref().is_some_and(|name| self.unread(name).is_some())
    }

    fn unread(&self, name: &str) -> Option<usize> {
        self.signals.iter().position(|signal| signal.name == name && !signal.consumed)
    }

    fn describe_waits(&self) -> String {
        let waits: Vec<_> = self
            .waits
            .iter()
            .map(|wait| match &wait.signal {
                Some(signal) => format!("the signal {signal:?}"),
                None if wait.resume => "a resume".to_owned(),
                None => format!("the end of {:?}", wait.name),
            })
            .collect();
        waits.join(" and ")
    }

    /// The process crashed; the next launch is at once.
    pub(crate) fn crashed(&mut self) {
        self.wake_reason = "retry";
    }

    pub(crate) fn handle(&mut self, operation: &Operation) -> Answer {
        let outcome = match operation {
            Operation::Checkpoint(checkpoint) => return self.checkpoint(checkpoint),
            Operation::GetCheckpoint(get) => {
                let stored =
                    get.operation.as_ref().and_then(|name| self.checkpoints.get(&key(name))).cloned();
                Outcome::Found(instance::CheckpointFound { stored })
            }
            Operation::Suspend(suspend) => self.suspend(suspend),
            Operation::Event(event) => match &event.event {
                Some(Event::Heartbeat(_)) | None => return Answer::Nothing,
                Some(event) => self.event(event.clone()),
            },
            Operation::PollSignals(_) => Outcome::Inbox(self.inbox()),
            other => Outcome::Error(instance::Error {
                code: "UNIMPLEMENTED".to_owned(),
                message: format!("the test kit does not answer {other:?}"),
                retryable: false,
            }),
        };
        Answer::of(outcome)
    }

    fn event(&mut self, event: Event) -> Outcome {
        match event {
            Event::Progress(progress) => self.progress = Some(progress),
            Event::Custom(custom) => self.events.push(custom),
            Event::Completed(completed) => {
                self.ended = Some(Ended::Completed(completed.output.unwrap_or_default()));
            }
            Event::Failed(failed) => self.ended = Some(Ended::Failed(failed.failure.unwrap_or_default())),
            Event::Heartbeat(_) => {}
        }
        Outcome::Event(instance::EventStored {})
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel == Cancel::Felt
    }

    fn suspend(&mut self, suspend: &instance::Suspend) -> Outcome {
        self.waits.clone_from(&suspend.waits);
        let for_resume = suspend.waits.iter().any(|wait| wait.resume);
        // As the state machine has it: a pause is waited out only by who asks for its end.
        let goes_on = if for_resume { !self.paused } else { self.wake().is_some() };
        let kind = if goes_on || self.cancel == Cancel::Asked {
            suspend_outcome::Kind::Continue
        } else {
            suspend_outcome::Kind::Suspended
        };
        let inbox = Some(self.inbox());
        Outcome::Suspend(instance::SuspendOutcome { kind: kind.into(), inbox, now: self.now() })
    }

    fn checkpoint(&mut self, asked: &instance::Checkpoint) -> Answer {
        let Some(name) = &asked.operation else {
            return Answer::Nothing;
        };
        let now = self.now();
        if let Some(stored) = self.checkpoints.get(&key(name)) {
            let stored = Some(stored.clone());
            return Answer::of(Outcome::Checkpoint(instance::CheckpointStored {
                stored,
                existed: true,
                now,
            }));
        }
        let number = self.saved.len() + 1;
        if self.crashes_here(Crash::Before(number)) {
            return Answer::Crash;
        }
        let Some(value) = self.value(asked.value.as_ref(), now) else {
            // No signal of that name is unread.
            let nothing = instance::CheckpointStored { stored: None, existed: false, now };
            return Answer::of(Outcome::Checkpoint(nothing));
        };
        let stored = instance::StoredCheckpoint {
            operation: Some(name.clone()),
            kind: asked.kind.clone(),
            attempt: self.attempt,
            stored_at: now,
            note: asked.note.clone(),
            value: Some(value),
        };
        self.checkpoints.insert(key(name), stored.clone());
        self.saved.push(key(name));
        if self.crashes_here(Crash::After(number)) {
            return Answer::Crash;
        }
        let stored = instance::CheckpointStored { stored: Some(stored), existed: false, now };
        Answer::of(Outcome::Checkpoint(stored))
    }

    /// A crash happens once: the next launch gets past it.
    fn crashes_here(&mut self, crash: Crash) -> bool {
        let at = self.crashes.iter().position(|planned| *planned == crash);
        at.map(|at| self.crashes.remove(at)).is_some()
    }

    fn value(&mut self, asked: Option<&checkpoint::Value>, now: i64) -> Option<stored_checkpoint::Value> {
        Some(match asked? {
            checkpoint::Value::Payload(payload) => stored_checkpoint::Value::Payload(payload.clone()),
            checkpoint::Value::DueInMicros(micros) => {
                stored_checkpoint::Value::DueAt(now.saturating_add(*micros))
            }
            checkpoint::Value::DueAt(at) => stored_checkpoint::Value::DueAt(*at),
            checkpoint::Value::TakeSignal(name) => {
                let at = self.unread(name)?;
                self.signals[at].consumed = true;
                stored_checkpoint::Value::Payload(self.signals[at].payload.clone())
            }
            checkpoint::Value::FeelCancel(_) => {
                self.cancel = Cancel::Felt;
                stored_checkpoint::Value::Cancelled(true)
            }
        })
    }
}

fn key(name: &instance::OperationName) -> Key {
    (name.name.clone(), name.key.clone(), name.slot)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}
