//! Fills a database in bulk, as if instances had lived in it for long: ended ones, sleeping ones,
//! and their checkpoints.
//!
//! Everything is made inside the database, by a few statements over a series of numbers, and is
//! whole: `dormouse doctor --data` finds nothing wrong with it, what sleeps can be woken, what has
//! ended can be listed, retried and pruned. It ends with statistics and everything on disk,
//! so that no later measurement pays for it.
//!
//! The schema must be there (`dormouse migrate`, or any start of a service), and no service may
//! run meanwhile: on SQLite the file is written without a journal, so a load that fails half way
//! leaves a database of no use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, sqlite::SqliteConnectOptions};
use tokio::time::Instant;

/// What to fill a database with.
#[derive(Clone, Debug)]
pub struct Load {
    /// Instances that completed, between an hour and a second ago.
    pub ended: u64,
    /// Instances that sleep.
    pub sleeping: u64,
    /// Checkpoints of all of them together, spread evenly; what each sleep itself stores comes on
    /// top. Needs at least one instance.
    pub checkpoints: u64,
    /// Bytes of each checkpoint; at least 2.
    pub checkpoint_bytes: u64,
    /// When the first sleeper is due, from now on.
    pub due_in: Duration,
    /// The others follow, evenly, within this time.
    pub due_within: Duration,
    /// Entries of each timeline: 1 to 4. A life has four; fewer load faster.
    pub events: u64,
    /// Whether PostgreSQL gathers statistics at the end, as it would by itself after a while. SQLite never does,
    /// as in production.
    pub statistics: bool,
    /// Of which image: name and version, which must be stored. None: one that cannot be launched
    /// is put there, `load:1`.
    pub image: Option<(String, String)>,
    /// Which of its workflows; it finds steps named `step` with the keys 1, 2, 3 …
    pub workflow: String,
}

impl Default for Load {
    /// Nothing, as small as it may be: 200 bytes a checkpoint, due from a day on for a month.
    fn default() -> Self {
        const DAY: Duration = Duration::from_hours(24);
        Self {
            ended: 0,
            sleeping: 0,
            checkpoints: 0,
            checkpoint_bytes: 200,
            due_in: DAY,
            due_within: 30 * DAY,
            events: 4,
            statistics: true,
            image: None,
            workflow: "main".to_owned(),
        }
    }
}

/// The tenant that everything is loaded for.
pub const TENANT: &str = "default";
/// Whose digest stands for an image without bytes worth launching.
const DIGEST: &str = "10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad10ad";

/// Fills the database at `postgres://…` or at a path. Answers how long it took.
///
/// # Errors
/// If the database cannot be reached, has no schema, holds no such image, or is in use.
pub async fn fill(database: &str, load: &Load) -> anyhow::Result<Duration> {
    ensure!((1..=4).contains(&load.events), "load.events is {}; give 1 to 4", load.events);
    ensure!(load.checkpoint_bytes >= 2, "load.checkpoint_bytes is {}; give 2 or more", load.checkpoint_bytes);
    let instances = load.ended + load.sleeping;
    ensure!(
        instances > 0 || load.checkpoints == 0,
        "checkpoints need an instance; give load.sleeping or load.ended"
    );
    let began = Instant::now();
    if database.starts_with("postgres") {
        postgres(database, load).await?;
    } else {
        sqlite(database.strip_prefix("sqlite:").unwrap_or(database), load).await?;
    }
    Ok(began.elapsed())
}

async fn postgres(url: &str, load: &Load) -> anyhow::Result<()> {
    let mut conn = PgConnection::connect(url).await.context("connecting to fill the database")?;
    let rows = script(&POSTGRES, load);
    let text =
        format!("SET synchronous_commit = off; SET work_mem = '64MB'; BEGIN; {rows} {OWN_KEYS} COMMIT");
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut conn).await.context("filling the database")?;
    for table in TABLES {
        let text = format!("VACUUM (ANALYZE {}) {table}", load.statistics);
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut conn).await?;
    }
    sqlx::raw_sql("CHECKPOINT").execute(&mut conn).await?;
    Ok(conn.close().await?)
}

/// The next instance takes the key behind ours.
const OWN_KEYS: &str =
    "SELECT setval(pg_get_serial_sequence('instance', 'key'), (SELECT COALESCE(MAX(key), 1) FROM instance));";

async fn sqlite(path: &str, load: &Load) -> anyhow::Result<()> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false);
    let mut conn = options.connect().await.with_context(|| format!("opening {path} to fill it"))?;
    // The log of one large transaction would be as large as the file.
    let rows = script(&SQLITE, load);
    let text = format!(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;
         BEGIN EXCLUSIVE; {rows} COMMIT; PRAGMA journal_mode = WAL"
    );
    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut conn).await.context("filling the database")?;
    conn.close().await?;
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.sync_all()).with_context(|| format!("flushing {path}"))
}

/// Every table that it fills.
const TABLES: [&str; 8] = [
    "instance",
    "instance_start",
    "instance_ending",
    "attempt",
    "checkpoint",
    "event",
    "image",
    "image_name",
];

/// What the databases say differently.
struct Dialect {
    /// Rows `(n)` from 1 to `{count}`, as a table in FROM.
    series: &'static str,
    /// An id of 16 characters that no other instance has.
    id: &'static str,
    /// 32 bytes that no other attempt has.
    token: &'static str,
    /// `{text}` as bytes.
    bytes: &'static str,
    /// Before VALUES where a key is given.
    own_key: &'static str,
}

const POSTGRES: Dialect = Dialect {
    series: "generate_series(1, {count}::bigint) AS s(n)",
    id: "substr(md5('instance' || l.key), 1, 16)",
    token: "sha256(convert_to('token' || l.key, 'UTF8'))",
    bytes: "convert_to({text}, 'UTF8')",
    own_key: "OVERRIDING SYSTEM VALUE",
};

const SQLITE: Dialect = Dialect {
    series: "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)",
    id: "lower(hex(randomblob(8)))",
    token: "randomblob(32)",
    bytes: "CAST({text} AS BLOB)",
    own_key: "",
};

/// The instances to be, in the order of their keys, ended and sleeping ones mixed; and numbers as
/// many as one of them has checkpoints.
const PLAN: [&str; 5] = [
    "CREATE TEMPORARY TABLE load (n BIGINT PRIMARY KEY, key BIGINT NOT NULL, ended BOOLEAN NOT NULL,
                                  checkpoints BIGINT NOT NULL, due_at BIGINT NOT NULL, at BIGINT NOT NULL)",
    "INSERT INTO load
     SELECT n, n + {base}, (n * {ended}) / {instances} > ((n - 1) * {ended}) / {instances},
            (n * {checkpoints}) / {instances} - ((n - 1) * {checkpoints}) / {instances},
            {due_at} + ((n * 7919) % {instances}) * ({due_within} / {instances}),
            {now} - 3600000000 + n * (3600000000 / ({instances} + 1))
       FROM {instances_series}",
    "CREATE TEMPORARY TABLE load_number (n BIGINT PRIMARY KEY)",
    "INSERT INTO load_number SELECT n FROM {checkpoints_series} WHERE n <= {most}",
    "ANALYZE load",
];

/// A life each: started, claimed, registered, then completed or asleep.
const ROWS: [&str; 7] = [
    "INSERT INTO instance (key, tenant, id, image_name, image_version, image_digest, workflow, priority, state,
                           waits, wake_at, attempt, session, open, paused, cancel, crashes, created_at,
                           started_at, changed_at, ended_at, ended_by, version)
     {own_key}
     SELECT l.key, '{tenant}', {id}, '{image}', '{version}', {digest}, '{workflow}', 5,
            CASE WHEN l.ended THEN 'COMPLETED' ELSE 'SUSPENDED' END,
            CASE WHEN l.ended THEN NULL
                 ELSE '[{\"for\":\"due\",\"name\":\"nap\",\"key\":\"\",\"due_at\":' || l.due_at || '}]' END,
            CASE WHEN l.ended THEN NULL ELSE l.due_at END,
            1, 1, FALSE, FALSE, 'no', 0, l.at, l.at, l.at, CASE WHEN l.ended THEN l.at END,
            CASE WHEN l.ended THEN 'instance' END, 4
       FROM load l ORDER BY l.key",
    "INSERT INTO instance_start (instance, input, encoding, type_name, env, fingerprint)
     SELECT l.key, {input}, 'json', '', '{}', {fingerprint} FROM load l ORDER BY l.key",
    "INSERT INTO instance_ending (instance, output, encoding, type_name)
     SELECT l.key, {input}, 'json', '' FROM load l WHERE l.ended ORDER BY l.key",
    "INSERT INTO attempt (instance, attempt, token_hash, node, wake_reason, claimed_at, registered_at, ended_at,
                          exit_kind, exit_value, exit_message)
     SELECT l.key, 1, {token}, 'load', 'start', l.at, l.at, l.at, 'code', 0, 'exit code 0'
       FROM load l ORDER BY l.key",
    "INSERT INTO event (instance, number, at, attempt, kind, message)
     SELECT l.key, e.n, l.at, CASE WHEN e.n = 1 THEN 0 ELSE 1 END,
            CASE e.n WHEN 1 THEN 'started' WHEN 2 THEN 'claimed' WHEN 3 THEN 'registered'
                     ELSE CASE WHEN l.ended THEN 'completed' ELSE 'suspended' END END,
            CASE e.n WHEN 1 THEN '{workflow}' WHEN 2 THEN 'node load, because of start' ELSE '' END
       FROM load l CROSS JOIN (SELECT n FROM {events_series}) AS e ORDER BY l.key, e.n",
    "INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, data, encoding, type_name, note,
                             stored_at)
     SELECT l.key, c.n, 'step', CAST(c.n AS TEXT), 0, 'step', 1, {data}, 'json', 'String', '', l.at
       FROM load l JOIN load_number c ON c.n <= l.checkpoints ORDER BY l.key, c.n",
    "INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, due_at, note, stored_at)
     SELECT l.key, l.checkpoints + 1, 'nap', '', 1, 'due', 1, l.due_at, '', l.at
       FROM load l WHERE NOT l.ended ORDER BY l.key",
];

/// An image that nobody can launch; whole, as far as the tables say.
const IMAGE: [&str; 3] = [
    "INSERT INTO image (digest, size, workflows, sdk_version, architecture, created_at, chunks)
     VALUES ('{own_digest}', 1, '[\"main\"]', '0', 'none', {now}, 1) ON CONFLICT DO NOTHING",
    "INSERT INTO image_chunk (digest, number, data) VALUES ('{own_digest}', 1, {one_byte}) ON CONFLICT DO NOTHING",
    "INSERT INTO image_name (tenant, name, version, number, digest, created_at)
     VALUES ('{tenant}', '{image}', '{version}', 1, '{own_digest}', {now}) ON CONFLICT DO NOTHING",
];

/// The statements, with `{fragments}` replaced.
fn script(dialect: &Dialect, load: &Load) -> String {
    let instances = load.ended + load.sleeping;
    let most = load.checkpoints.div_ceil(instances.max(1));
    let series = |count: u64| dialect.series.replace("{count}", &count.to_string());
    let bytes = |text: &str| dialect.bytes.replace("{text}", &format!("'{text}'"));
    let (image, version) = load.image.clone().unwrap_or_else(|| ("load".to_owned(), "1".to_owned()));
    let (image, version) = (image.replace('\'', "''"), version.replace('\'', "''"));
    let name_of = format!("tenant = '{TENANT}' AND name = '{image}' AND version = '{version}'");
    let micros = |time: Duration| time.as_micros().to_string();
    let since_1970 = machine_time();
    let fragments = [
        ("{own_key}", dialect.own_key.to_owned()),
        ("{id}", dialect.id.to_owned()),
        ("{token}", dialect.token.to_owned()),
        ("{instances_series}", series(instances)),
        ("{checkpoints_series}", series(most)),
        ("{events_series}", series(load.events)),
        ("{base}", "(SELECT COALESCE(MAX(key), 0) FROM instance)".to_owned()),
        ("{most}", most.to_string()),
        ("{instances}", instances.to_string()),
        ("{ended}", load.ended.to_string()),
        ("{checkpoints}", load.checkpoints.to_string()),
        ("{due_at}", micros(since_1970 + load.due_in)),
        ("{due_within}", micros(load.due_within)),
        ("{now}", micros(since_1970)),
        ("{input}", bytes("1")),
        (
            "{data}",
            bytes(&format!("\"{}\"", "x".repeat(usize::try_from(load.checkpoint_bytes - 2).unwrap_or(0)))),
        ),
        ("{fingerprint}", bytes(&"f".repeat(128))),
        ("{one_byte}", bytes("0")),
        ("{tenant}", TENANT.to_owned()),
        ("{image}", image),
        ("{version}", version),
        ("{workflow}", load.workflow.replace('\'', "''")),
        ("{own_digest}", DIGEST.to_owned()),
        ("{digest}", format!("(SELECT digest FROM image_name WHERE {name_of})")),
    ];
    let own_image: &[&str] = if load.image.is_none() { &IMAGE } else { &[] };
    let nothing: &[&str] = if instances == 0 { &[] } else { &PLAN };
    let rows: &[&str] = if instances == 0 { &[] } else { &ROWS };
    let mut script = String::new();
    for statement in own_image.iter().chain(nothing).chain(rows) {
        let mut statement = (*statement).to_owned();
        for (fragment, text) in &fragments {
            statement = statement.replace(fragment, text);
        }
        script.push_str(&statement);
        script.push_str(";\n");
    }
    script
}

/// Since 1970: rows are dated relative to the moment of the load.
fn machine_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
