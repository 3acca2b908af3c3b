//! A workflow with a mistake in its last step, that another version of it mends: a copy of this very
//! program with `MENDED` behind its end.

#![expect(clippy::disallowed_methods, reason = "a program of its own, told where to note by its environment")]

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result};

dormouse_sdk::main!(fixable);

const MENDED: &[u8] = b"MENDED";

/// Reserves, charges, naps and ships; its output is what it shipped.
async fn fixable(ctx: Context, item: String) -> Result<String> {
    let hold = ctx.step("reserve", async || note(&ctx, "reserve")).await?;
    let payment = ctx.step("charge", async || note(&ctx, "charge")).await?;
    ctx.sleep("nap", Duration::from_millis(1)).await?;
    ctx.step("ship", async || {
        note(&ctx, "ship")?;
        if is_mended().map_err(|error| failed(&error))? {
            return Ok(());
        }
        Err(Failure::new("NO_CARRIER", "this version knows no carrier").permanent())
    })
    .await?;
    Ok(format!("{item} for {payment} from {hold}"))
}

/// What it did, outside; answers by whom.
fn note(ctx: &Context, step: &str) -> Result<String> {
    let path = env::var_os("DORMOUSE_TALLY_FILE").unwrap_or_default();
    let file = OpenOptions::new().create(true).append(true).open(path);
    let line = format!("{} {step}\n", ctx.instance_id());
    file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| failed(&error))?;
    Ok(ctx.instance_id().to_owned())
}

fn is_mended() -> io::Result<bool> {
    let mut own = File::open("/proc/self/exe")?;
    own.seek(SeekFrom::End(-6))?;
    let mut end = [0; 6];
    own.read_exact(&mut end)?;
    Ok(end == MENDED)
}

fn failed(error: &io::Error) -> Failure {
    Failure::new("NOT_NOTED", error.to_string()).permanent()
}
