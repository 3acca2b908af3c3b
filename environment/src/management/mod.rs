//! The management protocol on port 8002: controllers and operators start, look at and steer
//! instances here.
//!
//! Every client proves itself: by an administrator's certificate of the cluster's authority, which
//! gives every right and the tenant `default`, or by a token in its hello. The tenant comes
//! from the credential and goes into every call of the store (invariant 8).
//!
//! - [`server`]: connections, and the one table from operation to function.
//! - `credential`: whom a client is taken for, and whether that still holds. `rights`: the one table
//!   from operation to the least role.
//! - `parse`: wire to typed values, once; every limit is checked here, before memory is taken.
//! - `instances`, `images`, `history`, `logs`, `nodes`, `tenants`, `retention`: one group of operations
//!   each.
//! - `describe`: what the store says, as messages. [`sentence`]: what an instance waits for.
//! - `watchers`: wakes long polls; a slow poll stands beneath them.
//!
//! It decides nothing about instances: the store does, by the domain's rules. What is refused is
//! answered with a code and a sentence, and had no effect (invariant 9). The server never pushes.

mod certificates;
mod cores;
mod credential;
mod describe;
mod history;
mod images;
mod instances;
mod logs;
mod nodes;
mod parse;
mod retention;
mod rights;
pub mod sentence;
mod server;
mod tenants;
mod uploads;
mod watchers;

pub use self::server::{Error, Options, Parts, Server, ThisNode};
