//! Tenants and their tokens.

use std::time::Duration;

use dormouse_core::{
    domain::{
        access::{Quotas, Role, TokenName, TokenSecret},
        id::Tenant,
    },
    store::{NewToken, Notice, Standing},
};

use crate::db::{self, TestDb, code};

contract! {
    the_default_tenant_is_always_there,
    a_tenant_is_created_once,
    quotas_are_set_all_at_once,
    quotas_have_bounds,
    a_token_is_found_by_its_secret_only,
    a_token_expires_by_the_databases_clock,
    a_revoked_token_says_since_when,
    a_token_is_made_once_and_its_name_may_be_used_again,
    tokens_belong_to_one_tenant,
    a_token_never_makes_an_administrator_of_the_cluster,
    whoever_remembers_tokens_is_told,
}

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).expect("a tenant's name")
}

fn token_name(name: &str) -> TokenName {
    TokenName::parse(name).expect("a token's name")
}

fn secret(n: u8) -> TokenSecret {
    TokenSecret::from_random([n; 32])
}

fn new_token(name: &str, n: u8) -> NewToken {
    let hash = secret(n).hash();
    NewToken { tenant: db::tenant(), name: token_name(name), role: Role::Operator, valid: None, hash }
}

async fn standing(db: &TestDb, n: u8) -> Option<Standing> {
    db.store.token(secret(n).hash()).await.expect("a look").map(|(_, standing)| standing)
}

async fn the_default_tenant_is_always_there(db: TestDb) {
    let tenants = db.store.tenants().await.expect("a list");
    let names: Vec<_> = tenants.iter().map(|found| found.tenant.as_str()).collect();
    assert_eq!(names, ["default"]);
    assert_eq!(tenants[0].quotas, Quotas::NONE);
    let again = db.another().await;
    assert_eq!(again.tenants().await.expect("a list").len(), 1);
}

async fn a_tenant_is_created_once(db: TestDb) {
    let quotas = Quotas { running: Some(3), ..Quotas::NONE };
    let first = db.store.create_tenant(tenant("acme"), quotas).await.expect("created");
    db.advance(Duration::from_secs(1));
    assert_eq!(db.store.create_tenant(tenant("acme"), quotas).await.expect("the same again"), first);
    let other = db.store.create_tenant(tenant("acme"), Quotas::NONE).await;
    assert_eq!(code(other), "ALREADY_EXISTS");
    assert_eq!(db.store.tenant(&tenant("acme")).await.expect("found"), first);
    assert_eq!(code(db.store.tenant(&tenant("nobody")).await), "NOT_FOUND");
}

async fn quotas_are_set_all_at_once(db: TestDb) {
    let all = Quotas { running: Some(1), stored: Some(2), starts_per_second: Some(3) };
    db.running("b").await;
    db.start("a").await;
    let set = db.store.set_quotas(&db::tenant(), all).await.expect("set");
    assert_eq!((set.quotas, set.running, set.stored), (all, 1, 2), "what is beyond a quota stays");
    assert_eq!(db.store.set_quotas(&db::tenant(), Quotas::NONE).await.expect("set").quotas, Quotas::NONE);
    assert_eq!(code(db.store.set_quotas(&tenant("nobody"), all).await), "NOT_FOUND");
}

async fn quotas_have_bounds(db: TestDb) {
    for quota in [0, Quotas::MAX + 1, u64::MAX] {
        let quotas = Quotas { stored: Some(quota), ..Quotas::NONE };
        assert_eq!(code(db.store.create_tenant(tenant("acme"), quotas).await), "INVALID_ARGUMENT");
    }
    let most = Quotas { starts_per_second: Some(Quotas::MAX), ..Quotas::NONE };
    db.store.create_tenant(tenant("acme"), most).await.expect("the largest quota");
}

async fn a_token_is_found_by_its_secret_only(db: TestDb) {
    let made = db.store.create_token(new_token("ci", 1)).await.expect("made");
    let (found, standing) = db.store.token(secret(1).hash()).await.expect("a look").expect("known");
    assert_eq!((&found, standing), (&made, Standing::Valid { left: None }));
    assert_eq!((made.tenant, made.role, made.created_at), (db::tenant(), Role::Operator, db::START));
    assert_eq!(db.store.token(secret(2).hash()).await.expect("a look"), None);
}

async fn a_token_expires_by_the_databases_clock(db: TestDb) {
    let valid = Some(Duration::from_mins(1));
    db.store.create_token(NewToken { valid, ..new_token("ci", 1) }).await.expect("made");
    db.advance(Duration::from_secs(59));
    let left = Some(Duration::from_secs(1));
    assert_eq!(standing(&db, 1).await, Some(Standing::Valid { left }));
    db.advance(Duration::from_secs(1));
    let at = db::START + Duration::from_mins(1);
    assert_eq!(standing(&db, 1).await, Some(Standing::Expired { at }));
}

async fn a_revoked_token_says_since_when(db: TestDb) {
    db.store.create_token(new_token("ci", 1)).await.expect("made");
    db.advance(Duration::from_secs(5));
    let at = db::START + Duration::from_secs(5);
    for _ in 0..2 {
        let revoked = db.store.revoke_token(&db::tenant(), &token_name("ci")).await.expect("revoked");
        assert_eq!(revoked.revoked_at, Some(at));
        db.advance(Duration::from_secs(5));
    }
    assert_eq!(standing(&db, 1).await, Some(Standing::Revoked { at }));
    assert_eq!(code(db.store.revoke_token(&db::tenant(), &token_name("none")).await), "NOT_FOUND");
}

async fn a_token_is_made_once_and_its_name_may_be_used_again(db: TestDb) {
    let first = db.store.create_token(new_token("ci", 1)).await.expect("made");
    assert_eq!(db.store.create_token(new_token("ci", 1)).await.expect("the same again"), first);
    assert_eq!(code(db.store.create_token(new_token("ci", 2)).await), "ALREADY_EXISTS");
    db.store.revoke_token(&db::tenant(), &token_name("ci")).await.expect("revoked");
    db.store.create_token(new_token("ci", 2)).await.expect("takes the place of the revoked one");
    assert_eq!(standing(&db, 1).await, None, "replaced");
    assert_eq!(standing(&db, 2).await, Some(Standing::Valid { left: None }));
    assert_eq!(db.store.tokens(&db::tenant()).await.expect("a list").len(), 1);
}

async fn tokens_belong_to_one_tenant(db: TestDb) {
    let acme = NewToken { tenant: tenant("acme"), ..new_token("ci", 2) };
    assert_eq!(code(db.store.create_token(acme.clone()).await), "NOT_FOUND");
    assert_eq!(code(db.store.tokens(&tenant("acme")).await), "NOT_FOUND");
    db.store.create_tenant(tenant("acme"), Quotas::NONE).await.expect("created");
    db.store.create_token(acme).await.expect("made");
    db.store.create_token(new_token("ci", 1)).await.expect("the same name in another tenant");
    db.store.revoke_token(&tenant("acme"), &token_name("ci")).await.expect("revoked");
    assert_eq!(standing(&db, 1).await, Some(Standing::Valid { left: None }), "the other tenant's stays");
    let listed = db.store.tokens(&db::tenant()).await.expect("a list");
    assert_eq!(listed.iter().map(|token| &token.tenant).collect::<Vec<_>>(), [&db::tenant()]);
}

async fn a_token_never_makes_an_administrator_of_the_cluster(db: TestDb) {
    let token = NewToken { role: Role::Cluster, ..new_token("ci", 1) };
    assert_eq!(code(db.store.create_token(token).await), "INVALID_ARGUMENT");
    assert_eq!(standing(&db, 1).await, None);
}

async fn whoever_remembers_tokens_is_told(db: TestDb) {
    let mut notices = db.store.notices();
    let mut told = async || loop {
        match notices.next().await {
            // Somebody begins to hear notices, and does not know what was told before.
            Some(Notice::Everything) => {}
            notice => break notice,
        }
    };
    db.store.create_token(new_token("ci", 1)).await.expect("made");
    assert_eq!(told().await, Some(Notice::Tokens));
    db.store.revoke_token(&db::tenant(), &token_name("ci")).await.expect("revoked");
    assert_eq!(told().await, Some(Notice::Tokens));
}
