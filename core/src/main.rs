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
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dormouse_core::server::{self, Server};
use dormouse_core::store::{self, Database, Kind, Store};
use dormouse_proto::code::{Code, Coded};
use dormouse_proto::identity::Authority;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::info;

const REFUSED: u8 = 3;
const INTERRUPTED: u8 = 130;

/// How often sessions look for what no notice told them, where another process writes into the same SQLite file.
const POLL_SQLITE: Duration = Duration::from_secs(1);

/// Serves the processes of workflow instances: they register here, save their steps and hear of signals.
#[derive(Debug, Parser)]
#[command(name = "dormouse-core", version)]
struct Flags {
    /// Keeps certificates, the address and, without --database, the database. The services of one machine share it.
    #[arg(long, env = "DORMOUSE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// postgres://USER@HOST/NAME, or a path for SQLite [default: dormouse.db in the data directory]
    #[arg(long, env = "DORMOUSE_DATABASE", value_name = "URL")]
    database: Option<String>,

    /// Where to listen (UDP). With port 0 the port of the last run is taken again.
    #[arg(long, visible_alias = "core", default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,

    /// What to log: error, warn, info, debug or trace, also for each module (as RUST_LOG).
    #[arg(long, env = "DORMOUSE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let outcome = log_to_stderr(&flags.log).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run(flags));
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

fn log_to_stderr(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).context("--log is not a filter")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Runs the server until a signal.
async fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let dir = match flags.data_dir.filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => dir,
        None => default_data_dir()?,
    };
    let dir = prepare(&dir)?;
    let store = open_store(&dir, flags.database.as_deref()).await?;
    let server = bind(&dir, flags.listen, &store).await?;

    let shutdown = CancellationToken::new();
    let mut services = JoinSet::new();
    services.spawn(server.run(shutdown.clone()));
    let mut stopping = false;
    let outcome = loop {
        tokio::select! {
            Some(ended) = services.join_next() => break ended,
            () = stop(&mut terminate, &mut interrupt) => {
                if stopping {
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                info!("shutting down; a second signal does not wait");
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

async fn open_store(dir: &Path, database: Option<&str>) -> anyhow::Result<Store> {
    let database = match database {
        Some(text) => Database::parse(text)?,
        None => Database::Sqlite(dir.join("dormouse.db")),
    };
    Ok(Store::open(store::Options::new(database)).await?)
}

async fn bind(dir: &Path, listen: SocketAddr, store: &Store) -> anyhow::Result<Server> {
    let pki = dir.join("pki");
    let authority = spawn_blocking(move || Authority::open_or_create(&pki)).await??;
    let mut options = server::Options::new(listen, dir.join("core.address"), Arc::new(authority));
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

#[expect(clippy::disallowed_methods, reason = "configuration is read here, in main")]
fn default_data_dir() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/dormouse"));
    }
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("dormouse"));
    }
    let home = std::env::home_dir().context("there is no home directory; set --data-dir")?;
    Ok(home.join(".local/share/dormouse"))
}

/// Tells "cannot be used" from a defect by the error's code.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = if let Some(error) = error.downcast_ref::<store::Error>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<server::Error>() {
        Some(error.code())
    } else {
        error.downcast_ref::<dormouse_proto::identity::IdentityError>().map(Coded::code)
    };
    match code {
        None | Some(Code::Internal) => ExitCode::FAILURE,
        Some(_) => ExitCode::from(REFUSED),
    }
}
