//! Durable workflows that are ordinary compiled programs: the `dormouse` command.
//!
//! - `args`: the command line. `exit`: exit codes. `output`: how results look.
//! - `commands`: one file per noun; each is a client of the management protocol.
//! - `config`: the file of `up`, beneath flags and variables.
//! - `local`: both services in this process, for `run` and `up`.
//!
//! It never sees the store while services run: whatever it shows, it was told by them.

mod args;
mod commands;
mod config;
mod exit;
mod local;
mod output;

use std::{io::IsTerminal as _, process::ExitCode};

use anstyle::{AnsiColor, Color as Ansi, Style};
use clap::Parser;

use crate::{
    args::{Cli, Color, Command},
    exit::{Exit, sentence},
    output::{ReaderGone, say},
};

fn main() -> ExitCode {
    // This very file is also an image: the demo pushes it and launches its workflow.
    let image = dormouse_sdk::image!(dormouse_examples::fixity);
    if dormouse_sdk::launched() {
        image.run();
    }
    let cli = Cli::parse();
    match cli.global.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    log_to_stderr(cli.global.verbose, matches!(cli.command, Command::Up(_)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: this machine cannot start threads: {error}"));
            return Exit::Internal.into();
        }
    };
    let exit = runtime.block_on(run(cli));
    // A thread that still reads a terminal or a disk must not hold up the end.
    runtime.shutdown_background();
    exit.into()
}

async fn run(cli: Cli) -> Exit {
    // Services and processes are to be ended in order, which these do themselves.
    let ends_in_order = matches!(cli.command, Command::Run(_) | Command::Up(_));
    let outcome = tokio::select! {
        outcome = commands::execute(cli) => outcome,
        Ok(()) = tokio::signal::ctrl_c(), if !ends_in_order => return Exit::Interrupted,
    };
    match outcome {
        Ok(exit) => exit,
        // `dormouse logs ID | head` is no error.
        Err(error) if error.is::<ReaderGone>() => Exit::Done,
        Err(error) => {
            let red = Style::new().bold().fg_color(Some(Ansi::Ansi(AnsiColor::Red)));
            say(&format!("{red}error{red:#}: {}", sentence(&error)));
            Exit::of_error(&error)
        }
    }
}

/// `RUST_LOG` decides if it is set; otherwise warnings, and more with each `-v`. Whoever starts
/// services wants to see what they do.
fn log_to_stderr(verbose: u8, services: bool) {
    use tracing_subscriber::{EnvFilter, fmt};

    let default = match verbose.saturating_add(u8::from(services)) {
        0 => "warn,dormouse=warn",
        1 => "info",
        2 => {
            "info,dormouse=debug,dormouse_core=debug,dormouse_environment=debug,dormouse_management_sdk=debug"
        }
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
