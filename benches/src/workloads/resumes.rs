//! W5: resuming an instance that has saved much, from its registration to its first new step.
//!
//! One instance of each size is launched again and again: making what it has saved takes longest. It is held against reading as many rows by SQL and one echo: what nobody can avoid. The registration's
//! moment is the database's, taken inside its transaction, so that its commit is counted; the step's is the
//! workflow's. Both read the machine's clock.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dormouse_management_sdk::{Payload, Status, Timestamp};
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
    target: Target,
    /// Resumes of a round.
    repeat: u32,
}

const SIZES: [Size; 4] = [
    Size {
        id: "W5.100",
        steps: 100,
        limit: Limit::Sum(&[(1.0, "rows.100"), (1.0, "echo")]),
        target: Target::AtMostTimes(2.0),
        repeat: 20,
    },
    Size {
        id: "W5.1000",
        steps: 1000,
        limit: Limit::Sum(&[(1.0, "rows.1000"), (1.0, "echo")]),
        target: Target::AtMostTimes(2.0),
        repeat: 10,
    },
    Size {
        id: "W5.10000",
        steps: 10_000,
        limit: Limit::Sum(&[(1.0, "rows.10000"), (1.0, "echo")]),
        target: Target::AtMostTimes(2.0),
        repeat: 5,
    },
    // So much starts within a second.
    Size { id: "W5.100000", steps: 100_000, limit: Limit::None, target: Target::AtMost(1.0), repeat: 1 },
];

pub(super) fn entries() -> [Entry; 1] {
    [Entry { name: "W5", kind: Kind::Workload, needs: &["rows", "echo"], run: Run::OnEach(resume) }]
}

fn resume(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &SUSPEND_SOON).await?;
        let mut figures = Vec::new();
        for Size { id, steps, limit, target, repeat } in SIZES {
            let (repeat, steps) = (context.count(repeat, 1), context.count(steps, steps / 50));
            let all = registrations_to_new_steps(&services, steps, repeat * context.rounds()).await?;
            let rounds = all.chunks(usize::try_from(repeat)?);
            let rounds: Vec<Latencies> = rounds.map(|round| round.iter().copied().collect()).collect();
            let what = format!(
                "resume with {steps} results of {BYTES} B, from the registration to the first new step; {repeat} a round"
            );
            figures.push(Figure::latency(id, what, &rounds).held(limit, target));
        }
        services.stop(context).await?;
        Ok(Findings::from(figures))
    })
}

/// Of one instance that has saved so much, launched again so often.
async fn registrations_to_new_steps(
    services: &Services,
    steps: u32,
    resumes: u32,
) -> anyhow::Result<Vec<Duration>> {
    let id = services.begin("resumer", &Resumer { steps, bytes: BYTES, resumes }).await?;
    for launch in 1..=resumes {
        // By itself: who is woken is called suspended until it registers.
        super::until(&format!("launch {launch} of {id} is suspended"), async || {
            let instance = services.client().instance(&id).await?;
            Ok(instance.status == Status::Suspended && instance.attempt == launch && !instance.launching)
        })
        .await?;
        let go = Payload::json(&Ping { sent_at: now() })?;
        services.client().signal(&id, SIGNAL, Some(go)).await?;
    }
    let resumed: Resumed = services.output(&id).await?;
    let attempts = services.client().attempts(&id).await?;
    let launches = usize::try_from(resumes)? + 1;
    ensure!(attempts.len() == launches, "{id} was launched {} times instead of {launches}", attempts.len());
    let registered = attempts.iter().skip(1).map(|attempt| attempt.registered_at.map(Timestamp::as_micros));
    let spans = registered.zip(resumed.new_step_at).map(|(registered, new_step)| {
        let registered = u64::try_from(registered.context("a launch has not registered")?)?;
        Ok(Duration::from_micros(new_step.saturating_sub(registered)))
    });
    spans.collect()
}
