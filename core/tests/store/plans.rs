//! How the databases carry out the store's statements once tables are large: nothing reads a
//! table that grows from end to end, and nothing sorts what waits.
//!
//! Every statement is judged, on both databases, by the plan that the database itself tells. What
//! may do it nevertheless stands in [`EXCEPTIONS`], with the reason. No times are measured.

mod postgres;
mod source;
mod sqlite;

use std::fmt;

use dormouse_core::store::{Database, check::PATIENCE};

use crate::{
    contract::check::violations,
    db::{self, TestDb},
    load::{Load, fill},
};

/// Tables without bound. The others hold what people make one by one: tenants, tokens, nodes, images.
const GROWING: [&str; 8] = [
    "instance",
    "instance_start",
    "instance_ending",
    "attempt",
    "checkpoint",
    "signal",
    "event",
    "image_chunk",
];

/// What a plan should not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Reads a table that grows, row by row.
    Scan,
    /// Reads an index of such a table from its beginning.
    WholeIndex,
    /// Reads all that a tenant has.
    WholeTenant,
    /// Sorts rows of such a table.
    Sort,
    /// Reads over rows that it does not want until it has enough.
    Skips,
}

/// Statement, what it may do, and why that stays bounded or is what was asked for.
const EXCEPTIONS: &[(&str, Fault, &str)] = &[
    ("exits.rs LOST_NODES", Fault::Sort, "nodes, each with a look whether it has an instance"),
    ("instances.rs COUNT", Fault::WholeTenant, "a person asks how many there are; in the index alone"),
    ("instances.rs COUNT_IMAGE", Fault::WholeTenant, "a person asks how many there are"),
    ("instances.rs COUNT_IMAGE", Fault::Sort, "a person asks how many there are"),
    ("instances.rs DETAIL", Fault::Skips, "attempts of one instance; nearly all have an end"),
    ("instances.rs LAST_EXIT", Fault::Skips, "attempts of one instance; nearly all have an end"),
    (
        "instances.rs LIST_BOTH",
        Fault::Skips,
        "a person narrows a list by two filters; one of them has the index",
    ),
    ("retry.rs TAKE_OVER", Fault::Sort, "copies the checkpoints of one instance"),
    ("save_set.rs POSTGRES", Fault::Sort, "the saves of one batch"),
    ("save_set.rs SQLITE", Fault::Sort, "the saves of one batch"),
    ("sessions.rs LOOK", Fault::Sort, "unread signals of one instance, of which there is a limit"),
    ("signals.rs UNREAD", Fault::Sort, "unread signals of one instance, of which there is a limit"),
    ("tenants.rs RUNNING", Fault::Sort, "what runs at this moment, on all nodes together"),
    ("tenants.rs RUNNING", Fault::WholeIndex, "an index of what runs at this moment"),
    ("tenants.rs STORED", Fault::WholeIndex, "counts for a list of tenants, in the index alone"),
    ("tenants.rs STORED_OF", Fault::WholeTenant, "counts for a quota, in the index alone; kept for a second"),
    ("turns.rs HEADS", Fault::WholeIndex, "its first entry"),
    ("turns.rs HEADS", Fault::Sort, "one row for each tenant and priority"),
    ("wakes.rs HOLD", Fault::Sort, "ten rows, one for each priority"),
    ("wakes.rs NEXT", Fault::Sort, "ten rows, one for each priority"),
];

/// What a plan does, in its own words.
struct Finding {
    fault: Fault,
    says: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.fault, self.says)
    }
}

/// A database that many have lived in for long.
async fn large(db: &TestDb, statistics: bool) -> String {
    db.store.close().await;
    let address = match &db.options.database {
        Database::Sqlite(path) => path.display().to_string(),
        Database::Postgres(url) => url.clone(),
    };
    let load = Load { ended: 4_000, sleeping: 6_000, checkpoints: 30_000, statistics, ..Load::default() };
    fill(&address, &load).await.expect("it is filled");
    address
}

/// Panics with everything that is found and not excepted.
fn judge(findings: &[(String, Finding)]) {
    let excepted = |name: &str, fault| EXCEPTIONS.iter().any(|(of, may, _)| *of == name && *may == fault);
    let bad = findings.iter().filter(|(name, finding)| !excepted(name, finding.fault));
    let bad: Vec<_> = bad.map(|(name, finding)| format!("{name}: {finding}")).collect();
    assert!(bad.is_empty(), "statements that cost more as tables grow:\n{}", bad.join("\n"));
}

#[test]
fn the_sources_are_read_to_the_last_statement() {
    let statements = source::statements();
    let has = |name: &str, text: &str| {
        let one = statements.iter().find(|statement| statement.name == name);
        let one = one.unwrap_or_else(|| panic!("{name} is not found"));
        assert!(one.postgres.as_ref().is_some_and(|sql| sql.contains(text)), "{:?}", one.postgres);
    };
    has("wakes.rs DUE", "FOR NO KEY UPDATE SKIP LOCKED");
    has("instances.rs LIST", "WHERE i.tenant = $1 AND i.key < $2 ORDER BY i.key DESC LIMIT 0 + $3");
    has(
        "retention.rs NUMBERED #3",
        "LENGTH(data), 0) AS BIGINT) AS bytes FROM checkpoint WHERE instance = $1",
    );
    has("image_chunks.rs SWEEPABLE", "i.image_digest = image.digest AND i.ended_at IS NULL)");
    assert!(statements.len() > 150, "only {} statements", statements.len());
}

/// SQLite looks at a bound limit while it plans, and so prepares the statement anew each time one is bound.
#[test]
fn no_limit_is_a_bare_argument() {
    let statements = source::statements();
    let bare = statements.iter().filter(|one| one.sqlite.as_ref().is_some_and(|sql| sql.contains("LIMIT $")));
    let bare: Vec<_> = bare.map(|one| one.name.as_str()).collect();
    assert_eq!(bare, [""; 0], "write LIMIT 0 + $1");
}

#[tokio::test]
async fn no_statement_costs_more_as_tables_grow() {
    let (sqlite, postgres, grown) = (db::sqlite().await, db::postgres().await, db::postgres().await);
    judge(&sqlite::findings(&large(&sqlite, false).await).await);
    judge(&postgres::findings(&large(&postgres, true).await).await);
    // Its statistics are those of a handful of rows still.
    let few = Load { ended: 2, sleeping: 3, checkpoints: 20, ..Load::default() };
    let Database::Postgres(url) = &grown.options.database else { unreachable!("it is one") };
    fill(url, &few).await.expect("it is filled");
    judge(&postgres::findings(&large(&grown, false).await).await);
}

#[tokio::test]
async fn what_is_filled_in_bulk_is_whole() {
    for db in [db::sqlite().await, db::postgres().await] {
        large(&db, true).await;
        assert_eq!(violations(&db, PATIENCE).await, [], "{:?}", db.store.kind());
    }
}
