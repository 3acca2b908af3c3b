//! The benchmark program of Dormouse: one subcommand per question.
//!
//! Machines are shared and noisy, so each figure stands beside a limit that was measured in the
//! same run, and what counts is the ratio. Medians of rounds, with their range.
//!
//! `store` asks what the store adds to what the disk must do anyway. The questions about whole
//! services (launches, wakes, resumes, memory) are not answered here yet.

mod store;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "dormouse-benches", about = "Measures Dormouse against limits of the same run")]
struct Arguments {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// What a durable checkpoint costs on SQLite, against one flush of the disk
    Store {
        /// Checkpoints in a round
        #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(64..))]
        count: u32,
        /// Rounds; the median counts
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// A folder on the disk that is meant; not a tmpfs
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.question {
        Question::Store { count, rounds, dir } => runtime.block_on(store::measure(count, rounds, &dir)),
    }
}
