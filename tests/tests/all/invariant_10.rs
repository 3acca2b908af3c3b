//! Invariant 10: the database's clock is the only one. The services' machine is an hour ahead, or an
//! hour behind; nothing is woken early, late or expired by that.

use dormouse_management_sdk::{StartInstance, Status, Timestamp};
use dormouse_tests::{
    cluster::{Cluster, Database, Layout},
    fault, wait,
    workload::{Amount, Example, Run},
};

#[tokio::test]
async fn invariant_10_services_an_hour_ahead_wake_nothing_early() {
    wakes_on_time("3600").await;
}

#[tokio::test]
async fn invariant_10_services_an_hour_behind_wake_nothing_late() {
    wakes_on_time("-3600").await;
}

/// On PostgreSQL, whose clock is another process's; the services' own clock is wrong by so many
/// seconds.
async fn wakes_on_time(wrong_by: &str) {
    let mut cluster = Cluster::up_as(Layout::Apart, Database::Postgres).await;
    let library = fault::wrong_clock(cluster.scratch().join("wrong-clock.so"));
    cluster.kill_services();
    cluster.set_variable("LD_PRELOAD", &library.display().to_string());
    cluster.set_variable("WRONG_BY_SECONDS", wrong_by);
    cluster.start_services().await;

    let begun = cluster.client().health().await.expect("it answers").now;
    let true_now = wait::now();
    assert!(begun.since(true_now).max(true_now.since(begun)).as_secs() < 60, "health tells the wrong clock");

    cluster.push(Example::Fixity.program()).await;
    let amount = Amount { settle_seconds: 6, ..Amount::default() };
    let (run, start) = Run::prepare(&cluster, Example::Fixity, "audit", &amount, &[]);
    // A limit that both wrong clocks would break or stretch.
    cluster.start(start.limit(std::time::Duration::from_mins(10))).await;
    let due = cluster.until_suspended(&run.id).await.wake_at.expect("a sleep has its due time");
    run.check(&cluster).await;
    let attempts = cluster.client().attempts(&run.id).await.expect("listed");
    let woken = attempts[1].claimed_at.expect("it was launched");
    assert!(woken >= due, "woken before its time");
    assert!(woken.since(due).as_secs() < 30, "woken {:?} late", woken.since(due));

    let delayed = StartInstance::of("fixity").id("limited").input(&serde_json::json!({})).expect("JSON");
    let at = Timestamp::from_micros(begun.as_micros() + 3_000_000_000);
    cluster.start(delayed.start_at(at).limit(std::time::Duration::from_secs(2))).await;
    let ended = cluster.until_ended("limited", Status::Failed).await;
    let lived = ended.ended_at.expect("ended").since(ended.created_at.expect("created"));
    assert!((2..30).contains(&lived.as_secs()), "a limit of 2 s ended it after {lived:?}");
}
