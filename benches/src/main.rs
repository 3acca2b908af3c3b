//! The benchmark program of Dormouse: it measures what the machine can do, then what Dormouse does, in one
//! run, and holds the one against the other.
//!
//! Machines are shared and noisy, so no absolute number is judged where there is a limit: what counts is the
//! ratio. Real services as real processes, real durability, medians of rounds with their range.
//!
//! [`registry`] says what can be measured; `limits` and `workloads` have a file for each. `docs/benchmarks.md`
//! says how to read what comes out.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures real time, starts processes and reads where its programs are"
)]

mod args;
mod charts;
mod compare;
mod context;
mod figure;
mod judge;
mod limits;
mod machine;
mod memory;
mod peers;
mod postgres;
mod programs;
mod registry;
mod report;
mod run;
mod services;
mod show;
mod size;
mod waterfall;
mod workloads;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = args::Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let complete = runtime.block_on(async {
        tokio::select! {
            outcome = run::run(&arguments) => outcome,
            // What runs is dropped, and with it the databases and the services.
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                bail!("interrupted; nothing is written")
            }
        }
    })?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
