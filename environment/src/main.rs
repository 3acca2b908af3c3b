//! The environment alone: core runs as a process of its own, on the same data directory or
//! elsewhere. `dormouse up` runs both in one process.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use dormouse_core::{
    authority,
    config::{self, EnvironmentAlone, Flags, Settings, Sources},
    limits::DATABASE_PATIENCE,
    logging::{Colour, Logging},
    readiness,
    reload::Reload,
    store::{self, Store},
};
use dormouse_environment::{
    config::options,
    node::{DataDirectory, DirectoryError, host_name},
    service::{self, Core, Service},
};
use dormouse_proto::code::{Code, Coded};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

const WRONG_USAGE: u8 = 2;
const REFUSED: u8 = 3;
const INTERRUPTED: i32 = 130;

/// The Dormouse environment: launches and supervises workflows, and answers controllers.
#[derive(Debug, Parser)]
#[command(
    name = "dormouse-environment",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 stopped, 1 could not go on, 2 wrong usage, 3 refused: the address, the directory, the \
                  certificates or the database cannot be used, 130 stopped by a second signal, without waiting."
)]
struct Arguments {
    #[command(flatten)]
    flags: Flags<EnvironmentAlone>,
}

fn main() -> ExitCode {
    let sources = Sources::new(Arguments::parse().flags, std::env::vars_os().collect());
    let (settings, logging) = match begin(&sources) {
        Ok(begun) => begun,
        Err(error) => {
            // There are no logs yet.
            eprintln!("error: {error:#}");
            return exit_code(&error);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.context("this machine cannot start threads").and_then(|runtime| {
        let result = runtime.block_on(run(sources, settings, logging));
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            exit_code(&error)
        }
    }
}

fn begin(sources: &Sources) -> anyhow::Result<(Settings, Logging)> {
    let settings = sources.load()?;
    let logging = Logging::start(&settings.values.log, settings.values.log_format, Colour::Auto)?;
    Ok((settings, logging))
}

/// By the code of what failed: the address, the directory, the certificates or the database cannot
/// be used as they are, or something of ours is broken.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<config::Error>() {
        return ExitCode::from(WRONG_USAGE);
    }
    let code = if let Some(error) = error.downcast_ref::<DirectoryError>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<dormouse_core::store::Error>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<service::Error>() {
        Some(error.code())
    } else {
        error.downcast_ref::<authority::Error>().map(Coded::code)
    };
    match code {
        None | Some(Code::Internal) => ExitCode::FAILURE,
        Some(_) => ExitCode::from(REFUSED),
    }
}

async fn run(sources: Sources, settings: Settings, logging: Logging) -> anyhow::Result<()> {
    let shutdown = stop_signals()?;
    let reload = Reload::catch(sources, settings.clone(), logging).context("signals cannot be caught")?;
    let data_dir = settings.data_dir()?;
    let directory = tokio::task::spawn_blocking(move || DataDirectory::lock(&data_dir)).await??;
    let store = Store::open(store::Options {
        patience: DATABASE_PATIENCE,
        ..settings.store_options(directory.path())
    })
    .await?;
    let certs = settings.certs(directory.path())?;
    let authority = Arc::new(authority::open(&certs, &store, &host_name()).await?);
    let core = Core::Listed(Box::new(Core::File(directory.path().join("core.address"))));
    let options = options(&settings, core, std::env::vars_os().collect());
    let service = Service::open(directory, store.clone(), Arc::clone(&authority), options).await?;
    info!(address = %service.address(), "the environment is ready");
    readiness::ready();
    let reloading = async {
        reload.run(async || authority.look_again()).await;
        shutdown.cancel();
        std::future::pending::<std::convert::Infallible>().await
    };
    let result = tokio::select! {
        result = service.run(shutdown.clone()) => result,
        never = reloading => match never {},
    };
    store.close().await;
    Ok(result?)
}

/// Cancelled by the first SIGTERM or SIGINT; the second one ends the process at once.
fn stop_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be caught")?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "waits for signals as long as the process lives, and ends it"
    )]
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping; workflows go on and are adopted at the next start");
        readiness::stopping();
        stop.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}
