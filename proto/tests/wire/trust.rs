//! A client that knows its authority by the certificate, and one that knows the fingerprint alone.

use dormouse_proto::call::ManagementProtocol;
use dormouse_proto::endpoint::{self, CORE_NAME, ConnectError, ENVIRONMENT_NAME, Identity, Transport};
use dormouse_proto::identity::{Authority, Role};
use dormouse_proto::trust::{Distrust, Fingerprint, Trust};
use quinn::Endpoint;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tempfile::TempDir;

use crate::pair::{LOOPBACK, certificate, soon};

/// An authority and a folder that keeps it.
struct Cluster {
    folder: TempDir,
    authority: Authority,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::open_or_create(folder.path()).expect("an authority");
        Self { folder, authority }
    }

    fn pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_pem(self.pem()).expect("a certificate")
    }

    /// An environment with its ordinary certificate.
    fn server(&self) -> Endpoint {
        serve(&self.authority.identity(Role::Environment).expect("a certificate"), self.pem())
    }
}

fn serve(identity: &Identity, sent: &str) -> Endpoint {
    endpoint::server_endpoint::<ManagementProtocol>(LOOPBACK, identity, Some(sent)).expect("a server")
}

/// What comes of connecting to `server`.
async fn try_out(server: &Endpoint, trust: Trust<'_>, shown: Option<&Identity>) -> Result<(), Distrust> {
    let client = endpoint::client_endpoint().expect("a client");
    let config = endpoint::client_config_with::<ManagementProtocol>(trust, shown, &Transport::default());
    let address = server.local_addr().expect("bound").to_string();
    let accept = async { server.accept().await.expect("a client").await };
    let connect = endpoint::connect(&client, config.expect("TLS"), &address, ENVIRONMENT_NAME);
    let (connected, accepted) = soon("the handshake", async { tokio::join!(connect, accept) }).await;
    match (connected, accepted) {
        (Ok(_), Ok(_)) => Ok(()),
        // The client believed that it was done: it hears afterwards.
        (Ok(connection), Err(_)) => {
            let reason = soon("the refusal", connection.closed()).await;
            Err(Distrust::of(&reason).unwrap_or_else(|| panic!("{reason}")))
        }
        (Err(ConnectError::Untrusted { distrust, .. }), _) => Err(distrust),
        (Err(error), _) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_fingerprint_is_as_good_as_the_certificate() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = ours.server();
    for (trust, expected) in [
        (Trust::Authority(ours.pem()), Ok(())),
        (Trust::Fingerprint(ours.fingerprint()), Ok(())),
        (Trust::Authority(theirs.pem()), Err(Distrust::ServerAuthority)),
        (Trust::Fingerprint(theirs.fingerprint()), Err(Distrust::ServerAuthority)),
    ] {
        assert_eq!(try_out(&server, trust, None).await, expected, "{trust:?}");
    }
}

/// The authority's certificate is public: whoever sends it along has not become the authority.
#[tokio::test]
async fn a_stranger_who_sends_the_right_authority_is_not_believed() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let stranger = theirs.authority.identity(Role::Environment).expect("a certificate");
    let server = serve(&stranger, ours.pem());
    for trust in [Trust::Fingerprint(ours.fingerprint()), Trust::Authority(ours.pem())] {
        assert!(try_out(&server, trust, None).await.is_err(), "{trust:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_servers_certificate_is_told_apart() {
    let ours = Cluster::new();
    let made = |name, usage, days_left| certificate(ours.folder.path(), name, usage, days_left);
    for (identity, expected) in [
        (made(ENVIRONMENT_NAME, ServerAuth, 1), Ok(())),
        (made(ENVIRONMENT_NAME, ServerAuth, -1), Err(Distrust::ServerExpired)),
        (made(CORE_NAME, ServerAuth, 1), Err(Distrust::ServerName)),
        (made(ENVIRONMENT_NAME, ClientAuth, 1), Err(Distrust::Other)),
    ] {
        let server = serve(&identity, ours.pem());
        for trust in [Trust::Authority(ours.pem()), Trust::Fingerprint(ours.fingerprint())] {
            assert_eq!(try_out(&server, trust, None).await, expected, "{trust:?}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_clients_certificate_is_told_apart() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = ours.server();
    let made = |name, usage, days_left| certificate(ours.folder.path(), name, usage, days_left);
    for (shown, expected) in [
        (theirs.authority.identity(Role::Administrator).expect("a certificate"), Distrust::ClientAuthority),
        (made("administrator.dormouse", ClientAuth, -1), Distrust::ClientExpired),
        (made("administrator.dormouse", ServerAuth, 1), Distrust::ClientCertificate),
        (ours.authority.identity(Role::Core).expect("a certificate"), Distrust::ClientCertificate),
    ] {
        let trust = Trust::Authority(ours.pem());
        assert_eq!(try_out(&server, trust, Some(&shown)).await, Err(expected));
    }
}

#[test]
fn a_fingerprint_is_read_as_it_is_printed_and_as_others_print_it() {
    let fingerprint = Cluster::new().fingerprint();
    let text = fingerprint.to_string();
    assert_eq!(text.parse(), Ok(fingerprint));
    let digits = text.strip_prefix("sha256:").expect("its prefix").to_uppercase();
    let pairs: Vec<_> = digits.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair)).collect();
    assert_eq!(format!("sha256:{}", pairs.join(":")).parse(), Ok(fingerprint));
    for wrong in
        ["", "sha256:", &digits, &text[..text.len() - 1], &text.replace("sha256", "sha1"), "sha256:é"]
    {
        assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
    }
}
