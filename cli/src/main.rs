//! Durable workflows that are ordinary compiled programs: the `dormouse` command.
//!
//! - `args`: the command line. `exit`: exit codes. `output`: how results look.
//! - `commands`: one file per noun; each is a client of the management protocol.
//! - `config`: the settings of the services that run in this process.
//! - `local`: both services in this process, for `run` and `up`.
//!
//! It never sees the store while services run: whatever it shows, it was told by them.

mod args;
mod commands;
mod config;
mod exit;
mod local;
mod output;

use std::process::ExitCode;

use anstyle::{AnsiColor, Color as Ansi, Style};
use clap::Parser;
use dormouse_core::{
    config::{LogFilter, LogFormat, Value as _},
    logging::Logging,
};

use crate::{
    args::{Cli, Color, Command, Global},
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
    // Services start their logs as their configuration says.
    if !matches!(cli.command, Command::Run(_) | Command::Up(_)) {
        log_to_stderr(&cli.global);
    }
    let runtime = match dormouse_core::runtime::serving() {
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

/// The logs of a client: warnings, more with each `-v`, or what RUST_LOG says.
fn log_to_stderr(global: &Global) {
    let variable = std::env::vars_os().find(|(name, value)| name == "RUST_LOG" && !value.is_empty());
    let variable = variable.map(|(_, value)| value.to_string_lossy().into_owned());
    let filter = config::filter_of(global.verbose).or(variable.as_deref()).unwrap_or("warn");
    let started = match LogFilter::parse(filter) {
        Some(filter) => Logging::start(&filter, LogFormat::Text, config::colour(global)).map(drop),
        None => return say("RUST_LOG is no filter such as info,dormouse=debug; nothing is logged"),
    };
    if let Err(error) = started {
        say(&error.to_string());
    }
}
