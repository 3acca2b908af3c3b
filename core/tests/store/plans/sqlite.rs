//! What SQLite says of each statement by EXPLAIN QUERY PLAN. It has no statistics, as in
//! production, so its plans follow from the schema alone.

use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};

use super::{Fault, Finding, GROWING, source::statements};

/// What is found in all plans.
pub(super) async fn findings(path: &str) -> Vec<(String, Finding)> {
    let mut conn = SqliteConnection::connect(path).await.expect("it opens");
    let mut found = Vec::new();
    for statement in statements() {
        // The checks of `doctor --data` read everything, in pages of keys.
        let Some(text) = statement.sqlite.filter(|_| !statement.name.starts_with("check")) else { continue };
        if text.starts_with("PRAGMA") || text.contains("pg_notify") {
            continue;
        }
        // Several in one, which run one after the other.
        for text in text.split(';') {
            let explain = sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")));
            let lines = explain.fetch_all(&mut conn).await;
            let lines = lines.unwrap_or_else(|error| panic!("{}: {error}: {text}", statement.name));
            for line in lines {
                let line: String = line.get("detail");
                if let Some(fault) = fault(text, &line) {
                    found.push((statement.name.clone(), Finding { fault, says: line }));
                }
            }
        }
    }
    conn.close().await.expect("it closes");
    found
}

/// A line says `SCAN i USING INDEX …`, `SEARCH instance USING INDEX … (tenant=? AND key<?)`, or
/// `USE TEMP B-TREE FOR ORDER BY`.
fn fault(text: &str, line: &str) -> Option<Fault> {
    let table = || line.split(' ').nth(1).map_or("", |alias| table_of(text, alias));
    if line.starts_with("USE TEMP B-TREE") {
        return GROWING.iter().any(|table| text.contains(&format!(" {table}"))).then_some(Fault::Sort);
    }
    if line.starts_with("SCAN") && GROWING.contains(&table()) {
        return Some(if line.contains("USING") { Fault::WholeIndex } else { Fault::Scan });
    }
    (line.contains("(tenant=?)") && GROWING.contains(&table())).then_some(Fault::WholeTenant)
}

/// What an alias stands for.
fn table_of<'a>(text: &'a str, alias: &'a str) -> &'a str {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c == ',' || c == '(' || c == ')').collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty() && *word != "AS").collect();
    let named =
        words.windows(3).find(|some| matches!(some[0], "FROM" | "JOIN" | "UPDATE") && some[2] == alias);
    named.map_or(alias, |some| some[1])
}
