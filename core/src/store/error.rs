//! Why the store did not do what was asked. Every refusal is without effect (invariant 9).

use dormouse_proto::code::{Code, Coded};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::domain::{
    access::TokenName,
    id::{Digest, InstanceId, Name, NodeId, Tenant},
    instance::Refusal,
};

/// The store's answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request had no effect, or may have had one ([`Error::Unconfirmed`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The row's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No instance has this id, in this tenant.
    #[error("instance.id {id:?} does not exist; list the instances to see which do")]
    NoInstance {
        /// What was asked for.
        id: String,
    },
    /// Several ids begin like this.
    #[error("instance.id {prefix:?} is the beginning of several: {}; give more characters", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Some of those that it fits, at most [`Error::MAX_CANDIDATES`], the last may be "…".
        candidates: Vec<String>,
    },
    /// The id belongs to an instance that was started otherwise.
    #[error(
        "instance.id {id} exists and was started with another {differs}; choose another id, or repeat the very same start"
    )]
    OtherStart {
        /// The id.
        id: InstanceId,
        /// Which fields differ, in words.
        differs: String,
    },
    /// No image has this name and version, in this tenant.
    #[error("image {name} does not exist; push it first")]
    NoImage {
        /// "name" or "name:version".
        name: String,
    },
    /// The version points at other bytes.
    #[error("image {name}:{version} exists with digest {digest}; push the other bytes under another version")]
    OtherImage {
        /// Its name.
        name: Name,
        /// Its version.
        version: Name,
        /// What is stored.
        digest: Digest,
    },
    /// Not all of its bytes are in the database, or not the right number of them.
    #[error("the bytes of image {digest} are not whole in the database; push it again")]
    ImageIncomplete {
        /// Its digest.
        digest: Digest,
    },
    /// Instances that have not ended need the image.
    #[error(
        "image {name} is used by {instances} instances that have not ended; stop them or wait for their end"
    )]
    ImageInUse {
        /// "name" or "name:version".
        name: String,
        /// How many.
        instances: u64,
    },
    /// The image holds no such entry point, or several and none was named.
    #[error("start.workflow {asked:?} is not in image {image}; it holds: {}", held.join(", "))]
    NoWorkflow {
        /// What was asked for; empty: nothing.
        asked: String,
        /// "name:version".
        image: String,
        /// What the image holds.
        held: Vec<String>,
    },
    /// Only what has ended can be retried.
    #[error("instance {id} has not ended, so there is nothing to retry; wait for its end, or stop it")]
    RetryTooEarly {
        /// The id.
        id: InstanceId,
    },
    /// Only what has ended can be deleted.
    #[error("instance {id} has not ended; stop it before you delete it")]
    NotEnded {
        /// The id.
        id: InstanceId,
    },
    /// No tenant has this name.
    #[error("tenant {tenant} does not exist; create it with `dormouse tenant create {tenant}`")]
    NoTenant {
        /// What was asked for.
        tenant: Tenant,
    },
    /// The tenant was created with other quotas.
    #[error("tenant {tenant} exists with other quotas; change them with `dormouse tenant quota {tenant}`")]
    OtherTenant {
        /// Its name.
        tenant: Tenant,
    },
    /// No token of the tenant has this name.
    #[error("token {name} of tenant {tenant} does not exist; list them with `dormouse token list`")]
    NoToken {
        /// Whose.
        tenant: Tenant,
        /// What was asked for.
        name: TokenName,
    },
    /// A valid token of the tenant has this name.
    #[error("token {name} of tenant {tenant} exists and is valid; choose another name, or revoke it first")]
    OtherToken {
        /// Whose.
        tenant: Tenant,
        /// Its name.
        name: TokenName,
    },
    /// As many of these as there may be.
    #[error("{whose} has {max} {what}, which is the limit; {remedy}")]
    AtLimit {
        /// Who has them.
        whose: String,
        /// What, in the plural.
        what: &'static str,
        /// The limit.
        max: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The tenant's quota of stored instances.
    #[error(
        "tenant {tenant} has {max} instances stored, which is its quota; delete ended ones, or have the cluster's \
         administrator raise it with `dormouse tenant quota {tenant} --max-stored`"
    )]
    StoredQuota {
        /// Whose.
        tenant: Tenant,
        /// The quota.
        max: u64,
    },
    /// The tenant's quota of starts per second.
    #[error(
        "tenant {tenant} may start {max} instances a second, which is its quota; start again in {} ms",
        wait.as_micros().div_ceil(1_000)
    )]
    StartQuota {
        /// Whose.
        tenant: Tenant,
        /// The quota.
        max: u64,
        /// When there is room for the next.
        wait: std::time::Duration,
    },
    /// No attempt has this token.
    #[error("the attempt's token is not known; only a process that this cluster launched may register")]
    UnknownToken,
    /// Larger than its limit.
    #[error("{field} has {len} bytes, at most {max} are allowed; store it elsewhere and pass its address")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A value that this field does not take.
    #[error("{field} is {value}; {remedy}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would pass.
        remedy: &'static str,
    },
    /// As many of these as one instance may have.
    #[error("the instance has {max} {what}, which is the limit; {remedy}")]
    TooMany {
        /// What, in the plural.
        what: &'static str,
        /// The limit.
        max: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The node's lease is lost: somebody watched it unrenewed for its whole length.
    #[error("node {node} does not hold its lease any more; end its processes and take a new lease")]
    LeaseLost {
        /// Which node.
        node: NodeId,
    },
    /// Another process with the same id took the node's lease.
    #[error(
        "the lease of node {node} was taken by another service, {name} at {address}; if its data directory was copied, \
         remove the file `node` from one of the two, with no service running there, and start that one again"
    )]
    LeaseTaken {
        /// Which node.
        node: NodeId,
        /// What the other calls itself.
        name: String,
        /// Where the other's management server is.
        address: String,
    },
    /// No node is called so.
    #[error("node {asked:?} does not exist; known are: {}", known.join(", "))]
    NoNode {
        /// What was asked for.
        asked: String,
        /// Some of those that exist.
        known: Vec<String>,
    },
    /// Several nodes are called so, or their ids begin like this.
    #[error("node {asked:?} fits several: {}; give the id, or more of it", candidates.join(", "))]
    AmbiguousNode {
        /// What was asked for.
        asked: String,
        /// Some of those that it fits.
        candidates: Vec<String>,
    },
    /// The database does not answer, or takes no writes now. Nothing was written.
    #[error("{}; repeat the request", database_state(.0))]
    Unavailable(#[source] sqlx::Error),
    /// The server takes no writes.
    #[error("{READ_ONLY}; repeat the request")]
    ReadOnly,
    /// The connection broke during the commit: the write may be stored, or not.
    #[error("the database did not confirm the write; repeat the request")]
    Unconfirmed(#[source] sqlx::Error),
    /// The disk under the database is full. Nothing was written.
    #[error("the disk of the database is full; free space on it, then repeat the request")]
    DiskFull(#[source] sqlx::Error),
    /// The disk did not flush what was written to the file: it may hold it or not, and nobody can know what else it
    /// has lost. Nothing is repeated; the store is over, and its file is recovered when it is opened anew.
    #[error(
        "the disk did not flush the database's last write; check the disk: the service ends now and recovers at its next start"
    )]
    FlushFailed(#[source] sqlx::Error),
    /// The store is being closed. Nothing was written.
    #[error("the service is shutting down; repeat the request on another or after its restart")]
    Closed,
    /// The database was migrated by a release that this one cannot work beside.
    #[error("the database needs dormouse {needs} or newer, this is {this}; upgrade this service")]
    ReleaseTooOld {
        /// The oldest release that may.
        needs: String,
        /// This one.
        this: String,
    },
    /// The database's address or its file cannot be used.
    #[error("the database {database} cannot be opened: {problem}")]
    Open {
        /// Path or URL, without its password.
        database: String,
        /// Why, and what to do.
        problem: String,
        /// The database's own words.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// A column holds what no release of ours has written.
    #[error(
        "table {table}, key {key:?}, column {column} is unreadable ({problem}); restore the database from a backup"
    )]
    Unreadable {
        /// The table.
        table: String,
        /// The instance's internal key, if the row says it.
        key: Option<i64>,
        /// The column.
        column: String,
        /// What is wrong.
        problem: String,
    },
    /// A statement touched other rows than its guard promised. Rolled back.
    #[error("a statement on table {table} touched {rows} rows instead of one; this is a defect, report it")]
    Broken {
        /// The table.
        table: String,
        /// How many rows.
        rows: u64,
    },
    /// The database refused a statement of ours. Rolled back.
    #[error("the database refused a statement; this is a defect, report it with the service's log")]
    Database(#[source] sqlx::Error),
}

impl Error {
    /// Candidates that an ambiguous prefix names.
    pub const MAX_CANDIDATES: usize = 5;

    /// Whether the request was judged and refused, as opposed to: something broke.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::NoInstance { .. }
            | Self::Ambiguous { .. }
            | Self::OtherStart { .. }
            | Self::NoImage { .. }
            | Self::OtherImage { .. }
            | Self::ImageIncomplete { .. }
            | Self::ImageInUse { .. }
            | Self::NoWorkflow { .. }
            | Self::NotEnded { .. }
            | Self::RetryTooEarly { .. }
            | Self::NoTenant { .. }
            | Self::OtherTenant { .. }
            | Self::NoToken { .. }
            | Self::OtherToken { .. }
            | Self::AtLimit { .. }
            | Self::StoredQuota { .. }
            | Self::StartQuota { .. }
            | Self::UnknownToken
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::TooMany { .. }
            | Self::LeaseLost { .. }
            | Self::LeaseTaken { .. }
            | Self::NoNode { .. }
            | Self::AmbiguousNode { .. } => true,
            Self::Unavailable(_)
            | Self::ReadOnly
            | Self::Unconfirmed(_)
            | Self::DiskFull(_)
            | Self::FlushFailed(_)
            | Self::Closed
            | Self::ReleaseTooOld { .. }
            | Self::Open { .. }
            | Self::Unreadable { .. }
            | Self::Broken { .. }
            | Self::Database(_) => false,
        }
    }

    /// Whether a server that could not be used may be usable soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable(source) | Self::Open { source: Some(source), .. } => {
                is_connection_lost(source) && !is_not_encrypted(source)
            }
            _ => false,
        }
    }

    /// Whether the request lost a race inside the database and may simply be tried again.
    pub(super) fn is_conflict(&self) -> bool {
        let Self::Database(source) = self else { return false };
        // PostgreSQL: serialization failure, deadlock, unique violation (two processes took
        // the same number), lock time-out. SQLite: busy and its extended codes.
        let codes = ["40001", "40P01", "23505", "55P03", "5", "261", "517", "773", "6", "262"];
        database_code(source).is_some_and(|code| codes.contains(&code.as_str()))
    }
}

fn database_code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(std::borrow::Cow::into_owned)
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if is_flush_failed(&error) {
            Self::FlushFailed(error)
        } else if is_connection_lost(&error) {
            Self::Unavailable(error)
        } else if database_code(&error).is_some_and(|code| code == "13" || code == "53100") {
            Self::DiskFull(error)
        } else {
            Self::Database(error)
        }
    }
}

const READ_ONLY: &str =
    "the database is read-only, as a standby or in recovery is; promote it, or name its primary";

/// What [`is_not_encrypted`] means for people.
pub(super) const NOT_ENCRYPTED: &str = "there is no connection to the database as encrypted as sslmode asks: the server offers \
    none, or its certificate is not of the system's authorities or of sslrootcert's, or has another name than its address";

/// Whether the connection is not encrypted as its address asks: waiting does not help.
pub(super) fn is_not_encrypted(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        // What the handshake says of a certificate.
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// What the database's words mean, and what to do about it.
pub(super) fn database_state(error: &sqlx::Error) -> &'static str {
    match database_code(error).as_deref() {
        Some("53300") => {
            "the database has reached its limit of connections; raise max_connections or end other clients"
        }
        Some("25006") => READ_ONLY,
        Some("57P03") => "the database is starting or recovering; wait until it has",
        Some("57P01" | "57P02") => "the database was shut down; start it",
        None if is_not_encrypted(error) => NOT_ENCRYPTED,
        _ => "the database does not answer",
    }
}

/// Whether the server has said that it does not even begin what it was asked.
pub(super) fn is_turned_away(error: &sqlx::Error) -> bool {
    matches!(database_code(error).as_deref(), Some("53300" | "25006" | "57P03"))
}

/// Whether SQLite's file, or its directory, was not flushed. PostgreSQL ends itself then, and recovers.
pub(super) fn is_flush_failed(error: &sqlx::Error) -> bool {
    database_code(error).is_some_and(|code| code == "1034" || code == "1290")
}

/// Whether PostgreSQL ends with this, as it does when its log was not flushed. Whether the log has what was to be
/// flushed is known once it has recovered.
fn is_panic(error: &dyn sqlx::error::DatabaseError) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Panic))
}

/// Whether the connection is of no more use.
pub(super) fn is_connection_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) if is_panic(error.as_ref()) => true,
        // PostgreSQL: classes 08 (connection) and 57 (the server shuts down or starts), too many
        // connections, and a server that only reads: the next connection may reach its successor. SQLite: input/output errors in all their kinds: after a failed flush
        // the connection is not used again.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| match code.parse::<u32>() {
            Ok(number) if code.len() < 5 => number & 0xff == 10,
            _ => code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "25006",
        }),
        _ => false,
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Refused(Refusal::Fenced { .. }) => Code::Fenced,
            Self::Refused(Refusal::Ended { .. } | Refusal::BeingCancelled)
            | Self::ImageInUse { .. }
            | Self::NotEnded { .. }
            | Self::RetryTooEarly { .. }
            | Self::LeaseLost { .. }
            | Self::LeaseTaken { .. }
            | Self::ReleaseTooOld { .. }
            | Self::Open { .. } => Code::FailedPrecondition,
            Self::NoInstance { .. }
            | Self::NoImage { .. }
            | Self::NoNode { .. }
            | Self::NoTenant { .. }
            | Self::NoToken { .. } => Code::NotFound,
            Self::Ambiguous { .. }
            | Self::AmbiguousNode { .. }
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::NoWorkflow { .. } => Code::InvalidArgument,
            Self::OtherStart { .. }
            | Self::OtherImage { .. }
            | Self::OtherTenant { .. }
            | Self::OtherToken { .. } => Code::AlreadyExists,
            Self::UnknownToken => Code::Unauthenticated,
            Self::TooMany { .. }
            | Self::AtLimit { .. }
            | Self::StoredQuota { .. }
            | Self::StartQuota { .. } => Code::ResourceExhausted,
            // A full disk is no limit of whoever asks: a workflow waits until there is space.
            Self::Unavailable(_)
            | Self::ReadOnly
            | Self::Unconfirmed(_)
            | Self::DiskFull(_)
            | Self::FlushFailed(_)
            | Self::Closed
            | Self::ImageIncomplete { .. } => Code::Unavailable,
            Self::Unreadable { .. } | Self::Broken { .. } | Self::Database(_) => Code::Internal,
        }
    }
}
