//! W4: sleepers, from the moment when they are due.
//!
//! Each sleeps suspended, its process gone. It notes the time in the first line of the process that is
//! launched when it is due, by the clock that it shares with this program. To have them all suspended soon,
//! the services suspend after 10 ms of idleness instead of 2 s; nothing of what is measured depends on it.

use std::time::Duration;

use anyhow::ensure;
use dormouse_management_sdk::{Status, Timestamp};
use dormouse_workload::{Sleeper, Woken, now};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::Services,
};

pub(super) const SUSPEND_SOON: [(&str, &str); 1] = [("DORMOUSE_IDLE_BEFORE_SUSPEND", "10ms")];
/// Sleepers of W4a, one after the other.
const SPREAD: u32 = 500;
/// Those of W4b, at one moment.
const BURST: u32 = 2000;
/// Starts under way while sleepers are laid down.
const STARTS_AT_ONCE: usize = 32;

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W4a", kind: Kind::Workload, needs: &["timer", "W3a"], run: Run::OnEach(spread) },
        Entry { name: "W4b", kind: Kind::Workload, needs: &["W3b"], run: Run::OnEach(burst) },
    ]
}

fn spread(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SUSPEND_SOON).await?;
        let figures = lateness(context, &services, "W4a", SPREAD).await?;
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

fn burst(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SUSPEND_SOON).await?;
        let figures = at_one_moment(context, &services, "W4b", BURST).await?;
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

/// Due one after the other.
pub(super) async fn lateness(
    context: &Context,
    services: &Services,
    id: &str,
    count: u32,
) -> anyhow::Result<Vec<Figure>> {
    let count = context.count(count, 20);
    let apart = Duration::from_millis(20);
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let first = after_laying_down(services, count).await?;
        let due = |n: u32| first + micros(apart * n);
        let ids = lay_down(services, count, due).await?;
        let mut round = Latencies::new();
        for (n, id) in ids {
            let woken: Woken = services.output(&id).await?;
            ensure!(woken.attempt > 1, "sleeper {id} was due before it was suspended");
            round.add(Duration::from_micros(woken.first_line_at.saturating_sub(due(n))));
        }
        rounds.push(round);
    }
    let what =
        format!("{count} sleepers due {apart:?} after each other: from due to the first line of the process");
    let limit = Limit::Sum(&[(1.0, "timer"), (1.0, "W3a")]);
    Ok(vec![Figure::latency(id, what, &rounds).held(limit, Target::AtMostTimes(1.3))])
}

/// All due at once.
pub(super) async fn at_one_moment(
    context: &Context,
    services: &Services,
    id: &str,
    count: u32,
) -> anyhow::Result<Vec<Figure>> {
    let count = context.count(count, 40);
    let (mut rates, mut first_lines) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        let due_at = after_laying_down(services, count).await?;
        let ids = lay_down(services, count, |_| due_at).await?;
        let mut last = 0;
        let mut round = Latencies::new();
        // The last one ends the round; those before it cost a look each.
        for (_, id) in ids.into_iter().rev() {
            let instance = services.completed(&id).await?;
            let ended_at = instance.ended_at.map_or(0, Timestamp::as_micros);
            last = last.max(u64::try_from(ended_at).unwrap_or(0));
            let woken: Woken =
                instance.output.map(|output| output.decode()).transpose()?.expect("it has one");
            ensure!(woken.attempt > 1, "sleeper {id} was due before it was suspended");
            round.add(Duration::from_micros(woken.first_line_at.saturating_sub(due_at)));
        }
        rates.push(f64::from(count) / Duration::from_micros(last.saturating_sub(due_at)).as_secs_f64());
        first_lines.push(round);
    }
    let what = format!("{count} sleepers due at one moment, per second until the last one has ended");
    // At most 1.2 times the time is at least 1/1.2 of the rate.
    let limit = Limit::Rate(&[(1.0, "W3b.64")]);
    Ok(vec![
        Figure::rate(id, what, rates).held(limit, Target::AtLeastTimes(1.0 / 1.2)),
        Figure::latency(format!("{id}.lateness"), "from due to the first line of one of them", &first_lines),
    ])
}

/// A moment when so many sleepers will be suspended: some are laid down to see how long it takes.
async fn after_laying_down(services: &Services, count: u32) -> anyhow::Result<u64> {
    const MARGIN: Duration = Duration::from_secs(2);
    let pilots = count.min(200);
    let begun = now();
    let far = begun + micros(Duration::from_hours(1));
    for (_, id) in lay_down(services, pilots, |_| far).await? {
        services.client().stop(&id).await?;
    }
    let each = (now() - begun) / u64::from(pilots);
    // Half as long again: what is not suspended by then fails the round.
    Ok(now() + micros(MARGIN) + each * u64::from(count) * 3 / 2)
}

/// Starts sleepers, and waits until all are suspended, which must be before the first is due; answers them
/// with their numbers, in the order of these.
async fn lay_down(
    services: &Services,
    count: u32,
    due: impl Fn(u32) -> u64,
) -> anyhow::Result<Vec<(u32, String)>> {
    let starts = stream::iter(0..count).map(|n| {
        let input = Sleeper { due_at: due(n) };
        async move { anyhow::Ok((n, services.begin("sleeper", &input).await?)) }
    });
    let ids = starts.buffered(STARTS_AT_ONCE).try_collect().await?;
    services.until_so_many(Status::Suspended, count).await?;
    let left = due(0).checked_sub(now());
    ensure!(
        left.is_some(),
        "the machine was too busy: {count} sleepers were not suspended before they were due"
    );
    Ok(ids)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("hours at most")
}
