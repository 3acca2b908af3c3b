//! Durable messages to an instance (invariant 5): numbered under the row's lock, consumed in
//! that order by the checkpoint that stores what a wait took.

use std::collections::HashSet;

use super::{
    Notice, Store,
    commit::{LockOrder, Request},
    error::{Error, Result},
    life::{self, Target},
    payload,
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::{
    event::EventKind,
    id::{Attempt, InstanceId, InstanceKey, Name, Tenant},
    payload::Payload,
    signal::{NewSignal, StoredSignal, Unread},
    time::Micros,
    wake::Waits,
};
use crate::timings;

/// What a signal meets: one with its dedup key, and how many are unread. Walks at most as many entries as the limit
/// allows. Asked behind the row's lock, in a statement of its own: a snapshot taken before it may be old.
const LOOK: Stmt = stmt!(
    "SELECT (SELECT number FROM signal WHERE instance = $1 AND dedup = $2 AND dedup <> '') AS stored,
            (SELECT COUNT(*) FROM (
                 SELECT 1 FROM signal WHERE instance = $1 AND consumed_by IS NULL LIMIT 0 + $3) AS unread) AS unread"
);
/// The caller holds the instance's row, so numbers have no gaps.
macro_rules! insert {
    () => {
        "INSERT INTO signal (instance, number, name, dedup, data, encoding, type_name, sent_at)
         SELECT $1, COALESCE(MAX(number), 0) + 1, $2, $3, $4, $5, $6, $7 FROM signal WHERE instance = $1
         RETURNING number"
    };
}
macro_rules! tell {
    () => {
        "INSERT INTO event (instance, number, at, attempt, kind, message)
         SELECT $1, COALESCE(MAX(number), 0) + 1, $7, $8, $9, $2 FROM event WHERE instance = $1"
    };
}
/// The signal and its event in one: a hop to SQLite's thread, a round trip to PostgreSQL.
const INSERT: Stmt = Stmt {
    sqlite: concat!(insert!(), "; ", tell!()),
    postgres: concat!("WITH s AS (", insert!(), "), e AS (", tell!(), ") SELECT number FROM s"),
};
const UNREAD: Stmt = stmt!(
    "SELECT instance, number, name FROM signal
      WHERE instance = $1 AND consumed_by IS NULL ORDER BY number LIMIT 0 + $2"
);
const IS_UNREAD: Stmt = stmt!(
    "SELECT number FROM signal
      WHERE instance = $1 AND name = $2 AND consumed_by IS NULL ORDER BY number LIMIT 1"
);
/// Consumes the oldest unread one of a name; the caller holds the instance's row.
const TAKE: Stmt = stmt!(
    "UPDATE signal SET consumed_by = $1, consumed_at = $2
      WHERE instance = $3 AND consumed_by IS NULL AND number = (
            SELECT MIN(number) FROM signal WHERE instance = $3 AND name = $4 AND consumed_by IS NULL)
     RETURNING instance, number, data, encoding, type_name"
);
const LIST: Stmt = stmt!(
    "SELECT instance, number, name, sent_at, consumed_by FROM signal
      WHERE instance = $1 AND number > $2 ORDER BY number LIMIT 0 + $3"
);

/// Longest dedup key in bytes.
const DEDUP: usize = 200;

/// Where a sent signal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its number in its instance.
    pub number: u64,
    /// A signal with this dedup key was stored before; nothing was stored now.
    pub existed: bool,
}

struct Send {
    target: Target,
    signal: NewSignal,
    max_unread: u64,
}

impl Request for Send {
    type Answer = Sent;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Signal)
    }

    fn repeatable(&self) -> bool {
        !self.signal.dedup.is_empty() // without it a repeat is another signal
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.target.key)
    }

    fn bytes(&self) -> usize {
        self.signal.payload.data.len()
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Sent> {
        let row = life::lock_target(tx, &self.target).await?;
        let NewSignal { name, payload, dedup } = &self.signal;
        let found = tx.fetch_one(&LOOK, args![row.key, dedup, self.max_unread]).await?;
        if found.opt_int("stored")?.is_some() {
            return Ok(Sent { number: found.number("stored")?, existed: true });
        }
        let now = tx.now().await?;
        let next = row.life.signal(name, now)?;
        if found.number("unread")? >= self.max_unread {
            let remedy = "wait until it has taken some";
            return Err(Error::TooMany { what: "unread signals", max: self.max_unread, remedy });
        }
        let (data, encoding, type_name) = payload::columns(Some(payload));
        let (attempt, event) = (row.life.attempt, EventKind::Signal.as_str());
        let args = args![row.key, name, dedup, data, encoding, type_name, now, attempt, event];
        let [stored] = &tx.write_fetch(&INSERT, args).await?[..] else {
            return Err(Error::Broken { table: "signal".to_owned(), rows: 0 });
        };
        let number = stored.number("number")?;
        life::write(tx, &row, &next, now).await?;
        tx.notify(Notice::Instance(row.key)); // the push, where there is a session
        Ok(Sent { number, existed: false })
    }
}

/// Unread signals, oldest first.
pub(super) async fn unread(tx: &mut Tx<'_>, instance: InstanceKey, max: usize) -> Result<Vec<Unread>> {
    let rows = tx.fetch(&UNREAD, args![instance, max as u64]).await?;
    rows.iter().map(|row| Ok(Unread { number: row.number("number")?, name: row.name("name")? })).collect()
}

/// Which of the signals that are waited for are unread.
pub(super) async fn unread_among(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    waits: &Waits,
) -> Result<HashSet<Name>> {
    let mut found = HashSet::new();
    for name in waits.signals() {
        if tx.fetch_optional(&IS_UNREAD, args![instance, name]).await?.is_some() {
            found.insert(name.clone());
        }
    }
    Ok(found)
}

/// Consumes the oldest unread signal of a name for `attempt`; none: there is none.
pub(super) async fn take(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    name: &Name,
    attempt: Attempt,
    now: Micros,
) -> Result<Option<Payload>> {
    let taken = tx.write_fetch(&TAKE, args![attempt, now, instance, name]).await?.pop();
    taken.map_or(Ok(None), |row| payload::read(&row))
}

struct List {
    target: Target,
    after: u64,
    limit: u32,
}

impl Request for List {
    type Answer = Vec<StoredSignal>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let rows = tx.fetch(&LIST, args![self.target.key, self.after, self.limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredSignal {
                    number: row.number("number")?,
                    name: row.name("name")?,
                    sent_at: row.at("sent_at")?,
                    consumed_by: match row.opt_int("consumed_by")? {
                        Some(_) => Some(row.attempt("consumed_by")?),
                        None => None,
                    },
                })
            })
            .collect()
    }
}

impl Store {
    /// Stores a signal; a suspended instance that waits for it is woken.
    pub async fn signal(&self, tenant: &Tenant, id: &InstanceId, signal: NewSignal) -> Result<Sent> {
        self.check_payload("signal.payload", &signal.payload)?;
        if signal.dedup.len() > DEDUP {
            return Err(Error::TooLarge { field: "signal.dedup", len: signal.dedup.len(), max: DEDUP });
        }
        super::check_text("signal.dedup", &signal.dedup)?;
        let target = self.target(tenant, id).await?;
        let max_unread = self.limits().unread_signals;
        self.write_instance(target.key, Send { target, signal, max_unread }).await
    }

    /// The signals behind number `after`, consumed ones too; at most `limit` (at most 1,000).
    pub async fn signals(
        &self,
        tenant: &Tenant,
        id: &InstanceId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredSignal>> {
        let target = self.target(tenant, id).await?;
        self.read(List { target, after, limit: limit.clamp(1, 1000) }).await
    }
}
