//! Signals sent before, during and after suspending, and while a launch is under way: all arrive, in
//! order, each consumed once, and they start no second attempt.

use dormouse_management_sdk::{Payload, Status};
use dormouse_tests::{
    cluster::{Cluster, Database},
    fault,
    probe::Probe,
    raw::{self, Stored},
    workload::{Amount, Example, Run},
};

on_both! {
    a_signal_while_a_launch_is_under_way_starts_no_second_attempt,
    a_signal_around_the_moment_of_suspending_is_never_missed,
}

async fn a_signal_while_a_launch_is_under_way_starts_no_second_attempt(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let send = async |number: u32| {
        let payload = Payload::json(&number).expect("JSON");
        cluster.client().signal("probe", "go", Some(payload)).await.expect("it has not ended");
    };

    // Before it has ever registered.
    probe.document(1).await;
    send(0).await;
    let (client, registered) = probe.register(1).await;
    assert_eq!(registered.inbox.expect("an inbox").unread.len(), 1);
    // While it runs.
    send(1).await;
    for number in 0..2 {
        let taken = client.ask(raw::take(&format!("take-{number}"), "go")).await.expect("it runs");
        assert_eq!(raw::stored(taken), Stored::Bytes(number.to_string().into_bytes()));
    }
    // Suspended for it: this one wakes, and those behind it come while it is being launched.
    probe.suspend_for(&cluster, &client, "go").await;
    send(2).await;
    probe.document(2).await;
    for number in 3..6 {
        send(number).await;
    }
    // Another instance is claimed and launched meanwhile: whoever claims has looked at this one too.
    Probe::start(&cluster, "other").await.document(1).await;
    let (client, registered) = probe.register(2).await;
    assert_eq!(registered.inbox.expect("an inbox").unread.len(), 4);
    for number in 2..6 {
        let taken = client.ask(raw::take(&format!("take-{number}"), "go")).await.expect("it runs");
        assert_eq!(raw::stored(taken), Stored::Bytes(number.to_string().into_bytes()));
    }
    let nothing = client.ask(raw::take("take-6", "go")).await.expect("it runs");
    assert_eq!(raw::stored(nothing), Stored::Nothing, "a signal was consumed twice");
    client.ask(raw::complete(b"")).await.expect("it may end");
    cluster.until_ended("probe", Status::Completed).await;
    assert_eq!((cluster.attempts("probe").await, probe.launches()), (2, 2));
}

/// The SDK suspends after 2 s of idling: signals are sent around that moment, a few milliseconds
/// apart from instance to instance.
async fn a_signal_around_the_moment_of_suspending_is_never_missed(database: Database) {
    const INSTANCES: u32 = 12;
    let mut random = fault::random();
    let cluster = Cluster::up(database).await;
    cluster.push(Example::Order.program()).await;
    let mut runs = Vec::new();
    for number in 0..INSTANCES {
        runs.push(
            Run::start(&cluster, Example::Order, &format!("order-{number}"), &Amount::default(), &[]).await,
        );
    }
    for run in &mut runs {
        // Before, during and after: the first ones still run, the last ones sleep.
        tokio::time::sleep(fault::up_to(&mut random, 500)).await;
        run.approve(&cluster).await;
    }
    for run in &runs {
        run.check(&cluster).await;
        assert!(cluster.attempts(&run.id).await <= 2, "{} was launched more often than needed", run.id);
    }
}
