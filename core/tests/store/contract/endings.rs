//! complete, fail: final (invariant 6), repeatable by who ended.

use dormouse_core::domain::{
    instance::Status,
    outcome::{Ending, Failure, Outcome},
    payload::Payload,
};

use crate::db::{self, TestDb, code};

contract! {
    invariant_6_endings_are_final,
    an_ending_by_the_same_attempt_is_accepted_again,
    a_failure_keeps_its_words,
    who_felt_a_cancel_ends_cancelled_and_keeps_the_output,
    an_asked_cancel_alone_does_not_change_the_ending,
    an_ended_row_needs_nothing,
    events_and_progress_are_fenced,
}

fn failed() -> Ending {
    Ending::Failed(Failure {
        code: "PAYMENT_DECLINED".to_owned(),
        message: "card\0expired".to_owned(),
        retryable: true,
        details: b"{}".to_vec(),
    })
}

async fn invariant_6_endings_are_final(db: TestDb) {
    let running = db.running("a").await;
    let (tenant, id) = (db::tenant(), running.id().clone());
    db.store.end(&running.session, db::completed()).await.expect("ends");
    let before = db.instance(&id).await;

    assert_eq!(code(db.store.end(&running.session, failed()).await), "FENCED");
    assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
    assert_eq!(code(db.store.suspend(&running.session, db::for_resume()).await), "FENCED");
    assert_eq!(code(db.store.signal(&tenant, &id, db::new_signal("go", "")).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.cancel(&tenant, &id).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.pause(&tenant, &id).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.resume(&tenant, &id).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.stop(&tenant, &id).await), "FAILED_PRECONDITION");
    db.store.exited(running.attempt(), db::exit()).await.expect("accounting only");
    db.store.settle(&running.lease, &[]).await.expect("nothing of it");
    assert_eq!(db.instance(&id).await, before);
}

async fn an_ending_by_the_same_attempt_is_accepted_again(db: TestDb) {
    let running = db.running("a").await;
    for _ in 0..2 {
        let outcome = db.store.end(&running.session, db::completed()).await.expect("accepted");
        assert_eq!(outcome, Outcome::Completed);
    }
    assert_eq!(db.timeline(running.id()).await, ["started", "claimed", "registered", "completed"]);
}

async fn a_failure_keeps_its_words(db: TestDb) {
    let running = db.running("a").await;
    assert_eq!(db.store.end(&running.session, failed()).await.expect("fails"), Outcome::Failed);
    let failure = db.instance(running.id()).await.failure.expect("a failure");
    assert_eq!((failure.code.as_str(), failure.retryable), ("PAYMENT_DECLINED", true));
    assert_eq!(failure.message, "card\u{fffd}expired");
    assert_eq!(failure.details, b"{}");
}

async fn who_felt_a_cancel_ends_cancelled_and_keeps_the_output(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    db::stored(db.store.save(&running.session, db::feel("s")).await);
    for _ in 0..2 {
        let outcome = db.store.end(&running.session, db::completed()).await.expect("ends");
        assert_eq!(outcome, Outcome::Cancelled);
    }
    let detail = db.store.instance_detail(&db::tenant(), running.id()).await.expect("a view");
    assert_eq!(detail.output, Some(Payload::json("42")));
}

async fn an_asked_cancel_alone_does_not_change_the_ending(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    let outcome = db.store.end(&running.session, db::completed()).await.expect("ends");
    assert_eq!(outcome, Outcome::Completed, "it was done before it felt the cancel");
}

async fn an_ended_row_needs_nothing(db: TestDb) {
    let running = db.running("a").await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    db.store.end(&running.session, db::completed()).await.expect("ends");
    let life = db.life(running.id()).await;
    assert_eq!((life.wake_at(), life.node(), life.waits()), (None, None, None));
    assert!(!life.paused && !life.is_open());
    assert_eq!(life.status(), Status::Ended(Outcome::Completed));
}

async fn events_and_progress_are_fenced(db: TestDb) {
    use dormouse_core::domain::event::Progress;
    let running = db.running("a").await;
    let progress = |done| Progress { done, total: 10, message: "files".to_owned() };
    db.store.progress(&running.session, progress(3)).await.expect("stored");
    db.store.event(&running.session, db::name("found"), Payload::json("7")).await.expect("stored");
    let newer = db.register(&running.claim).await.session;
    assert_eq!(code(db.store.progress(&running.session, progress(4)).await), "FENCED");
    let event = db.store.event(&running.session, db::name("found"), Payload::json("8")).await;
    assert_eq!(code(event), "FENCED");
    db.store.progress(&newer, progress(5)).await.expect("stored");
    let (stored, at) = db.instance(running.id()).await.progress.expect("progress");
    assert_eq!((stored, at), (progress(5), db::START));
    let events = db.store.events(&db::tenant(), running.id(), 3, 10).await.expect("events").events;
    let texts: Vec<_> = events.iter().map(|event| (event.number, event.message.as_str())).collect();
    assert_eq!(texts, [(4, "3 of 10 files"), (5, "found"), (6, "5 of 10 files")]);
    assert_eq!(events[1].payload, Some(Payload::json("7")));
}
