//! How long a bare process needs to open a database: what the start of a service is held against.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::context::{Context, Database};

/// From the start of a process until it has opened this database, read from it and ended. It ends without closing
/// it, so after a kill the next one has as much to recover.
pub(crate) fn time_to_open(context: &Context, database: &Database) -> anyhow::Result<Duration> {
    let mut command = Command::new(context.programs().path("probe-open")?);
    match database {
        Database::Sqlite(path) => command.arg(path),
        Database::Postgres { url } => command.arg(url),
    };
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let took = began.elapsed();
    if !output.status.success() || output.stdout != b"ready\n" {
        bail!("probe-open failed, {}; what it said stands above", output.status);
    }
    Ok(took)
}
