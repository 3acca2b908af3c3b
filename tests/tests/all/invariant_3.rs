//! Invariant 3: a checkpoint never changes; later writers get what is stored.

use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw,
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
    let heard: Vec<Vec<u8>> =
        answers.into_iter().map(|answer| raw::stored(answer.expect("accepted")).expect("stored")).collect();
    let winner = heard[0].clone();
    assert!(texts.iter().any(|text| text.as_bytes() == winner), "nobody wrote {winner:?}");
    assert!(heard.iter().all(|text| *text == winner), "not all heard the same: {heard:?}");

    // After kill -9 of the services, and for the next attempt.
    cluster.kill_services();
    cluster.start_services().await;
    let (client, _) = probe.register(1).await;
    let again = client.ask(raw::save("contested", b"another")).await.expect("answered");
    assert_eq!(raw::stored(again), Some(winner.clone()));
    probe.crash(&cluster).await;
    let (client, registered) = probe.register(2).await;
    assert_eq!(registered.checkpoints.len(), 1);
    let again = client.ask(raw::save("contested", b"a third")).await.expect("answered");
    assert_eq!(raw::stored(again), Some(winner.clone()));

    let stored = cluster.checkpoints(&probe.id).await;
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].attempt, &stored[0].payload.as_ref().expect("bytes").data), (1, &winner));
}
