//! After a restart of this service: which processes of its earlier life still run.
//!
//! Reads `attempts/*/process.json`. A process is known again by boot, number and start time;
//! everything else under that number is a stranger and is left alone. A directory without a
//! record belongs to a launch that was cut off: its process read the end of its pipe and left.

use std::{io, path::Path};

use dormouse_core::domain::{
    id::{Attempt, InstanceId, InstanceKey, Tenant},
    outcome::{ExitReason, ExitReport},
};

use super::{
    exit::{Process, STDERR_TAIL, tail_text},
    group,
};
use crate::{
    attempts::{AttemptDirectory, AttemptId, Attempts, Stream},
    process::{self, ProcessRecord},
};

/// What an attempt's directory tells after a restart.
#[derive(Debug)]
pub enum Found {
    /// It runs, or has ended a moment ago: watch it.
    Living {
        /// Which attempt.
        id: AttemptId,
        /// The instance's key in the store.
        key: InstanceKey,
        /// Its process.
        process: Process,
    },
    /// It ended while nobody looked.
    Ended {
        /// Which attempt.
        id: AttemptId,
        /// The instance's key in the store.
        key: InstanceKey,
        /// With the reason `Unknown`.
        report: ExitReport,
    },
}

/// Looks through all directories, kills what ended processes left running, and removes what
/// launches that were cut off left behind. Blocking; within a tokio runtime.
pub fn adopt(attempts: &Attempts) -> io::Result<Vec<Found>> {
    let boot_id = process::boot_id()?;
    let mut found = Vec::new();
    for directory in attempts.living()? {
        match directory.load_record() {
            Ok(Some(record)) => match attempt_of(&record) {
                Some(id) => found.push(look(id, &record, &boot_id, &directory)?),
                None => warn(&directory.path, "names no valid attempt"),
            },
            Ok(None) => attempts.discard(&directory)?,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => warn(&directory.path, "is unreadable"),
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Somebody wrote into our directory: nothing is done about what is not understood, and nothing
/// else is held up by it.
fn warn(path: &Path, what: &str) {
    tracing::warn!(path = %path.display(), "process.json {what}; remove the folder once nothing runs there");
}

fn attempt_of(record: &ProcessRecord) -> Option<AttemptId> {
    Some(AttemptId {
        tenant: Tenant::parse(&record.tenant).ok()?,
        instance: InstanceId::parse(&record.instance).ok()?,
        attempt: Attempt(record.attempt),
    })
}

fn look(
    id: AttemptId,
    record: &ProcessRecord,
    boot_id: &str,
    directory: &AttemptDirectory,
) -> io::Result<Found> {
    let key = InstanceKey(record.key);
    if let Some(process) = record.of_this_boot(boot_id) {
        if let Some(pidfd) = process.open()? {
            let watched = Process::adopt(process, directory.clone(), pidfd)?;
            // One that has ended and is merely not collected yet ended while nobody looked, like
            // one that is gone: whether it is a crash must not depend on who is faster.
            if !watched.has_ended() {
                return Ok(Found::Living { id, key, process: watched });
            }
        }
        group::kill_all(process, &directory.path)?;
    }
    Ok(Found::Ended { id, key, report: unknown(directory)? })
}

fn unknown(directory: &AttemptDirectory) -> io::Result<ExitReport> {
    let stderr_tail = tail_text(&directory.stream(Stream::Stderr), STDERR_TAIL)?;
    Ok(ExitReport { reason: ExitReason::Unknown, stderr_tail })
}
