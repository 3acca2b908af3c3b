//! A process from its start to its end: one that does nothing, and one that connects.

use std::{
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::peer::Server;
use crate::{
    context::Context,
    figure::{Figure, Latencies},
    registry::Findings,
};

/// At a time, each started as soon as the one before has ended.
const AT_ONCE: u32 = 16;

pub(crate) fn spawn(context: &Context) -> anyhow::Result<Findings> {
    let program = context.programs().launched("probe-exit")?;
    tokio::task::block_in_place(|| {
        measure(context, "spawn", "a static program that ends at once", || Ok(Command::new(&program)))
    })
}

pub(crate) fn connect(context: &Context) -> anyhow::Result<Findings> {
    tokio::task::block_in_place(|| {
        let server = Server::start(context)?;
        let what = "a static program with a runtime, a verified TLS 1.3 handshake and one round trip";
        measure(context, "connect", what, || server.client(context, "connect"))
    })
}

fn measure(
    context: &Context,
    id: &str,
    what: &str,
    command: impl Fn() -> anyhow::Result<Command> + Sync,
) -> anyhow::Result<Findings> {
    let (warm_up, count) = (context.count(50, 1), context.count(500, 3));
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        in_sequence(warm_up, &command)?;
        alone.push(in_sequence(count, &command)?);
        together.push(at_once(context.count(100, 1), &command)?);
    }
    let sequential = format!(
        "{what}, one after the other, from its start until it is waited for; {count} a round after {warm_up}"
    );
    Ok(vec![
        Figure::latency(id, sequential, &alone),
        Figure::rate(format!("{id}.16"), format!("the same, {AT_ONCE} at a time"), together),
    ]
    .into())
}

fn in_sequence(count: u32, command: &impl Fn() -> anyhow::Result<Command>) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new();
    for _ in 0..count {
        let mut command = command()?;
        let began = Instant::now();
        run(&mut command)?;
        latencies.add(began.elapsed());
    }
    Ok(latencies)
}

/// Per second, of so many each.
fn at_once(each: u32, command: &(impl Fn() -> anyhow::Result<Command> + Sync)) -> anyhow::Result<f64> {
    let began = Instant::now();
    thread::scope(|scope| {
        let starters: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| in_sequence(each, command))).collect();
        for starter in starters {
            starter.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(f64::from(each * AT_ONCE) / began.elapsed().as_secs_f64())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let status = command.stdin(Stdio::null()).status().context(program.clone())?;
    if !status.success() {
        bail!("{program} failed, {status}; what it said stands above");
    }
    Ok(())
}
