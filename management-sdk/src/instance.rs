//! An instance as the services describe it.

use std::{fmt, str::FromStr};

use dormouse_proto::management as wire;

use crate::{Encoding, Payload, Timestamp};

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Never ran yet.
    Pending,
    /// A process works on it.
    Running,
    /// No process: it waits for something that [`Instance::waiting_for`] names.
    Suspended,
    /// Ended with an output.
    Completed,
    /// Ended with a failure.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl Status {
    /// All of them, in the order of an instance's life.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Suspended, Self::Completed, Self::Failed, Self::Cancelled];

    /// The word on the wire and on the screen.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Suspended => "SUSPENDED",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Whether this is final.
    #[must_use]
    pub const fn ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    /// In capitals or not.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|status| status.as_str()).collect();
            format!("status is {text:?}; it must be one of {}", all.join(", "))
        })
    }
}

/// Why an instance ended FAILED.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// A word for programs, in capitals.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// Whether starting again could help.
    pub retryable: bool,
    /// Whatever the workflow added.
    pub details: Option<serde_json::Value>,
}

impl Failure {
    pub(crate) fn from_wire(failure: wire::Failure) -> Self {
        let details = (!failure.details.is_empty()).then(|| {
            // Details are an author's own bytes: broken ones must not hide the failure.
            serde_json::from_slice(&failure.details)
                .unwrap_or_else(|_| String::from_utf8_lossy(&failure.details).into_owned().into())
        });
        Self { code: failure.code, message: failure.message, retryable: failure.retryable, details }
    }
}

/// How far a workflow says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all, if known.
    pub total: Option<u64>,
    /// What it is doing.
    pub message: String,
    /// When it said so.
    pub at: Option<Timestamp>,
}

/// One durable execution of a workflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// The entry point inside the image.
    pub workflow: String,
    /// Name and version of the image.
    pub image: String,
    /// Hexadecimal SHA-256 of the image.
    pub digest: String,
    /// What it is doing.
    pub status: Status,
    /// Number of the newest launch; 0: none yet.
    pub attempt: u32,
    /// The node that runs or launches it.
    pub node: Option<String>,
    /// Left out in lists.
    pub input: Option<Payload>,
    /// Set once it has ended with one; left out in lists.
    pub output: Option<Payload>,
    /// Set if it FAILED.
    pub failure: Option<Failure>,
    /// One sentence, while it has not ended: what it waits for and since when, or why it
    /// cannot be launched now. `None` while it simply runs.
    pub waiting_for: Option<String>,
    /// From when it may be launched.
    pub wake_at: Option<Timestamp>,
    /// When it was started by its caller.
    pub created_at: Option<Timestamp>,
    /// When its first process registered.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Paused: nothing launches it until it is resumed.
    pub paused: bool,
    /// It was asked to cancel.
    pub cancel_asked: bool,
    /// A node launches it at this moment.
    pub launching: bool,
    /// The newest progress.
    pub progress: Option<Progress>,
    /// Crashes since the last progress.
    pub crashes: u32,
    /// When its time limit is over.
    pub deadline_at: Option<Timestamp>,
    /// How many checkpoints it has.
    pub checkpoints: u32,
    /// How many signals wait to be read.
    pub unread_signals: u32,
    /// Raised by each change that a watcher wants to see.
    pub version: u64,
    /// The ended instance that it retries; left out in lists.
    pub retry_of: Option<String>,
}

impl Instance {
    pub(crate) fn from_wire(wire: wire::Instance) -> Result<Self, String> {
        let optional = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            status: wire.status.parse()?,
            id: wire.id,
            workflow: wire.workflow,
            image: wire.image,
            digest: wire.digest,
            attempt: wire.attempt,
            node: optional(wire.node),
            input: wire.input.map(Payload::from_wire),
            output: wire.output.map(Payload::from_wire),
            failure: wire.failure.map(Failure::from_wire),
            waiting_for: optional(wire.waiting_for),
            wake_at: Timestamp::optional(wire.wake_at),
            created_at: Timestamp::optional(wire.created_at),
            started_at: Timestamp::optional(wire.started_at),
            ended_at: Timestamp::optional(wire.ended_at),
            paused: wire.paused,
            cancel_asked: wire.cancel_asked,
            launching: wire.launching,
            progress: wire.progress.map(|progress| Progress {
                done: progress.done,
                total: (progress.total > 0).then_some(progress.total),
                message: progress.message,
                at: Timestamp::optional(progress.at),
            }),
            crashes: wire.crashes,
            deadline_at: Timestamp::optional(wire.deadline_at),
            checkpoints: wire.checkpoints,
            unread_signals: wire.unread_signals,
            version: wire.version,
            retry_of: optional(wire.retry_of),
        })
    }

    /// The output decoded as JSON; `None` if there is none or it is raw bytes.
    #[must_use]
    pub fn output_json(&self) -> Option<serde_json::Value> {
        json_of(self.output.as_ref())
    }

    /// The input decoded as JSON; `None` if there is none or it is raw bytes.
    #[must_use]
    pub fn input_json(&self) -> Option<serde_json::Value> {
        json_of(self.input.as_ref())
    }
}

fn json_of(payload: Option<&Payload>) -> Option<serde_json::Value> {
    payload
        .filter(|payload| payload.encoding == Encoding::Json)
        .and_then(|payload| serde_json::from_slice(&payload.data).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_back_and_a_wrong_one_names_the_right_ones() {
        for status in Status::ALL {
            assert_eq!(status.as_str().to_lowercase().parse(), Ok(status));
        }
        let error = "DONE".parse::<Status>().expect_err("not a status");
        assert!(error.contains("COMPLETED"), "{error}");
    }

    #[test]
    fn broken_details_do_not_hide_a_failure() {
        let failure = Failure::from_wire(wire::Failure {
            code: "BROKEN".into(),
            message: "it broke".into(),
            retryable: false,
            details: b"{not json".to_vec(),
        });
        assert_eq!(failure.details, Some("{not json".into()));
    }
}
