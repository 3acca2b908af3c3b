//! The smallest workflow that wakes again and again: it sleeps, and each of its attempts notes down
//! outside that it ran.

#![expect(clippy::disallowed_methods, reason = "a program of its own, told where to note by its environment")]

use std::{env, fs::OpenOptions, io::Write, time::Duration};

use dormouse_sdk::{Context, Failure, Result};
use serde::Deserialize;

dormouse_sdk::main!(sleeper);

/// How often and how long.
#[derive(Debug, Deserialize)]
struct Sleeper {
    sleeps: u32,
    /// Milliseconds of each.
    pause_ms: u64,
}

/// Its output is the number of the attempt that ended it.
async fn sleeper(ctx: Context, input: Sleeper) -> Result<u32> {
    note(&ctx).map_err(|error| Failure::new("NOT_NOTED", error.to_string()).permanent())?;
    for number in 0..input.sleeps {
        ctx.sleep("nap", Duration::from_millis(input.pause_ms)).key(number).await?;
    }
    Ok(ctx.attempt())
}

/// One write at the end of the file: lines of several processes do not mix.
fn note(ctx: &Context) -> std::io::Result<()> {
    let Some(path) = env::var_os("DORMOUSE_TALLY_FILE") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{} {}\n", ctx.instance_id(), ctx.attempt()).as_bytes())
}
