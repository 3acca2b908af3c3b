//! W7: what Dormouse costs while nothing happens: the memory of idle instances and of their connections, and
//! the CPU of services that only wait.

use std::time::Duration;

use anyhow::Context as _;
use dormouse_management_sdk::Status;
use dormouse_tests::load::{Load, fill};
use futures_util::future::try_join_all;
use nix::{time::clock_getcpuclockid, unistd::Pid};
use tokio::time::{Instant, sleep};

use crate::{
    context::{Context, Store},
    figure::{Figure, Limit, Target, Unit, median},
    memory::private_bytes,
    registry::{Entry, Findings, Kind, Measured, Run},
    services::{Layout, Services, address, migrate},
};

/// Instances that all live at once.
const INSTANCES: u32 = 128;
/// Those before them, which make what all share.
const FIRST: u32 = 8;
const SLOTS: [(&str, &str); 1] = [("DORMOUSE_SLOTS", "160")];
/// What is not over by then is not the start any more.
const SETTLE: Duration = Duration::from_secs(1);
/// KiB that the SDK and the workflow may add to a bare process.
const OURS: f64 = 160.0 * 1024.0;

/// Sleepers, and the figure's id.
const SLEEPERS: [(u32, &str); 3] = [(0, "W7b.0"), (10_000, "W7b.10000"), (1_000_000, "W7b.1000000")];

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W7", kind: Kind::Workload, needs: &["bare"], run: Run::OnEach(memory) },
        Entry { name: "W7b", kind: Kind::Workload, needs: &[], run: Run::OnEach(cpu) },
    ]
}

fn memory(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let instances = context.count(INSTANCES, 8);
        let (mut each, mut connection) = (Vec::new(), Vec::new());
        for _ in 0..context.rounds() {
            // Core alone: in one process with the environment, that one's share would count too.
            let services = Services::start_as(context, store, Layout::Apart, &SLOTS).await?;
            let core = *services.pids().first().context("core runs")?;
            let mut ids = idle(&services, FIRST).await?;
            services.until_so_many(Status::Running, FIRST).await?;
            sleep(SETTLE).await;
            let before = bytes(core)?;
            ids.extend(idle(&services, instances).await?);
            services.until_so_many(Status::Running, FIRST + instances).await?;
            sleep(SETTLE).await;
            connection.push((bytes(core)? - before) / f64::from(instances));
            each.push(median(&of_processes(&services, &ids).await?));
            for id in &ids {
                services.client().stop(id).await?;
            }
            services.stop(context).await?;
        }
        let of = format!("private memory of an idle instance, the middle one of {}", FIRST + instances);
        let per = format!("private memory of core for each of {instances} idle instances");
        Ok(Findings::from(vec![
            Figure::of(Unit::Bytes, "W7.instance", of, each)
                .held(Limit::Sum(&[(1.0, "bare.bytes")]), Target::AtMostMore(OURS)),
            Figure::of(Unit::Bytes, "W7.connection", per, connection)
                .held(Limit::Sum(&[(1.0, "server.bytes")]), Target::AtMostTimes(1.3)),
        ]))
    })
}

async fn idle(services: &Services, count: u32) -> anyhow::Result<Vec<String>> {
    try_join_all((0..count).map(|_| services.begin("idle", &()))).await
}

async fn of_processes(services: &Services, ids: &[String]) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::new();
    for id in ids {
        let attempts = services.client().attempts(id).await?;
        let pid = attempts.last().and_then(|attempt| attempt.pid);
        all.push(bytes(Pid::from_raw(i32::try_from(pid.with_context(|| format!("{id} has no process"))?)?))?);
    }
    Ok(all)
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn bytes(pid: Pid) -> anyhow::Result<f64> {
    Ok(private_bytes(u32::try_from(pid.as_raw())?)? as f64)
}

fn cpu(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let mut figures = Vec::new();
        for (sleepers, id) in SLEEPERS {
            let sleepers = context.count(sleepers, sleepers / 1000);
            let database = context.database(store).await?;
            migrate(context, &database)?;
            let load = Load { sleeping: sleepers.into(), events: 1, ..Load::default() };
            fill(&address(&database).to_string_lossy(), &load).await?;
            let services = Services::start_on(context, &database, Layout::Usual, &[]).await?;
            sleep(SETTLE).await;
            let mut rounds = Vec::new();
            for _ in 0..context.rounds() {
                rounds.push(share_of_a_core(context, &services).await?);
            }
            services.stop(context).await?;
            context.remove(&database).await?;
            let what = format!("CPU of the idle services with {sleepers} sleepers, over {:?}", span(context));
            figures.push(Figure::of(Unit::Core, id, what, rounds).held(Limit::None, Target::AtMost(0.001)));
        }
        Ok(figures.into())
    })
}

fn span(context: &Context) -> Duration {
    Duration::from_secs(context.count(6, 1).into())
}

/// By the clocks of the processes' own CPU time, which count nanoseconds.
async fn share_of_a_core(context: &Context, services: &Services) -> anyhow::Result<f64> {
    let used = || -> anyhow::Result<Duration> {
        let mut all = Duration::ZERO;
        for pid in services.pids() {
            all += Duration::from(clock_getcpuclockid(pid)?.now()?);
        }
        Ok(all)
    };
    let (begun, before) = (Instant::now(), used()?);
    sleep(span(context)).await;
    Ok(used()?.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64())
}
