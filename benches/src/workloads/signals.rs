//! W6: a signal, from the moment when a controller sends it to the workflow's code that gets it.
//!
//! The signal carries the time of its sending, and the workflow compares: both read one clock.

use std::time::Duration;

use anyhow::ensure;
use dormouse_management_sdk::{Payload, Status};
use dormouse_workload::{Ping, Received, Receiver, SIGNAL, now};
use tokio::time::{MissedTickBehavior, interval};

use super::wakes::SUSPEND_SOON;
use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target},
    registry::{Entry, Kind, Measured, Run},
    services::Services,
};

pub(super) fn entries() -> [Entry; 2] {
    [
        Entry { name: "W6a", kind: Kind::Workload, needs: &["echo", "commit"], run: Run::OnEach(to_running) },
        Entry { name: "W6b", kind: Kind::Workload, needs: &["W3a", "echo"], run: Run::OnEach(to_suspended) },
    ]
}

fn to_running(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        let (count, warm_up) = (context.count(500, 20), context.count(50, 2));
        let mut rounds = Vec::new();
        for _ in 0..context.rounds() {
            let id = services.begin("receiver", &Receiver { count: count + warm_up }).await?;
            // At a fixed pace, whether or not the one before has arrived.
            let mut pace = interval(Duration::from_millis(5));
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for _ in 0..count + warm_up {
                pace.tick().await;
                send(&services, &id).await?;
            }
            let received: Received = services.output(&id).await?;
            ensure!(received.attempt == 1, "the receiver was suspended meanwhile");
            let measured = received.micros.into_iter().skip(usize::try_from(warm_up)?);
            rounds.push(measured.map(Duration::from_micros).collect::<Latencies>());
        }
        services.stop(context).await?;
        let what = format!(
            "a signal to a running instance, sending to workflow code, {count} 5 ms apart, {warm_up} to warm up"
        );
        let limit = Limit::Sum(&[(2.0, "echo"), (1.0, "commit")]);
        Ok(vec![Figure::latency("W6a", what, &rounds).held(limit, Target::AtMostTimes(2.0))].into())
    })
}

fn to_suspended(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SUSPEND_SOON).await?;
        let count = context.count(100, 5);
        let mut rounds = Vec::new();
        for _ in 0..context.rounds() {
            let mut ids = Vec::new();
            for _ in 0..count {
                ids.push(services.begin("receiver", &Receiver { count: 1 }).await?);
            }
            services.until_so_many(Status::Suspended, count).await?;
            let mut round = Latencies::new();
            for id in ids {
                send(&services, &id).await?;
                let received: Received = services.output(&id).await?;
                ensure!(received.attempt > 1, "receiver {id} was not suspended");
                round.extend(received.micros.into_iter().map(Duration::from_micros));
            }
            rounds.push(round);
        }
        services.stop(context).await?;
        let what = format!(
            "a signal to a suspended instance, sending to workflow code, {count} one after the other"
        );
        let limit = Limit::Sum(&[(1.0, "W3a"), (1.0, "echo")]);
        Ok(vec![Figure::latency("W6b", what, &rounds).held(limit, Target::AtMostTimes(1.3))].into())
    })
}

async fn send(services: &Services, id: &str) -> anyhow::Result<()> {
    let payload = Payload::json(&Ping { sent_at: now() })?;
    services.client().signal(id, SIGNAL, Some(payload)).await?;
    Ok(())
}
