//! Two ends on loopback, with an authority of their own.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dormouse_proto::call::{Callee, Caller, InstanceProtocol, Protocol, Pushes};
use dormouse_proto::endpoint::{self, CORE_NAME, ConnectError, Identity};
use dormouse_proto::identity::{Authority, Role};
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{
    Checkpoint, CheckpointStored, ClientFrame, Hello, OperationName, Payload, ServerFrame, StoredCheckpoint,
    checkpoint, stored_checkpoint,
};
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server's endpoint and what a client needs to reach it.
pub(crate) struct Place {
    pub(crate) authority: Authority,
    pub(crate) server: Endpoint,
    pub(crate) client: Endpoint,
    _folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::open_or_create(&folder.path().join("pki")).expect("an authority");
        let identity = authority.identity(Role::Core).expect("core's certificate");
        let server =
            endpoint::server_endpoint::<InstanceProtocol>(LOOPBACK, &identity, None).expect("a server");
        let client = endpoint::client_endpoint().expect("a client");
        Self { authority, server, client, _folder: folder }
    }

    pub(crate) fn address(&self) -> String {
        self.server.local_addr().expect("the server is bound").to_string()
    }

    /// What a client gets that trusts `authority_pem` and speaks `P`.
    pub(crate) async fn connect<P: Protocol>(
        &self,
        authority_pem: &str,
        identity: Option<&Identity>,
        name: &str,
    ) -> Result<Connection, ConnectError> {
        let config = endpoint::client_config::<P>(authority_pem, identity).expect("a configuration");
        endpoint::connect(&self.client, config, &self.address(), name).await
    }

    /// Both ends of a connection, before any stream.
    pub(crate) async fn connection(&self) -> (Connection, Connection) {
        let pem = self.authority.certificate_pem();
        let accept = async { self.server.accept().await.expect("a client").await.expect("a handshake") };
        let (client, server) = tokio::join!(self.connect::<InstanceProtocol>(pem, None, CORE_NAME), accept);
        (client.expect("the server is trusted"), server)
    }

    /// Both ends, after a hello that was accepted.
    pub(crate) async fn pair(&self) -> Pair {
        let (client, server) = self.connection().await;
        let (opened, callee) = tokio::join!(Caller::open(client.clone(), hello(1)), Callee::accept(server));
        let (caller, pushes) = opened.expect("a stream");
        if let Ok(callee) = &callee {
            callee.trust();
        }
        Pair { caller, pushes, callee: callee.expect("a hello"), connection: client }
    }
}

pub(crate) struct Pair {
    pub(crate) caller: Caller<InstanceProtocol>,
    pub(crate) pushes: Pushes<InstanceProtocol>,
    pub(crate) callee: Callee<InstanceProtocol>,
    pub(crate) connection: Connection,
}

pub(crate) fn hello(version: u32) -> ClientFrame {
    Operation::Hello(Hello { protocol_version: version, client: "a test".to_owned() }).into()
}

/// A request with a payload of `bytes`, named `name`.
pub(crate) fn request(name: &str, bytes: usize) -> ClientFrame {
    let payload =
        Payload { data: vec![7; bytes].into(), encoding: "raw".to_owned(), type_name: String::new() };
    Operation::Checkpoint(Checkpoint {
        operation: Some(operation(name)),
        kind: "checkpoint".to_owned(),
        value: Some(checkpoint::Value::Payload(payload)),
        note: String::new(),
    })
    .into()
}

/// What a server answers that stored just this.
pub(crate) fn echo(request: &ClientFrame) -> ServerFrame {
    let Some(Operation::Checkpoint(Checkpoint { operation, kind, value, .. })) = &request.operation else {
        panic!("a test sent {request:?}");
    };
    let Some(checkpoint::Value::Payload(payload)) = value else { panic!("a test sent {value:?}") };
    let stored = StoredCheckpoint {
        operation: operation.clone(),
        kind: kind.clone(),
        value: Some(stored_checkpoint::Value::Payload(payload.clone())),
        ..StoredCheckpoint::default()
    };
    Outcome::Checkpoint(CheckpointStored { stored: Some(stored), existed: false, now: 0 }).into()
}

/// The name and the payload's size in an answer of [`echo`].
pub(crate) fn told(answer: &ServerFrame) -> (String, usize) {
    let Some(Outcome::Checkpoint(CheckpointStored { stored: Some(stored), .. })) = &answer.outcome else {
        panic!("the server answered {answer:?}");
    };
    let Some(stored_checkpoint::Value::Payload(payload)) = &stored.value else { panic!("no payload") };
    (stored.operation.clone().expect("a name").name, payload.data.len())
}

/// A certificate by the authority in `folder`, for `name`, that is valid for so many more days.
#[expect(clippy::disallowed_methods, reason = "certificates expire by the machine's clock")]
pub(crate) fn certificate(
    folder: &Path,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    days_left: i64,
) -> Identity {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a file");
    let authority_key = KeyPair::from_pem(&read("authority.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read("authority.pem"), authority_key).expect("an authority");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let day = Duration::from_hours(24);
    let now = date_time_ymd(1970, 1, 1) + now;
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_before = now - day * 300;
    let left = day * u32::try_from(days_left.abs()).expect("small");
    params.not_after = if days_left < 0 { now - left } else { now + left };
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().expect("a key");
    let certificate_pem = params.signed_by(&key, &issuer).expect("a certificate").pem();
    Identity { certificate_pem, key_pem: key.serialize_pem() }
}

fn operation(name: &str) -> OperationName {
    OperationName { name: name.to_owned(), key: String::new(), slot: 0 }
}

/// A wait that must end: fails the test, and says which, instead of hanging.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_mins(1), future).await {
        Ok(output) => output,
        Err(error) => panic!("waited a minute for {what}: {error}"),
    }
}
