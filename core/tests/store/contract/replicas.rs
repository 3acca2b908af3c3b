//! Core replicas: entering the list, signs of life, leaving it.

use std::time::Duration;

use dormouse_core::{
    domain::id::ReplicaId,
    store::{NewReplica, Renewal, Replica, ReplicaReport},
};

use crate::db::{START, TestDb};

contract! {
    a_replica_is_listed_from_its_start_to_its_end,
    a_restarted_replica_keeps_its_place_and_its_old_life_changes_nothing,
    a_silent_replica_is_forgotten_unless_it_shows_a_sign_of_life,
}

fn new(id: &str) -> NewReplica {
    NewReplica {
        id: ReplicaId::parse(id).expect("an id"),
        name: format!("host-of-{id}"),
        address: format!("{id}.example:8001"),
        version: "0.2.0".to_owned(),
        lease: Duration::from_secs(15),
    }
}

async fn listed(db: &TestDb) -> Vec<Replica> {
    db.store.replicas().await.expect("a list")
}

async fn a_replica_is_listed_from_its_start_to_its_end(db: TestDb) {
    let b = db.store.enter_replica(new("b")).await.expect("enters");
    let a = db.store.enter_replica(new("a")).await.expect("enters");
    db.advance(Duration::from_secs(5));
    let report = ReplicaReport { sessions: 17, draining: true };
    assert_eq!(db.store.renew_replica(&b, report).await.expect("renews"), Renewal::Kept);

    let both = listed(&db).await;
    assert_eq!(both.iter().map(|replica| &replica.lease).collect::<Vec<_>>(), [&a, &b]);
    let second = &both[1];
    assert_eq!((second.renewals, second.report), (1, report));
    assert_eq!((second.name.as_str(), second.address.as_str()), ("host-of-b", "b.example:8001"));
    assert_eq!((second.version.as_str(), second.lease_length), ("0.2.0", Duration::from_secs(15)));
    assert_eq!((second.started_at, second.renewed_at), (START, db.clock.now()));

    db.store.leave_replica(&b).await.expect("leaves");
    db.store.leave_replica(&b).await.expect("leaving twice is leaving");
    assert_eq!(listed(&db).await.len(), 1);
    assert_eq!(db.store.renew_replica(&b, report).await.expect("an answer"), Renewal::Gone);
}

async fn a_restarted_replica_keeps_its_place_and_its_old_life_changes_nothing(db: TestDb) {
    let old = db.store.enter_replica(new("a")).await.expect("enters");
    let report = ReplicaReport { sessions: 3, draining: true };
    db.store.renew_replica(&old, report).await.expect("renews");
    let moved = NewReplica { address: "elsewhere.example:8001".to_owned(), ..new("a") };
    let now = db.store.enter_replica(moved).await.expect("enters");
    assert_eq!((old.epoch, now.epoch), (1, 2));

    assert_eq!(db.store.renew_replica(&old, report).await.expect("an answer"), Renewal::Taken);
    db.store.leave_replica(&old).await.expect("no error");
    let one = listed(&db).await;
    assert_eq!((one.len(), &one[0].lease, one[0].renewals), (1, &now, 0));
    assert_eq!(
        (one[0].address.as_str(), one[0].report),
        ("elsewhere.example:8001", ReplicaReport::default())
    );
}

async fn a_silent_replica_is_forgotten_unless_it_shows_a_sign_of_life(db: TestDb) {
    let replica = db.store.enter_replica(new("a")).await.expect("enters");
    let seen = listed(&db).await[0].renewals;
    db.store.renew_replica(&replica, ReplicaReport::default()).await.expect("renews");
    assert!(!db.store.forget_replica(&replica, seen).await.expect("a try"), "it was renewed meanwhile");
    let seen = listed(&db).await[0].renewals;
    assert!(db.store.forget_replica(&replica, seen).await.expect("a try"));
    assert!(!db.store.forget_replica(&replica, seen).await.expect("a try"), "gone before");
    assert_eq!(listed(&db).await, []);
}
