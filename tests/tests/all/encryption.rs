//! The connection to PostgreSQL is as encrypted as its address asks, or there is none.

use std::{fs, path::Path, process::Command};

use dormouse_management_sdk::{StartInstance, Status};
use dormouse_proto::endpoint::Identity;
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Layout},
    postgres::Server,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use sqlx::{Connection as _, PgConnection};

/// A certificate for a server at 127.0.0.1; its authority's is written to `authority`. Not of our own kind: those have
/// keys that OpenSSL does not read.
fn certified(authority: &Path) -> Identity {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own_key = key();
    let own = params.self_signed(&own_key).expect("a certificate");
    fs::write(authority, own.pem()).expect("own directory");
    let leaf_key = key();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(params, own_key)).expect("a certificate");
    Identity { certificate_pem: leaf.pem(), key_pem: leaf_key.serialize_pem() }
}

/// What `dormouse migrate` says to this address; it waits for nobody.
#[expect(clippy::disallowed_methods, reason = "runs the command as a person does")]
fn migrate(folder: &Path, url: &str) -> Result<(), String> {
    let mut command = Command::new(binary("dormouse"));
    command.args(["migrate", "--data-dir"]).arg(folder).args(["--database", url]);
    let output = command.output().expect("it starts");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[tokio::test]
async fn a_connection_is_as_encrypted_as_its_address_asks() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, other, data] = ["ours.pem", "other.pem", "data"].map(|name| folder.path().join(name));
    fs::create_dir(&data).expect("own directory");
    let identity = certified(&ours);
    certified(&other);
    let (_server, port) = Server::start_at_port(Some(&identity));
    let url = |options: &str| format!("postgres://postgres@127.0.0.1:{port}/postgres?{options}");
    let with = |mode: &str, root: &Path| url(&format!("sslmode={mode}&sslrootcert={}", root.display()));
    let accepted = [
        url("sslmode=disable"),
        url("sslmode=prefer"),
        url("sslmode=require"),
        with("verify-ca", &ours),
        with("verify-full", &ours),
    ];
    for accepted in accepted {
        migrate(&data, &accepted).unwrap_or_else(|said| panic!("{accepted}: {said}"));
    }
    let another_name = with("verify-full", &ours).replace("127.0.0.1", "localhost");
    for refused in [url("sslmode=verify-ca"), with("verify-ca", &other), another_name] {
        let said = migrate(&data, &refused).expect_err(&refused);
        assert!(said.contains("as encrypted as sslmode asks"), "{refused}: {said}");
    }

    // The services' own connections.
    let cluster = Cluster::up_at(Layout::Together, with("verify-full", &ours)).await;
    cluster.push("sleeper").await;
    let input = serde_json::json!({ "sleeps": 1, "pause_ms": 1 });
    cluster.start(StartInstance::of("sleeper").id("encrypted").input(&input).expect("JSON")).await;
    cluster.until_ended("encrypted", Status::Completed).await;
    let mut person = PgConnection::connect(&url("sslmode=disable")).await.expect("it answers");
    let ours = "SELECT BOOL_AND(s.ssl), COUNT(*) FROM pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid)
                 WHERE a.application_name = 'dormouse'";
    let (encrypted, connections): (bool, i64) =
        sqlx::query_as(ours).fetch_one(&mut person).await.expect("a row");
    assert!(encrypted && connections > 3, "of {connections} connections some are not encrypted");
}

#[tokio::test]
async fn a_server_that_does_not_encrypt_is_refused_where_it_must() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, port) = Server::start_at_port(None);
    let url = |mode: &str| format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode={mode}");
    migrate(folder.path(), &url("prefer")).expect("it need not");
    let said = migrate(folder.path(), &url("require")).expect_err("it must");
    assert!(said.contains("as encrypted as sslmode asks"), "{said}");
}
