//! checkpoint: fenced, first writer wins (invariant 3), signals consumed with it.

use std::time::Duration;

use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewCheckpoint, NewValue, Operation, Value},
        id::{Attempt, Key},
        instance::{Cancel, Status},
        payload::Payload,
        time::Micros,
    },
    store::Saved,
};

use crate::db::{self, TestDb, code, name};

contract! {
    invariant_3_a_checkpoint_never_changes,
    a_save_writes_no_instance_row,
    names_and_keys_compare_bytewise,
    a_due_time_is_measured_by_the_databases_clock,
    a_due_time_beyond_the_end_of_time_stays_there,
    a_taken_signal_is_consumed_with_its_checkpoint,
    a_repeated_take_hears_what_was_taken,
    a_felt_cancel_is_a_checkpoint,
    nobody_feels_a_cancel_that_nobody_asked,
    checkpoints_of_all_sizes_come_back,
    notes_are_cut_and_made_storable,
    a_look_up_finds_what_is_stored,
}

async fn invariant_3_a_checkpoint_never_changes(db: TestDb) {
    let running = db.running("a").await;
    let (first, _) = db.store.save(&running.session, db::step("s", "1")).await.expect("a save");
    let Saved::Stored(first) = first else { panic!("the first is stored") };
    db.advance(Duration::from_secs(1));
    let second = db.register(&running.claim).await.session;
    let (again, now) = db.store.save(&second, db::step("s", "2")).await.expect("a repeat");
    assert_eq!((again, now), (Saved::Existed(first.clone()), db::START + Duration::from_secs(1)));
    assert_eq!(first.value, Value::Payload(Payload::json("1")));
    let as_due = db::checkpoint("s", Kind::Due, NewValue::DueIn(Duration::from_secs(1)));
    assert!(!db::stored(db.store.save(&second, as_due).await), "nor as another kind");
}

async fn a_save_writes_no_instance_row(db: TestDb) {
    let running = db.running("a").await;
    let before = db.instance(running.id()).await;
    for n in 0..5 {
        db::stored(db.store.save(&running.session, db::step(&format!("s{n}"), "1")).await);
    }
    assert_eq!(db.instance(running.id()).await, before);
}

async fn names_and_keys_compare_bytewise(db: TestDb) {
    let running = db.running("a").await;
    let cases = [
        ("é", ""),
        ("e\u{301}", ""),
        ("E", ""),
        ("e", ""),
        ("e", "1"),
        ("e", "１"),
        ("e ", ""),
        ("a", "b\nc"),
    ];
    for (step, key) in cases {
        let operation = Operation { name: name(step), key: Key::parse(key).expect("a key"), slot: 0 };
        let checkpoint = NewCheckpoint { operation, ..db::step("x", "1") };
        assert!(db::stored(db.store.save(&running.session, checkpoint).await), "{step:?} {key:?}");
    }
    for slot in [1, 2, u32::MAX] {
        let operation = Operation { slot, ..db::operation("e") };
        let checkpoint = NewCheckpoint { operation, ..db::step("x", "1") };
        assert!(db::stored(db.store.save(&running.session, checkpoint).await), "slot {slot}");
    }
    let page = db.store.resume_page(&running.session, 0).await.expect("a page");
    assert_eq!(page.checkpoints.len(), cases.len() + 3);
}

async fn a_due_time_is_measured_by_the_databases_clock(db: TestDb) {
    let running = db.running("a").await;
    let due_in = db::checkpoint("nap", Kind::Due, NewValue::DueIn(Duration::from_secs(90)));
    let (saved, now) = db.store.save(&running.session, due_in.clone()).await.expect("a save");
    let Saved::Stored(stored) = saved else { panic!("stored") };
    assert_eq!((stored.value, now), (Value::Due(db::START + Duration::from_secs(90)), db::START));
    db.advance(Duration::from_secs(30));
    let (again, _) = db.store.save(&running.session, due_in).await.expect("a repeat");
    let Saved::Existed(stored) = again else { panic!("stored before") };
    assert_eq!(stored.value, Value::Due(db::START + Duration::from_secs(90)), "it does not move");

    let at = Micros(12);
    let due_at = db::checkpoint("past", Kind::Due, NewValue::DueAt(at));
    let (saved, _) = db.store.save(&running.session, due_at).await.expect("a save");
    assert!(matches!(saved, Saved::Stored(stored) if stored.value == Value::Due(at)));
}

async fn a_due_time_beyond_the_end_of_time_stays_there(db: TestDb) {
    let running = db.running("a").await;
    let forever = db::checkpoint("nap", Kind::Due, NewValue::DueIn(Duration::MAX));
    let (saved, now) = db.store.save(&running.session, forever).await.expect("a save");
    let Saved::Stored(stored) = saved else { panic!("stored") };
    let Value::Due(at) = stored.value else { panic!("a due time") };
    assert!(at > now + Duration::from_secs(1 << 40), "in the far future, not wrapped into the past");
}

async fn a_taken_signal_is_consumed_with_its_checkpoint(db: TestDb) {
    let running = db.running("a").await;
    let nothing = db.store.save(&running.session, db::take("w1", "go")).await.expect("a look");
    assert_eq!(nothing.0, Saved::Nothing);
    db.send(running.id(), "other").await;
    db.send(running.id(), "go").await;
    let (taken, _) = db.store.save(&running.session, db::take("w1", "go")).await.expect("a take");
    let Saved::Stored(taken) = taken else { panic!("taken") };
    assert_eq!(taken.value, Value::Payload(Payload::json("\"hello\"")));
    let unread = db.store.inbox(&running.session).await.expect("an inbox").unread;
    assert_eq!(unread.len(), 1);
    assert_eq!(unread[0].name, name("other"));
    let signals = db.store.signals(&db::tenant(), running.id(), 0, 10).await.expect("signals");
    assert_eq!(signals[1].consumed_by, Some(Attempt(1)));
}

async fn a_repeated_take_hears_what_was_taken(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    db.send(running.id(), "go").await;
    let first = db.store.save(&running.session, db::take("w1", "go")).await.expect("a take").0;
    let again = db.store.save(&running.session, db::take("w1", "go")).await.expect("a repeat").0;
    let (Saved::Stored(first), Saved::Existed(again)) = (first, again) else {
        panic!("first stored, then existed")
    };
    assert_eq!(first, again);
    let unread = db.store.inbox(&running.session).await.expect("an inbox").unread;
    assert_eq!(unread.iter().map(|s| s.number).collect::<Vec<_>>(), [2], "the second is still there");
}

async fn a_felt_cancel_is_a_checkpoint(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    assert!(db::stored(db.store.save(&running.session, db::feel("s")).await));
    assert!(!db::stored(db.store.save(&running.session, db::feel("s")).await), "stored before");
    assert_eq!(db.life(running.id()).await.cancel, Cancel::Felt);
    let found = db.store.checkpoint(&running.session, db::operation("s")).await.expect("a look-up");
    assert_eq!(found.expect("stored").value, Value::Cancelled);
    assert!(!db::stored(db.store.save(&running.session, db::step("s", "1")).await), "s stays cancelled");
    assert_eq!(
        db.timeline(running.id()).await,
        ["started", "claimed", "registered", "cancel_asked", "cancel_felt"]
    );
}

async fn nobody_feels_a_cancel_that_nobody_asked(db: TestDb) {
    let running = db.running("a").await;
    let felt = db.store.save(&running.session, db::feel("s")).await.expect("a look");
    assert_eq!(felt.0, Saved::Nothing);
    assert!(db::stored(db.store.save(&running.session, db::step("s", "1")).await), "s is free");
    assert_eq!(db.status(running.id()).await, Status::Running);
}

async fn checkpoints_of_all_sizes_come_back(db: TestDb) {
    let running = db.running("a").await;
    let sizes = [0, 1, 4096, 300_000, 1 << 20, 4 << 20];
    for size in sizes {
        let payload = Payload { data: vec![7; size].into(), ..Payload::default() };
        let new = db::checkpoint(&format!("s{size}"), Kind::Checkpoint, NewValue::Payload(payload));
        assert!(db::stored(db.store.save(&running.session, new).await));
    }
    let mut page = db.register(&running.claim).await.page;
    let session = db.register(&running.claim).await.session;
    let mut found = Vec::new();
    loop {
        let bytes: usize = page.checkpoints.iter().map(size_of_value).sum();
        assert!(bytes <= 1 << 20 || page.checkpoints.len() == 1, "a page is bounded: {bytes}");
        found.extend(page.checkpoints.iter().map(size_of_value));
        if page.next_cursor == 0 {
            break;
        }
        page = db.store.resume_page(&session, page.next_cursor).await.expect("a page");
    }
    assert_eq!(found, sizes);
    let newest = db.store.checkpoints(&db::tenant(), running.id(), 0, 1, true).await.expect("a page");
    assert_eq!(size_of_value(&newest.checkpoints[0]), 4 << 20);
    let older = db.store.checkpoints(&db::tenant(), running.id(), newest.next_cursor, 10, true).await;
    assert_eq!(size_of_value(&older.expect("a page").checkpoints[0]), 1 << 20);
}

fn size_of_value(checkpoint: &dormouse_core::domain::checkpoint::StoredCheckpoint) -> usize {
    match &checkpoint.value {
        Value::Payload(payload) => payload.data.len(),
        Value::Due(_) | Value::Cancelled => 0,
    }
}

async fn notes_are_cut_and_made_storable(db: TestDb) {
    let running = db.running("a").await;
    let note = format!("a\0b{}", "é".repeat(1000));
    let checkpoint = NewCheckpoint { note, ..db::checkpoint("s", Kind::Retry, NewValue::DueAt(Micros(1))) };
    let (saved, _) = db.store.save(&running.session, checkpoint).await.expect("a save");
    let Saved::Stored(stored) = saved else { panic!("stored") };
    assert!(stored.note.starts_with("a\u{fffd}bé") && stored.note.len() <= 1002);
    let found = db.store.checkpoint(&running.session, db::operation("s")).await.expect("a look-up");
    assert_eq!(found, Some(stored));
}

async fn a_look_up_finds_what_is_stored(db: TestDb) {
    let running = db.running("a").await;
    let session = &running.session;
    assert_eq!(db.store.checkpoint(session, db::operation("s")).await.expect("a look-up"), None);
    db::stored(db.store.save(session, db::step("s", "1")).await);
    let found = db.store.checkpoint(session, db::operation("s")).await.expect("a look-up").expect("stored");
    assert_eq!((found.attempt, found.kind), (Attempt(1), Kind::Step));
    let other = db.running("b").await;
    let found = db.store.checkpoint(&other.session, db::operation("s")).await.expect("a look-up");
    assert_eq!(found, None, "invariant 8: an instance sees only itself");
    assert_eq!(code(db.store.save(&other.session, feel_nothing()).await), "INVALID_ARGUMENT");
}

/// A payload whose type name cannot be stored.
fn feel_nothing() -> NewCheckpoint {
    let payload = Payload { type_name: "a\0".to_owned(), ..Payload::json("1") };
    db::checkpoint("t", Kind::Step, NewValue::Payload(payload))
}
