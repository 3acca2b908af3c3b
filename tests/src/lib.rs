//! Whole-system tests of Dormouse: real processes, real databases, real faults.
//!
//! This library is the means: it starts the workspace's services on a data directory and a
//! database of their own ([`cluster`]), kills what a test wants killed ([`fault`], [`postgres`]),
//! and waits for states ([`wait`]). The tests are in `tests/all`, one binary, a module each.
//!
//! It never looks into a service: what a test knows it knows from the management protocol, from
//! the kernel, or from files that a workflow wrote. [`workload`] has work to disturb, [`probe`] and [`raw`] an instance
//! for which the test itself speaks, [`writers`] many that write at once; [`trace`] sees a service's system calls;
//! [`load`] fills a database as if many had lived in it for long.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start processes, read where their server is, and measure how long they wait"
)]

pub mod binaries;
pub mod cluster;
pub mod controller;
pub mod database;
pub mod fault;
pub mod guard;
pub mod keyholder;
pub mod load;
pub mod machines;
pub mod postgres;
pub mod previous;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod stranger;
pub mod tally;
pub mod trace;
pub mod wait;
pub mod workload;
pub mod writers;
