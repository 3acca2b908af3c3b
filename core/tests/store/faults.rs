//! Faults of a PostgreSQL connection, and the lock that fences: what is acknowledged is stored once,
//! however the answer got lost, and a checkpoint never passes a registration.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use dormouse_core::store::{Database, Error, Options, Store};
use dormouse_proto::code::{Code, Coded as _, Retry};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use crate::db::{self, TestDb, tenant};

/// Between a store and its server: cuts one connection when a COMMIT passes by.
struct Proxy {
    armed: Arc<AtomicU8>,
    directory: tempfile::TempDir,
    _running: JoinSet<()>,
}

const PASS: u8 = 0;
/// The server has carried the COMMIT out; its answer does not arrive.
const AFTER_COMMIT: u8 = 1;
/// The COMMIT does not arrive.
const BEFORE_COMMIT: u8 = 2;

impl Proxy {
    /// In front of the server whose socket is in the directory `server`.
    fn start(server: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("dp").tempdir_in("/tmp").expect("a directory");
        let listener = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
        let (armed, server) = (Arc::new(AtomicU8::new(PASS)), server.join(SOCKET));
        let shared = Arc::clone(&armed);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("it listens");
                let server = UnixStream::connect(&server).await.expect("the server listens");
                connections.spawn(relay(client, server, Arc::clone(&shared)));
            }
        });
        Self { armed, directory, _running: running }
    }

    /// The next COMMIT meets this fault.
    fn arm(&self, fault: u8) {
        self.armed.store(fault, Ordering::SeqCst);
    }

    /// Whether it has.
    fn has_cut(&self) -> bool {
        self.armed.load(Ordering::SeqCst) == PASS
    }

    /// The same schema through this proxy.
    fn options(&self, options: &Options) -> Options {
        let Database::Postgres(url) = &options.database else { panic!("a proxy is for a server") };
        let (server, schema) = url.split_once("&options[").expect("a schema of its own");
        let server: PgConnectOptions = server.parse().expect("a URL");
        let url = format!("{}&options[{schema}", server.socket(self.directory.path()).to_url_lossy());
        Options { database: Database::Postgres(url), ..options.clone() }
    }
}

const SOCKET: &str = ".s.PGSQL.5432";

/// Ends with either side, or with the fault.
async fn relay(mut client: UnixStream, mut server: UnixStream, armed: Arc<AtomicU8>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                let said = &asked[..bytes];
                let fault = armed.load(Ordering::SeqCst);
                if fault != PASS && said.windows(7).any(|word| word == b"COMMIT\0") {
                    if fault == AFTER_COMMIT {
                        server.write_all(said).await.expect("the server is there");
                        // It answers once the commit is durable.
                        server.readable().await.expect("the server answers");
                    }
                    armed.store(PASS, Ordering::SeqCst);
                    return;
                }
                if server.write_all(said).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(bytes @ 1..) = read else { return };
                if client.write_all(&answered[..bytes]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The directory of the server's socket.
fn socket_directory(options: &Options) -> PathBuf {
    let Database::Postgres(url) = &options.database else { panic!("a proxy is for a server") };
    let (server, _) = url.split_once("&options[").expect("a schema of its own");
    let server: PgConnectOptions = server.parse().expect("a URL");
    server.get_socket().expect("the tests' server has a socket").clone()
}

async fn behind_a_proxy() -> (TestDb, Proxy, Store) {
    let db = db::postgres().await;
    let proxy = Proxy::start(&socket_directory(&db.options));
    let store = Store::open(proxy.options(&db.options)).await.expect("it opens through the proxy");
    (db, proxy, store)
}

#[tokio::test]
async fn invariant_1_a_start_whose_commit_got_no_answer_is_stored_once() {
    for fault in [AFTER_COMMIT, BEFORE_COMMIT] {
        let (db, proxy, store) = behind_a_proxy().await;
        proxy.arm(fault);
        // Repeated on a new connection: the same start gets the same answer.
        let answer = store.start(db::request("a")).await;
        assert!(proxy.has_cut(), "no COMMIT passed by");
        if let Err(error) = answer {
            assert_eq!((error.code(), error.retry()), (Code::Unavailable, Retry::Later));
            store.start(db::request("a")).await.expect("the repeat");
        }
        assert_eq!(db.timeline(&db::id("a")).await, ["started"], "stored twice, or never");
        let claims = db.claim(&db.node("node-a").await, 10).await;
        assert_eq!(claims.len(), 1);
        store.close().await;
    }
}

#[tokio::test]
async fn invariant_4_a_claim_whose_commit_got_no_answer_is_not_repeated() {
    for fault in [AFTER_COMMIT, BEFORE_COMMIT] {
        let (db, proxy, store) = behind_a_proxy().await;
        let lease = db.node("node-a").await;
        db.start("a").await;
        proxy.arm(fault);
        // The claim may be stored, and its tokens are lost: nobody may launch it twice.
        let error = store.claim_due(&lease, 10, db::LAUNCH).await.expect_err("nobody knows");
        assert!(proxy.has_cut(), "no COMMIT passed by");
        assert!(matches!(error, Error::Unconfirmed(_)), "{error:?}");
        assert_eq!(error.code(), Code::Unavailable);
        let stored = usize::from(fault == AFTER_COMMIT);
        assert_eq!(db.claim(&lease, 10).await.len(), 1 - stored);
        db.advance(db::LAUNCH + Duration::from_secs(1));
        assert_eq!(db.claim(&lease, 10).await.len(), 1, "it heals by its launch deadline");
        store.close().await;
    }
}

#[tokio::test]
async fn invariant_5_a_signal_whose_commit_got_no_answer_is_sent_once() {
    for fault in [AFTER_COMMIT, BEFORE_COMMIT] {
        let (db, proxy, store) = behind_a_proxy().await;
        let id = db.start("a").await;
        proxy.arm(fault);
        let signal = || db::new_signal("go", "the same");
        let first = store.signal(&tenant(), &id, signal()).await;
        if let Err(error) = &first {
            assert_eq!(error.code(), Code::Unavailable, "{error}");
        }
        let again = db.store.signal(&tenant(), &id, signal()).await.expect("the repeat");
        assert_eq!(again.number, 1);
        let detail = db.store.instance_detail(&tenant(), &id).await.expect("it exists");
        assert_eq!(detail.unread_signals, 1, "sent twice, or never");
        store.close().await;
    }
}

/// A person's connection to the test's schema.
async fn by_hand(db: &TestDb) -> PgConnection {
    let Database::Postgres(url) = &db.options.database else { panic!("a server") };
    PgConnection::connect(url).await.expect("it answers")
}

async fn run(conn: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(conn).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Waits until so many backends wait for a lock that `holder` has, directly or behind another.
async fn until_waiting(holder: &mut PgConnection, backends: i64) {
    const WAITING: &str = "WITH RECURSIVE behind(pid) AS (
            SELECT pg_backend_pid()
            UNION
            SELECT a.pid FROM pg_stat_activity AS a, behind WHERE behind.pid = ANY (pg_blocking_pids(a.pid)))
        SELECT COUNT(*) - 1 FROM behind";
    let look = async {
        loop {
            // A transaction sees one moment of the statistics; waiting backends are others' business.
            run(holder, "SELECT pg_stat_clear_snapshot()").await;
            let waiting: i64 = sqlx::query_scalar(WAITING).fetch_one(&mut *holder).await.expect("an answer");
            if waiting >= backends {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(15), look).await;
    found.unwrap_or_else(|_| panic!("{backends} backends should wait for a lock: the guard is missing"));
}

#[tokio::test]
async fn invariant_2_a_checkpoint_waits_for_a_registration_that_is_under_way() {
    let db = db::postgres().await;
    let running = db.running("a").await;
    let mut registration = by_hand(&db).await;
    run(&mut registration, "BEGIN; UPDATE instance SET session = session + 1 WHERE id = 'a'").await;
    let save = db.store.save(&running.session, db::step("late", "1"));
    let overtaken = async {
        until_waiting(&mut registration, 1).await;
        run(&mut registration, "COMMIT").await;
    };
    let (saved, ()) = tokio::join!(save, overtaken);
    assert_eq!(db::code(saved), "FENCED", "a checkpoint passed a registration");
    let page = db.store.checkpoints(&tenant(), running.id(), 0, 10, false).await.expect("a page");
    assert_eq!(page.checkpoints, []);
}

/// Both are queued before the writer runs, so that they are one statement.
#[tokio::test]
async fn invariant_2_checkpoints_of_one_batch_wait_for_a_registration_that_is_under_way() {
    let db = db::postgres().await;
    let running = db.running("a").await;
    let mut registration = by_hand(&db).await;
    run(&mut registration, "BEGIN; UPDATE instance SET session = session + 1 WHERE id = 'a'").await;
    let saves = ["late", "later"].map(|name| db.store.save(&running.session, db::step(name, "1")));
    let overtaken = async {
        until_waiting(&mut registration, 1).await;
        run(&mut registration, "COMMIT").await;
    };
    let [late, later] = saves;
    let (late, later, ()) = tokio::join!(late, later, overtaken);
    for saved in [late, later] {
        assert_eq!(db::code(saved), "FENCED", "a checkpoint passed a registration");
    }
    let page = db.store.checkpoints(&tenant(), running.id(), 0, 10, false).await.expect("a page");
    assert_eq!(page.checkpoints, []);
}

#[tokio::test]
async fn invariant_2_a_registration_waits_for_a_checkpoint_that_is_under_way() {
    let db = db::postgres().await;
    let running = db.running("a").await;
    let others = db.another().await;
    // Another's uncommitted checkpoint of the same name holds ours up behind its guard.
    let mut other = by_hand(&db).await;
    run(&mut other, SAME_NAME).await;
    let save = db.store.save(&running.session, db::step("early", "1"));
    let register = async {
        until_waiting(&mut other, 1).await;
        let released = async {
            until_waiting(&mut other, 2).await;
            run(&mut other, "ROLLBACK").await;
        };
        let (registered, ()) = tokio::join!(others.register_attempt(running.attempt()), released);
        registered.expect("a registration")
    };
    let (saved, registration) = tokio::join!(save, register);
    assert!(db::stored(saved));
    let names: Vec<String> =
        registration.page.checkpoints.iter().map(|c| c.operation.name.as_str().to_owned()).collect();
    assert_eq!(names, ["early"], "a registration passed a checkpoint that was then stored");
}

const SAME_NAME: &str = "BEGIN;
    INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, stored_at, note)
    SELECT key, 1, 'early', '', 0, 'step', attempt, 1, '' FROM instance WHERE id = 'a'";
