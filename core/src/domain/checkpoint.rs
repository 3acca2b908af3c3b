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

/// The type's name by which an SDK marks a step's stored result as its final failure.
pub const FAILURE_TYPE: &str = "dormouse.failure";

impl StoredCheckpoint {
    /// Whether it says that an operation is done, with something to build on: a step's result, but
    /// not its failure; a sleep that passed; what a wait decided.
    fn is_done(&self) -> bool {
        let result = self.operation.slot == 0;
        match (self.kind, &self.value) {
            (Kind::Step, Value::Payload(payload)) => result && payload.type_name != FAILURE_TYPE,
            (Kind::Checkpoint | Kind::Signal, Value::Payload(_))
            | (Kind::Sleep | Kind::Signal, Value::Due(_)) => result,
            (
                Kind::Step
                | Kind::Checkpoint
                | Kind::Sleep
                | Kind::Signal
                | Kind::Due
                | Kind::Retry
                | Kind::Cancelled,
                _,
            ) => false,
        }
    }

    /// Whether it marks the place where the instance felt its cancellation.
    fn is_cancelled(&self) -> bool {
        self.kind == Kind::Cancelled || self.value == Value::Cancelled
    }
}

/// What a new instance takes over of an ended one that it retries, of all that is stored in the
/// order in which it was stored.
///
/// What is done stays done, with the due times of waits that are over. What failed is tried anew,
/// from its first try. What came after a cancellation was felt was clean-up, and clean-up
/// belongs to the instance that was cancelled.
pub fn taken_over(stored: &[StoredCheckpoint]) -> Vec<&StoredCheckpoint> {
    let felt = stored.iter().position(StoredCheckpoint::is_cancelled).unwrap_or(stored.len());
    let before = &stored[..felt];
    let is_decided = |due: &StoredCheckpoint| {
        before.iter().any(|other| {
            other.is_done()
                && (&other.operation.name, &other.operation.key) == (&due.operation.name, &due.operation.key)
        })
    };
    before.iter().filter(|one| one.is_done() || (one.kind == Kind::Due && is_decided(one))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str, slot: u32, kind: Kind, value: Value) -> StoredCheckpoint {
        let operation =
            Operation { name: Name::parse("name", name).expect("a name"), key: Key::none(), slot };
        let (attempt, note) = (Attempt(1), String::new());
        StoredCheckpoint { operation, kind, attempt, value, stored_at: Micros(1), note }
    }

    fn json(type_name: &str) -> Value {
        Value::Payload(Payload { type_name: type_name.to_owned(), ..Payload::json("1") })
    }

    #[test]
    fn what_is_done_is_taken_over_and_what_failed_is_not() {
        let all = [
            stored("reserve", 0, Kind::Step, json("String")),
            stored("charge", 1, Kind::Retry, Value::Due(Micros(5))),
            stored("charge", 0, Kind::Step, json("String")),
            stored("nap", 1, Kind::Due, Value::Due(Micros(9))),
            stored("nap", 0, Kind::Sleep, Value::Due(Micros(9))),
            stored("approval", 1, Kind::Due, Value::Due(Micros(9))),
            stored("approval", 0, Kind::Signal, json("Approval")),
            stored("raw", 0, Kind::Checkpoint, json("")),
            stored("still", 1, Kind::Due, Value::Due(Micros(99))),
            stored("ship", 1, Kind::Retry, Value::Due(Micros(5))),
            stored("ship", 0, Kind::Step, json(FAILURE_TYPE)),
            stored("notify", 0, Kind::Step, json("String")),
        ];
        let names: Vec<_> =
            taken_over(&all).iter().map(|one| (one.operation.name.as_str(), one.operation.slot)).collect();
        let expected = [
            ("reserve", 0),
            ("charge", 0),
            ("nap", 1),
            ("nap", 0),
            ("approval", 1),
            ("approval", 0),
            ("raw", 0),
            ("notify", 0),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_a_cancellation_left_is_not_taken_over() {
        let all = [
            stored("reserve", 0, Kind::Step, json("String")),
            stored("ship", 0, Kind::Cancelled, Value::Cancelled),
            stored("release", 0, Kind::Step, json("String")),
        ];
        assert_eq!(taken_over(&all), [&all[0]]);
    }
}
