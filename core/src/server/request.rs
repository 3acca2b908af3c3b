//! One function for each operation of a registered instance: parse, ask the store, answer.
//!
//! Every write goes through the store with attempt and session (invariant 2); what is refused is refused with a
//! code and a sentence that names the field (invariant 9). Nothing here keeps state.

use dormouse_proto::call::Refusal;
use dormouse_proto::code::{Code, Coded, Retry};
use dormouse_proto::instance as wire;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{instance_event, suspend_outcome};

use super::wire::{
    checkpoint, cursor, failure, of_inbox, of_page, of_saved, of_stored, operation, payload, present,
    progress, waits,
};
use crate::domain::checkpoint::NewValue;
use crate::domain::id::{Name, ParseError};
use crate::domain::outcome::Ending;
use crate::store::{self, Session, Store, Suspension};
use crate::timings;

/// Why a request of an instance was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A field is missing.
    #[error("{field} is missing; set it")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field is malformed.
    #[error("{field} is {value}; {remedy}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What was given, without any secret.
        value: String,
        /// What would pass.
        remedy: &'static str,
    },
    /// A field is malformed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The store refused, or failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The operation is of a newer release.
    #[error("this release of core does not know the operation; upgrade core")]
    Unknown,
    /// A request came before the registration: nobody knows whose it is.
    #[error(
        "the connection has not registered; send RegisterInstance with the launch document's token first"
    )]
    NotRegistered,
    /// What was sent cannot be a token at all.
    #[error("register.token is {len} bytes long; send the 32 bytes of the launch document")]
    NoToken {
        /// Its bytes.
        len: usize,
    },
    /// A second registration.
    #[error("the connection has registered already; open another connection to register again")]
    Registered,
    /// A spare shows what the node it names has not signed.
    #[error(
        "no node vouches for this spare process any more; it ends, and its node launches another if one is wanted"
    )]
    NotASpare,
    /// Its tenant has as many connections as it may.
    #[error("{0}")]
    Full(String),
    /// A second request of a spare, or one of a process that has an instance.
    #[error("the connection stands by already, or has registered; send RegisterInstance")]
    StandsBy,
    /// The connection was let in for another tenant.
    #[error("the token belongs to another tenant than the connection's; open another connection for it")]
    OtherTenant,
    /// The process says that it is another one than its token's.
    #[error(
        "the token belongs to another attempt than attempt {attempt} of instance {id:?}; send what the launch document says"
    )]
    OtherAttempt {
        /// What was said.
        id: String,
        /// What was said.
        attempt: u32,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Invalid { .. } | Self::Parse(_) => Code::InvalidArgument,
            Self::Store(error) => error.code(),
            Self::Unknown => Code::Unimplemented,
            Self::Registered | Self::StandsBy => Code::FailedPrecondition,
            Self::OtherTenant => Code::PermissionDenied,
            Self::Full(_) => Code::ResourceExhausted,
            Self::NotASpare | Self::NotRegistered | Self::NoToken { .. } | Self::OtherAttempt { .. } => {
                Code::Unauthenticated
            }
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            other => other.code().retry(),
        }
    }
}

impl Error {
    /// As an answer.
    pub(super) fn refusal(&self) -> Refusal {
        Refusal { code: self.code(), message: self.to_string(), retryable: self.retry() == Retry::Later }
    }

    /// Whether a newer attempt or session writes now.
    pub(super) fn is_fenced(&self) -> bool {
        self.code() == Code::Fenced
    }
}

/// Under which name the times of an operation are recorded; none: it only looks.
pub(super) fn timed(operation: &Operation) -> Option<timings::Request> {
    match operation {
        Operation::Checkpoint(_) => Some(timings::Request::Checkpoint),
        Operation::Suspend(_) => Some(timings::Request::Suspend),
        Operation::Event(_) if concludes(operation) => Some(timings::Request::Ending),
        Operation::Event(_) => Some(timings::Request::Event),
        _ => None,
    }
}

/// Whether an accepted answer to this ends the session: the process is leaving.
pub(super) fn concludes(operation: &Operation) -> bool {
    match operation {
        Operation::Suspend(_) => true,
        Operation::Event(event) => {
            matches!(
                event.event,
                Some(instance_event::Event::Completed(_) | instance_event::Event::Failed(_))
            )
        }
        _ => false,
    }
}

/// Whether the session is over with this answer.
pub(super) fn concluded(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Suspend(suspend) => suspend.kind == suspend_outcome::Kind::Suspended as i32,
        Outcome::Event(_) => true,
        _ => false,
    }
}

/// Carries out one operation of a registered instance.
pub(super) async fn perform(
    store: &Store,
    session: &Session,
    operation: Operation,
) -> Result<Outcome, Error> {
    match operation {
        Operation::Checkpoint(request) => save(store, session, request).await,
        Operation::GetCheckpoint(request) => look_up(store, session, request).await,
        Operation::ListCheckpoints(request) => list(store, session, request).await,
        Operation::Suspend(request) => suspend(store, session, request).await,
        Operation::Event(request) => event(store, session, request).await,
        Operation::GetStatus(wire::GetInstanceStatus {}) => status(store, session).await,
        Operation::PollSignals(wire::PollSignals {}) => {
            Ok(Outcome::Inbox(of_inbox(&store.inbox(session).await?)))
        }
        // What arrived is nothing that a transaction needs to know: signals are consumed by the checkpoint that
        // takes them.
        Operation::SignalAck(_) => Ok(Outcome::Acked(wire::SignalAcked {})),
        Operation::Standby(_) => Err(Error::StandsBy),
        Operation::Register(_) => Err(Error::Registered),
        Operation::Hello(_) => Err(Error::Invalid {
            field: "operation",
            value: "a second hello".to_owned(),
            remedy: "send one hello for each connection",
        }),
    }
}

async fn save(store: &Store, session: &Session, request: wire::Checkpoint) -> Result<Outcome, Error> {
    let checkpoint = checkpoint(request)?;
    let echo = !matches!(checkpoint.value, NewValue::Payload(_));
    let (saved, now) = store.save(session, checkpoint).await?;
    Ok(Outcome::Checkpoint(of_saved(saved, echo, now)))
}

async fn look_up(store: &Store, session: &Session, request: wire::GetCheckpoint) -> Result<Outcome, Error> {
    let operation = operation("get_checkpoint.operation", request.operation)?;
    let stored = store.checkpoint(session, operation).await?;
    Ok(Outcome::Found(wire::CheckpointFound { stored: stored.map(of_stored) }))
}

async fn list(store: &Store, session: &Session, request: wire::ListCheckpoints) -> Result<Outcome, Error> {
    Ok(Outcome::Page(of_page(store.resume_page(session, cursor(request.cursor)).await?)))
}

async fn suspend(store: &Store, session: &Session, request: wire::Suspend) -> Result<Outcome, Error> {
    let (suspension, now) = store.suspend(session, waits(request.waits)?).await?;
    let (kind, inbox) = match suspension {
        Suspension::Suspended => (suspend_outcome::Kind::Suspended, None),
        Suspension::Continue(inbox) => (suspend_outcome::Kind::Continue, Some(of_inbox(&inbox))),
    };
    Ok(Outcome::Suspend(wire::SuspendOutcome { kind: kind.into(), inbox, now: now.0 }))
}

async fn event(store: &Store, session: &Session, request: wire::InstanceEvent) -> Result<Outcome, Error> {
    match present("event.event", request.event)? {
        instance_event::Event::Progress(report) => store.progress(session, progress(report)).await?,
        instance_event::Event::Custom(custom) => {
            let name = Name::parse("custom.name", &custom.name)?;
            let payload = payload("custom.payload", present("custom.payload", custom.payload)?)?;
            store.event(session, name, payload).await?;
        }
        // Its arrival is all that it says; whoever hands requests over has noted it and does not answer.
        instance_event::Event::Heartbeat(wire::Heartbeat {}) => {}
        instance_event::Event::Completed(completed) => {
            let output = payload("completed.output", present("completed.output", completed.output)?)?;
            store.end(session, Ending::Completed(output)).await?;
        }
        instance_event::Event::Failed(failed) => {
            let failure = failure(present("failed.failure", failed.failure)?)?;
            store.end(session, Ending::Failed(failure)).await?;
        }
    }
    Ok(Outcome::Event(wire::EventStored {}))
}

async fn status(store: &Store, session: &Session) -> Result<Outcome, Error> {
    let own = store.own_status(session).await?;
    Ok(Outcome::Status(wire::InstanceStatus {
        status: own.status.as_str().to_owned(),
        attempt: own.writer.attempt.0,
        session: own.writer.session.0.into(),
        inbox: Some(of_inbox(&own.inbox)),
        now: own.now.0,
    }))
}
