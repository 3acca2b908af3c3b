//! W3: a workflow that does nothing, from its start to the ending that its caller sees.
//!
//! The caller is a controller with one connection: it asks for the start, and then waits for the ending.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target, Unit},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::Services,
};

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W3a", kind: Kind::Workload, needs: &["connect", "commit"], run: Run::OnEach(alone) },
        Entry { name: "W3b", kind: Kind::Workload, needs: &["connect"], run: Run::OnEach(many) },
    ]
}

fn alone(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        let figures = one_by_one(context, &services, "W3a").await?;
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

fn many(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        let mut figures = Vec::new();
        for at_once in [16, 64] {
            figures.extend(many_at_once(context, &services, &format!("W3b.{at_once}"), at_once).await?);
        }
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

/// One after the other.
pub(super) async fn one_by_one(
    context: &Context,
    services: &Services,
    id: &str,
) -> anyhow::Result<Vec<Figure>> {
    let (count, warm_up) = (context.count(200, 10), context.count(20, 2));
    let (mut rounds, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        for _ in 0..warm_up {
            start_to_ending(services).await?;
        }
        let before = services.usage()?;
        let mut round = Latencies::new();
        for _ in 0..count {
            round.add(start_to_ending(services).await?);
        }
        cpu.push(cpu_each(services, before, count)?);
        rounds.push(round);
    }
    let what = format!(
        "a trivial workflow, start to ending seen by the caller, {count} one after the other, {warm_up} to warm up"
    );
    let limit = Limit::Sum(&[(1.0, "connect"), (4.0, "commit")]);
    let mut figures = vec![Figure::latency(id, what, &rounds).held(limit, Target::AtMostTimes(1.4))];
    figures.extend(cpu_figures(id, &cpu));
    Ok(figures)
}

/// So many under way at any moment.
pub(super) async fn many_at_once(
    context: &Context,
    services: &Services,
    id: &str,
    at_once: usize,
) -> anyhow::Result<Vec<Figure>> {
    let (count, warm_up) = (context.count(2000, 40), context.count(200, 8));
    let (mut rates, mut rounds, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    launch_many(services, warm_up, at_once).await?;
    for _ in 0..context.rounds() {
        let before = services.usage()?;
        let begun = Instant::now();
        rounds.push(launch_many(services, count, at_once).await?);
        rates.push(f64::from(count) / begun.elapsed().as_secs_f64());
        cpu.push(cpu_each(services, before, count)?);
    }
    let what = format!("trivial workflows, {count} of them, {at_once} under way, {warm_up} to warm up");
    let limit = Limit::Rate(&[(1.0, "connect.16")]);
    let mut figures = vec![
        Figure::rate(id, what, rates).held(limit, Target::AtLeastTimes(0.6)),
        Figure::latency(format!("{id}.latency"), "one of these, start to ending", &rounds),
    ];
    figures.extend(cpu_figures(id, &cpu));
    Ok(figures)
}

async fn launch_many(services: &Services, count: u32, at_once: usize) -> anyhow::Result<Latencies> {
    let all = stream::iter(0..count).map(|_| start_to_ending(services));
    let latencies: Vec<Duration> = all.buffer_unordered(at_once).try_collect().await?;
    Ok(latencies.into_iter().collect())
}

pub(super) async fn start_to_ending(services: &Services) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let id = services.begin("trivial", &()).await?;
    services.completed(&id).await?;
    Ok(begun.elapsed())
}

/// CPU time for each launch: of the services, and of the instance's process.
fn cpu_each(services: &Services, before: crate::services::Usage, count: u32) -> anyhow::Result<[f64; 2]> {
    let used = services.usage()? - before;
    Ok([used.services / f64::from(count), used.instances / f64::from(count)])
}

fn cpu_figures(id: &str, rounds: &[[f64; 2]]) -> [Figure; 2] {
    let of = |index: usize| rounds.iter().map(|round| round[index]).collect::<Vec<f64>>();
    [
        Figure::of(Unit::Seconds, format!("{id}.cpu"), "CPU of the services for each", of(0)),
        Figure::of(
            Unit::Seconds,
            format!("{id}.cpu.instance"),
            "CPU of the instance's process for each",
            of(1),
        ),
    ]
}
