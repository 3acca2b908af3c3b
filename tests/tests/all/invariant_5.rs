//! Invariant 5: no signal is lost, those of one name come in order, each is consumed by one wait.

use dormouse_management_sdk::Payload;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_tests::{
    cluster::{Cluster, Database},
    fault,
    probe::Probe,
    raw::{self, Stored},
};

on_both! { invariant_5_every_signal_arrives_once_and_in_order_while_services_are_killed }

async fn invariant_5_every_signal_arrives_once_and_in_order_while_services_are_killed(database: Database) {
    let signals = if fault::is_long() { 2_000 } else { 300 };
    let mut random = fault::random();
    let mut cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let document = probe.document(1).await;

    // Another name in between must not disturb, nor be disturbed.
    let sender = cluster.client().clone();
    let sending = async {
        for number in 0..signals {
            let payload = Payload::json(&number).expect("JSON");
            let key = format!("item-{number}");
            sender.signal_once("probe", "item", Some(payload), &key).await.expect("the client repeats it");
            // A repeat of the same is the same signal.
            if number % 10 == 0 {
                let payload = Payload::json(&number).expect("JSON");
                sender
                    .signal_once("probe", "item", Some(payload), &key)
                    .await
                    .expect("the client repeats it");
                sender.signal("probe", "other", None).await.expect("the client repeats it");
            }
        }
    };
    let taking = async {
        let mut taken = Vec::new();
        while taken.len() < signals {
            let Some(client) = raw::RawClient::try_register(&document).await else { continue };
            while taken.len() < signals {
                // The same operation again after a lost answer: it hears what it took.
                let answer = client.ask(raw::take(&format!("take-{}", taken.len()), "item")).await;
                match answer {
                    Ok(Outcome::Checkpoint(stored)) if stored.stored.is_none() => {
                        tokio::task::yield_now().await;
                    }
                    Ok(answer) => {
                        let Stored::Bytes(data) = raw::stored(answer) else {
                            panic!("a signal has its payload")
                        };
                        taken.push(serde_json::from_slice::<usize>(&data).expect("a number"));
                    }
                    Err(_) => break,
                }
            }
        }
        taken
    };
    let killing = async {
        for _ in 0..fault::kills().min(10) {
            tokio::time::sleep(fault::up_to(&mut random, 500)).await;
            cluster.kill_services();
            cluster.start_services().await;
        }
    };
    let ((), taken, ()) = tokio::join!(sending, taking, killing);

    assert_eq!(taken, (0..signals).collect::<Vec<_>>());
    assert_eq!(
        cluster.get(&probe.id).await.unread_signals as usize,
        signals.div_ceil(10),
        "the other name's"
    );
}
