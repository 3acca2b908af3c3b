//! Every size and count of the management server, each with its unit and its reason.
//!
//! Sizes of the wire stand in `dormouse_proto::limits`, what an instance may store in
//! `dormouse_core::limits`.

use std::time::Duration;

use dormouse_proto::{call::InFlight, door::Places};

/// Clients of the management server. A client is a stranger until its hello was accepted; a script
/// may start hundreds of commands at once on this machine.
pub const PLACES: Places = Places {
    connections: 1_000,
    of_one_address: 500,
    strangers: 500,
    strangers_of_one_address: 400,
    crowd: 128,
};

/// Connections of one tenant: so that none takes all.
pub const CONNECTIONS_OF_TENANT: usize = 500;

/// What the clients of one tenant may have in flight together: half of the whole at most.
pub const IN_FLIGHT_OF_TENANT: InFlight = InFlight { requests: 4_096, bytes: 64 << 20, turns: 128 };

/// What all clients may have in flight together. Each turn may hold one payload of the largest
/// size until it is read; a long poll takes none while it waits.
pub const IN_FLIGHT: InFlight = InFlight { requests: 16_384, bytes: 128 << 20, turns: 256 };

/// How long the last farewells of a service that ends may take to leave this machine.
pub const LEAVE_WITHIN: Duration = Duration::from_millis(500);

/// The longest that a long poll is held; clients ask again.
pub const LONGEST_POLL: Duration = Duration::from_secs(30);

/// Uploads under way, of all connections together: each has a file open.
pub const UPLOADS: usize = 64;

/// Uploads under way of one tenant.
pub const UPLOADS_OF_TENANT: usize = 32;

/// Uploads under way of one connection.
pub const UPLOADS_OF_CONNECTION: usize = 8;

/// How long an upload waits for its next bytes before it is given up: it occupies disk and a place.
/// Longer than one frame may take.
pub const UPLOAD_PATIENCE: Duration = Duration::from_mins(2);

/// Processes of a node that wait for an instance, of all images together. They never take a slot from an attempt.
pub const SPARES_OF_NODE: usize = 256;

/// Spares begun at a time: each launch takes milliseconds of a processor that attempts need more.
pub const SPARES_AT_ONCE: usize = 2;

/// Entries on one page of checkpoints, events or attempts.
pub const PAGE: u32 = 500;

/// Bytes of one page, but always at least one entry: far below the largest frame.
pub const PAGE_BYTES: usize = 1 << 20;

/// Longest name of an author's type, in bytes.
pub const TYPE_NAME_BYTES: usize = 1_000;
