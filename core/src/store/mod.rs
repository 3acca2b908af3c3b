//! The store: all SQL, over SQLite and PostgreSQL, behind one struct.
//!
//! It locks rows, loads them, asks the domain, writes with a guard and checks what the write
//! touched. It decides nothing itself: what may happen to an instance stands in
//! [`crate::domain::instance`]. Each public function is one transaction, or says otherwise;
//! what it answers is durable (invariant 1), what it refuses had no effect (invariant 9).
//!
//! Requests go through queues to tasks that own their connections for life: writers, which put
//! what is queued into one transaction (`commit`), and readers. Dropping a call's future
//! forgets the answer; a queued request is done anyway.
//!
//! | module | holds |
//! |---|---|
//! | `sql`, `queue`, `commit`, `open`, `sqlite`, `postgres`, `migrate` | the machinery |
//! | `life` | the instance's row as a `Life`, and its one guarded write |
//! | `start`, `instances`, `controls`, `signals`, `images`, `image_chunks`, `attempts`, `events`, `retention` | what controllers and people ask |
//! | `sessions`, `checkpoints`, `save_set`, `stamps` | what an instance's process asks |
//! | `nodes`, `wakes`, `turns`, `exits` | what a node asks |
//! | `spares` | which processes are kept, and their key |
//! | `tenants`, `tokens` | whose all of it is, and who may ask |
//! | `replicas` | where the core replicas are |
//! | `notices` | who should look again |
//! | [`check`] | whether everything stored holds together; on a connection of its own |

mod attempts;
mod authority;
pub mod check;
mod checkpoints;
mod clock;
mod commit;
mod controls;
mod damage;
mod endings;
mod error;
mod events;
mod exits;
mod image_chunks;
mod images;
mod instances;
mod life;
mod migrate;
mod nodes;
mod notices;
mod open;
mod payload;
mod postgres;
mod queue;
mod replicas;
mod retention;
mod retry;
mod save_set;
mod sessions;
mod signals;
mod spares;
mod sql;
mod sqlite;
mod stamps;
mod start;
mod tenants;
mod tokens;
mod turns;
mod wakes;

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{try_join, try_join_all};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub use attempts::{AttemptRecord, AttemptRef};
pub use authority::ClusterAuthority;
pub use checkpoints::{CheckpointPage, Saved};
pub use clock::{Clock, ManualClock};
pub use endings::code as failure_code;
pub use error::{Error, Result};
pub use events::EventPage;
pub use exits::{AfterExit, Expired, Superseded};
pub use image_chunks::{IMAGE_CHUNK_BYTES, ImageBytes, image_chunks};
pub use images::{DeletedImages, Image, NewImage};
pub use instances::{Instance, InstanceDetail, InstancePage, ListFilter};
pub use nodes::{Drain, NewNode, Node, NodeLease, NodeReport};
pub use notices::{Notice, Notices};
pub use open::Database;
pub use replicas::{NewReplica, Renewal, Replica, ReplicaLease, ReplicaReport};
pub use retention::Pruned;
pub use retry::RetryRequest;
pub use sessions::{Given, Inbox, OwnStatus, Registration, Session, Suspension, TokenOf};
pub use signals::Sent;
pub use spares::{ImageOptions, Kept};
pub use sql::Kind;
pub use stamps::Stamp;
pub use start::{StartRequest, Started};
pub use tenants::{RunningQuota, TenantUse};
pub use tokens::{NewToken, Standing, Token};
pub use wakes::{Claim, Claimant, Claims};

use commit::{Reader, Request, Writer};
use notices::Hub;
use open::Connector;
use queue::Lane;
use sql::{Conn, Stmt, Tx, args, stmt};
use tenants::StoredCounts;

use crate::domain::{id::InstanceKey, instance::CrashPolicy, payload::Payload, time::Micros};
use crate::limits::Limits;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which database.
    pub database: Database,
    /// What one instance may store, and how often it may fail.
    pub limits: Limits,
    /// Whose time counts.
    pub clock: Clock,
    /// Crash pauses are spread by so much of themselves, up and down: 0 to 0.2.
    pub jitter: f64,
    /// Connections that write on PostgreSQL, each with its share of the instances; SQLite has one.
    pub writers: usize,
    /// Connections that read.
    pub readers: usize,
    /// How long the leases of this process last unrenewed, on PostgreSQL. Renewals go over a
    /// connection of their own, which is replaced once it has not answered for a fifth of it.
    pub lease: Duration,
    /// This release, for a schema that needs a newer one.
    pub release: String,
    /// How long opening waits for a database that may come.
    pub patience: Duration,
}

impl Options {
    /// The defaults for a database.
    pub fn new(database: Database) -> Self {
        Self {
            database,
            limits: Limits::default(),
            clock: Clock::Database,
            jitter: 0.2,
            writers: 4,
            readers: 4,
            lease: DEFAULT_LEASE,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            patience: Duration::ZERO,
        }
    }
}

/// How long a lease lasts unrenewed if nothing else is said.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(15);
/// How long one statement may take on PostgreSQL. Longer than the server waits for a lock on our
/// behalf, so that what is late is a cut connection and no busy row.
const ANSWER: Duration = Duration::from_secs(30);

/// Pause before another try to open a database that may come.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// All that is durable. Cheap to clone; the last clone that is dropped ends its tasks, and
/// [`Store::close`] does so in order.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    limits: Limits,
    lease: Duration,
    jitter: Mutex<Jitter>,
    /// Requests of instances: each instance always takes the same.
    writers: Vec<Lane>,
    /// Requests of nodes and images: a claim must not wait behind checkpoints. On SQLite the
    /// same as the only other writer.
    node: Lane,
    /// Renewals, and watching those of others: neither waits behind a claim that waits for a
    /// row, nor for a connection that was cut without a word. On SQLite the only writer.
    leases: Lane,
    readers: Lane,
    /// Of tenants that have a quota of them.
    stored: StoredCounts,
    hub: Hub,
    closing: CancellationToken,
    /// The disk has not flushed.
    broken: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

/// Spreads the retries of many.
#[derive(Debug)]
struct Jitter {
    spread: f64,
    random: fastrand::Rng,
}

impl Jitter {
    fn draw(&mut self) -> f64 {
        (self.random.f64() * 2.0 - 1.0) * self.spread
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Does nothing, in a transaction.
struct Probe;

impl Request for Probe {
    type Answer = Micros;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Micros> {
        const PROBE: Stmt = stmt!("SELECT number FROM migration ORDER BY number DESC LIMIT 1");
        tx.fetch_one(&PROBE, args![]).await?;
        tx.now().await
    }
}

/// Whether a transaction that writes would be taken.
struct Writable;

impl Request for Writable {
    type Answer = Micros;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Micros> {
        const WRITABLE: Stmt =
            stmt!("SELECT CAST({read_only} AS BIGINT) AS read_only FROM migration LIMIT 1");
        if tx.fetch_one(&WRITABLE, args![]).await?.int("read_only")? != 0 {
            return Err(Error::ReadOnly);
        }
        tx.now().await
    }
}

impl Store {
    /// Opens the database, brings its schema to this release and starts the tasks.
    ///
    /// Fails if the database cannot be reached or used, or needs a newer release. Must be
    /// called within a tokio runtime; the tasks live in it.
    ///
    /// A database that does not answer, only reads or is full of connections is waited for, at most
    /// [`Options::patience`].
    pub async fn open(options: Options) -> Result<Self> {
        let until = Instant::now() + options.patience;
        let is_server = matches!(options.database, Database::Postgres(_));
        let mut told = String::new();
        loop {
            let error = match Self::try_open(options.clone()).await {
                Err(error) if is_server && error.may_pass() && Instant::now() < until => error,
                opened => return opened,
            };
            let said = error.to_string();
            if said != told {
                tracing::warn!(
                    "{said}; trying again for {:?}",
                    until.saturating_duration_since(Instant::now())
                );
                told = said;
            }
            sleep(OPEN_AGAIN).await;
        }
    }

    async fn try_open(options: Options) -> Result<Self> {
        let connector = Connector::new(&options.database)?;
        let mut first = connector.open(false).await?;
        let steps = dormouse_migrations::ALL;
        migrate::migrate(&connector, &mut first, &options.clock, &options.release, steps).await?;
        tenants::ensure_default(&mut first, &options.clock).await?;

        let (hub, outbox) = Hub::new();
        let (closing, broken) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let spawn_writer = |tasks: &mut JoinSet<()>, conn, answer| {
            let (lane, queue) = Lane::new();
            let (clock, broken) = (options.clock.clone(), broken.clone());
            let writer = Writer::new(connector.clone(), conn, answer, clock, hub.clone(), broken);
            tasks.spawn(writer.run(queue, closing.clone()));
            lane
        };
        let mut writers = vec![spawn_writer(&mut tasks, first, ANSWER)];
        let (mut node, mut leases) = (writers[0].clone(), writers[0].clone());
        let n_more = if connector.kind() == Kind::Postgres { options.writers.max(1) + 1 } else { 0 };
        let writing = open_some(&connector, false, n_more);
        let (writing, reading) =
            try_join(writing, open_some(&connector, true, options.readers.max(1))).await?;
        let mut more_writers = writing.into_iter();
        if let (Some(for_node), Some(for_leases)) = (more_writers.next(), more_writers.next()) {
            node = spawn_writer(&mut tasks, for_node, ANSWER);
            leases = spawn_writer(&mut tasks, for_leases, options.lease / 5);
        }
        for conn in more_writers {
            writers.push(spawn_writer(&mut tasks, conn, ANSWER));
        }
        let (readers, queue) = Lane::new();
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        for conn in reading {
            let reader = Reader::new(connector.clone(), conn, ANSWER, options.clock.clone());
            tasks.spawn(reader.run(Arc::clone(&queue), closing.clone()));
        }
        tell_peers(&connector, &hub, outbox, &broken, &closing, &mut tasks).await?;
        Ok(Self(Arc::new(Inner {
            kind: connector.kind(),
            limits: options.limits,
            lease: options.lease,
            jitter: Mutex::new(Jitter {
                spread: options.jitter.clamp(0.0, 0.2),
                random: fastrand::Rng::with_seed(random_number()?),
            }),
            writers,
            node,
            leases,
            readers,
            stored: StoredCounts::default(),
            hub,
            closing,
            broken,
            tasks: Mutex::new(tasks),
        })))
    }

    /// Takes nothing new, finishes what is queued, and closes the connections. Calls that come
    /// later are refused with UNAVAILABLE.
    pub async fn close(&self) {
        self.0.closing.cancel();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the store panicked");
            }
        }
    }

    /// Waits until the store is over although nobody closed it: the disk has not flushed. Whoever
    /// serves from it ends then; opening it anew recovers what the disk has.
    pub async fn broken(&self) {
        self.0.broken.cancelled().await;
    }

    /// Which database it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The limits it enforces.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// How long leases of this process last unrenewed.
    pub fn lease(&self) -> Duration {
        self.0.lease
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<Micros> {
        self.read(Probe).await
    }

    /// Whether it can be read and written now.
    pub async fn health(&self) -> Result<Micros> {
        self.read(Probe).await?;
        self.write_node(Writable).await
    }

    /// Notices of what is committed from now on, by this process and by others.
    pub fn notices(&self) -> Notices {
        self.0.hub.subscribe()
    }

    fn stored(&self) -> &StoredCounts {
        &self.0.stored
    }

    fn crash_policy(&self) -> CrashPolicy {
        let limits = &self.0.limits;
        let jitter = self.0.jitter.lock().unwrap_or_else(PoisonError::into_inner).draw();
        CrashPolicy {
            limit: limits.crashes,
            backoff: limits.crash_backoff,
            backoff_max: limits.crash_backoff_max,
            jitter,
        }
    }

    async fn read<R: Request>(&self, request: R) -> Result<R::Answer> {
        self.0.readers.call(request).await
    }

    /// Through the writer of this instance.
    async fn write_instance<R: Request>(&self, instance: InstanceKey, request: R) -> Result<R::Answer> {
        self.writer_of(&instance).call(request).await
    }

    /// Through the writer of this id: two starts of one id never meet in two transactions of
    /// this process.
    async fn write_start<R: Request>(&self, request: R) -> Result<R::Answer> {
        let commit::LockOrder::Start(tenant, id) = request.order() else {
            return self.0.writers[0].call(request).await;
        };
        self.writer_of(&(tenant, id)).call(request).await
    }

    /// Through the writer of nodes and images.
    async fn write_node<R: Request>(&self, request: R) -> Result<R::Answer> {
        self.0.node.call(request).await
    }

    /// Through the connection of renewals.
    async fn write_lease<R: Request>(&self, request: R) -> Result<R::Answer> {
        self.0.leases.call(request).await
    }

    fn writer_of(&self, what: &impl std::hash::Hash) -> &Lane {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(what);
        let lanes = self.0.writers.len() as u64;
        &self.0.writers[usize::try_from(hash % lanes).unwrap_or(0)]
    }

    fn check_payload(&self, field: &'static str, payload: &Payload) -> Result<()> {
        self.check_bytes(field, payload.data.len())?;
        check_text("payload.type_name", &payload.type_name)
    }

    fn check_bytes(&self, field: &'static str, len: usize) -> Result<()> {
        let max = self.0.limits.payload_bytes;
        if len > max { Err(Error::TooLarge { field, len, max }) } else { Ok(()) }
    }
}

/// Opens connections at once: each is a process that a server has to start.
async fn open_some(connector: &Connector, read_only: bool, n: usize) -> Result<Vec<Conn>> {
    try_join_all((0..n).map(|_| connector.open(read_only))).await
}

/// From the kernel's generator.
fn random_number() -> Result<u64> {
    getrandom::u64().map_err(no_random_bytes)
}

fn no_random_bytes(error: getrandom::Error) -> Error {
    Error::Unavailable(sqlx::Error::Io(std::io::Error::other(format!("no random bytes: {error}"))))
}

/// Longest short text: a type's name, an address.
const TEXT: usize = 1000;

/// A short text that is stored as it is.
fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.len() > TEXT {
        return Err(Error::TooLarge { field, len: text.len(), max: TEXT });
    }
    if text.contains('\0') {
        let value = format!("{text:?}");
        return Err(Error::Invalid { field, value, remedy: "remove the NUL, which cannot be stored" });
    }
    Ok(())
}

/// Starts what carries notices between processes, and on SQLite what copies the log back.
async fn tell_peers(
    connector: &Connector,
    hub: &Hub,
    outbox: tokio::sync::mpsc::Receiver<Notice>,
    broken: &CancellationToken,
    closing: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let origin = format!("{:x}-{:016x}", std::process::id(), random_number()?);
    match connector {
        Connector::Sqlite(file) => {
            let log = connector.open(false).await?;
            let (file, closed) = (Arc::clone(file), closing.clone());
            match sqlite::Peers::bind(&file, &origin) {
                Ok(peers) => {
                    tasks.spawn(peers.run(origin, hub.clone(), outbox, closing.clone()));
                }
                // Polls stand beneath.
                Err(error) => tracing::warn!(%error, "no socket for notices between processes; they poll"),
            }
            let broken = broken.clone();
            tasks.spawn(async move { file.run_log(log, broken, closed).await });
        }
        Connector::Postgres(server) => {
            tasks.spawn(postgres::tell(connector.clone(), origin.clone(), outbox, closing.clone()));
            let (server, hub, closing) = (Arc::clone(server), hub.clone(), closing.clone());
            tasks.spawn(async move { server.hear(&origin, &hub, &closing).await });
        }
    }
    Ok(())
}
