//! The Dormouse core: what an instance is, where it is stored, and the server that its
//! process talks to.
//!
//! - [`domain`]: pure types and transitions. No clock, no IO, no randomness.
//! - [`store`]: all SQL, over SQLite and PostgreSQL; decides nothing itself.
//! - [`server`]: the instance protocol on port 8001.
//! - [`authority`]: the certificates of this machine, held against those of the cluster.
//! - [`config`]: what the services may be told, in layers. [`logging`]: what they tell.
//!   [`reload`]: changing both while they run.
//! - [`readiness`]: tells a service manager that a service is ready.
//! - [`runtime`]: the threads of a service.
//! - [`watch`]: who is alive, without comparing times; [`advertise`]: what a service tells others of itself.
//! - [`timings`]: how long requests and launches take, stage by stage.
//! - [`fault`]: points at which a test makes a service kill itself.
//!
//! This crate never sees a process: launching and supervising is `dormouse-environment`.

pub mod advertise;
pub mod authority;
pub mod config;
pub mod domain;
pub mod fault;
pub mod limits;
pub mod logging;
pub mod readiness;
pub mod reload;
pub mod runtime;
pub mod server;
pub mod store;
pub mod timings;
pub mod watch;
