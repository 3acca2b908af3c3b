//! What PostgreSQL says of each statement by EXPLAIN: the one plan that it keeps for all arguments,
//! on a connection that is set as the store's own are.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::{
    Fault, Finding, GROWING,
    source::{self, statements},
};

/// What is found in all plans.
pub(super) async fn findings(url: &str) -> Vec<(String, Finding)> {
    let mut conn = PgConnection::connect(url).await.expect("it connects");
    run(&mut conn, &source::text("postgres.rs", "PLANNING")).await;
    let mut found = Vec::new();
    for statement in statements() {
        let Some(text) = statement.postgres.filter(|text| !text.starts_with("PRAGMA")) else { continue };
        let types = TYPES.iter().find(|(name, _)| *name == statement.name).map_or("", |(_, types)| types);
        let plan = plan(&mut conn, &text, types).await;
        let mut faults = Vec::new();
        look(&plan["Plan"], false, &mut faults);
        // The checks of `doctor --data` read everything, in pages of keys.
        faults.retain(|finding| finding.fault == Fault::Scan || !statement.name.starts_with("check"));
        found.extend(faults.into_iter().map(|finding| (statement.name.clone(), finding)));
    }
    conn.close().await.expect("it closes");
    found
}

async fn run(conn: &mut PgConnection, text: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(conn).await;
    ran.unwrap_or_else(|error| panic!("{error}: {text}"));
}

/// Types of arguments that the server cannot find by itself; the store's driver states them.
const TYPES: &[(&str, &str)] = &[(
    "save_set.rs POSTGRES",
    "(BIGINT[], TEXT[], BIGINT[], BIGINT[], TEXT[], TEXT[], BIGINT[], TEXT[], BIGINT[], BIGINT[], BYTEA[], TEXT[],
      TEXT[], TEXT[], BIGINT, BIGINT)",
)];

async fn plan(conn: &mut PgConnection, text: &str, types: &str) -> Value {
    let arguments = (1..100).take_while(|n| text.contains(&format!("${n}"))).count();
    let nulls = vec!["NULL"; arguments].join(", ");
    let given = if arguments == 0 { String::new() } else { format!("({nulls})") };
    run(conn, &format!("PREPARE judged {types} AS {text}")).await;
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE judged{given}");
    let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *conn).await.expect("a plan");
    run(conn, "DEALLOCATE judged").await;
    let plan: String = row.try_get_unchecked(0).expect("one column");
    serde_json::from_str::<Value>(&plan).expect("the plan is JSON")[0].take()
}

/// Conditions of partial indices, which a statement that locks rows checks again.
const OF_PARTIAL_INDICES: [&str; 4] =
    ["(NOT paused)", "(ended_at IS NULL)", "(consumed_by IS NULL)", "(wake_at IS NOT NULL)"];

fn look(node: &Value, limited: bool, found: &mut Vec<Finding>) {
    let text = |key: &str| node[key].as_str().unwrap_or_default();
    let (kind, table, index) = (text("Node Type"), text("Relation Name"), text("Index Name"));
    let mut fault = |fault, says: String| found.push(Finding { fault, says });
    if GROWING.contains(&table) {
        let (by, filter) = (text("Index Cond"), text("Filter"));
        if kind == "Seq Scan" {
            fault(Fault::Scan, format!("{kind} of {table}"));
        } else if kind.contains("Scan") && by.is_empty() {
            fault(Fault::WholeIndex, format!("{kind} of {index}"));
        } else if by.contains("tenant = ") && !by.contains(" AND ") {
            fault(Fault::WholeTenant, format!("{index} {by}"));
        }
        if limited && !filter.is_empty() && !OF_PARTIAL_INDICES.contains(&filter) {
            fault(Fault::Skips, format!("{index} {by} without {filter}"));
        }
    }
    if kind.contains("Sort") && reads_growing(node) {
        fault(Fault::Sort, format!("{kind} by {}", node["Sort Key"]));
    }
    for below in children(node) {
        look(below, limited || kind == "Limit", found);
    }
}

fn reads_growing(node: &Value) -> bool {
    let table = node["Relation Name"].as_str().unwrap_or_default();
    GROWING.contains(&table) || children(node).any(reads_growing)
}

fn children(node: &Value) -> impl Iterator<Item = &Value> {
    node["Plans"].as_array().into_iter().flatten()
}
