//! One batch with every outcome: some are saved, one is refused, one fenced, one too large, one stored before. Each
//! caller hears its own, in its words, and none spoils another's.

use std::sync::{Arc, Mutex};

use dormouse_core::{
    domain::{checkpoint::NewCheckpoint, payload::Payload},
    limits::Limits,
    store::{Database, Options, Result, Saved, Session, Store},
};
use futures_util::future::{BoxFuture, join_all};
use sqlx::{Connection as _, PgConnection};
use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{Layer, layer::SubscriberExt as _};

use crate::db::{self, TestDb};

const SAVED: usize = 8;

fn limits() -> Limits {
    Limits { checkpoints: 2, payload_bytes: 1000, ..Limits::default() }
}

/// How many requests each batch of this thread had.
#[derive(Clone, Default)]
struct Batches(Arc<Mutex<Vec<u64>>>);

impl<S: Subscriber> Layer<S> for Batches {
    fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        if seen.is_batch {
            self.0.lock().expect("nobody panics with it").extend(seen.requests);
        }
    }
}

#[derive(Default)]
struct Seen {
    is_batch: bool,
    requests: Option<u64>,
}

impl Visit for Seen {
    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "requests" {
            self.requests = Some(value);
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.is_batch = format!("{value:?}") == "a batch is taken";
        }
    }
}

/// Instances in the states that make the outcomes, and one writer for all of them.
struct Scene {
    db: TestDb,
    store: Store,
    saved: Vec<Session>,
    full: Session,
    fenced: Session,
    other: Session,
}

impl Scene {
    async fn new(db: TestDb) -> Self {
        let store = Store::open(Options { writers: 1, ..db.options.clone() }).await.expect("it opens twice");
        let mut saved = Vec::new();
        for n in 0..SAVED {
            saved.push(db.running(&format!("saved-{n}")).await.session);
        }
        let full = db.running("full").await.session;
        let fenced = db.running("fenced").await;
        let other = db.running("other").await.session;
        for name in ["one", "two"] {
            assert!(db::stored(db.store.save(&full, db::step(name, "1")).await));
        }
        assert!(db::stored(db.store.save(&other, db::step("again", "1")).await));
        db.register(&fenced.claim).await;
        db.send(&other.id, "go").await;
        Self { db, store, saved, full, fenced: fenced.session, other }
    }

    /// Saves at once: with them the words of each answer.
    fn saves(&self) -> Vec<(BoxFuture<'_, String>, String)> {
        let words = |text: &str| text.to_owned();
        let large = "1".repeat(1001);
        let mut asked = vec![
            (
                self.save(&self.full, db::step("three", "1")),
                words(
                    "RESOURCE_EXHAUSTED: the instance has 2 checkpoints, which is the limit; keep state in fewer, \
                     larger checkpoints, or continue in a new instance",
                ),
            ),
            (
                self.save(&self.fenced, db::step("late", "1")),
                words(
                    "FENCED: attempt 1 session 1 may not write any more: a newer one took over; end this process",
                ),
            ),
            (
                self.save(&self.other, db::step("large", &large)),
                words(
                    "INVALID_ARGUMENT: checkpoint.payload has 1001 bytes, at most 1000 are allowed; store it \
                     elsewhere and pass its address",
                ),
            ),
            (self.save(&self.other, db::step("again", "2")), words("existed 1")),
        ];
        for (n, session) in self.saved.iter().enumerate() {
            let save = self.save(session, db::step("now", &n.to_string()));
            // The refused ones stand between those that are saved.
            asked.insert((2 * n).min(asked.len()), (save, format!("stored {n}")));
        }
        asked
    }

    /// What makes it a transaction of several statements: an event, a signal that is taken, one that is not there.
    fn others(&self) -> Vec<(BoxFuture<'_, String>, String)> {
        let take = |session, signal| self.save(session, db::take("taken", signal));
        let event = |session| -> BoxFuture<'_, String> {
            Box::pin(async move {
                let told = self.store.event(session, db::name("e"), Payload::json("1")).await;
                told.map_or_else(words_of, |()| "told".to_owned())
            })
        };
        let fenced =
            "FENCED: attempt 1 session 1 may not write any more: a newer one took over; end this process";
        vec![
            (event(&self.saved[0]), "told".to_owned()),
            (event(&self.fenced), fenced.to_owned()),
            (take(&self.other, "go"), "stored \"hello\"".to_owned()),
            (take(&self.saved[1], "go"), "nothing".to_owned()),
        ]
    }

    fn save<'a>(&'a self, session: &'a Session, checkpoint: NewCheckpoint) -> BoxFuture<'a, String> {
        Box::pin(async move { shown(self.store.save(session, checkpoint).await.map(|(saved, _)| saved)) })
    }

    /// All of them at once; the requests that were queued must have been one batch, and one commit.
    async fn run(&self, asked: Vec<(BoxFuture<'_, String>, String)>, queued: u64) {
        let batches = Batches::default();
        let commits = Commits::of(&self.db);
        let (calls, expected): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let watched = tracing::subscriber::set_default(tracing_subscriber::registry().with(batches.clone()));
        // Nobody else runs before all are queued.
        let answers = join_all(calls).await;
        drop(watched);
        assert_eq!(answers, expected);
        assert_eq!(*batches.0.lock().expect("nobody panics with it"), [queued], "not one batch");
        commits.one_more(&self.db).await;
        // Who was saved has it, who was refused has nothing.
        for (session, names) in [(&self.full, "one two"), (&self.fenced, ""), (&self.saved[7], "now")] {
            let page =
                self.db.store.checkpoints(&db::tenant(), &session.id, 0, 10, false).await.expect("a page");
            let stored: Vec<_> =
                page.checkpoints.iter().map(|c| c.operation.name.as_str().to_owned()).collect();
            assert_eq!(stored.join(" "), names, "{}", session.id.as_str());
        }
    }
}

fn shown(answer: Result<Saved>) -> String {
    use dormouse_core::domain::checkpoint::{StoredCheckpoint, Value};
    let value = |stored: StoredCheckpoint| match stored.value {
        Value::Payload(payload) => String::from_utf8(payload.data.to_vec()).expect("JSON"),
        other => format!("{other:?}"),
    };
    match answer {
        Ok(Saved::Stored(stored)) => format!("stored {}", value(stored)),
        Ok(Saved::Existed(stored)) => format!("existed {}", value(stored)),
        Ok(Saved::Nothing) => "nothing".to_owned(),
        Err(error) => words_of(error),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_or_else")]
fn words_of(error: dormouse_core::store::Error) -> String {
    use dormouse_proto::code::Coded as _;
    format!("{}: {error}", error.code().as_str())
}

/// What the database itself says of its commits.
enum Commits {
    /// Frames of the log that end a commit, so far.
    Sqlite(usize),
    /// Each row says which transaction has written it.
    Postgres,
}

impl Commits {
    fn of(db: &TestDb) -> Self {
        match &db.options.database {
            Database::Sqlite(path) => {
                let mut log = path.clone().into_os_string();
                log.push("-wal");
                Self::Sqlite(commits_in(&std::fs::read(log).expect("there is a log")))
            }
            Database::Postgres(_) => Self::Postgres,
        }
    }

    async fn one_more(self, db: &TestDb) {
        match (&self, &db.options.database, Self::of(db)) {
            (Self::Sqlite(before), _, Self::Sqlite(after)) => {
                assert_eq!(after, before + 1, "commits in the log")
            }
            (_, Database::Postgres(url), _) => {
                const WRITERS: &str = "SELECT COUNT(DISTINCT x) FROM (
                    SELECT xmin::text AS x FROM checkpoint WHERE name IN ('now', 'taken')
                    UNION ALL SELECT xmin::text FROM event WHERE kind = 'custom') AS rows";
                let mut conn = PgConnection::connect(url).await.expect("it answers");
                let writers: i64 = sqlx::query_scalar(WRITERS).fetch_one(&mut conn).await.expect("a count");
                assert_eq!(writers, 1, "transactions that have written rows");
            }
            (Self::Postgres, Database::Sqlite(_), _) | (Self::Sqlite(_), _, Self::Postgres) => {
                unreachable!("it is one database")
            }
        }
    }
}

/// A frame of SQLite's log has a header of 24 bytes, whose second number is not 0 if it ends a commit, and
/// the salts of the log's own header, unless it is left over.
fn commits_in(log: &[u8]) -> usize {
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().expect("four bytes"));
    let page = usize::try_from(number(8)).expect("a page's size");
    let frames = (32..).step_by(24 + page).take_while(|at| at + 24 + page <= log.len());
    let ours = frames.take_while(|at| log[at + 8..at + 16] == log[16..24]);
    ours.filter(|at| number(at + 4) != 0).count()
}

async fn saves_alone(db: TestDb) {
    let scene = Scene::new(db).await;
    let asked = scene.saves();
    // The one that is too large is refused before it takes room in the queue.
    let queued = asked.len() as u64 - 1;
    scene.run(asked, queued).await;
}

async fn saves_among_others(db: TestDb) {
    let scene = Scene::new(db).await;
    let mut asked = scene.saves();
    for (n, other) in scene.others().into_iter().enumerate() {
        asked.insert(3 * n, other);
    }
    let queued = asked.len() as u64 - 1;
    scene.run(asked, queued).await;
}

#[tokio::test]
async fn sqlite_answers_each_caller_of_a_batch_its_own() {
    saves_alone(db::sqlite_with(limits()).await).await;
}

#[tokio::test]
async fn sqlite_answers_each_caller_of_a_mixed_batch_its_own() {
    saves_among_others(db::sqlite_with(limits()).await).await;
}

#[tokio::test]
async fn postgres_answers_each_caller_of_a_batch_its_own() {
    saves_alone(db::postgres_with(limits()).await).await;
}

#[tokio::test]
async fn postgres_answers_each_caller_of_a_mixed_batch_its_own() {
    saves_among_others(db::postgres_with(limits()).await).await;
}
