//! W3c and W3d: trivial workflows of an image whose processes are kept: spares that stand ready, and processes
//! that serve one instance after the other.
//!
//! That it is a kept process that serves is looked at first: a launch would be measured as what it is not.

use std::{collections::BTreeSet, time::Duration};

use dormouse_management_sdk::{ImageOptions, ImageRef};
use dormouse_workload::{Process, now};
use tokio::time::sleep;

use super::launches;
use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::{IMAGE, Services},
};

/// More than are used between two launches, so that one stands ready for each.
const SPARES: u32 = 8;
/// Between two launches, for the next spare to get ready: a pool that is empty gives a plain launch.
const PAUSE: Duration = Duration::from_millis(20);
/// Instances that one process may serve.
const REUSE: u32 = 1000;

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W3c", kind: Kind::Workload, needs: &["echo", "commit"], run: Run::OnEach(spares) },
        Entry { name: "W3d", kind: Kind::Workload, needs: &["batch", "echo"], run: Run::OnEach(reuse) },
    ]
}

fn spares(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        keep(&services, ImageOptions { spares: Some(SPARES), reuse: None }).await?;
        until_spares_serve(&services).await?;
        let (count, warm_up) = (context.count(200, 5), context.count(20, 2));
        let mut rounds = Vec::new();
        for _ in 0..context.rounds() {
            let mut round = Latencies::new();
            for n in 0..count + warm_up {
                sleep(PAUSE).await;
                let latency = launches::start_to_ending(&services).await?;
                if n >= warm_up {
                    round.add(latency);
                }
            }
            rounds.push(round);
        }
        services.stop(context).await?;
        let what = format!(
            "a trivial workflow of an image with {SPARES} spares, start to ending seen by the caller, {count} of them {PAUSE:?} apart, {warm_up} to warm up"
        );
        let limit = Limit::Sum(&[(1.0, "echo"), (4.0, "commit")]);
        Ok(vec![Figure::latency("W3c", what, &rounds).held(limit, Target::AtMostTimes(2.0))].into())
    })
}

fn reuse(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        keep(&services, ImageOptions { spares: None, reuse: Some(REUSE) }).await?;
        until_processes_serve_again(&services).await?;
        let mut figures = Vec::new();
        for (id, at_once) in [("W3d.16", 16), ("W3d.64", 64)] {
            let mut found = launches::many_at_once(context, &services, id, at_once).await?;
            if let Some(first) = found.first_mut() {
                let limit = Limit::Rate(&[(4.0, "batch"), (2.0, "echo.64")]);
                first.what = format!("{}, of an image that allows reuse", first.what);
                first.held = Some((limit, Target::AtLeastTimes(0.5)));
            }
            figures.extend(found);
        }
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

async fn keep(services: &Services, options: ImageOptions) -> anyhow::Result<()> {
    let image = ImageRef { name: IMAGE.to_owned(), version: String::new() };
    services.client().set_image(&image, options).await?;
    Ok(())
}

/// A spare's process is older than the instance that it serves: by as much as two looks are apart, about.
async fn until_spares_serve(services: &Services) -> anyhow::Result<()> {
    /// In microseconds; more than the kernel's account is coarse.
    const MUCH_OLDER: u64 = 30_000;
    super::until("spares serve", async || {
        let begun_at = now();
        let id = services.begin("process", &()).await?;
        let process: Process = services.output(&id).await?;
        Ok(process.born_at + MUCH_OLDER < begun_at)
    })
    .await
}

/// Two instances in one process.
async fn until_processes_serve_again(services: &Services) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    super::until("a process serves a second instance", async || {
        let id = services.begin("process", &()).await?;
        let process: Process = services.output(&id).await?;
        Ok(!seen.insert(process.pid))
    })
    .await
}
