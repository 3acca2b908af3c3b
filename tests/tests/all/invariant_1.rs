//! Invariant 1: what was acknowledged is durable. Everything is killed right after an answer; each
//! answer that came must still be true.

use dormouse_management_sdk::Status;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_tests::{
    cluster::{Cluster, Database, Layout},
    fault, postgres,
    probe::Probe,
    raw::{self, RawClient},
};

on_both! { invariant_1_what_was_acknowledged_survives_the_services, invariant_1_an_acknowledged_ending_survives }

async fn invariant_1_what_was_acknowledged_survives_the_services(database: Database) {
    let mut cluster = Cluster::up(database).await;
    acknowledged_survives(&mut cluster, Cluster::kill_services).await;
}

/// The database server is killed with them.
#[tokio::test]
async fn invariant_1_what_was_acknowledged_survives_the_database_server() {
    let server = postgres::Server::start();
    let mut cluster = Cluster::up_on(Layout::Together, &server).await;
    acknowledged_survives(&mut cluster, |cluster| {
        server.kill();
        cluster.kill_services();
        server.start_again();
    })
    .await;
}

/// Saves, sends and writes at once as fast as it goes, and kills in the middle, three times.
async fn acknowledged_survives(cluster: &mut Cluster, kill: impl Fn(&mut Cluster)) {
    let mut random = fault::random();
    let probe = Probe::start(cluster, "probe").await;
    let (mut saved, mut signalled, mut written) = (0_u32, 0_u64, 0_usize);
    for round in 0..3 {
        let (client, registered) = probe.register(1).await;
        let known = registered.inbox.expect("an inbox").unread.len();
        assert!(known as u64 >= signalled, "{known} signals are left of {signalled} acknowledged ones");
        let controller = cluster.client().clone();
        let work = async {
            loop {
                let name = format!("{round}-{saved}");
                if client.ask(raw::save(&name, name.as_bytes())).await.is_err() {
                    return;
                }
                saved += 1;
                if client.ask(raw::custom(&name)).await.is_err() {
                    return;
                }
                written += 1;
                if controller.signal(&probe.id, "noise", None).await.is_err() {
                    return;
                }
                signalled += 1;
            }
        };
        // Dropped between a request and its answer, or between two of them.
        drop(tokio::time::timeout(fault::up_to(&mut random, 700), work).await);
        kill(cluster);
        cluster.start_services().await;

        let stored = cluster.checkpoints(&probe.id).await;
        assert!(stored.len() >= saved as usize, "{} checkpoints are left of {saved}", stored.len());
        let events = cluster.events(&probe.id).await.iter().filter(|event| event.kind == "custom").count();
        assert!(events >= written, "{events} events are left of {written}");
        let unread = cluster.get(&probe.id).await.unread_signals;
        assert!(u64::from(unread) >= signalled, "{unread} signals are left of {signalled}");
        (saved, written, signalled) = (u32::try_from(stored.len()).expect("few"), events, u64::from(unread));
    }
    assert!(saved > 0 && written > 0 && signalled > 0, "nothing was acknowledged: this shows nothing");
}

async fn invariant_1_an_acknowledged_ending_survives(database: Database) {
    let mut cluster = Cluster::up(database).await;
    for (id, operation, status) in [
        ("completes", raw::complete(b"right"), Status::Completed),
        ("fails", raw::fail("SAID_SO"), Status::Failed),
        ("suspends", raw::suspend_for("never"), Status::Suspended),
    ] {
        let probe = Probe::start(&cluster, id).await;
        let (client, _) = probe.register(1).await;
        let answer = client.ask(operation).await.expect("accepted");
        cluster.kill_everything();
        assert!(matches!(answer, Outcome::Event(_) | Outcome::Suspend(_)), "{answer:?}");
        cluster.start_services().await;
        let instance = cluster.get(id).await;
        assert_eq!(instance.status, status, "{id}");
        match status {
            Status::Completed => assert_eq!(instance.output.expect("an output").data, b"right"),
            Status::Failed => assert_eq!(instance.failure.expect("a failure").code, "SAID_SO"),
            _ => {
                cluster.client().signal(id, "never", None).await.expect("it has not ended");
                RawClient::register(&probe.document(2).await).await;
            }
        }
    }
}
