//! W5: resuming an instance that has saved much, from its registration to its first new step.
//!
//! It is held against reading as many rows by SQL and one echo: what nobody can avoid. The registration's
//! moment is the database's, taken inside its transaction, so that its commit is counted; the step's is the
//! workflow's. Both read the machine's clock.

use std::time::Duration;

use anyhow::Context as _;
use dormouse_management_sdk::{Payload, Status};
use dormouse_workload::{Ping, Resumed, Resumer, SIGNAL, now};

use super::wakes::SUSPEND_SOON;
use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Limit, Target},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::Services,
};

/// Of each result, as many as the rows of the limit have.
const BYTES: usize = 200;

/// How much is resumed, and what that is held against.
struct Size {
    id: &'static str,
    steps: u32,
    limit: Limit,
}

const SIZES: [Size; 3] = [
    Size { id: "W5.100", steps: 100, limit: Limit::Sum(&[(1.0, "rows.100"), (1.0, "echo")]) },
    Size { id: "W5.1000", steps: 1000, limit: Limit::Sum(&[(1.0, "rows.1000"), (1.0, "echo")]) },
    Size { id: "W5.10000", steps: 10_000, limit: Limit::Sum(&[(1.0, "rows.10000"), (1.0, "echo")]) },
];

pub(super) fn entries() -> [Entry; 1] {
    [Entry { name: "W5", kind: Kind::Workload, needs: &["rows", "echo"], run: Run::OnEach(resume) }]
}

fn resume(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SUSPEND_SOON).await?;
        let mut figures = Vec::new();
        for size in SIZES {
            // Of little that is saved many resumes, of much a few: making it takes longest.
            let repeat = context.count(if size.steps > 1000 { 3 } else { 10 }, 1);
            let steps = context.count(size.steps, size.steps / 50);
            let mut rounds = Vec::new();
            for _ in 0..context.rounds() {
                let mut round = Latencies::new();
                for _ in 0..repeat {
                    round.add(register_to_new_step(&services, steps).await?);
                }
                rounds.push(round);
            }
            let what = format!(
                "resume with {steps} results of {BYTES} B, from the registration to the first new step; {repeat} a round"
            );
            figures.push(Figure::latency(size.id, what, &rounds).held(size.limit, Target::AtMostTimes(2.0)));
        }
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

/// Of one instance that has saved so much.
async fn register_to_new_step(services: &Services, steps: u32) -> anyhow::Result<Duration> {
    let id = services.begin("resumer", &Resumer { steps, bytes: BYTES }).await?;
    services.until_so_many(Status::Suspended, 1).await?;
    let go = Payload::json(&Ping { sent_at: now() })?;
    services.client().signal(&id, SIGNAL, Some(go)).await?;
    let resumed: Resumed = services.output(&id).await?;
    let attempts = services.client().attempts(&id).await?;
    let registered = attempts.get(1).and_then(|attempt| attempt.registered_at);
    let registered = registered.with_context(|| format!("{id} was not launched twice"))?.as_micros();
    Ok(Duration::from_micros(resumed.new_step_at.saturating_sub(u64::try_from(registered)?)))
}
