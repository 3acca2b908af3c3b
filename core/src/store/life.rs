//! The instance's row as a [`Life`], and back: locking it, and the one guarded write that
//! every transition ends in. Decides nothing.

use super::{
    Notice,
    error::{Error, Result},
    sql::{Arg, Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::{InstanceId, InstanceKey, NodeId, Session, Tenant},
    instance::{Cancel, Life, Rest, State, Status},
    outcome::EndedBy,
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

macro_rules! write_stmt {
    ($tail:literal) => {
        stmt!(concat!(
            "UPDATE instance
                SET state = $1, waits = $2, wake_at = $3, attempt = $4, session = $5, open = $6, node = $7,
                    paused = $8, cancel = $9, cancel_at = $10, crashes = $11, ended_at = $12, ended_by = $13,
                    changed_at = $14, version = version + 1,
                    started_at = CASE WHEN $1 = 'RUNNING' THEN COALESCE(started_at, $14) ELSE started_at END
              WHERE key = $15 AND tenant = $16 AND state = $17 AND attempt = $18 AND session = $19
                AND open = $20 AND paused = $21 AND cancel = $22",
            $tail
        ))
    };
}

/// Its guard repeats what the transition relied on.
const WRITE: Stmt = write_stmt!("");
/// The same, and whether its tenant may run only so many: then somebody else may run now.
const WRITE_FREEING: Stmt = write_stmt!(
    " RETURNING (SELECT t.max_running IS NOT NULL FROM tenant AS t WHERE t.name = instance.tenant) AS limited"
);

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
    let old = &row.life;
    if next == old {
        return Ok(());
    }
    let status = next.status();
    let waits = next.waits().map(waits_text);
    let (cancel, cancel_at) = cancel_columns(next.cancel);
    let (ended_at, ended_by) = match &next.state {
        State::Ended { at, by, .. } => (Some(*at), Some(by.as_str())),
        State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Suspended { .. } => {
            (None, None)
        }
    };
    let args = args![
        status.as_str(),
        waits.as_deref(),
        next.wake_at(),
        next.attempt,
        next.session,
        next.is_open(),
        next.node(),
        next.paused,
        cancel,
        cancel_at,
        next.crashes,
        ended_at,
        ended_by,
        now,
        row.key,
        &row.tenant,
        old.status().as_str(),
        old.attempt,
        old.session,
        old.is_open(),
        old.paused,
        cancel_columns(old.cancel).0,
    ];
    if old.node().is_some() && next.node().is_none() {
        let rows = tx.write_fetch(&WRITE_FREEING, args).await?;
        let [row] = rows.as_slice() else {
            return Err(Error::Broken { table: "instance".to_owned(), rows: rows.len() as u64 });
        };
        if row.opt_flag("limited")? == Some(true) {
            tx.notify(Notice::Wakes);
        }
    } else {
        tx.execute_one(&WRITE, args).await?;
    }
    let wake_moved = next.wake_at() != old.wake_at() || old.paused;
    if wake_moved && next.wake_at().is_some() && !next.paused && !next.is_open() {
        tx.notify(Notice::Wakes);
    }
    tx.notify(Notice::Instance(row.key));
    Ok(())
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
