//! Nodes and their leases: who may claim, and who takes over.

use dormouse_core::{
    domain::{instance::Status, wake::Waits},
    store::{Claim, Drain, Error, NewNode, NodeReport},
};

use crate::db::{self, TestDb, code};

contract! {
    a_newer_lease_ends_the_older,
    a_renewal_keeps_a_lease_from_being_lost,
    a_lost_lease_claims_and_settles_nothing,
    a_lost_lease_is_retaken_once,
    taking_over_is_repeated_until_nothing_is_left,
    invariant_4_losing_a_lease_claiming_and_renewing_at_once_are_in_some_order,
    nodes_are_listed_with_their_reports,
    a_drain_is_asked_of_the_node_that_people_mean,
    a_drain_stays_over_leases_until_it_is_taken_back,
    what_a_node_hands_back_is_due_at_once_and_no_crash,
    only_the_nodes_own_unfinished_attempt_is_handed_back,
}

async fn a_newer_lease_ends_the_older(db: TestDb) {
    let old = db.node("n").await;
    let new = db.node("n").await;
    assert_eq!((old.epoch, new.epoch), (1, 2));
    db.start("a").await;
    assert_eq!(code(db.store.claim_due(&old, 10, db::LAUNCH).await), "FAILED_PRECONDITION");
    let refused = db.store.renew_node(&old, NodeReport::default()).await.expect_err("taken");
    assert!(matches!(&refused, Error::LeaseTaken { address, .. } if address == "127.0.0.1:1"), "{refused}");
    assert!(refused.to_string().contains("if its data directory was copied"), "{refused}");
    let here = NewNode { address: "here:1".to_owned(), ..db::new_node("n") };
    assert!(
        matches!(db.store.retake_lease(&old, here).await, Err(Error::LeaseTaken { .. })),
        "no fight over it"
    );
    assert_eq!(code(db.store.settle(&old, &[]).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.cancel_overdue(&old).await), "FAILED_PRECONDITION");
    assert_eq!(db.claim(&new, 10).await.len(), 1);
}

async fn a_renewal_keeps_a_lease_from_being_lost(db: TestDb) {
    let lease = db.node("n").await;
    let seen = db.store.nodes().await.expect("nodes")[0].renewals;
    db.store.renew_node(&lease, NodeReport::default()).await.expect("renews");
    assert!(!db.store.lose_lease(&lease, seen).await.expect("a try"), "it was renewed meanwhile");
    let seen = db.store.nodes().await.expect("nodes")[0].renewals;
    assert!(db.store.lose_lease(&lease, seen).await.expect("a try"));
    assert!(!db.store.lose_lease(&lease, seen).await.expect("a try"), "lost before");
    assert_eq!(code(db.store.renew_node(&lease, NodeReport::default()).await), "FAILED_PRECONDITION");
}

async fn a_lost_lease_claims_and_settles_nothing(db: TestDb) {
    let lease = db.node("n").await;
    db.start("a").await;
    assert!(db.store.lose_lease(&lease, 0).await.expect("a try"));
    assert_eq!(code(db.store.claim_due(&lease, 10, db::LAUNCH).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.settle(&lease, &[]).await), "FAILED_PRECONDITION");
    let again = db.node("n").await;
    assert_eq!(db.claim(&again, 10).await.len(), 1, "a new lease claims");
}

async fn a_lost_lease_is_retaken_once(db: TestDb) {
    let lost = db.node("n").await;
    db.start("a").await;
    assert!(db.store.lose_lease(&lost, 0).await.expect("a try"));
    let refused = db.store.renew_node(&lost, NodeReport::default()).await.expect_err("lost");
    assert!(matches!(refused, Error::LeaseLost { .. }), "{refused}");
    let unheard = db.store.retake_lease(&lost, db::new_node("n")).await.expect("a new lease");
    let new = db.store.retake_lease(&lost, db::new_node("n")).await.expect("its answer got lost");
    assert_eq!((unheard.epoch, new.epoch), (2, 3));
    let again = db.store.retake_lease(&lost, db::new_node("n")).await;
    assert!(matches!(again, Err(Error::LeaseTaken { .. })), "it was used up");
    db.store.renew_node(&new, NodeReport::default()).await.expect("renews");
    assert_eq!(db.claim(&new, 10).await.len(), 1);
}

async fn taking_over_is_repeated_until_nothing_is_left(db: TestDb) {
    let running = db.running("a").await;
    for i in 0..120 {
        db.start(&format!("b{i}")).await;
    }
    let mut held = db.claim(&running.lease, 200).await;
    let open = held.pop().expect("claimed");
    assert!(db.store.take_over().await.expect("a look").is_empty(), "its lease is held");
    assert!(db.store.lose_lease(&running.lease, 0).await.expect("a try"));
    let mut taken = Vec::new();
    loop {
        let batch = db.store.take_over().await.expect("takes over");
        assert!(batch.len() <= 100, "{} rows were locked at once", batch.len());
        if batch.is_empty() {
            break;
        }
        taken.extend(batch);
    }
    taken.sort();
    let mut expected: Vec<_> = held.iter().map(Claim::attempt_ref).collect();
    expected.extend([running.attempt(), open.attempt_ref()]);
    expected.sort();
    assert_eq!(taken, expected, "running ones and open claims");
    assert_eq!(db.status(running.id()).await, Status::Suspended);
    let zombie = db.store.save(&running.session, db::step("s", "1")).await;
    assert_eq!(code(zombie), "FENCED", "its process still runs there");
    assert_eq!(code(db.store.register(&open.token).await), "FENCED");
    let other = db.node("other").await;
    assert_eq!(db.claim(&other, 200).await.len(), 121);
}

/// Through two stores, so that they are two connections' transactions.
async fn invariant_4_losing_a_lease_claiming_and_renewing_at_once_are_in_some_order(db: TestDb) {
    let other = db.another().await;
    for round in 0..20 {
        let lease = db.node(&format!("n{round}")).await;
        db.start(&format!("i{round}")).await;
        let turns = |n: usize| async move {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
        };
        let lose = async {
            turns(round % 3).await;
            let lost = other.lose_lease(&lease, 0).await.expect("a try");
            let taken = other.take_over().await.expect("takes over");
            (lost, taken.len())
        };
        let claim = async {
            turns(round % 4).await;
            db.store.claim_due(&lease, 10, db::LAUNCH).await
        };
        let renew = async {
            turns(round % 5).await;
            db.store.renew_node(&lease, NodeReport::default()).await
        };
        let ((lost, taken), claimed, renewed) = tokio::join!(lose, claim, renew);
        assert_ne!(lost, renewed.is_ok(), "either it was renewed, or it is lost");
        let claims = match claimed {
            Ok(claimed) => claimed.claims.len(),
            Err(error) => {
                assert!(lost && matches!(error, Error::LeaseLost { .. }), "{error}");
                0
            }
        };
        assert_eq!(taken, if lost { claims } else { 0 }, "what was claimed before is taken over, all of it");
        db.store.stop(&db::tenant(), &db::id(&format!("i{round}"))).await.expect("out of the way");
    }
}

async fn nodes_are_listed_with_their_reports(db: TestDb) {
    let lease = db.node("n").await;
    db.node("a").await;
    let report = NodeReport {
        running: 3,
        draining: true,
        not_claiming: "memory is short".to_owned(),
        load_milli: 1_250,
        memory_free_bytes: 1 << 33,
        in_force: vec!["own process group".to_owned(), "images in /srv/images".to_owned()],
    };
    db.store.renew_node(&lease, report.clone()).await.expect("renews");
    let nodes = db.store.nodes().await.expect("nodes");
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "n"]);
    assert_eq!((&nodes[1].report, nodes[1].renewals, nodes[1].slots), (&report, 1, 16));
    assert_eq!(db.store.watch_nodes().await.expect("nodes"), nodes);
    let long = NodeReport { in_force: vec!["x".repeat(2000)], ..NodeReport::default() };
    assert_eq!(code(db.store.renew_node(&lease, long).await), "INVALID_ARGUMENT");
}

async fn a_drain_is_asked_of_the_node_that_people_mean(db: TestDb) {
    db.node("k7abc").await;
    db.node("k7xyz").await;
    let third = NewNode { name: "mill".to_owned(), ..db::new_node("m1") };
    db.store.lease_node(third).await.expect("a lease");
    for (asked, meant) in [("k7abc", "k7abc"), ("k7x", "k7xyz"), ("mill", "m1"), ("m", "m1")] {
        let node = db.store.ask_drain(asked, Drain::Wait).await.expect(asked);
        assert_eq!((node.lease.node.as_str(), node.drain), (meant, Drain::Wait));
    }
    let refused = db.store.ask_drain("k7", Drain::Suspend).await.expect_err("two begin so");
    assert!(refused.to_string().contains("k7abc") && refused.to_string().contains("k7xyz"), "{refused}");
    let refused = db.store.ask_drain("nobody", Drain::Wait).await.expect_err("none is called so");
    assert!(refused.to_string().contains("known are: k7abc"), "{refused}");
    assert_eq!(code(db.store.ask_drain("", Drain::Wait).await), "NOT_FOUND");
    let asked = db.store.nodes().await.expect("nodes");
    assert!(asked.iter().all(|node| node.drain == Drain::Wait), "a refusal changed something: {asked:?}");
}

async fn a_drain_stays_over_leases_until_it_is_taken_back(db: TestDb) {
    let first = db.node("n").await;
    assert_eq!(db.store.renew_node(&first, NodeReport::default()).await.expect("renews"), Drain::No);
    db.store.ask_drain("n", Drain::Suspend).await.expect("asked");
    assert_eq!(db.store.renew_node(&first, NodeReport::default()).await.expect("renews"), Drain::Suspend);
    let second = db.node("n").await;
    assert_eq!(db.store.renew_node(&second, NodeReport::default()).await.expect("renews"), Drain::Suspend);
    db.store.ask_drain("n", Drain::No).await.expect("taken back");
    assert_eq!(db.store.renew_node(&second, NodeReport::default()).await.expect("renews"), Drain::No);
}

async fn what_a_node_hands_back_is_due_at_once_and_no_crash(db: TestDb) {
    let running = db.running("a").await;
    assert!(db::stored(db.store.save(&running.session, db::step("s", "1")).await));
    assert!(
        db.store.hand_back(&running.lease, running.attempt(), "it drains".to_owned()).await.expect("done")
    );
    let life = db.life(running.id()).await;
    assert_eq!((life.status(), life.crashes, life.node()), (Status::Suspended, 0, None));
    assert_eq!(life.waits(), Some(&Waits::retry()));
    assert_eq!(life.wake_at(), Some(db.clock.now()));
    assert_eq!(db.timeline(running.id()).await.last(), Some(&"returned"));
    let zombie = db.store.save(&running.session, db::step("t", "1")).await;
    assert_eq!(code(zombie), "FENCED");
    let again = db.store.hand_back(&running.lease, running.attempt(), "it drains".to_owned()).await;
    assert!(!again.expect("heard before"));
    let other = db.node("other").await;
    let claim = db.claim_one(&other).await;
    assert_eq!(claim.attempt.0, 2);
    assert!(db.store.hand_back(&other, claim.attempt_ref(), "it drains".to_owned()).await.expect("done"));
    assert_eq!(db.life(running.id()).await.crashes, 0, "an open claim is handed back as well");
}

async fn only_the_nodes_own_unfinished_attempt_is_handed_back(db: TestDb) {
    let waits = db::for_signal("go", None);
    let asleep = db.suspended("a", waits.clone()).await;
    let why = || "it drains".to_owned();
    assert!(!db.store.hand_back(&asleep.lease, asleep.attempt(), why()).await.expect("heard"));
    assert_eq!(db.life(asleep.id()).await.waits(), Some(&waits), "it recorded its own end");

    let running = db.running("b").await;
    let other = db.node("other").await;
    assert!(!db.store.hand_back(&other, running.attempt(), why()).await.expect("heard"));
    assert_eq!(db.status(running.id()).await, Status::Running, "it runs elsewhere");
    let old = running.lease.clone();
    let new = db.node(old.node.as_str()).await;
    assert_eq!(code(db.store.hand_back(&old, running.attempt(), why()).await), "FAILED_PRECONDITION");
    assert!(db.store.hand_back(&new, running.attempt(), why()).await.expect("done"));
}
