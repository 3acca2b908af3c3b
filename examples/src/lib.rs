//! Workflows somebody would really run.
//!
//! - [`fixity`](fixity()): audits a folder tree and writes a manifest for `sha256sum -c`.
//! - [`order`](order()): takes an order through stock, bank, an approval of days, and a carrier.
//! - [`batch`](batch()): a CPU-bound synchronous search with raw checkpoints of its own state.
//!
//! Each is a binary of its own, too, and has a sample input in `inputs/`.

mod batch;
mod fixity;
mod order;
mod side_file;

pub use batch::{Batch, Longest, batch};
pub use fixity::{Audit, Report, fixity};
pub use order::{Approval, Order, Receipt, order};
