//! Looking at instances: one with everything, many by filters, how many, and whom a prefix
//! means. Reads only.

use std::collections::BTreeMap;

use super::{
    Store,
    attempts::AttemptRef,
    commit::Request,
    damage, endings,
    error::{Error, Result},
    life::{self, Target},
    payload,
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    event::Progress,
    id::{Attempt, Digest, InstanceId, InstanceKey, Name, Tenant},
    instance::{Life, State, Status},
    outcome::Failure,
    payload::Payload,
    time::Micros,
    wake::WaitingFor,
};

/// An instance as people see it, without its payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its internal key, which is also the order of starts.
    pub key: InstanceKey,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its public id.
    pub id: InstanceId,
    /// The image's name.
    pub image: Name,
    /// Its version.
    pub version: Name,
    /// Its bytes.
    pub digest: Digest,
    /// The entry point.
    pub workflow: Name,
    /// 0–9.
    pub priority: u8,
    /// The row that decides.
    pub life: Life,
    /// When it was started by a controller.
    pub created_at: Micros,
    /// When its first process registered.
    pub started_at: Option<Micros>,
    /// When its row last changed.
    pub changed_at: Micros,
    /// Raised by each change of the row.
    pub revision: u64,
    /// What it reported last, and when.
    pub progress: Option<(Progress, Micros)>,
    /// Why it failed, or what a cancelled workflow returned; in a list without its details.
    pub failure: Option<Failure>,
}

impl Instance {
    /// The newest attempt, as services name it.
    pub fn attempt_ref(&self) -> AttemptRef {
        AttemptRef { instance: self.key, attempt: self.life.attempt }
    }
}

/// An instance with everything that one screen shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceDetail {
    /// The row.
    pub instance: Instance,
    /// What the start gave it.
    pub input: Payload,
    /// Environment variables that the start named.
    pub env: BTreeMap<String, String>,
    /// The ended instance that it retries.
    pub retry_of: Option<InstanceId>,
    /// What it returned.
    pub output: Option<Payload>,
    /// Checkpoints stored.
    pub checkpoints: u64,
    /// Signals that no wait has consumed.
    pub unread_signals: u64,
    /// How an attempt last ended by accident, and which; also if it goes on since.
    pub last_exit: Option<(Attempt, String)>,
    /// When the end of the newest attempt was reported.
    pub attempt_ended_at: Option<Micros>,
    /// Its tenant may run only so many at once.
    pub limited: bool,
    /// The database's clock.
    pub now: Micros,
}

/// Which instances to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only these.
    pub status: Option<Status>,
    /// Only of this image's name.
    pub image: Option<Name>,
    /// Only suspended ones that wait for this. Waits are no index: so many rows are looked through
    /// for one page, which then may hold fewer than the limit although more follow.
    pub waiting_for: Option<WaitingFor>,
    /// Only those started before this one: the cursor of the next page.
    pub before: Option<InstanceKey>,
    /// At most so many; at least 1, at most 1,000.
    pub limit: u32,
}

/// A page of instances, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstancePage {
    /// What was found.
    pub instances: Vec<Instance>,
    /// Give this as `before` to read on; none: that was all.
    pub next: Option<InstanceKey>,
    /// The public id of `next`.
    pub next_id: Option<InstanceId>,
    /// A sentence for each instance that stands here and is damaged.
    pub unreadable: Vec<String>,
}

/// The longest page, and how many rows one page of a filter on waits looks through.
const SCAN: u32 = 1000;

macro_rules! view {
    ($details:literal, $beside:literal, $tail:literal) => {
        stmt!(concat!(
            "SELECT i.key, i.tenant, i.id, i.state, i.waits, i.wake_at, i.attempt, i.session, i.open, i.node,
                    i.paused, i.cancel, i.cancel_at, i.crashes, i.deadline_at, i.ended_at, i.ended_by,
                    i.image_name, i.image_version, i.image_digest, i.workflow, i.priority, i.created_at,
                    i.started_at, i.changed_at, i.version, i.progress_done, i.progress_total,
                    i.progress_message, i.progress_at, e.code, e.message, e.retryable, ",
            $details,
            " AS details",
            $beside,
            " FROM instance i LEFT JOIN instance_ending e ON e.instance = i.key ",
            $tail
        ))
    };
}

/// A page of a list would read up to 1,000 of them, each as large as a payload, and show none.
macro_rules! listed {
    ($tail:literal) => {
        view!("CAST(NULL AS BYTEA)", "", $tail)
    };
}

const GET: Stmt = view!("e.details", "", "WHERE i.tenant = $1 AND i.id = $2");
/// All that one screen shows, as of one moment.
const DETAIL: Stmt = view!(
    "e.details",
    ", s.input, s.encoding, s.type_name, s.env, s.retry_of,
       e.output, e.encoding AS output_encoding, e.type_name AS output_type,
       (SELECT COALESCE(MAX(c.number), 0) FROM checkpoint AS c WHERE c.instance = i.key) AS checkpoints,
       (SELECT COUNT(*) FROM signal AS n WHERE n.instance = i.key AND n.consumed_by IS NULL) AS unread,
       (SELECT a.ended_at FROM attempt AS a WHERE a.instance = i.key
         ORDER BY a.attempt DESC LIMIT 1) AS attempt_ended_at,
       (SELECT t.max_running IS NOT NULL FROM tenant AS t WHERE t.name = i.tenant) AS limited,
       x.attempt AS exit_attempt, x.exit_message",
    "JOIN instance_start s ON s.instance = i.key
     LEFT JOIN attempt x ON x.instance = i.key AND x.attempt =
               (SELECT y.attempt FROM attempt AS y WHERE y.instance = i.key AND y.exit_message IS NOT NULL
                 ORDER BY y.attempt DESC LIMIT 1)
     WHERE i.tenant = $1 AND i.id = $2"
);
const LIST: Stmt = listed!("WHERE i.tenant = $1 AND i.key < $2 ORDER BY i.key DESC LIMIT 0 + $3");
const LIST_STATE: Stmt =
    listed!("WHERE i.tenant = $1 AND i.key < $2 AND i.state = $4 ORDER BY i.key DESC LIMIT 0 + $3");
const LIST_IMAGE: Stmt =
    listed!("WHERE i.tenant = $1 AND i.key < $2 AND i.image_name = $4 ORDER BY i.key DESC LIMIT 0 + $3");
const LIST_BOTH: Stmt = listed!(
    "WHERE i.tenant = $1 AND i.key < $2 AND i.image_name = $4 AND i.state = $5 ORDER BY i.key DESC LIMIT 0 + $3"
);
const COUNT: Stmt = stmt!("SELECT state, COUNT(*) AS n FROM instance WHERE tenant = $1 GROUP BY state");
const COUNT_IMAGE: Stmt =
    stmt!("SELECT state, COUNT(*) AS n FROM instance WHERE tenant = $1 AND image_name = $2 GROUP BY state");
const FIND: Stmt = stmt!("SELECT key FROM instance WHERE tenant = $1 AND id = $2");
const FIND_PREFIX: Stmt =
    stmt!("SELECT id, key FROM instance WHERE tenant = $1 AND id >= $2 AND id < $3 ORDER BY id LIMIT 0 + $4");

fn read(row: &Row) -> Result<Instance> {
    let locked = life::read(row)?;
    let progress = match row.opt_at("progress_at")? {
        None => None,
        Some(at) => {
            let (done, total) = (row.number("progress_done")?, row.number("progress_total")?);
            Some((Progress { done, total, message: row.text("progress_message")? }, at))
        }
    };
    Ok(Instance {
        key: locked.key,
        tenant: locked.tenant,
        id: locked.id,
        life: locked.life,
        image: row.name("image_name")?,
        version: row.name("image_version")?,
        digest: row.digest("image_digest")?,
        workflow: row.name("workflow")?,
        priority: read_priority(row)?,
        created_at: row.at("created_at")?,
        started_at: row.opt_at("started_at")?,
        changed_at: row.at("changed_at")?,
        revision: row.number("version")?,
        progress,
        failure: endings::read_failure(row)?,
    })
}

struct Get {
    tenant: Tenant,
    id: InstanceId,
}

impl Request for Get {
    type Answer = Instance;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Instance> {
        let row = tx.fetch_optional(&GET, args![&self.tenant, &self.id]).await?;
        read(&row.ok_or_else(|| Error::NoInstance { id: self.id.to_string() })?)
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Instance>> {
        self.run(tx).await.map(Some)
    }
}

struct Detail {
    tenant: Tenant,
    id: InstanceId,
}

impl Request for Detail {
    type Answer = InstanceDetail;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<InstanceDetail> {
        let row = tx.fetch_optional(&DETAIL, args![&self.tenant, &self.id]).await?;
        let row = row.ok_or_else(|| Error::NoInstance { id: self.id.to_string() })?;
        let env = row.text("env")?;
        Ok(InstanceDetail {
            instance: read(&row)?,
            input: payload::read_from(&row, "input")?.unwrap_or_default(),
            env: serde_json::from_str(&env).map_err(|error| row.unreadable("env", error.to_string()))?,
            retry_of: match row.opt_text("retry_of")? {
                Some(_) => Some(row.parsed("retry_of", |text| InstanceId::parse(text).ok())?),
                None => None,
            },
            output: read_output(&row)?,
            checkpoints: row.number("checkpoints")?,
            unread_signals: row.number("unread")?,
            last_exit: match row.opt_text("exit_message")? {
                Some(message) => Some((row.attempt("exit_attempt")?, message)),
                None => None,
            },
            attempt_ended_at: row.opt_at("attempt_ended_at")?,
            limited: row.opt_flag("limited")? == Some(true),
            now: tx.now().await?,
        })
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<InstanceDetail>> {
        self.run(tx).await.map(Some)
    }
}

fn read_output(row: &Row) -> Result<Option<Payload>> {
    use crate::domain::payload::Encoding;
    let Some(data) = row.opt_blob("output")? else { return Ok(None) };
    let encoding = row.parsed("output_encoding", Encoding::parse)?;
    Ok(Some(Payload { data: data.into(), encoding, type_name: row.text("output_type")? }))
}

pub(super) fn read_priority(row: &Row) -> Result<u8> {
    u8::try_from(row.small("priority")?).map_err(|error| row.unreadable("priority", error.to_string()))
}

struct List {
    tenant: Tenant,
    filter: ListFilter,
}

impl Request for List {
    type Answer = InstancePage;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<InstancePage> {
        let limit = self.filter.limit.clamp(1, SCAN);
        if let Some(wanted) = &self.filter.waiting_for {
            return self.waiting(tx, wanted, limit as usize).await;
        }
        let mut rows = self.rows(tx, self.filter.status, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let mut page = InstancePage::of(&rows)?;
        if let Some(last) = rows.last().filter(|_| more) {
            page.ends_with(last)?;
        }
        Ok(page)
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<InstancePage>> {
        self.run(tx).await.map(Some)
    }
}

impl List {
    async fn rows(&self, tx: &mut Tx<'_>, status: Option<Status>, limit: u32) -> Result<Vec<Row>> {
        let before = self.filter.before.unwrap_or(InstanceKey(i64::MAX));
        let tenant = &self.tenant;
        let state = status.map(Status::as_str);
        match (&self.filter.image, state) {
            (None, None) => tx.fetch(&LIST, args![tenant, before, limit]).await,
            (None, Some(state)) => tx.fetch(&LIST_STATE, args![tenant, before, limit, state]).await,
            (Some(image), None) => tx.fetch(&LIST_IMAGE, args![tenant, before, limit, image]).await,
            (Some(image), Some(state)) => {
                tx.fetch(&LIST_BOTH, args![tenant, before, limit, image, state]).await
            }
        }
    }

    /// Of the next rows that are suspended those that wait for this.
    async fn waiting(&self, tx: &mut Tx<'_>, wanted: &WaitingFor, limit: usize) -> Result<InstancePage> {
        if self.filter.status.is_some_and(|status| status != Status::Suspended) {
            return Ok(InstancePage::default());
        }
        let rows = self.rows(tx, Some(Status::Suspended), SCAN).await?;
        let all = rows.len() < SCAN as usize;
        let mut page = InstancePage::of(&rows)?;
        page.instances.retain(|instance| match &instance.life.state {
            State::Suspended { waits, .. } => wanted.is_among(waits),
            State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Ended { .. } => {
                false
            }
        });
        if page.instances.len() > limit {
            page.instances.truncate(limit);
            (page.next, page.next_id) = page.instances.last().map(|last| (last.key, last.id.clone())).unzip();
        } else if let Some(last) = rows.last().filter(|_| !all) {
            page.ends_with(last)?;
        }
        Ok(page)
    }
}

impl InstancePage {
    /// What these rows hold; damaged ones are named.
    fn of(rows: &[Row]) -> Result<Self> {
        let mut page = Self::default();
        for row in rows {
            match read(row) {
                Ok(instance) => page.instances.push(instance),
                Err(error @ Error::Unreadable { .. }) => page.unreadable.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    /// There is more behind this row.
    fn ends_with(&mut self, last: &Row) -> Result<()> {
        self.next = Some(last.instance("key")?);
        self.next_id = Some(last.parsed("id", |text| InstanceId::parse(text).ok())?);
        Ok(())
    }
}

struct Count {
    tenant: Tenant,
    image: Option<Name>,
}

impl Request for Count {
    type Answer = BTreeMap<&'static str, u64>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let rows = match &self.image {
            Some(image) => tx.fetch(&COUNT_IMAGE, args![&self.tenant, image]).await?,
            None => tx.fetch(&COUNT, args![&self.tenant]).await?,
        };
        let count = |row: &Row| Ok((row.parsed("state", Status::parse)?.as_str(), row.number("n")?));
        rows.iter().filter_map(|row| damage::readable(count(row)).transpose()).collect()
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

/// Looks up the internal key of an id; it never changes while the instance exists.
struct Find {
    tenant: Tenant,
    id: InstanceId,
}

impl Request for Find {
    type Answer = Target;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Target> {
        let row = tx.fetch_optional(&FIND, args![&self.tenant, &self.id]).await?;
        let row = row.ok_or_else(|| Error::NoInstance { id: self.id.to_string() })?;
        Ok(Target { key: row.instance("key")?, tenant: self.tenant.clone(), id: self.id.clone() })
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Target>> {
        self.run(tx).await.map(Some)
    }
}

struct Resolve {
    tenant: Tenant,
    prefix: InstanceId,
}

impl Request for Resolve {
    type Answer = (InstanceId, InstanceKey);

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        // '~' is behind every character that an id may have.
        let end = format!("{}~", self.prefix);
        let most = Error::MAX_CANDIDATES as u64 + 1;
        let rows = tx.fetch(&FIND_PREFIX, args![&self.tenant, &self.prefix, &end, most]).await?;
        let mut found = Vec::new();
        for row in &rows {
            found.push((row.parsed("id", |text| InstanceId::parse(text).ok())?, row.instance("key")?));
        }
        match found.as_slice() {
            [] => Err(Error::NoInstance { id: self.prefix.to_string() }),
            [only] => Ok(only.clone()),
            // The prefix itself sorts first.
            [exact, ..] if exact.0 == self.prefix => Ok(exact.clone()),
            several => {
                let mut candidates: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
                if candidates.len() > Error::MAX_CANDIDATES {
                    candidates.truncate(Error::MAX_CANDIDATES - 1);
                    candidates.push("…".to_owned());
                }
                Err(Error::Ambiguous { prefix: self.prefix.to_string(), candidates })
            }
        }
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

/// Whose instances are gone.
struct Missing {
    of: Vec<(Tenant, InstanceId)>,
}

impl Request for Missing {
    type Answer = Vec<(Tenant, InstanceId)>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let mut missing = Vec::new();
        for (tenant, id) in &self.of {
            if tx.fetch_optional(&FIND, args![tenant, id]).await?.is_none() {
                missing.push((tenant.clone(), id.clone()));
            }
        }
        Ok(missing)
    }
}

impl Store {
    /// Which of these do not exist (any more). Ask about few at a time.
    pub async fn missing_instances(
        &self,
        of: Vec<(Tenant, InstanceId)>,
    ) -> Result<Vec<(Tenant, InstanceId)>> {
        self.read(Missing { of }).await
    }

    /// An instance without its payloads.
    pub async fn instance(&self, tenant: &Tenant, id: &InstanceId) -> Result<Instance> {
        self.read(Get { tenant: tenant.clone(), id: id.clone() }).await
    }

    /// An instance with everything that one screen shows.
    pub async fn instance_detail(&self, tenant: &Tenant, id: &InstanceId) -> Result<InstanceDetail> {
        self.read(Detail { tenant: tenant.clone(), id: id.clone() }).await
    }

    /// A page of a tenant's instances, newest first.
    pub async fn list(&self, tenant: &Tenant, filter: ListFilter) -> Result<InstancePage> {
        self.read(List { tenant: tenant.clone(), filter }).await
    }

    /// How many instances stand in each status; a status without any is left out.
    pub async fn count(&self, tenant: &Tenant, image: Option<&Name>) -> Result<BTreeMap<&'static str, u64>> {
        self.read(Count { tenant: tenant.clone(), image: image.cloned() }).await
    }

    /// The one instance whose id is `prefix` or begins with it. Several: refused with their names.
    pub async fn resolve(&self, tenant: &Tenant, prefix: &InstanceId) -> Result<InstanceId> {
        self.resolve_key(tenant, prefix).await.map(|(id, _)| id)
    }

    /// The same, with its internal key: by that notices name it.
    pub async fn resolve_key(
        &self,
        tenant: &Tenant,
        prefix: &InstanceId,
    ) -> Result<(InstanceId, InstanceKey)> {
        self.read(Resolve { tenant: tenant.clone(), prefix: prefix.clone() }).await
    }

    /// The key of an id, for a request that then locks the row by it.
    pub(super) async fn target(&self, tenant: &Tenant, id: &InstanceId) -> Result<Target> {
        self.read(Find { tenant: tenant.clone(), id: id.clone() }).await
    }
}
