//! The one authority of a cluster.

use std::path::Path;

use dormouse_core::{
    authority::{self, Error, open},
    store::{ClusterAuthority, Kind},
};
use dormouse_proto::{
    code::{Code, Coded},
    identity::{Authority, Role},
};

use crate::db::TestDb;

contract! {
    who_claims_first_decides,
    of_two_claims_at_once_one_wins,
    a_host_is_filled_in_and_never_taken_away,
    an_authority_is_replaced_by_whoever_knows_the_old_one,
    a_service_of_another_authority_is_refused,
    of_two_services_with_new_authorities_one_starts,
    certificates_that_are_gone_are_made_anew_on_one_machine_only,
    another_authority_takes_the_place_of_the_old_one,
}

fn authority(pem: &str, host: &str) -> ClusterAuthority {
    ClusterAuthority { pem: pem.to_owned(), host: host.to_owned() }
}

async fn who_claims_first_decides(db: TestDb) {
    assert_eq!(db.store.authority().await.expect("a look"), None);
    let first = authority("a", "hazel");
    assert_eq!(db.store.claim_authority(first.clone()).await.expect("claimed"), first);
    assert_eq!(db.store.claim_authority(authority("b", "oak")).await.expect("answered"), first);
    assert_eq!(db.another().await.authority().await.expect("a look"), Some(first));
}

async fn of_two_claims_at_once_one_wins(db: TestDb) {
    let other = db.another().await;
    let (a, b) = tokio::join!(
        db.store.claim_authority(authority("a", "hazel")),
        other.claim_authority(authority("b", "oak")),
    );
    let (a, b) = (a.expect("answered"), b.expect("answered"));
    assert_eq!(a, b, "both hear of the same one");
    assert_eq!(db.store.authority().await.expect("a look"), Some(a));
}

async fn a_host_is_filled_in_and_never_taken_away(db: TestDb) {
    for (host, known) in [("", ""), ("hazel", "hazel"), ("", "hazel"), ("oak", "hazel")] {
        let claimed = db.store.claim_authority(authority("a", host)).await.expect("claimed");
        assert_eq!(claimed.host, known, "after {host:?}");
    }
}

async fn an_authority_is_replaced_by_whoever_knows_the_old_one(db: TestDb) {
    assert!(!db.store.replace_authority("a", authority("b", "oak")).await.expect("a try"), "there was none");
    db.store.claim_authority(authority("a", "hazel")).await.expect("claimed");
    assert!(!db.store.replace_authority("x", authority("b", "oak")).await.expect("a try"));
    assert!(db.store.replace_authority("a", authority("b", "oak")).await.expect("a try"));
    assert_eq!(db.store.authority().await.expect("a look"), Some(authority("b", "oak")));
}

fn made(dir: &Path) -> Authority {
    Authority::open_or_create(dir).expect("an authority")
}

async fn a_service_of_another_authority_is_refused(db: TestDb) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    let first = open(&path("first"), &db.store, "hazel").await.expect("the first decides");
    let other = made(&path("other"));
    let refused = open(&path("other"), &db.store, "oak").await.expect_err("another authority");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (ours, theirs) = (first.fingerprint().expect("one"), other.fingerprint().expect("one"));
    for said in [&ours.to_string(), &theirs.to_string(), "hazel", "dormouse certs issue oak"] {
        assert!(refused.to_string().contains(said), "{said}: {refused}");
    }
    assert!(made(&path("other")).has_key(), "what stood there stays");

    first.issue(&path("oak"), "oak", false).expect("issued");
    let joined = open(&path("oak"), &db.store, "oak").await.expect("of the cluster");
    assert!(!joined.has_key());
    joined.identity(Role::Core).expect("a certificate");
    assert_eq!(db.store.authority().await.expect("a look").expect("one").host, "hazel");
}

async fn of_two_services_with_new_authorities_one_starts(db: TestDb) {
    let dir = tempfile::tempdir().expect("a folder");
    let other = db.another().await;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for path in [&a, &b] {
        // Both have looked and found none.
        made(path);
    }
    let (first, second) = tokio::join!(open(&a, &db.store, "hazel"), open(&b, &other, "oak"));
    let refused = match (first, second) {
        (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, Error::Other { .. }), "{refused}");
}

async fn certificates_that_are_gone_are_made_anew_on_one_machine_only(db: TestDb) {
    let dir = tempfile::tempdir().expect("a folder");
    open(&dir.path().join("first"), &db.store, "hazel").await.expect("the first decides");
    let empty = dir.path().join("empty");
    match (db.store.kind(), open(&empty, &db.store, "oak").await) {
        (Kind::Sqlite, Ok(anew)) => {
            let known = db.store.authority().await.expect("a look").expect("one");
            assert_eq!((known.pem.as_str(), known.host.as_str()), (anew.certificate_pem(), "oak"));
        }
        (Kind::Postgres, Err(refused @ Error::Missing { .. })) => {
            assert!(refused.to_string().contains("dormouse certs issue oak"), "{refused}");
            assert!(!empty.exists(), "nothing was made");
        }
        (kind, other) => panic!("{kind:?}: {other:?}"),
    }
}

async fn another_authority_takes_the_place_of_the_old_one(db: TestDb) {
    let dir = tempfile::tempdir().expect("a folder");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    open(&old, &db.store, "hazel").await.expect("the first decides");
    assert!(authority::replace(&made(&new), &db.store, "oak").await.expect("replaced"));
    assert!(!authority::replace(&made(&new), &db.store, "oak").await.expect("a repeat"));
    open(&new, &db.store, "oak").await.expect("the cluster's now");
    open(&old, &db.store, "hazel").await.expect_err("no more");
}
