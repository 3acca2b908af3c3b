//! The instance's row as a [`Life`], and back: locking it, and the one guarded write that
//! every transition ends in. Decides nothing.

use super::{
    Notice,
    error::{Error, Result},
    events::{self, NewEvent},
    sql::{Arg, Row, Stmt, Tx, args, stmt, storable},
};
use crate::domain::{
    event::EventKind,
    id::{InstanceId, InstanceKey, NodeId, Session, Tenant},
    instance::{Cancel, Life, Rest, State, Status},
    outcome::EndedBy,
    signal::Unread,
    time::Micros,
    wake::Waits,
};

/// The columns that [`read`] reads.
macro_rules! life_columns {
    () => {
        "key, tenant, id, state, waits, wake_at, attempt, session, open, node, paused, cancel, \
         cancel_at, crashes, deadline_at, ended_at, ended_by"
    };
}
pub(super) use life_columns;

const LOCK: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 AND tenant = $2 {for_update}"));
/// By key alone: for who proved its right by a token, a claim or a node's lease.
const LOCK_KEY: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 {for_update}"));
const LOCK_SHARED: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 AND tenant = $2 {for_share}"));
const LOAD: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 AND tenant = $2"));

/// The one guarded write of a transition. Its guard repeats what the transition relied on.
macro_rules! update {
    () => {
        "UPDATE instance
            SET state = $1, waits = $2, wake_at = $3, attempt = $4, session = $5, open = $6, node = $7,
                paused = $8, cancel = $9, cancel_at = $10, crashes = $11, ended_at = $12, ended_by = $13,
                changed_at = $14, version = version + 1,
                started_at = CASE WHEN $1 = 'RUNNING' THEN COALESCE(started_at, $14) ELSE started_at END
          WHERE key = $15 AND tenant = $16 AND state = $17 AND attempt = $18 AND session = $19
            AND open = $20 AND paused = $21 AND cancel = $22"
    };
}
/// Whether its tenant may run only so many: then somebody else may run now.
macro_rules! limited {
    () => {
        " RETURNING (SELECT t.max_running IS NOT NULL FROM tenant AS t WHERE t.name = instance.tenant) AS limited"
    };
}
/// The transition's event, under the row's lock: numbers have no gaps.
macro_rules! tell {
    () => {
        "INSERT INTO event (instance, number, at, attempt, kind, message, data, encoding, type_name)
         SELECT $15, COALESCE(MAX(number), 0) + 1, $14, $4, $23, $24, $25, $26, $27
           FROM event WHERE instance = $15"
    };
}
macro_rules! registered {
    () => {
        "UPDATE attempt SET registered_at = COALESCE(registered_at, $14) WHERE instance = $15 AND attempt = $4"
    };
}
macro_rules! unread {
    () => {
        "signal WHERE instance = $15 AND consumed_by IS NULL ORDER BY number LIMIT 0 + $28"
    };
}
macro_rules! end {
    () => {
        "INSERT INTO instance_ending
                (instance, output, encoding, type_name, code, message, retryable, details)
         VALUES ($15, $28, $29, $30, $31, $32, $33, $34)"
    };
}

const WRITE: Stmt = stmt!(concat!(update!(), limited!()));
/// All that a transition writes goes in one: a hop to SQLite's thread, a round trip to PostgreSQL.
const WRITE_TELLING: Stmt = Stmt {
    sqlite: concat!(update!(), limited!(), "; ", tell!()),
    postgres: concat!("WITH w AS (", update!(), limited!(), "), e AS (", tell!(), ") SELECT limited FROM w"),
};
const WRITE_ENDED: Stmt = Stmt {
    sqlite: concat!(update!(), limited!(), "; ", tell!(), "; ", end!()),
    postgres: concat!(
        "WITH w AS (",
        update!(),
        limited!(),
        "), e AS (",
        tell!(),
        "), n AS (",
        end!(),
        ") SELECT limited FROM w"
    ),
};

/// A registration: the row, the attempt's own time of it, the event of the first one, and what waits for
/// the process, each row of the answer with a word for what it is. The newest checkpoint says whether there
/// are any.
const WRITE_REGISTERED: Stmt = Stmt {
    sqlite: concat!(
        update!(),
        " RETURNING 'row' AS what, started_at AS number,
            (SELECT MAX(c.number) FROM checkpoint AS c WHERE c.instance = $15) AS newest; ",
        registered!(),
        " RETURNING 'attempt' AS what; ",
        tell!(),
        " HAVING $5 = 1; SELECT 'signal' AS what, number, name FROM ",
        unread!()
    ),
    postgres: concat!(
        "WITH w AS (",
        update!(),
        " RETURNING started_at), a AS (",
        registered!(),
        " RETURNING instance), e AS (",
        tell!(),
        " HAVING $5 = 1)
         SELECT 'row' AS what, started_at AS number, NULL AS name,
                (SELECT MAX(c.number) FROM checkpoint AS c WHERE c.instance = $15) AS newest FROM w
          UNION ALL SELECT 'attempt', 0, NULL, NULL FROM a
          UNION ALL SELECT 'signal', number, name, NULL FROM (SELECT number, name FROM ",
        unread!(),
        ") AS s"
    ),
};

/// A row that this transaction holds.
#[derive(Clone, Debug)]
pub(super) struct Locked {
    pub(super) key: InstanceKey,
    pub(super) tenant: Tenant,
    pub(super) id: InstanceId,
    pub(super) life: Life,
}

/// Which instance a request of a controller is about. The key was looked up before: should the
/// instance be deleted meanwhile, or another started under its id, the key fits nothing.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) key: InstanceKey,
    pub(super) tenant: Tenant,
    pub(super) id: InstanceId,
}

impl Target {
    pub(super) fn missing(&self) -> Error {
        Error::NoInstance { id: self.id.to_string() }
    }
}

/// Locks the row for a transition.
pub(super) async fn lock(tx: &mut Tx<'_>, key: InstanceKey, tenant: &Tenant) -> Result<Option<Locked>> {
    tx.fetch_optional(&LOCK, args![key, tenant]).await?.map(|row| read(&row)).transpose()
}

/// Locks the row of a controller's request.
pub(super) async fn lock_target(tx: &mut Tx<'_>, target: &Target) -> Result<Locked> {
    lock(tx, target.key, &target.tenant).await?.ok_or_else(|| target.missing())
}

/// Locks the row for who proved its right otherwise.
pub(super) async fn lock_key(tx: &mut Tx<'_>, key: InstanceKey) -> Result<Option<Locked>> {
    tx.fetch_optional(&LOCK_KEY, args![key]).await?.map(|row| read(&row)).transpose()
}

/// Holds the row as it is.
pub(super) async fn lock_shared(
    tx: &mut Tx<'_>,
    key: InstanceKey,
    tenant: &Tenant,
) -> Result<Option<Locked>> {
    tx.fetch_optional(&LOCK_SHARED, args![key, tenant]).await?.map(|row| read(&row)).transpose()
}

/// Reads the row without holding it.
pub(super) async fn load(tx: &mut Tx<'_>, key: InstanceKey, tenant: &Tenant) -> Result<Option<Locked>> {
    tx.fetch_optional(&LOAD, args![key, tenant]).await?.map(|row| read(&row)).transpose()
}

/// Writes the transition of a locked row, and says whom to tell. Nothing if nothing changes.
pub(super) async fn write(tx: &mut Tx<'_>, row: &Locked, next: &Life, now: Micros) -> Result<()> {
    if *next == row.life {
        return Ok(());
    }
    write_as(tx, &WRITE, row, next, now, &[]).await
}

/// The same with the event that tells it. The event alone if nothing else changes.
pub(super) async fn write_telling(
    tx: &mut Tx<'_>,
    row: &Locked,
    next: &Life,
    now: Micros,
    event: NewEvent<'_>,
) -> Result<()> {
    if *next == row.life {
        return events::append(tx, row.key, next.attempt, now, event).await;
    }
    write_as(tx, &WRITE_TELLING, row, next, now, &event.args(&storable(event.message))).await
}

/// The same of a transition that ends it, with what the ending says in the order of its columns.
pub(super) async fn write_ended(
    tx: &mut Tx<'_>,
    row: &Locked,
    next: &Life,
    now: Micros,
    event: NewEvent<'_>,
    says: [Arg<'_>; 7],
) -> Result<()> {
    let message = storable(event.message);
    let more = [event.args(&message).as_slice(), &says].concat();
    write_as(tx, &WRITE_ENDED, row, next, now, &more).await
}

/// What a registration finds under the row's lock.
pub(super) struct Found {
    /// When the first attempt registered.
    pub(super) started_at: Micros,
    /// Whether there are checkpoints.
    pub(super) checkpoints: bool,
    /// Signals that nobody has consumed, oldest first.
    pub(super) unread: Vec<Unread>,
}

/// The same of a registration, with at most so many unread signals.
pub(super) async fn write_registered(
    tx: &mut Tx<'_>,
    row: &Locked,
    next: &Life,
    now: Micros,
    max_unread: usize,
) -> Result<Found> {
    let event = NewEvent::new(EventKind::Registered, "");
    let waits = next.waits().map(waits_text);
    let mut args = transition(row, next, waits.as_deref(), now).to_vec();
    args.extend(event.args(""));
    args.push((max_unread as u64).into());
    let (mut started_at, mut checkpoints, mut attempts, mut unread) = (None, false, 0, Vec::new());
    for found in tx.write_fetch(&WRITE_REGISTERED, &args).await? {
        match found.text("what")?.as_str() {
            "row" => {
                started_at = Some(found.at("number")?);
                checkpoints = found.opt_int("newest")?.is_some();
            }
            "attempt" => attempts += 1,
            _ => unread.push(Unread { number: found.number("number")?, name: found.name("name")? }),
        }
    }
    let broken = |table: &str| Error::Broken { table: table.to_owned(), rows: 0 };
    let started_at = started_at.ok_or_else(|| broken("instance"))?;
    if attempts != 1 {
        return Err(broken("attempt"));
    }
    unread.sort_by_key(|signal| signal.number);
    told(tx, row, next);
    Ok(Found { started_at, checkpoints, unread })
}

async fn write_as(
    tx: &mut Tx<'_>,
    stmt: &Stmt,
    row: &Locked,
    next: &Life,
    now: Micros,
    more: &[Arg<'_>],
) -> Result<()> {
    let waits = next.waits().map(waits_text);
    let mut args = transition(row, next, waits.as_deref(), now).to_vec();
    args.extend_from_slice(more);
    let rows = tx.write_fetch(stmt, &args).await?;
    let [written] = rows.as_slice() else {
        return Err(Error::Broken { table: "instance".to_owned(), rows: rows.len() as u64 });
    };
    let frees = row.life.node().is_some() && next.node().is_none();
    if frees && written.opt_flag("limited")? == Some(true) {
        tx.notify(Notice::Wakes);
    }
    told(tx, row, next);
    Ok(())
}

/// Says whom a transition concerns.
fn told(tx: &mut Tx<'_>, row: &Locked, next: &Life) {
    let old = &row.life;
    let wake_moved = next.wake_at() != old.wake_at() || old.paused;
    if wake_moved && next.wake_at().is_some() && !next.paused && !next.is_open() {
        tx.notify(Notice::Wakes);
    }
    tx.notify(Notice::Instance(row.key));
    if next.outcome().is_some() {
        tx.notify(Notice::Ended(row.key));
    }
}

/// The arguments of `update!`.
fn transition<'a>(row: &'a Locked, next: &'a Life, waits: Option<&'a str>, now: Micros) -> [Arg<'a>; 22] {
    let old = &row.life;
    let (cancel, cancel_at) = cancel_columns(next.cancel);
    let (ended_at, ended_by) = match &next.state {
        State::Ended { at, by, .. } => (Some(*at), Some(by.as_str())),
        State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Suspended { .. } => {
            (None, None)
        }
    };
    [
        next.status().as_str().into(),
        waits.into(),
        next.wake_at().into(),
        next.attempt.into(),
        next.session.into(),
        next.is_open().into(),
        next.node().into(),
        next.paused.into(),
        cancel.into(),
        cancel_at.into(),
        next.crashes.into(),
        ended_at.into(),
        ended_by.into(),
        now.into(),
        row.key.into(),
        (&row.tenant).into(),
        old.status().as_str().into(),
        old.attempt.into(),
        old.session.into(),
        old.is_open().into(),
        old.paused.into(),
        cancel_columns(old.cancel).0.into(),
    ]
}

/// Waits as they stand in the row and in the timeline.
pub(super) fn waits_text(waits: &Waits) -> String {
    serde_json::to_string(waits).expect("waits are plain data")
}

fn cancel_columns(cancel: Cancel) -> (&'static str, Option<Micros>) {
    match cancel {
        Cancel::No => ("no", None),
        Cancel::Asked { since } => ("asked", Some(since)),
        Cancel::Felt => ("felt", None),
    }
}

/// Reads [`life_columns!`].
pub(super) fn read(row: &Row) -> Result<Locked> {
    Ok(Locked {
        key: row.instance("key")?,
        tenant: row.tenant("tenant")?,
        id: row.parsed("id", |text| InstanceId::parse(text).ok())?,
        life: read_life(row)?,
    })
}

fn read_life(row: &Row) -> Result<Life> {
    Ok(Life {
        state: read_state(row)?,
        attempt: row.attempt("attempt")?,
        session: row.small("session").map(Session)?,
        paused: row.flag("paused")?,
        cancel: read_cancel(row)?,
        crashes: row.small("crashes")?,
        deadline_at: row.opt_at("deadline_at")?,
    })
}

fn read_state(row: &Row) -> Result<State> {
    let open = row.flag("open")?;
    let wake_at = row.opt_at("wake_at")?;
    let must_wake = || wake_at.ok_or_else(|| row.unreadable("wake_at", "missing".to_owned()));
    let node = || row.parsed("node", |text| NodeId::parse(text).ok());
    Ok(match row.parsed("state", Status::parse)? {
        Status::Pending if open => {
            State::Launching { node: node()?, until: must_wake()?, from: Rest::Pending }
        }
        Status::Pending => State::Pending { wake_at: must_wake()? },
        Status::Suspended if open => {
            State::Launching { node: node()?, until: must_wake()?, from: Rest::Suspended(read_waits(row)?) }
        }
        Status::Suspended => State::Suspended { waits: read_waits(row)?, wake_at },
        Status::Running => State::Running { node: node()? },
        Status::Ended(outcome) => {
            State::Ended { outcome, at: row.at("ended_at")?, by: row.parsed("ended_by", EndedBy::parse)? }
        }
    })
}

fn read_waits(row: &Row) -> Result<Waits> {
    let text = row.text("waits")?;
    serde_json::from_str(&text).map_err(|error| row.unreadable("waits", error.to_string()))
}

fn read_cancel(row: &Row) -> Result<Cancel> {
    Ok(match row.text("cancel")?.as_str() {
        "no" => Cancel::No,
        "asked" => Cancel::Asked { since: row.at("cancel_at")? },
        "felt" => Cancel::Felt,
        other => return Err(row.unreadable("cancel", format!("unexpected value {other:?}"))),
    })
}

/// A row of a child table by instance and number, newest first: the newest checkpoint's attempt.
pub(super) async fn newest_checkpoint(
    tx: &mut Tx<'_>,
    key: InstanceKey,
) -> Result<crate::domain::id::Attempt> {
    const NEWEST: Stmt =
        stmt!("SELECT attempt FROM checkpoint WHERE instance = $1 ORDER BY number DESC LIMIT 1");
    match tx.fetch_optional(&NEWEST, &[Arg::from(key)]).await? {
        Some(row) => row.attempt("attempt"),
        None => Ok(crate::domain::id::Attempt::NONE),
    }
}
