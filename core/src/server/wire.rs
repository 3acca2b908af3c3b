//! Between the messages of the wire and the types of the domain: parsed once, here.
//!
//! A field that is missing or malformed is refused by its name.

use std::time::Duration;

use dormouse_proto::instance as wire;
use dormouse_proto::instance::{checkpoint, stored_checkpoint};
use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};

use super::request::Error;
use crate::domain::checkpoint::{Kind, NewCheckpoint, NewValue, Operation, StoredCheckpoint, Value};
use crate::domain::event::Progress;
use crate::domain::id::{AttemptToken, Key, Name};
use crate::domain::instance::Cancel;
use crate::domain::outcome::Failure;
use crate::domain::payload::{Encoding, Payload};
use crate::domain::time::Micros;
use crate::domain::wake::{Wait, Waits};
use crate::limits::{FAILURE_CODE_BYTES, FAILURE_MESSAGE_BYTES, TYPE_NAME_BYTES};
use crate::store::{CheckpointPage, Inbox, Saved};

/// `value`, or the refusal that names `field`.
pub(super) fn present<T>(field: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or(Error::Missing { field })
}

pub(super) fn token(bytes: &[u8]) -> Result<AttemptToken, Error> {
    let token = bytes.try_into().map_err(|_| Error::NoToken { len: bytes.len() })?;
    Ok(AttemptToken(token))
}

pub(super) fn operation(
    field: &'static str,
    operation: Option<wire::OperationName>,
) -> Result<Operation, Error> {
    let wire::OperationName { name, key, slot } = present(field, operation)?;
    Ok(Operation { name: Name::parse("operation.name", &name)?, key: Key::parse(&key)?, slot })
}

pub(super) fn payload(field: &'static str, payload: wire::Payload) -> Result<Payload, Error> {
    let wire::Payload { data, encoding, mut type_name } = payload;
    let encoding = Encoding::parse(&encoding).ok_or_else(|| Error::Invalid {
        field,
        value: format!("encoded as {encoding:?}"),
        remedy: "say \"json\" or \"raw\" in its encoding",
    })?;
    type_name.truncate(type_name.floor_char_boundary(TYPE_NAME_BYTES));
    Ok(Payload { data, encoding, type_name })
}

pub(super) fn checkpoint(request: wire::Checkpoint) -> Result<NewCheckpoint, Error> {
    let wire::Checkpoint { operation: name, kind, value, note } = request;
    let kind = Kind::parse(&kind).ok_or_else(|| Error::Invalid {
        field: "checkpoint.kind",
        value: format!("{kind:?}"),
        remedy: "use step, checkpoint, sleep, signal, due, retry or cancelled",
    })?;
    Ok(NewCheckpoint {
        operation: operation("checkpoint.operation", name)?,
        kind,
        value: new_value(present("checkpoint.value", value)?)?,
        note,
    })
}

fn new_value(value: checkpoint::Value) -> Result<NewValue, Error> {
    Ok(match value {
        checkpoint::Value::Payload(bytes) => NewValue::Payload(payload("checkpoint.payload", bytes)?),
        checkpoint::Value::DueInMicros(span) => {
            let span = u64::try_from(span).map_err(|_| Error::Invalid {
                field: "checkpoint.due_in_micros",
                value: span.to_string(),
                remedy: "give 0 or more microseconds",
            })?;
            NewValue::DueIn(Duration::from_micros(span))
        }
        checkpoint::Value::DueAt(at) => NewValue::DueAt(Micros(at)),
        checkpoint::Value::TakeSignal(name) => {
            NewValue::TakeSignal(Name::parse("checkpoint.take_signal", &name)?)
        }
        checkpoint::Value::FeelCancel(true) => NewValue::FeelCancel,
        checkpoint::Value::FeelCancel(false) => {
            return Err(Error::Invalid {
                field: "checkpoint.feel_cancel",
                value: "false".to_owned(),
                remedy: "set it to true, or give another value",
            });
        }
    })
}

pub(super) fn waits(waits: Vec<wire::Wait>) -> Result<Waits, Error> {
    let waits = waits.into_iter().map(wait).collect::<Result<_, _>>()?;
    present("suspend.waits", Waits::new(waits))
}

fn wait(wait: wire::Wait) -> Result<Wait, Error> {
    let wire::Wait { name, key, due_at, signal, resume } = wait;
    let due_at = due_at.map(Micros);
    let operation = || Ok::<_, Error>((Name::parse("wait.name", &name)?, Key::parse(&key)?));
    match (resume, signal, due_at) {
        (true, None, None) => Ok(Wait::Resume),
        (false, Some(signal), due_at) => {
            let (name, key) = operation()?;
            Ok(Wait::Signal { name, key, signal: Name::parse("wait.signal", &signal)?, due_at })
        }
        (false, None, Some(due_at)) => {
            let (name, key) = operation()?;
            Ok(Wait::Due { name, key, due_at })
        }
        (false, None, None) => Err(Error::Missing { field: "wait.due_at" }),
        (true, ..) => Err(Error::Invalid {
            field: "wait.resume",
            value: "true beside a due time or a signal".to_owned(),
            remedy: "send one wait for each",
        }),
    }
}

pub(super) fn progress(progress: wire::Progress) -> Progress {
    let wire::Progress { done, total, message } = progress;
    Progress { done, total, message }
}

pub(super) fn failure(failure: wire::Failure) -> Result<Failure, Error> {
    let wire::Failure { code, mut message, retryable, details } = failure;
    if code.is_empty() {
        return Err(Error::Missing { field: "failed.failure.code" });
    }
    if code.len() > FAILURE_CODE_BYTES || code.contains(char::is_control) {
        return Err(Error::Invalid {
            field: "failed.failure.code",
            value: format!("{} bytes long, or holds control characters", code.len()),
            remedy: "give a word of at most 200 bytes",
        });
    }
    message.truncate(message.floor_char_boundary(FAILURE_MESSAGE_BYTES));
    Ok(Failure { code, message, retryable, details })
}

pub(super) fn of_payload(payload: Payload) -> wire::Payload {
    let Payload { data, encoding, type_name } = payload;
    wire::Payload { data, encoding: encoding.as_str().to_owned(), type_name }
}

pub(super) fn of_stored(stored: StoredCheckpoint) -> wire::StoredCheckpoint {
    let StoredCheckpoint { operation, kind, attempt, value, stored_at, note } = stored;
    wire::StoredCheckpoint {
        operation: Some(wire::OperationName {
            name: operation.name.as_str().to_owned(),
            key: operation.key.as_str().to_owned(),
            slot: operation.slot,
        }),
        kind: kind.as_str().to_owned(),
        attempt: attempt.0,
        value: Some(match value {
            Value::Payload(payload) => stored_checkpoint::Value::Payload(of_payload(payload)),
            Value::Due(at) => stored_checkpoint::Value::DueAt(at.0),
            Value::Cancelled => stored_checkpoint::Value::Cancelled(true),
        }),
        stored_at: stored_at.0,
        note,
    }
}

/// The answer to a checkpoint. Bytes that this very request has sent do not travel back: `echo` is false for them.
pub(super) fn of_saved(saved: Saved, echo: bool, now: Micros) -> wire::CheckpointStored {
    let (stored, existed) = match saved {
        Saved::Stored(stored) => {
            let mut stored = of_stored(stored);
            if !echo {
                stored.value = None;
            }
            (Some(stored), false)
        }
        Saved::Existed(stored) => (Some(of_stored(stored)), true),
        Saved::Nothing => (None, false),
    };
    wire::CheckpointStored { stored, existed, now: now.0 }
}

/// A page. On the wire a cursor is one more than the store's, because 0 says there that the page is the last: so a
/// page may be empty and still say where the first one begins.
pub(super) fn of_page(page: CheckpointPage) -> wire::CheckpointPage {
    let next_cursor = match page.next_cursor {
        0 => 0,
        cursor => cursor.saturating_add(1),
    };
    wire::CheckpointPage { checkpoints: encoded(page.checkpoints), next_cursor }
}

/// Each as the bytes of its message; all of them in one piece of memory.
fn encoded(checkpoints: Vec<StoredCheckpoint>) -> Vec<Bytes> {
    let mut page = BytesMut::new();
    let encode = |stored| {
        of_stored(stored).encode_raw(&mut page);
        page.split().freeze()
    };
    checkpoints.into_iter().map(encode).collect()
}

/// The cursor of a page that begins at the beginning.
pub(super) const FIRST_CURSOR: u64 = 1;

/// The store's cursor for one of the wire.
pub(super) fn cursor(cursor: u64) -> u64 {
    cursor.saturating_sub(1)
}

pub(super) fn of_inbox(inbox: &Inbox) -> wire::Inbox {
    let cancel = match inbox.cancel {
        Cancel::No => wire::Cancel::No,
        Cancel::Asked { .. } => wire::Cancel::Asked,
        Cancel::Felt => wire::Cancel::Felt,
    };
    let unread = inbox.unread.iter();
    let unread = unread
        .map(|unread| wire::UnreadSignal { number: unread.number, name: unread.name.as_str().to_owned() });
    wire::Inbox { paused: inbox.paused, cancel: cancel.into(), unread: unread.collect() }
}
