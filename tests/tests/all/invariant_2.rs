//! Invariant 2: who was overtaken can write nothing more. An old attempt, and an old session of the
//! same attempt, keep their connections and send each kind of write.

use dormouse_management_sdk::{Payload, Status};
use dormouse_proto::instance::{client_frame::Operation, server_frame::Outcome};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw::{self, LOST, RawClient, Stored},
};

on_both! {
    invariant_2_an_old_attempt_writes_nothing,
    invariant_2_an_old_session_of_the_same_attempt_writes_nothing,
    invariant_2_a_registration_has_seen_every_write_of_the_session_before,
}

/// Each kind of write that a workflow can send.
fn writes() -> Vec<(&'static str, Operation)> {
    vec![
        ("a new checkpoint", raw::save("late", b"late")),
        ("a checkpoint that takes a signal", raw::take("late-take", "noise")),
        ("a checkpoint that feels a cancel", raw::feel_cancel("late-cancel")),
        ("a due time", raw::due_in("late-sleep", 1)),
        ("a progress", raw::progress(77)),
        ("an event", raw::custom("late")),
        ("a suspend", raw::suspend_for("other")),
        ("a completion", raw::complete(b"late")),
        ("a failure", raw::fail("LATE")),
    ]
}

async fn invariant_2_an_old_attempt_writes_nothing(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let (old, _) = probe.register(1).await;
    old.ask(raw::save("first", b"one")).await.expect("attempt 1 may write");
    probe.crash(&cluster).await;
    let (new, registered) = probe.register(2).await;
    assert_eq!(registered.checkpoints.len(), 1, "attempt 2 begins with what attempt 1 saved");

    refused_without_effect(&cluster, &probe, &old).await;
    let again = RawClient::connect(&probe.document(1).await).await;
    let refusal =
        again.ask(raw::registration(&probe.document(1).await)).await.expect_err("its token is of the past");
    assert_eq!(refusal.code, "FENCED", "{refusal:?}");
    may_still_write(&cluster, &probe, &new).await;
}

async fn invariant_2_an_old_session_of_the_same_attempt_writes_nothing(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let (old, first) = probe.register(1).await;
    old.ask(raw::save("first", b"one")).await.expect("it may write");
    let (new, second) = probe.register(1).await;
    assert!(second.session > first.session, "a registration opens a new session");

    refused_without_effect(&cluster, &probe, &old).await;
    may_still_write(&cluster, &probe, &new).await;
}

/// The old connection is at a core that has not heard of the new session: the database's fence alone
/// keeps it out.
#[tokio::test]
async fn invariant_2_an_old_session_at_another_core_writes_nothing() {
    let mut cluster = Cluster::up(Database::Postgres).await;
    let (_second, address) = cluster.second_core().await;
    let probe = Probe::start(&cluster, "probe").await;
    let here = probe.document(1).await;
    let mut there = here.clone();
    there.core_addresses = vec![address.clone()];

    let (old, _) = RawClient::register(&there).await;
    old.ask(raw::save("first", b"one")).await.expect("it may write");
    let (_, second) = RawClient::register(&here).await;
    assert_eq!(second.session, 2);
    refused_without_effect(&cluster, &probe, &old).await;

    // And an old attempt.
    let (old, _) = RawClient::register(&there).await;
    probe.crash(&cluster).await;
    let (new, _) = probe.register(2).await;
    for (what, operation) in writes() {
        let refusal = old.ask(operation).await.expect_err(what);
        assert!(["FENCED", LOST].contains(&&*refusal.code), "{what}: {refusal:?}");
    }
    assert_eq!(cluster.get(&probe.id).await.unread_signals, 1, "the signal was consumed");
    may_still_write(&cluster, &probe, &new).await;
}

async fn refused_without_effect(cluster: &Cluster, probe: &Probe, old: &RawClient) {
    let payload = Payload::json("one").expect("JSON");
    cluster.client().signal(&probe.id, "noise", Some(payload)).await.expect("it runs");
    let before = cluster.get(&probe.id).await;
    let checkpoints = cluster.checkpoints(&probe.id).await.len();
    let events = cluster.events(&probe.id).await.len();

    for (what, operation) in writes() {
        match old.ask(operation).await {
            Ok(answer) => panic!("{what} of an old session was answered {answer:?}"),
            Err(refusal) => assert!(["FENCED", LOST].contains(&&*refusal.code), "{what}: {refusal:?}"),
        }
    }

    assert_eq!(cluster.checkpoints(&probe.id).await.len(), checkpoints, "a checkpoint was stored");
    assert_eq!(cluster.events(&probe.id).await.len(), events, "an event was stored");
    let after = cluster.get(&probe.id).await;
    assert_eq!((after.status, after.version), (Status::Running, before.version), "the instance was changed");
    assert_eq!(after.unread_signals, 1, "the signal was consumed");
}

async fn may_still_write(cluster: &Cluster, probe: &Probe, new: &RawClient) {
    new.ask(raw::save("second", b"two")).await.expect("the newest session may write");
    let taken = new.ask(raw::take("take", "noise")).await.expect("it may take the signal");
    assert_eq!(raw::stored(taken), Stored::Bytes(b"\"one\"".to_vec()));
    new.ask(raw::complete(b"done")).await.expect("it may end");
    let ended = cluster.until_ended(&probe.id, Status::Completed).await;
    assert_eq!(ended.output.expect("an output").data, b"done");
}

/// A session writes without pause while the next one registers: what the registration did not
/// hand over was not written.
async fn invariant_2_a_registration_has_seen_every_write_of_the_session_before(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let document = probe.document(1).await;
    let (mut writer, _) = RawClient::register(&document).await;
    for round in 0..10 {
        let writing = async {
            let mut number = 0;
            while writer.ask(raw::save(&format!("{round}-{number}"), b"x")).await.is_ok() {
                number += 1;
            }
        };
        let registering = async {
            // In the middle of it.
            while cluster.get(&probe.id).await.checkpoints < round * 5 + 5 {
                tokio::task::yield_now().await;
            }
            RawClient::register(&document).await
        };
        let ((), (next, registered)) = tokio::join!(writing, registering);
        let seen = next.all_checkpoints(registered).await;
        let stored = cluster.checkpoints(&probe.id).await.len();
        assert_eq!(seen, stored, "round {round}: handed over (left), stored in the end (right)");
        writer = next;
    }
    let last = writer.ask(raw::complete(b"")).await;
    assert!(matches!(last, Ok(Outcome::Event(_))), "{last:?}");
}
