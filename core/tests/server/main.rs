//! The instance server under a raw client, on both databases: what a process of any language may send.
//!
//! - `core`: a server on a database of its own, and the client.
//! - `life`: registering, saving, suspending, ending, and who may not any more.
//! - `pushes`: hearing of signals, cancels, pauses, endings.
//! - `refusals`: what is missing, malformed, too large or unknown.
//! - `replicas`: several cores, and handing sessions over.
//! - `shutdown`: leaving and coming back.
//! - `spares`: who has no instance yet, and who has one after the other.

#[macro_use]
mod core;
#[expect(dead_code, reason = "shared with the store's tests, which use more of it")]
#[path = "../store/db.rs"]
mod db;
mod life;
#[path = "../store/postgres.rs"]
mod postgres;
mod pushes;
mod refusals;
mod replicas;
mod shutdown;
mod spares;
