//! The one authority of a cluster.

use dormouse_core::store::ClusterAuthority;

use crate::db::TestDb;

contract! {
    who_claims_first_decides,
    of_two_claims_at_once_one_wins,
    a_host_is_filled_in_and_never_taken_away,
    an_authority_is_replaced_by_whoever_knows_the_old_one,
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
