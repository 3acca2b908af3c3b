//! `probe-server CERTIFICATE KEY`: quinn's server on several threads; it prints its address, and echoes until it
//! is killed.

use std::{env, path::PathBuf};

use anyhow::Context as _;
use dormouse_probes::quic;
use tokio::task::JoinSet;

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let certificate = arguments.next().context("CERTIFICATE is missing")?;
    let key = arguments.next().context("KEY is missing")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = quic::server(&certificate, &key)?;
        println!("{}", endpoint.local_addr()?);
        let mut connections = JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            connections.spawn(async move {
                match incoming.await {
                    Ok(connection) => quic::answer(connection).await,
                    // A client that was killed on the way; the next one matters.
                    Err(_) => Ok(()),
                }
            });
            while connections.try_join_next().is_some() {}
        }
        Ok(())
    })
}
