//! Waiting for an ending and watching changes: long polls, repeated. A lost connection, and
//! services that restart meanwhile, cost nothing but a repeat.

use std::time::Duration;

use dormouse_proto::management::{self as wire, client_frame::Operation};
use tokio::time::Instant;

use crate::{
    Client, Error, Instance,
    instances::{micros, read_instance},
};

/// The services answer a long poll after at most this time.
const POLL: Duration = Duration::from_secs(30);

/// How a wait ended.
#[derive(Clone, Debug)]
pub enum WaitOutcome {
    /// The instance has ended: its status is final.
    Ended(Instance),
    /// The time is over; this is the instance as it was last seen.
    TimedOut(Instance),
}

impl Client {
    /// Waits until the instance has ended, at most `limit`.
    ///
    /// A limit of zero looks once. Dropping the future ends the wait and nothing else.
    pub async fn wait(&self, id: &str, limit: Option<Duration>) -> Result<WaitOutcome, Error> {
        // A limit beyond what a clock can hold is none.
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut id = id.to_owned();
        loop {
            let left = until.map_or(POLL, |until| until.saturating_duration_since(Instant::now()).min(POLL));
            let instance = self.poll(&id, left, 0).await?;
            if instance.status.ended() {
                return Ok(WaitOutcome::Ended(instance));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(WaitOutcome::TimedOut(instance));
            }
            // The prefix may stop being unique while we wait.
            id = instance.id;
        }
    }

    /// Watches an instance: first as it is, then after each change, until it has ended.
    #[must_use]
    pub fn watch(&self, id: &str) -> Watch {
        Watch { client: self.clone(), id: id.to_owned(), seen: None, ended: false }
    }

    async fn poll(&self, id: &str, wait: Duration, seen: u64) -> Result<Instance, Error> {
        let request = Operation::Wait(wire::WaitInstance {
            id: id.to_owned(),
            for_micros: micros(wait),
            seen_version: seen,
        });
        self.call(request, read_instance).await
    }
}

/// The changes of one instance, made by [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    id: String,
    seen: Option<u64>,
    ended: bool,
}

impl Watch {
    /// The next state; `None` after the one that has ended. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Option<Instance>, Error> {
        if self.ended {
            return Ok(None);
        }
        let instance = match self.seen {
            None => self.client.instance(&self.id).await?,
            Some(seen) => loop {
                let instance = self.client.poll(&self.id, POLL, seen).await?;
                if instance.version > seen || instance.status.ended() {
                    break instance;
                }
            },
        };
        self.id.clone_from(&instance.id);
        self.seen = Some(instance.version.max(1));
        self.ended = instance.status.ended();
        Ok(Some(instance))
    }
}
