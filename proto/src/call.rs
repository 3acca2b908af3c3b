//! Calls over one connection: requests with ids, many in flight, answers in any order, and pushes.
//!
//! The client opens one bidirectional stream. Frames up to [`FRAME_MAX_BYTES`] travel on it in both directions;
//! a larger one travels alone on a unidirectional stream of its own. Pushes travel on a unidirectional stream
//! that the server opens for them. The client's first frame is a Hello; it has no answer of its own, so the
//! next request rides in the same flight.
//!
//! What it guarantees: each call ends, with an answer or with the reason why there is none; a future that
//! is dropped never cuts a frame in half; and a peer that is slow, silent or hostile costs at most the numbers
//! of [`crate::limits`]. It never repeats a request: whoever calls knows what is safe to repeat.
//!
//! [`FRAME_MAX_BYTES`]: crate::limits::FRAME_MAX_BYTES

mod budget;
#[cfg(feature = "server")]
mod callee;
mod caller;
#[cfg(feature = "server")]
mod groups;
mod outbox;
mod protocol;

use quinn::{ConnectionError, VarInt};

pub use self::budget::{Allowance, InFlight};
#[cfg(feature = "server")]
pub use self::callee::{Answer, Call, Callee, Replies, Turn};
pub use self::caller::{Caller, Pushes};
#[cfg(feature = "server")]
pub use self::groups::{Groups, Member};
pub use self::protocol::{Frame, InstanceProtocol, ManagementProtocol, Protocol, Refusal};
use crate::code::{Code, Coded};
use crate::frame::FrameError;

/// Why an end closes a connection. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// There is nothing more to say.
    Done,
    /// The Hello was refused; the reason is `CODE: sentence`.
    Refused,
    /// The service stops; another one, or the same one later, goes on.
    ShuttingDown,
    /// The peer broke the protocol.
    Malformed,
    /// A newer session took over.
    Fenced,
}

impl Closing {
    pub(crate) fn wire(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::ShuttingDown => 2,
            Self::Malformed => 3,
            Self::Fenced => 4,
        })
    }
}

/// Why a call has no answer. Cheap to clone: every call in flight gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The connection is gone. Requests without an answer may or may not have had their effect.
    #[error("the connection is lost: {reason}; connect again and repeat what was not answered")]
    Lost {
        /// What ended it.
        reason: String,
    },
    /// The peer refused the Hello; connecting again cannot help.
    #[error("{message} ({code})")]
    Refused {
        /// The peer's code.
        code: Code,
        /// The peer's sentence.
        message: String,
    },
    /// The frame is too large to be sent. Nothing was sent.
    #[error("the request has {bytes} bytes, at most {max} are allowed; send smaller payloads")]
    TooLarge {
        /// The frame's length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The peer broke the protocol; the connection was closed.
    #[error("the peer broke the protocol: {reason}")]
    Malformed {
        /// What was wrong.
        reason: String,
    },
}

impl Coded for CallError {
    fn code(&self) -> Code {
        match self {
            Self::Lost { .. } => Code::Unavailable,
            Self::Refused { code, .. } => *code,
            Self::TooLarge { .. } => Code::InvalidArgument,
            Self::Malformed { .. } => Code::Internal,
        }
    }
}

impl CallError {
    /// The reason that a connection gives for its end.
    pub(crate) fn of_connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                if close.error_code == Closing::Refused.wire() {
                    return Self::refused(&reason);
                }
                Self::Lost { reason: format!("the peer closed it: {reason}") }
            }
            ConnectionError::LocallyClosed => Self::Lost { reason: "it was closed here".to_owned() },
            ConnectionError::TimedOut => {
                Self::Lost { reason: format!("no sign of the peer for {:?}", crate::limits::IDLE_TIMEOUT) }
            }
            // A stateless reset: it does not know this connection, see `crate::restart`.
            ConnectionError::Reset => Self::Lost { reason: "the peer was restarted".to_owned() },
            other => Self::Lost { reason: other.to_string() },
        }
    }

    /// `reason` as [`Refusal::reason`] writes it.
    fn refused(reason: &str) -> Self {
        let (word, message) = reason.split_once(": ").unwrap_or((Code::Internal.as_str(), reason));
        let code = Code::parse(word).unwrap_or(Code::Internal);
        Self::Refused { code, message: message.to_owned() }
    }

    /// What a failed read means; a connection that is lost says so better than its streams do.
    pub(crate) fn of_frame(error: &FrameError, connection: &quinn::Connection) -> Self {
        match (error, connection.close_reason()) {
            (FrameError::Read(_), Some(reason)) => Self::of_connection(&reason),
            (FrameError::Read(source), None) => Self::Lost { reason: source.to_string() },
            (FrameError::TooLarge { .. } | FrameError::TooManyFields { .. } | FrameError::Truncated, _) => {
                Self::Malformed { reason: error.to_string() }
            }
            (FrameError::Malformed(source), _) => Self::Malformed { reason: format!("{error}: {source}") },
        }
    }

    /// What a failed encoding means.
    pub(crate) fn of_encoding(error: &FrameError) -> Self {
        match error {
            FrameError::TooLarge { bytes, max } => Self::TooLarge { bytes: *bytes, max: *max },
            other => Self::Malformed { reason: other.to_string() },
        }
    }
}
