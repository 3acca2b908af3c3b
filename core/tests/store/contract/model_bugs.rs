//! One case for each rule that the model can leave out (`--bug NAME`); each fails when the
//! store or the domain leaves it out.

use std::time::Duration;

use dormouse_core::{
    domain::{id::Attempt, instance::Status, outcome::Outcome},
    store::{AfterExit, NodeReport, Suspension},
};

use crate::db::{self, TestDb, code};

contract! {
    suspend_ignores_unread,
    suspend_ignores_cancel,
    env_writes_running,
    exit_without_attempt,
    exit_without_state,
    claim_keeps_attempt,
    claim_two_steps,
    claim_without_lease,
    signal_wakes_claimed,
    register_reopens,
    no_session_fence,
    pause_parks_without_wake,
    pause_holds_cancel,
    pause_clears_wake,
    takeover_running_only,
    settle_running_only,
    no_settle,
    ack_before_save,
    save_before_ack,
    outage_loses_lease,
    suspend_repeat_any,
    takeover_once,
    retry_keeps_wait,
}

async fn suspend_ignores_unread(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    let answer = db.store.suspend(&running.session, db::for_signal("go", None)).await.expect("an answer");
    assert!(matches!(answer.0, Suspension::Continue(_)), "else nobody would ever wake it");
}

async fn suspend_ignores_cancel(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    let answer = db.store.suspend(&running.session, db::for_signal("go", None)).await.expect("an answer");
    assert!(matches!(answer.0, Suspension::Continue(_)), "else the cancel would wait for a signal");
}

async fn env_writes_running(db: TestDb) {
    // The process is faster than its launcher: it ends before the launcher notes that it runs.
    let running = db.running("a").await;
    db.store.end(&running.session, db::completed()).await.expect("ends");
    db.store.launched(running.attempt(), 1).await.expect("noted");
    assert_eq!(db.status(running.id()).await, Status::Ended(Outcome::Completed));
}

async fn exit_without_attempt(db: TestDb) {
    let running = db.running("a").await;
    db.store.settle(&running.lease, &[]).await.expect("settles");
    let second = db.claim_one(&running.lease).await;
    db.register(&second).await;
    let before = db.life(running.id()).await;
    let after = db.store.exited(running.attempt(), db::exit()).await.expect("a report");
    assert_eq!((after, db.life(running.id()).await), (AfterExit::Recorded, before));
}

async fn exit_without_state(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    let before = db.life(running.id()).await;
    let after = db.store.exited(running.attempt(), db::exit()).await.expect("a report");
    assert_eq!((after, db.life(running.id()).await), (AfterExit::Recorded, before));
}

async fn claim_keeps_attempt(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    let second = db.claim_one(&running.lease).await;
    assert_eq!(second.attempt, Attempt(2));
    db.register(&second).await;
    assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED");
}

async fn claim_two_steps(db: TestDb) {
    let other = db.another().await;
    let (a, b) = (db.node("a").await, db.node("b").await);
    for round in 0..20 {
        db.start(&format!("i{round}")).await;
        let (one, two) =
            tokio::join!(db.store.claim_due(&a, 1, db::LAUNCH), other.claim_due(&b, 1, db::LAUNCH));
        let claimed = one.expect("claims").claims.len() + two.expect("claims").claims.len();
        assert!(claimed <= 1, "two nodes, one due wake");
        if claimed == 0 {
            assert_eq!(db.claim(&a, 1).await.len(), 1, "each saw the other's lock");
        }
    }
}

async fn claim_without_lease(db: TestDb) {
    let lease = db.node("n").await;
    db.start("a").await;
    assert!(db.store.lose_lease(&lease, 0).await.expect("a try"));
    assert_eq!(code(db.store.claim_due(&lease, 1, db::LAUNCH).await), "FAILED_PRECONDITION");
    assert_eq!(db.life(&db::id("a")).await.attempt, Attempt(0));
}

async fn signal_wakes_claimed(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    db.claim_one(&running.lease).await;
    db.send(running.id(), "go").await;
    assert!(db.claim(&running.lease, 10).await.is_empty(), "a launch is under way");
}

async fn register_reopens(db: TestDb) {
    let running = db.suspended("a", db::sleep_until(db::START + Duration::from_mins(1))).await;
    assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED");
    assert_eq!(db.status(running.id()).await, Status::Suspended);
}

async fn no_session_fence(db: TestDb) {
    let running = db.running("a").await;
    let newer = db.register(&running.claim).await.session;
    let waits = db::for_signal("go", None);
    assert_eq!(code(db.store.suspend(&running.session, waits).await), "FENCED");
    assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
    assert_eq!(code(db.store.save(&running.session, db::take("s", "go")).await), "FENCED");
    assert_eq!(code(db.store.save(&running.session, db::feel("s")).await), "FENCED");
    assert_eq!(code(db.store.end(&running.session, db::completed()).await), "FENCED");
    assert_eq!(code(db.store.inbox(&running.session).await), "FENCED");
    assert!(db::stored(db.store.save(&newer, db::step("s", "1")).await));
}

async fn pause_parks_without_wake(db: TestDb) {
    let running = db.running("a").await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    db.store.suspend(&running.session, db::for_resume()).await.expect("suspends");
    // Whoever clears the flag need not know the state: the wake is there already.
    assert!(db.wake_at(running.id()).await.is_some());
    db.store.resume(&db::tenant(), running.id()).await.expect("resumes");
    db.claim_one(&running.lease).await;
}

async fn pause_holds_cancel(db: TestDb) {
    let running = db.running("a").await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    db.store.suspend(&running.session, db::for_resume()).await.expect("suspends");
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    db.claim_one(&running.lease).await;
    assert_eq!(code(db.store.pause(&db::tenant(), running.id()).await), "FAILED_PRECONDITION");
}

async fn pause_clears_wake(db: TestDb) {
    let due = db::START + Duration::from_mins(1);
    let running = db.suspended("a", db::sleep_until(due)).await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    assert_eq!(db.wake_at(running.id()).await, Some(due));
}

async fn takeover_running_only(db: TestDb) {
    let lease = db.node("n").await;
    db.start("a").await;
    let open = db.claim_one(&lease).await;
    assert!(db.store.lose_lease(&lease, 0).await.expect("a try"));
    assert_eq!(db.store.take_over().await.expect("takes over"), [open.attempt_ref()]);
    assert_eq!(code(db.store.register(&open.token).await), "FENCED");
}

async fn settle_running_only(db: TestDb) {
    let lease = db.node("n").await;
    db.start("a").await;
    let open = db.claim_one(&lease).await;
    assert_eq!(db.store.settle(&lease, &[]).await.expect("settles"), [open.attempt_ref()]);
    assert_eq!(code(db.store.register(&open.token).await), "FENCED", "a process nobody knows");
    assert_eq!(db.wake_at(&db::id("a")).await, Some(db::START));
}

async fn no_settle(db: TestDb) {
    let running = db.running("a").await;
    let restarted = db.node("node-a").await;
    assert_eq!(db.store.settle(&restarted, &[]).await.expect("settles"), [running.attempt()]);
    db.claim_one(&restarted).await;
}

async fn ack_before_save(db: TestDb) {
    // Consuming and saving are one: a crash right after leaves both or none.
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    assert!(db::stored(db.store.save(&running.session, db::take("w", "go")).await));
    db.store.exited(running.attempt(), db::exit()).await.expect("a crash");
    db.advance(Duration::from_secs(1));
    let again = db.register(&db.claim_one(&running.lease).await).await;
    assert_eq!((again.page.checkpoints.len(), again.inbox.unread.len()), (1, 0));
}

async fn save_before_ack(db: TestDb) {
    let running = db.running("a").await;
    db.send(running.id(), "go").await;
    assert!(db::stored(db.store.save(&running.session, db::take("w1", "go")).await));
    let second = db.store.save(&running.session, db::take("w2", "go")).await.expect("a look");
    assert_eq!(second.0, dormouse_core::store::Saved::Nothing, "each signal is taken once");
}

async fn outage_loses_lease(db: TestDb) {
    // A watch that saw no renewal because of an outage is void: the count it compares moved on.
    let lease = db.node("n").await;
    let seen = db.store.nodes().await.expect("nodes")[0].renewals;
    db.advance(Duration::from_hours(1));
    db.store.renew_node(&lease, NodeReport::default()).await.expect("no clock ends a lease");
    assert!(!db.store.lose_lease(&lease, seen).await.expect("a try"));
}

async fn suspend_repeat_any(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    let other = db.store.suspend(&running.session, db::for_signal("stop", None)).await;
    assert_eq!(code(other), "FENCED", "it would believe that the other wait is recorded");
}

async fn takeover_once(db: TestDb) {
    // A claim that held the node's row when the lease was lost commits before; the next look
    // finds its row.
    let lease = db.node("n").await;
    db.start("a").await;
    db.start("b").await;
    let first = db.store.claim_due(&lease, 1, db::LAUNCH).await.expect("a claim").claims.remove(0);
    assert!(db.store.lose_lease(&lease, 0).await.expect("a try"));
    assert_eq!(db.store.take_over().await.expect("takes over"), [first.attempt_ref()]);
    assert!(db.store.take_over().await.expect("repeats").is_empty());
}

async fn retry_keeps_wait(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    let claim = db.claim_one(&running.lease).await;
    db.store.exited(claim.attempt_ref(), db::exit()).await.expect("a crash before registering");
    let retry = db.wake_at(running.id()).await;
    db.send(running.id(), "go").await;
    assert_eq!(db.wake_at(running.id()).await, retry, "a signal does not shorten the backoff");
}
