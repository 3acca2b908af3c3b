//! The stored checkpoints behind the first page, pushed to a process that resumes: it need not ask for each.
//!
//! One page at a time is in memory, and only while the process takes its turn among all that are served. Pages are
//! read one after the other, without a transaction around them: checkpoints never change (invariant 3), and only this
//! process adds any.

use dormouse_proto::call::{Closing, Turn};
use dormouse_proto::instance::server_frame::Outcome;
use tracing::debug;

use super::push::Pusher;
use super::request::Error;
use super::session::{Asked, note};
use super::wire;

/// Pushes the pages from `cursor` on. If one cannot be read the connection ends: its process waits for the page, and
/// registers again.
pub(super) async fn push_from(mut cursor: u64, asked: &Asked, pusher: &Pusher, turn: Turn) {
    while cursor != 0 {
        let page = match asked.store.resume_page(&asked.session, wire::cursor(cursor)).await {
            Ok(page) => wire::of_page(page),
            Err(error) => {
                let error = Error::Store(error);
                note(&error, "reading the stored checkpoints failed");
                if error.is_fenced() {
                    return asked.seat.fence();
                }
                let reason = "checkpoints cannot be read now; connect again";
                return pusher.replies().close(Closing::ShuttingDown, reason);
            }
        };
        cursor = page.next_cursor;
        if let Err(error) = pusher.push(Outcome::Page(page).into()).await {
            return debug!(%error, "a page of checkpoints was not sent");
        }
    }
    drop(turn);
}
