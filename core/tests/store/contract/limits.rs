//! Limits are enforced, and a refusal has no partial effect (invariant 9).

use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewValue},
        instance::Status,
        payload::Payload,
        signal::NewSignal,
    },
    limits::Limits,
    store::{Saved, StartRequest, Store},
};

use crate::db::{self, TestDb, code};

contract! {
    limits: dormouse_core::limits::Limits {
        payload_bytes: 100, checkpoints: 3, unread_signals: 2, env_variables: 2, env_bytes: 20,
        ..dormouse_core::limits::Limits::default()
    };
    invariant_9_what_is_too_large_is_refused,
    the_limit_of_checkpoints_refuses_without_consuming_a_signal,
    the_limit_of_unread_signals_frees_itself,
    environment_variables_are_limited,
}

fn large() -> Payload {
    Payload { data: vec![0; 101].into(), ..Payload::default() }
}

async fn invariant_9_what_is_too_large_is_refused(db: TestDb) {
    let start = StartRequest { input: large(), ..db::request("x") };
    assert_eq!(code(db.store.start(start).await), "INVALID_ARGUMENT");
    assert_eq!(code(db.store.instance(&db::tenant(), &db::id("x")).await), "NOT_FOUND");
    let running = db.running("a").await;
    let save = db::checkpoint("s", Kind::Step, NewValue::Payload(large()));
    let error = db.store.save(&running.session, save).await.expect_err("too large");
    assert!(error.to_string().contains("101 bytes, at most 100"), "{error}");
    let signal = NewSignal { payload: large(), ..db::new_signal("go", "") };
    assert_eq!(code(db.store.signal(&db::tenant(), running.id(), signal).await), "INVALID_ARGUMENT");
    let dedup = db::new_signal("go", &"x".repeat(201));
    assert_eq!(code(db.store.signal(&db::tenant(), running.id(), dedup).await), "INVALID_ARGUMENT");
    let event = db.store.event(&running.session, db::name("e"), large()).await;
    assert_eq!(code(event), "INVALID_ARGUMENT");
    let ending = dormouse_core::domain::outcome::Ending::Completed(large());
    assert_eq!(code(db.store.end(&running.session, ending).await), "INVALID_ARGUMENT");
    assert_eq!(db.status(running.id()).await, Status::Running);
    assert_eq!(db.timeline(running.id()).await, ["started", "claimed", "registered"]);
}

async fn the_limit_of_checkpoints_refuses_without_consuming_a_signal(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    for n in 0..3 {
        assert!(db::stored(db.store.save(&running.session, db::step(&format!("s{n}"), "1")).await));
    }
    assert_eq!(code(db.store.save(&running.session, db::step("s3", "1")).await), "RESOURCE_EXHAUSTED");
    assert_eq!(code(db.store.save(&running.session, db::take("w", "go")).await), "RESOURCE_EXHAUSTED");
    let unread = db.store.inbox(&running.session).await.expect("an inbox").unread;
    assert_eq!(unread.len(), 1, "the signal is still there");
    assert!(
        !db::stored(db.store.save(&running.session, db::step("s1", "2")).await),
        "what is stored is told"
    );
    // One that is refused in a batch spoils none of the others.
    let other = db.running("b").await;
    let saves = tokio::join!(
        db.store.save(&other.session, db::step("one", "1")),
        db.store.save(&running.session, db::take("w", "go")),
        db.store.save(&other.session, db::step("two", "1")),
    );
    assert!(db::stored(saves.0) && db::stored(saves.2));
    assert_eq!(code(saves.1), "RESOURCE_EXHAUSTED");
}

async fn the_limit_of_unread_signals_frees_itself(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    db.send(running.id(), "go").await;
    let third = db.store.signal(&db::tenant(), running.id(), db::new_signal("go", "")).await;
    assert_eq!(code(third), "RESOURCE_EXHAUSTED");
    let taken = db.store.save(&running.session, db::take("w", "go")).await.expect("a take").0;
    assert!(matches!(taken, Saved::Stored(_)));
    assert_eq!(db.send(running.id(), "go").await, 3);
}

async fn environment_variables_are_limited(db: TestDb) {
    let try_env = async |store: &Store, pairs: &[(&str, &str)]| {
        let env = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        code(store.start(StartRequest { env, ..db::request("a") }).await)
    };
    assert_eq!(try_env(&db.store, &[("A", "1"), ("B", "2"), ("C", "3")]).await, "INVALID_ARGUMENT");
    assert_eq!(try_env(&db.store, &[("A", &"1".repeat(20))]).await, "INVALID_ARGUMENT");
    assert_eq!(try_env(&db.store, &[("A=B", "1")]).await, "INVALID_ARGUMENT");
    assert_eq!(try_env(&db.store, &[("", "1")]).await, "INVALID_ARGUMENT");
    assert_eq!(try_env(&db.store, &[("A", "a\0")]).await, "INVALID_ARGUMENT");
    let priority = StartRequest { priority: 10, ..db::request("a") };
    assert_eq!(code(db.store.start(priority).await), "INVALID_ARGUMENT");
    let _ = Limits::default();
}
