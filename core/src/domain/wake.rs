//! What a suspended instance waits for, and why an attempt is launched.

use serde::{Deserialize, Serialize};

use super::{
    id::{Key, Name},
    time::Micros,
};

/// One thing a suspended instance waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Wait {
    /// A moment: a sleep, or the pause before a step's next try.
    Due {
        /// The operation that waits.
        name: Name,
        /// Its key.
        key: Key,
        /// The moment.
        due_at: Micros,
    },
    /// A signal, perhaps with a time-out.
    Signal {
        /// The operation that waits.
        name: Name,
        /// Its key.
        key: Key,
        /// The signal's name.
        signal: Name,
        /// When it stops waiting.
        due_at: Option<Micros>,
    },
    /// The end of a pause.
    Resume,
    /// The next attempt after a crash, a lost node or a failed launch.
    Retry,
}

impl Wait {
    fn due_at(&self) -> Option<Micros> {
        match self {
            Self::Due { due_at, .. } => Some(*due_at),
            Self::Signal { due_at, .. } => *due_at,
            Self::Resume | Self::Retry => None,
        }
    }
}

/// All that a suspended instance waits for: whichever comes first wakes it.
/// In a fixed order, so that the same waits are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Waits(Vec<Wait>);

impl Waits {
    /// Sorts the waits. None when there is none: nobody may wait for nothing (invariant 7).
    pub fn new(mut waits: Vec<Wait>) -> Option<Self> {
        waits.sort();
        waits.dedup();
        (!waits.is_empty()).then_some(Self(waits))
    }

    /// Waits for its next attempt only.
    pub fn retry() -> Self {
        Self(vec![Wait::Retry])
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Wait> {
        self.0.iter()
    }

    /// Whether it waits for a signal of this name.
    pub fn for_signal(&self, name: &Name) -> bool {
        self.signals().any(|signal| signal == name)
    }

    /// The signals it waits for.
    pub fn signals(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().filter_map(|wait| match wait {
            Wait::Signal { signal, .. } => Some(signal),
            Wait::Due { .. } | Wait::Resume | Wait::Retry => None,
        })
    }

    /// Whether it waits for the end of a pause.
    pub fn for_resume(&self) -> bool {
        self.0.contains(&Wait::Resume)
    }

    /// Whether it waits for its next attempt.
    pub fn for_retry(&self) -> bool {
        self.0.contains(&Wait::Retry)
    }

    /// The earliest moment among them; none: it waits for signals alone.
    pub fn earliest_due(&self) -> Option<Micros> {
        self.0.iter().filter_map(Wait::due_at).min()
    }
}

/// What a list of suspended instances is held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitingFor {
    /// A moment: a sleep, or the pause before a step's next try.
    Sleep,
    /// Any signal.
    AnySignal,
    /// The signal of this name.
    Signal(Name),
    /// The end of a pause.
    Resume,
    /// The next attempt.
    Retry,
}

impl WaitingFor {
    /// Reads `sleep`, `signal`, `signal:NAME`, `resume` or `retry`.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "sleep" => Self::Sleep,
            "signal" => Self::AnySignal,
            "resume" => Self::Resume,
            "retry" => Self::Retry,
            other => Self::Signal(Name::parse("signal.name", other.strip_prefix("signal:")?).ok()?),
        })
    }

    /// Whether one of the waits is meant.
    pub fn is_among(&self, waits: &Waits) -> bool {
        waits.iter().any(|wait| match (self, wait) {
            (Self::Sleep, Wait::Due { .. })
            | (Self::AnySignal, Wait::Signal { .. })
            | (Self::Resume, Wait::Resume)
            | (Self::Retry, Wait::Retry) => true,
            (Self::Signal(name), Wait::Signal { signal, .. }) => name == signal,
            (Self::Sleep | Self::AnySignal | Self::Signal(_) | Self::Resume | Self::Retry, _) => false,
        })
    }
}

impl<'a> IntoIterator for &'a Waits {
    type Item = &'a Wait;
    type IntoIter = std::slice::Iter<'a, Wait>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Why an attempt is launched; told to the workflow and to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WakeReason {
    /// Its first launch.
    Start,
    /// A due time passed.
    Due,
    /// A signal came that it waits for.
    Signal,
    /// It was resumed.
    Resume,
    /// It was cancelled and shall feel it.
    Cancel,
    /// It crashed, or its node was lost, or a launch failed.
    Retry,
    /// The launch before this one missed its deadline.
    LaunchMissed,
}

impl WakeReason {
    const ALL: [Self; 7] =
        [Self::Start, Self::Due, Self::Signal, Self::Resume, Self::Cancel, Self::Retry, Self::LaunchMissed];

    /// The word on the wire and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Due => "due",
            Self::Signal => "signal",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::LaunchMissed => "launch_missed",
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse("name", text).expect("a name")
    }

    #[test]
    fn a_filter_means_one_of_the_waits() {
        let key = Key::none();
        let nap = Wait::Due { name: name("nap"), key: key.clone(), due_at: Micros(1) };
        let approval =
            Wait::Signal { name: name("decide"), key, signal: name("approval"), due_at: Some(Micros(1)) };
        let both = Waits::new(vec![nap, approval]).expect("two");
        for (word, both_fit, retry_fits) in [
            ("sleep", true, false),
            ("signal", true, false),
            ("signal:approval", true, false),
            ("signal:decide", false, false),
            ("resume", false, false),
            ("retry", false, true),
        ] {
            let filter = WaitingFor::parse(word).expect(word);
            assert_eq!(filter.is_among(&both), both_fit, "{word}");
            assert_eq!(filter.is_among(&Waits::retry()), retry_fits, "{word}");
        }
        for word in ["", "signal:", "sleeps", "SLEEP", "signals"] {
            assert_eq!(WaitingFor::parse(word), None, "{word:?}");
        }
    }
}
