//! Sizes, counts and times of the wire, each with its reason. Both ends rely on them, so they are constants:
//! changing one changes the protocol.

use std::time::Duration;

/// Largest frame on a connection's main stream, in bytes, without its length prefix. Small enough that one
/// frame never holds up the others for long.
pub const FRAME_MAX_BYTES: usize = 256 * 1024;

/// Largest payload of a checkpoint, a signal, an event, an input or an output, in bytes.
pub const PAYLOAD_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Largest frame at all, in bytes: a payload, and 64 KiB for what surrounds it. Above [`FRAME_MAX_BYTES`] a
/// frame travels alone, on a unidirectional stream.
pub const BULK_FRAME_MAX_BYTES: usize = PAYLOAD_MAX_BYTES + 64 * 1024;

/// Requests of one connection that may be without an answer at a time. Further ones wait.
pub const REQUESTS_IN_FLIGHT: usize = 256;

/// Bytes of requests of one connection that may be without an answer at a time. Further ones wait. Holds
/// three frames of the largest size.
pub const BYTES_IN_FLIGHT: usize = 16 * 1024 * 1024;

/// Requests of one connection that are carried out at a time, or whose answers wait to be read; the others wait
/// their turn. An answer may hold a payload of the largest size, however small its request was.
pub const TURNS: usize = 32;

/// Unidirectional streams that a peer may have open at a time, once it has proved that it may be here. Before
/// that: none.
pub const BULK_STREAMS: u32 = 16;

/// Fields of one request, counted before it is decoded: a field of two bytes may become a hundred in memory.
pub const REQUEST_FIELDS: usize = 16_384;

/// Pushes that a client keeps for a reader that is busy; the server's next ones wait at the server.
pub const PUSHES_WAITING: usize = 16;

/// Longest name (step, signal, image, version, label), in bytes of UTF-8.
pub const NAME_MAX_BYTES: usize = 200;

/// A connection without a sign of the peer for so long is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A quiet connection shows a sign this often: well below [`IDLE_TIMEOUT`], so that three lost packets in a
/// row do not end it.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A handshake takes at most so long, for each address of the peer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// From the handshake to the complete first frame.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// From the first byte of a frame to its last. A peer that is slower loses the connection, because
/// what has arrived of the frame occupies memory.
pub const FRAME_TIMEOUT: Duration = Duration::from_mins(1);

/// From an answer or a push that is ready to its last byte's being handed to the connection. A peer that
/// reads slower, or not at all, loses the connection, because what it does not read occupies memory.
pub const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// How long an end that closes a connection waits until its last answers are acknowledged.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that a peer may send on one stream before they are read.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes that a peer may send on all streams of a connection before they are read.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The same before the peer has proved that it may be here: a hello and a registration have some hundred bytes.
pub const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;

/// Bytes that are sent and not yet acknowledged, per connection: they stay in memory.
pub const SEND_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Receive and send buffer asked for a server's one UDP socket, in bytes. The kernel gives at most
/// `net.core.rmem_max` and `net.core.wmem_max`.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Handshakes that a server has under way at a time; more are refused until some are done.
pub const HANDSHAKES: usize = 1024;

/// Bytes that one client may send before its connection is looked at, and all of them together.
pub const HANDSHAKE_BYTES: u64 = 64 * 1024;
/// See [`HANDSHAKE_BYTES`].
pub const HANDSHAKES_BYTES: u64 = 16 * 1024 * 1024;
