//! A client of `probe-server`, built as a workflow is:
//!
//! - `connect ADDRESS AUTHORITY`: one verified handshake, one echo, and the end: what a launch cannot do without.
//! - `echo ADDRESS AUTHORITY WARM-UP COUNT`: echoes one after the other; prints how long each took, in
//!   nanoseconds.
//! - `burst ADDRESS AUTHORITY CONNECTIONS`: connects and prints `ready`; for each line with a number on its
//!   input it makes so many echoes on each connection at once, and prints `done`.
//! - `hold ADDRESS AUTHORITY CONNECTIONS`: connects, prints `ready`, and stays.

#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::{
    env,
    future::pending,
    io::{BufRead as _, stdin},
    net::SocketAddr,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context as _, bail};
use dormouse_probes::quic::{self, Echo};
use quinn::{Connection, Endpoint};
use tokio::task::JoinSet;

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut next = |name: &'static str| arguments.next().with_context(|| format!("{name} is missing"));
    let what = next("what to do")?;
    let (address, authority) = (next("ADDRESS")?.parse()?, PathBuf::from(next("AUTHORITY")?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = quic::client(&authority)?;
        match what.as_str() {
            "connect" => connect_once(&endpoint, address).await,
            "echo" => echo(&endpoint, address, next("WARM-UP")?.parse()?, next("COUNT")?.parse()?).await,
            "burst" => burst(&endpoint, address, next("CONNECTIONS")?.parse()?).await,
            "hold" => hold(&endpoint, address, next("CONNECTIONS")?.parse()?).await,
            other => bail!("{other} is none of connect, echo, burst, hold"),
        }
    })
}

async fn connect(endpoint: &Endpoint, address: SocketAddr) -> anyhow::Result<Connection> {
    Ok(endpoint.connect(address, quic::NAME)?.await?)
}

async fn connect_once(endpoint: &Endpoint, address: SocketAddr) -> anyhow::Result<()> {
    let connection = connect(endpoint, address).await?;
    Echo::open(&connection).await?.once().await?;
    connection.close(0_u32.into(), b"");
    // The connection's task sends the farewell in its next turn; waiting until it has drained takes 85 ms.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn echo(endpoint: &Endpoint, address: SocketAddr, warm_up: usize, count: usize) -> anyhow::Result<()> {
    let connection = connect(endpoint, address).await?;
    let mut echo = Echo::open(&connection).await?;
    for _ in 0..warm_up {
        echo.once().await?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        echo.once().await?;
        times.push(began.elapsed());
    }
    for time in times {
        println!("{}", time.as_nanos());
    }
    Ok(())
}

async fn burst(endpoint: &Endpoint, address: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let mut echoes = Vec::new();
    for _ in 0..connections {
        let connection = connect(endpoint, address).await?;
        let mut echo = Echo::open(&connection).await?;
        echo.once().await?;
        echoes.push((connection, echo));
    }
    println!("ready");
    for line in stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let mut running = JoinSet::new();
        for (connection, mut echo) in echoes.drain(..) {
            running.spawn(async move {
                for _ in 0..count {
                    echo.once().await?;
                }
                anyhow::Ok((connection, echo))
            });
        }
        while let Some(done) = running.join_next().await {
            echoes.push(done??);
        }
        println!("done");
    }
    Ok(())
}

async fn hold(endpoint: &Endpoint, address: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(connect(endpoint, address).await?);
    }
    println!("ready");
    pending().await
}
