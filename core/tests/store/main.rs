//! The store's contract on both databases.
//!
//! - `contract`: each row of the design's request table, both orders of each pair of writers,
//!   and every rule that the model breaks when it is left out. A case is written once and runs
//!   on SQLite and on PostgreSQL.
//! - `batches`: what many ask at once is stored as one after the other.
//! - `one_batch`: a batch with every outcome, each told to who asked.
//! - `random`: one printed seed drives SQLite, PostgreSQL and the domain over a map; all answer
//!   alike.
//! - `faults`: answers that get lost, and the lock that fences.
//! - `log`: what SQLite keeps of what was written.
//! - `plans`: how the databases carry out each statement once tables are large.
//! - `db`: the databases, with a clock that the test sets.
//!
//! PostgreSQL is found through `DORMOUSE_TEST_POSTGRES` (the URL of a superuser's connection);
//! without it the tests start a server of their own, which goes away with them.

mod batches;
mod contract;
mod db;
mod faults;
#[path = "../../../tests/src/load.rs"]
#[expect(unreachable_pub, clippy::disallowed_methods, reason = "elsewhere it is a library's, of tests")]
mod load;
mod log;
mod one_batch;
mod plans;
mod postgres;
mod random;
