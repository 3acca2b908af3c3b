//! 1 KiB there and 64 bytes back by QUIC between two processes: what a durable step costs where nothing is
//! durable.

use std::time::Instant;

use anyhow::Context as _;

use super::peer::{Server, Talking, latencies};
use crate::{context::Context, figure::Figure, registry::Findings};

/// Connections at once, a process each, as instances are.
const CLIENTS: u32 = 64;

pub(crate) fn measure(context: &Context) -> anyhow::Result<Findings> {
    tokio::task::block_in_place(|| {
        let server = Server::start(context)?;
        Ok(vec![
            alone(context, &server)?,
            at_once(context, &server, CLIENTS, 1)?,
            at_once(context, &server, 1, CLIENTS)?,
        ]
        .into())
    })
}

fn alone(context: &Context, server: &Server) -> anyhow::Result<Figure> {
    let (warm_up, count) = (context.count(1000, 1), context.count(10_000, 5));
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let mut client = server.client(context, "echo")?;
        rounds.push(latencies(client.args([warm_up.to_string(), count.to_string()]))?);
    }
    let what = format!("1 KiB there, 64 B back, one after the other; {count} a round after {warm_up}");
    Ok(Figure::latency("echo", what, &rounds))
}

/// All connections at once, from so many processes with so many connections each.
fn at_once(context: &Context, server: &Server, processes: u32, connections: u32) -> anyhow::Result<Figure> {
    let (warm_up, count) = (context.count(100, 1), context.count(1000, 2));
    let mut clients = Vec::new();
    for _ in 0..processes {
        let mut command = server.client(context, "burst")?;
        clients.push(Talking::start(command.arg(connections.to_string()))?);
    }
    clients.iter_mut().try_for_each(|client| client.expect("ready"))?;
    burst(&mut clients, warm_up)?;
    let all = f64::from(processes * connections * count);
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let began = Instant::now();
        burst(&mut clients, count)?;
        rounds.push(all / began.elapsed().as_secs_f64());
    }
    let (id, from) = match processes {
        1 => ("echo.64.one", "of one process"),
        _ => ("echo.64", "a process each"),
    };
    let what = format!(
        "the same from {} connections at once, {from}; {count} each after {warm_up}",
        processes * connections
    );
    Ok(Figure::rate(id, what, rounds))
}

fn burst(clients: &mut [Talking], count: u32) -> anyhow::Result<()> {
    clients.iter_mut().try_for_each(|client| client.tell(&count.to_string()))?;
    clients.iter_mut().try_for_each(|client| client.expect("done")).context("a client of the echo")
}
