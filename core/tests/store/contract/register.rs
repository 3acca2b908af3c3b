//! register: the token of the newest attempt, open or running; each opens a session.

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::{AttemptToken, Session},
        instance::{Cancel, Status},
        wake::WakeReason,
    },
    store::StartRequest,
};

use crate::db::{self, TestDb, code};

contract! {
    an_unknown_token_is_refused,
    each_registration_opens_a_session,
    an_older_attempt_is_fenced,
    what_has_ended_or_is_suspended_takes_no_registration,
    resuming_brings_everything,
    a_long_resume_comes_in_pages,
    the_grace_of_a_cancel_begins_with_the_process,
    a_deleted_instance_knows_no_token,
}

async fn an_unknown_token_is_refused(db: TestDb) {
    assert_eq!(code(db.store.register(&AttemptToken([7; 32])).await), "UNAUTHENTICATED");
}

async fn each_registration_opens_a_session(db: TestDb) {
    let running = db.running("a").await;
    let again = db.register(&running.claim).await.session;
    assert_eq!((running.session.writer.session, again.writer.session), (Session(1), Session(2)));
    assert_eq!(db.timeline(running.id()).await, ["started", "claimed", "registered"]);
    assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
    assert!(db::stored(db.store.save(&again, db::step("s", "1")).await));
}

async fn an_older_attempt_is_fenced(db: TestDb) {
    let running = db.running("a").await;
    db.store.exited(running.attempt(), db::exit()).await.expect("a crash");
    assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED", "its attempt is over");
    db.advance(Duration::from_secs(10));
    let second = db.claim_one(&running.lease).await;
    assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED", "a newer one is claimed");
    db.register(&second).await;
    assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED", "a newer one runs");
}

async fn what_has_ended_or_is_suspended_takes_no_registration(db: TestDb) {
    let suspended = db.suspended("a", db::for_signal("go", None)).await;
    assert_eq!(code(db.store.register(&suspended.claim.token).await), "FENCED");
    assert_eq!(db.status(suspended.id()).await, Status::Suspended);

    let ended = db.running("b").await;
    db.store.end(&ended.session, db::completed()).await.expect("ends");
    assert_eq!(code(db.store.register(&ended.claim.token).await), "FENCED");

    let stopped = db.running("c").await;
    db.store.stop(&db::tenant(), stopped.id()).await.expect("stops");
    assert_eq!(code(db.store.register(&stopped.claim.token).await), "FENCED");
}

async fn resuming_brings_everything(db: TestDb) {
    let first = db.suspended("a", db::for_signal("go", None)).await;
    db.send(first.id(), "go").await;
    db.send(first.id(), "other").await;
    db.advance(Duration::from_secs(1));
    let claim = db.claim_one(&first.lease).await;
    let resumed = db.register(&claim).await;
    assert_eq!(resumed.wake_reason, WakeReason::Signal);
    assert_eq!(resumed.input.data.as_ref(), b"1");
    assert_eq!(resumed.started_at, db::START);
    assert_eq!(resumed.now, db::START + Duration::from_secs(1));
    let unread: Vec<_> = resumed.inbox.unread.iter().map(|s| (s.number, s.name.as_str())).collect();
    assert_eq!(unread, [(1, "go"), (2, "other")]);
    assert_eq!((resumed.inbox.paused, resumed.inbox.cancel), (false, Cancel::No));
}

async fn a_long_resume_comes_in_pages(db: TestDb) {
    let running = db.running("a").await;
    let saves = (0..2500).map(|n| db.store.save(&running.session, db::step(&format!("s{n}"), "1")));
    for saved in futures_util::future::join_all(saves).await {
        saved.expect("a save");
    }
    let first = db.register(&running.claim).await;
    let mut names: Vec<_> = first.page.checkpoints.iter().map(|c| c.operation.name.to_string()).collect();
    assert_eq!(names.len(), 1000);
    let mut cursor = first.page.next_cursor;
    while cursor != 0 {
        let page = db.store.resume_page(&first.session, cursor).await.expect("a page");
        names.extend(page.checkpoints.iter().map(|c| c.operation.name.to_string()));
        cursor = page.next_cursor;
    }
    assert_eq!(names.len(), 2500);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2500, "each checkpoint on one page");
}

async fn the_grace_of_a_cancel_begins_with_the_process(db: TestDb) {
    let suspended = db.suspended("a", db::for_signal("go", None)).await;
    db.store.cancel(&db::tenant(), suspended.id()).await.expect("cancels");
    db.advance(Duration::from_secs(1000));
    let claim = db.claim_one(&suspended.lease).await;
    assert_eq!(claim.reason, WakeReason::Cancel);
    db.register(&claim).await;
    let since = db::START + Duration::from_secs(1000);
    assert_eq!(db.life(suspended.id()).await.cancel, Cancel::Asked { since });
    assert!(db.store.cancel_overdue(&suspended.lease).await.expect("a look").ended.is_empty());
}

async fn a_deleted_instance_knows_no_token(db: TestDb) {
    let running = db.running("a").await;
    db.store.end(&running.session, db::completed()).await.expect("ends");
    db.store.delete(&db::tenant(), running.id()).await.expect("deletes");
    assert_eq!(code(db.store.register(&running.claim.token).await), "UNAUTHENTICATED");
    db.store.start(StartRequest { ..db::request("a") }).await.expect("the id is free again");
    let claim = db.claim_one(&running.lease).await;
    let fresh = db.register(&claim).await.session;
    assert_eq!(fresh.writer, running.session.writer, "the same attempt and session …");
    let zombie = db.store.save(&running.session, db::step("s", "1")).await;
    assert_eq!(code(zombie), "FENCED", "… of another instance");
}
