//! What an instance leaves behind: checkpoints, events, attempts.

use std::time::Duration;

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, Payload, Timestamp, client::unexpected, instances::micros};

/// One durable piece of state of an instance.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The durable operation's name.
    pub name: String,
    /// Its key; empty where the name does not repeat.
    pub key: String,
    /// 0: the operation's result; above: a due time that belongs to it.
    pub slot: u32,
    /// `step`, `checkpoint`, `sleep`, `signal`, `due`, `retry` or `cancelled`.
    pub kind: String,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// When.
    pub stored_at: Option<Timestamp>,
    /// What; large ones may be left out of lists.
    pub payload: Option<Payload>,
    /// For a due time: when.
    pub due_at: Option<Timestamp>,
    /// Why, for people.
    pub note: String,
}

/// A page of checkpoints.
#[derive(Clone, Debug)]
pub struct CheckpointPage {
    /// In the order asked for.
    pub checkpoints: Vec<Checkpoint>,
    /// Where the next page begins; `None` at the end.
    pub next_cursor: Option<u64>,
}

/// An entry of an instance's timeline.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number, growing.
    pub number: u64,
    /// When.
    pub at: Option<Timestamp>,
    /// In which attempt; 0: before the first.
    pub attempt: u32,
    /// `started`, `launched`, `registered`, `suspended`, `crashed` and so on.
    pub kind: String,
    /// A sentence.
    pub message: String,
    /// What came with it.
    pub payload: Option<Payload>,
}

/// A page of events.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// Oldest first.
    pub events: Vec<Event>,
    /// What to ask for next: the number after which to go on.
    pub next: u64,
}

/// One launch of an instance's process.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// 1, 2, 3 …
    pub attempt: u32,
    /// Where.
    pub node: String,
    /// When a node claimed it.
    pub claimed_at: Option<Timestamp>,
    /// When its process registered.
    pub registered_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// How the process ended; `None` while it lives.
    pub exit: Option<String>,
    /// Why it was launched.
    pub wake_reason: String,
    /// The process, while it lives.
    pub pid: Option<u32>,
}

impl Client {
    /// A page of an instance's checkpoints. `limit` 0: the services' own (1,000).
    pub async fn checkpoints(
        &self,
        id: &str,
        cursor: Option<u64>,
        limit: u32,
        newest_first: bool,
    ) -> Result<CheckpointPage, Error> {
        let request = Operation::Checkpoints(wire::ListCheckpoints {
            id: id.to_owned(),
            cursor: cursor.unwrap_or(0),
            limit,
            newest_first,
        });
        self.call(request, |outcome| match outcome {
            Outcome::Checkpoints(page) => Ok(CheckpointPage {
                checkpoints: page.checkpoints.into_iter().map(Checkpoint::from_wire).collect(),
                next_cursor: (page.next_cursor != 0).then_some(page.next_cursor),
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Events after the given number, oldest first; waits up to `wait` (at most 30 s) if
    /// there is none yet. `limit` 0: the services' own (1,000).
    pub async fn events(&self, id: &str, after: u64, limit: u32, wait: Duration) -> Result<EventPage, Error> {
        let request = Operation::Events(wire::ListEvents {
            id: id.to_owned(),
            after,
            limit,
            wait_micros: micros(wait),
        });
        self.call(request, |outcome| match outcome {
            Outcome::Events(page) => Ok(EventPage {
                events: page.events.into_iter().map(Event::from_wire).collect(),
                next: page.next,
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Every launch of an instance, oldest first.
    pub async fn attempts(&self, id: &str) -> Result<Vec<Attempt>, Error> {
        self.call(Operation::Attempts(wire::ListAttempts { id: id.to_owned() }), |outcome| match outcome {
            Outcome::Attempts(list) => Ok(list.attempts.into_iter().map(Attempt::from_wire).collect()),
            other => Err(unexpected(&other)),
        })
        .await
    }
}

impl Checkpoint {
    fn from_wire(stored: wire::StoredCheckpoint) -> Self {
        Self {
            name: stored.name,
            key: stored.key,
            slot: stored.slot,
            kind: stored.kind,
            attempt: stored.attempt,
            stored_at: Timestamp::optional(stored.stored_at),
            payload: stored.payload.map(Payload::from_wire),
            due_at: Timestamp::optional(stored.due_at),
            note: stored.note,
        }
    }
}

impl Event {
    fn from_wire(event: wire::Event) -> Self {
        Self {
            number: event.number,
            at: Timestamp::optional(event.at),
            attempt: event.attempt,
            kind: event.kind,
            message: event.message,
            payload: event.payload.map(Payload::from_wire),
        }
    }
}

impl Attempt {
    fn from_wire(attempt: wire::Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            node: attempt.node,
            claimed_at: Timestamp::optional(attempt.claimed_at),
            registered_at: Timestamp::optional(attempt.registered_at),
            ended_at: Timestamp::optional(attempt.ended_at),
            exit: (!attempt.exit.is_empty()).then_some(attempt.exit),
            wake_reason: attempt.wake_reason,
            pid: (attempt.pid != 0).then_some(attempt.pid),
        }
    }
}
