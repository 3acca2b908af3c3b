//! The database of one test: made for it, gone with it.

use std::future::Future;

use sqlx::{Connection, PgConnection};

use crate::postgres;

/// Which database a case runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file in the data directory.
    Sqlite,
    /// A database of its own on the server that all tests share.
    Postgres,
}

/// Where the rows are. What was made for the test is dropped with this.
#[derive(Debug)]
pub(crate) enum Rows {
    /// In the data directory.
    Sqlite,
    /// In a database on the server that all tests share.
    Shared {
        /// With the database's name.
        url: String,
        /// The database.
        name: String,
    },
    /// On a server that is the test's own, or behind something that the test put before it.
    Own {
        /// With the database's name.
        url: String,
    },
}

impl Rows {
    pub(crate) async fn make(database: Database) -> Self {
        match database {
            Database::Sqlite => Self::Sqlite,
            Database::Postgres => create_database().await,
        }
    }

    /// None for SQLite.
    pub(crate) fn url(&self) -> Option<&str> {
        match self {
            Self::Sqlite => None,
            Self::Shared { url, .. } | Self::Own { url } => Some(url),
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if let Self::Shared { name, .. } = self {
            let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            if let Err(error) = in_own_runtime(administer(statement)) {
                eprintln!("the database {name} is left: {error}");
            }
        }
    }
}

async fn create_database() -> Rows {
    let name = format!("dormouse_test_{:016x}", fastrand::u64(..));
    administer(format!("CREATE DATABASE {name}")).await.expect("the superuser may create a database");
    Rows::Shared { url: postgres::with_database(postgres::shared_url(), &name), name }
}

async fn administer(statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(postgres::shared_url()).await?;
    // Made of our own digits: nothing to escape.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// For a drop, which may happen inside a runtime.
fn in_own_runtime<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(future)
        });
        work.join().expect("the thread does not panic")
    })
}
