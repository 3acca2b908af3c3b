//! `up` and `migrate`: the services in this process.

use anyhow::{Context as _, bail};
use dormouse_core::{
    config::{LogFormat, Settings},
    readiness,
    reload::Reload,
    store::{Database, Store},
};
use dormouse_environment::node::DataDirectory;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::Ctx;
use crate::{
    args::{Format, Migrate, Up},
    config::{begin, sources},
    exit::Exit,
    local::Local,
    output::{print, print_json, say},
};

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

pub(crate) async fn up(ctx: &Ctx, args: Up) -> anyhow::Result<Exit> {
    let mut interrupts = Interrupts::catch()?;
    let sources = sources(&ctx.global, args.flags)?;
    let (settings, logging) = begin(&ctx.global, &sources)?;
    let reload = Reload::catch(sources, settings.clone(), logging).context("signals cannot be caught")?;
    let opened = tokio::select! {
        opened = Local::open(settings.clone()) => opened?,
        exit = interrupts.next() => return Ok(exit),
    };
    let Some(local) = opened else { return held(&settings).await };
    print_ready(ctx, &settings, &local)?;
    readiness::ready();
    let shutdown = CancellationToken::new();
    let mut services = JoinSet::new();
    let authority = local.authority();
    services.spawn(local.run(shutdown.clone()));
    let reloading = reload.run(async || authority.look_again());
    tokio::pin!(reloading);
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
                hint(&settings, "stopping; workflows go on and are adopted at the next start (again: at once)");
                readiness::stopping();
                asked = Some(exit);
                shutdown.cancel();
            }
            _ = &mut reloading, if asked.is_none() => {
                asked = Some(Exit::Done);
                shutdown.cancel();
            }
        }
    }
}

/// Says who holds the data directory.
async fn held(settings: &Settings) -> anyhow::Result<Exit> {
    let data_dir = settings.data_dir()?;
    match tokio::task::spawn_blocking(move || DataDirectory::lock(&data_dir)).await? {
        Err(held) => Err(held.into()),
        Ok(_) => bail!("other services held the data directory and ended this moment; try again"),
    }
}

/// Says something to people; where programs read stderr, as one of the lines that they expect.
fn hint(settings: &Settings, text: &str) {
    match settings.values.log_format {
        LogFormat::Text => say(text),
        LogFormat::Json => tracing::info!("{text}"),
    }
}

fn print_ready(ctx: &Ctx, settings: &Settings, local: &Local) -> anyhow::Result<()> {
    let data_dir = settings.data_dir()?;
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
            hint(settings, "Ctrl-C stops it; workflows go on and are adopted at the next start");
            Ok(())
        }
    }
}

pub(crate) async fn migrate(ctx: &Ctx, args: Migrate) -> anyhow::Result<Exit> {
    let settings = sources(&ctx.global, args.flags)?.load()?;
    let data_dir = settings.data_dir()?;
    let options = settings.store_options(&data_dir);
    if let Database::Sqlite(path) = &options.database
        && path.starts_with(&data_dir)
        && !data_dir.is_dir()
    {
        bail!(
            "{} does not exist; `dormouse up` makes it, or name another one with --data-dir",
            data_dir.display()
        );
    }
    let store = Store::open(options).await?;
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
