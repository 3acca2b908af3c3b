//! Brings the schema to this release, under a lock, in one transaction.
//!
//! Steps that a newer release has applied stay and are worked with, unless one of them says
//! that this release is too old for it: then it is refused by name.

use dormouse_migrations::Migration;

use super::{
    Clock,
    error::{Error, Result},
    open::Connector,
    sql::{Conn, Kind, Stmt, Tx, args, stmt},
};

/// Any number will do, as long as every release takes the same.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(4928176302915)";

/// Not STRICT and without COLLATE, so that one text fits both databases and every release.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS migration (
    number BIGINT PRIMARY KEY, name TEXT NOT NULL, min_release TEXT NOT NULL, applied_at BIGINT NOT NULL)";
const APPLIED: Stmt = stmt!("SELECT number, min_release FROM migration ORDER BY number");
const RECORD: Stmt =
    stmt!("INSERT INTO migration (number, name, min_release, applied_at) VALUES ($1, $2, $3, $4)");

/// Applies what is missing; `release` is our own version.
pub(super) async fn migrate(
    connector: &Connector,
    conn: &mut Conn,
    clock: &Clock,
    release: &str,
    steps: &[Migration],
) -> Result<()> {
    let _lock = match connector {
        Connector::Sqlite(file) => Some(file.migration_lock().await?),
        Connector::Postgres(_) => None,
    };
    if connector.kind() == Kind::Postgres {
        // An index on a large table takes its time, and whoever comes second waits for it.
        conn.set_answer_within(None);
        conn.run("BEGIN").await?;
        conn.run(POSTGRES_LOCK).await?;
    } else {
        conn.run("BEGIN IMMEDIATE").await?;
    }
    let applied = apply(conn, clock, release, steps).await;
    match &applied {
        Ok(()) => conn.run("COMMIT").await?,
        Err(_) => conn.run("ROLLBACK").await?,
    }
    applied
}

async fn apply(conn: &mut Conn, clock: &Clock, release: &str, steps: &[Migration]) -> Result<()> {
    conn.run(TABLE).await?;
    let applied = applied(conn, release).await?;
    let kind = conn.kind();
    for step in steps.iter().filter(|step| step.number > applied) {
        conn.run(if kind == Kind::Sqlite { step.sqlite } else { step.postgres }).await?;
        let now = Tx::single(conn, clock).now().await?;
        let row = args![step.number, step.name, step.min_release(), now];
        conn.execute(&RECORD, row).await?;
        tracing::info!(number = step.number, name = step.name, "the schema was migrated");
    }
    Ok(())
}

/// The newest step that was applied; refused if `release` is too old for one of them.
pub(super) async fn applied(conn: &mut Conn, release: &str) -> Result<u32> {
    let mut applied = 0;
    for row in conn.fetch(&APPLIED, args![]).await? {
        applied = applied.max(row.small("number")?);
        let needs = row.text("min_release")?;
        if version(&needs) > version(release) {
            return Err(Error::ReleaseTooOld { needs, this: release.to_owned() });
        }
    }
    Ok(applied)
}

/// "0.12.3-dev" as numbers; what is no number counts as 0.
fn version(text: &str) -> [u32; 3] {
    let plain = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = plain.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        assert!(version("0.10.0") > version("0.9.12"));
        assert_eq!(version("1.2.3-dev"), [1, 2, 3]);
        assert_eq!(version("1"), [1, 0, 0]);
    }
}
