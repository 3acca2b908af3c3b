//! Every size and count that the services enforce, each with its unit and its reason.
//!
//! Sizes of the wire (frames, requests in flight) stand in `dormouse_proto::limits`.

use std::time::Duration;

use dormouse_proto::call::InFlight;
use dormouse_proto::door::Places;

/// Connections of the instance server. A process is a stranger until it has registered. All of the processes of
/// a machine may come from one address, so only strangers are counted by it; many processes that are
/// launched at once are strangers for some milliseconds.
pub const PLACES: Places = Places {
    connections: 10_000,
    of_one_address: 10_000,
    strangers: 2_000,
    strangers_of_one_address: 1_000,
    crowd: 256,
};

/// What the instances of one tenant may have in flight together: half of the whole at most.
pub const IN_FLIGHT_OF_TENANT: InFlight = InFlight { requests: 16_384, bytes: 128 << 20, turns: 512 };

/// What all instances may have in flight together. In memory a request may be some times its bytes, and each turn
/// may hold one payload of the largest size until it is read.
pub const IN_FLIGHT: InFlight = InFlight { requests: 65_536, bytes: 256 << 20, turns: 1_024 };

/// From an instance's hello to its registration.
pub const REGISTER_WITHIN: Duration = Duration::from_secs(10);

/// Requests that a connection may make before it has registered; each costs a look into the database.
pub const REQUESTS_OF_A_STRANGER: usize = 16;

/// How long requests in flight may take when their connection is to end.
pub const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// How long a service that starts waits for a PostgreSQL server that does not answer, only reads or has no
/// connection left. Then it ends, and its service manager starts it again.
pub const DATABASE_PATIENCE: Duration = Duration::from_mins(1);

/// How long the last farewells of a service that ends may take to leave this machine.
pub const LEAVE_WITHIN: Duration = Duration::from_millis(500);

/// Spare processes of one version of an image on each node. Each takes memory for as long as nobody needs it.
pub const SPARES_OF_IMAGE: u32 = 64;

/// Instances that one process may serve, one after the other. What a workflow leaves in its memory ends here.
pub const REUSE: u32 = 10_000;

/// Longest name of an author's type that is kept, in bytes. It only helps people; the rest is cut.
pub const TYPE_NAME_BYTES: usize = 1_000;

/// Longest code of a failure, in bytes.
pub const FAILURE_CODE_BYTES: usize = 200;

/// Longest message of a failure that is kept, in bytes. The rest is cut: an instance must be able to end.
pub const FAILURE_MESSAGE_BYTES: usize = 64 * 1024;

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
    /// Tenants of a cluster. Their list is one answer.
    pub tenants: u64,
    /// Tokens of a tenant, revoked ones included. Their list is one answer.
    pub tokens: u64,
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
            tenants: 10_000,
            tokens: 1_000,
        }
    }
}
