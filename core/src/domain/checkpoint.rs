//! Named, immutable, durable pieces of an instance's state (invariant 3: first writer wins).

use super::{
    id::{Attempt, Key, Name},
    payload::Payload,
    time::Micros,
};

/// Names one durable operation: by name, where the name repeats by name and key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Operation {
    /// The step's, wait's or checkpoint's name.
    pub name: Name,
    /// Empty when the name does not repeat.
    pub key: Key,
    /// 0: the result. 1: a wait's due time. n: the due time of the pause after a step's n-th failed try.
    pub slot: u32,
}

/// What kind of operation wrote a checkpoint; for people and for the SDK's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A step's result.
    Step,
    /// Raw bytes of the author.
    Checkpoint,
    /// A sleep that passed.
    Sleep,
    /// What a wait for a signal decided.
    Signal,
    /// The due time of a wait.
    Due,
    /// The due time of a step's next try.
    Retry,
    /// Where the workflow felt its cancellation.
    Cancelled,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Step, Self::Checkpoint, Self::Sleep, Self::Signal, Self::Due, Self::Retry, Self::Cancelled];

    /// The word on the wire and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Checkpoint => "checkpoint",
            Self::Sleep => "sleep",
            Self::Signal => "signal",
            Self::Due => "due",
            Self::Retry => "retry",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A checkpoint that is to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Which operation.
    pub operation: Operation,
    /// Of which kind.
    pub kind: Kind,
    /// What to save.
    pub value: NewValue,
    /// With a due time: why a step failed, for people. At most 1,000 bytes.
    pub note: String,
}

/// What a save asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewValue {
    /// These bytes.
    Payload(Payload),
    /// The moment so far ahead of the database's clock.
    DueIn(std::time::Duration),
    /// This moment.
    DueAt(Micros),
    /// The payload of the oldest unread signal of this name, which is thereby consumed.
    /// Stores nothing when there is none.
    TakeSignal(Name),
    /// The workflow feels its cancellation here.
    FeelCancel,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Bytes of the author.
    Payload(Payload),
    /// A moment.
    Due(Micros),
    /// The mark of a felt cancellation.
    Cancelled,
}

/// A checkpoint as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// Which operation.
    pub operation: Operation,
    /// Of which kind.
    pub kind: Kind,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// What it holds.
    pub value: Value,
    /// When it was stored.
    pub stored_at: Micros,
    /// Why a step failed; mostly empty.
    pub note: String,
}
