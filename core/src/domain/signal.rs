//! Durable messages to an instance.

use super::{
    id::{Attempt, Name},
    payload::Payload,
    time::Micros,
};

/// A signal that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSignal {
    /// What the workflow waits for.
    pub name: Name,
    /// What it gets.
    pub payload: Payload,
    /// Chosen by the sender: the same word again is the same signal. Empty: every send is new.
    pub dedup: String,
}

/// A signal as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSignal {
    /// 1, 2, 3 … per instance: the order in which signals of one name are consumed.
    pub number: u64,
    /// What the workflow waits for.
    pub name: Name,
    /// When it was stored.
    pub sent_at: Micros,
    /// The attempt whose wait consumed it; none while it is unread.
    pub consumed_by: Option<Attempt>,
}

/// An unread signal, as an inbox names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: Name,
}
