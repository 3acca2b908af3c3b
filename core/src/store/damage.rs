//! Rows that hold what no release of ours has written: told, and left aside, so that one damaged
//! instance harms no other.
//!
//! Whoever asks for the instance itself hears INTERNAL, with table, key and column. Whoever works
//! on many (claims, settling, lists) goes on with the others. Nothing damaged is repaired or
//! removed here: that is for people, with a backup.

use std::time::Duration;

use super::{
    error::{Error, Result},
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::time::Micros;

/// When a damaged instance that is due is looked at again.
const AGAIN: Duration = Duration::from_mins(5);

const PUT_OFF: Stmt = stmt!("UPDATE instance SET wake_at = $1 WHERE key = $2 AND wake_at IS NOT NULL");

/// What was read; none if it was unreadable, which is logged.
pub(super) fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error @ Error::Unreadable { .. }) => {
            tracing::error!(%error, "a damaged row was left aside");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Lets the wakes behind a damaged one have their turn: it is due again in some minutes, as long
/// as nobody repairs it.
pub(super) async fn put_off(tx: &mut Tx<'_>, row: &Row, now: Micros) -> Result<()> {
    tx.execute_one(&PUT_OFF, args![now + AGAIN, row.instance("key")?]).await
}
