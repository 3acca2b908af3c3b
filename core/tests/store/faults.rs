//! Faults of a PostgreSQL connection, and the lock that fences: what is acknowledged is stored once,
//! however the answer got lost, and a checkpoint never passes a registration.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use dormouse_core::{
    domain::{checkpoint::Value, payload::Payload, time::Micros},
    store::{Database, Error, Options, Saved, Session, Store},
};
use dormouse_proto::code::{Code, Coded as _, Retry};
use futures_util::future::join_all;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use crate::{
    contract::check,
    db::{self, TestDb, tenant},
};

/// Between a store and its server: cuts one connection when a COMMIT, or what the test waits for, passes by.
struct Proxy {
    armed: Arc<Mutex<Armed>>,
    directory: tempfile::TempDir,
    _running: JoinSet<()>,
}

/// What happens to the message that is waited for.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server has carried it out; its answer does not arrive.
    After,
    /// It does not arrive.
    Before,
}

const FAULTS: [Fault; 2] = [Fault::After, Fault::Before];

#[derive(Default)]
struct Armed {
    /// With the bytes that are waited for.
    fault: Option<(Fault, &'static [u8])>,
    /// What was said last before the cut.
    cut: Option<Vec<u8>>,
}

impl Armed {
    /// Whether this is to be cut, and how.
    fn take(&mut self, said: &[u8]) -> Option<Fault> {
        let (_, wanted) = self.fault.as_ref()?;
        said.windows(wanted.len()).find(|bytes| bytes == wanted)?;
        self.cut = Some(said.to_vec());
        self.fault.take().map(|(fault, _)| fault)
    }
}

impl Proxy {
    /// In front of the server whose socket is in the directory `server`.
    fn start(server: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("dp").tempdir_in("/tmp").expect("a directory");
        let listener = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
        let (armed, server) = (Arc::<Mutex<Armed>>::default(), server.join(SOCKET));
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
    fn arm(&self, fault: Fault) {
        self.arm_at(fault, b"COMMIT\0");
    }

    /// The next message that holds this does.
    fn arm_at(&self, fault: Fault, wanted: &'static [u8]) {
        *self.armed.lock().expect("nobody panics with it") =
            Armed { fault: Some((fault, wanted)), cut: None };
    }

    /// What was cut, if something has been.
    fn cut(&self) -> Option<Vec<u8>> {
        self.armed.lock().expect("nobody panics with it").cut.clone()
    }

    /// Whether something has been.
    fn has_cut(&self) -> bool {
        self.cut().is_some()
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
async fn relay(mut client: UnixStream, mut server: UnixStream, armed: Arc<Mutex<Armed>>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                let said = &asked[..bytes];
                let fault = armed.lock().expect("nobody panics with it").take(said);
                match fault {
                    Some(Fault::Before) => return,
                    Some(Fault::After) => {
                        server.write_all(said).await.expect("the server is there");
                        return until_idle(&mut server).await;
                    }
                    None => {}
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

/// Until the server says that it has no transaction open: what it was told last is durable.
async fn until_idle(server: &mut UnixStream) {
    const READY_AND_IDLE: &[u8] = b"Z\0\0\0\x05I";
    let mut answer = Vec::new();
    while !answer.ends_with(READY_AND_IDLE) {
        let bytes = server.read_buf(&mut answer).await.expect("the server answers");
        assert!(bytes > 0, "the server has gone away instead of an answer");
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
    // One writer: what is asked at once is one batch.
    let options = Options { writers: 1, ..proxy.options(&db.options) };
    let store = Store::open(options).await.expect("it opens through the proxy");
    (db, proxy, store)
}

#[tokio::test]
async fn invariant_1_a_start_whose_commit_got_no_answer_is_stored_once() {
    for fault in FAULTS {
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
    for fault in FAULTS {
        let (db, proxy, store) = behind_a_proxy().await;
        let lease = db.node("node-a").await;
        db.start("a").await;
        proxy.arm(fault);
        // The claim may be stored, and its tokens are lost: nobody may launch it twice.
        let error = store.claim_due(&lease, 10, db::LAUNCH).await.expect_err("nobody knows");
        assert!(proxy.has_cut(), "no COMMIT passed by");
        assert!(matches!(error, Error::Unconfirmed(_)), "{error:?}");
        assert_eq!(error.code(), Code::Unavailable);
        let stored = usize::from(matches!(fault, Fault::After));
        assert_eq!(db.claim(&lease, 10).await.len(), 1 - stored);
        db.advance(db::LAUNCH + Duration::from_secs(1));
        assert_eq!(db.claim(&lease, 10).await.len(), 1, "it heals by its launch deadline");
        store.close().await;
    }
}

#[tokio::test]
async fn invariant_5_a_signal_whose_commit_got_no_answer_is_sent_once() {
    for fault in FAULTS {
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

/// The words in what three instances save at once; the last of them is waited for.
const LOST: [&str; 3] = ["lost-one", "lost-two", "lost-three"];

fn stored_value(saved: Result<(Saved, Micros), Error>) -> String {
    match saved.expect("a save may be repeated") {
        // The repeat hears what the lost one has stored.
        (Saved::Stored(stored) | Saved::Existed(stored), _) => match stored.value {
            Value::Payload(payload) => String::from_utf8(payload.data.to_vec()).expect("text"),
            other => panic!("{other:?}"),
        },
        (Saved::Nothing, _) => panic!("nothing is stored"),
    }
}

/// One checkpoint of each, and nothing that the database's own check finds.
async fn assert_stored_once(db: &TestDb, sessions: &[Session]) {
    for session in sessions {
        let page = db.store.checkpoints(&tenant(), &session.id, 0, 10, false).await.expect("a page");
        assert_eq!(page.checkpoints.len(), 1, "{}: stored twice, or never", session.id.as_str());
    }
    assert_eq!(check::violations(db, Duration::from_hours(24 * 365)).await, []);
}

async fn three_running(db: &TestDb) -> Vec<Session> {
    let mut sessions = Vec::new();
    for id in ["a", "b", "c"] {
        sessions.push(db.running(id).await.session);
    }
    sessions
}

/// Checkpoints alone are a statement that commits by itself: there is no COMMIT.
#[tokio::test]
async fn invariant_3_a_batch_of_checkpoints_that_got_no_answer_is_stored_once() {
    for fault in FAULTS {
        let (db, proxy, store) = behind_a_proxy().await;
        let sessions = three_running(&db).await;
        proxy.arm_at(fault, LOST[2].as_bytes());
        // Nobody else runs before all are queued: they are one batch.
        let saves = sessions.iter().zip(LOST).map(|(session, word)| store.save(session, db::step("s", word)));
        let answers: Vec<_> = join_all(saves).await.into_iter().map(stored_value).collect();
        assert_eq!(answers, LOST, "{fault:?}");
        let cut = proxy.cut().expect("the words passed by");
        let has = |word: &&str| cut.windows(word.len()).any(|bytes| bytes == word.as_bytes());
        assert!(LOST.iter().all(has), "{fault:?}: it was not one statement");
        assert_stored_once(&db, &sessions).await;
        store.close().await;
    }
}

#[tokio::test]
async fn invariant_3_a_checkpoint_alone_that_got_no_answer_is_stored_once() {
    for fault in FAULTS {
        let (db, proxy, store) = behind_a_proxy().await;
        let session = db.running("a").await.session;
        proxy.arm_at(fault, LOST[0].as_bytes());
        assert_eq!(stored_value(store.save(&session, db::step("s", LOST[0])).await), LOST[0]);
        assert!(proxy.has_cut(), "the word did not pass by");
        assert_stored_once(&db, &[session]).await;
        store.close().await;
    }
}

/// With an event among them it is a transaction. What may be stored twice is repeated, the event's caller is told
/// that nobody knows, and nothing is stored twice.
#[tokio::test]
async fn invariant_1_a_mixed_batch_whose_commit_got_no_answer_is_stored_once() {
    for fault in FAULTS {
        let (db, proxy, store) = behind_a_proxy().await;
        let sessions = three_running(&db).await;
        let other = db.running("other").await.session;
        proxy.arm(fault);
        let saves = sessions.iter().zip(LOST).map(|(session, word)| store.save(session, db::step("s", word)));
        let event = store.event(&other, db::name("e"), Payload::json("1"));
        let (answers, told) = tokio::join!(join_all(saves), event);
        assert!(proxy.has_cut(), "no COMMIT passed by");
        assert_eq!(answers.into_iter().map(stored_value).collect::<Vec<_>>(), LOST, "{fault:?}");
        let error = told.expect_err("nobody knows");
        assert!(matches!(error, Error::Unconfirmed(_)), "{error:?}");
        assert_eq!((error.code(), error.retry()), (Code::Unavailable, Retry::Later));
        let events = db.timeline(&other.id).await.into_iter().filter(|kind| *kind == "custom").count();
        assert_eq!(events, usize::from(matches!(fault, Fault::After)));
        assert_stored_once(&db, &sessions).await;
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
