//! The benchmark program of Dormouse: it measures what the machine can do, then what Dormouse does, in one
//! run, and holds the one against the other.
//!
//! Machines are shared and noisy, so no absolute number is judged where there is a limit: what counts is the
//! ratio. Real services as real processes, real durability, medians of rounds with their range.
//!
//! [`registry`] says what can be measured; `limits` and `workloads` have a file for each.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures real time, starts processes and reads where its programs are"
)]

mod args;
mod context;
mod figure;
mod limits;
mod machine;
mod postgres;
mod programs;
mod registry;
mod workloads;

use clap::Parser as _;

use crate::{
    args::Arguments,
    context::Context,
    registry::{Entry, Findings, Run},
};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let entries = registry::chosen(&arguments.names)?;
    let context = Context::prepare(arguments).await?;
    for entry in &entries {
        let found = measure(&context, entry).await?;
        for figure in &found.figures {
            println!("{} {:?} {} {:?}", figure.id, figure.store, figure.median(), figure.rounds);
        }
    }
    Ok(())
}

/// One entry, on each store if it has to do with them.
async fn measure(context: &Context, entry: &Entry) -> anyhow::Result<Findings> {
    match entry.run {
        Run::Once(run) => {
            eprintln!("{}", entry.name);
            run(context).await
        }
        Run::OnEach(run) => {
            let mut all = Findings::default();
            for store in context.stores() {
                eprintln!("{} on {}", entry.name, store.name());
                let mut found = run(context, *store).await?;
                for figure in &mut found.figures {
                    figure.store = Some(*store);
                }
                all.figures.append(&mut found.figures);
                all.sections.append(&mut found.sections);
                all.charts.append(&mut found.charts);
            }
            Ok(all)
        }
    }
}
