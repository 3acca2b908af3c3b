//! W9: how long `dormouse up` needs until it says that it is ready: the very first time, where it makes
//! certificates and tables, and after a kill -9 with a million rows.
//!
//! Both are held against a bare process that opens the same database, started just before.

use dormouse_tests::load::{Load, fill};
use dormouse_workload::{Checkpoints, Saved};

use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target},
    limits::time_to_open,
    registry::{Entry, Findings, Kind, Measured, Run},
    services::{Layout, Services, address, migrate},
};

/// Starts of a round.
const STARTS: u32 = 5;
/// Checkpoints before a kill, so that there is something to recover.
const BEFORE_A_KILL: u32 = 200;

pub(super) fn entries() -> [Entry; 1] {
    [Entry { name: "W9", kind: Kind::Workload, needs: &[], run: Run::OnEach(start) }]
}

fn start(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let mut figures = first(context, store).await?;
        figures.extend(after_a_kill(context, store).await?);
        Ok(Findings::from(figures))
    })
}

/// On a new data directory and a new database. The bare process opens a database that a start has made.
async fn first(context: &Context, store: Store) -> anyhow::Result<Vec<Figure>> {
    let starts = context.count(STARTS, 1);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        let (mut opened, mut ready) = (Latencies::new(), Latencies::new());
        for _ in 0..starts {
            let database = context.database(store).await?;
            let services = Services::start_on(context, &database, Layout::Together, &[]).await?;
            ready.add(services.ready_after());
            services.stop(context).await?;
            opened.add(time_to_open(context, &database)?);
            context.remove(&database).await?;
        }
        bare.push(opened);
        ours.push(ready);
    }
    Ok(vec![
        Figure::latency("W9.bare", "a bare process opens the database of a first start", &bare),
        Figure::latency(
            "W9",
            format!("the first start of `dormouse up` until it is ready; {starts} a round"),
            &ours,
        )
        .held(Limit::Sum(&[(1.0, "W9.bare")]), Target::AtMostMore(0.1)),
    ])
}

/// On a database with many rows, of which the last were written just before the kill.
async fn after_a_kill(context: &Context, store: Store) -> anyhow::Result<Vec<Figure>> {
    let (starts, rows) = (context.count(STARTS, 1), context.count(1_000_000, 1000));
    let database = context.database(store).await?;
    migrate(context, &database)?;
    let load = Load { sleeping: 1000, checkpoints: rows.into(), events: 1, ..Load::default() };
    fill(&address(&database).to_string_lossy(), &load).await?;
    let mut services = Services::start_on(context, &database, Layout::Together, &[]).await?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        let (mut opened, mut ready) = (Latencies::new(), Latencies::new());
        for _ in 0..starts {
            write(&services).await?;
            services.kill();
            opened.add(time_to_open(context, &database)?);
            services.start_again().await?;
            ready.add(services.ready_after());
        }
        bare.push(opened);
        ours.push(ready);
    }
    services.stop(context).await?;
    context.remove(&database).await?;
    let what =
        format!("`dormouse up` after a kill -9 with {rows} checkpoints, until it is ready; {starts} a round");
    Ok(vec![
        Figure::latency("W9.killed.bare", "a bare process opens the database after the kill", &bare),
        Figure::latency("W9.killed", what, &ours)
            .held(Limit::Sum(&[(1.0, "W9.killed.bare")]), Target::AtMostMore(0.3)),
    ])
}

async fn write(services: &Services) -> anyhow::Result<()> {
    let input = Checkpoints { warm_up: 0, count: BEFORE_A_KILL, bytes: 1024, gate: None };
    let id = services.begin("checkpoints", &input).await?;
    services.output::<Saved>(&id).await?;
    Ok(())
}
