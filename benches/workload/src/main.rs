//! The workflows of all workloads, in one image that links the SDK and nothing else of Dormouse.
//!
//! They are as an author would write them: what is measured is the SDK as it is, with nothing prepared.

use std::{
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use dormouse_sdk::{Context, Failure, Result};
use dormouse_workload::{
    Checkpoints, Passed, Ping, Process, Received, Receiver, Resumed, Resumer, SIGNAL, Saved, Sleeper, Woken,
    now,
};
use futures_util::{StreamExt as _, stream};
use tokio::{io::AsyncReadExt as _, net::UnixStream, time::Instant};

/// Steps of a resumer that are under way at once, while it makes what it will pass again.
const STEPS_AT_ONCE: usize = 64;

/// Does nothing: what it costs is the launch and the ending.
async fn trivial(_: Context, (): ()) -> Result<()> {
    Ok(())
}

/// Tells in which process it runs.
async fn process(_: Context, (): ()) -> Result<Process> {
    Ok(Process { pid: std::process::id(), born_at: born_at()? })
}

/// When this process was started, by its own account of the kernel.
fn born_at() -> Result<u64> {
    const SECONDS_PER_TICK: f64 = 0.01;
    let read = |path, place: fn(&str) -> Option<&str>| -> Result<f64> {
        let text = std::fs::read_to_string(path)?;
        let number = place(&text).and_then(|number| number.parse().ok());
        number.ok_or_else(|| Failure::new("KERNEL", format!("{path} is not as expected: {text}")).permanent())
    };
    let up = read("/proc/uptime", |text| text.split(' ').next())?;
    // The name before it may hold anything.
    let started = read("/proc/self/stat", |text| text.rsplit_once(") ")?.1.split(' ').nth(19))?;
    let age = Duration::try_from_secs_f64(up - started * SECONDS_PER_TICK).unwrap_or_default();
    Ok(now().saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)))
}

/// Saves one checkpoint after the other, and tells how long each took.
async fn checkpoints(ctx: Context, input: Checkpoints) -> Result<Saved> {
    for n in 0..input.warm_up {
        ctx.checkpoint("warm-up", payload(n, input.bytes)).key(n).await?;
    }
    if let Some(gate) = &input.gate {
        pass(gate).await?;
    }
    let mut nanos = Vec::with_capacity(usize::try_from(input.count).unwrap_or_default());
    let begun_at = now();
    for n in 0..input.count {
        let bytes = payload(n, input.bytes);
        let begun = Instant::now();
        ctx.checkpoint("checkpoint", bytes).key(n).await?;
        nanos.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(Saved { begun_at, ended_at: now(), nanos })
}

/// Waits, connected to the benchmark program, until it lets everybody through at once.
async fn pass(gate: &str) -> Result<()> {
    let mut stream = UnixStream::connect(gate).await?;
    let mut byte = [0];
    // An end instead of a byte means that the round was given up.
    stream.read_exact(&mut byte).await?;
    Ok(())
}

/// Bytes that no page and no row can make smaller.
fn payload(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = bytes.div_ceil(8);
    let mut all = Vec::with_capacity(words * 8);
    for _ in 0..words {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(bytes);
    all
}

/// Sleeps, and tells when the process that was launched for the end of the sleep came here.
async fn sleeper(ctx: Context, input: Sleeper) -> Result<Woken> {
    let first_line_at = now();
    ctx.sleep_until("nap", SystemTime::UNIX_EPOCH + Duration::from_micros(input.due_at)).await?;
    Ok(Woken { first_line_at, attempt: ctx.attempt() })
}

/// Takes signals, and tells how old each was when it came.
async fn receiver(ctx: Context, input: Receiver) -> Result<Received> {
    let mut micros = Vec::new();
    for n in 0..input.count {
        let ping: Ping = ctx.signal(SIGNAL).key(n).await?;
        micros.push(now().saturating_sub(ping.sent_at));
    }
    Ok(Received { micros, attempt: ctx.attempt() })
}

/// Does steps in its first launch; in each later one it passes them, and notes when it came to a new one.
async fn resumer(ctx: Context, input: Resumer) -> Result<Resumed> {
    if ctx.attempt() == 1 {
        let steps = stream::iter(0..input.steps).map(|n| step(&ctx, n, input.bytes));
        let mut steps = steps.buffer_unordered(STEPS_AT_ONCE);
        while let Some(done) = steps.next().await {
            done?;
        }
    } else {
        for n in 0..input.steps {
            if step(&ctx, n, input.bytes).await?.len() + 2 != input.bytes {
                return Err(Failure::new("RESULT", "a saved result has not its length").permanent());
            }
        }
    }
    let mut new_step_at = Vec::new();
    for launch in 2..=ctx.attempt() {
        new_step_at.push(ctx.step("new", async || Ok::<_, Failure>(now())).key(launch).await?);
    }
    if ctx.attempt() <= input.resumes {
        // One for each launch after this one; the last of them is not there yet.
        for launch in 2..=ctx.attempt() + 1 {
            ctx.signal::<Ping>(SIGNAL).key(launch).await?;
        }
    }
    Ok(Resumed { new_step_at })
}

async fn step(ctx: &Context, n: u32, bytes: usize) -> Result<String> {
    // Two of its bytes are the quotes.
    ctx.step("step", async || Ok::<_, Failure>("x".repeat(bytes.saturating_sub(2)))).key(n).await
}

/// Passes what is said to be done, to the first step that is not.
async fn loaded(ctx: Context, _: u32) -> Result<Passed> {
    let mut steps = 0;
    loop {
        let is_new = AtomicBool::new(false);
        let run = async || {
            is_new.store(true, Ordering::Relaxed);
            Ok::<_, Failure>(String::new())
        };
        ctx.step("step", run).key(steps + 1).await?;
        if is_new.into_inner() {
            return Ok(Passed { steps, peak_bytes: peak_bytes()? });
        }
        steps += 1;
    }
}

fn peak_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let kilobytes =
        kilobytes.ok_or_else(|| Failure::new("KERNEL", "its status names no peak").permanent())?;
    Ok(kilobytes * 1024)
}

/// Waits for ever, for nothing durable: its process stays.
async fn idle(_: Context, (): ()) -> Result<()> {
    pending().await
}

dormouse_sdk::main!(trivial, process, checkpoints, sleeper, receiver, resumer, loaded, idle);
