//! How instances and processes end.

use std::fmt;

use super::payload::Payload;

/// The three endings. All are final (invariant 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The workflow returned its output.
    Completed,
    /// The workflow returned a failure, crashed too often, or ran out of time.
    Failed,
    /// Cancelled or stopped.
    Cancelled,
}

impl Outcome {
    /// The word on the wire and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who ended an instance. A repeat of an ending is accepted only from who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedBy {
    /// Its own process returned.
    Instance,
    /// A controller: stop, or a cancel before the first registration.
    Controller,
    /// A node: crashes beyond the limit, or a cancel past its grace.
    Node,
    /// The time limit.
    Deadline,
}

impl EndedBy {
    const ALL: [Self; 4] = [Self::Instance, Self::Controller, Self::Node, Self::Deadline];

    /// The word in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Controller => "controller",
            Self::Node => "node",
            Self::Deadline => "deadline",
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.as_str() == word)
    }
}

/// What a workflow returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its output.
    Completed(Payload),
    /// Its failure.
    Failed(Failure),
}

/// Why something failed, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs, in capitals.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// Whether starting again could help.
    pub retryable: bool,
    /// JSON, empty for none.
    pub details: Vec<u8>,
}

/// How an attempt's process ended, as its node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// What the kernel said.
    pub reason: ExitReason,
    /// The end of its standard error, valid UTF-8, at most 4 KiB.
    pub stderr_tail: String,
}

/// What the kernel said of a process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// The kernel killed it for its memory.
    OutOfMemory,
    /// Its node killed it: it did not register before the launch deadline.
    LaunchDeadline,
    /// It ended while its node was away, so nobody knows how.
    Unknown,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}{}", signal_name(*signal)),
            Self::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
            Self::LaunchDeadline => f.write_str("killed: it did not register before the launch deadline"),
            Self::Unknown => {
                f.write_str("unknown: its environment was away, or was restarted since the launch")
            }
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        14 => " (SIGALRM)",
        15 => " (SIGTERM)",
        24 => " (SIGXCPU)",
        25 => " (SIGXFSZ)",
        31 => " (SIGSYS)",
        _ => "",
    }
}
