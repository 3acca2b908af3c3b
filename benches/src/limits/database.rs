//! What the databases take through our driver, sqlx: one row per transaction, 64 at once, reading many; and on
//! SQLite without the driver.

use std::{fs, process::Command, time::Instant};

use anyhow::bail;
use dormouse_probes::entries::{self, BATCH, DATA};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::task::JoinSet;

use super::peer::latencies;
use crate::{
    context::{Context, Database, Store},
    figure::{Figure, Latencies},
    registry::Findings,
};

/// Connections that write batches to PostgreSQL at once; SQLite has one writer.
const WRITERS: usize = 4;
/// Rows that the driver may be ahead of us while we read.
const ROWS_AHEAD: usize = 1024;
/// Rows that are read: as many as a resume has checkpoints.
const READ: [usize; 3] = [100, 1_000, 10_000];

/// A connection to an empty database with the tables.
enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// One row of 1 KiB per transaction, one after the other.
pub(crate) async fn commit(context: &Context, store: Store) -> anyhow::Result<Findings> {
    let (warm_up, count) = (size(context.count(200, 1)), size(context.count(2000, 5)));
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let database = context.database(store).await?;
        let mut connection = create(&database).await?;
        let data = vec![7; DATA];
        let mut latencies = Latencies::new();
        for number in 0..warm_up + count {
            let name = entries::name(number);
            let began = Instant::now();
            connection.insert(&name, &data).await?;
            if number >= warm_up {
                latencies.add(began.elapsed());
            }
        }
        rounds.push(latencies);
        connection.close().await?;
        context.remove(&database).await?;
    }
    let what = format!(
        "one row of 1 KiB per transaction, one after the other, by sqlx; {count} a round after {warm_up}"
    );
    Ok(vec![Figure::latency("commit", what, &rounds)].into())
}

/// Rows per second in batches of 64, set-wise and fenced.
pub(crate) async fn batch(context: &Context, store: Store) -> anyhow::Result<Findings> {
    let writers = match store {
        Store::Sqlite => 1,
        Store::Postgres => WRITERS,
    };
    let (warm_up, count) = (size(context.count(20, 1)), size(context.count(300, 2)));
    let mut rounds = Vec::new();
    for _ in 0..context.rounds() {
        let database = context.database(store).await?;
        let mut connections = vec![create(&database).await?];
        for _ in 1..writers {
            connections.push(connect(&database).await?);
        }
        let connections = write_batches(connections, 0..warm_up).await?;
        let began = Instant::now();
        let connections = write_batches(connections, warm_up..warm_up + count).await?;
        rounds.push(f64::from(u32::try_from(writers * count * BATCH)?) / began.elapsed().as_secs_f64());
        for connection in connections {
            connection.close().await?;
        }
        context.remove(&database).await?;
    }
    let on = if writers == 1 { "one connection".to_owned() } else { format!("{writers} connections") };
    let what = format!(
        "rows of 1 KiB, {BATCH} per transaction, set-wise and fenced, on {on}, by sqlx; {count} batches each a round after {warm_up}"
    );
    Ok(vec![Figure::rate("batch", what, rounds)].into())
}

/// Each connection writes for instances of its own: they wait for the disk together, not for each other.
async fn write_batches(
    connections: Vec<Connection>,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<Vec<Connection>> {
    let mut writing = JoinSet::new();
    for (writer, mut connection) in connections.into_iter().enumerate() {
        let numbers = numbers.clone();
        writing.spawn(async move {
            let data = vec![7; DATA * BATCH];
            for number in numbers {
                connection.insert_batch(writer, number, &data).await?;
            }
            anyhow::Ok(connection)
        });
    }
    let mut connections = Vec::new();
    while let Some(written) = writing.join_next().await {
        connections.push(written??);
    }
    Ok(connections)
}

/// The same two on SQLite without sqlx: what another writer could win at most.
pub(crate) fn raw(context: &Context) -> anyhow::Result<Findings> {
    if !context.stores().contains(&Store::Sqlite) {
        return Ok(Findings::default());
    }
    let program = context.programs().path("probe-sqlite")?;
    let (mut commits, mut batches) = (Vec::new(), Vec::new());
    let (warm_up, count, count_of_batches) =
        (context.count(20, 1), context.count(2000, 5), context.count(300, 2));
    for _ in 0..context.rounds() {
        let folder = context.folder("raw")?;
        let run = |what: &str, count: u32| {
            let mut command = Command::new(&program);
            command.arg(what).arg(folder.join(what)).args([warm_up.to_string(), count.to_string()]);
            tokio::task::block_in_place(|| latencies(&mut command))
        };
        commits.push(run("commit", count)?);
        batches.push(run("batch", count_of_batches)?);
        fs::remove_dir_all(&folder)?;
    }
    let rates = batches
        .iter()
        .map(|batches| f64::from(u32::try_from(BATCH).unwrap_or(u32::MAX)) / batches.mean())
        .collect();
    let mut figures = vec![
        Figure::latency("raw.commit", format!("commit without sqlx; {count} a round"), &commits),
        Figure::rate("raw.batch", format!("batch without sqlx; {count_of_batches} batches a round"), rates),
    ];
    for figure in &mut figures {
        figure.store = Some(Store::Sqlite);
    }
    Ok(figures.into())
}

/// Reading all rows of one instance, on a connection that has read them before.
pub(crate) async fn rows(context: &Context, store: Store) -> anyhow::Result<Findings> {
    let database = context.database(store).await?;
    let mut connection = create(&database).await?;
    let most = size(context.count(10_000, 100));
    connection.fill(most).await?;
    let mut figures = Vec::new();
    for rows in READ {
        let (read, repeat) = (rows.min(most), context.count(20, 1));
        let mut rounds = Vec::new();
        connection.read(read).await?;
        for _ in 0..context.rounds() {
            let mut latencies = Latencies::new();
            for _ in 0..repeat {
                let began = Instant::now();
                connection.read(read).await?;
                latencies.add(began.elapsed());
            }
            rounds.push(latencies);
        }
        let what = format!(
            "reading {read} rows of {} B of one instance by sqlx; {repeat} times a round after one",
            entries::SMALL
        );
        figures.push(Figure::latency(format!("rows.{rows}"), what, &rounds));
    }
    connection.close().await?;
    context.remove(&database).await?;
    Ok(figures.into())
}

impl Connection {
    async fn insert(&mut self, name: &str, data: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(sqlite) => {
                sqlx::query(entries::INSERT).bind(1_i64).bind(name).bind(data).execute(sqlite).await?;
            }
            Self::Postgres(postgres) => {
                sqlx::query(entries::INSERT).bind(1_i64).bind(name).bind(data).execute(postgres).await?;
            }
        }
        Ok(())
    }

    /// One transaction; which writer it is chooses the instances.
    async fn insert_batch(&mut self, writer: usize, number: usize, data: &[u8]) -> anyhow::Result<()> {
        let written = match self {
            Self::Sqlite(sqlite) => {
                let keys = entries::batch_keys(number);
                sqlx::query(entries::SQLITE_INSERT_BATCH).bind(keys).bind(data).fetch_all(sqlite).await?.len()
            }
            Self::Postgres(postgres) => {
                let name = entries::name(number);
                let first = i64::try_from(writer * BATCH)?;
                let instances: Vec<i64> = (1..).map(|n| first + n).take(BATCH).collect();
                let data: Vec<&[u8]> = data.chunks(DATA).collect();
                let query = sqlx::query(entries::POSTGRES_INSERT_BATCH);
                let query = query.bind(instances).bind(vec![1_i64; BATCH]).bind(vec![name; BATCH]).bind(data);
                query.fetch_all(postgres).await?.len()
            }
        };
        if written != BATCH {
            bail!("{written} of {BATCH} rows were written");
        }
        Ok(())
    }

    async fn fill(&mut self, rows: usize) -> anyhow::Result<()> {
        let rows = i64::try_from(rows)?;
        match self {
            Self::Sqlite(sqlite) => {
                sqlx::query(entries::SQLITE_FILL).bind(rows).execute(sqlite).await?;
            }
            Self::Postgres(postgres) => {
                sqlx::query(entries::POSTGRES_FILL).bind(rows).execute(&mut *postgres).await?;
                sqlx::query("VACUUM ANALYZE entry").execute(postgres).await?;
            }
        }
        Ok(())
    }

    /// Fetched and decoded: name and data of each.
    async fn read(&mut self, rows: usize) -> anyhow::Result<()> {
        let limit = i64::try_from(rows)?;
        let read: Vec<(String, Vec<u8>)> = match self {
            Self::Sqlite(sqlite) => sqlx::query_as(entries::READ).bind(limit).fetch_all(sqlite).await?,
            Self::Postgres(postgres) => sqlx::query_as(entries::READ).bind(limit).fetch_all(postgres).await?,
        };
        if read.len() != rows {
            bail!("{} of {rows} rows were read", read.len());
        }
        Ok(())
    }

    async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(sqlite) => sqlite.close().await?,
            Self::Postgres(postgres) => postgres.close().await?,
        }
        Ok(())
    }
}

async fn create(database: &Database) -> anyhow::Result<Connection> {
    let mut connection = connect(database).await?;
    match &mut connection {
        Connection::Sqlite(sqlite) => {
            sqlx::raw_sql(entries::SQLITE_TABLES).execute(sqlite).await?.rows_affected()
        }
        Connection::Postgres(postgres) => {
            sqlx::raw_sql(entries::POSTGRES_TABLES).execute(postgres).await?.rows_affected()
        }
    };
    Ok(connection)
}

/// As durable as the store's own connections.
async fn connect(database: &Database) -> anyhow::Result<Connection> {
    Ok(match database {
        Database::Sqlite(path) => {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                // Rows cross from the driver's thread to ours: a short queue makes the two wait for each other.
                .row_buffer_size(ROWS_AHEAD)
                .disable_statement_logging();
            Connection::Sqlite(options.connect().await?)
        }
        Database::Postgres { url } => {
            let options: sqlx::postgres::PgConnectOptions = url.parse()?;
            let mut postgres = options.disable_statement_logging().connect().await?;
            sqlx::query("SET synchronous_commit = on").execute(&mut postgres).await?;
            Connection::Postgres(postgres)
        }
    })
}

fn size(count: u32) -> usize {
    usize::try_from(count).expect("a count fits")
}
