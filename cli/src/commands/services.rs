//! `up` and `migrate`: the services in this process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use dormouse_core::store::{self, Store};
use dormouse_environment::node::DataDirectory;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::Ctx;
use crate::{
    args::{Format, Migrate, Services, Up},
    config::layered,
    exit::Exit,
    local::{Local, Options, database},
    output::{print, print_json, say},
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where `up` listens if nothing else was said.
pub(crate) const CORE: SocketAddr = SocketAddr::new(LOCALHOST, 8001);
/// Where `up` listens for controllers if nothing else was said.
pub(crate) const ENVIRONMENT: SocketAddr = SocketAddr::new(LOCALHOST, 8002);
/// Whatever port is free; the one of the last run if it is.
pub(crate) const ANY: SocketAddr = SocketAddr::new(LOCALHOST, 0);

/// The first and the second request to end.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("signals cannot be caught");
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for the next one: INTERRUPTED by Ctrl-C, done by SIGTERM, which is how a service
    /// manager stops what it started. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Done,
        }
    }
}

pub(crate) async fn up(ctx: &mut Ctx, args: Up) -> anyhow::Result<Exit> {
    let mut interrupts = Interrupts::catch()?;
    let services = layered(&mut ctx.global, args)?;
    let data_dir = ctx.global.directory()?;
    let options = options(&services, data_dir.clone(), CORE, ENVIRONMENT);
    let opened = tokio::select! {
        opened = Local::open(options) => opened?,
        exit = interrupts.next() => return Ok(exit),
    };
    let Some(local) = opened else {
        // Says who holds it.
        let held = tokio::task::spawn_blocking(move || DataDirectory::lock(&data_dir)).await?;
        return match held {
            Err(held) => Err(held.into()),
            Ok(_) => bail!("other services held the data directory and ended this moment; try again"),
        };
    };
    print_ready(ctx, &local)?;
    let shutdown = CancellationToken::new();
    let mut services = JoinSet::new();
    services.spawn(local.run(shutdown.clone()));
    let mut asked = None;
    loop {
        tokio::select! {
            Some(ended) = services.join_next() => {
                ended.context("the services panicked")??;
                return Ok(asked.unwrap_or(Exit::Done));
            }
            exit = interrupts.next() => {
                if asked.is_some() {
                    // Dropped as they are: everything acknowledged is on disk.
                    return Ok(Exit::Interrupted);
                }
                say("stopping; workflows go on and are adopted at the next start (again: at once)");
                asked = Some(exit);
                shutdown.cancel();
            }
        }
    }
}

pub(crate) fn options(
    services: &Services,
    data_dir: std::path::PathBuf,
    core: SocketAddr,
    environment: SocketAddr,
) -> Options {
    Options {
        data_dir,
        core: services.core.unwrap_or(core),
        environment: services.environment.unwrap_or(environment),
        database: services.database.clone(),
        slots: services.slots,
    }
}

fn print_ready(ctx: &Ctx, local: &Local) -> anyhow::Result<()> {
    let data_dir = ctx.global.directory()?;
    let (core, environment) = (local.core_address().to_string(), local.environment_address().to_string());
    match ctx.screen.format {
        Format::Json => print_json(&serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "data_dir": data_dir,
            "database": local.database(),
            "core": core,
            "environment": environment,
        })),
        Format::Ids => print(&format!("{environment}\n")),
        Format::Table => {
            print(&format!(
                "dormouse {} is ready: controllers at {environment}, workflows at {core}, {} in {}\n",
                env!("CARGO_PKG_VERSION"),
                local.database(),
                data_dir.display()
            ))?;
            say("Ctrl-C stops it; workflows go on and are adopted at the next start");
            Ok(())
        }
    }
}

pub(crate) async fn migrate(ctx: &Ctx, args: Migrate) -> anyhow::Result<Exit> {
    let data_dir = ctx.global.directory()?;
    let database = database(args.database.as_deref(), &data_dir)?;
    if args.database.is_none() && !data_dir.is_dir() {
        bail!(
            "{} does not exist; `dormouse up` makes it, or name another one with --data-dir",
            data_dir.display()
        );
    }
    let store = Store::open(store::Options::new(database)).await?;
    let kind = store.kind().as_str();
    store.close().await;
    match ctx.screen.format {
        Format::Json => {
            print_json(&serde_json::json!({ "database": kind, "release": env!("CARGO_PKG_VERSION") }))?
        }
        Format::Ids => {}
        Format::Table => {
            say(&format!("the {kind} database is up to date for dormouse {}", env!("CARGO_PKG_VERSION")))
        }
    }
    Ok(Exit::Done)
}
