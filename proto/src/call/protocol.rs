//! What the two protocols have in common.

use crate::code::{Code, Retry};
use crate::{instance, management};

/// A message that travels as one frame. Requests have an id, answers repeat it, pushes have 0.
pub trait Frame: prost::Message + Default + Send + 'static {
    /// The id.
    fn id(&self) -> u64;
    /// Sets the id.
    fn set_id(&mut self, id: u64);
}

/// A refusal: what an answer says that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code; [`Code::Internal`] for one that this release does not know.
    pub code: Code,
    /// One sentence: field, value, remedy.
    pub message: String,
    /// Whether a repeat of the same request may help.
    pub retryable: bool,
}

impl Refusal {
    /// A refusal that may be repeated if its code says so.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: code.retry() == Retry::Later }
    }

    /// As the reason of a closed connection.
    #[cfg(feature = "server")]
    pub(crate) fn reason(&self) -> String {
        format!("{}: {}", self.code, self.message)
    }

    fn received(code: &str, message: &str, retryable: bool) -> Self {
        match Code::parse(code) {
            Some(code) => Self { code, message: message.to_owned(), retryable },
            None => Self { code: Code::Internal, message: format!("{code}: {message}"), retryable },
        }
    }
}

/// One of the two protocols.
pub trait Protocol: Send + Sync + 'static {
    /// What the client sends.
    type Up: Frame;
    /// What the server sends.
    type Down: Frame;
    /// Names the protocol in the TLS handshake.
    const ALPN: &'static [u8];
    /// The version that this release's client speaks, and the newest that its server speaks.
    const VERSION: u32;
    /// The oldest version that this release's server speaks.
    const OLDEST_VERSION: u32;
    /// For people.
    const NAME: &'static str;

    /// The version in a Hello; `None` if the frame is none.
    fn hello_version(frame: &Self::Up) -> Option<u32>;
    /// The refusal in an answer, if it is one.
    fn refusal(frame: &Self::Down) -> Option<Refusal>;
    /// An answer that is a refusal.
    fn refuse(refusal: Refusal) -> Self::Down;
}

/// Instances and core.
#[derive(Clone, Copy, Debug)]
pub struct InstanceProtocol;

/// Controllers and environment.
#[derive(Clone, Copy, Debug)]
pub struct ManagementProtocol;

macro_rules! protocol {
    ($protocol:ident, $module:ident, $alpn:literal, $version:literal, oldest $oldest:literal, $name:literal) => {
        impl Frame for $module::ClientFrame {
            fn id(&self) -> u64 {
                self.id
            }
            fn set_id(&mut self, id: u64) {
                self.id = id;
            }
        }

        impl Frame for $module::ServerFrame {
            fn id(&self) -> u64 {
                self.id
            }
            fn set_id(&mut self, id: u64) {
                self.id = id;
            }
        }

        impl From<$module::client_frame::Operation> for $module::ClientFrame {
            fn from(operation: $module::client_frame::Operation) -> Self {
                Self { operation: Some(operation), ..Self::default() }
            }
        }

        impl From<$module::server_frame::Outcome> for $module::ServerFrame {
            fn from(outcome: $module::server_frame::Outcome) -> Self {
                Self { outcome: Some(outcome), ..Self::default() }
            }
        }

        impl Protocol for $protocol {
            type Up = $module::ClientFrame;
            type Down = $module::ServerFrame;
            const ALPN: &'static [u8] = $alpn;
            const VERSION: u32 = $version;
            const OLDEST_VERSION: u32 = $oldest;
            const NAME: &'static str = $name;

            fn hello_version(frame: &Self::Up) -> Option<u32> {
                match &frame.operation {
                    Some($module::client_frame::Operation::Hello(hello)) => Some(hello.protocol_version),
                    _ => None,
                }
            }

            fn refusal(frame: &Self::Down) -> Option<Refusal> {
                match &frame.outcome {
                    Some($module::server_frame::Outcome::Error(error)) => {
                        Some(Refusal::received(&error.code, &error.message, error.retryable))
                    }
                    _ => None,
                }
            }

            fn refuse(refusal: Refusal) -> Self::Down {
                let Refusal { code, message, retryable } = refusal;
                let code = code.as_str().to_owned();
                $module::server_frame::Outcome::Error($module::Error { code, message, retryable }).into()
            }
        }
    };
}

protocol!(InstanceProtocol, instance, b"dormouse-instance/1", 1, oldest 1, "instance protocol");
protocol!(ManagementProtocol, management, b"dormouse-management/1", 1, oldest 1, "management protocol");
