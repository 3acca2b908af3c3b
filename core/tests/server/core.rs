//! A core for one test, and a client that speaks to it by hand.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dormouse_core::server::{self, Handle, Options, Server};
use dormouse_core::store::{Claim, Store};
use dormouse_proto::call::{CallError, Caller, InstanceProtocol, Pushes};
use dormouse_proto::endpoint::{self, CORE_NAME};
use dormouse_proto::identity::Authority;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{
    Checkpoint, CheckpointStored, ClientFrame, Error, Hello, Inbox, OperationName, Payload, RegisterInstance,
    Registered, ServerFrame, checkpoint,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::db::TestDb;

/// Runs each case on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::sqlite().await).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::postgres().await).await })+
        }
    };
}

/// So long that no test sees it: what a test waits for must come by a notice.
const NEVER: Duration = Duration::from_hours(1);

/// A running server.
pub(crate) struct Core {
    pub(crate) db: TestDb,
    pub(crate) handle: Handle,
    pub(crate) shutdown: CancellationToken,
    /// Ends the replica alone.
    pub(crate) replica_shutdown: CancellationToken,
    running: JoinSet<Result<(), server::Error>>,
    authority: Arc<Authority>,
    client: quinn::Endpoint,
    folder: TempDir,
}

impl Core {
    pub(crate) fn new(db: TestDb) -> Self {
        Self::with(db, |_| {})
    }

    pub(crate) fn with(db: TestDb, change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::open_or_create(&folder.path().join("pki")).expect("an authority");
        let authority = Arc::new(authority);
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        let mut options = options(&folder, &authority);
        change(&mut options);
        let handle = run(options, db.store.clone(), &shutdown, &mut running);
        let client = endpoint::client_endpoint().expect("a client");
        let replica_shutdown = CancellationToken::new();
        Self { db, handle, shutdown, replica_shutdown, running, authority, client, folder }
    }

    /// Another core on the same database, with another store: as in another process.
    pub(crate) async fn replica(&mut self) -> Handle {
        let mut options = options(&self.folder, &self.authority);
        options.address_file = self.folder.path().join("replica.address");
        options.id_file = self.folder.path().join("replica.id");
        run(options, self.db.another().await, &self.replica_shutdown, &mut self.running)
    }

    /// Waits until one server has ended as it was told to.
    pub(crate) async fn one_ended(&mut self) {
        let ended = soon("a server's end", self.running.join_next()).await.expect("one ran");
        ended.expect("no panic").expect("an orderly end");
    }

    /// Waits until every server has ended as it was told to.
    pub(crate) async fn ended(&mut self) {
        while let Some(ended) = soon("the server's end", self.running.join_next()).await {
            ended.expect("no panic").expect("an orderly end");
        }
    }

    /// Starts the server again in the same folder.
    pub(crate) fn restart(&mut self) {
        self.shutdown = CancellationToken::new();
        let options = options(&self.folder, &self.authority);
        self.handle = run(options, self.db.store.clone(), &self.shutdown, &mut self.running);
    }

    /// A connection that has said hello.
    pub(crate) async fn connect(&self) -> Client {
        self.connect_to(self.handle.address()).await
    }

    pub(crate) async fn connect_to(&self, address: SocketAddr) -> Client {
        self.try_connect_to(address).await.expect("core answers")
    }

    pub(crate) async fn try_connect_to(&self, address: SocketAddr) -> Result<Client, String> {
        let pem = self.authority.certificate_pem();
        let config = endpoint::client_config::<InstanceProtocol>(pem, None).expect("a configuration");
        let address = address.to_string();
        let connecting = endpoint::connect(&self.client, config, &address, CORE_NAME);
        let connection = soon("a handshake", connecting).await.map_err(|error| error.to_string())?;
        let hello = Hello { protocol_version: 1, client: "a test".to_owned() };
        let opened = Caller::open(connection, Operation::Hello(hello).into()).await;
        let (caller, pushes) = opened.map_err(|error| error.to_string())?;
        Ok(Client { caller, pushes })
    }

    /// An instance that was claimed.
    pub(crate) async fn claimed(&self, id: &str) -> Claim {
        let lease = self.db.node("node-a").await;
        self.db.start(id).await;
        self.db.claim_one(&lease).await
    }

    /// A connection that has registered for a fresh instance.
    pub(crate) async fn running(&self, id: &str) -> (Client, Claim) {
        let claim = self.claimed(id).await;
        let client = self.connect().await;
        client.register(&claim).await;
        (client, claim)
    }
}

fn options(folder: &TempDir, authority: &Arc<Authority>) -> Options {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let file = folder.path().join("core.address");
    Options { poll: NEVER, ..Options::new(any, file, Arc::clone(authority)) }
}

fn run(
    options: Options,
    store: Store,
    shutdown: &CancellationToken,
    running: &mut JoinSet<Result<(), server::Error>>,
) -> Handle {
    let server = Server::bind(options, store).expect("a server");
    let handle = server.handle();
    running.spawn(server.run(shutdown.clone()));
    handle
}

/// A process's end of a connection.
pub(crate) struct Client {
    pub(crate) caller: Caller<InstanceProtocol>,
    pub(crate) pushes: Pushes<InstanceProtocol>,
}

impl Client {
    pub(crate) async fn call(&self, operation: Operation) -> Result<Outcome, CallError> {
        let answer = soon("an answer", self.caller.call(operation.into())).await?;
        Ok(answer.outcome.expect("an outcome that this release knows"))
    }

    /// The answer, which is no refusal.
    pub(crate) async fn ask(&self, operation: Operation) -> Outcome {
        match self.call(operation).await.expect("the connection lives") {
            Outcome::Error(Error { code, message, .. }) => panic!("refused with {code}: {message}"),
            outcome => outcome,
        }
    }

    /// The refusal.
    pub(crate) async fn refused(&self, operation: Operation) -> Error {
        self.refused_frame(operation.into()).await
    }

    pub(crate) async fn refused_frame(&self, frame: ClientFrame) -> Error {
        let answer = soon("an answer", self.caller.call(frame)).await.expect("the connection lives");
        refusal(answer)
    }

    pub(crate) async fn register(&self, claim: &Claim) -> Registered {
        match self.ask(register(claim)).await {
            Outcome::Registered(registered) => registered,
            other => panic!("core answered {other:?}"),
        }
    }

    pub(crate) async fn save(&self, request: Checkpoint) -> CheckpointStored {
        match self.ask(Operation::Checkpoint(request)).await {
            Outcome::Checkpoint(stored) => stored,
            other => panic!("core answered {other:?}"),
        }
    }

    /// The next push, which is an inbox.
    pub(crate) async fn inbox(&mut self) -> Inbox {
        match self.pushed().await {
            Outcome::Inbox(inbox) => inbox,
            other => panic!("core pushed {other:?}"),
        }
    }

    pub(crate) async fn pushed(&mut self) -> Outcome {
        let push = soon("a push", self.pushes.next()).await.expect("a push before the end");
        push.outcome.expect("an outcome that this release knows")
    }

    /// Why the connection has ended.
    pub(crate) async fn ended(&self) -> String {
        soon("the connection's end", self.caller.closed()).await.to_string()
    }
}

pub(crate) fn register(claim: &Claim) -> Operation {
    Operation::Register(RegisterInstance {
        token: claim.token.0.to_vec(),
        instance_id: claim.id.as_str().to_owned(),
        attempt: claim.attempt.0,
        stream: false,
    })
}

pub(crate) fn refusal(frame: ServerFrame) -> Error {
    match frame.outcome {
        Some(Outcome::Error(error)) => error,
        other => panic!("core answered {other:?}"),
    }
}

pub(crate) fn operation(name: &str) -> OperationName {
    OperationName { name: name.to_owned(), key: String::new(), slot: 0 }
}

pub(crate) fn json(data: impl Into<Vec<u8>>) -> Payload {
    Payload { data: data.into().into(), encoding: "json".to_owned(), type_name: "a::Type".to_owned() }
}

pub(crate) fn step(name: &str, data: impl Into<Vec<u8>>) -> Checkpoint {
    checkpoint(name, "step", checkpoint::Value::Payload(json(data)))
}

pub(crate) fn checkpoint(name: &str, kind: &str, value: checkpoint::Value) -> Checkpoint {
    Checkpoint {
        operation: Some(operation(name)),
        kind: kind.to_owned(),
        value: Some(value),
        note: String::new(),
    }
}

/// A wait that must end: fails the test, and says which, instead of hanging.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_mins(1), future).await {
        Ok(output) => output,
        Err(error) => panic!("waited a minute for {what}: {error}"),
    }
}
