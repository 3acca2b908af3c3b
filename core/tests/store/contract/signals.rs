//! signal: never lost, in order, each consumed once (invariant 5).

use std::time::Duration;

use dormouse_core::{
    domain::{checkpoint::Value, instance::Status, payload::Payload, signal::NewSignal},
    store::Saved,
};

use crate::db::{self, TestDb, code};

contract! {
    invariant_5_signals_arrive_in_order_each_once,
    a_signal_wakes_who_waits_for_it,
    a_signal_does_not_move_the_wake_of_an_open_row,
    a_signal_does_not_shorten_a_backoff,
    the_same_dedup_key_is_the_same_signal,
    a_signal_before_the_first_launch_is_kept,
    a_paused_instance_keeps_the_wake_that_a_signal_set,
    signals_sent_at_once_get_one_number_each,
}

async fn invariant_5_signals_arrive_in_order_each_once(db: TestDb) {
    let running = db.running("a").await;
    for n in 0..5 {
        let signal = NewSignal { payload: Payload::json(n.to_string()), ..db::new_signal("go", "") };
        db.store.signal(&db::tenant(), running.id(), signal).await.expect("sent");
    }
    let mut session = running.session.clone();
    for n in 0..5 {
        if n == 2 {
            // A crash between takes loses and repeats nothing.
            db.store.exited(running.attempt(), db::exit()).await.expect("a crash");
            db.advance(Duration::from_secs(5));
            session = db.register(&db.claim_one(&running.lease).await).await.session;
        }
        let saved = db.store.save(&session, db::take(&format!("w{n}"), "go")).await.expect("a take").0;
        let Saved::Stored(stored) = saved else { panic!("signal {n} is there") };
        assert_eq!(stored.value, Value::Payload(Payload::json(n.to_string())));
    }
    let empty = db.store.save(&session, db::take("w9", "go")).await.expect("a look").0;
    assert_eq!(empty, Saved::Nothing);
}

async fn a_signal_wakes_who_waits_for_it(db: TestDb) {
    let until = db::START + Duration::from_mins(1);
    let running = db.suspended("a", db::for_signal("go", Some(until))).await;
    assert_eq!(db.wake_at(running.id()).await, Some(until));
    db.advance(Duration::from_secs(7));
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, Some(db::START + Duration::from_secs(7)));
    db.advance(Duration::from_secs(7));
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, Some(db::START + Duration::from_secs(7)), "not later again");
}

async fn a_signal_does_not_move_the_wake_of_an_open_row(db: TestDb) {
    let due = db::START + Duration::from_mins(1);
    let running = db.suspended("a", db::for_signal("go", Some(due))).await;
    db.clock.set(due);
    let claim = db.claim_one(&running.lease).await;
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, Some(due + db::LAUNCH));
    assert!(db.claim(&running.lease, 10).await.is_empty(), "it is being launched already");
    assert_eq!(db.register(&claim).await.inbox.unread.len(), 1, "registration brings it");
}

async fn a_signal_does_not_shorten_a_backoff(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    let claim = db.claim_one(&running.lease).await;
    db.store.exited(claim.attempt_ref(), db::exit()).await.expect("a crash before registering");
    let retry = db.wake_at(running.id()).await.expect("a retry");
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, Some(retry));
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    assert_eq!(db.wake_at(running.id()).await, Some(db::START), "a cancel does");
}

async fn the_same_dedup_key_is_the_same_signal(db: TestDb) {
    let running = db.running("a").await;
    let send =
        |name, dedup| db.store.signal(&running.session.tenant, running.id(), db::new_signal(name, dedup));
    let first = send("go", "k1").await.expect("sent");
    let again = send("go", "k1").await.expect("the same");
    let other = send("go", "k2").await.expect("another");
    assert_eq!((first.number, first.existed, again.number, again.existed), (1, false, 1, true));
    assert_eq!((other.number, other.existed), (2, false));
    let plain = (send("go", "").await.expect("sent"), send("go", "").await.expect("sent"));
    assert_eq!((plain.0.number, plain.1.number), (3, 4));
    db.store.end(&running.session, db::completed()).await.expect("ends");
    assert!(send("go", "k2").await.expect("its answer was lost").existed, "a repeat hears it again");
    assert_eq!(code(send("go", "k3").await), "FAILED_PRECONDITION");
}

async fn a_signal_before_the_first_launch_is_kept(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    db.send(&id, "early").await;
    assert_eq!(db.status(&id).await, Status::Pending);
    let claim = db.claim_one(&lease).await;
    db.send(&id, "launching").await;
    let unread = db.register(&claim).await.inbox.unread;
    assert_eq!(unread.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["early", "launching"]);
}

async fn a_paused_instance_keeps_the_wake_that_a_signal_set(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    db.send(running.id(), "go").await;
    assert!(db.claim(&running.lease, 10).await.is_empty());
    db.store.resume(&db::tenant(), running.id()).await.expect("resumes");
    assert_eq!(db.claim(&running.lease, 10).await.len(), 1);
}

async fn signals_sent_at_once_get_one_number_each(db: TestDb) {
    let id = db.start("a").await;
    let other = db.another().await;
    let sends = (0..40).map(|n| {
        let (store, id) = (if n % 2 == 0 { db.store.clone() } else { other.clone() }, id.clone());
        async move { store.signal(&db::tenant(), &id, db::new_signal("go", "")).await.expect("sent").number }
    });
    let mut numbers = futures_util::future::join_all(sends).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<u64>>());
}
