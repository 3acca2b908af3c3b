//! Nodes and their leases: who may claim, and who takes over.

use dormouse_core::{domain::instance::Status, store::NodeReport};

use crate::db::{self, TestDb, code};

contract! {
    a_newer_lease_ends_the_older,
    a_renewal_keeps_a_lease_from_being_lost,
    a_lost_lease_claims_and_settles_nothing,
    taking_over_is_repeated_until_nothing_is_left,
    nodes_are_listed_with_their_reports,
}

async fn a_newer_lease_ends_the_older(db: TestDb) {
    let old = db.node("n").await;
    let new = db.node("n").await;
    assert_eq!((old.epoch, new.epoch), (1, 2));
    db.start("a").await;
    assert_eq!(code(db.store.claim_due(&old, 10, db::LAUNCH).await), "FAILED_PRECONDITION");
    assert_eq!(code(db.store.renew_node(&old, NodeReport::default()).await), "FAILED_PRECONDITION");
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

async fn taking_over_is_repeated_until_nothing_is_left(db: TestDb) {
    let running = db.running("a").await;
    db.start("b").await;
    let open = db.claim_one(&running.lease).await;
    assert!(db.store.take_over().await.expect("a look").is_empty(), "its lease is held");
    assert!(db.store.lose_lease(&running.lease, 0).await.expect("a try"));
    let mut taken = db.store.take_over().await.expect("takes over");
    taken.sort();
    assert_eq!(taken, [running.attempt(), open.attempt_ref()], "running ones and open claims");
    assert!(db.store.take_over().await.expect("a look").is_empty());
    assert_eq!(db.status(running.id()).await, Status::Suspended);
    let zombie = db.store.save(&running.session, db::step("s", "1")).await;
    assert_eq!(code(zombie), "FENCED", "its process still runs there");
    assert_eq!(code(db.store.register(&open.token).await), "FENCED");
    let other = db.node("other").await;
    assert_eq!(db.claim(&other, 10).await.len(), 2);
}

async fn nodes_are_listed_with_their_reports(db: TestDb) {
    let lease = db.node("n").await;
    db.node("a").await;
    let report = NodeReport { running: 3, draining: true, not_claiming: "memory is short".to_owned() };
    db.store.renew_node(&lease, report.clone()).await.expect("renews");
    let nodes = db.store.nodes().await.expect("nodes");
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "n"]);
    assert_eq!((&nodes[1].report, nodes[1].renewals, nodes[1].slots), (&report, 1, 16));
}
