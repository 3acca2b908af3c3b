//! The environment alone: core runs as a process of its own, on the same data directory or
//! elsewhere. `dormouse up` runs both in one process.

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use dormouse_core::store::{Database, Store};
use dormouse_environment::{
    node::{DataDirectory, DirectoryError},
    service::{self, Core, Options, Service},
};
use dormouse_proto::{
    code::{Code, Coded},
    identity::{Authority, IdentityError},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

const REFUSED: u8 = 3;
const INTERRUPTED: i32 = 130;

/// The Dormouse environment: launches and supervises workflows, and answers controllers.
#[derive(Debug, Parser)]
#[command(
    name = "dormouse-environment",
    version,
    after_help = "Exit codes: 0 stopped, 1 could not go on, 2 wrong usage, 3 refused: the address, the directory, the \
                  certificates or the database cannot be used, 130 stopped by a second signal, without waiting."
)]
struct Args {
    /// Where everything is kept
    #[arg(long, env = "DORMOUSE_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// postgres://… of a cluster [default: SQLite in the data directory]
    #[arg(long, env = "DORMOUSE_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<String>,
    /// Where to listen for controllers; with port 0 that of the last run, or any
    #[arg(
        long,
        visible_alias = "environment",
        env = "DORMOUSE_ENVIRONMENT_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8002"
    )]
    listen: SocketAddr,
    /// Where core is; may repeat [default: what core wrote into the data directory]
    #[arg(long, env = "DORMOUSE_CORE", value_name = "HOST:PORT", value_delimiter = ',')]
    core: Vec<String>,
    /// How many workflow processes may live at once [default: by cores and memory]
    #[arg(long, env = "DORMOUSE_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    slots: Option<u32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.context("this machine cannot start threads").and_then(|runtime| {
        let result = runtime.block_on(run(args));
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last words: nothing is left that a failing stderr could harm.
            eprintln!("error: {error:#}");
            exit_code(&error)
        }
    }
}

/// By the code of what failed: the address, the directory, the certificates or the database cannot
/// be used as they are, or something of ours is broken.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = if let Some(error) = error.downcast_ref::<DirectoryError>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<dormouse_core::store::Error>() {
        Some(error.code())
    } else if let Some(error) = error.downcast_ref::<service::Error>() {
        Some(error.code())
    } else {
        error.downcast_ref::<IdentityError>().map(Coded::code)
    };
    match code {
        None | Some(Code::Internal) => ExitCode::FAILURE,
        Some(_) => ExitCode::from(REFUSED),
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = stop_signals()?;
    let data_dir = std::path::absolute(&args.data_dir)?;
    let (directory, authority) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let directory = DataDirectory::lock(&data_dir)?;
        let authority = Authority::open_or_create(&directory.path().join("pki"))?;
        Ok((directory, Arc::new(authority)))
    })
    .await??;
    let database = match &args.database {
        Some(url) => Database::parse(url)?,
        None => Database::Sqlite(directory.path().join("dormouse.db")),
    };
    let core = if args.core.is_empty() {
        Core::File(directory.path().join("core.address"))
    } else {
        Core::At(args.core)
    };
    let store = Store::open(dormouse_core::store::Options::new(database)).await?;
    let options = Options {
        listen: args.listen,
        core,
        slots: args.slots.and_then(|slots| usize::try_from(slots).ok()),
        environment: std::env::vars_os().collect(),
    };
    let service = Service::open(directory, store.clone(), authority, options).await?;
    info!(address = %service.address(), "the environment is ready");
    let result = service.run(shutdown).await;
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
        stop.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}

/// `RUST_LOG` decides if it is set; otherwise what matters to an operator.
fn log_to_stderr() {
    use tracing_subscriber::{EnvFilter, fmt};

    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
