//! What the program may be asked.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures Dormouse against limits of the same machine and run.
#[derive(Parser, Debug)]
#[command(name = "dormouse-benches")]
pub(crate) struct Arguments {
    /// What to measure: `limits`, a workload (`W1` … `W9`, or a part such as `W3a`), `growth`, `size`, `peers`,
    /// `trace`, or `all`; `build` by its name only. What they are held against is measured with them
    #[arg(value_name = "NAME", default_value = "all")]
    pub(crate) names: Vec<String>,
    /// On which database
    #[arg(long, default_value = "both")]
    pub(crate) store: Stores,
    /// The smallest counts and one round: proves that the program works, measures nothing
    #[arg(long)]
    pub(crate) quick: bool,
    /// Rounds of each workload; the median counts
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=99))]
    pub(crate) rounds: u32,
    /// A folder on the disk that is meant, for databases and data directories; never a tmpfs [default: the
    /// system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) disk: Option<PathBuf>,
    /// Writes report.md, figures.jsonl and the charts into this folder; without it the report is printed
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Takes the programs as they are built; without it cargo builds them first. A debug build never builds
    #[arg(long)]
    pub(crate) no_build: bool,
    /// A folder with `dormouse`, `dormouse-core` and `dormouse-environment` of another build, to be measured
    /// instead of those that are built here
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Both services in one process (`dormouse up`) on PostgreSQL too
    #[arg(long)]
    pub(crate) together: bool,
    /// The image whose workflows are measured, instead of the one that is built here
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Says what moved beyond noise since the run that wrote this figures.jsonl
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
}

/// The databases of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stores {
    Sqlite,
    Postgres,
    Both,
}
