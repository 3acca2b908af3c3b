//! Watches the processes of instances.
//!
//! - [`exit`]: one process until its end, and how it ended.
//! - [`adopt`]: which processes of this service's earlier life still run.
//! - [`logs`]: output files, held to a limit and read by offset.
//!
//! It believes the row, not the exit code: whether an end was a crash is the store's to say.

mod adopt;
mod exit;
mod group;
pub mod logs;

pub use self::{
    adopt::{Found, adopt},
    exit::{Exit, Grace, Process, STDERR_TAIL},
};
