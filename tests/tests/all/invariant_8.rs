//! Invariant 8: an instance touches only itself, and nobody acts without a credential of the cluster.

use dormouse_management_sdk::{Client, Status, Target};
use dormouse_proto::{
    call::{Caller, ManagementProtocol, Protocol},
    endpoint,
    management::{ClientFrame, Health, Hello, client_frame::Operation},
};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw::{self, RawClient},
};

on_both! { invariant_8_a_token_opens_its_own_attempt_and_nothing_else, invariant_8_no_control_without_a_credential }

async fn invariant_8_a_token_opens_its_own_attempt_and_nothing_else(database: Database) {
    let cluster = Cluster::up(database).await;
    let (mine, other) = (Probe::start(&cluster, "mine").await, Probe::start(&cluster, "other").await);
    let (own, theirs) = (mine.document(1).await, other.document(1).await);

    let mut stolen_id = own.clone();
    stolen_id.instance_id.clone_from(&theirs.instance_id);
    let mut later_attempt = own.clone();
    later_attempt.attempt = 2;
    let mut invented = own.clone();
    invented.token = vec![7; own.token.len()];
    let mut shortened = own.clone();
    shortened.token.pop();
    let mut absent = own.clone();
    absent.token.clear();
    for (what, document) in [
        ("another instance's id", stolen_id),
        ("an attempt that is not the token's", later_attempt),
        ("an invented token", invented),
        ("half a token", shortened),
        ("no token", absent),
    ] {
        let client = RawClient::connect(&document).await;
        let refusal = client.ask(raw::registration(&document)).await.expect_err(what);
        assert!(["UNAUTHENTICATED", "INVALID_ARGUMENT"].contains(&&*refusal.code), "{what}: {refusal:?}");
        let refusal = client.ask(raw::save("x", b"x")).await.expect_err("a write without a session");
        assert!(!refusal.code.is_empty());
    }

    // Nothing of this has touched either of them.
    for probe in [&mine, &other] {
        let instance = cluster.get(&probe.id).await;
        assert_eq!((instance.status, instance.attempt), (Status::Pending, 1), "{}", probe.id);
        assert!(cluster.checkpoints(&probe.id).await.is_empty());
        drop(probe.register(1).await);
    }
}

async fn invariant_8_no_control_without_a_credential(database: Database) {
    let cluster = Cluster::up(database).await;
    let stranger = Cluster::up(Database::Sqlite).await;
    let address = std::fs::read_to_string(cluster.data_dir().join("environment.address")).expect("it is up");
    let address = address.trim().to_owned();

    // A certificate of another cluster's authority.
    let target = Target::data_dir(stranger.data_dir()).with_server(&address);
    Client::connect(target).await.expect_err("another cluster's administrator was let in");

    // The right authority and no certificate at all.
    let authority = std::fs::read_to_string(cluster.data_dir().join("pki/authority.pem")).expect("it is up");
    let config = endpoint::client_config::<ManagementProtocol>(&authority, None).expect("TLS");
    let endpoint = endpoint::client_endpoint().expect("a socket");
    let connected = endpoint::connect(&endpoint, config, &address, endpoint::ENVIRONMENT_NAME).await;
    // TLS 1.3 tells a client without a certificate after its handshake.
    if let Ok(connection) = connected {
        let hello = Hello { protocol_version: ManagementProtocol::VERSION, ..Hello::default() };
        let frame = |operation| ClientFrame { id: 0, operation: Some(operation) };
        if let Ok((caller, _)) =
            Caller::<ManagementProtocol>::open(connection, frame(Operation::Hello(hello))).await
        {
            let answer = caller.call(frame(Operation::Health(Health {}))).await;
            answer.expect_err("somebody without a certificate was answered");
        }
    }
    cluster.client().health().await.expect("the administrator is");
}
