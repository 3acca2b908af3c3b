//! Invariant 6: an ending is final, whatever is asked afterwards and whatever is killed.

use std::time::Duration;

use dormouse_management_sdk::{Code, Instance, Status};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw,
};

on_both! { invariant_6_nothing_changes_an_ending }

async fn invariant_6_nothing_changes_an_ending(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let completed = Probe::start(&cluster, "completed").await;
    let (client, _) = completed.register(1).await;
    client.ask(raw::complete(b"right")).await.expect("accepted");
    let failed = Probe::start(&cluster, "failed").await;
    let (failing, _) = failed.register(1).await;
    failing.ask(raw::fail("SAID_SO")).await.expect("accepted");
    let stopped = Probe::start(&cluster, "stopped").await;
    let (stopping, _) = stopped.register(1).await;
    cluster.client().stop("stopped").await.expect("accepted");

    let endings = [
        (&completed, &client, Status::Completed),
        (&failed, &failing, Status::Failed),
        (&stopped, &stopping, Status::Cancelled),
    ];
    for (probe, client, status) in &endings {
        let before = cluster.until_ended(&probe.id, *status).await;
        nothing_is_accepted(&cluster, &probe.id).await;
        for operation in
            [raw::save("late", b"x"), raw::suspend_for("late"), raw::progress(1), raw::custom("late")]
        {
            client.ask(operation).await.expect_err("a write after the ending was accepted");
        }
        // Another ending than the one that is stored.
        let other = if *status == Status::Completed { raw::fail("LATE") } else { raw::complete(b"late") };
        client.ask(other).await.expect_err("a second ending was accepted");
        unchanged(&before, &cluster.get(&probe.id).await);
    }

    cluster.kill_everything();
    cluster.start_services().await;
    for (probe, _, status) in &endings {
        assert_eq!(cluster.get(&probe.id).await.status, *status);
        assert_eq!(cluster.attempts(&probe.id).await, 1, "{} was launched after its ending", probe.id);
        cluster.until_no_process(&probe.id).await;
    }
}

async fn nothing_is_accepted(cluster: &Cluster, id: &str) {
    let client = cluster.client();
    let refusals = [
        ("a signal", client.signal(id, "late", None).await.map(drop)),
        ("a cancel", client.cancel(id).await.map(drop)),
        ("a pause", client.pause(id).await.map(drop)),
        ("a resume", client.resume(id).await.map(drop)),
        ("a stop", client.stop(id).await.map(drop)),
    ];
    for (what, answer) in refusals {
        let error = answer.expect_err(what);
        assert_eq!(error.code(), Code::FailedPrecondition, "{what}: {error}");
    }
}

fn unchanged(before: &Instance, after: &Instance) {
    let facts = |instance: &Instance| {
        let failure = instance.failure.as_ref().map(|failure| failure.code.clone());
        let output = instance.output.as_ref().map(|output| output.data.clone());
        (instance.status, instance.version, instance.ended_at, output, failure)
    };
    assert_eq!(facts(before), facts(after));
    assert!(after.ended_at.expect("it has ended").since(after.created_at.expect("created")) > Duration::ZERO);
}
