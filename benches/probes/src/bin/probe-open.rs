//! `probe-open DATABASE`: opens a database as a service must, an SQLite file by its path or a PostgreSQL by its
//! URL, reads its catalogue, prints `ready`, and ends as if it were killed: a connection that is closed in order would
//! copy SQLite's log back, and leave nothing to recover to whoever is measured next.

use std::{env, mem::forget, path::Path};

use anyhow::Context as _;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

fn main() -> anyhow::Result<()> {
    let database = env::args().nth(1).context("DATABASE is missing; give a path or a URL")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if database.starts_with("postgres:") {
            postgres(&database).await
        } else {
            sqlite(Path::new(&database)).await
        }
    })?;
    println!("ready");
    Ok(())
}

/// Reads the catalogue only: the limit knows no tables of anybody's.
async fn postgres(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query("SELECT count(*) FROM pg_class").fetch_one(&mut connection).await?;
    forget(connection);
    Ok(())
}

/// After a kill the log is read through before the first page is.
async fn sqlite(path: &Path) -> anyhow::Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.connect().await?;
    sqlx::query("SELECT count(*) FROM sqlite_schema").fetch_one(&mut connection).await?;
    forget(connection);
    Ok(())
}
