//! How late a timer is in a process that does nothing else.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{
    context::Context,
    figure::{Figure, Latencies},
    registry::Findings,
};

pub(crate) async fn measure(context: &Context) -> anyhow::Result<Findings> {
    let count = context.count(100, 3);
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let mut latencies = Latencies::new();
        for number in 0..count {
            // Not in step with the runtime's wheel of whole milliseconds.
            let due = Instant::now() + Duration::from_micros(u64::from(5000 + number * 137 % 10_000));
            sleep_until(due).await;
            latencies.add(due.elapsed());
        }
        rounds.push(latencies);
    }
    let what = format!("lateness of a timer of 5 to 15 ms in an idle process; {count} a round");
    Ok(vec![Figure::latency("timer", what, &rounds)].into())
}
