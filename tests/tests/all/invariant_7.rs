//! Invariant 7: nothing is ever stuck silently. Many instances, a random fault or request again and
//! again; at every look each has ended, runs, or says what it waits for; at the end all have ended.

use dormouse_management_sdk::{Instance, ListInstances, Status};
use dormouse_tests::{
    cluster::{Cluster, Database},
    fault,
    workload::{Amount, Example, Run},
};

on_both! { invariant_7_whatever_happens_every_instance_ends }

async fn invariant_7_whatever_happens_every_instance_ends(database: Database) {
    let mut random = fault::random();
    let mut cluster = Cluster::up(database).await;
    for example in Example::ALL {
        cluster.push(example.program()).await;
    }
    let amount = Amount { files: 40, pace_ms: 10, settle_seconds: 3, below: 1_000_000, ..Amount::default() };
    let mut runs = Vec::new();
    for number in 0..9 {
        let example = Example::ALL[number % 3];
        let id = format!("{}-{number}", example.program());
        runs.push(Run::start(&cluster, example, &id, &amount, &[]).await);
    }
    for _ in 0..fault::kills() * 2 {
        tokio::time::sleep(fault::up_to(&mut random, 500)).await;
        let victim = random.usize(0..runs.len());
        disturb(&mut cluster, &mut runs[victim], random.usize(0..6)).await;
        for instance in everything(&cluster).await {
            assert_explained(&instance);
        }
    }
    for run in &mut runs {
        if !cluster.get(&run.id).await.status.ended() {
            drop(cluster.client().resume(&run.id).await);
            // It may have ended meanwhile.
            drop(run.try_approve(&cluster).await);
        }
    }
    for run in &runs {
        run.check(&cluster).await;
    }
}

/// One fault, or one request that may come at any time.
async fn disturb(cluster: &mut Cluster, run: &mut Run, kind: usize) {
    match kind {
        0 => cluster.processes_of(&run.id).into_iter().for_each(|(_, pid)| fault::kill_9(pid)),
        1 => {
            cluster.kill_services();
            cluster.start_services().await;
        }
        2 => {
            cluster.kill_everything();
            cluster.start_services().await;
        }
        // Refused if it has ended.
        3 => drop(cluster.client().pause(&run.id).await),
        4 => drop(cluster.client().resume(&run.id).await),
        _ => drop(run.try_approve(cluster).await),
    }
}

async fn everything(cluster: &Cluster) -> Vec<Instance> {
    cluster.client().instances(ListInstances::default()).await.expect("a list").instances
}

fn assert_explained(instance: &Instance) {
    let sentence = instance.waiting_for.as_deref().unwrap_or_default();
    let explained = instance.status.ended()
        || (instance.status == Status::Running && instance.node.is_some())
        || !sentence.is_empty();
    assert!(explained, "{} is {} and does not say what it waits for", instance.id, instance.status);
}
