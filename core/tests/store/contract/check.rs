//! `doctor --data`: every kind of damage is found and named, and health has none.

use std::time::Duration;

use dormouse_core::store::{
    Clock, Database, Kind, Suspension,
    check::{Inspector, PATIENCE, Progress, Violation},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use crate::db::{self, TestDb, code};

contract! {
    every_state_is_healthy,
    invariant_7_whatever_is_stuck_or_broken_is_named,
    many_instances_are_checked_page_by_page,
    a_database_of_another_release_is_refused,
}

/// Everything that is wrong. What lasts is judged after `patience`.
pub(crate) async fn violations(db: &TestDb, patience: Duration) -> Vec<Violation> {
    let clock = Clock::Manual(db.clock.clone());
    let mut inspector =
        Inspector::open(&db.options.database, clock, patience).await.expect("the database opens");
    let (mut violations, mut next) = (Vec::new(), Progress::default());
    while !next.is_over() {
        let page = inspector.page(next).await.expect("a page");
        violations.extend(page.violations);
        next = page.next;
    }
    inspector.close().await;
    violations
}

/// Runs statements that no service would, with every rule of the tables off.
async fn sabotage(db: &TestDb, sql: &str) {
    match &db.options.database {
        Database::Sqlite(path) => {
            let mut conn = SqliteConnection::connect(&path.display().to_string()).await.expect("opens");
            let off = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF;";
            sqlx::raw_sql(AssertSqlSafe(format!("{off} {sql}"))).execute(&mut conn).await.expect(sql);
            conn.close().await.expect("closed");
        }
        Database::Postgres(url) => {
            let mut conn = PgConnection::connect(url).await.expect("connects");
            sqlx::raw_sql(AssertSqlSafe(format!("{NO_RULES} {sql}"))).execute(&mut conn).await.expect(sql);
            conn.close().await.expect("closed");
        }
    }
}

const NO_RULES: &str = "DO $$ DECLARE c RECORD; BEGIN
    FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint
              WHERE contype IN ('c', 'f') AND connamespace = current_schema()::regnamespace LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
    END LOOP; END $$;";

/// An instance in each state that one can be in.
async fn populate(db: &TestDb) {
    db.suspended("naps", db::sleep_until(db::START + Duration::from_hours(9))).await;
    let waits = db.suspended("waits", db::for_signal("go", None)).await;
    db.send(waits.id(), "other").await;
    let took = db.running("took").await;
    db.send(took.id(), "hi").await;
    db.send(took.id(), "hi").await;
    for n in 0..2 {
        let take = db::take(&format!("take-{n}"), "hi");
        assert!(db::stored(db.store.save(&took.session, take).await));
    }
    for n in 0..3 {
        let step = db::step(&format!("step-{n}"), "1");
        assert!(db::stored(db.store.save(&took.session, step).await));
    }
    let done = db.running("done").await;
    db.store.end(&done.session, db::completed()).await.expect("ends");
    let crashed = db.running("crashed").await;
    db.store.exited(crashed.attempt(), db::exit()).await.expect("told");
    let paused = db.running("paused").await;
    db.store.pause(&db::tenant(), paused.id()).await.expect("asked");
    let suspended = db.store.suspend(&paused.session, db::for_resume()).await.expect("suspends");
    assert_eq!(suspended.0, Suspension::Suspended);
    db.start("asked").await;
    db.store.cancel(&db::tenant(), &db::id("asked")).await.expect("ends");
    db.start("claimed").await;
    let lease = db.node("node-a").await;
    db.claim(&lease, 100).await;
    db.start("pending").await;
}

async fn every_state_is_healthy(db: TestDb) {
    assert_eq!(violations(&db, PATIENCE).await, [], "an empty database");
    populate(&db).await;
    assert_eq!(violations(&db, PATIENCE).await, []);
}

/// Statement, invariant, whom, and what the sentence says.
const DAMAGE: &[(&str, u8, &str, &str)] = &[
    ("UPDATE instance SET node = 'nobody' WHERE id = 'took'", 7, "took", "node that does not exist"),
    ("UPDATE node SET lost = TRUE, renewed_at = 0", 7, "took", "lease has been lost for long"),
    ("UPDATE instance SET wake_at = 0 WHERE id = 'pending'", 7, "pending", "due for long"),
    ("UPDATE instance SET wake_at = NULL WHERE id = 'pending'", 7, "pending", "wake_at cannot be read"),
    ("UPDATE instance SET wake_at = NULL WHERE id = 'claimed'", 7, "claimed", "it has no wake"),
    ("UPDATE instance SET node = NULL WHERE id = 'took'", 7, "took", "no node is named"),
    ("UPDATE instance SET wake_at = NULL WHERE id = 'naps'", 7, "naps", "wakes nobody by itself"),
    ("UPDATE instance SET wake_at = NULL WHERE id = 'crashed'", 7, "crashed", "wakes nobody by itself"),
    ("UPDATE instance SET waits = '[]', wake_at = NULL WHERE id = 'naps'", 7, "naps", "wakes nobody"),
    ("UPDATE instance SET waits = 'rain' WHERE id = 'naps'", 7, "naps", "waits cannot be read"),
    ("UPDATE instance SET state = 'LOST' WHERE id = 'naps'", 7, "naps", "state cannot be read"),
    ("UPDATE signal SET name = 'go' WHERE name = 'other'", 7, "waits", "send the signal again"),
    (
        "DELETE FROM instance_start WHERE instance = (SELECT key FROM instance WHERE id = 'naps')",
        7,
        "naps",
        "start",
    ),
    ("DELETE FROM image", 7, "naps", "image is not there"),
    ("UPDATE checkpoint SET attempt = 7 WHERE name = 'step-1'", 2, "took", "above 1"),
    (
        "UPDATE attempt SET attempt = 2 WHERE instance = (SELECT key FROM instance WHERE id = 'took')",
        2,
        "took",
        "above 1",
    ),
    ("UPDATE signal SET consumed_by = 7 WHERE name = 'hi'", 2, "took", "above 1"),
    (
        "DELETE FROM attempt WHERE instance = (SELECT key FROM instance WHERE id = 'took')",
        1,
        "took",
        "not recorded",
    ),
    (
        "UPDATE attempt SET attempt = 0 WHERE instance = (SELECT key FROM instance WHERE id = 'done')",
        1,
        "done",
        "attempts",
    ),
    ("DELETE FROM checkpoint WHERE name = 'step-1'", 1, "took", "checkpoints 1 to 5"),
    ("DELETE FROM event WHERE number = 2", 1, "took", "events 1 to"),
    ("DELETE FROM signal WHERE number = 1 AND name = 'hi'", 5, "took", "signals 1 to 2"),
    (
        "UPDATE signal SET consumed_by = NULL, consumed_at = NULL WHERE number = 1 AND name = 'hi'",
        5,
        "took",
        "before an older",
    ),
    ("DELETE FROM checkpoint WHERE name = 'take-1'", 5, "took", "fewer waits"),
    (
        "DELETE FROM instance_ending WHERE instance = (SELECT key FROM instance WHERE id = 'done')",
        6,
        "done",
        "ending said",
    ),
    (
        "UPDATE instance_ending SET output = NULL, encoding = NULL, type_name = NULL",
        6,
        "done",
        "lacks the output",
    ),
    (
        "UPDATE instance_ending SET instance = (SELECT key FROM instance WHERE id = 'naps')
       WHERE instance = (SELECT key FROM instance WHERE id = 'done')",
        6,
        "naps",
        "can never end",
    ),
    (
        "DELETE FROM event WHERE number = 1 AND instance = (SELECT key FROM instance WHERE id = 'done')",
        1,
        "done",
        "deletion was begun",
    ),
    ("DELETE FROM instance WHERE id = 'took'", 1, "key ", "checkpoints belong to no instance"),
    ("DELETE FROM instance WHERE id = 'took'", 5, "key ", "signals belong to no instance"),
    ("DELETE FROM instance WHERE id = 'took'", 1, "key ", "events belong to no instance"),
    ("DELETE FROM instance WHERE id = 'took'", 1, "key ", "attempts belong to no instance"),
    ("DELETE FROM instance WHERE id = 'took'", 1, "key ", "start belongs to no instance"),
    ("DELETE FROM instance WHERE id = 'done'", 1, "key ", "ending belongs to no instance"),
    ("UPDATE image SET chunks = 2", 7, "image ", "chunks 1 to 2"),
];

/// What only a cluster can lack.
const CLUSTER_DAMAGE: &[(&str, u8, &str, &str)] = &[
    ("UPDATE node SET renewed_at = 0", 7, "took", "no sign of life"),
    ("UPDATE image SET chunks = 0", 7, "naps", "not in the database"),
    ("DELETE FROM image_chunk", 7, "image ", "missing or cut"),
];

async fn invariant_7_whatever_is_stuck_or_broken_is_named(db: TestDb) {
    let kind = db.store.kind();
    let cluster = if kind == Kind::Postgres { CLUSTER_DAMAGE } else { &[] };
    for (sql, invariant, subject, says) in DAMAGE.iter().chain(cluster) {
        let db = match kind {
            Kind::Sqlite => db::sqlite().await,
            Kind::Postgres => db::postgres().await,
        };
        populate(&db).await;
        sabotage(&db, sql).await;
        let found = violations(&db, PATIENCE).await;
        let named = found.iter().any(|violation| {
            violation.invariant == *invariant
                && violation.subject.starts_with(subject)
                && violation.sentence.contains(says)
        });
        assert!(named, "{sql}: {found:#?}");
    }
}

async fn many_instances_are_checked_page_by_page(db: TestDb) {
    for n in 0..1_100 {
        db.start(&format!("i{n}")).await;
    }
    assert_eq!(violations(&db, PATIENCE).await, []);
    sabotage(&db, "DELETE FROM instance_start WHERE instance % 100 = 0").await;
    let found = violations(&db, PATIENCE).await;
    assert_eq!(found.len(), 11, "{found:#?}");
    assert!(found.iter().all(|violation| violation.tenant == "default"));
}

async fn a_database_of_another_release_is_refused(db: TestDb) {
    let open = async || Inspector::open(&db.options.database, Clock::Database, PATIENCE).await;
    sabotage(&db, "DELETE FROM migration WHERE number > 1").await;
    let error = open().await.expect_err("an older schema");
    assert!(error.to_string().contains("dormouse migrate"), "{error}");
    sabotage(&db, "UPDATE migration SET min_release = '99.0.0'").await;
    assert_eq!(code(open().await), "FAILED_PRECONDITION");
}
