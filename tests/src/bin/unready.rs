//! A program that works as any when it is launched for an instance, and ends at once when it shall stand by: as one
//! whose `main` takes something in before the SDK's, and does not find it.

use std::{path::PathBuf, process::ExitCode, thread, time::Duration};

use dormouse_sdk::{Result, blocking::Context};
use serde::Deserialize;

/// Until when it keeps its process.
#[derive(Debug, Deserialize)]
struct Hold {
    /// A file that is there then.
    until: PathBuf,
}

fn main() -> ExitCode {
    // So is a spare called, for people.
    let name = std::env::args().next().unwrap_or_default();
    if name.starts_with("spare") {
        eprintln!("it has no licence");
        return ExitCode::FAILURE;
    }
    dormouse_sdk::image!(hold).run()
}

/// Works all the time: it is not suspended meanwhile.
#[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "as a workflow is declared")]
fn hold(_: Context, hold: Hold) -> Result<u32> {
    while !hold.until.exists() {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(std::process::id())
}
