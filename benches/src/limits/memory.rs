//! What a process that holds a QUIC connection needs, and what each connection costs a server.

use super::peer::{Server, Talking};
use crate::{
    context::Context,
    figure::{Figure, Unit, median},
    memory::private_bytes,
    registry::Findings,
};

/// Of one program; of a single process its own pages would count as private.
const PROCESSES: u32 = 8;

pub(crate) fn measure(context: &Context) -> anyhow::Result<Findings> {
    tokio::task::block_in_place(|| {
        let connections = context.count(256, 2);
        let (mut held, mut served) = (Vec::new(), Vec::new());
        for _ in 0..context.rounds() {
            held.push(of_a_client(context)?);
            served.push(of_a_connection(context, connections)?);
        }
        Ok(vec![
            Figure::of(
                Unit::Bytes,
                "bare.bytes",
                format!("private memory of a static process that holds a connection; the middle one of {PROCESSES}"),
                held,
            ),
            Figure::of(
                Unit::Bytes,
                "server.bytes",
                format!("private memory of quinn's server for each of {connections} connections that were never used"),
                served,
            ),
        ]
        .into())
    })
}

fn of_a_client(context: &Context) -> anyhow::Result<f64> {
    let server = Server::start(context)?;
    let mut clients = Vec::new();
    for _ in 0..PROCESSES {
        clients.push(hold(context, &server, 1)?);
    }
    let bytes = clients.iter().map(|client| Ok(precise(private_bytes(client.pid())?)));
    Ok(median(&bytes.collect::<anyhow::Result<Vec<_>>>()?))
}

fn of_a_connection(context: &Context, connections: u32) -> anyhow::Result<f64> {
    let server = Server::start(context)?;
    // The first connections make what all share.
    let first = hold(context, &server, 8)?;
    let before = precise(private_bytes(server.pid())?);
    let others = hold(context, &server, connections)?;
    let after = precise(private_bytes(server.pid())?);
    drop((first, others));
    Ok((after - before) / f64::from(connections))
}

fn hold(context: &Context, server: &Server, connections: u32) -> anyhow::Result<Talking> {
    let mut client = Talking::start(server.client(context, "hold")?.arg(connections.to_string()))?;
    client.expect("ready")?;
    Ok(client)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}
