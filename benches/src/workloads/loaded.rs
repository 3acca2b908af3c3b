//! W8: the workloads W1 to W4 on a database in which much has happened, held against the same ones on an
//! empty database.

use dormouse_tests::load::{Load, fill};

use super::{checkpoints, launches, wakes};
use crate::{
    context::{Context, Store},
    figure::{Figure, Limit, Target},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::{Layout, Services, address, migrate},
};

/// Of a latency.
const AT_MOST: Target = Target::AtMostTimes(1.2);
/// Of a rate: as long as that.
const AT_LEAST: Target = Target::AtLeastTimes(1.0 / 1.2);

/// Sleepers of W4, fewer than on the empty database: laying them down takes longest, and a rate over fewer of them
/// counts against us, since what happens once weighs more.
const SPREAD: u32 = 250;
const BURST: u32 = 500;

pub(super) fn entries() -> [Entry; 1] {
    let needs = &["W1", "W2", "W3a", "W3b", "W4a", "W4b"];
    [Entry { name: "W8", kind: Kind::Workload, needs, run: Run::OnEach(loaded) }]
}

fn loaded(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let database = context.database(store).await?;
        migrate(context, &database)?;
        let load = Load {
            ended: context.count(100_000, 100).into(),
            sleeping: context.count(200_000, 200).into(),
            checkpoints: context.count(1_000_000, 1000).into(),
            ..Load::default()
        };
        fill(&address(&database).to_string_lossy(), &load).await?;
        let mut figures = Vec::new();

        let mut services = Services::start_on(context, &database, Layout::Usual, &[]).await?;
        let found = checkpoints::one_instance(context, &services, "W8.W1").await?;
        figures.extend(held(found, Limit::Sum(&[(1.0, "W1")]), AT_MOST));
        let found = launches::one_by_one(context, &services, "W8.W3a").await?;
        figures.extend(held(found, Limit::Sum(&[(1.0, "W3a")]), AT_MOST));
        let found = launches::many_at_once(context, &services, "W8.W3b.16", 16).await?;
        figures.extend(held(found, Limit::Rate(&[(1.0, "W3b.16")]), AT_LEAST));
        let found = launches::many_at_once(context, &services, "W8.W3b.64", 64).await?;
        figures.extend(held(found, Limit::Rate(&[(1.0, "W3b.64")]), AT_LEAST));

        services.restart(&checkpoints::SLOTS).await?;
        let found = checkpoints::many_instances(context, &services, "W8.W2").await?;
        figures.extend(held(found, Limit::Rate(&[(1.0, "W2")]), AT_LEAST));

        services.restart(&wakes::SUSPEND_SOON).await?;
        let found = wakes::lateness(context, &services, "W8.W4a", SPREAD).await?;
        figures.extend(held(found, Limit::Sum(&[(1.0, "W4a")]), AT_MOST));
        let found = wakes::at_one_moment(context, &services, "W8.W4b", BURST).await?;
        figures.extend(held(found, Limit::Rate(&[(1.0, "W4b")]), AT_LEAST));

        services.stop(context).await?;
        context.remove(&database).await?;
        Ok(Findings::from(figures))
    })
}

/// The first of a workload's figures is the one that is judged.
fn held(mut figures: Vec<Figure>, limit: Limit, target: Target) -> Vec<Figure> {
    if let Some(first) = figures.first_mut() {
        first.what = format!("{}; in a full database", first.what);
        first.held = Some((limit, target));
    }
    figures
}
