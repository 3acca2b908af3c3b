//! `start --retry-of`: a new instance goes on from what an ended one has done.

use std::time::Duration;

use dormouse_core::{
    domain::{
        checkpoint::{FAILURE_TYPE, Kind, NewCheckpoint, NewValue, Operation, StoredCheckpoint, taken_over},
        id::{InstanceId, Key, Tenant},
        instance::Status,
        payload::Payload,
    },
    store::{RetryRequest, Started},
};

use crate::db::{self, Running, TestDb, code, name, stored};

contract! {
    a_retry_goes_on_from_what_was_done,
    what_is_given_beside_replaces_its_part,
    the_same_retry_is_the_same_instance_also_without_its_origin,
    what_has_not_ended_is_not_retried,
    a_retry_from_scratch_takes_nothing_over,
    what_a_cancellation_left_stays_behind,
    invariant_8_a_retry_stays_in_its_tenant,
}

fn retry(id: &str, of: &str) -> RetryRequest {
    RetryRequest {
        tenant: db::tenant(),
        id: db::id(id),
        retry_of: db::id(of),
        from_scratch: false,
        image: None,
        workflow: None,
        input: None,
        env: [].into(),
        limit: None,
        start_at: None,
        priority: None,
    }
}

async fn save(db: &TestDb, running: &Running, text: &str, slot: u32, kind: Kind, value: NewValue) {
    let operation = Operation { slot, ..db::operation(text) };
    let checkpoint = NewCheckpoint { operation, kind, value, note: "a note".to_owned() };
    assert!(stored(db.store.save(&running.session, checkpoint).await));
}

fn failure() -> NewValue {
    NewValue::Payload(Payload { type_name: FAILURE_TYPE.to_owned(), ..Payload::json("{}") })
}

/// An instance that has saved one of everything, and failed late.
async fn failed_late(db: &TestDb, id: &str) -> Running {
    let running = db.running(id).await;
    let (due, pause) = (NewValue::DueAt(db::START), NewValue::DueIn(Duration::from_secs(1)));
    let json = || NewValue::Payload(Payload::json("7"));
    save(db, &running, "reserve", 0, Kind::Step, json()).await;
    save(db, &running, "charge", 1, Kind::Retry, pause.clone()).await;
    save(db, &running, "charge", 0, Kind::Step, json()).await;
    save(db, &running, "nap", 1, Kind::Due, due.clone()).await;
    save(db, &running, "nap", 0, Kind::Sleep, due.clone()).await;
    db.send(running.id(), "go").await;
    save(db, &running, "go", 0, Kind::Signal, NewValue::TakeSignal(name("go"))).await;
    save(db, &running, "late", 1, Kind::Due, due.clone()).await;
    save(db, &running, "late", 0, Kind::Signal, due.clone()).await;
    save(db, &running, "still", 1, Kind::Due, due).await;
    save(db, &running, "raw", 0, Kind::Checkpoint, json()).await;
    save(db, &running, "ship", 1, Kind::Retry, pause).await;
    save(db, &running, "ship", 0, Kind::Step, failure()).await;
    running
}

async fn checkpoints(db: &TestDb, id: &InstanceId) -> Vec<StoredCheckpoint> {
    let page = db.store.checkpoints(&db::tenant(), id, 0, 1000, false).await.expect("a page");
    page.checkpoints
}

async fn end(db: &TestDb, running: &Running) {
    db.store.end(&running.session, db::completed()).await.expect("ends");
}

async fn a_retry_goes_on_from_what_was_done(db: TestDb) {
    let origin = failed_late(&db, "first").await;
    end(&db, &origin).await;
    db.advance(Duration::from_hours(1));
    let started = db.store.retry(retry("second", "fir")).await.expect("started");
    assert!(!started.existed);

    let all = checkpoints(&db, origin.id()).await;
    let expected: Vec<_> = taken_over(&all)
        .into_iter()
        .map(|one| StoredCheckpoint { attempt: dormouse_core::domain::id::Attempt::NONE, ..one.clone() })
        .collect();
    assert_eq!(expected.len(), 8);
    let id = db::id("second");
    assert_eq!(checkpoints(&db, &id).await, expected, "the statement and the domain agree");
    let detail = db.store.instance_detail(&db::tenant(), &id).await.expect("there");
    assert_eq!(detail.retry_of, Some(db::id("first")));
    assert_eq!((detail.unread_signals, detail.instance.life.status()), (0, Status::Pending));
    assert_eq!(db.timeline(&id).await, ["started", "started"]);
    assert_eq!(db.timeline(origin.id()).await.last(), Some(&"started"), "the origin says who retries it");

    // A fresh launch reads them, adds to them, and numbers go on.
    let lease = db.node("node-a").await;
    let claim = db.claim_one(&lease).await;
    let registration = db.register(&claim).await;
    assert_eq!(registration.page.checkpoints.len(), 8);
    assert!(stored(db.store.save(&registration.session, db::step("ship", "1")).await));
    assert!(!stored(db.store.save(&registration.session, db::step("charge", "9")).await), "it is done");
    assert_eq!(super::check::violations(&db, Duration::from_hours(99)).await, []);
}

async fn what_is_given_beside_replaces_its_part(db: TestDb) {
    let mut first = db::request("first");
    first.env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())].into();
    (first.limit, first.priority) = (Some(Duration::from_hours(2)), 7);
    db.store.start(first).await.expect("started");
    db.store.cancel(&db::tenant(), &db::id("first")).await.expect("ends");
    db.image("img", "2").await;
    db.advance(Duration::from_mins(1));

    db.store.retry(retry("same", "first")).await.expect("started");
    let same = db.store.instance_detail(&db::tenant(), &db::id("same")).await.expect("there");
    assert_eq!((same.instance.version.as_str(), same.instance.priority), ("1", 7), "not the newest");
    assert_eq!(same.input, Payload::json("1"));
    let deadline = db::START + Duration::from_mins(1) + Duration::from_hours(2);
    assert_eq!(same.instance.life.deadline_at, Some(deadline), "its own two hours");

    let mut other = retry("other", "first");
    other.image = Some((name("img"), None));
    other.input = Some(Payload::json("2"));
    other.env = [("B".to_owned(), "3".to_owned())].into();
    (other.priority, other.limit) = (Some(0), Some(Duration::from_hours(1)));
    db.store.retry(other).await.expect("started");
    let other = db.store.instance_detail(&db::tenant(), &db::id("other")).await.expect("there");
    assert_eq!((other.instance.version.as_str(), other.instance.priority), ("2", 0));
    assert_eq!(other.input, Payload::json("2"));
    assert_eq!(other.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "3".to_owned())].into());
}

async fn the_same_retry_is_the_same_instance_also_without_its_origin(db: TestDb) {
    end(&db, &failed_late(&db, "first").await).await;
    let Started { instance, .. } = db.store.retry(retry("again", "first")).await.expect("started");
    let repeated = db.store.retry(retry("again", "first")).await.expect("the same");
    assert_eq!((repeated.instance, repeated.existed), (instance, true));
    let scratch = RetryRequest { from_scratch: true, ..retry("again", "first") };
    let error = db.store.retry(scratch).await.expect_err("another");
    assert!(error.to_string().contains("another retry_of"), "{error}");
    assert_eq!(code(db.store.start(db::request("again")).await), "ALREADY_EXISTS");
    db.start("plain").await;
    assert_eq!(code(db.store.retry(retry("plain", "first")).await), "ALREADY_EXISTS");

    db.store.delete(&db::tenant(), &db::id("first")).await.expect("deleted");
    let repeated = db.store.retry(retry("again", "first")).await.expect("the same");
    assert_eq!((repeated.instance, repeated.existed), (instance, true));
    assert_eq!(code(db.store.retry(retry("new", "first")).await), "NOT_FOUND");
    let detail = db.store.instance_detail(&db::tenant(), &db::id("again")).await.expect("there");
    assert_eq!((detail.checkpoints, detail.retry_of), (8, Some(db::id("first"))));
}

async fn what_has_not_ended_is_not_retried(db: TestDb) {
    db.start("going").await;
    assert_eq!(code(db.store.retry(retry("early", "going")).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.instance(&db::tenant(), &db::id("early")).await), "NOT_FOUND");
    assert_eq!(code(db.store.retry(retry("early", "nobody")).await), "NOT_FOUND");
}

async fn a_retry_from_scratch_takes_nothing_over(db: TestDb) {
    end(&db, &failed_late(&db, "first").await).await;
    let scratch = RetryRequest { from_scratch: true, ..retry("anew", "first") };
    db.store.retry(scratch).await.expect("started");
    assert_eq!(checkpoints(&db, &db::id("anew")).await, []);
}

async fn what_a_cancellation_left_stays_behind(db: TestDb) {
    let running = db.running("first").await;
    let key = Key::parse("k").expect("a key");
    let operation = Operation { key, ..db::operation("step") };
    let value = NewValue::Payload(Payload::json("1"));
    let done = NewCheckpoint { operation, kind: Kind::Step, value, note: String::new() };
    assert!(stored(db.store.save(&running.session, done).await));
    db.store.cancel(&db::tenant(), running.id()).await.expect("asked");
    assert!(stored(db.store.save(&running.session, db::feel("next")).await));
    assert!(stored(db.store.save(&running.session, db::step("undo", "1")).await));
    end(&db, &running).await;
    db.store.retry(retry("second", "first")).await.expect("started");
    let taken = checkpoints(&db, &db::id("second")).await;
    assert_eq!(taken.iter().map(|one| one.operation.name.as_str()).collect::<Vec<_>>(), ["step"]);
}

async fn invariant_8_a_retry_stays_in_its_tenant(db: TestDb) {
    end(&db, &failed_late(&db, "first").await).await;
    let stranger = Tenant::parse("stranger").expect("a tenant");
    let theirs = RetryRequest { tenant: stranger, ..retry("mine", "first") };
    assert_eq!(code(db.store.retry(theirs).await), "NOT_FOUND");
}
