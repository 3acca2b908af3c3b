//! Invariant 4: a due wake starts exactly one attempt, with exactly one process that may act.

use std::collections::BTreeSet;

use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database},
    fault,
    probe::Probe,
    process::Service,
    wait,
};

on_both! { invariant_4_each_due_wake_starts_one_process, invariant_4_also_when_the_services_are_killed_while_they_launch }

/// No more than the fewest slots that a node has.
const INSTANCES: usize = 16;

async fn invariant_4_each_due_wake_starts_one_process(database: Database) {
    let cluster = Cluster::up(database).await;
    let mut probes = Vec::new();
    for number in 0..INSTANCES {
        probes.push(Probe::start(&cluster, &format!("probe-{number}")).await);
    }
    for probe in &probes {
        let document = probe.document(1).await;
        assert_eq!((document.instance_id.as_str(), document.attempt), (probe.id.as_str(), 1));
        drop(probe.register(1).await);
    }
    for probe in &probes {
        assert_eq!(cluster.processes_of(&probe.id).len(), 1, "{}", probe.id);
        assert_eq!(probe.launches(), 1, "{}", probe.id);
        assert_eq!(cluster.attempts(&probe.id).await, 1, "{}", probe.id);
    }
}

/// A launch that is cut off anywhere leaves no process that acts beside the next one.
async fn invariant_4_also_when_the_services_are_killed_while_they_launch(database: Database) {
    let mut random = fault::random();
    let mut cluster = Cluster::up(database).await;
    let mut probes = Vec::new();
    for round in 0..4 {
        for number in 0..INSTANCES / 4 {
            probes.push(Probe::start(&cluster, &format!("probe-{round}-{number}")).await);
        }
        tokio::time::sleep(fault::up_to(&mut random, 60)).await;
        cluster.kill_services();
        cluster.start_services().await;
    }
    for probe in &probes {
        let what = format!("{} has one process that is its newest attempt", probe.id);
        let attempt = wait::until(&what, async || {
            let instance = cluster.get(&probe.id).await;
            let processes = cluster.processes_of(&probe.id);
            let attempts: BTreeSet<u32> = processes.iter().map(|(attempt, _)| *attempt).collect();
            let seen = format!("attempt {}, processes {processes:?}", instance.attempt);
            let one = processes.len() == 1 && attempts.contains(&instance.attempt);
            let documented = probe.folder().join(format!("{}.document", instance.attempt)).exists();
            if one && documented { Ok(instance.attempt) } else { Err(seen) }
        })
        .await;
        // Registered: nobody launches it once more.
        drop(probe.register(attempt).await);
        assert_eq!(cluster.attempts(&probe.id).await, attempt);
        assert_eq!(cluster.processes_of(&probe.id).len(), 1);
    }
}

/// On SQLite the lock on the data directory is the node's lease: a second service is refused.
#[tokio::test]
async fn invariant_4_a_data_directory_has_one_node() {
    let cluster = Cluster::up(Database::Sqlite).await;
    let log = cluster.scratch().join("second.log");
    let data_dir = cluster.data_dir().display().to_string();
    let arguments = ["up", "--data-dir", &data_dir, "--core", "127.0.0.1:0", "--environment", "127.0.0.1:0"];
    let mut second = Service::start(&binary("dormouse"), &arguments.map(str::to_owned), &[], &log);
    let status = second.until_ended().await;
    assert_eq!(status.code(), Some(3), "refused: {}", second.log_tail());
    assert!(second.log_tail().contains("FAILED_PRECONDITION"), "{}", second.log_tail());
    cluster.client().health().await.expect("the first goes on");
}
