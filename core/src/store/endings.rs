//! What an ending says: written once, in the transaction that ends the instance
//! (invariant 6).

use super::{
    error::Result,
    events::NewEvent,
    life::{self, Locked},
    payload,
    sql::{Row, Tx, storable},
};
use crate::domain::{
    event::EventKind,
    instance::Life,
    outcome::{Ending, Failure, Outcome},
    payload::Payload,
    time::Micros,
};

/// Codes of the failures that the services write themselves.
pub mod code {
    /// The process crashed too often in a row.
    pub const CRASHED: &str = "CRASHED";
    /// The instance's time limit passed.
    pub const TIME_LIMIT: &str = "TIME_LIMIT";
}

/// What stands beside the outcome: an output, a failure, or neither.
#[derive(Clone, Copy, Default)]
pub(super) struct Says<'a> {
    pub(super) output: Option<&'a Payload>,
    pub(super) failure: Option<&'a Failure>,
}

/// What a workflow said.
pub(super) fn of(ending: &Ending) -> Says<'_> {
    match ending {
        Ending::Completed(output) => Says { output: Some(output), failure: None },
        Ending::Failed(failure) => Says { output: None, failure: Some(failure) },
    }
}

/// A failure that a service states.
pub(super) fn stated(code: &str, message: String) -> Failure {
    Failure { code: code.to_owned(), message, retryable: false, details: Vec::new() }
}

/// Writes the row, what the ending says, and the event. `next` has ended.
pub(super) async fn write(
    tx: &mut Tx<'_>,
    row: &Locked,
    next: &Life,
    says: Says<'_>,
    now: Micros,
) -> Result<()> {
    let (output, encoding, type_name) = payload::columns(says.output);
    let failure = says.failure;
    let code = failure.map(|failure| storable(&failure.code));
    let message = failure.map(|failure| storable(&failure.message));
    let says = [
        output.into(),
        encoding.into(),
        type_name.into(),
        code.as_deref().into(),
        message.as_deref().into(),
        failure.map(|failure| failure.retryable).into(),
        failure.map(|failure| failure.details.as_slice()).into(),
    ];
    let kind = match next.outcome() {
        Some(Outcome::Completed) => EventKind::Completed,
        Some(Outcome::Failed) | None => EventKind::Failed,
        Some(Outcome::Cancelled) => EventKind::Cancelled,
    };
    let text = failure.map(|failure| format!("{}: {}", failure.code, failure.message));
    let event = NewEvent::new(kind, text.as_deref().unwrap_or_default());
    life::write_ended(tx, row, next, now, event, says).await
}

/// Reads `code, message, retryable, details`.
pub(super) fn read_failure(row: &Row) -> Result<Option<Failure>> {
    let Some(code) = row.opt_text("code")? else { return Ok(None) };
    Ok(Some(Failure {
        code,
        message: row.text("message")?,
        retryable: row.opt_flag("retryable")?.unwrap_or(false),
        // A list leaves them out.
        details: row.opt_blob("details")?.unwrap_or_default(),
    }))
}
