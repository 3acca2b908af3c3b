//! Tenants and their quotas.
//!
//! A tenant without quotas costs nothing: no start and no claim of it locks or writes its row.
//! - **Starts per second**: a bucket in the tenant's row, taken from in the start's transaction.
//! - **Stored**: counted aside and remembered ([`StoredCounts`]), so it may be passed by what
//!   other processes start between two counts.
//! - **Running**: counted by the claim that holds the tenant's row, so it is exact; see `claims`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Clock, Notice, Store,
    commit::Request,
    error::{Error, Result},
    sql::{Conn, Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    access::{Bucket, Quotas},
    id::Tenant,
    time::Micros,
};

/// A tenant and what it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantUse {
    /// Which one.
    pub tenant: Tenant,
    /// When it was created.
    pub created_at: Micros,
    /// What it may use.
    pub quotas: Quotas,
    /// Instances that run or are being launched.
    pub running: u64,
    /// Instances that are stored, ended ones included.
    pub stored: u64,
}

const DEFAULT: Stmt =
    stmt!("INSERT INTO tenant (name, created_at) VALUES ('default', $1) ON CONFLICT (name) DO NOTHING");
const COUNT: Stmt = stmt!("SELECT COUNT(*) AS n FROM tenant");
const CREATE: Stmt = stmt!(
    "INSERT INTO tenant (name, created_at, max_running, max_stored, starts_per_second, start_credit, start_credit_at)
     VALUES ($1, $2, $3, $4, $5, $6, $2) ON CONFLICT (name) DO NOTHING"
);
const FIND: Stmt =
    stmt!("SELECT name, created_at, max_running, max_stored, starts_per_second FROM tenant WHERE name = $1");
const LIST: Stmt =
    stmt!("SELECT name, created_at, max_running, max_stored, starts_per_second FROM tenant ORDER BY name");
const SET: Stmt = stmt!(
    "UPDATE tenant SET max_running = $2, max_stored = $3, starts_per_second = $4, start_credit = $5,
            start_credit_at = $6
      WHERE name = $1"
);
const LOCK: Stmt = stmt!(
    "SELECT name, max_running, starts_per_second, start_credit, start_credit_at
       FROM tenant WHERE name = $1 {for_update}"
);
const TAKE: Stmt = stmt!("UPDATE tenant SET start_credit = $2, start_credit_at = $3 WHERE name = $1");
const STORED: Stmt = stmt!("SELECT tenant, COUNT(*) AS n FROM instance GROUP BY tenant");
const STORED_OF: Stmt = stmt!("SELECT COUNT(*) AS n FROM instance WHERE tenant = $1");
/// Whoever has a node runs or is being launched. A launch that missed its deadline is due again
/// and counts no more: whoever claims it would else be kept out by it.
///
/// By an expression, or SQLite would save itself the sorting by reading all instances by tenant.
const RUNNING: Stmt = stmt!(
    "SELECT tenant || '' AS tenant, COUNT(*) AS n FROM instance
      WHERE node IS NOT NULL AND (wake_at IS NULL OR wake_at > $1) GROUP BY tenant || ''"
);

/// Makes the tenant `default`, where it is missing.
pub(super) async fn ensure_default(conn: &mut Conn, clock: &Clock) -> Result<()> {
    let mut tx = Tx::single(conn, clock);
    let name = Tenant::default_tenant();
    if tx.fetch_optional(&FIND, args![&name]).await?.is_none() {
        let now = tx.now().await?;
        tx.execute(&DEFAULT, args![now]).await?;
    }
    Ok(())
}

/// Refuses what is asked for a tenant that does not exist.
pub(super) async fn must_exist(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<()> {
    tx.fetch_optional(&FIND, args![tenant]).await?.map(drop).ok_or_else(|| missing(tenant))
}

pub(super) fn missing(tenant: &Tenant) -> Error {
    Error::NoTenant { tenant: tenant.clone() }
}

/// Holds the tenant's row; refused if there is none.
pub(super) async fn lock(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<Row> {
    tx.fetch_optional(&LOCK, args![tenant]).await?.ok_or_else(|| missing(tenant))
}

/// How many instances of each tenant run or are being launched: as many rows are read as the
/// cluster runs processes.
pub(super) async fn running(tx: &mut Tx<'_>, now: Micros) -> Result<BTreeMap<Tenant, u64>> {
    let rows = tx.fetch(&RUNNING, args![now]).await?;
    rows.iter().map(|row| Ok((row.tenant("tenant")?, row.number("n")?))).collect()
}

/// Takes one start out of the tenant's bucket, or refuses and writes nothing. The row stays
/// held, so that the starts of this tenant go one after another; those of others do not wait.
pub(super) async fn take_start(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<()> {
    let row = lock(tx, tenant).await?;
    // Read under the lock: the quota may have changed.
    let Some(rate) = quota(&row, "starts_per_second")? else { return Ok(()) };
    let now = tx.now().await?;
    let bucket = Bucket { credit: row.number("start_credit")?, at: row.at("start_credit_at")? };
    let left = bucket.take(rate, now).map_err(|wait| Error::StartQuota {
        tenant: tenant.clone(),
        max: rate,
        wait,
    })?;
    tx.execute_one(&TAKE, args![tenant, left.credit, left.at]).await
}

pub(super) fn quota(row: &Row, column: &'static str) -> Result<Option<u64>> {
    let value = row.opt_int(column)?;
    value.map(|n| u64::try_from(n).map_err(|error| row.unreadable(column, error.to_string()))).transpose()
}

fn read_quotas(row: &Row) -> Result<Quotas> {
    Ok(Quotas {
        running: quota(row, "max_running")?,
        stored: quota(row, "max_stored")?,
        starts_per_second: quota(row, "starts_per_second")?,
    })
}

/// What the bucket of a quota that was just set holds.
fn full(quotas: &Quotas, now: Micros) -> u64 {
    Bucket::full(quotas.starts_per_second.unwrap_or(0), now).credit
}

struct Create {
    tenant: Tenant,
    quotas: Quotas,
    /// Tenants that a cluster may have.
    most: u64,
}

impl Request for Create {
    type Answer = TenantUse;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<TenantUse> {
        let Self { tenant, quotas, most } = self;
        if let Some(existing) = self.existing(tx).await? {
            return Ok(existing);
        }
        if tx.fetch_one(&COUNT, args![]).await?.number("n")? >= *most {
            return Err(Error::AtLimit {
                whose: "the cluster".to_owned(),
                what: "tenants",
                max: *most,
                remedy: "use one that exists",
            });
        }
        let now = tx.now().await?;
        let Quotas { running, stored, starts_per_second } = *quotas;
        let args = args![tenant, now, running, stored, starts_per_second, full(quotas, now)];
        if tx.execute(&CREATE, args).await? == 0 {
            // Another process was faster between our look and our insert.
            return self.existing(tx).await?.ok_or_else(|| missing(tenant));
        }
        Ok(TenantUse { tenant: tenant.clone(), created_at: now, quotas: *quotas, running: 0, stored: 0 })
    }
}

impl Create {
    async fn existing(&self, tx: &mut Tx<'_>) -> Result<Option<TenantUse>> {
        let Some(row) = tx.fetch_optional(&FIND, args![&self.tenant]).await? else { return Ok(None) };
        if read_quotas(&row)? != self.quotas {
            return Err(Error::OtherTenant { tenant: self.tenant.clone() });
        }
        load(tx, &self.tenant).await.map(Some)
    }
}

struct SetQuotas {
    tenant: Tenant,
    quotas: Quotas,
}

impl Request for SetQuotas {
    type Answer = TenantUse;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<TenantUse> {
        let Self { tenant, quotas } = self;
        lock(tx, tenant).await?;
        let now = tx.now().await?;
        let Quotas { running, stored, starts_per_second } = *quotas;
        let args = args![tenant, running, stored, starts_per_second, full(quotas, now), now];
        tx.execute_one(&SET, args).await?;
        tx.notify(Notice::Wakes); // more may run now
        load(tx, tenant).await
    }
}

struct Load {
    tenant: Tenant,
}

impl Request for Load {
    type Answer = TenantUse;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<TenantUse> {
        load(tx, &self.tenant).await
    }
}

async fn load(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<TenantUse> {
    let row = tx.fetch_optional(&FIND, args![tenant]).await?.ok_or_else(|| missing(tenant))?;
    let now = tx.now().await?;
    let stored = tx.fetch_one(&STORED_OF, args![tenant]).await?.number("n")?;
    let running = running(tx, now).await?;
    read(&row, &running, &[(tenant.clone(), stored)].into())
}

struct List;

impl Request for List {
    type Answer = Vec<TenantUse>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let now = tx.now().await?;
        let running = running(tx, now).await?;
        let counts = tx.fetch(&STORED, args![]).await?;
        let stored = counts.iter().map(|row| Ok((row.tenant("tenant")?, row.number("n")?)));
        let stored = stored.collect::<Result<BTreeMap<_, _>>>()?;
        let rows = tx.fetch(&LIST, args![]).await?;
        rows.iter().map(|row| read(row, &running, &stored)).collect()
    }
}

fn read(row: &Row, running: &BTreeMap<Tenant, u64>, stored: &BTreeMap<Tenant, u64>) -> Result<TenantUse> {
    let tenant = row.tenant("name")?;
    Ok(TenantUse {
        created_at: row.at("created_at")?,
        quotas: read_quotas(row)?,
        running: running.get(&tenant).copied().unwrap_or(0),
        stored: stored.get(&tenant).copied().unwrap_or(0),
        tenant,
    })
}

/// How full a tenant's quota of running instances is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningQuota {
    /// Instances that run or are being launched.
    pub running: u64,
    /// How many may.
    pub max: u64,
}

struct LoadRunning {
    tenant: Tenant,
}

impl Request for LoadRunning {
    type Answer = Option<RunningQuota>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let row = tx.fetch_optional(&FIND, args![&self.tenant]).await?;
        let row = row.ok_or_else(|| missing(&self.tenant))?;
        let Some(max) = quota(&row, "max_running")? else { return Ok(None) };
        let now = tx.now().await?;
        let running = running(tx, now).await?.get(&self.tenant).copied().unwrap_or(0);
        Ok(Some(RunningQuota { running, max }))
    }
}

struct CountStored {
    tenant: Tenant,
}

impl Request for CountStored {
    type Answer = u64;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u64> {
        tx.fetch_one(&STORED_OF, args![&self.tenant]).await?.number("n")
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<u64>> {
        self.run(tx).await.map(Some)
    }
}

/// How many instances the tenants with a quota of them store: counted by a reader, then kept up
/// by this process's own starts, and counted anew when that is old or somebody here deleted.
/// What other processes start in between is not seen.
#[derive(Debug, Default)]
pub(super) struct StoredCounts {
    of: Mutex<HashMap<Tenant, Counted>>,
    /// One count at a time: a burst of starts must not count once each.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Counted {
    /// With the starts since then.
    stored: Arc<AtomicU64>,
    until: Instant,
}

/// How long a count holds: a second, and so long that counting takes at most a twentieth of the
/// time.
const COUNT_HOLDS: Duration = Duration::from_secs(1);
const COUNT_SHARE: u32 = 20;

impl StoredCounts {
    /// The next count is made anew.
    pub(super) fn forget(&self, tenant: &Tenant) {
        self.lock().remove(tenant);
    }

    fn fresh(&self, tenant: &Tenant) -> Option<Place> {
        let counted = self.lock().get(tenant)?.clone();
        (Instant::now() < counted.until).then(|| Place::take(counted.stored))
    }

    fn remember(&self, tenant: &Tenant, stored: u64, took: Duration) -> Place {
        let stored = Arc::new(AtomicU64::new(stored));
        let until = Instant::now() + COUNT_HOLDS.max(took * COUNT_SHARE);
        self.lock().insert(tenant.clone(), Counted { stored: Arc::clone(&stored), until });
        Place::take(stored)
    }

    /// Nothing is left half done under this lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Counted>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one start in its tenant's count. It stays taken unless it is given back.
#[derive(Debug)]
pub(super) struct Place {
    counted: Arc<AtomicU64>,
    /// How many are stored before it.
    pub(super) before: u64,
}

impl Place {
    fn take(counted: Arc<AtomicU64>) -> Self {
        let before = counted.fetch_add(1, Ordering::Relaxed);
        Self { counted, before }
    }

    /// The start stored nothing.
    pub(super) fn give_back(self) {
        self.counted.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Store {
    /// Creates a tenant. One that exists with the same quotas is answered as it is; with others
    /// it is refused with ALREADY_EXISTS.
    pub async fn create_tenant(&self, tenant: Tenant, quotas: Quotas) -> Result<TenantUse> {
        check(&quotas)?;
        self.write_node(Create { tenant, quotas, most: self.limits().tenants }).await
    }

    /// All tenants, by name. Counts every stored instance.
    pub async fn tenants(&self) -> Result<Vec<TenantUse>> {
        self.read(List).await
    }

    /// A tenant and what it uses. Counts its stored instances.
    pub async fn tenant(&self, tenant: &Tenant) -> Result<TenantUse> {
        self.read(Load { tenant: tenant.clone() }).await
    }

    /// Sets all quotas of a tenant at once. What runs or is stored beyond a lower quota stays.
    pub async fn set_quotas(&self, tenant: &Tenant, quotas: Quotas) -> Result<TenantUse> {
        check(&quotas)?;
        self.write_node(SetQuotas { tenant: tenant.clone(), quotas }).await
    }

    /// How full the tenant's quota of running instances is; none: it has no such quota.
    pub async fn running_quota(&self, tenant: &Tenant) -> Result<Option<RunningQuota>> {
        self.read(LoadRunning { tenant: tenant.clone() }).await
    }

    /// A place in the count of a tenant that is known to have a quota of stored instances.
    pub(super) fn known_place(&self, tenant: &Tenant) -> Option<Place> {
        self.stored().fresh(tenant)
    }

    /// As [`Self::known_place`], after a count if it takes one.
    pub(super) async fn place(&self, tenant: &Tenant) -> Result<Place> {
        let _one_at_a_time = self.stored().counting.lock().await;
        if let Some(place) = self.stored().fresh(tenant) {
            return Ok(place);
        }
        let began = Instant::now();
        let stored = self.read(CountStored { tenant: tenant.clone() }).await?;
        Ok(self.stored().remember(tenant, stored, began.elapsed()))
    }
}

fn check(quotas: &Quotas) -> Result<()> {
    let Quotas { running, stored, starts_per_second } = *quotas;
    let named = [
        ("quotas.running", running),
        ("quotas.stored", stored),
        ("quotas.starts_per_second", starts_per_second),
    ];
    match named.into_iter().find(|(_, quota)| quota.is_some_and(|n| !(1..=Quotas::MAX).contains(&n))) {
        None => Ok(()),
        Some((field, quota)) => {
            let value = quota.unwrap_or(0).to_string();
            Err(Error::Invalid { field, value, remedy: "give 1 to 1000000000, or none" })
        }
    }
}
