//! A durable sleep: no process, woken on time, also when the due time passed while everything was
//! down.

use dormouse_management_sdk::Timestamp;
use dormouse_tests::{
    cluster::{Cluster, Database, Part},
    wait,
    workload::{Amount, Example, Run},
};

on_both! { a_sleep_leaves_no_process_and_is_woken_on_time, a_sleep_that_ended_while_everything_was_down }

async fn asleep(cluster: &Cluster, seconds: u64) -> (Run, Timestamp) {
    cluster.push(Example::Fixity.program()).await;
    let amount = Amount { settle_seconds: seconds, ..Amount::default() };
    let run = Run::start(cluster, Example::Fixity, "audit", &amount, &[]).await;
    let sleeping = cluster.until_suspended(&run.id).await;
    let sentence = sleeping.waiting_for.expect("it says what it waits for");
    assert!(sentence.contains("settle"), "{sentence}");
    (run, sleeping.wake_at.expect("a sleep has its due time"))
}

async fn a_sleep_leaves_no_process_and_is_woken_on_time(database: Database) {
    let cluster = Cluster::up(database).await;
    // Longer than the idle time (2 s), so that it suspends.
    let (run, due) = asleep(&cluster, 5).await;
    run.check(&cluster).await;
    let attempts = cluster.client().attempts(&run.id).await.expect("listed");
    let woken = attempts[1].claimed_at.expect("it was launched");
    assert!(woken >= due, "woken {} µs early", due.as_micros() - woken.as_micros());
    // Generous: this machine may be busy. A poll that was missed would take 5 s.
    let late = woken.since(due);
    assert!(late.as_millis() < 2_000, "woken {late:?} late");
    assert_eq!(attempts.len(), 2);
}

async fn a_sleep_that_ended_while_everything_was_down(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let (run, due) = asleep(&cluster, 5).await;
    cluster.kill_everything();
    wait::until_clock(due).await;
    cluster.start_services().await;
    run.check(&cluster).await;
    assert_eq!(cluster.attempts(&run.id).await, 2);
    assert!(cluster.service(Part::Both).exit().is_none());
}
