//! Where the database is, and how connections to it are made.

use std::{path::PathBuf, sync::Arc};

use super::{
    error::{Error, NOT_ENCRYPTED, Result, database_state, is_connection_lost, is_not_encrypted},
    postgres::PostgresServer,
    sql::{Conn, Kind},
    sqlite::SqliteFile,
};

/// Which database to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file of this machine; it is made if it does not exist.
    Sqlite(PathBuf),
    /// A server: `postgres://user:password@host:port/database`.
    Postgres(String),
}

impl Database {
    /// Reads `postgres://…`, `postgresql://…`, `sqlite:PATH` or a path.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.to_owned()));
        }
        let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:")).unwrap_or(text);
        if path.is_empty() || (path == text && text.contains("://")) {
            return Err(Error::Invalid {
                field: "database",
                value: format!("{text:?}"),
                remedy: "give postgres://USER@HOST/NAME, or sqlite:PATH",
            });
        }
        Ok(Self::Sqlite(path.into()))
    }
}

/// Makes connections; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Connector {
    Sqlite(Arc<SqliteFile>),
    Postgres(Arc<PostgresServer>),
}

impl Connector {
    pub(super) fn new(database: &Database) -> Result<Self> {
        Ok(match database {
            Database::Sqlite(path) => Self::Sqlite(Arc::new(SqliteFile::new(path)?)),
            Database::Postgres(url) => Self::Postgres(Arc::new(PostgresServer::new(url)?)),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }

    /// How people call it; without a password.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Sqlite(file) => file.name(),
            Self::Postgres(server) => server.name(),
        }
    }

    pub(super) async fn connect(&self, read_only: bool) -> Result<Conn, sqlx::Error> {
        match self {
            Self::Sqlite(file) => file.connect(read_only).await,
            Self::Postgres(server) => server.connect(read_only).await,
        }
    }

    /// A writer is about to commit so much: SQLite's log grows by it.
    pub(super) fn wrote(&self, writes: u64, bytes: u64) {
        if let Self::Sqlite(file) = self {
            file.wrote(writes, bytes);
        }
    }

    /// Between two transactions of a writer: what it has to do for the log.
    pub(super) async fn finish_log(&self, conn: &mut Conn) -> Result<()> {
        match self {
            Self::Sqlite(file) => file.finish_log(conn).await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// The first connection, with an error that says what to do.
    pub(super) async fn open(&self, read_only: bool) -> Result<Conn> {
        self.connect(read_only).await.map_err(|source| Error::Open {
            database: self.name(),
            problem: self.remedy(&source),
            source: Some(source),
        })
    }

    fn remedy(&self, error: &sqlx::Error) -> String {
        match self {
            Self::Sqlite(_) => "check that the directory exists, is writable and has space".to_owned(),
            Self::Postgres(_) => match error.as_database_error() {
                Some(error) if error.code().is_some_and(|code| code.starts_with("28")) => {
                    "check user and password".to_owned()
                }
                Some(_) if is_connection_lost(error) => database_state(error).to_owned(),
                Some(error) => format!("it says {:?}; check its address", error.message()),
                None if is_not_encrypted(error) => NOT_ENCRYPTED.to_owned(),
                None => "it does not answer; check its address and that it runs".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_are_told_apart() {
        let url = "postgres://dormouse@db/dormouse";
        assert_eq!(Database::parse(url).expect("a server"), Database::Postgres(url.to_owned()));
        for text in ["/var/lib/x.db", "sqlite:/var/lib/x.db", "sqlite:///var/lib/x.db"] {
            let parsed = Database::parse(text).expect("a file");
            assert_eq!(parsed, Database::Sqlite("/var/lib/x.db".into()), "{text}");
        }
        assert!(Database::parse("mysql://x").is_err());
        assert!(Database::parse("").is_err());
    }
}
