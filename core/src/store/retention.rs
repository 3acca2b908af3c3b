//! Removing what has ended: one instance that a controller names, or all whose time is over.
//!
//! A large instance goes in several short transactions, its row last: until then it is listed
//! and can be deleted again, so that a deletion that was interrupted leaves nothing behind for
//! ever. Its timeline goes first, so that one can see that a deletion has begun.
//!
//! Nobody shall feel it: a transaction deletes few rows and few bytes ([`Budget`]), small instances
//! together, and after each the writer is left to others for longer than it took ([`rest`]), which is
//! long when they are busy.
//!
//! Pruning takes only rows that nobody holds: nodes that prune at the same time share the work
//! instead of waiting for each other. What has not ended is never touched.

use std::{collections::VecDeque, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Notice, Store,
    commit::{LockOrder, Request},
    error::{Error, Result},
    life::{self, Locked, Target, life_columns},
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::{InstanceId, InstanceKey, Tenant},
    time::Micros,
};

/// Instances that one transaction of a prune takes at most.
const TOGETHER: usize = 32;

/// What one transaction may delete.
#[derive(Clone, Copy)]
struct Budget {
    rows: u64,
    bytes: u64,
}

impl Budget {
    /// About a millisecond of a writer's time.
    const STEP: Self = Self { rows: 250, bytes: 512 * 1024 };

    fn took(&mut self, rows: u64, bytes: u64) {
        self.rows = self.rows.saturating_sub(rows);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

/// A table of an instance's rows by number, with payloads: how large the first ones are, and their
/// deletion.
struct Numbered {
    sizes: Stmt,
    delete: Stmt,
}

macro_rules! numbered {
    ($table:literal) => {
        Numbered {
            sizes: stmt!(concat!(
                "SELECT instance, number, CAST(COALESCE(LENGTH(data), 0) AS BIGINT) AS bytes FROM ",
                $table,
                " WHERE instance = $1 ORDER BY number LIMIT 0 + $2"
            )),
            delete: stmt!(concat!("DELETE FROM ", $table, " WHERE instance = $1 AND number <= $2")),
        }
    };
}

const NUMBERED: [Numbered; 3] = [numbered!("event"), numbered!("checkpoint"), numbered!("signal")];
const DELETE_ATTEMPTS: Stmt = stmt!(
    "DELETE FROM attempt WHERE instance = $1
        AND attempt IN (SELECT attempt FROM attempt WHERE instance = $1 ORDER BY attempt LIMIT 0 + $2)"
);
const DELETE_START: Stmt = stmt!("DELETE FROM instance_start WHERE instance = $1");
const DELETE_ENDING: Stmt = stmt!("DELETE FROM instance_ending WHERE instance = $1");
const DELETE_INSTANCE: Stmt =
    stmt!("DELETE FROM instance WHERE key = $1 AND tenant = $2 AND ended_at IS NOT NULL");
const LOCK_FREE: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 AND tenant = $2 {skip_locked}"));

const OVER: Stmt = stmt!(
    "SELECT key, tenant, id, ended_at FROM instance
      WHERE ended_at IS NOT NULL AND ended_at <= $1 ORDER BY ended_at, key LIMIT 0 + $2"
);
const OVER_OF: Stmt = stmt!(
    "SELECT key, tenant, id, ended_at FROM instance
      WHERE tenant = $3 AND ended_at IS NOT NULL AND ended_at <= $1 ORDER BY ended_at, key LIMIT 0 + $2"
);
const COUNT_OF: Stmt = stmt!(
    "SELECT COUNT(*) AS n, MIN(ended_at) AS oldest, MAX(ended_at) AS newest FROM instance
      WHERE tenant = $2 AND ended_at IS NOT NULL AND ended_at <= $1"
);

/// What a round of pruning deleted, or what pruning would delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many instances.
    pub instances: u64,
    /// When the first of them ended.
    pub oldest: Option<Micros>,
    /// When the last of them ended.
    pub newest: Option<Micros>,
    /// There are more: ask again.
    pub more: bool,
}

/// How far the deletion of an instance is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Gone,
    /// Somebody else is at it.
    Held,
}

/// One step of a deletion that a controller asked for.
struct DeleteStep {
    target: Target,
}

impl Request for DeleteStep {
    type Answer = Step;

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.target.key)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Step> {
        let row = life::lock_target(tx, &self.target).await?;
        step(tx, row, &mut Budget::STEP.clone()).await
    }
}

/// One step of pruning: the first of these, and as many more as the budget allows. Rows that
/// somebody holds are left alone.
struct PruneStep {
    targets: Vec<Target>,
}

impl Request for PruneStep {
    /// How far those are that it came to.
    type Answer = Vec<Step>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let (mut budget, mut steps) = (Budget::STEP, Vec::new());
        for target in &self.targets {
            if budget.is_spent() {
                break;
            }
            let row = tx.fetch_optional(&LOCK_FREE, args![target.key, &target.tenant]).await?;
            steps.push(match row {
                Some(row) => step(tx, life::read(&row)?, &mut budget).await?,
                None => Step::Held,
            });
        }
        Ok(steps)
    }
}

async fn step(tx: &mut Tx<'_>, row: Locked, budget: &mut Budget) -> Result<Step> {
    if row.life.outcome().is_none() {
        return Err(Error::NotEnded { id: row.id });
    }
    for table in &NUMBERED {
        delete_first(tx, table, row.key, budget).await?;
        if budget.is_spent() {
            return Ok(Step::More);
        }
    }
    let attempts = tx.execute(&DELETE_ATTEMPTS, args![row.key, budget.rows]).await?;
    budget.took(attempts, 0);
    if budget.is_spent() {
        return Ok(Step::More);
    }
    tx.execute(&DELETE_START, args![row.key]).await?;
    tx.execute(&DELETE_ENDING, args![row.key]).await?;
    tx.execute_one(&DELETE_INSTANCE, args![row.key, &row.tenant]).await?;
    tx.notify(Notice::Instance(row.key));
    tx.notify(Notice::Ended(row.key));
    Ok(Step::Gone)
}

/// Deletes as many rows as the budget allows, at least one if there is one, however large.
async fn delete_first(
    tx: &mut Tx<'_>,
    table: &Numbered,
    instance: InstanceKey,
    budget: &mut Budget,
) -> Result<()> {
    let mut last = None;
    for row in tx.fetch(&table.sizes, args![instance, budget.rows]).await? {
        if budget.is_spent() {
            break;
        }
        budget.took(1, row.number("bytes")?);
        last = Some(row.number("number")?);
    }
    if let Some(last) = last {
        tx.execute(&table.delete, args![instance, last]).await?;
    }
    Ok(())
}

/// Leaves the writer to others after a step that began then, for three times as long as the step took: it takes
/// long while they keep the writer busy.
async fn rest(began: Instant) {
    sleep(began.elapsed() * 3).await;
}

/// Ended instances whose time is over, the one that ended first first.
struct Over {
    tenant: Option<Tenant>,
    older_than: Duration,
    limit: u32,
}

impl Request for Over {
    type Answer = Vec<(Target, Micros)>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let before = tx.now().await? - self.older_than;
        let rows = match &self.tenant {
            None => tx.fetch(&OVER, args![before, self.limit]).await?,
            Some(tenant) => tx.fetch(&OVER_OF, args![before, self.limit, tenant]).await?,
        };
        rows.iter()
            .map(|row| {
                let target = Target {
                    key: row.instance("key")?,
                    tenant: row.tenant("tenant")?,
                    id: row.parsed("id", |text| InstanceId::parse(text).ok())?,
                };
                Ok((target, row.at("ended_at")?))
            })
            .collect()
    }
}

struct Count {
    tenant: Tenant,
    older_than: Duration,
}

impl Request for Count {
    type Answer = Pruned;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Pruned> {
        let before = tx.now().await? - self.older_than;
        let row = tx.fetch_one(&COUNT_OF, args![before, &self.tenant]).await?;
        Ok(Pruned {
            instances: row.number("n")?,
            oldest: row.opt_at("oldest")?,
            newest: row.opt_at("newest")?,
            more: false,
        })
    }
}

impl Store {
    /// Deletes an ended instance with all it stored, in small steps.
    pub async fn delete(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        let target = self.target(tenant, id).await?;
        loop {
            let began = Instant::now();
            let step = DeleteStep { target: target.clone() };
            if self.write_instance(target.key, step).await? == Step::Gone {
                self.stored().forget(&target.tenant);
                return Ok(());
            }
            rest(began).await;
        }
    }

    /// Deletes at most `limit` instances, of all tenants, that ended longer ago than the
    /// retention (`Limits::retention`). Call it again while there are more.
    pub async fn prune(&self, limit: u32) -> Result<Pruned> {
        self.prune_over(Over { tenant: None, older_than: self.limits().retention, limit }).await
    }

    /// Deletes at most `limit` instances of a tenant that ended longer ago than that.
    pub async fn prune_tenant(&self, tenant: &Tenant, older_than: Duration, limit: u32) -> Result<Pruned> {
        self.prune_over(Over { tenant: Some(tenant.clone()), older_than, limit }).await
    }

    /// What [`Self::prune_tenant`] would delete, called until nothing is left.
    pub async fn prunable(&self, tenant: &Tenant, older_than: Duration) -> Result<Pruned> {
        self.read(Count { tenant: tenant.clone(), older_than }).await
    }

    async fn prune_over(&self, over: Over) -> Result<Pruned> {
        let limit = over.limit as usize;
        let found = self.read(over).await?;
        let mut pruned = Pruned { more: found.len() == limit, ..Pruned::default() };
        let (mut held, n_found) = (0, found.len());
        let mut left = VecDeque::from(found);
        while let Some((first, _)) = left.front() {
            let (began, lane) = (Instant::now(), first.key);
            let targets = left.iter().take(TOGETHER).map(|(target, _)| target.clone()).collect();
            for step in self.write_instance(lane, PruneStep { targets }).await? {
                if step == Step::More {
                    break; // the last one it came to; it stays in front
                }
                let Some((target, ended_at)) = left.pop_front() else { break };
                if step == Step::Held {
                    held += 1;
                    continue;
                }
                self.stored().forget(&target.tenant);
                pruned.instances += 1;
                pruned.oldest.get_or_insert(ended_at);
                pruned.newest = Some(ended_at);
            }
            rest(began).await;
        }
        // All of them are somebody else's: whoever asked again at once would only spin.
        pruned.more &= held < n_found;
        Ok(pruned)
    }
}
