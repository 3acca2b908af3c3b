//! `dormouse-core`: the instance server as a process of its own.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | stopped by SIGTERM or SIGINT, in order |
//! | 1 | an internal error |
//! | 2 | wrong usage |
//! | 3 | refused: the address, the certificates or the database cannot be used |
//! | 130 | stopped by a second signal, without waiting |

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dormouse_core::authority;
use dormouse_core::config::{self, CoreAlone, Flags, Settings, Sources};
use dormouse_core::limits::DATABASE_PATIENCE;
use dormouse_core::logging::{Colour, Logging};
use dormouse_core::readiness;
use dormouse_core::reload::Reload;
use dormouse_core::runtime;
use dormouse_core::server::{self, Server, host_name};
use dormouse_core::store::{self, Kind, Store};
use dormouse_proto::code::{Code, Coded};
use dormouse_proto::identity::Authority;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

const WRONG_USAGE: u8 = 2;
const REFUSED: u8 = 3;
const INTERRUPTED: u8 = 130;

/// How often sessions look for what no notice told them, where another process writes into the same SQLite file.
const POLL_SQLITE: Duration = Duration::from_secs(1);

/// Serves the processes of workflow instances: they register here, save their steps and hear of signals.
#[derive(Debug, Parser)]
#[command(name = "dormouse-core", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    flags: Flags<CoreAlone>,
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
    let runtime = runtime::serving();
    let outcome = runtime.context("this machine cannot start threads").and_then(|runtime| {
        let outcome = runtime.block_on(run(sources, settings, logging));
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(code) => code,
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

/// Runs the server until a signal.
async fn run(sources: Sources, settings: Settings, logging: Logging) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let reload = Reload::catch(sources, settings.clone(), logging)?;
    let dir = prepare(&settings.data_dir()?)?;
    let store =
        Store::open(store::Options { patience: DATABASE_PATIENCE, ..settings.store_options(&dir) }).await?;
    let authority = authority::open(&settings.certs(&dir)?, &store, &host_name()).await?;
    let authority = Arc::new(authority);
    let server = bind(&dir, &settings, &store, &authority)?;
    readiness::ready();

    let shutdown = CancellationToken::new();
    let mut services = JoinSet::new();
    services.spawn(server.run(shutdown.clone()));
    let reloading = reload.run(async || authority.look_again());
    tokio::pin!(reloading);
    let mut stopping = false;
    let outcome = loop {
        tokio::select! {
            Some(ended) = services.join_next() => break ended,
            () = stop(&mut terminate, &mut interrupt) => {
                if stopping {
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                info!("shutting down; a second signal does not wait");
                readiness::stopping();
                stopping = true;
                shutdown.cancel();
            }
            _ = &mut reloading, if !stopping => {
                stopping = true;
                shutdown.cancel();
            }
        }
    };
    store.close().await;
    outcome.context("the instance server panicked")??;
    Ok(ExitCode::SUCCESS)
}

async fn stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn bind(
    dir: &Path,
    settings: &Settings,
    store: &Store,
    authority: &Arc<Authority>,
) -> anyhow::Result<Server> {
    let mut options = settings.server_options(dir, Arc::clone(authority));
    if store.kind() == Kind::Sqlite {
        options.poll = POLL_SQLITE;
    }
    Ok(Server::bind(options, store.clone())?)
}

/// Makes the directory, owner-only, if it is missing.
fn prepare(dir: &Path) -> anyhow::Result<PathBuf> {
    let failed =
        || format!("the data directory {} cannot be used; choose another with --data-dir", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
    dir.canonicalize().with_context(failed)
}

/// Tells "cannot be used" from a defect by the error's code.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<config::Error>() {
        return ExitCode::from(WRONG_USAGE);
    }
    let code = if let Some(error) = error.downcast_ref::<store::Error>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<server::Error>() {
        Some(error.code())
    } else {
        error.downcast_ref::<authority::Error>().map(Coded::code)
    };
    match code {
        None | Some(Code::Internal) => ExitCode::FAILURE,
        Some(_) => ExitCode::from(REFUSED),
    }
}
