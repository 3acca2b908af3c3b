//! Invariant 8 for controllers: without a credential that counts nobody gets anything, and a role gets what
//! is its own. Each operation of the protocol is tried with each credential.

use std::time::Duration;

use dormouse_management_sdk::{NewToken, Role};
use dormouse_proto::management::{self as wire, Error, client_frame::Operation, server_frame::Outcome};
use dormouse_tests::{
    cluster::{Cluster, Database},
    keyholder::{Key, Keyholder, every_operation},
    probe::Probe,
    raw, wait,
};

on_both! {
    invariant_8_who_has_no_credential_gets_nothing,
    invariant_8_a_role_may_do_its_own_and_nothing_more,
    invariant_8_nobody_gives_away_more_than_they_have,
    invariant_8_another_tenants_token_finds_nothing,
    a_revocation_holds_at_once,
    a_token_ends_at_its_time,
}

fn certificate(name: &str) -> Key {
    Key::Certificate(name.to_owned())
}

/// What a client with this key hears to one operation on a connection of its own.
async fn ask(cluster: &Cluster, key: &Key, operation: Operation) -> Result<Outcome, Error> {
    Keyholder::connect(&cluster.data_dir(), key).await?.ask(operation).await
}

/// The refusal, or else a failure that says what was answered.
fn refused(what: &str, operation: &Operation, answer: Result<Outcome, Error>) -> Error {
    match answer {
        Ok(outcome) => panic!("{what} asked for {operation:?} and was answered {outcome:?}"),
        Err(error) => error,
    }
}

async fn invariant_8_who_has_no_credential_gets_nothing(database: Database) {
    let cluster = Cluster::up(database).await;
    Probe::start(&cluster, "mine").await;
    let revoked = cluster.token("default", "revoked", Role::Admin).await;
    cluster.client().revoke_token(None, "revoked").await.expect("the administrator may");
    let short = NewToken {
        name: "short".to_owned(),
        role: Role::Admin,
        valid: Some(Duration::from_micros(1)),
        ..NewToken::default()
    };
    let expired = cluster.client().create_token(short).await.expect("the administrator may").secret;
    let valid = cluster.token("default", "valid", Role::Admin).await;
    let mut almost = valid.clone();
    almost.replace_range(valid.len() - 1.., if valid.ends_with('a') { "b" } else { "a" });
    for (what, key) in [
        ("nobody", Key::None),
        ("core", certificate("core")),
        ("an environment", certificate("environment")),
        ("a revoked token", Key::Token(revoked)),
        ("an expired token", Key::Token(expired)),
        ("a token with a wrong letter", Key::Token(almost)),
        ("a word", Key::Token("sesame".to_owned())),
        ("an attempt's token", Key::Token("dmt_".to_owned())),
    ] {
        for (operation, _) in every_operation("mine", "probe") {
            let answer = ask(&cluster, &key, operation.clone()).await;
            let error = refused(what, &operation, answer);
            assert_eq!(error.code, "UNAUTHENTICATED", "{what} asked for {operation:?}: {}", error.message);
        }
    }
    let tenants = cluster.client().tenants().await.expect("the administrator may");
    assert_eq!(tenants.iter().map(|tenant| &*tenant.name).collect::<Vec<_>>(), ["default"]);
    assert!(!cluster.get("mine").await.status.ended());
}

async fn invariant_8_a_role_may_do_its_own_and_nothing_more(database: Database) {
    let cluster = Cluster::up(database).await;
    for role in Role::ALL {
        let secret = cluster.token("acme", role.as_str(), role).await;
        let holder = Keyholder::connect(&cluster.data_dir(), &Key::Token(secret)).await;
        let holder = holder.expect("the token lets it in");
        for (operation, least) in every_operation("nothing", "nothing") {
            let answer = holder.ask(operation.clone()).await;
            let code = answer.as_ref().err().map(|error| error.code.as_str());
            let may = least.is_some_and(|least| least <= role);
            assert_eq!(code != Some("PERMISSION_DENIED"), may, "{role} asked for {operation:?}: {answer:?}");
            assert_ne!(code, Some("UNAUTHENTICATED"), "{role} asked for {operation:?}");
            if let (Err(error), false) = (answer, may) {
                let needed = least.map_or("cluster", Role::as_str);
                let message = &error.message;
                assert!(message.contains(&format!("needs the role {needed}")), "{message}");
                assert!(message.contains("dormouse") || message.contains("certificate"), "{message}");
            }
        }
    }
    let administrator = Keyholder::connect(&cluster.data_dir(), &certificate("administrator")).await;
    let administrator = administrator.expect("it is the administrator");
    for (operation, _) in every_operation("nothing", "nothing") {
        if let Err(error) = administrator.ask(operation.clone()).await {
            let denied = ["PERMISSION_DENIED", "UNAUTHENTICATED"].contains(&&*error.code);
            assert!(!denied, "the administrator asked for {operation:?}: {error:?}");
        }
    }
    match administrator.ask(Operation::Health(wire::Health {})).await {
        Ok(Outcome::Health(health)) => {
            assert_eq!((&*health.tenant, &*health.role), ("default", "cluster"));
        }
        other => panic!("health is {other:?}"),
    }
}

fn create(tenant: &str, name: &str, role: &str) -> Operation {
    let (tenant, name, role) = (tenant.to_owned(), name.to_owned(), role.to_owned());
    Operation::CreateToken(wire::CreateToken { tenant, name, role, valid_micros: 0 })
}

async fn invariant_8_nobody_gives_away_more_than_they_have(database: Database) {
    let cluster = Cluster::up(database).await;
    let secret = cluster.token("acme", "boss", Role::Admin).await;
    cluster.token("bolt", "ci", Role::Reader).await;
    let admin = Keyholder::connect(&cluster.data_dir(), &Key::Token(secret)).await.expect("let in");
    let bolt = || "bolt".to_owned();
    for operation in [
        create("bolt", "forged", "reader"),
        create("default", "forged", "reader"),
        create("nobody", "forged", "reader"),
        create("", "forged", "cluster"),
        Operation::Tokens(wire::ListTokens { tenant: bolt() }),
        Operation::RevokeToken(wire::RevokeToken { tenant: bolt(), name: "ci".to_owned() }),
    ] {
        let error = refused("an admin", &operation, admin.ask(operation.clone()).await);
        assert_eq!(error.code, "PERMISSION_DENIED", "{operation:?}: {}", error.message);
    }
    for role in ["reader", "operator", "admin"] {
        admin.ask(create("", role, role)).await.expect("its own tenant, no role above its own");
    }
    // The administrator gives away any role that a token can have, and no other.
    let administrator = Keyholder::connect(&cluster.data_dir(), &certificate("administrator")).await;
    let operation = create("acme", "forged", "cluster");
    let answer = administrator.expect("let in").ask(operation.clone()).await;
    assert_eq!(refused("the administrator", &operation, answer).code, "INVALID_ARGUMENT");
    for tenant in ["acme", "bolt", "default"] {
        let tokens = cluster.client().tokens(Some(tenant)).await.expect("the administrator may");
        assert!(
            tokens.iter().all(|token| token.name != "forged" && token.revoked_at.is_none()),
            "{tokens:?}"
        );
    }
}

async fn invariant_8_another_tenants_token_finds_nothing(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "mine").await;
    let (client, _) = probe.register(1).await;
    client.ask(raw::save("x", b"mine")).await.expect("it is the newest attempt");
    let before = cluster.get("mine").await;
    let secret = cluster.token("acme", "boss", Role::Admin).await;
    let admin = Keyholder::connect(&cluster.data_dir(), &Key::Token(secret)).await.expect("let in");
    for (operation, least) in every_operation("mine", "probe") {
        if least.is_none() {
            continue;
        }
        let answer = admin.ask(operation.clone()).await;
        let text = format!("{answer:?}");
        assert!(!text.contains("\"mine\"") || text.contains("NOT_FOUND"), "{operation:?} found {text}");
        assert!(!text.contains("probe:1"), "{operation:?} found {text}");
    }
    let after = cluster.get("mine").await;
    assert_eq!((after.version, after.status), (before.version, before.status));
    assert_eq!(cluster.client().images(None).await.expect("a list").len(), 1);
}

async fn a_revocation_holds_at_once(database: Database) {
    let cluster = Cluster::up(database).await;
    let secret = cluster.token("acme", "ci", Role::Admin).await;
    let controller = cluster.controller_with(&secret, "acme").await;
    Probe::start(&controller, "mine").await.document(1).await;
    let key = Key::Token(secret);
    let holder = Keyholder::connect(&cluster.data_dir(), &key).await.expect("let in");
    let polls = Keyholder::connect(&cluster.data_dir(), &key).await.expect("let in");
    holder.ask(Operation::Health(wire::Health {})).await.expect("it counts");

    // Asks nothing between the revocation and its end: only the long polls are under way.
    let for_micros = 30_000_000;
    let id = || "mine".to_owned();
    let waiting = polls.ask(Operation::Wait(wire::WaitInstance { id: id(), for_micros, seen_version: 0 }));
    let following = polls.ask(Operation::Events(wire::ListEvents {
        id: id(),
        after: 1_000_000,
        limit: 0,
        wait_micros: for_micros,
    }));
    let revoking = async {
        wait::until("the long polls are under way", async || {
            // They are sent on one connection before this is asked for on another.
            holder.ask(Operation::Get(wire::GetInstance { id: id() })).await.map_err(|error| error.message)
        })
        .await;
        cluster.client().revoke_token(Some("acme"), "ci").await.expect("the administrator may");
        for (operation, _) in every_operation("mine", "probe") {
            let error = refused("a revoked token", &operation, holder.ask(operation.clone()).await);
            assert_eq!(error.code, "UNAUTHENTICATED", "{operation:?}: {}", error.message);
        }
    };
    let (waited, followed, ()) = tokio::join!(waiting, following, revoking);
    for answer in [waited, followed] {
        let error = answer.expect_err("a long poll outlived its token");
        assert_eq!(error.code, "UNAUTHENTICATED", "{}", error.message);
        assert!(error.message.contains("was revoked at"), "{}", error.message);
    }
    let again = ask(&cluster, &key, Operation::Health(wire::Health {})).await;
    assert_eq!(again.expect_err("it is revoked").code, "UNAUTHENTICATED");
}

async fn a_token_ends_at_its_time(database: Database) {
    let cluster = Cluster::up(database).await;
    let token =
        NewToken { name: "short".to_owned(), valid: Some(Duration::from_secs(2)), ..NewToken::default() };
    let made = cluster.client().create_token(token).await.expect("the administrator may");
    let holder = Keyholder::connect(&cluster.data_dir(), &Key::Token(made.secret)).await.expect("let in");
    let ended =
        wait::until("the token ends", async || match holder.ask(Operation::Health(wire::Health {})).await {
            Ok(_) => Err("it counts"),
            Err(error) => Ok(error),
        })
        .await;
    assert_eq!(ended.code, "UNAUTHENTICATED");
    assert!(ended.message.contains("expired at"), "{}", ended.message);
}
