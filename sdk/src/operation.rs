//! Names of durable operations, and what is stored under them.

use std::{any::type_name, fmt};

use dormouse_proto::instance::{self, stored_checkpoint};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Failure, Result, code};

/// Longest name of an operation, a signal or an event, in bytes.
const NAME_MAX: usize = dormouse_proto::limits::NAME_MAX_BYTES;
/// Longest key in bytes.
const KEY_MAX: usize = 1024;
/// Largest payload in bytes. More belongs into a file or an object store, and its address into the payload.
const PAYLOAD_MAX: usize = dormouse_proto::limits::PAYLOAD_MAX_BYTES;
/// Longest note in bytes.
const NOTE_MAX: usize = 1000;

/// Marks a step's stored result as its final failure. No Rust type has a dot in its name.
const FAILURE_TYPE: &str = "dormouse.failure";

/// The result of an operation; everything else about it has a slot above.
pub(crate) const RESULT: u32 = 0;
/// When a wait is over.
pub(crate) const DUE: u32 = 1;

/// A durable operation: its name, and its key where the name repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) name: Box<str>,
    pub(crate) key: Box<str>,
}

impl Operation {
    /// Checks what core would refuse, so that the sentence names the call and not the wire.
    pub(crate) fn parse(name: &str, key: &str) -> Result<Self> {
        check_name("name", name)?;
        if key.len() > KEY_MAX {
            let len = key.len();
            return Err(Failure::invalid(format!(
                "the key of {name:?} has {len} bytes, at most {KEY_MAX} are allowed; use a digest of it"
            )));
        }
        if key.contains('\0') {
            return Err(Failure::invalid(format!(
                "the key of {name:?} contains NUL, which cannot be stored; escape it"
            )));
        }
        Ok(Self { name: name.into(), key: key.into() })
    }

    pub(crate) fn slot(&self, slot: u32) -> instance::OperationName {
        instance::OperationName { name: self.name.to_string(), key: self.key.to_string(), slot }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.key.is_empty() {
            write!(f, " with key {:?}", self.key)?;
        }
        Ok(())
    }
}

/// Checks the name of an operation, a signal or an event.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        let len = name.len();
        return Err(Failure::invalid(format!(
            "the {what} {name:?} has {len} bytes; give it 1 to {NAME_MAX}"
        )));
    }
    if name.contains(char::is_control) {
        return Err(Failure::invalid(format!("the {what} {name:?} contains a control character; remove it")));
    }
    Ok(())
}

/// What kind of operation wrote a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Step,
    Checkpoint,
    Sleep,
    Signal,
    Due,
    Retry,
    Cancelled,
    /// Written by a newer release.
    Other,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Checkpoint => "checkpoint",
            Self::Sleep => "sleep",
            Self::Signal => "signal",
            Self::Due => "due",
            Self::Retry => "retry",
            Self::Cancelled => "cancelled",
            Self::Other => "other",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "step" => Self::Step,
            "checkpoint" => Self::Checkpoint,
            "sleep" => Self::Sleep,
            "signal" => Self::Signal,
            "due" => Self::Due,
            "retry" => Self::Retry,
            "cancelled" => Self::Cancelled,
            _ => Self::Other,
        }
    }
}

/// One stored checkpoint, without its name.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) kind: Kind,
    pub(crate) value: Value,
}

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Payload(instance::Payload),
    /// A moment in microseconds since 1970, by the database's clock. As a result: the wait ended then.
    Due(i64),
    Cancelled,
}

impl Stored {
    /// Splits a checkpoint of the wire into its name and what it holds; `None` if a newer release
    /// wrote something that this one does not know.
    pub(crate) fn of_wire(stored: instance::StoredCheckpoint) -> Option<(instance::OperationName, Self)> {
        let value = match stored.value? {
            stored_checkpoint::Value::Payload(payload) => Value::Payload(payload),
            stored_checkpoint::Value::DueAt(due_at) => Value::Due(due_at),
            stored_checkpoint::Value::Cancelled(_) => Value::Cancelled,
        };
        Some((stored.operation?, Self { kind: Kind::parse(&stored.kind), value }))
    }

    /// For messages: what is stored here.
    pub(crate) fn describe(&self) -> String {
        let kind = self.kind.as_str();
        match &self.value {
            Value::Payload(payload) if payload.type_name.is_empty() => {
                format!("{kind:?} of {} bytes {}", payload.data.len(), payload.encoding)
            }
            Value::Payload(payload) => format!("{kind:?} of type {}", payload.type_name),
            Value::Due(_) => format!("{kind:?} that is a moment"),
            Value::Cancelled => "the mark of a cancellation".to_owned(),
        }
    }
}

/// Writes a value as JSON, with the name of its type.
pub(crate) fn encode<T: Serialize>(what: impl fmt::Display, value: &T) -> Result<instance::Payload> {
    let data = serde_json::to_vec(value).map_err(|error| {
        let ty = type_name::<T>();
        Failure::new(code::NOT_ENCODABLE, format!("{what} of type {ty} cannot be written as JSON: {error}"))
            .permanent()
    })?;
    fits(what, data.len())?;
    Ok(instance::Payload {
        data: data.into(),
        encoding: "json".to_owned(),
        type_name: type_name::<T>().to_owned(),
    })
}

/// Bytes of the author.
pub(crate) fn raw(what: impl fmt::Display, data: Vec<u8>) -> Result<instance::Payload> {
    fits(what, data.len())?;
    Ok(instance::Payload { data: data.into(), encoding: "raw".to_owned(), type_name: String::new() })
}

fn fits(what: impl fmt::Display, bytes: usize) -> Result<()> {
    if bytes <= PAYLOAD_MAX {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{what} has {bytes} bytes, at most {PAYLOAD_MAX} are allowed; put it into a file or an object store and \
         return where it is"
    )))
}

/// A step's final failure as its result.
pub(crate) fn encode_failure(failure: &Failure) -> Result<instance::Payload> {
    let payload = encode("the failure", failure)?;
    Ok(instance::Payload { type_name: FAILURE_TYPE.to_owned(), ..payload })
}

/// The final failure, if the payload is one.
pub(crate) fn decode_failure(payload: &instance::Payload) -> Option<Failure> {
    if payload.type_name != FAILURE_TYPE {
        return None;
    }
    serde_json::from_slice(&payload.data).ok()
}

/// Reads JSON. The error is the reason alone; the caller knows what it was.
pub(crate) fn decode<T: DeserializeOwned>(payload: &instance::Payload) -> Result<T, String> {
    match payload.encoding.as_str() {
        "json" => serde_json::from_slice(&payload.data).map_err(|error| error.to_string()),
        // No payload at all: what an input that was not given looks like.
        "" if payload.data.is_empty() => serde_json::from_slice(b"null").map_err(|error| error.to_string()),
        other => Err(format!("it is encoded as {other:?}, not as \"json\"")),
    }
}

/// The name of a payload's type for a message.
pub(crate) fn stored_type(payload: &instance::Payload) -> &str {
    if payload.type_name.is_empty() { "a type that was not named" } else { &payload.type_name }
}

/// The beginning of a note for people, as long as may be stored.
pub(crate) fn note(text: &str) -> String {
    let end = (0..=NOTE_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_with_what_would_pass() {
        let long = "x".repeat(201);
        for bad in ["", "a\nb", long.as_str()] {
            let failure = Operation::parse(bad, "").unwrap_err();
            assert_eq!(failure.code(), code::INVALID_ARGUMENT, "{bad:?}");
        }
        assert!(Operation::parse("a", "line\nbreak").is_ok(), "keys are file names too");
        assert!(Operation::parse("a", "\0").is_err());
        assert!(Operation::parse("a", &"k".repeat(1025)).is_err());
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(note("short"), "short");
        let cut = note(&"ü".repeat(600));
        assert_eq!(cut.len(), 1000);
        assert_eq!(note(&format!("x{}", "ü".repeat(600))).len(), 999);
    }

    #[test]
    fn only_a_marked_payload_is_a_failure() {
        let failure = Failure::new("A", "b");
        let marked = encode_failure(&failure).unwrap();
        assert_eq!(decode_failure(&marked), Some(failure.clone()));
        let plain = encode("x", &failure).unwrap();
        assert_eq!(decode_failure(&plain), None);
    }

    #[test]
    fn an_input_that_was_not_given_is_null() {
        let nothing = instance::Payload::default();
        assert_eq!(decode::<Option<u32>>(&nothing), Ok(None));
        assert!(decode::<u32>(&nothing).is_err());
    }
}
