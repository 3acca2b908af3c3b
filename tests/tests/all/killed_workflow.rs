//! kill -9 of the workflow's process, at each named point of the SDK and at random moments: the
//! examples end right, and nothing that was saved runs again.

use dormouse_management_sdk::Status;
use dormouse_tests::{
    cluster::{Cluster, Database},
    fault, wait,
    workload::{Amount, Example, Run},
};

on_both! {
    order_at_each_named_point, fixity_at_each_named_point, batch_at_each_named_point,
    order_at_random_moments, fixity_at_random_moments, batch_at_random_moments,
}

/// Every point that the SDK names, in the order of a life.
const POINTS: [&str; 9] = [
    "after-register",
    "before-step",
    "step-ran",
    "before-checkpoint",
    "after-checkpoint",
    "before-suspend",
    "after-suspend",
    "before-complete",
    "after-complete",
];

async fn order_at_each_named_point(database: Database) {
    at_each_named_point(database, Example::Order, &[]).await;
}

async fn fixity_at_each_named_point(database: Database) {
    at_each_named_point(database, Example::Fixity, &[]).await;
}

async fn batch_at_each_named_point(database: Database) {
    // It saves checkpoints, runs no steps and never waits.
    let not_passed = ["before-step", "step-ran", "before-suspend", "after-suspend"];
    at_each_named_point(database, Example::Batch, &not_passed).await;
}

/// An instance for each point, all at once: its first attempt is killed there.
async fn at_each_named_point(database: Database, example: Example, not_passed: &[&str]) {
    let cluster = Cluster::up(database).await;
    cluster.push(example.program()).await;
    // Much longer than the idle time, so that an audit suspends too.
    let amount = Amount { settle_seconds: 6, ..Amount::default() };
    let mut runs = Vec::new();
    for point in POINTS.into_iter().filter(|point| !not_passed.contains(point)) {
        // What suspends ends in its second attempt.
        let attempt = if point.ends_with("-complete") && example != Example::Batch { 2 } else { 1 };
        let told = format!("{point}@{attempt}");
        let run = Run::start(&cluster, example, point, &amount, &[(fault::WORKFLOW_VARIABLE, &told)]).await;
        runs.push((point, attempt, run));
    }
    for (point, attempt, mut run) in runs {
        if example == Example::Order {
            cluster
                .until(&run.id, "waits for its approval", |instance| instance.status == Status::Suspended)
                .await;
            run.approve(&cluster).await;
        }
        run.check(&cluster).await;
        // It was killed for sure: the exit says so.
        let attempts = cluster.client().attempts(&run.id).await.expect("attempts are listed");
        let exit = attempts[attempt - 1].exit.as_deref().unwrap_or_default();
        assert!(exit.contains("signal 9"), "at {point}, attempt {attempt} ended so: {exit:?}");
    }
}

/// An order is short: many of them, each killed at one moment of its life.
async fn order_at_random_moments(database: Database) {
    let mut random = fault::random();
    let cluster = Cluster::up(database).await;
    cluster.push(Example::Order.program()).await;
    let mut killed = 0;
    for number in 0..fault::kills() {
        let id = format!("order-{number}");
        let mut run = Run::start(&cluster, Example::Order, &id, &Amount::default(), &[]).await;
        if random.bool() {
            run.approve(&cluster).await;
        }
        if let Some(pid) = next_process(&cluster, &run).await {
            tokio::time::sleep(fault::up_to(&mut random, 60)).await;
            killed += usize::from(pid.is_alive());
            fault::kill_9(pid);
        }
        run.approve(&cluster).await;
        run.check(&cluster).await;
    }
    assert!(killed > 0, "every process had ended before its moment came");
}

async fn fixity_at_random_moments(database: Database) {
    at_random_moments(database, Example::Fixity, &Amount { files: 400, pace_ms: 20, ..Amount::default() })
        .await;
}

async fn batch_at_random_moments(database: Database) {
    at_random_moments(database, Example::Batch, &Amount { below: 1_500_000, ..Amount::default() }).await;
}

/// Kills whatever process there is, again and again; then lets it end.
async fn at_random_moments(database: Database, example: Example, amount: &Amount) {
    let mut random = fault::random();
    let cluster = Cluster::up(database).await;
    cluster.push(example.program()).await;
    let run = Run::start(&cluster, example, "killed", amount, &[]).await;
    let mut killed = 0;
    while killed < fault::kills() {
        let Some(pid) = next_process(&cluster, &run).await else { break };
        // From before its first line to well into its work: after so many further steps, or so
        // many milliseconds, whichever comes first.
        let enough = run.steps_ran().len() + random.usize(0..12);
        let moment = tokio::time::sleep(fault::up_to(&mut random, 400));
        let progress = async {
            while run.steps_ran().len() < enough && pid.is_alive() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = moment => {}, () = progress => {} }
        fault::kill_9(pid);
        killed += 1;
        // So much ill luck would be a crash loop. What is tested is one crash, many times.
        cluster.until_no_process(&run.id).await;
    }
    assert!(killed >= 3, "it was killed only {killed} times; give it more work");
    run.check(&cluster).await;
}

/// The next process of the instance; none if it has ended, or sleeps and nothing would wake it.
async fn next_process(cluster: &Cluster, run: &Run) -> Option<dormouse_tests::process::Pid> {
    wait::until("the instance is launched again", async || {
        if let [(_, pid)] = cluster.processes_of(&run.id)[..] {
            return Ok(Some(pid));
        }
        let instance = cluster.get(&run.id).await;
        let sleeps =
            instance.status == Status::Suspended && instance.wake_at.is_none() && !instance.launching;
        if instance.status.ended() || sleeps { Ok(None) } else { Err(format!("{}", instance.status)) }
    })
    .await
}
