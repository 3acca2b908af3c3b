//! claim: due, not paused, lease held; exactly one node gets it (invariant 4).

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::Attempt,
        instance::{State, Status},
        wake::WakeReason,
    },
    store::StartRequest,
};

use crate::db::{self, TestDb, code};

contract! {
    invariant_4_a_due_wake_is_claimed_once,
    a_claim_opens_the_row,
    claims_go_by_priority_then_by_wake,
    a_claim_takes_no_more_than_its_limit,
    a_claim_takes_from_both_ends_of_a_backlog,
    a_missed_launch_deadline_is_due_again_and_fences_the_slow_one,
    the_answer_says_when_to_look_again,
    what_is_paused_is_not_claimed,
    a_claim_carries_all_that_a_launch_needs,
}

async fn invariant_4_a_due_wake_is_claimed_once(db: TestDb) {
    let other = db.another().await;
    let (a, b) = (db.node("a").await, db.node("b").await);
    for n in 0..40 {
        db.start(&format!("i{n}")).await;
    }
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let claims = tokio::join!(db.store.claim_due(&a, 3, db::LAUNCH), other.claim_due(&b, 3, db::LAUNCH));
        one.extend(claims.0.expect("claims").claims);
        two.extend(claims.1.expect("claims").claims);
    }
    let mut ids: Vec<_> = one.iter().chain(&two).map(|claim| claim.id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), one.len() + two.len()), (40, 40), "each wake once");
    assert!(one.iter().chain(&two).all(|claim| claim.attempt == Attempt(1)));
}

async fn a_claim_opens_the_row(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    let claim = db.claim_one(&lease).await;
    let life = db.life(&id).await;
    assert_eq!(life.status(), Status::Pending, "state and waits stay");
    assert!(life.is_open());
    assert_eq!((life.attempt, life.session.0), (Attempt(1), 0));
    assert_eq!(life.wake_at(), Some(db::START + db::LAUNCH));
    assert_eq!(life.node(), Some(&lease.node));
    assert_eq!(claim.until, db::START + db::LAUNCH);
    let attempts = db.store.attempts(&db::tenant(), &id, 10).await.expect("attempts");
    assert_eq!((attempts.len(), attempts[0].attempt, attempts[0].registered_at), (1, Attempt(1), None));
}

async fn claims_go_by_priority_then_by_wake(db: TestDb) {
    let lease = db.node("n").await;
    for (id, priority) in [("low", 0), ("mid", 5), ("late", 5), ("high", 9)] {
        let start = StartRequest { priority, ..db::request(id) };
        db.store.start(start).await.expect("a start");
        db.advance(Duration::from_secs(1));
    }
    let order: Vec<String> = db.claim(&lease, 10).await.iter().map(|claim| claim.id.to_string()).collect();
    assert_eq!(order, ["high", "mid", "late", "low"]);
}

async fn a_claim_takes_no_more_than_its_limit(db: TestDb) {
    let lease = db.node("n").await;
    for n in 0..5 {
        db.start(&format!("i{n}")).await;
    }
    let claims = db.store.claim_due(&lease, 2, db::LAUNCH).await.expect("claims");
    assert_eq!((claims.claims.len(), claims.next_due_in), (2, Duration::ZERO));
    assert_eq!(db.claim(&lease, 10).await.len(), 3);
    assert_eq!(db.claim(&lease, 0).await.len(), 0);
}

async fn a_claim_takes_from_both_ends_of_a_backlog(db: TestDb) {
    let lease = db.node("n").await;
    for n in 0..8 {
        db.start(&n.to_string()).await;
        db.advance(Duration::from_secs(1));
    }
    let claim = async |limit, newest| {
        let claims = db.store.claim_from_both_ends(&lease, limit, newest, db::LAUNCH).await.expect("claims");
        claims.claims.iter().map(|claim| claim.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(claim(4, 1).await, "0 1 2 7");
    assert_eq!(claim(1, 1).await, "6");
    assert_eq!(claim(4, 2).await, "3 4 5", "what both ends reach is taken once");
    assert_eq!(claim(4, 2).await, "");
}

async fn a_missed_launch_deadline_is_due_again_and_fences_the_slow_one(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    let slow = db.claim_one(&lease).await;
    assert!(db.claim(&lease, 10).await.is_empty(), "an open row is not due");
    db.advance(db::LAUNCH);
    let second = db.claim_one(&lease).await;
    assert_eq!((second.attempt, second.reason), (Attempt(2), WakeReason::LaunchMissed));
    assert_eq!(code(db.store.register(&slow.token).await), "FENCED");
    db.register(&second).await;
    assert_eq!(db.status(&id).await, Status::Running);
    assert_eq!(db.life(&id).await.crashes, 0, "a missed deadline is no crash");
}

async fn the_answer_says_when_to_look_again(db: TestDb) {
    let lease = db.node("n").await;
    let empty = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a look");
    assert_eq!(empty.next_due_in, Duration::MAX);
    db.start("a").await;
    let claims = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a claim");
    assert_eq!(claims.next_due_in, db::LAUNCH);
    db.register(&claims.claims[0]).await;
    let none = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a look");
    assert_eq!(none.next_due_in, Duration::MAX);
}

async fn what_is_paused_is_not_claimed(db: TestDb) {
    let lease = db.node("n").await;
    let id = db.start("a").await;
    db.store.pause(&db::tenant(), &id).await.expect("pauses");
    let look = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a look");
    assert_eq!((look.claims.len(), look.next_due_in), (0, Duration::MAX));
    db.store.resume(&db::tenant(), &id).await.expect("resumes");
    assert_eq!(db.claim(&lease, 10).await.len(), 1);
}

async fn a_claim_carries_all_that_a_launch_needs(db: TestDb) {
    let lease = db.node("n").await;
    let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "zwei =".to_owned())].into();
    let limit = Some(Duration::from_secs(100));
    db.store.start(StartRequest { env, limit, ..db::request("a") }).await.expect("a start");
    let claim = db.claim_one(&lease).await;
    assert_eq!(claim.env["B"], "zwei =");
    assert_eq!((claim.workflow.as_str(), claim.image.as_str()), ("main", "img"));
    assert_eq!(claim.deadline_at, Some(db::START + Duration::from_secs(100)));
    assert_eq!(claim.reason, WakeReason::Start);
    assert!(matches!(db.life(&claim.id).await.state, State::Launching { .. }));
}
