//! What an instance is and what may happen to it: types and pure functions.
//!
//! Nothing here reads a clock, does IO or draws a random number: time, facts of the database
//! and jitter are arguments. [`instance`] is the table "state × request" of the design; the
//! store locks a row, asks it, and writes what it answers.

pub mod access;
pub mod checkpoint;
pub mod event;
pub mod id;
pub mod instance;
pub mod outcome;
pub mod payload;
pub mod signal;
pub mod time;
pub mod wake;

#[cfg(test)]
mod table;
