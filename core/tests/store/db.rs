//! A fresh database for each test, on SQLite and on PostgreSQL, with a clock that stands
//! still until the test sets it; and short words for what tests do often.

use std::{collections::BTreeMap, time::Duration};

use dormouse_core::{
    domain::{
        checkpoint::{self, NewCheckpoint, NewValue, Operation},
        id::{Digest, InstanceId, Key, Name, NodeId, Tenant},
        instance::{Life, Status},
        outcome::{Ending, ExitReason, ExitReport},
        payload::Payload,
        signal::NewSignal,
        time::Micros,
        wake::{Wait, Waits},
    },
    limits::Limits,
    store::{
        AttemptRef, Claim, Clock, Database, Error, Instance, Kind, ManualClock, NewImage, NewNode, NodeLease,
        Options, Registration, Result, Saved, Session, StartRequest, Store, Suspension,
    },
};

use crate::postgres;

/// Midnight of some day in 2026.
pub(crate) const START: Micros = Micros::seconds(1_790_000_000);
/// The launch deadline that tests claim with.
pub(crate) const LAUNCH: Duration = Duration::from_secs(30);

/// A store on a database of its own.
pub(crate) struct TestDb {
    pub(crate) store: Store,
    pub(crate) clock: ManualClock,
    pub(crate) options: Options,
    /// Removed when the test is over.
    _home: Home,
}

enum Home {
    Directory { _directory: tempfile::TempDir },
    Server { _database: postgres::TestDatabase },
}

/// A fresh SQLite file, with the default limits.
pub(crate) async fn sqlite() -> TestDb {
    sqlite_with(Limits::default()).await
}

/// A fresh schema on the test's PostgreSQL server, with the default limits.
pub(crate) async fn postgres() -> TestDb {
    postgres_with(Limits::default()).await
}

/// A fresh SQLite file.
pub(crate) async fn sqlite_with(limits: Limits) -> TestDb {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let database = Database::Sqlite(directory.path().join("dormouse.db"));
    TestDb::open(database, limits, Home::Directory { _directory: directory }).await
}

/// A fresh schema on the test's PostgreSQL server.
pub(crate) async fn postgres_with(limits: Limits) -> TestDb {
    let database = postgres::TestDatabase::create().await;
    let url = Database::Postgres(database.url().to_owned());
    TestDb::open(url, limits, Home::Server { _database: database }).await
}

impl TestDb {
    async fn open(database: Database, limits: Limits, home: Home) -> Self {
        let clock = ManualClock::new(START);
        let options =
            Options { limits, clock: Clock::Manual(clock.clone()), jitter: 0.0, ..Options::new(database) };
        let store = Store::open(options.clone()).await.expect("a fresh database opens");
        let db = Self { store, clock, options, _home: home };
        db.image("img", "1").await;
        db
    }

    /// A second store on the same database, as another process has one.
    pub(crate) async fn another(&self) -> Store {
        Store::open(self.options.clone()).await.expect("the database opens twice")
    }

    /// Stores an image version with the workflow "main".
    pub(crate) async fn image(&self, image: &str, version: &str) {
        let digest = Digest([version.len().to_le_bytes()[0].wrapping_add(version.as_bytes()[0]); 32]);
        let image = NewImage {
            tenant: tenant(),
            name: name(image),
            version: name(version),
            digest,
            size: 1,
            workflows: vec![name("main")],
            sdk_version: "0.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
            chunks: u32::from(self.store.kind() == Kind::Postgres),
        };
        if image.chunks > 0 {
            self.store.begin_image_bytes(&image).await.expect("begun");
            self.store.put_image_chunk(image.digest, 1, vec![0]).await.expect("a chunk is stored");
        }
        self.store.put_image(image).await.expect("an image is stored");
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Takes the lease of a node.
    pub(crate) async fn node(&self, id: &str) -> NodeLease {
        self.store.lease_node(new_node(id)).await.expect("a lease is taken")
    }

    /// Starts an instance of the image, due now.
    pub(crate) async fn start(&self, id_text: &str) -> InstanceId {
        self.store.start(request(id_text)).await.expect("a start");
        id(id_text)
    }

    /// Claims all that is due, at most `limit`.
    pub(crate) async fn claim(&self, lease: &NodeLease, limit: u32) -> Vec<Claim> {
        self.store.claim_due(lease, limit, LAUNCH).await.expect("a claim").claims
    }

    /// Claims the only thing that is due.
    pub(crate) async fn claim_one(&self, lease: &NodeLease) -> Claim {
        let mut claims = self.claim(lease, 10).await;
        assert_eq!(claims.len(), 1, "exactly one wake is due");
        claims.remove(0)
    }

    pub(crate) async fn register(&self, claim: &Claim) -> Registration {
        self.store.register(&claim.token).await.expect("a registration")
    }

    /// Starts, claims and registers.
    pub(crate) async fn running(&self, id: &str) -> Running {
        let lease = self.node("node-a").await;
        self.start(id).await;
        let claim = self.claim_one(&lease).await;
        let session = self.register(&claim).await.session;
        Running { lease, claim, session }
    }

    /// A running instance that then suspended for `waits`.
    pub(crate) async fn suspended(&self, id: &str, waits: Waits) -> Running {
        let running = self.running(id).await;
        let answer = self.store.suspend(&running.session, waits).await.expect("a suspend");
        assert_eq!(answer.0, Suspension::Suspended);
        running
    }

    pub(crate) async fn instance(&self, id: &InstanceId) -> Instance {
        self.store.instance(&tenant(), id).await.expect("the instance exists")
    }

    pub(crate) async fn life(&self, id: &InstanceId) -> Life {
        self.instance(id).await.life
    }

    pub(crate) async fn status(&self, id: &InstanceId) -> Status {
        self.life(id).await.status()
    }

    pub(crate) async fn wake_at(&self, id: &InstanceId) -> Option<Micros> {
        self.life(id).await.wake_at()
    }

    pub(crate) async fn send(&self, id: &InstanceId, signal: &str) -> u64 {
        self.store.signal(&tenant(), id, new_signal(signal, "")).await.expect("a signal").number
    }

    /// The kinds of the timeline, in order.
    pub(crate) async fn timeline(&self, id: &InstanceId) -> Vec<&'static str> {
        let page = self.store.events(&tenant(), id, 0, 1000).await.expect("events");
        page.events.iter().map(|event| event.kind.as_str()).collect()
    }
}

/// An instance whose process is registered.
pub(crate) struct Running {
    pub(crate) lease: NodeLease,
    pub(crate) claim: Claim,
    pub(crate) session: Session,
}

impl Running {
    pub(crate) fn id(&self) -> &InstanceId {
        &self.session.id
    }

    pub(crate) fn attempt(&self) -> AttemptRef {
        self.claim.attempt_ref()
    }
}

pub(crate) fn tenant() -> Tenant {
    Tenant::default_tenant()
}

pub(crate) fn id(text: &str) -> InstanceId {
    InstanceId::parse(text).expect("a valid id")
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse("name", text).expect("a valid name")
}

pub(crate) fn new_node(id: &str) -> NewNode {
    NewNode {
        id: NodeId::parse(id).expect("a valid node id"),
        name: id.to_owned(),
        address: "127.0.0.1:1".to_owned(),
        version: "0.1.0".to_owned(),
        slots: 16,
        lease: Duration::from_secs(15),
    }
}

pub(crate) fn request(id_text: &str) -> StartRequest {
    StartRequest {
        tenant: tenant(),
        id: id(id_text),
        image: name("img"),
        version: None,
        workflow: None,
        input: Payload::json("1"),
        env: BTreeMap::new(),
        limit: None,
        start_at: None,
        priority: 5,
        follow_image: false,
    }
}

pub(crate) fn operation(text: &str) -> Operation {
    Operation { name: name(text), key: Key::none(), slot: 0 }
}

pub(crate) fn step(text: &str, data: &str) -> NewCheckpoint {
    let value = NewValue::Payload(Payload::json(data));
    NewCheckpoint { operation: operation(text), kind: checkpoint::Kind::Step, value, note: String::new() }
}

pub(crate) fn checkpoint(text: &str, kind: checkpoint::Kind, value: NewValue) -> NewCheckpoint {
    NewCheckpoint { operation: operation(text), kind, value, note: String::new() }
}

pub(crate) fn take(text: &str, signal: &str) -> NewCheckpoint {
    checkpoint(text, checkpoint::Kind::Signal, NewValue::TakeSignal(name(signal)))
}

pub(crate) fn feel(text: &str) -> NewCheckpoint {
    checkpoint(text, checkpoint::Kind::Cancelled, NewValue::FeelCancel)
}

pub(crate) fn new_signal(signal: &str, dedup: &str) -> NewSignal {
    NewSignal { name: name(signal), payload: Payload::json("\"hello\""), dedup: dedup.to_owned() }
}

pub(crate) fn sleep_until(due_at: Micros) -> Waits {
    let wait = Wait::Due { name: name("nap"), key: Key::none(), due_at };
    Waits::new(vec![wait]).expect("one wait")
}

pub(crate) fn for_signal(signal: &str, due_at: Option<Micros>) -> Waits {
    let wait = Wait::Signal { name: name("await"), key: Key::none(), signal: name(signal), due_at };
    Waits::new(vec![wait]).expect("one wait")
}

pub(crate) fn for_resume() -> Waits {
    Waits::new(vec![Wait::Resume]).expect("one wait")
}

pub(crate) fn completed() -> Ending {
    Ending::Completed(Payload::json("42"))
}

pub(crate) fn exit() -> ExitReport {
    ExitReport { reason: ExitReason::Code(101), stderr_tail: "thread panicked\n".to_owned() }
}

/// Whether a save stored now; panics if it was refused.
pub(crate) fn stored(saved: Result<(Saved, Micros)>) -> bool {
    match saved.expect("a save").0 {
        Saved::Stored(_) => true,
        Saved::Existed(_) | Saved::Nothing => false,
    }
}

/// The code of a refusal; panics if it was accepted.
pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T>) -> &'static str {
    use dormouse_proto::code::Coded as _;
    let error: Error = answer.expect_err("a refusal");
    error.code().as_str()
}
