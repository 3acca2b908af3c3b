//! exit, failed launch, settle, take over: attempts that ended without having said so.

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::Attempt,
        instance::Status,
        outcome::{EndedBy, ExitReason, ExitReport, Outcome},
        wake::{Waits, WakeReason},
    },
    store::{AfterExit, Superseded},
};

use crate::db::{self, TestDb};

contract! {
    a_crash_waits_longer_each_time,
    a_checkpoint_counts_the_crashes_anew,
    too_many_crashes_fail_the_instance,
    too_many_crashes_of_a_cancelled_one_cancel_it,
    a_crash_before_the_first_registration_stays_pending,
    an_exit_after_a_suspension_or_an_ending_is_accounting,
    an_exit_of_an_older_attempt_is_accounting,
    ends_that_leave_nothing_to_decide_are_noted_together,
    a_failed_launch_counts_as_a_crash,
    a_claim_that_is_given_back_is_no_crash,
    settling_returns_what_the_node_does_not_know,
    settling_leaves_what_the_node_knows,
    the_first_report_of_an_exit_stays,
    superseded_names_whom_to_kill,
    an_exit_of_a_deleted_instance_is_nothing,
}

async fn crash(db: &TestDb, of: dormouse_core::store::AttemptRef) -> AfterExit {
    db.store.exited(of, db::exit()).await.expect("a report")
}

async fn a_crash_waits_longer_each_time(db: TestDb) {
    let mut running = db.running("a").await;
    let mut now = db::START;
    for pause in [1, 2, 4, 8] {
        let after = crash(&db, running.attempt()).await;
        let wake_at = now + Duration::from_secs(pause);
        assert_eq!(after, AfterExit::Again { wake_at });
        let life = db.life(running.id()).await;
        assert_eq!((life.status(), life.waits()), (Status::Suspended, Some(&Waits::retry())));
        now = wake_at;
        db.clock.set(now);
        running.claim = db.claim_one(&running.lease).await;
        assert_eq!(running.claim.reason, WakeReason::Retry);
        running.session = db.register(&running.claim).await.session;
    }
    let crashed = db.timeline(running.id()).await.iter().filter(|kind| **kind == "crashed").count();
    assert_eq!(crashed, 4);
    let detail = db.store.instance_detail(&db::tenant(), running.id()).await.expect("a view");
    assert_eq!(detail.last_exit, Some((Attempt(4), "exited with code 101".to_owned())));
}

async fn a_checkpoint_counts_the_crashes_anew(db: TestDb) {
    let running = db.running("a").await;
    crash(&db, running.attempt()).await;
    db.advance(Duration::from_secs(1));
    let second = db.claim_one(&running.lease).await;
    let session = db.register(&second).await.session;
    db::stored(db.store.save(&session, db::step("s", "1")).await);
    crash(&db, second.attempt_ref()).await;
    assert_eq!(db.life(running.id()).await.crashes, 1, "the newest checkpoint is of this attempt");
    db.advance(Duration::from_secs(1));
    let third = db.claim_one(&running.lease).await;
    crash(&db, third.attempt_ref()).await;
    assert_eq!(db.life(running.id()).await.crashes, 2, "and now it is not");
}

async fn crash_until_the_end(db: &TestDb, running: &db::Running) -> u32 {
    let mut of = running.attempt();
    for crashes in 1.. {
        if let AfterExit::Ended(_) = crash(db, of).await {
            return crashes;
        }
        db.advance(Duration::from_secs(1000));
        of = db.claim_one(&running.lease).await.attempt_ref();
    }
    unreachable!("crashes have a limit")
}

async fn too_many_crashes_fail_the_instance(db: TestDb) {
    let running = db.running("a").await;
    assert_eq!(crash_until_the_end(&db, &running).await, db.store.limits().crashes + 1);
    let instance = db.instance(running.id()).await;
    assert_eq!(instance.life.status(), Status::Ended(Outcome::Failed));
    let failure = instance.failure.expect("a failure");
    assert_eq!(failure.code, "CRASHED");
    assert!(failure.message.contains("exited with code 101"), "{}", failure.message);
}

async fn too_many_crashes_of_a_cancelled_one_cancel_it(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    crash_until_the_end(&db, &running).await;
    assert_eq!(db.status(running.id()).await, Status::Ended(Outcome::Cancelled));
}

async fn a_crash_before_the_first_registration_stays_pending(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    let claim = db.claim_one(&lease).await;
    crash(&db, claim.attempt_ref()).await;
    let life = db.life(&id).await;
    assert_eq!((life.status(), life.crashes, life.node()), (Status::Pending, 1, None));
    assert_eq!(life.wake_at(), Some(db::START + Duration::from_secs(1)));
}

async fn an_exit_after_a_suspension_or_an_ending_is_accounting(db: TestDb) {
    let suspended = db.suspended("a", db::for_signal("go", None)).await;
    let before = db.instance(suspended.id()).await;
    assert_eq!(crash(&db, suspended.attempt()).await, AfterExit::Recorded);
    assert_eq!(db.instance(suspended.id()).await, before, "nobody overwrites what it recorded itself");

    let ended = db.running("b").await;
    db.store.end(&ended.session, db::completed()).await.expect("ends");
    assert_eq!(crash(&db, ended.attempt()).await, AfterExit::Recorded);
    assert_eq!(db.status(ended.id()).await, Status::Ended(Outcome::Completed));
    let attempts = db.store.attempts(&db::tenant(), ended.id(), 10).await.expect("attempts");
    assert_eq!(attempts[0].exit.as_deref(), Some("exited with code 101"));
    assert_eq!(attempts[0].stderr_tail.as_deref(), Some("thread panicked\n"));
}

async fn ends_that_leave_nothing_to_decide_are_noted_together(db: TestDb) {
    let ended = db.running("ended").await;
    db.store.end(&ended.session, db::completed()).await.expect("ends");
    let suspended = db.suspended("suspended", db::for_signal("go", None)).await;
    let running = db.running("running").await;
    db.start("open").await;
    let open = db.claim_one(&running.lease).await.attempt_ref();
    let retried = db.running("retried").await;
    crash(&db, retried.attempt()).await;
    db.advance(Duration::from_secs(1));
    let second = db.claim_one(&retried.lease).await.attempt_ref();

    // The last one was told before: the first report stays.
    let ofs = [running.attempt(), open, second, ended.attempt(), suspended.attempt(), retried.attempt()];
    let exits = ofs.map(|of| (of, db::exit())).to_vec();
    let left = db.store.account_exits(exits).await.expect("a report");

    let mut expected = vec![running.attempt(), open, second, retried.attempt()];
    expected.sort_unstable();
    assert_eq!(left, expected, "whose rows still name them, and who had been told");
    for noted in [&ended, &suspended] {
        let attempts = db.store.attempts(&db::tenant(), noted.id(), 10).await.expect("attempts");
        assert_eq!(attempts[0].exit.as_deref(), Some("exited with code 101"));
        assert_eq!(attempts[0].stderr_tail.as_deref(), Some("thread panicked\n"));
        assert!(attempts[0].ended_at.is_some());
    }
    let attempts = db.store.attempts(&db::tenant(), running.id(), 10).await.expect("attempts");
    assert_eq!((attempts[0].ended_at, db.status(running.id()).await), (None, Status::Running));
}

async fn an_exit_of_an_older_attempt_is_accounting(db: TestDb) {
    let running = db.running("a").await;
    crash(&db, running.attempt()).await;
    db.advance(Duration::from_secs(1));
    let second = db.claim_one(&running.lease).await;
    let before = db.life(running.id()).await;
    assert_eq!(crash(&db, running.attempt()).await, AfterExit::Recorded);
    assert_eq!(db.life(running.id()).await, before, "while the next is being launched");
    db.register(&second).await;
    let before = db.life(running.id()).await;
    assert_eq!(crash(&db, running.attempt()).await, AfterExit::Recorded);
    assert_eq!(db.life(running.id()).await, before, "while the next runs");
}

async fn a_failed_launch_counts_as_a_crash(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    let claim = db.claim_one(&lease).await;
    let message = "the image's interpreter does not exist".to_owned();
    let after = db.store.launch_failed(claim.attempt_ref(), message.clone()).await.expect("a report");
    assert_eq!(after, AfterExit::Again { wake_at: db::START + Duration::from_secs(1) });
    assert_eq!(db.life(&id).await.crashes, 1);
    let events = db.store.events(&db::tenant(), &id, 2, 10).await.expect("events").events;
    assert_eq!((events[0].kind.as_str(), events[0].message.as_str()), ("launch_failed", message.as_str()));
}

async fn a_claim_that_is_given_back_is_no_crash(db: TestDb) {
    let suspended = db.suspended("a", db::for_signal("go", None)).await;
    db.send(suspended.id(), "go").await;
    let claim = db.claim_one(&suspended.lease).await;
    let retry_in = Duration::from_secs(7);
    let message = "the image is not here yet".to_owned();
    let after = db.store.give_back(claim.attempt_ref(), retry_in, message.clone()).await.expect("given back");
    assert_eq!(after, AfterExit::Again { wake_at: db::START + retry_in });
    let life = db.life(suspended.id()).await;
    assert_eq!((life.crashes, life.waits()), (0, Some(&Waits::retry())));
    let again = db.store.give_back(claim.attempt_ref(), retry_in, message).await.expect("a repeat");
    assert_eq!(again, AfterExit::Recorded);
}

async fn settling_returns_what_the_node_does_not_know(db: TestDb) {
    let running = db.running("a").await;
    db.start("b").await;
    let open = db.claim_one(&running.lease).await;
    let mut settled = db.store.settle(&running.lease, &[]).await.expect("settles");
    settled.sort();
    assert_eq!(settled, [running.attempt(), open.attempt_ref()]);
    for id in [running.id(), &open.id] {
        let life = db.life(id).await;
        assert_eq!((life.wake_at(), life.crashes, life.node()), (Some(db::START), 0, None));
    }
    assert_eq!(db.status(running.id()).await, Status::Suspended);
    assert_eq!(db.status(&open.id).await, Status::Pending);
    assert!(db.store.settle(&running.lease, &[]).await.expect("again").is_empty());
    assert_eq!(db.claim(&running.lease, 10).await.len(), 2);
}

async fn settling_leaves_what_the_node_knows(db: TestDb) {
    let running = db.running("a").await;
    let other = db.node("other").await;
    assert!(db.store.settle(&other, &[]).await.expect("settles").is_empty(), "another node's");
    let known = [running.attempt()];
    assert!(db.store.settle(&running.lease, &known).await.expect("settles").is_empty());
    assert_eq!(db.status(running.id()).await, Status::Running);
    let older = [dormouse_core::store::AttemptRef { attempt: Attempt(0), ..known[0] }];
    assert_eq!(db.store.settle(&running.lease, &older).await.expect("settles").len(), 1);
}

async fn the_first_report_of_an_exit_stays(db: TestDb) {
    let running = db.running("a").await;
    let killed = ExitReport { reason: ExitReason::Signal(9), stderr_tail: "a\0b".to_owned() };
    db.store.exited(running.attempt(), killed).await.expect("a report");
    crash(&db, running.attempt()).await;
    let attempts = db.store.attempts(&db::tenant(), running.id(), 10).await.expect("attempts");
    assert_eq!(attempts[0].exit.as_deref(), Some("killed by signal 9 (SIGKILL)"));
    assert_eq!(attempts[0].stderr_tail.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(db.life(running.id()).await.crashes, 1);
}

async fn superseded_names_whom_to_kill(db: TestDb) {
    let running = db.running("a").await;
    let node = running.lease.node.clone();
    let look = async || db.store.superseded(&node, &[running.attempt()]).await.expect("a look");
    assert!(look().await.is_empty(), "it runs as it should");
    let other = dormouse_core::domain::id::NodeId::parse("other").expect("a node");
    let elsewhere = db.store.superseded(&other, &[running.attempt()]).await.expect("a look");
    assert_eq!(elsewhere, [(running.attempt(), Superseded::Fenced)]);

    db.store.suspend(&running.session, db::for_signal("go", None)).await.expect("suspends");
    assert_eq!(look().await, [(running.attempt(), Superseded::Suspended)]);
    db.send(running.id(), "go").await;
    let second = db.claim_one(&running.lease).await;
    assert_eq!(look().await, [(running.attempt(), Superseded::Fenced)], "a newer attempt");
    db.store.stop(&db::tenant(), running.id()).await.expect("stops");
    let found = db.store.superseded(&node, &[second.attempt_ref()]).await.expect("a look");
    let ended = Superseded::Ended(Outcome::Cancelled, EndedBy::Controller);
    assert_eq!(found, [(second.attempt_ref(), ended)]);
}

async fn an_exit_of_a_deleted_instance_is_nothing(db: TestDb) {
    let running = db.running("a").await;
    db.store.stop(&db::tenant(), running.id()).await.expect("stops");
    db.store.delete(&db::tenant(), running.id()).await.expect("deletes");
    assert_eq!(crash(&db, running.attempt()).await, AfterExit::Recorded);
    let found = db.store.superseded(&running.lease.node, &[running.attempt()]).await.expect("a look");
    assert_eq!(found, [(running.attempt(), Superseded::Fenced)]);
}
