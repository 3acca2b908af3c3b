//! Certificates that are replaced while a server runs.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use dormouse_proto::call::InstanceProtocol;
use dormouse_proto::endpoint::{self, CORE_NAME, Identity, Transport};
use dormouse_proto::identity::renewal::Renewal;
use dormouse_proto::identity::{Authority, IdentityError, Role};
use quinn::{Connection, Endpoint};
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;

use crate::pair::{LOOPBACK, certificate, soon};

/// What the server at the other end proved itself by.
fn shown_by(connection: &Connection) -> Vec<u8> {
    let chain = connection.peer_identity().expect("a certificate");
    chain.downcast::<Vec<CertificateDer<'static>>>().expect("a chain")[0].to_vec()
}

async fn connect(client: &Endpoint, server: &Endpoint, authority: &Authority) -> (Connection, Connection) {
    let config = endpoint::client_config::<InstanceProtocol>(authority.certificate_pem(), None).expect("TLS");
    let address = server.local_addr().expect("bound").to_string();
    let accept = async { server.accept().await.expect("a client").await.expect("a handshake") };
    let (client, server) = tokio::join!(endpoint::connect(client, config, &address, CORE_NAME), accept);
    (client.expect("trusted"), server)
}

/// A server that follows its folder.
fn serve(authority: &Arc<Authority>, tasks: &mut JoinSet<()>) -> Endpoint {
    let identity = authority.identity(Role::Core).expect("a certificate");
    let server = endpoint::server_endpoint::<InstanceProtocol>(LOOPBACK, &identity, None).expect("a server");
    let (renewal, following) = (Renewal::new(Arc::clone(authority), Role::Core, &identity), server.clone());
    tasks.spawn(async move {
        let never = renewal.run(|identity: &Identity| {
            let config = endpoint::server_config::<InstanceProtocol>(identity, None, &Transport::default())?;
            following.set_server_config(Some(config));
            Ok(())
        });
        match never.await {}
    });
    server
}

/// Connects until something else than `old` is shown.
async fn until_renewed(client: &Endpoint, server: &Endpoint, authority: &Authority, old: &[u8]) -> Vec<u8> {
    soon("the new certificate", async {
        loop {
            let shown = shown_by(&connect(client, server, authority).await.0);
            if shown != old {
                return shown;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_replaced_are_taken_over_and_connections_that_stand_go_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (home, place) = (folder.path().join("home"), folder.path().join("place"));
    let issuer = Authority::open_or_create(&home).expect("an authority");
    issuer.issue(&place, "oak", false).expect("issued");
    let authority = Arc::new(Authority::open(&place).expect("readable").expect("there"));
    let mut tasks = JoinSet::new();
    let server = serve(&authority, &mut tasks);
    let client = endpoint::client_endpoint().expect("a client");
    let (standing, accepted) = connect(&client, &server, &authority).await;
    let first = shown_by(&standing);

    // Half of the next pair: the old one goes on.
    let next = folder.path().join("next");
    issuer.issue(&next, "oak", false).expect("issued");
    fs::copy(next.join("core.pem"), place.join("core.pem")).expect("copied");
    let half = authority.identity(Role::Core);
    assert!(matches!(half, Err(IdentityError::KeyElsewhere { role: "core", .. })), "{half:?}");
    authority.look_again();
    assert_eq!(shown_by(&connect(&client, &server, &authority).await.0), first);

    fs::copy(next.join("core.key"), place.join("core.key")).expect("copied");
    authority.look_again();
    let second = until_renewed(&client, &server, &authority, &first).await;

    // Issued into the folder itself, as a renewal.
    issuer.issue(&place, "oak", false).expect("issued again");
    authority.look_again();
    until_renewed(&client, &server, &authority, &second).await;

    let mut stream = standing.open_bi().await.expect("the first connection stands").0;
    stream.write_all(b"still here").await.expect("written");
    stream.finish().expect("once");
    let mut heard = soon("a stream", accepted.accept_bi()).await.expect("a stream").1;
    assert_eq!(heard.read_to_end(100).await.expect("read"), b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_key_is_a_certificate_renews_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Arc::new(Authority::open_or_create(folder.path()).expect("an authority"));
    let mut tasks = JoinSet::new();
    let server = serve(&authority, &mut tasks);
    let client = endpoint::client_endpoint().expect("a client");
    let first = shown_by(&connect(&client, &server, &authority).await.0);
    put(folder.path(), &certificate(folder.path(), CORE_NAME, ServerAuth, 1));
    authority.look_again();
    until_renewed(&client, &server, &authority, &first).await;
    let leaf = authority.leaf(Role::Core).expect("readable").expect("there");
    assert!(leaf.left().as_secs() > 300 * 24 * 60 * 60, "{leaf:?}");
}

#[test]
fn certificates_are_issued_without_the_authoritys_key_and_only_into_their_own_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let ours = Authority::open_or_create(&path("ours")).expect("an authority");
    let theirs = Authority::open_or_create(&path("theirs")).expect("another authority");
    ours.issue(&path("oak"), "oak", true).expect("issued");
    assert!(!path("oak").join("authority.key").exists());
    for entry in fs::read_dir(path("oak")).expect("the folder") {
        use std::os::unix::fs::PermissionsExt;
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    let joined = Authority::open(&path("oak")).expect("readable").expect("there");
    for role in Role::ALL {
        joined.identity(role).expect("usable");
    }
    for (authority, into) in [(&theirs, "oak"), (&theirs, "ours"), (&ours, "ours")] {
        let refused = authority.issue(&path(into), "oak", false);
        assert!(matches!(refused, Err(IdentityError::Occupied { .. })), "{into}: {refused:?}");
    }
    assert!(matches!(joined.issue(&path("elm"), "elm", false), Err(IdentityError::NoKey { .. })));
    assert!(!path("elm").exists());

    // A foreign authority.pem beside our key would sign what nobody accepts.
    fs::copy(path("theirs").join("authority.pem"), path("ours").join("authority.pem")).expect("copied");
    let refused = Authority::open(&path("ours"));
    assert!(matches!(refused, Err(IdentityError::ForeignKey { .. })), "{refused:?}");
}

fn put(folder: &Path, identity: &Identity) {
    for (name, text) in [("core.key", &identity.key_pem), ("core.pem", &identity.certificate_pem)] {
        fs::write(folder.join(name), text).expect("written");
    }
}
