//! pause, resume, cancel, stop, the time limit, delete: in each state what the table says.

use std::time::Duration;

use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewValue},
        id::Tenant,
        instance::{Cancel, Status},
        outcome::{EndedBy, Outcome},
        payload::Payload,
    },
    store::{ListFilter, Pruned, StartRequest, Store, Superseded, check::PATIENCE},
};

use crate::db::{self, TestDb, code};

contract! {
    pause_and_resume_touch_nothing_but_the_flag,
    what_is_being_cancelled_cannot_be_paused,
    cancel_ends_what_never_ran_and_fences_its_claim,
    cancel_wakes_who_sleeps_and_lifts_a_pause,
    cancel_of_an_open_relaunch_waits_for_its_registration,
    a_second_cancel_changes_nothing,
    past_its_grace_a_cancel_ends_the_instance,
    a_felt_cancel_has_no_grace,
    stop_ends_every_state_at_once,
    the_time_limit_ends_every_state,
    the_time_limit_counts_while_paused,
    only_what_has_ended_is_deleted,
    deleting_leaves_nothing_of_it,
    ended_instances_are_pruned_after_their_retention,
    pruning_takes_small_and_large_ones,
    a_tenant_prunes_its_own_in_small_batches,
    two_that_prune_at_once_share_the_work,
}

async fn pause_and_resume_touch_nothing_but_the_flag(db: TestDb) {
    let tenant = db::tenant();
    let due = db::START + Duration::from_mins(1);
    let running = db.suspended("a", db::sleep_until(due)).await;
    let before = db.life(running.id()).await;
    for _ in 0..2 {
        db.store.pause(&tenant, running.id()).await.expect("pauses");
    }
    let mut paused = db.life(running.id()).await;
    assert!(paused.paused);
    paused.paused = false;
    assert_eq!(paused, before);
    for _ in 0..2 {
        db.store.resume(&tenant, running.id()).await.expect("resumes");
    }
    assert_eq!(db.life(running.id()).await, before);
    let events = db.timeline(running.id()).await;
    assert_eq!(events[4..], ["paused", "resumed"], "a repeat tells nothing new");
}

async fn what_is_being_cancelled_cannot_be_paused(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    assert_eq!(code(db.store.pause(&db::tenant(), running.id()).await), "FAILED_PRECONDITION");
    db::stored(db.store.save(&running.session, db::feel("s")).await);
    assert_eq!(code(db.store.pause(&db::tenant(), running.id()).await), "FAILED_PRECONDITION");
    db.store.resume(&db::tenant(), running.id()).await.expect("harmless");
}

async fn cancel_ends_what_never_ran_and_fences_its_claim(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    let claim = db.claim_one(&lease).await;
    db.store.cancel(&db::tenant(), &id).await.expect("cancels");
    assert_eq!(db.status(&id).await, Status::Ended(Outcome::Cancelled));
    assert_eq!(code(db.store.register(&claim.token).await), "FENCED");
    let of = claim.attempt_ref();
    let superseded = db.store.superseded(&lease.node, &[of]).await.expect("a look");
    let ended = Superseded::Ended(Outcome::Cancelled, EndedBy::Controller);
    assert_eq!(superseded, [(of, ended)]);
}

async fn cancel_wakes_who_sleeps_and_lifts_a_pause(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.store.pause(&db::tenant(), running.id()).await.expect("pauses");
    db.advance(Duration::from_secs(3));
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    let life = db.life(running.id()).await;
    assert!(!life.paused);
    assert_eq!(life.wake_at(), Some(db::START + Duration::from_secs(3)));
    let claim = db.claim_one(&running.lease).await;
    let inbox = db.register(&claim).await.inbox;
    assert!(matches!(inbox.cancel, Cancel::Asked { .. }));
}

async fn cancel_of_an_open_relaunch_waits_for_its_registration(db: TestDb) {
    let running = db.suspended("a", db::for_signal("go", None)).await;
    db.send(running.id(), "go").await;
    let claim = db.claim_one(&running.lease).await;
    let wake_at = db.wake_at(running.id()).await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    assert_eq!(db.wake_at(running.id()).await, wake_at, "nobody moves the wake of an open row");
    assert!(matches!(db.register(&claim).await.inbox.cancel, Cancel::Asked { .. }));
}

async fn a_second_cancel_changes_nothing(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    let before = db.life(running.id()).await;
    db.advance(Duration::from_secs(100));
    db.store.cancel(&db::tenant(), running.id()).await.expect("again");
    assert_eq!(db.life(running.id()).await, before, "its grace does not begin anew");
    let asked = db.timeline(running.id()).await.iter().filter(|kind| **kind == "cancel_asked").count();
    assert_eq!(asked, 1);
}

async fn past_its_grace_a_cancel_ends_the_instance(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    db.advance(Duration::from_secs(299));
    let look = db.store.cancel_overdue(&running.lease).await.expect("a look");
    assert_eq!((look.ended.len(), look.next_in), (0, Duration::from_secs(1)));
    db.advance(Duration::from_secs(1));
    let other = db.node("other").await;
    assert!(db.store.cancel_overdue(&other).await.expect("a look").ended.is_empty(), "not its node");
    let look = db.store.cancel_overdue(&running.lease).await.expect("a look");
    assert_eq!(look.ended, [running.attempt()]);
    assert_eq!(db.status(running.id()).await, Status::Ended(Outcome::Cancelled));
    assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
}

async fn a_felt_cancel_has_no_grace(db: TestDb) {
    let running = db.running("a").await;
    db.store.cancel(&db::tenant(), running.id()).await.expect("cancels");
    db::stored(db.store.save(&running.session, db::feel("s")).await);
    db.advance(Duration::from_secs(10_000));
    let look = db.store.cancel_overdue(&running.lease).await.expect("a look");
    assert_eq!((look.ended.len(), look.next_in), (0, Duration::MAX));
}

/// An instance in each state that has not ended.
async fn in_each_state(db: &TestDb, limit: Option<Duration>) -> Vec<db::Running> {
    let mut all = Vec::new();
    for id in ["running", "sleeping", "waiting", "retrying", "relaunching"] {
        let lease = db.node("node-a").await;
        db.store.start(StartRequest { limit, ..db::request(id) }).await.expect("a start");
        let claim = db.claim_one(&lease).await;
        let session = db.register(&claim).await.session;
        let mut running = db::Running { lease, claim, session };
        let later = db::START + Duration::from_secs(500);
        match id {
            "sleeping" => {
                drop(db.store.suspend(&running.session, db::sleep_until(later)).await.expect("sleeps"))
            }
            "waiting" => {
                drop(db.store.suspend(&running.session, db::for_signal("go", None)).await.expect("waits"))
            }
            "retrying" => drop(db.store.exited(running.attempt(), db::exit()).await.expect("crashes")),
            "relaunching" => {
                db.store.suspend(&running.session, db::for_signal("go", None)).await.expect("waits");
                db.send(running.id(), "go").await;
                running.claim = db.claim_one(&running.lease).await;
            }
            _ => {}
        }
        all.push(running);
    }
    all
}

async fn stop_ends_every_state_at_once(db: TestDb) {
    for running in in_each_state(&db, None).await {
        db.store.stop(&db::tenant(), running.id()).await.expect("stops");
        let life = db.life(running.id()).await;
        assert_eq!(life.status(), Status::Ended(Outcome::Cancelled), "{}", running.id());
        assert_eq!(code(db.store.save(&running.session, db::step("s", "1")).await), "FENCED");
        assert_eq!(code(db.store.register(&running.claim.token).await), "FENCED");
        assert_eq!(code(db.store.stop(&db::tenant(), running.id()).await), "FAILED_PRECONDITION");
        assert_eq!(db.timeline(running.id()).await.last(), Some(&"cancelled"));
    }
    let lease = db.node("node-a").await;
    db.advance(Duration::from_secs(10_000));
    assert!(db.claim(&lease, 10).await.is_empty());
}

async fn the_time_limit_ends_every_state(db: TestDb) {
    let limit = Duration::from_secs(100);
    let all = in_each_state(&db, Some(limit)).await;
    let look = db.store.expire().await.expect("a look");
    assert_eq!((look.ended.len(), look.next_in), (0, limit));
    db.advance(limit);
    let look = db.store.expire().await.expect("a look");
    assert_eq!((look.ended.len(), look.next_in), (all.len(), Duration::MAX));
    for running in all {
        assert_eq!(db.status(running.id()).await, Status::Ended(Outcome::Failed), "{}", running.id());
        let failure = db.instance(running.id()).await.failure.expect("a failure");
        assert_eq!(failure.code, "TIME_LIMIT");
    }
}

async fn the_time_limit_counts_while_paused(db: TestDb) {
    let limit = Some(Duration::from_secs(100));
    db.store.start(StartRequest { limit, ..db::request("a") }).await.expect("a start");
    db.store.pause(&db::tenant(), &db::id("a")).await.expect("pauses");
    db.advance(Duration::from_secs(101));
    assert_eq!(db.store.expire().await.expect("a look").ended.len(), 1);
    assert_eq!(db.status(&db::id("a")).await, Status::Ended(Outcome::Failed));
}

async fn only_what_has_ended_is_deleted(db: TestDb) {
    let running = db.running("a").await;
    assert_eq!(code(db.store.delete(&db::tenant(), running.id()).await), "FAILED_PRECONDITION");
    assert!(db::stored(db.store.save(&running.session, db::step("s", "1")).await), "nothing happened");
}

async fn deleting_leaves_nothing_of_it(db: TestDb) {
    let tenant = db::tenant();
    let running = db.running("a").await;
    let saves = (0..1100).map(|n| db.store.save(&running.session, db::step(&format!("s{n}"), "1")));
    for saved in futures_util::future::join_all(saves).await {
        saved.expect("a save");
    }
    db.send(running.id(), "go").await;
    db.store.end(&running.session, db::completed()).await.expect("ends");
    db.store.delete(&tenant, running.id()).await.expect("deletes");
    assert_eq!(code(db.store.instance(&tenant, running.id()).await), "NOT_FOUND");
    assert_eq!(code(db.store.delete(&tenant, running.id()).await), "NOT_FOUND");

    db.start("a").await;
    let detail = db.store.instance_detail(&tenant, running.id()).await.expect("a fresh one");
    assert_eq!((detail.checkpoints, detail.unread_signals, detail.output), (0, 0, None));
    assert_eq!(db.timeline(running.id()).await, ["started"]);
}

async fn ended_instances_are_pruned_after_their_retention(db: TestDb) {
    for n in 0..3 {
        let id = db.start(&format!("i{n}")).await;
        db.store.cancel(&db::tenant(), &id).await.expect("cancels");
        db.advance(Duration::from_hours(1));
    }
    db.start("alive").await;
    assert_eq!(db.store.prune(10).await.expect("a round").instances, 0);
    let retention = db.store.limits().retention;
    db.clock.set(db::START + retention + Duration::from_hours(1));
    assert_eq!(db.store.prune(10).await.expect("a round").instances, 2);
    db.advance(Duration::from_hours(1));
    assert_eq!(db.store.prune(10).await.expect("a round").instances, 1);
    let all = ListFilter { limit: 10, ..ListFilter::default() };
    let left = db.store.list(&db::tenant(), all).await.expect("a list");
    assert_eq!(left.instances.len(), 1);
}

/// Small ones go together, large ones in several transactions, and each in whole.
async fn pruning_takes_small_and_large_ones(db: TestDb) {
    let tenant = db::tenant();
    let large = db.running("large").await;
    for n in 0..3 {
        let payload = NewValue::Payload(Payload::json(format!("\"{}\"", "x".repeat(400_000))));
        let saved =
            db.store.save(&large.session, db::checkpoint(&format!("big-{n}"), Kind::Step, payload)).await;
        assert!(db::stored(saved));
    }
    let saves = (0..600).map(|n| db.store.save(&large.session, db::step(&format!("s{n}"), "1")));
    for saved in futures_util::future::join_all(saves).await {
        saved.expect("a save");
    }
    db.store.end(&large.session, db::completed()).await.expect("ends");
    ended(&db, 70).await;
    db.advance(db.store.limits().retention);
    let pruned = db.store.prune(100).await.expect("a round");
    assert_eq!((pruned.instances, pruned.more), (71, false));
    assert_eq!(code(db.store.instance(&tenant, large.id()).await), "NOT_FOUND");
    assert_eq!(super::check::violations(&db, PATIENCE).await, []);
}

/// `n` instances of the tenant that ended an hour after each other.
async fn ended(db: &TestDb, n: u32) {
    for n in 0..n {
        let id = db.start(&format!("ended-{n:03}")).await;
        db.store.cancel(&db::tenant(), &id).await.expect("cancels");
        db.advance(Duration::from_hours(1));
    }
}

async fn a_tenant_prunes_its_own_in_small_batches(db: TestDb) {
    ended(&db, 5).await;
    db.start("alive").await;
    let tenant = db::tenant();
    let hours = |n| db::START + Duration::from_hours(n);
    // The first ended five hours ago, the last one hour.
    let dry = db.store.prunable(&tenant, Duration::from_hours(2)).await.expect("counted");
    assert_eq!((dry.instances, dry.oldest, dry.newest), (4, Some(hours(0)), Some(hours(3))));
    let stranger = Tenant::parse("stranger").expect("a tenant");
    assert_eq!(db.store.prunable(&stranger, Duration::ZERO).await.expect("counted").instances, 0);
    let none = db.store.prune_tenant(&stranger, Duration::ZERO, 10).await.expect("a round");
    assert_eq!(none, Pruned::default(), "others' are not touched");

    let first = db.store.prune_tenant(&tenant, Duration::from_hours(2), 3).await.expect("a round");
    let expected = Pruned { instances: 3, oldest: Some(hours(0)), newest: Some(hours(2)), more: true };
    assert_eq!(first, expected);
    let second = db.store.prune_tenant(&tenant, Duration::from_hours(2), 3).await.expect("a round");
    assert_eq!((second.instances, second.more), (1, false));
    assert_eq!(db.store.prunable(&tenant, Duration::ZERO).await.expect("counted").instances, 1);
}

async fn two_that_prune_at_once_share_the_work(db: TestDb) {
    ended(&db, 40).await;
    let other = db.another().await;
    let tenant = db::tenant();
    let all = async |store: &Store| {
        let mut pruned = 0;
        loop {
            let round = store.prune_tenant(&tenant, Duration::ZERO, 10).await.expect("a round");
            pruned += round.instances;
            if !round.more {
                return pruned;
            }
        }
    };
    let (one, two) = tokio::join!(all(&db.store), all(&other));
    let left = db.store.prunable(&tenant, Duration::ZERO).await.expect("counted").instances;
    assert_eq!(one + two + left, 40, "each was deleted once");
    assert!(left < 10, "what the other held in the last round stays for the next");
}
