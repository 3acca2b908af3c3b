//! A workflow that says what it finds in its process, and leaves behind what it is told to.

#![expect(clippy::disallowed_methods, reason = "a program of its own, which looks at its environment")]

use std::{
    env, fs,
    fs::{File, OpenOptions},
    io::Write as _,
    mem,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result};
use serde::{Deserialize, Serialize};

dormouse_sdk::main!(guest);

/// What it shall leave: "nothing", "thread", "task", "file", "child", "orphan", "umask", "directory"; or "wait": it
/// waits for the signal "go" first.
#[derive(Debug, Deserialize)]
struct Guest {
    leave: String,
}

/// What it found.
#[derive(Debug, Serialize)]
struct Seen {
    pid: u32,
    instance: String,
    attempt: u32,
    named: Option<String>,
    left_by_another: Option<String>,
    directory: String,
    tmpdir: String,
    files: usize,
    word: Option<String>,
    /// How many were served before, by a static: what nobody takes back.
    before: u32,
}

static SERVED: AtomicU32 = AtomicU32::new(0);

async fn guest(ctx: Context, guest: Guest) -> Result<Seen> {
    note(&ctx)?;
    println!("{} was here", ctx.instance_id());
    if guest.leave == "wait" {
        ctx.signal::<String>("go").await?;
    }
    let word = ctx.signal::<String>("word").within(Duration::from_millis(1)).await?;
    let directory = env::current_dir().map_err(failed)?;
    let seen = Seen {
        pid: std::process::id(),
        instance: ctx.instance_id().to_owned(),
        attempt: ctx.attempt(),
        named: env::var("NAMED").ok(),
        left_by_another: env::var("LEFT").ok(),
        directory: directory.display().to_string(),
        tmpdir: env::var("TMPDIR").unwrap_or_default(),
        files: fs::read_dir(&directory).map_err(failed)?.count(),
        word,
        before: SERVED.fetch_add(1, Ordering::Relaxed),
    };
    fs::write("mine", ctx.instance_id()).map_err(failed)?;
    leave(&guest.leave)?;
    Ok(seen)
}

fn leave(what: &str) -> Result<()> {
    match what {
        "thread" => {
            thread::spawn(|| {
                loop {
                    thread::park();
                }
            });
        }
        // Ends with the workflow's runtime.
        "task" => drop(tokio::spawn(std::future::pending::<()>())),
        "file" => mem::forget(File::open("/proc/self/status").map_err(failed)?),
        "child" => drop(Command::new("sleep").arg("1000").spawn().map_err(failed)?),
        // Its parent is gone, and it has a session of its own.
        "orphan" => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "setsid sleep 1000 & exit 0"]).env_clear().env("PATH", "/usr/bin:/bin");
            shell.status().map_err(failed)?;
        }
        "umask" => drop(nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077))),
        "directory" => env::set_current_dir("/").map_err(failed)?,
        _ => {}
    }
    Ok(())
}

/// One line for each attempt that ran, outside.
fn note(ctx: &Context) -> Result<()> {
    let Some(path) = env::var_os("DORMOUSE_TALLY_FILE") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    file.write_all(format!("{} {}\n", ctx.instance_id(), ctx.attempt()).as_bytes()).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn failed(error: std::io::Error) -> Failure {
    Failure::new("NOT_DONE", error.to_string()).permanent()
}
