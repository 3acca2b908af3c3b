//! suspend: recorded only if nothing that is waited for is there.

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::Key,
        instance::Status,
        wake::{Wait, Waits},
    },
    store::Suspension,
};

use crate::db::{self, TestDb, code, name};

contract! {
    a_sleep_wakes_at_its_due_time,
    a_wait_for_signals_alone_has_no_wake,
    the_earliest_due_time_wakes,
    a_due_time_that_passed_continues,
    an_unread_signal_continues,
    a_signal_of_another_name_does_not_continue,
    an_asked_cancel_continues_and_a_felt_one_does_not,
    who_waits_for_resume_without_a_pause_continues,
    a_pause_suspends_with_its_wake_held,
    the_same_suspend_again_hears_suspended,
    another_suspend_after_it_is_fenced,
    a_repeat_after_the_next_claim_is_fenced,
    a_suspension_is_progress,
}

async fn suspend(db: &TestDb, running: &db::Running, waits: Waits) -> Suspension {
    db.store.suspend(&running.session, waits).await.expect("an answer").0
}

fn is_continue(answer: &Suspension) -> bool {
    matches!(answer, Suspension::Continue(_))
}

async fn a_sleep_wakes_at_its_due_time(db: TestDb) {
    let due = db::START + Duration::from_mins(1);
    let running = db.suspended("a", db::sleep_until(due)).await;
    let life = db.life(running.id()).await;
    assert_eq!((life.status(), life.wake_at(), life.node()), (Status::Suspended, Some(due), None));
    assert_eq!(life.waits(), Some(&db::sleep_until(due)));
    db.clock.set(due);
    assert_eq!(db.claim(&running.lease, 10).await.len(), 1);
}

async fn a_wait_for_signals_alone_has_no_wake(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    assert_eq!(db.wake_at(running.id()).await, None);
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, Some(db::START));
}

async fn the_earliest_due_time_wakes(db: TestDb) {
    let at = |seconds| db::START + Duration::from_secs(seconds);
    let waits = Waits::new(vec![
        Wait::Due { name: name("x"), key: Key::none(), due_at: at(90) },
        Wait::Signal { name: name("y"), key: Key::none(), signal: name("go"), due_at: Some(at(30)) },
        Wait::Signal { name: name("z"), key: Key::none(), signal: name("stop"), due_at: None },
    ]);
    let running = db.suspended("a", waits.expect("three")).await;
    assert_eq!(db.wake_at(running.id()).await, Some(at(30)));
    db.send(running.id(), "stop").await;
    assert_eq!(db.wake_at(running.id()).await, Some(db::START));
}

async fn a_due_time_that_passed_continues(db: TestDb) {
    let running = db.running("a").await;
    assert!(is_continue(&suspend(&db, &running, db::sleep_until(db::START)).await));
    assert_eq!(db.status(running.id()).await, Status::Running);
    assert!(db::stored(db.store.save(&running.session, db::step("s", "1")).await), "it goes on");
}

async fn an_unread_signal_continues(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    let Suspension::Continue(inbox) = suspend(&db, &running, db::for_signal("go", None)).await else {
        panic!("the signal is there")
    };
    assert_eq!(inbox.unread.len(), 1);
    db::stored(db.store.save(&running.session, db::take("w", "go")).await);
    assert_eq!(suspend(&db, &running, db::for_signal("go", None)).await, Suspension::Suspended);
}

async fn a_signal_of_another_name_does_not_continue(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "other").await;
    assert_eq!(suspend(&db, &running, db::for_signal("go", None)).await, Suspension::Suspended);
    assert_eq!(db.wake_at(running.id()).await, None);
    db.send(running.id(), "other").await;
    assert_eq!(db.wake_at(running.id()).await, None, "nor does it wake");
}

async fn an_asked_cancel_continues_and_a_felt_one_does_not(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    let due = db::START + Duration::from_mins(1);
    assert!(is_continue(&suspend(&db, &running, db::sleep_until(due)).await));
    db::stored(db.store.save(&running.session, db::feel("s")).await);
    assert_eq!(suspend(&db, &running, db::sleep_until(due)).await, Suspension::Suspended);
    db.store.cancel(&db::tenant(), running.id()).await.expect("a second cancel changes nothing");
    assert_eq!(db.wake_at(running.id()).await, Some(due), "the clean-up's sleep is not cut short");
}

async fn who_waits_for_resume_without_a_pause_continues(db: TestDb) {
    let running = db.running("a").await;
    assert!(is_continue(&suspend(&db, &running, db::for_resume()).await));
}

async fn a_pause_suspends_with_its_wake_held(db: TestDb) {
    let running = db.running("a").await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    assert!(db.store.inbox(&running.session).await.expect("an inbox").paused);
    assert_eq!(suspend(&db, &running, db::for_resume()).await, Suspension::Suspended);
    assert_eq!(db.wake_at(running.id()).await, Some(db::START), "set, but held by the flag");
    assert!(db.claim(&running.lease, 10).await.is_empty());
    db.store.resume(&db::tenant(), running.id()).await.expect("resumes");
    assert_eq!(db.claim(&running.lease, 10).await.len(), 1);
}

async fn the_same_suspend_again_hears_suspended(db: TestDb) {
    let waits = db::sleep_until(db::START + Duration::from_mins(1));
    let running = db.suspended("a", waits.clone()).await;
    let revision = db.instance(running.id()).await.revision;
    assert_eq!(suspend(&db, &running, waits).await, Suspension::Suspended);
    assert_eq!(db.instance(running.id()).await.revision, revision, "nothing is written");
}

async fn another_suspend_after_it_is_fenced(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    for waits in [db::for_signal("stop", None), db::sleep_until(db::START)] {
        assert_eq!(code(db.store.suspend(&running.session, waits).await), "FENCED");
    }
    assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
}

async fn a_repeat_after_the_next_claim_is_fenced(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    db.claim_one(&running.lease).await;
    let again = db.store.suspend(&running.session, db::for_signal("go", None)).await;
    assert_eq!(code(again), "FENCED");
}

async fn a_suspension_is_progress(db: TestDb) {
    let running = db.running("a").await;
    db.store.exited(running.attempt(), db::exit()).await.expect("a crash");
    assert_eq!(db.life(running.id()).await.crashes, 1);
    db.advance(Duration::from_secs(5));
    let claim = db.claim_one(&running.lease).await;
    let session = db.register(&claim).await.session;
    db.store.suspend(&session, db::for_signal("go", None)).await.expect("suspends");
    assert_eq!(db.life(running.id()).await.crashes, 0);
}
