//! Every size and count that the services enforce, each with its unit and its reason.
//!
//! Sizes of the wire (frames, requests in flight) stand in `dormouse_proto::limits`.

use std::time::Duration;

/// What one instance may store and how often it may fail. All are configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one payload: checkpoint, signal, event, input, output. More belongs in a file or an object store.
    pub payload_bytes: usize,
    /// Checkpoints of one instance. A resume reads them all.
    pub checkpoints: u64,
    /// Signals that were sent to one instance and not consumed yet.
    pub unread_signals: u64,
    /// Unread signals named in one inbox; the rest follows when these are taken.
    pub inbox_signals: usize,
    /// Checkpoints in one page of a resume.
    pub page_checkpoints: usize,
    /// Bytes of payload in one page of a resume.
    pub page_bytes: usize,
    /// Crashes in a row without a new checkpoint before the instance fails.
    pub crashes: u32,
    /// First pause after a crash; doubles with each further one.
    pub crash_backoff: Duration,
    /// Longest pause after a crash.
    pub crash_backoff_max: Duration,
    /// From a claim to its registration. Past it the wake is due again.
    pub launch_deadline: Duration,
    /// From a cancel that reached a process to the process's end, if it is not felt.
    pub cancel_grace: Duration,
    /// Environment variables named by a start, and their bytes in all.
    pub env_variables: usize,
    /// Bytes of all names and values of those variables.
    pub env_bytes: usize,
    /// How long ended instances are kept.
    pub retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes: 4 << 20,
            checkpoints: 1_000_000,
            unread_signals: 10_000,
            inbox_signals: 1_000,
            page_checkpoints: 1_000,
            page_bytes: 1 << 20,
            crashes: 10,
            crash_backoff: Duration::from_secs(1),
            crash_backoff_max: Duration::from_mins(5),
            launch_deadline: Duration::from_secs(30),
            cancel_grace: Duration::from_mins(5),
            env_variables: 256,
            env_bytes: 64 << 10,
            retention: Duration::from_hours(30 * 24),
        }
    }
}
