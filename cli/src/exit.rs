//! Exit codes: a documented table, and the one place that turns an error into one.

use std::{error::Error as StdError, fmt, process::ExitCode};

use dormouse_core::{authority, config, server, store};
use dormouse_environment::{node::DirectoryError, service};
use dormouse_management_sdk::{Code, Error as ClientError, Instance, Status};
use dormouse_proto::{code::Coded, identity::IdentityError};

/// What the command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; of `run`, `wait` and `start --wait`: COMPLETED.
    Done,
    /// An error of ours, or of this machine.
    Internal,
    /// The command line is wrong.
    Usage,
    /// The services refused; the message begins with the error code.
    Refused,
    /// The services could not be reached.
    Unreachable,
    /// `doctor --data` found what breaks an invariant.
    Violated,
    /// The instance FAILED.
    Failed,
    /// The instance was CANCELLED.
    Cancelled,
    /// The instance has not ended in time.
    WaitedTooLong,
    /// Ctrl-C.
    Interrupted,
}

/// The table, as `--help` shows it.
pub(crate) const TABLE: &str = "\
Exit codes of every command:
    0  done
    1  internal error, or this machine lacks something
    2  wrong usage
    3  refused by the services; the message begins with the error code
    4  the services cannot be reached
    5  `doctor --data`: something stored is missing, broken or stuck
  130  interrupted
Exit codes of `run`, `wait` and `start --wait`:
    0  COMPLETED
   10  FAILED
   11  CANCELLED
   12  waited too long";

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::Violated => 5,
            Self::Failed => 10,
            Self::Cancelled => 11,
            Self::WaitedTooLong => 12,
            Self::Interrupted => 130,
        }
    }

    /// Of an instance that was waited for.
    pub(crate) fn of(instance: &Instance) -> Self {
        match instance.status {
            Status::Completed => Self::Done,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Pending | Status::Running | Status::Suspended => Self::WaitedTooLong,
        }
    }

    /// Of an error: by the client's own error or a [`Usage`] in its chain.
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        if error.is::<Usage>() || error.is::<config::Error>() {
            return Self::Usage;
        }
        if let Some(code) = error.chain().find_map(service_code) {
            return if code == Code::Internal { Self::Internal } else { Self::Refused };
        }
        match error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()) {
            Some(ClientError::Refused { code: Code::Internal, .. }) | None => Self::Internal,
            Some(ClientError::Refused { .. }) => Self::Refused,
            Some(ClientError::Argument(_) | ClientError::Json { .. } | ClientError::File { .. }) => {
                Self::Usage
            }
            Some(error) if error.unreachable() => Self::Unreachable,
            Some(_) => Self::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The command line asks for something that cannot be; the message says what would.
#[derive(Debug)]
pub(crate) struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Usage {}

/// The code of an error of the services that were to run in this process, if it is one.
fn service_code(cause: &(dyn StdError + 'static)) -> Option<Code> {
    fn of<E: Coded + 'static>(cause: &(dyn StdError + 'static)) -> Option<Code> {
        cause.downcast_ref::<E>().map(Coded::code)
    }
    of::<DirectoryError>(cause)
        .or_else(|| of::<authority::Error>(cause))
        .or_else(|| of::<IdentityError>(cause))
        .or_else(|| of::<store::Error>(cause))
        .or_else(|| of::<server::Error>(cause))
        .or_else(|| of::<service::Error>(cause))
}

/// The error in one line, with its causes; a refusal begins with its code.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let refusal = error.chain().find_map(service_code).filter(|code| *code != Code::Internal);
    let mut text = refusal.map(|code| code.as_str().to_owned()).unwrap_or_default();
    for cause in error.chain() {
        let part = match cause.downcast_ref::<ClientError>() {
            Some(ClientError::Refused { code, message, .. }) => format!("{}: {message}", code.as_str()),
            Some(_) | None => cause.to_string(),
        };
        // Some causes repeat what their effect says.
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_every_code() {
        for exit in [
            Exit::Done,
            Exit::Internal,
            Exit::Usage,
            Exit::Refused,
            Exit::Unreachable,
            Exit::Failed,
            Exit::Cancelled,
            Exit::WaitedTooLong,
            Exit::Interrupted,
        ] {
            assert!(TABLE.contains(&format!("{:>5}  ", exit.code())), "{exit:?}");
        }
    }

    #[test]
    fn errors_end_as_the_table_says() {
        let of = |error: ClientError| Exit::of_error(&anyhow::Error::from(error).context("while testing"));
        let refused = |code| ClientError::Refused { code, message: "no".into(), retryable: false };
        assert_eq!(of(refused(Code::NotFound)), Exit::Refused);
        assert_eq!(of(refused(Code::Internal)), Exit::Internal);
        assert_eq!(of(ClientError::NeverStarted("/nowhere".into())), Exit::Unreachable);
        assert_eq!(of(ClientError::Argument("no".into())), Exit::Usage);
        assert_eq!(Exit::of_error(&Usage("no".into()).into()), Exit::Usage);
        assert_eq!(Exit::of_error(&anyhow::anyhow!("oops")), Exit::Internal);
    }

    #[test]
    fn a_refusal_begins_with_its_code() {
        let refused =
            ClientError::Refused { code: Code::NotFound, message: "no such id".into(), retryable: false };
        assert_eq!(sentence(&refused.into()), "NOT_FOUND: no such id");
        let error = anyhow::anyhow!("the disk is full").context("cannot write the manifest");
        assert_eq!(sentence(&error), "cannot write the manifest: the disk is full");
    }
}
