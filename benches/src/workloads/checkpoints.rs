//! W1 and W2: durable checkpoints, as the workflow that saves them sees them.
//!
//! The workflow's own clock begins before the call and ends when the acknowledgement is there; nothing is
//! taken on trust from the services.

use dormouse_workload::{Checkpoints, Saved};
use futures_util::future::try_join_all;
use tokio::{io::AsyncWriteExt as _, net::UnixListener};

use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target, Unit},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::Services,
};

const BYTES: usize = 1024;
const WARM_UP: u32 = 200;
/// Of W2: instances at once, and slots that let all of them live at once on a small machine too.
const INSTANCES: u32 = 64;
pub(super) const SLOTS: [(&str, &str); 1] = [("DORMOUSE_SLOTS", "80")];

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W1", kind: Kind::Workload, needs: &["echo", "commit"], run: Run::OnEach(alone) },
        Entry { name: "W2", kind: Kind::Workload, needs: &["echo", "batch"], run: Run::OnEach(together) },
    ]
}

fn alone(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        let figures = one_instance(context, &services, "W1").await?;
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

fn together(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SLOTS).await?;
        let figures = many_instances(context, &services, "W2").await?;
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

/// One instance that saves one after the other.
pub(super) async fn one_instance(
    context: &Context,
    services: &Services,
    id: &str,
) -> anyhow::Result<Vec<Figure>> {
    let (count, warm_up) = (context.count(2000, 50), context.count(WARM_UP, 5));
    let input = Checkpoints { warm_up, count, bytes: BYTES, gate: None };
    let (mut rounds, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        let before = services.usage()?;
        let instance = services.begin("checkpoints", &input).await?;
        let saved: Saved = services.output(&instance).await?;
        cpu.push((services.usage()? - before).services / f64::from(count + warm_up));
        rounds.push(saved.nanos.into_iter().map(std::time::Duration::from_nanos).collect::<Latencies>());
    }
    let what = format!("a checkpoint of 1 KiB, one of {count} after the other, {warm_up} to warm up");
    let limit = Limit::Sum(&[(1.0, "echo"), (1.0, "commit")]);
    Ok(vec![
        Figure::latency(id, what, &rounds).held(limit, Target::AtMostTimes(1.4)),
        Figure::of(Unit::Seconds, format!("{id}.cpu"), "CPU of the services for each checkpoint", cpu),
    ])
}

/// Many instances that begin to save at one moment.
pub(super) async fn many_instances(
    context: &Context,
    services: &Services,
    id: &str,
) -> anyhow::Result<Vec<Figure>> {
    let (instances, count) = (context.count(INSTANCES, 8), context.count(200, 20));
    let (mut rates, mut rounds, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..context.rounds() {
        let (saved, used) = one_burst(context, services, instances, count).await?;
        let begun = saved.iter().map(|saved| saved.begun_at).min().unwrap_or_default();
        let ended = saved.iter().map(|saved| saved.ended_at).max().unwrap_or_default();
        let seconds = std::time::Duration::from_micros(ended.saturating_sub(begun)).as_secs_f64();
        let checkpoints = f64::from(instances) * f64::from(count);
        rates.push(checkpoints / seconds);
        cpu.push(used / checkpoints);
        let nanos = saved.into_iter().flat_map(|saved| saved.nanos);
        rounds.push(nanos.map(std::time::Duration::from_nanos).collect::<Latencies>());
    }
    let what = format!(
        "checkpoints of 1 KiB, {instances} instances × {count} at once, from the first call to the last answer"
    );
    let limit = Limit::Rate(&[(1.0, "batch"), (1.0, "echo.64")]);
    Ok(vec![
        Figure::rate(id, what, rates).held(limit, Target::AtLeastTimes(0.6)),
        Figure::latency(format!("{id}.latency"), "one of these checkpoints", &rounds),
        Figure::of(Unit::Seconds, format!("{id}.cpu"), "CPU of the services for each checkpoint", cpu),
    ])
}

/// Lets them go when all have warmed up and wait; answers what they say, and the services' CPU time from
/// there to their endings.
async fn one_burst(
    context: &Context,
    services: &Services,
    instances: u32,
    count: u32,
) -> anyhow::Result<(Vec<Saved>, f64)> {
    let folder = context.folder("gate")?;
    let gate = folder.join("gate");
    let listener = UnixListener::bind(&gate)?;
    let input =
        Checkpoints { warm_up: 5, count, bytes: BYTES, gate: Some(gate.to_string_lossy().into_owned()) };
    let ids = try_join_all((0..instances).map(|_| services.begin("checkpoints", &input))).await?;
    let mut waiting = Vec::new();
    for _ in 0..instances {
        waiting.push(super::in_time("all instances wait at the gate", listener.accept()).await??.0);
    }
    let before = services.usage()?;
    for stream in &mut waiting {
        stream.write_all(b"!").await?;
    }
    let saved = try_join_all(ids.iter().map(|id| services.output(id))).await?;
    let used = services.usage()? - before;
    std::fs::remove_dir_all(folder)?;
    Ok((saved, used.services))
}
