//! Whether everything that is stored holds together: for `dormouse doctor --data`.
//!
//! It asks every instance, in pages by key, whether invariants 1 and 7, and what follows from 2, 5
//! and 6 for a database at rest, hold. Each page is one short transaction that only reads one
//! moment of the database: nobody waits for it, services may run meanwhile, and nothing is
//! changed or migrated. It has a connection of its own and no tasks.

mod rules;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use self::rules::{BEING_DELETED, BEING_DELETED_SENTENCE, IMAGES, RULES, Rule, Scope, UNREAD_AT_REST};
use super::{
    Clock, Database,
    error::{Error, Result},
    life::{self, life_columns},
    migrate,
    open::Connector,
    sql::{Conn, Kind, Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::{InstanceKey, Name},
    instance::{Life, State},
    wake::Waits,
};

/// Instances that one transaction looks at.
const PAGE: u32 = 500;
/// Images that one transaction looks at; each may have some hundred chunks.
const IMAGE_PAGE: u32 = 20;

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Whose; empty where that is not known any more.
    pub tenant: String,
    /// The instance's id, or what else is meant: "image DIGEST", "key NUMBER".
    pub subject: String,
    /// Which invariant it breaks.
    pub invariant: u8,
    /// What is wrong and what to do, one sentence.
    pub sentence: String,
}

/// Where a check goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Instances { after: i64 },
    Images { after: String },
    Over,
}

impl Default for Place {
    fn default() -> Self {
        Self::Instances { after: i64::MIN }
    }
}

impl Progress {
    /// Everything was looked at.
    pub fn is_over(&self) -> bool {
        self.0 == Place::Over
    }
}

/// What one page showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is broken.
    pub violations: Vec<Violation>,
    /// Instances that were looked at.
    pub instances: u64,
    /// Images that were looked at.
    pub images: u64,
    /// For the next page.
    pub next: Progress,
}

/// Looks at a database and changes nothing.
#[derive(Debug)]
pub struct Inspector {
    conn: Conn,
    clock: Clock,
    /// From then on something has lasted too long.
    patience: Duration,
}

const HIGH: Stmt = stmt!(
    "SELECT COUNT(*) AS n, MAX(key) AS high FROM (
         SELECT key FROM instance WHERE key > $1 ORDER BY key LIMIT 0 + $2) AS page"
);
const ROWS: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key > $1 AND key <= $2 ORDER BY key"));

impl Inspector {
    /// For a database whose schema is of this release, or of a newer one that this one may work on.
    /// What should change by itself and has not for so long as `patience` is a violation.
    pub async fn open(database: &Database, clock: Clock, patience: Duration) -> Result<Self> {
        let connector = Connector::new(database)?;
        let mut conn = connector.open(true).await?;
        let applied = migrate::applied(&mut conn, env!("CARGO_PKG_VERSION")).await;
        let newest = dormouse_migrations::ALL.last().map_or(0, |step| step.number);
        // No table of migrations at all: a database of somebody else, or an empty one.
        match applied {
            Ok(applied) if applied >= newest => Ok(Self { conn, clock, patience }),
            Ok(_) | Err(Error::Database(_)) => Err(Error::Open {
                database: connector.name(),
                problem: "its tables are not of this release; `dormouse migrate` brings them up to date"
                    .to_owned(),
                source: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// Looks at one page: begin with [`Progress::default`], go on until it is over.
    pub async fn page(&mut self, from: Progress) -> Result<Checked> {
        let kind = self.conn.kind();
        let patience = self.patience;
        let mut tx = Tx::begin_read(&mut self.conn, &self.clock).await?;
        let checked = match from.0 {
            Place::Instances { after } => instances(&mut tx, kind, patience, after).await,
            Place::Images { after } => images(&mut tx, after).await,
            Place::Over => Ok(Checked { violations: Vec::new(), instances: 0, images: 0, next: from }),
        };
        // Also after an error: the connection is used again.
        tx.commit().await?;
        checked
    }

    /// Says goodbye to the database.
    pub async fn close(self) {
        self.conn.close().await;
    }
}

async fn instances(tx: &mut Tx<'_>, kind: Kind, patience: Duration, after: i64) -> Result<Checked> {
    let page = tx.fetch_one(&HIGH, args![after, PAGE]).await?;
    let instances = page.number("n")?;
    let last = instances < u64::from(PAGE);
    // Behind the last instance there may still be what belongs to none.
    let high = page.opt_int("high")?.filter(|_| !last).unwrap_or(i64::MAX);
    let before = tx.now().await? - patience;
    let mut found = Found::default();
    found.deleted(&tx.fetch(&BEING_DELETED, args![after, high]).await?)?;
    found.rows(tx, after, high).await?;
    for rule in RULES {
        let rows = match rule.scope {
            Scope::Cluster | Scope::LastingCluster if kind == Kind::Sqlite => continue,
            Scope::Always | Scope::Cluster => tx.fetch(&rule.stmt, args![after, high]).await?,
            Scope::Lasting | Scope::LastingCluster => {
                tx.fetch(&rule.stmt, args![after, high, before]).await?
            }
        };
        found.broken(rule, &rows)?;
    }
    let next = if last { Place::Images { after: String::new() } } else { Place::Instances { after: high } };
    Ok(Checked { violations: found.violations, instances, images: 0, next: Progress(next) })
}

/// What a page of instances has shown so far.
#[derive(Default)]
struct Found {
    violations: Vec<Violation>,
    being_deleted: HashSet<i64>,
}

impl Found {
    fn push(&mut self, row: &Row, invariant: u8, sentence: String) -> Result<()> {
        let subject = match row.text("id")?.as_str() {
            "" => format!("key {}", row.int("key")?),
            id => id.to_owned(),
        };
        self.violations.push(Violation { tenant: row.text("tenant")?, subject, invariant, sentence });
        Ok(())
    }

    fn deleted(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            self.being_deleted.insert(row.int("key")?);
            self.push(row, 1, BEING_DELETED_SENTENCE.to_owned())?;
        }
        Ok(())
    }

    fn broken(&mut self, rule: &Rule, rows: &[Row]) -> Result<()> {
        for row in rows {
            if !self.being_deleted.contains(&row.int("key")?) {
                let sentence = rule.sentence.replace("{}", &row.int("detail")?.to_string());
                self.push(row, rule.invariant, sentence)?;
            }
        }
        Ok(())
    }

    /// Whether each row can be read, and whether what rests without a wake waits for signals alone
    /// that have not come.
    async fn rows(&mut self, tx: &mut Tx<'_>, after: i64, high: i64) -> Result<()> {
        let mut unread: HashMap<InstanceKey, Vec<Name>> = HashMap::new();
        for row in tx.fetch(&UNREAD_AT_REST, args![after, high]).await? {
            unread.entry(row.instance("key")?).or_default().push(row.name("name")?);
        }
        for row in tx.fetch(&ROWS, args![after, high]).await? {
            let key = row.instance("key")?;
            let problem = match life::read(&row) {
                Err(Error::Unreadable { column, problem, .. }) => Some(format!(
                    "its column {column} cannot be read ({problem}); restore the database from a backup"
                )),
                Err(error) => return Err(error),
                Ok(locked) => at_rest(&locked.life, unread.get(&key).map_or(&[], Vec::as_slice)),
            };
            if let Some(problem) = problem {
                self.push(&row, 7, problem)?;
            }
        }
        Ok(())
    }
}

/// What is wrong with an instance that rests without a wake.
fn at_rest(life: &Life, unread: &[Name]) -> Option<String> {
    let waits = match &life.state {
        State::Suspended { waits, wake_at: None } => waits,
        State::Suspended { wake_at: Some(_), .. }
        | State::Pending { .. }
        | State::Launching { .. }
        | State::Running { .. }
        | State::Ended { .. } => return None,
    };
    if !waits_for_signals_alone(waits) {
        return Some(
            "it has no wake, and what it waits for wakes nobody by itself; stop it, or restore the database from a backup"
                .to_owned(),
        );
    }
    let waited = unread.iter().find(|name| waits.for_signal(name))?;
    Some(format!(
        "it waits for the signal {waited:?}, which is there and unread, and has no wake; send the signal again"
    ))
}

fn waits_for_signals_alone(waits: &Waits) -> bool {
    waits.signals().next().is_some()
        && waits.earliest_due().is_none()
        && !waits.for_resume()
        && !waits.for_retry()
}

async fn images(tx: &mut Tx<'_>, after: String) -> Result<Checked> {
    let rows = tx.fetch(&IMAGES, args![&after, IMAGE_PAGE]).await?;
    let mut violations = Vec::new();
    let mut last = after;
    for row in &rows {
        last = row.text("digest")?;
        let (chunks, n, top) = (row.number("chunks")?, row.number("n")?, row.number("top")?);
        let whole = n == chunks && top == chunks && row.number("bytes")? == row.number("size")?;
        // Without chunks it is being stored, or a file of one node.
        if chunks > 0 && !whole {
            violations.push(Violation {
                tenant: String::new(),
                subject: format!("image {last}"),
                invariant: 7,
                sentence: format!(
                    "of its chunks 1 to {chunks} some are missing or cut; push the same binary again"
                ),
            });
        }
    }
    let over = rows.len() < IMAGE_PAGE as usize;
    let next = if over { Place::Over } else { Place::Images { after: last } };
    Ok(Checked { violations, instances: 0, images: rows.len() as u64, next: Progress(next) })
}

/// How long something that should change by itself may stay as it is.
pub const PATIENCE: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{time::Micros, wake::Wait};

    #[test]
    fn every_rule_says_what_to_do() {
        for rule in RULES {
            assert!(rule.sentence.contains("; "), "{}", rule.sentence);
            assert!((1..=10).contains(&rule.invariant));
        }
    }

    #[test]
    fn only_signals_may_be_waited_for_without_a_wake() {
        let name = |text| Name::parse("name", text).expect("a name");
        let signal = |due_at| Wait::Signal {
            name: name("a"),
            key: crate::domain::id::Key::none(),
            signal: name("go"),
            due_at,
        };
        let alone = Waits::new(vec![signal(None)]).expect("one");
        assert!(waits_for_signals_alone(&alone));
        let timed = Waits::new(vec![signal(Some(Micros(1)))]).expect("one");
        assert!(!waits_for_signals_alone(&timed));
        assert!(!waits_for_signals_alone(&Waits::retry()));
    }
}
