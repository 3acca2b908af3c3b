//! A trace outside of Dormouse: what really ran, and in which attempt.
//!
//! If `DORMOUSE_SIDE_FILE` names a file, each step appends `attempt step` to it after its work
//! and before its result is saved. Tests compare this with the checkpoints: a step whose
//! result was acknowledged must not stand there again with a later attempt.

use std::{fs::OpenOptions, io::Write as _};

/// Appends one line in one write, so that lines of several threads never mix.
#[expect(clippy::disallowed_methods, reason = "a switch of tests and demonstrations, not of the workflows")]
pub(crate) fn ran(attempt: u32, step: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("DORMOUSE_SIDE_FILE") else { return Ok(()) };
    let line = format!("{attempt} {}\n", step.escape_debug());
    OpenOptions::new().append(true).create(true).open(path)?.write_all(line.as_bytes())
}
