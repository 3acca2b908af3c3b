//! A workflow that says what it finds in its process, and leaves behind what it is told to.

#![expect(clippy::disallowed_methods, reason = "a program of its own, which looks at its environment")]

use std::{
    env, fs,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    mem,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
    unistd::alarm,
};
use serde::{Deserialize, Serialize};

dormouse_sdk::main!(guest);

/// What it shall leave: a word of [`leave`], or "nothing"; or "wait": it waits for the signal "go" first; or "silent":
/// it writes nothing anywhere.
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
    /// An alarm that somebody set, and that would end the process.
    alarm: Option<u32>,
    /// How many were served before, by a static: what nobody takes back.
    before: u32,
}

static SERVED: AtomicU32 = AtomicU32::new(0);

async fn guest(ctx: Context, guest: Guest) -> Result<Seen> {
    note(&ctx)?;
    if guest.leave != "silent" {
        println!("{} was here", ctx.instance_id());
    }
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
        alarm: alarm::cancel(),
        before: SERVED.fetch_add(1, Ordering::Relaxed),
    };
    if guest.leave != "silent" {
        fs::write("mine", ctx.instance_id()).map_err(failed)?;
    }
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
        "handler" => on_signal(Signal::SIGUSR1, SigHandler::Handler(handle)),
        "ignored" => on_signal(Signal::SIGUSR2, SigHandler::SigIgn),
        "mask" => SigSet::from(Signal::SIGUSR1).thread_block().map_err(refused)?,
        "timer" => start_timer(),
        "limit" => {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard).map_err(refused)?;
        }
        "nice" => {
            let pid = std::process::id().to_string();
            Command::new("renice").args(["-n", "7", "-p", &pid]).output().map_err(failed)?;
        }
        // What the SDK takes back: its signal would end the process.
        "alarm" => drop(alarm::set(1000)),
        // What only the outside can see of its outputs: how they are open, and who else may read them.
        "nonblocking" => {
            fcntl(io::stdout(), FcntlArg::F_SETFL(OFlag::O_APPEND | OFlag::O_NONBLOCK)).map_err(refused)?;
        }
        "linked" => fs::hard_link("../stdout", "../again").map_err(failed)?,
        // Memory that the next one does not pay for.
        "memory" => drop(std::hint::black_box(vec![1_u8; 200 << 20])),
        _ => {}
    }
    Ok(())
}

extern "C" fn handle(_: nix::libc::c_int) {}

#[expect(unsafe_code, reason = "what a workflow may do, is tried")]
fn on_signal(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }.expect("a signal that may be handled");
}

#[expect(unsafe_code, reason = "what a workflow may do, is tried")]
fn start_timer() {
    let mut timer = std::ptr::null_mut();
    // SAFETY: writes one timer's number, which is live.
    let made =
        unsafe { nix::libc::timer_create(nix::libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &raw mut timer) };
    assert_eq!(made, 0, "a timer");
}

/// One line for each attempt that ran, outside.
fn note(ctx: &Context) -> Result<()> {
    let Some(path) = env::var_os("DORMOUSE_TALLY_FILE") else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    file.write_all(format!("{} {}\n", ctx.instance_id(), ctx.attempt()).as_bytes()).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn failed(error: io::Error) -> Failure {
    Failure::new("NOT_DONE", error.to_string()).permanent()
}

fn refused(error: nix::Error) -> Failure {
    failed(error.into())
}
