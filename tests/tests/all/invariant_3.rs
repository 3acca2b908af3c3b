//! Invariant 3: a checkpoint never changes; later writers get what is stored.

use dormouse_proto::instance::{Error, server_frame::Outcome};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw::{self, Stored},
};

on_both! { invariant_3_the_first_writer_wins_for_ever }

async fn invariant_3_the_first_writer_wins_for_ever(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let (client, _) = probe.register(1).await;

    // Many at once, in one batch or in several: one wins, and all hear who.
    let texts: Vec<String> = (0..32).map(|number| format!("writer {number}")).collect();
    let all = texts.iter().map(|text| client.ask(raw::save("contested", text.as_bytes())));
    let answers: Vec<_> = futures_util::future::join_all(all).await;
    let heard: Vec<Vec<u8>> = texts.iter().zip(answers).map(|(text, answer)| heard(text, answer)).collect();
    let winner = heard[0].clone();
    assert!(heard.iter().all(|text| *text == winner), "not all heard the same: {heard:?}");

    // After kill -9 of the services, and for the next attempt.
    cluster.kill_services();
    cluster.start_services().await;
    let (client, _) = probe.register(1).await;
    let again = client.ask(raw::save("contested", b"another")).await.expect("answered");
    assert_eq!(raw::stored(again), Stored::Bytes(winner.clone()));
    probe.crash(&cluster).await;
    let (client, registered) = probe.register(2).await;
    assert_eq!(registered.checkpoints.len(), 1);
    let again = client.ask(raw::save("contested", b"a third")).await.expect("answered");
    assert_eq!(raw::stored(again), Stored::Bytes(winner.clone()));

    let stored = cluster.checkpoints(&probe.id).await;
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].attempt, &stored[0].payload.as_ref().expect("bytes").data), (1, &winner));
}

/// What a writer now knows to be stored.
fn heard(text: &str, answer: Result<Outcome, Error>) -> Vec<u8> {
    match raw::stored(answer.expect("accepted")) {
        Stored::Sent => text.as_bytes().to_vec(),
        Stored::Bytes(bytes) => bytes,
        Stored::Nothing => panic!("nothing is stored"),
    }
}
