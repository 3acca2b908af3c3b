//! What the benchmark program and the workflows of its image tell each other: inputs and outputs.
//!
//! Moments are microseconds since 1970 by the machine's real-time clock, which both read; spans within
//! one process are nanoseconds of its monotonic clock. A workflow measures where only it can see, and
//! judges nothing.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Of the workflow `checkpoints`: saves one checkpoint after the other.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Checkpoints {
    /// Saved first, and not measured.
    pub warm_up: u32,
    /// Saved and measured.
    pub count: u32,
    /// Bytes of each.
    pub bytes: usize,
    /// A Unix socket: connected to when the warm-up is done; measuring begins when a byte comes.
    pub gate: Option<String>,
}

/// What `checkpoints` answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Saved {
    /// The first measured one began.
    pub begun_at: u64,
    /// The last one was acknowledged.
    pub ended_at: u64,
    /// How long each took.
    pub nanos: Vec<u64>,
}

/// What `process` answers of the process that it runs in.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started, to about 10 ms.
    pub born_at: u64,
}

/// Of the workflow `sleeper`: sleeps once, until a moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sleeper {
    /// Microseconds since 1970.
    pub due_at: u64,
}

/// What `sleeper` answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Woken {
    /// The first line of the process that was launched when it was due.
    pub first_line_at: u64,
    /// Which launch that was; 1 means that it never left.
    pub attempt: u32,
}

/// Of the workflow `receiver`: takes signals named [`SIGNAL`], one after the other.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Receiver {
    /// Signals until it ends.
    pub count: u32,
}

/// The name of the signals of the workloads.
pub const SIGNAL: &str = "ping";

/// The payload of a signal.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ping {
    /// When the controller began to send it.
    pub sent_at: u64,
}

/// What `receiver` answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Received {
    /// From the sending to the workflow's code, of each signal.
    pub micros: Vec<u64>,
    /// The launch in which the last one was taken.
    pub attempt: u32,
}

/// Of the workflow `resumer`: does steps and waits for a signal; in each launch after it passes them again, does a new
/// one, and waits for the next.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Resumer {
    /// Steps whose results are saved.
    pub steps: u32,
    /// Bytes of each result.
    pub bytes: usize,
    /// Launches after the first.
    pub resumes: u32,
}

/// What `resumer` answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Resumed {
    /// The first line of the first new step of each launch after the first.
    pub new_step_at: Vec<u64>,
}

/// What `loaded` answers: it passes the steps that the bulk loader of the tests has laid down as done.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Passed {
    /// How many had been done.
    pub steps: u32,
    /// The most memory that its process has held.
    pub peak_bytes: u64,
}

/// Now, by the clock that the benchmark program and the workflows share.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "spans between processes of one machine; nothing durable stands on it"
)]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.ok().and_then(|since| u64::try_from(since.as_micros()).ok()).unwrap_or(0)
}
