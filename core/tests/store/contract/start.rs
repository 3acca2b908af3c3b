//! start: once per id, whatever gets lost on the way.

use std::time::Duration;

use dormouse_core::{
    domain::{
        access::Quotas,
        id::{Attempt, Tenant},
        instance::Status,
        payload::Payload,
    },
    store::{Claim, Claimant, NodeLease, StartRequest, Started},
};

use crate::db::{self, TestDb, code, name};

contract! {
    the_same_start_is_one_instance,
    a_start_answers_what_would_be_read,
    invariant_4_a_start_may_be_claimed_at_once_and_then_is_nobody_elses,
    a_start_that_may_not_be_claimed_waits_as_any_other,
    another_start_under_the_same_id_is_refused_by_name,
    two_processes_start_one_id_once,
    a_delayed_start_is_due_at_its_time,
    the_newest_version_is_taken_at_the_first_start,
    an_unknown_image_or_workflow_is_refused,
    the_image_may_be_followed,
    an_ended_instance_does_not_follow_its_image,
    tenants_do_not_share_ids,
}

async fn the_same_start_is_one_instance(db: TestDb) {
    let first = db.store.start(db::request("a")).await.expect("a start");
    db.advance(Duration::from_secs(5));
    let again = db.store.start(db::request("a")).await.expect("the same again");
    assert!(!first.existed && again.existed);
    assert_eq!(first.instance, again.instance);
    let life = db.life(&db::id("a")).await;
    assert_eq!((life.status(), life.wake_at()), (Status::Pending, Some(db::START)));
    assert_eq!(db.timeline(&db::id("a")).await, ["started"]);
}

async fn a_start_answers_what_would_be_read(db: TestDb) {
    let at = db::START + Duration::from_mins(1);
    let full = StartRequest {
        start_at: Some(at),
        limit: Some(Duration::from_hours(1)),
        priority: 7,
        env: [("KEY".to_owned(), "value".to_owned())].into(),
        ..db::request("full")
    };
    for (request, limited) in [(db::request("plain"), false), (full, false), (db::request("limited"), true)] {
        let (tenant, id) = (request.tenant.clone(), request.id.clone());
        if limited {
            let quotas = Quotas { running: Some(1), ..Quotas::NONE };
            db.store.set_quotas(&tenant, quotas).await.expect("set");
        }
        let made = db.store.start(request).await.expect("a start").as_made.expect("it is new");
        assert_eq!(made.limited, limited);
        assert_eq!(*made, db.store.instance_detail(&tenant, &id).await.expect("it is there"));
    }
}

async fn invariant_4_a_start_may_be_claimed_at_once_and_then_is_nobody_elses(db: TestDb) {
    let lease = db.node("n").await;
    let (started, claim) = start_claimed(&db, &lease, db::request("a")).await;
    let claim = claim.expect("it is due and the lease is held");
    assert_eq!((claim.instance, claim.attempt), (started.instance, Attempt(1)));
    assert_eq!(claim.until, db::START + db::LAUNCH);
    let made = started.as_made.expect("it is new");
    assert_eq!(*made, db.store.instance_detail(&db::tenant(), &db::id("a")).await.expect("it is there"));
    assert_eq!(db.timeline(&db::id("a")).await, ["started", "claimed"]);
    assert!(db.claim(&lease, 10).await.is_empty(), "it is claimed");

    // As any claim: its token registers, and after the launch deadline it is due again.
    let (_, slow) = start_claimed(&db, &lease, db::request("b")).await;
    db.register(&claim).await;
    db.advance(db::LAUNCH);
    assert_eq!(db.claim_one(&lease).await.attempt, Attempt(2));
    let late = db.store.register(&slow.expect("claimed").token).await;
    assert_eq!(code(late), "FENCED");
}

async fn a_start_that_may_not_be_claimed_waits_as_any_other(db: TestDb) {
    let old = db.node("n").await;
    let lease = db.node("n").await; // the same node's next life
    let later = StartRequest { start_at: Some(db::START + Duration::from_secs(1)), ..db::request("later") };
    assert!(start_claimed(&db, &lease, later).await.1.is_none(), "it is not due");
    assert!(start_claimed(&db, &old, db::request("lost")).await.1.is_none(), "the lease is lost");
    let (again, claim) = start_claimed(&db, &lease, db::request("lost")).await;
    assert!(again.existed && claim.is_none(), "it was started before");
    assert_eq!(db.claim_one(&lease).await.id, db::id("lost"));

    let quotas = Quotas { running: Some(1), ..Quotas::NONE };
    db.store.set_quotas(&db::tenant(), quotas).await.expect("set");
    assert!(start_claimed(&db, &lease, db::request("limited")).await.1.is_none(), "its tenant has a quota");
}

async fn start_claimed(db: &TestDb, lease: &NodeLease, request: StartRequest) -> (Started, Option<Claim>) {
    let claimant = Claimant { lease: lease.clone(), launch_deadline: db::LAUNCH };
    db.store.start_claimed(request, claimant).await.expect("a start")
}

async fn another_start_under_the_same_id_is_refused_by_name(db: TestDb) {
    db.start("a").await;
    let other = StartRequest { input: Payload::json("2"), priority: 6, ..db::request("a") };
    let error = db.store.start(other).await.expect_err("another start");
    let text = error.to_string();
    assert!(text.contains("another input and priority"), "{text}");
    assert_eq!(code::<()>(Err(error)), "ALREADY_EXISTS");
    assert_eq!(db.timeline(&db::id("a")).await, ["started"], "a refusal has no effect");
}

async fn two_processes_start_one_id_once(db: TestDb) {
    let other = db.another().await;
    let starts = (0..20).map(|n| {
        let store = if n % 2 == 0 { db.store.clone() } else { other.clone() };
        async move { store.start(db::request(&format!("i{}", n / 2))).await.expect("a start") }
    });
    let started = futures_util::future::join_all(starts).await;
    assert_eq!(started.iter().filter(|start| !start.existed).count(), 10);
    for pair in started.chunks(2) {
        assert_eq!(pair[0].instance, pair[1].instance);
    }
}

async fn a_delayed_start_is_due_at_its_time(db: TestDb) {
    let lease = db.node("n").await;
    let at = db::START + Duration::from_mins(1);
    db.store.start(StartRequest { start_at: Some(at), ..db::request("a") }).await.expect("a start");
    let claims = db.store.claim_due(&lease, 10, db::LAUNCH).await.expect("a look");
    assert!(claims.claims.is_empty());
    assert_eq!(claims.next_due_in, Duration::from_mins(1));
    db.clock.set(at);
    assert_eq!(db.claim(&lease, 10).await.len(), 1);
}

async fn the_newest_version_is_taken_at_the_first_start(db: TestDb) {
    db.image("img", "2").await;
    db.start("a").await;
    db.image("img", "3").await;
    assert!(db.store.start(db::request("a")).await.expect("the same again").existed);
    assert_eq!(db.instance(&db::id("a")).await.version, name("2"));
}

async fn an_unknown_image_or_workflow_is_refused(db: TestDb) {
    let image = StartRequest { image: name("none"), ..db::request("a") };
    assert_eq!(code(db.store.start(image).await), "NOT_FOUND");
    let version = StartRequest { version: Some(name("9")), ..db::request("a") };
    assert_eq!(code(db.store.start(version).await), "NOT_FOUND");
    let workflow = StartRequest { workflow: Some(name("other")), ..db::request("a") };
    let error = db.store.start(workflow).await.expect_err("not in the image");
    assert!(error.to_string().contains("it holds: main"), "{error}");
    assert_eq!(code(db.store.instance(&db::tenant(), &db::id("a")).await), "NOT_FOUND");
}

async fn the_image_may_be_followed(db: TestDb) {
    db.start("a").await;
    db.image("img", "2").await;
    let follow = StartRequest { version: Some(name("2")), follow_image: true, ..db::request("a") };
    let first = db.store.start(follow.clone()).await.expect("follows");
    assert!(first.existed && first.image_changed);
    let again = db.store.start(follow.clone()).await.expect("follows");
    assert!(again.existed && !again.image_changed);
    let lease = db.node("n").await;
    assert_eq!(db.claim_one(&lease).await.version, name("2"));

    let other = StartRequest { input: Payload::json("2"), ..follow };
    assert_eq!(code(db.store.start(other).await), "ALREADY_EXISTS");
}

async fn an_ended_instance_does_not_follow_its_image(db: TestDb) {
    let id = db.start("a").await;
    db.store.cancel(&db::tenant(), &id).await.expect("never ran");
    db.image("img", "2").await;
    let follow = StartRequest { version: Some(name("2")), follow_image: true, ..db::request("a") };
    let answer = db.store.start(follow).await.expect("the same start");
    assert!(answer.existed && !answer.image_changed);
    assert_eq!(db.instance(&id).await.version, name("1"));
}

async fn tenants_do_not_share_ids(db: TestDb) {
    db.start("a").await;
    let stranger = Tenant::parse("stranger").expect("a tenant");
    let start = StartRequest { tenant: stranger.clone(), ..db::request("a") };
    assert_eq!(code(db.store.start(start).await), "NOT_FOUND", "not even the image is seen");
    assert_eq!(code(db.store.instance(&stranger, &db::id("a")).await), "NOT_FOUND");
    assert_eq!(code(db.store.stop(&stranger, &db::id("a")).await), "NOT_FOUND");
    assert_eq!(code(db.store.resolve(&stranger, &db::id("a")).await), "NOT_FOUND");
}
