//! The threads of a service.

use std::{io, num::NonZero, thread};

use tokio::runtime::{Builder, Runtime};

/// A runtime for a service that serves instances: half as many threads as processors, at least one.
///
/// A checkpoint goes from the socket through several tasks to the database and back. Each of them only hands over,
/// and a second idle thread is woken to share what is done before it has woken up; both then wait for the same
/// connection's lock (decision 0041). The other processors are for the database, what blocks, and the instances.
pub fn serving() -> io::Result<Runtime> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread().worker_threads((processors / 2).max(1)).enable_all().build()
}
