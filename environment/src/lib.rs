//! The Dormouse environment: keeps images, launches instances' processes and watches them.
//!
//! - `house`: what is removed after its time, and where images are kept.
//! - [`images`]: compiled workflows, named by their digest.
//! - [`limits`]: sizes and counts of the management server.
//! - [`launcher`]: starts a process, in one fixed order.
//! - [`attempts`]: the directories of attempts, and what ended ones leave behind.
//! - [`node`]: the lock on the data directory, the node's id and slots.
//! - [`lease`]: renews the node's lease, tells how the node is ([`condition`], [`machine`]), and
//!   hears what is asked of it.
//! - [`pace`]: how many launches are under way at once, found by measuring.
//! - [`watch`]: watches the other nodes' leases, and takes over what lost ones held.
//! - [`scheduler`]: claims due wakes while slots are free.
//! - [`eager`]: starts that are claimed where they are asked for.
//! - `spares`: processes that stand ready.
//! - [`supervisor`]: exits, output, adoption after a restart.
//! - [`management`]: the server that controllers talk to.
//! - `cores`: where core is, for the processes.
//! - [`service`]: the environment and its management server in one piece.
//! - [`environment`]: all of these, wired.
//! - [`config`]: what the settings mean here.
//!
//! This crate never sees a connection of an instance: that is `dormouse-core`'s server.

pub mod attempts;
pub mod condition;
pub mod config;
mod cores;
pub mod eager;
pub mod environment;
mod house;
pub mod images;
pub mod launcher;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod management;
pub mod node;
pub mod pace;
pub mod process;
pub mod scheduler;
pub mod service;
mod spares;
pub mod supervisor;
pub mod watch;
