//! Quotas: what is beyond them is refused or waits, and what has none pays nothing.

use std::{collections::BTreeMap, time::Duration};

use dormouse_core::{
    domain::{access::Quotas, id::Tenant, instance::Status},
    store::{Claim, NodeLease, Notice, RunningQuota, StartRequest, Store},
};

use crate::db::{self, TestDb, code, name};

contract! {
    starts_beyond_the_rate_are_refused_and_say_how_long_to_wait,
    a_start_that_exists_costs_no_quota,
    stored_instances_have_a_quota,
    running_instances_have_a_quota_that_is_exact_across_nodes,
    a_full_tenant_does_not_hold_up_the_others,
    a_freed_slot_is_told_and_taken,
    a_missed_launch_does_not_keep_its_tenant_full,
    a_raised_quota_is_told,
    tenants_that_are_due_share_a_claim,
    priorities_hold_across_tenants,
    starts_of_many_tenants_and_claims_do_not_wait_in_a_circle,
}

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).expect("a tenant's name")
}

const RUNNING_2: Quotas = Quotas { running: Some(2), ..Quotas::NONE };

/// Creates a tenant that has the image.
async fn create(db: &TestDb, named: &str, quotas: Quotas) -> Tenant {
    let tenant = tenant(named);
    db.store.create_tenant(tenant.clone(), quotas).await.expect("created");
    let image = db.store.image(&db::tenant(), &name("img"), None).await.expect("the image");
    let image = dormouse_core::store::NewImage {
        tenant: tenant.clone(),
        name: image.name,
        version: image.version,
        digest: image.digest,
        size: image.size,
        workflows: image.workflows,
        sdk_version: image.sdk_version,
        architecture: image.architecture,
        chunks: 0,
    };
    db.store.put_image(image).await.expect("stored");
    tenant
}

fn request(tenant: &Tenant, id: &str) -> StartRequest {
    StartRequest { tenant: tenant.clone(), ..db::request(id) }
}

async fn start(store: &Store, tenant: &Tenant, n: usize) {
    for n in 0..n {
        store.start(request(tenant, &format!("i{n}"))).await.expect("a start");
    }
}

async fn claim(store: &Store, lease: &NodeLease, limit: u32) -> Vec<Claim> {
    store.claim_due(lease, limit, db::LAUNCH).await.expect("a claim").claims
}

fn per_tenant(claims: &[Claim]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for claim in claims {
        *counts.entry(claim.tenant.as_str()).or_default() += 1;
    }
    counts
}

async fn starts_beyond_the_rate_are_refused_and_say_how_long_to_wait(db: TestDb) {
    let acme = create(&db, "acme", Quotas { starts_per_second: Some(2), ..Quotas::NONE }).await;
    start(&db.store, &acme, 2).await;
    let error = db.store.start(request(&acme, "late")).await.expect_err("beyond the rate");
    assert!(error.to_string().ends_with("start again in 500 ms"), "{error}");
    assert_eq!(code::<()>(Err(error)), "RESOURCE_EXHAUSTED");
    assert_eq!(code(db.store.instance(&acme, &db::id("late")).await), "NOT_FOUND", "no effect");
    db.start("other").await; // who has no quota goes on
    db.advance(Duration::from_millis(500));
    db.store.start(request(&acme, "late")).await.expect("there is room again");
    assert_eq!(code(db.store.start(request(&acme, "later")).await), "RESOURCE_EXHAUSTED");
}

async fn a_start_that_exists_costs_no_quota(db: TestDb) {
    let quotas = Quotas { stored: Some(1), starts_per_second: Some(1), ..Quotas::NONE };
    let acme = create(&db, "acme", quotas).await;
    start(&db.store, &acme, 1).await;
    for _ in 0..3 {
        assert!(db.store.start(request(&acme, "i0")).await.expect("the same again").existed);
    }
    assert_eq!(code(db.store.start(request(&acme, "i1")).await), "RESOURCE_EXHAUSTED");
}

async fn stored_instances_have_a_quota(db: TestDb) {
    let acme = create(&db, "acme", Quotas { stored: Some(3), ..Quotas::NONE }).await;
    let starts = (0..9).map(|n| db.store.start(request(&acme, &format!("i{n}"))));
    let started = futures_util::future::join_all(starts).await;
    assert_eq!(started.iter().filter(|answer| answer.is_ok()).count(), 3, "many at once");
    let error = db.store.start(request(&acme, "x")).await.expect_err("beyond the quota");
    assert!(error.to_string().contains("--max-stored"), "{error}");
    assert_eq!(code::<()>(Err(error)), "RESOURCE_EXHAUSTED");
    let first = db.store.list(&acme, dormouse_core::store::ListFilter { limit: 1, ..Default::default() });
    let first = first.await.expect("a list").instances.remove(0).id;
    db.store.stop(&acme, &first).await.expect("stopped");
    assert_eq!(code(db.store.start(request(&acme, "x")).await), "RESOURCE_EXHAUSTED", "an ended one counts");
    db.store.delete(&acme, &first).await.expect("deleted");
    db.store.start(request(&acme, "x")).await.expect("there is room again");
}

async fn running_instances_have_a_quota_that_is_exact_across_nodes(db: TestDb) {
    let acme = create(&db, "acme", RUNNING_2).await;
    let other = db.another().await;
    let (a, b) = (db.node("a").await, db.node("b").await);
    start(&db.store, &acme, 20).await;
    let mut claims = Vec::new();
    for _ in 0..5 {
        let (one, two) = tokio::join!(claim(&db.store, &a, 3), claim(&other, &b, 3));
        claims.extend(one.into_iter().chain(two));
    }
    assert_eq!(claims.len(), 2, "two may run in the whole cluster");
    let full = RunningQuota { running: 2, max: 2 };
    assert_eq!(db.store.running_quota(&acme).await.expect("counts"), Some(full));
    assert_eq!(db.store.running_quota(&db::tenant()).await.expect("counts"), None);
    let look = db.store.claim_due(&a, 3, db::LAUNCH).await.expect("a look");
    assert_eq!(look.next_due_in, Duration::MAX, "its backlog makes nobody look again and again");
}

async fn a_full_tenant_does_not_hold_up_the_others(db: TestDb) {
    let acme = create(&db, "acme", RUNNING_2).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 30).await;
    db.advance(Duration::from_secs(1));
    start(&db.store, &db::tenant(), 5).await;
    let claims = claim(&db.store, &lease, 10).await;
    assert_eq!(per_tenant(&claims), [("acme", 2), ("default", 5)].into());
    start(&db.store, &tenant("default"), 7).await; // five of them exist
    assert_eq!(per_tenant(&claim(&db.store, &lease, 10).await), [("default", 2)].into());
}

async fn a_freed_slot_is_told_and_taken(db: TestDb) {
    let acme = create(&db, "acme", Quotas { running: Some(1), ..Quotas::NONE }).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 3).await;
    let first = claim(&db.store, &lease, 10).await.remove(0);
    let session = db.register(&first).await.session;
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 0, "it runs");
    let mut notices = db.store.notices();
    db.store.end(&session, db::completed()).await.expect("ends");
    assert_eq!(notices.next().await, Some(Notice::Wakes), "somebody else may run now");
    let second = claim(&db.store, &lease, 10).await.remove(0);
    let session = db.register(&second).await.session;
    db.store.suspend(&session, db::for_signal("go", None)).await.expect("suspends");
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 1, "what is suspended does not run");
    let status = db.store.instance(&acme, &second.id).await.expect("found").life.status();
    assert_eq!(status, Status::Suspended);
}

async fn a_missed_launch_does_not_keep_its_tenant_full(db: TestDb) {
    let acme = create(&db, "acme", Quotas { running: Some(1), ..Quotas::NONE }).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 2).await;
    let slow = claim(&db.store, &lease, 10).await.remove(0);
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 0);
    db.advance(db::LAUNCH);
    let next = claim(&db.store, &lease, 10).await;
    assert_eq!(next.len(), 1, "exactly one again");
    db.advance(db::LAUNCH);
    let third = claim(&db.store, &lease, 10).await;
    assert_eq!(third.len(), 1);
    assert!(slow.id == next[0].id || slow.id == third[0].id, "the one that was slow is launched again");
}

async fn a_raised_quota_is_told(db: TestDb) {
    let acme = create(&db, "acme", Quotas { running: Some(1), ..Quotas::NONE }).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 3).await;
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 1);
    let mut notices = db.store.notices();
    db.store.set_quotas(&acme, RUNNING_2).await.expect("raised");
    assert_eq!(notices.next().await, Some(Notice::Wakes));
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 1);
    db.store.set_quotas(&acme, Quotas::NONE).await.expect("none");
    assert_eq!(claim(&db.store, &lease, 10).await.len(), 1);
}

async fn tenants_that_are_due_share_a_claim(db: TestDb) {
    let acme = create(&db, "acme", Quotas { running: Some(100), ..Quotas::NONE }).await;
    let bolt = create(&db, "bolt", Quotas::NONE).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 20).await;
    db.advance(Duration::from_secs(1));
    start(&db.store, &bolt, 20).await;
    start(&db.store, &db::tenant(), 1).await;
    let claims = db.store.claim_due(&lease, 9, db::LAUNCH).await.expect("claims");
    assert_eq!(per_tenant(&claims.claims), [("acme", 3), ("bolt", 3), ("default", 1)].into());
    let rest = claim(&db.store, &lease, 9).await;
    assert_eq!(per_tenant(&rest), [("acme", 5), ("bolt", 4)].into(), "what one leaves the others take");
}

async fn priorities_hold_across_tenants(db: TestDb) {
    let acme = create(&db, "acme", RUNNING_2).await;
    let lease = db.node("n").await;
    start(&db.store, &acme, 1).await;
    db.advance(Duration::from_secs(1));
    db.store.start(StartRequest { priority: 9, ..db::request("high") }).await.expect("a start");
    let order: Vec<String> = claim(&db.store, &lease, 1).await.iter().map(|c| c.id.to_string()).collect();
    assert_eq!(order, ["high"]);
    assert_eq!(per_tenant(&claim(&db.store, &lease, 1).await), [("acme", 1)].into());
}

async fn starts_of_many_tenants_and_claims_do_not_wait_in_a_circle(db: TestDb) {
    let quotas = Quotas { running: Some(3), stored: Some(1_000), starts_per_second: Some(1_000) };
    let mut tenants = Vec::new();
    for n in 0..4 {
        tenants.push(create(&db, &format!("t{n}"), quotas).await);
    }
    let other = db.another().await;
    let (a, b) = (db.node("a").await, db.node("b").await);
    let begin = async |store: &Store, from: usize| {
        let starts = (from..from + 40).map(|n| {
            let (store, request) = (store.clone(), request(&tenants[n % 4], &format!("i{n}")));
            async move { store.start(request).await.expect("a start") }
        });
        futures_util::future::join_all(starts).await
    };
    let work = async |store: &Store, lease: &NodeLease| {
        let mut done = 0;
        for _ in 0..200 {
            for claim in claim(store, lease, 4).await {
                let session = store.register(&claim.token).await.expect("registered").session;
                store.end(&session, db::completed()).await.expect("ends");
                done += 1;
            }
        }
        done
    };
    let (_, _, one, two) =
        tokio::join!(begin(&db.store, 0), begin(&other, 40), work(&db.store, &a), work(&other, &b));
    let rest = work(&db.store, &a).await;
    assert_eq!(one + two + rest, 80, "each start once, none stuck");
}
