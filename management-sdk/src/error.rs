//! Everything that a call of this crate can fail with: what was refused, what could not be
//! reached, what could not be read. Every error says what to do about it.

use std::{io, path::PathBuf, time::Duration};

use dormouse_proto::code::Code;

/// Why a call failed. [`Error::code`] and [`Error::retryable`] are for programs, the message
/// is for people and ends with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The services understood the request and refused it; it had no effect.
    #[error("{message}")]
    Refused {
        /// One of the codes of `docs/errors`.
        code: Code,
        /// Field, value and remedy.
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
    /// Nothing is bound to the address.
    #[error("nobody listens at {address}: start it with `dormouse up{}`", with_data_dir(data_dir.as_ref()))]
    NobodyListens {
        /// Host and port that were tried.
        address: String,
        /// Set if the address was read from this data directory.
        data_dir: Option<PathBuf>,
    },
    /// The data directory names no address: no services ever ran in it.
    #[error(
        "no services have run in {}: start them with `dormouse up --data-dir {}`, or name a server with --server or \
         DORMOUSE_SERVER",
        .0.display(), .0.display()
    )]
    NeverStarted(PathBuf),
    /// Packets go out and nothing comes back.
    #[error(
        "no answer from {address}: check the address, a firewall in between (QUIC is UDP), and the services with \
         `dormouse health` on their machine"
    )]
    NoAnswer {
        /// Host and port that were tried.
        address: String,
        /// What the transport said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection was lost and could not be opened again in time.
    #[error(
        "the connection to {address} was lost and did not come back within {} s; what was asked may have been done: \
         ask again with the same id", .patience.as_secs()
    )]
    Lost {
        /// Host and port.
        address: String,
        /// How long it was tried.
        patience: Duration,
        /// The last reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The services do not accept who we say we are, or we do not accept them.
    #[error("the services at {address} and we do not trust each other: {remedy}")]
    Untrusted {
        /// Host and port.
        address: String,
        /// What is wrong, and what to do.
        remedy: String,
        /// What TLS said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is neither a token nor a certificate.
    #[error(
        "there is no credential: set DORMOUSE_TOKEN, give --token-file, or name a data directory whose pki/ has an \
         administrator's certificate ({} has none)", .pki.display()
    )]
    NoCredential {
        /// Where a certificate was looked for.
        pki: PathBuf,
    },
    /// Nothing tells whom to trust.
    #[error(
        "nothing says which services to trust ({} does not exist): name the cluster's authority with --ca or \
         DORMOUSE_CA, by its authority.pem or its fingerprint, which `dormouse certs show` prints on the services' \
         machine", .0.display()
    )]
    NoAuthority(PathBuf),
    /// A certificate or key could not be read.
    #[error(
        "cannot read the administrator's certificate in {}: run this as the user that runs the services, or copy \
         their `pki/` folder", .pki.display()
    )]
    Credentials {
        /// The folder.
        pki: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file is there, and holds no usable certificate.
    #[error("{} holds no usable certificate: copy it again from the services' machine", .path.display())]
    Unusable {
        /// The file, or the folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A local file could not be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An argument that no service would accept.
    #[error("{0}")]
    Argument(String),
    /// A value could not be turned into JSON, or back.
    #[error("{what} is not the JSON that was expected")]
    Json {
        /// Which value.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The services answered something this release does not know.
    #[error("the answer of {address} cannot be read: {what}; use a client of the services' release")]
    Malformed {
        /// Host and port.
        address: String,
        /// What was unexpected.
        what: String,
    },
    /// This machine cannot open a socket or read a random number.
    #[error("this machine cannot open a connection")]
    Local(#[source] io::Error),
}

impl Error {
    /// The error's code, in the words of the wire.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::NobodyListens { .. }
            | Self::NeverStarted(_)
            | Self::NoAnswer { .. }
            | Self::Lost { .. } => Code::Unavailable,
            Self::Untrusted { .. }
            | Self::NoCredential { .. }
            | Self::NoAuthority(_)
            | Self::Credentials { .. }
            | Self::Unusable { .. } => Code::Unauthenticated,
            Self::File { .. } | Self::Argument(_) | Self::Json { .. } => Code::InvalidArgument,
            Self::Malformed { .. } | Self::Local(_) => Code::Internal,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused { retryable, .. } => *retryable,
            Self::NobodyListens { .. }
            | Self::NeverStarted(_)
            | Self::NoAnswer { .. }
            | Self::Lost { .. } => true,
            Self::Untrusted { .. }
            | Self::NoCredential { .. }
            | Self::NoAuthority(_)
            | Self::Credentials { .. }
            | Self::Unusable { .. }
            | Self::File { .. }
            | Self::Argument(_)
            | Self::Json { .. }
            | Self::Malformed { .. }
            | Self::Local(_) => false,
        }
    }

    /// Whether the services could not be reached at all, as opposed to having refused.
    #[must_use]
    pub fn unreachable(&self) -> bool {
        matches!(
            self,
            Self::NobodyListens { .. }
                | Self::NeverStarted(_)
                | Self::NoAnswer { .. }
                | Self::Lost { .. }
                | Self::Untrusted { .. }
                | Self::NoCredential { .. }
                | Self::NoAuthority(_)
                | Self::Credentials { .. }
                | Self::Unusable { .. }
        )
    }

    /// Whether the services refused with this code.
    #[must_use]
    pub fn refused_with(&self, wanted: Code) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

fn with_data_dir(data_dir: Option<&PathBuf>) -> String {
    data_dir.map(|dir| format!(" --data-dir {}", dir.display())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_service_says_how_to_start_it() {
        let error = Error::NobodyListens { address: "127.0.0.1:8002".into(), data_dir: None };
        assert_eq!(error.to_string(), "nobody listens at 127.0.0.1:8002: start it with `dormouse up`");
        let error =
            Error::NobodyListens { address: "127.0.0.1:8002".into(), data_dir: Some("/srv/d".into()) };
        assert!(error.to_string().ends_with("`dormouse up --data-dir /srv/d`"), "{error}");
        assert!(error.unreachable() && error.retryable());
    }

    #[test]
    fn a_refusal_is_not_unreachable() {
        let error = Error::Refused { code: Code::NotFound, message: "no".into(), retryable: false };
        assert!(!error.unreachable());
        assert!(error.refused_with(Code::NotFound));
    }
}
