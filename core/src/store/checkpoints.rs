//! Checkpoints: saved once, first writer wins (invariant 3), never changed.
//!
//! A save writes no instance row. Its one statement holds the row's guard and inserts; only
//! where that stores nothing is it asked why: fenced, stored before, or too many.

use std::borrow::Cow;

use super::{
    Store,
    commit::{LockOrder, Request},
    error::{Error, Result},
    events::{self, NewEvent},
    life::{self, Target},
    payload, save_set,
    sessions::Session,
    signals,
    sql::{Row, Stmt, Tx, args, stmt, storable},
};
use crate::domain::{
    checkpoint::{Kind, NewCheckpoint, NewValue, Operation, StoredCheckpoint, Value},
    event::EventKind,
    id::{InstanceId, InstanceKey, Key, Tenant},
    instance::{Cancel, Writer},
    payload::Payload,
    time::{Micros, span},
};
use crate::limits::Limits;
use crate::timings;

/// The fence and the insert in one. The guard waits for the row's lock and is judged again
/// after it, so it is no snapshot; the clock is read behind it.
macro_rules! save {
    () => {
        "WITH guard AS (
             SELECT key FROM instance
              WHERE key = $1 AND tenant = $2 AND state = 'RUNNING' AND attempt = $3 AND session = $4
             {for_share}),
         held AS (SELECT key, COALESCE($5, {clock}) AS now FROM guard),
         next AS (SELECT held.key AS instance, held.now AS now,
                         COALESCE((SELECT MAX(number) FROM checkpoint WHERE instance = $1), 0) + 1 AS number
                    FROM held)
         INSERT INTO checkpoint (instance, number, name, op_key, slot, kind, attempt, due_at, data, encoding,
                                 type_name, note, stored_at)
         SELECT next.instance, next.number, $6, $7, $8, $9, $3, COALESCE($10, next.now + $11), $12, $13, $14,
                $15, next.now
           FROM next WHERE next.number <= $16
             ON CONFLICT (instance, name, op_key, slot) DO NOTHING"
    };
}
/// The time is an argument: how many rows it wrote is all that there is to say, and no row wakes the writer
/// before the commit.
const SAVE: Stmt = stmt!(save!());
/// The time is the database's.
const SAVE_BY_ITS_CLOCK: Stmt = stmt!(concat!(save!(), " RETURNING due_at, stored_at"));

macro_rules! columns {
    () => {
        "instance, number, name, op_key, slot, kind, attempt, due_at, data, encoding, type_name, note, stored_at"
    };
}

const GET: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM checkpoint WHERE instance = $1 AND name = $2 AND op_key = $3 AND slot = $4"
));
/// The size of the next page, one row for all of it: a row of an answer costs more than what is in it.
const SIZE: Stmt = stmt!(
    "SELECT COUNT(*) AS n, CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM (
         SELECT LENGTH(data) AS bytes FROM checkpoint
          WHERE instance = $1 AND number > $2 ORDER BY number LIMIT 0 + $3) AS page"
);
const NEXT: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM checkpoint WHERE instance = $1 AND number > $2 ORDER BY number LIMIT 0 + $3"
));
/// Sizes first: payloads are read only as far as the page has room. `0 < $3` keeps the same
/// arguments for both directions.
const SIZES: Stmt = stmt!(
    "SELECT instance, number, CAST(COALESCE(LENGTH(data), 0) AS BIGINT) AS bytes FROM checkpoint
      WHERE instance = $1 AND number > $2 ORDER BY number LIMIT 0 + $3"
);
const SIZES_DOWN: Stmt = stmt!(
    "SELECT instance, number, CAST(COALESCE(LENGTH(data), 0) AS BIGINT) AS bytes FROM checkpoint
      WHERE instance = $1 AND number < $2 ORDER BY number DESC LIMIT 0 + $3"
);
const RANGE: Stmt = stmt!(concat!(
    "SELECT ",
    columns!(),
    " FROM checkpoint WHERE instance = $1 AND number BETWEEN $2 AND $3 ORDER BY number"
));

/// What became of a save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// Stored by this request.
    Stored(StoredCheckpoint),
    /// Stored before; this is what stands.
    Existed(StoredCheckpoint),
    /// No signal of that name is unread, or no cancellation was asked for.
    Nothing,
}

/// A part of what an instance has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPage {
    /// In the order they were stored, or newest first if that was asked for.
    pub checkpoints: Vec<StoredCheckpoint>,
    /// Give this as `cursor` to read on; 0: that was all.
    pub next_cursor: u64,
}

/// How much one page may hold; it holds at least one checkpoint, however large.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageLimits {
    checkpoints: usize,
    bytes: usize,
}

impl PageLimits {
    pub(super) fn of(limits: &Limits) -> Self {
        Self { checkpoints: limits.page_checkpoints, bytes: limits.page_bytes }
    }
}

/// A checkpoint that a session saves.
pub(super) struct Save {
    session: Session,
    checkpoint: NewCheckpoint,
    pub(super) max: u64,
}

/// A save as the columns of its row.
pub(super) struct Columns<'a> {
    pub(super) instance: InstanceKey,
    pub(super) tenant: &'a str,
    pub(super) by: Writer,
    pub(super) name: &'a str,
    pub(super) op_key: &'a str,
    pub(super) slot: u32,
    pub(super) kind: &'static str,
    pub(super) due_at: Option<i64>,
    /// Microseconds from the moment when it is stored.
    pub(super) due_in: Option<i64>,
    pub(super) data: Option<&'a [u8]>,
    pub(super) encoding: Option<&'static str>,
    pub(super) type_name: Option<&'a str>,
    pub(super) note: Cow<'a, str>,
}

impl Request for Save {
    type Answer = (Saved, Micros);

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Checkpoint)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.session.instance)
    }

    fn bytes(&self) -> usize {
        self.payload().map_or(0, |payload| payload.data.len())
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        match &self.checkpoint.value {
            NewValue::TakeSignal(name) => {
                let existing = self.lock_and_look(tx).await?;
                if let Some(existed) = existing {
                    return Ok((Saved::Existed(existed), tx.now().await?));
                }
                let now = tx.now().await?;
                let attempt = self.session.writer.attempt;
                match signals::take(tx, self.session.instance, name, attempt, now).await? {
                    Some(payload) => self.insert_held(tx, Some(&payload)).await,
                    None => Ok((Saved::Nothing, now)),
                }
            }
            NewValue::FeelCancel => self.feel_cancel(tx).await,
            NewValue::Payload(_) | NewValue::DueIn(_) | NewValue::DueAt(_) => {
                if let Some(saved) = self.guarded_insert(tx, self.payload()).await? {
                    return Ok(saved);
                }
                self.why_not(tx).await
            }
        }
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        if self.is_one_statement() { self.guarded_insert(tx, self.payload()).await } else { Ok(None) }
    }

    fn gathers(&self) -> bool {
        self.is_one_statement()
    }

    async fn run_set(saves: &[&Self], tx: &mut Tx<'_>) -> Result<Vec<Option<Self::Answer>>> {
        save_set::run(saves, tx).await
    }
}

impl Save {
    /// Whether it writes nothing but its checkpoint.
    fn is_one_statement(&self) -> bool {
        match &self.checkpoint.value {
            NewValue::Payload(_) | NewValue::DueIn(_) | NewValue::DueAt(_) => true,
            NewValue::TakeSignal(_) | NewValue::FeelCancel => false,
        }
    }

    fn payload(&self) -> Option<&Payload> {
        match &self.checkpoint.value {
            NewValue::Payload(payload) => Some(payload),
            NewValue::DueIn(_) | NewValue::DueAt(_) | NewValue::TakeSignal(_) | NewValue::FeelCancel => None,
        }
    }

    /// Its row, with what it brings itself.
    pub(super) fn columns(&self) -> Columns<'_> {
        self.columns_with(self.payload())
    }

    fn columns_with<'a>(&'a self, payload: Option<&'a Payload>) -> Columns<'a> {
        let NewCheckpoint { operation, kind, value, note } = &self.checkpoint;
        let (due_at, due_in) = match value {
            NewValue::DueAt(at) => (Some(at.0), None),
            // Half of the range: the sum with any clock stays inside it.
            NewValue::DueIn(pause) => (None, Some(span(*pause).min(i64::MAX / 2))),
            NewValue::Payload(_) | NewValue::TakeSignal(_) | NewValue::FeelCancel => (None, None),
        };
        let (data, encoding, type_name) = payload::columns(payload);
        Columns {
            instance: self.session.instance,
            tenant: self.session.tenant.as_str(),
            by: self.session.writer,
            name: operation.name.as_str(),
            op_key: operation.key.as_str(),
            slot: operation.slot,
            kind: kind.as_str(),
            due_at,
            due_in,
            data,
            encoding,
            type_name,
            note: storable(note),
        }
    }

    /// Inserts if the guard holds and nothing is stored; none: it did not, or something was.
    async fn guarded_insert(
        &self,
        tx: &mut Tx<'_>,
        payload: Option<&Payload>,
    ) -> Result<Option<(Saved, Micros)>> {
        let c = self.columns_with(payload);
        let given = tx.given_now();
        let args = args![
            c.instance,
            c.tenant,
            c.by.attempt,
            c.by.session,
            given,
            c.name,
            c.op_key,
            c.slot,
            c.kind,
            c.due_at,
            c.due_in,
            c.data,
            c.encoding,
            c.type_name,
            &c.note,
            self.max,
        ];
        let times = match given {
            Some(now) if tx.execute_if(&SAVE, args).await? => Some((now, c.due(now))),
            Some(_) => None,
            None => tx.write_if(&SAVE_BY_ITS_CLOCK, args).await?.as_ref().map(times).transpose()?,
        };
        Ok(times.map(|times| self.stored_with(times, payload)))
    }

    /// The answer to a save whose row was stored.
    pub(super) fn stored(&self, row: &Row) -> Result<(Saved, Micros)> {
        Ok(self.stored_with(times(row)?, self.payload()))
    }

    fn stored_with(
        &self,
        (stored_at, due_at): (Micros, Option<Micros>),
        payload: Option<&Payload>,
    ) -> (Saved, Micros) {
        let value = match (payload, due_at) {
            (Some(payload), _) => Value::Payload(payload.clone()),
            (None, Some(due_at)) => Value::Due(due_at),
            (None, None) => Value::Cancelled,
        };
        let NewCheckpoint { operation, kind, value: _, note } = &self.checkpoint;
        let stored = StoredCheckpoint {
            operation: operation.clone(),
            kind: *kind,
            attempt: self.session.writer.attempt,
            value,
            stored_at,
            note: storable(note).into_owned(),
        };
        (Saved::Stored(stored), stored_at)
    }

    /// Inserts under a lock that this transaction holds, where nothing is stored yet.
    async fn insert_held(&self, tx: &mut Tx<'_>, payload: Option<&Payload>) -> Result<(Saved, Micros)> {
        self.guarded_insert(tx, payload).await?.ok_or_else(|| self.too_many())
    }

    /// The insert stored nothing: fenced, stored before, or too many.
    async fn why_not(&self, tx: &mut Tx<'_>) -> Result<(Saved, Micros)> {
        let Session { instance, tenant, writer, .. } = &self.session;
        let row = life::lock_shared(tx, *instance, tenant).await?.ok_or_else(|| self.session.fenced())?;
        row.life.admit(*writer)?;
        match find(tx, *instance, &self.checkpoint.operation).await? {
            Some(existed) => Ok((Saved::Existed(existed), tx.now().await?)),
            // Too many; or fenced when it was tried, and admitted since by a registration.
            None => self.insert_held(tx, self.payload()).await,
        }
    }

    fn too_many(&self) -> Error {
        let remedy = "keep state in fewer, larger checkpoints, or continue in a new instance";
        Error::TooMany { what: "checkpoints", max: self.max, remedy }
    }

    /// Locks the row for a save that changes more than the checkpoints; answers what is stored.
    async fn lock_and_look(&self, tx: &mut Tx<'_>) -> Result<Option<StoredCheckpoint>> {
        let row = self.session.lock(tx).await?;
        row.life.admit(self.session.writer)?;
        find(tx, row.key, &self.checkpoint.operation).await
    }

    /// Cancel = felt, together with its checkpoint.
    async fn feel_cancel(&self, tx: &mut Tx<'_>) -> Result<(Saved, Micros)> {
        let row = self.session.lock(tx).await?;
        let next = row.life.feel_cancel(self.session.writer)?;
        let now = tx.now().await?;
        if let Some(existed) = find(tx, row.key, &self.checkpoint.operation).await? {
            return Ok((Saved::Existed(existed), now));
        }
        if next.cancel == Cancel::No {
            return Ok((Saved::Nothing, now));
        }
        let saved = self.insert_held(tx, None).await?;
        if next != row.life {
            life::write(tx, &row, &next, now).await?;
            let at = self.checkpoint.operation.name.as_str();
            events::append(tx, row.key, next.attempt, now, NewEvent::new(EventKind::CancelFelt, at)).await?;
        }
        Ok(saved)
    }
}

impl Columns<'_> {
    /// When it is due, if it is stored `now`; as the statements say it.
    fn due(&self, now: Micros) -> Option<Micros> {
        let due_at = self.due_at.or_else(|| Some(now.0.saturating_add(self.due_in?)));
        due_at.map(Micros)
    }
}

/// When it was stored, and when it is due.
fn times(row: &Row) -> Result<(Micros, Option<Micros>)> {
    Ok((row.at("stored_at")?, row.opt_at("due_at")?))
}

async fn find(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    operation: &Operation,
) -> Result<Option<StoredCheckpoint>> {
    let args = args![instance, &operation.name, &operation.key, operation.slot];
    tx.fetch_optional(&GET, args).await?.map(|row| read(&row)).transpose()
}

fn read(row: &Row) -> Result<StoredCheckpoint> {
    let value = match (payload::read(row)?, row.opt_at("due_at")?) {
        (Some(payload), _) => Value::Payload(payload),
        (None, Some(due_at)) => Value::Due(due_at),
        (None, None) => Value::Cancelled,
    };
    Ok(StoredCheckpoint {
        operation: Operation {
            name: row.name("name")?,
            key: row.parsed("op_key", |text| Key::parse(text).ok())?,
            slot: row.small("slot")?,
        },
        kind: row.parsed("kind", Kind::parse)?,
        attempt: row.attempt("attempt")?,
        value,
        stored_at: row.at("stored_at")?,
        note: row.text("note")?,
    })
}

/// The checkpoints behind `cursor`, as many as the page may hold.
pub(super) async fn page(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    cursor: u64,
    limits: PageLimits,
) -> Result<CheckpointPage> {
    let one_more = limits.checkpoints as u64 + 1;
    let size = tx.fetch_one(&SIZE, args![instance, cursor, one_more]).await?;
    if size.number("bytes")? <= limits.bytes as u64 {
        let rows = tx.fetch(&NEXT, args![instance, cursor, limits.checkpoints as u64]).await?;
        let more = size.number("n")? == one_more;
        let last = rows.last().filter(|_| more).map_or(Ok(0), |row| row.number("number"))?;
        let checkpoints = rows.iter().map(read).collect::<Result<_>>()?;
        return Ok(CheckpointPage { checkpoints, next_cursor: last });
    }
    let sizes = tx.fetch(&SIZES, args![instance, cursor, one_more]).await?;
    let (numbers, more) = fitting(&sizes, limits)?;
    let checkpoints = range(tx, instance, &numbers).await?;
    let next_cursor = if more { numbers.last().copied().unwrap_or(0) } else { 0 };
    Ok(CheckpointPage { checkpoints, next_cursor })
}

/// The same from the newest down; `cursor` 0 begins there.
async fn page_down(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    cursor: u64,
    limits: PageLimits,
) -> Result<CheckpointPage> {
    let below = if cursor == 0 { u64::MAX } else { cursor };
    let sizes = tx.fetch(&SIZES_DOWN, args![instance, below, limits.checkpoints as u64 + 1]).await?;
    let (numbers, more) = fitting(&sizes, limits)?;
    let mut checkpoints = range(tx, instance, &numbers).await?;
    checkpoints.reverse();
    let next_cursor = if more { numbers.last().copied().unwrap_or(0) } else { 0 };
    Ok(CheckpointPage { checkpoints, next_cursor })
}

/// The numbers that fit into a page, and whether more are there.
fn fitting(sizes: &[Row], limits: PageLimits) -> Result<(Vec<u64>, bool)> {
    let (mut numbers, mut bytes) = (Vec::new(), 0u64);
    for row in sizes {
        bytes = bytes.saturating_add(row.number("bytes")?);
        let full = numbers.len() == limits.checkpoints || bytes > limits.bytes as u64;
        if full && !numbers.is_empty() {
            return Ok((numbers, true));
        }
        numbers.push(row.number("number")?);
    }
    Ok((numbers, false))
}

async fn range(tx: &mut Tx<'_>, instance: InstanceKey, numbers: &[u64]) -> Result<Vec<StoredCheckpoint>> {
    let (Some(low), Some(high)) = (numbers.iter().min(), numbers.iter().max()) else { return Ok(Vec::new()) };
    tx.fetch(&RANGE, args![instance, *low, *high]).await?.iter().map(read).collect()
}

struct Get {
    session: Session,
    operation: Operation,
}

impl Request for Get {
    type Answer = Option<StoredCheckpoint>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        find(tx, self.session.instance, &self.operation).await
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

/// Whose page is read.
enum Of {
    Session(Session),
    Target(Target),
}

struct Page {
    of: Of,
    cursor: u64,
    limits: PageLimits,
    newest_first: bool,
}

impl Request for Page {
    type Answer = CheckpointPage;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<CheckpointPage> {
        let instance = match &self.of {
            // The right is the session: it names the instance that its token belongs to.
            Of::Session(session) => session.instance,
            Of::Target(target) => target.key,
        };
        if self.newest_first {
            page_down(tx, instance, self.cursor, self.limits).await
        } else {
            page(tx, instance, self.cursor, self.limits).await
        }
    }
}

/// Longest note, in bytes; the rest is cut.
const NOTE: usize = 1000;

impl Store {
    /// Saves a checkpoint, or answers what is stored under its name. With the answer comes the
    /// database's clock, for due times.
    pub async fn save(&self, session: &Session, mut checkpoint: NewCheckpoint) -> Result<(Saved, Micros)> {
        if let NewValue::Payload(payload) = &checkpoint.value {
            self.check_payload("checkpoint.payload", payload)?;
        }
        payload::cut(&mut checkpoint.note, NOTE);
        let max = self.limits().checkpoints;
        self.write_instance(session.instance, Save { session: session.clone(), checkpoint, max }).await
    }

    /// What is stored under a name, if anything.
    pub async fn checkpoint(
        &self,
        session: &Session,
        operation: Operation,
    ) -> Result<Option<StoredCheckpoint>> {
        self.read(Get { session: session.clone(), operation }).await
    }

    /// The pages behind the one that came with the registration.
    pub async fn resume_page(&self, session: &Session, cursor: u64) -> Result<CheckpointPage> {
        let of = Of::Session(session.clone());
        let limits = PageLimits::of(self.limits());
        self.read(Page { of, cursor, limits, newest_first: false }).await
    }

    /// An instance's checkpoints for people: at most `limit` behind `cursor` (0: from the
    /// start, or from the newest), and at most one page of a resume.
    pub async fn checkpoints(
        &self,
        tenant: &Tenant,
        id: &InstanceId,
        cursor: u64,
        limit: u32,
        newest_first: bool,
    ) -> Result<CheckpointPage> {
        let of = Of::Target(self.target(tenant, id).await?);
        let mut limits = PageLimits::of(self.limits());
        limits.checkpoints = limits.checkpoints.min(usize::try_from(limit.max(1)).unwrap_or(usize::MAX));
        self.read(Page { of, cursor, limits, newest_first }).await
    }
}
