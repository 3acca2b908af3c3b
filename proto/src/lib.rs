//! The wire of Dormouse: messages, frames, calls over QUIC and the identities of the services.
//!
//! It moves frames between two ends and bounds what a peer can cost: sizes are checked before memory is
//! taken, requests and bytes in flight are counted, and each wait on a peer ends. It never decides what a
//! request means, and it never touches a store.
//!
//! | module | holds |
//! |---|---|
//! | [`instance`], [`management`], [`launch`] | the messages, generated from `proto/*.proto` |
//! | [`frame`] | the length prefix of a message |
//! | [`call`] | requests and answers, many in flight, and pushes, over one connection |
//! | `door` (feature `server`) | who may come in: places for connections |
//! | [`endpoint`] | the one place that configures quinn and rustls |
//! | [`trust`] | whom a client trusts, by certificate or by fingerprint |
//! | `peer` (feature `server`) | who a client proved to be by its certificate |
//! | `standby` (feature `server`) | what a spare process proves itself by |
//! | `identity` (feature `identity`) | the cluster's authority and the certificates it signs |
//! | [`code`] | the table of error codes |
//! | [`limits`] | sizes, counts and times of the wire |
//!
//! Features: `client` (default) is what a workflow carries, `server` adds the answering end, `identity` makes
//! certificates.

pub mod call;
pub mod code;
#[cfg(feature = "server")]
pub mod door;
pub mod endpoint;
pub mod frame;
#[cfg(feature = "identity")]
pub mod identity;
pub mod limits;
#[cfg(feature = "server")]
pub mod peer;
#[cfg(feature = "server")]
mod restart;
mod secret;
#[cfg(feature = "server")]
pub mod standby;
pub mod trust;

/// The instance protocol: a workflow's process and core.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod instance {
    include!("generated/dormouse.instance.v1.rs");
}

/// What the environment hands to a process that it launches.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod launch {
    include!("generated/dormouse.launch.v1.rs");
}

/// The management protocol: controllers and environment.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod management {
    include!("generated/dormouse.management.v1.rs");
}
