//! duroxide on SQLite, with the polling under which it is fastest here.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use duroxide::{
    ActivityContext, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    providers::sqlite::SqliteProvider,
    runtime::{ObservabilityConfig, Runtime, RuntimeOptions, registry::ActivityRegistry},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{Amount, median, payload, per_second, tell};

/// When SQLite flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// With each commit, as Dormouse does: `synchronous=FULL` on every connection of its pool.
    Each,
    /// As it sets it itself: a word that SQLite reads as NORMAL, which flushes no commit.
    Own,
}

/// Connections of its pool, which it does not let anybody choose.
const CONNECTIONS: usize = 5;
/// Between two looks of a dispatcher, of which there are two of each kind as by default: with more of them, or with
/// looks more often, they lock each other out of the database.
const POLL: Duration = Duration::from_millis(5);
/// Between two looks of a caller that waits.
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// When each workflow did what, seen from outside: it may be replayed, and only the first time counts.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<HashMap<(String, usize), Instant>>>);

impl Seen {
    fn at(&self, instance: &str, place: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((instance.to_owned(), place)).or_insert_with(Instant::now);
    }

    fn get(&self, instance: &str, place: usize) -> Option<Instant> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(instance.to_owned(), place)).copied()
    }

    /// What instances of this prefix did, per second, from the first to the last. None if they did one thing at most.
    fn rate(&self, prefix: &str) -> Option<f64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = || all.iter().filter(|((id, _), _)| id.starts_with(prefix)).map(|(_, at)| *at);
        let took = at().max()?.duration_since(at().min()?);
        (!took.is_zero()).then(|| (at().count() - 1) as f64 / took.as_secs_f64())
    }
}

struct Running {
    client: Client,
    seen: Seen,
    runtime: Arc<Runtime>,
    /// Workflows that it gave up because its own connections had locked its database.
    locked_out: AtomicUsize,
}

pub(crate) async fn measure(folder: &str, flush: Flush, amount: Amount) -> anyhow::Result<()> {
    let name = if flush == Flush::Each { "duroxide" } else { "duroxide-own" };
    let running = start(Path::new(folder), flush).await?;
    let (mut w1, mut w2, mut w3a, mut w3b16, mut w3b64, mut w4a) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    // It does some dozen steps a second for 64 workflows: more of them would take minutes.
    let (steps, of_many, launches) = (amount.count(200, 5), amount.count(5, 2), amount.count(100, 3));
    for round in 0..amount.rounds {
        w1.push(running.one(&format!("w1-{round}"), steps).await?);
        w2.push(running.many(&format!("w2-{round}"), of_many).await?);
        w3a.push(running.trivial(&format!("w3a-{round}"), launches).await?);
        w3b16.push(running.trivial_at_once(&format!("w3b16-{round}"), launches, 16).await?);
        w3b64.push(running.trivial_at_once(&format!("w3b64-{round}"), launches, 64).await?);
        w4a.push(running.sleepers(&format!("w4a-{round}"), amount.count(100, 4)).await?);
    }
    running.runtime.shutdown(None).await;
    let lost = match running.locked_out.into_inner() {
        0 => String::new(),
        lost => format!("; {lost} workflows of this whole run failed, its database being locked"),
    };
    let told = |id: &str, unit: &str, what: &str, rounds: &[f64]| {
        tell(&format!("{name}.{id}"), unit, &format!("{what}{lost}"), rounds);
    };
    told("W1", "seconds", &format!("a step with 1 KiB, one of {steps} after the other"), &w1);
    told(
        "W2",
        "per_second",
        &format!("steps with 1 KiB, 64 workflows × {of_many} at once, from the first result to the last"),
        &w2,
    );
    told(
        "W3a",
        "seconds",
        &format!("a trivial workflow, {launches} one after the other, looked for each ms"),
        &w3a,
    );
    told("W3b.16", "per_second", &format!("{launches} trivial workflows, 16 under way"), &w3b16);
    told("W3b.64", "per_second", &format!("{launches} trivial workflows, 64 under way"), &w3b64);
    told("W4a", "seconds", "sleepers due over 2 s, due time to the line after the sleep", &w4a);
    Ok(())
}

async fn start(folder: &Path, flush: Flush) -> anyhow::Result<Running> {
    let url = format!("sqlite:{}?mode=rwc", folder.join("duroxide.db").display());
    let provider = SqliteProvider::new(&url, None).await?;
    if flush == Flush::Each {
        // All at once, so that each of them is another one.
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = provider.get_pool().acquire().await?;
            sqlx::query("PRAGMA synchronous = FULL").execute(&mut *connection).await?;
            connections.push(connection);
        }
    }
    let (seen, provider) = (Seen::default(), Arc::new(provider));
    let activities = ActivityRegistry::builder()
        .register("step", |_: ActivityContext, n: String| async move { Ok(payload(n.parse().unwrap_or(0))) })
        .build();
    let (in_steps, in_sleep) = (seen.clone(), seen.clone());
    let orchestrations = OrchestrationRegistry::builder()
        .register("steps", move |ctx: OrchestrationContext, n: String| {
            let seen = in_steps.clone();
            async move {
                let n = n.parse().map_err(|error| format!("{error}"))?;
                for step in 0..n {
                    ctx.schedule_activity("step", step.to_string()).await?;
                    seen.at(&ctx.instance_id(), step);
                }
                Ok::<_, String>(String::new())
            }
        })
        .register(
            "trivial",
            |_: OrchestrationContext, _: String| async move { Ok::<_, String>(String::new()) },
        )
        .register("sleeper", move |ctx: OrchestrationContext, millis: String| {
            let seen = in_sleep.clone();
            async move {
                let millis = millis.parse().map_err(|error| format!("{error}"))?;
                seen.at(&ctx.instance_id(), 0);
                ctx.schedule_timer(Duration::from_millis(millis)).await;
                seen.at(&ctx.instance_id(), 1);
                Ok::<_, String>(String::new())
            }
        })
        .build();
    let options = RuntimeOptions {
        dispatcher_min_poll_interval: POLL,
        orchestration_concurrency: 2,
        worker_concurrency: 2,
        // Not a line for each workflow.
        observability: ObservabilityConfig {
            log_level: "error".to_owned(),
            ..ObservabilityConfig::default()
        },
        ..RuntimeOptions::default()
    };
    let runtime = Runtime::start_with_options(provider.clone(), activities, orchestrations, options).await;
    Ok(Running { client: Client::new(provider), seen, runtime, locked_out: AtomicUsize::new(0) })
}

impl Running {
    async fn ended(&self, id: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.client.get_orchestration_status(id).await;
            let late = begun.elapsed() >= PATIENCE;
            match status {
                Ok(OrchestrationStatus::Completed { .. }) => return Ok(()),
                Ok(OrchestrationStatus::Failed { details, .. }) => {
                    let details = format!("{details:?}");
                    if !details.contains("database is locked") {
                        bail!("{id} failed: {details}");
                    }
                    // Told with the figures; what it did before counts.
                    self.locked_out.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(_) if late => bail!("{id} has not ended within {PATIENCE:?}"),
                Err(error) if late => return Err(error).context("looking for the ending"),
                // A look that met a locked database is made again.
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The median time from one step's result to the next one's.
    async fn one(&self, id: &str, steps: usize) -> anyhow::Result<f64> {
        self.client.start_orchestration(id, "steps", steps.to_string()).await?;
        self.ended(id).await?;
        let at: Vec<Instant> = (0..steps).filter_map(|step| self.seen.get(id, step)).collect();
        Ok(median(at.windows(2).map(|pair| pair[1] - pair[0]).collect()))
    }

    /// Steps per second of 64 workflows; their starts are not counted.
    async fn many(&self, id: &str, steps: usize) -> anyhow::Result<f64> {
        let all = stream::iter(0..64).map(|n| async move {
            let id = format!("{id}-{n}");
            self.client.start_orchestration(&id, "steps", steps.to_string()).await?;
            self.ended(&id).await
        });
        all.buffer_unordered(64).try_collect::<Vec<_>>().await?;
        self.seen.rate(&format!("{id}-")).context("64 workflows did no two steps")
    }

    async fn launch(&self, id: String) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.client.start_orchestration(&id, "trivial", "").await?;
        self.ended(&id).await?;
        Ok(begun.elapsed())
    }

    async fn trivial(&self, id: &str, count: usize) -> anyhow::Result<f64> {
        let mut all = Vec::new();
        for n in 0..count {
            all.push(self.launch(format!("{id}-{n}")).await?);
        }
        Ok(median(all))
    }

    async fn trivial_at_once(&self, id: &str, count: usize, at_once: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let all = stream::iter(0..count).map(|n| self.launch(format!("{id}-{n}")));
        all.buffer_unordered(at_once).try_collect::<Vec<_>>().await?;
        Ok(per_second(count, begun))
    }

    /// The median lateness of sleepers that are due one after the other.
    async fn sleepers(&self, id: &str, count: usize) -> anyhow::Result<f64> {
        let millis = |n: usize| 1_000 + 2_000 * n / count;
        for n in 0..count {
            self.client.start_orchestration(&format!("{id}-{n}"), "sleeper", millis(n).to_string()).await?;
        }
        let mut late = Vec::new();
        for n in 0..count {
            let id = format!("{id}-{n}");
            self.ended(&id).await?;
            if let (Some(slept), Some(woke)) = (self.seen.get(&id, 0), self.seen.get(&id, 1)) {
                late.push(woke.saturating_duration_since(slept + Duration::from_millis(millis(n) as u64)));
            }
        }
        Ok(median(late))
    }
}
