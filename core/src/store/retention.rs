//! Removing what has ended: one instance that a controller names, or all whose time is over.
//!
//! A large instance goes in several short transactions, its row last: until then it is listed
//! and can be deleted again, so that a deletion that was interrupted leaves nothing behind for
//! ever. Its timeline goes first, so that one can see that a deletion has begun.
//!
//! Pruning takes only rows that nobody holds: nodes that prune at the same time share the work
//! instead of waiting for each other. What has not ended is never touched.

use std::time::Duration;

use super::{
    Notice, Store,
    commit::{LockOrder, Request},
    error::{Error, Result},
    life::{self, Locked, Target, life_columns},
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::{InstanceId, Tenant},
    time::Micros,
};

/// Rows of each table that one step deletes: a large instance must not hold up the writer.
const STEP: u32 = 1_000;

const DELETE_EVENTS: Stmt = stmt!(
    "DELETE FROM event WHERE instance = $1
        AND number IN (SELECT number FROM event WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_CHECKPOINTS: Stmt = stmt!(
    "DELETE FROM checkpoint WHERE instance = $1
        AND number IN (SELECT number FROM checkpoint WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_SIGNALS: Stmt = stmt!(
    "DELETE FROM signal WHERE instance = $1
        AND number IN (SELECT number FROM signal WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_ATTEMPTS: Stmt = stmt!(
    "DELETE FROM attempt WHERE instance = $1
        AND attempt IN (SELECT attempt FROM attempt WHERE instance = $1 ORDER BY attempt LIMIT $2)"
);
const DELETE_START: Stmt = stmt!("DELETE FROM instance_start WHERE instance = $1");
const DELETE_ENDING: Stmt = stmt!("DELETE FROM instance_ending WHERE instance = $1");
const DELETE_INSTANCE: Stmt =
    stmt!("DELETE FROM instance WHERE key = $1 AND tenant = $2 AND ended_at IS NOT NULL");
const LOCK_FREE: Stmt =
    stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1 AND tenant = $2 {skip_locked}"));

const OVER: Stmt = stmt!(
    "SELECT key, tenant, id, ended_at FROM instance
      WHERE ended_at IS NOT NULL AND ended_at <= $1 ORDER BY ended_at, key LIMIT $2"
);
const OVER_OF: Stmt = stmt!(
    "SELECT key, tenant, id, ended_at FROM instance
      WHERE tenant = $3 AND ended_at IS NOT NULL AND ended_at <= $1 ORDER BY ended_at, key LIMIT $2"
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

/// One step of a deletion.
struct DeleteStep {
    target: Target,
    /// Leave a row alone that somebody else holds.
    if_free: bool,
}

/// How far a deletion is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Gone,
    /// Somebody else is at it.
    Held,
}

impl Request for DeleteStep {
    type Answer = Step;

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.target.key)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Step> {
        if !self.if_free {
            let row = life::lock_target(tx, &self.target).await?;
            return step(tx, row).await;
        }
        match tx.fetch_optional(&LOCK_FREE, args![self.target.key, &self.target.tenant]).await? {
            Some(row) => step(tx, life::read(&row)?).await,
            None => Ok(Step::Held),
        }
    }
}

async fn step(tx: &mut Tx<'_>, row: Locked) -> Result<Step> {
    if row.life.outcome().is_none() {
        return Err(Error::NotEnded { id: row.id });
    }
    for stmt in [&DELETE_EVENTS, &DELETE_CHECKPOINTS, &DELETE_SIGNALS, &DELETE_ATTEMPTS] {
        if tx.execute(stmt, args![row.key, STEP]).await? == u64::from(STEP) {
            return Ok(Step::More);
        }
    }
    tx.execute(&DELETE_START, args![row.key]).await?;
    tx.execute(&DELETE_ENDING, args![row.key]).await?;
    tx.execute_one(&DELETE_INSTANCE, args![row.key, &row.tenant]).await?;
    tx.notify(Notice::Instance(row.key));
    Ok(Step::Gone)
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
            let step = DeleteStep { target: target.clone(), if_free: false };
            if self.write_instance(target.key, step).await? == Step::Gone {
                self.stored().forget(&target.tenant);
                return Ok(());
            }
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
        for (target, ended_at) in found {
            match self.prune_one(&target).await? {
                Step::Gone => {
                    self.stored().forget(&target.tenant);
                    pruned.instances += 1;
                    pruned.oldest.get_or_insert(ended_at);
                    pruned.newest = Some(ended_at);
                }
                Step::More | Step::Held => held += 1,
            }
        }
        // All of them are somebody else's: whoever asked again at once would only spin.
        pruned.more &= held < n_found;
        Ok(pruned)
    }

    async fn prune_one(&self, target: &Target) -> Result<Step> {
        loop {
            let step = DeleteStep { target: target.clone(), if_free: true };
            match self.write_instance(target.key, step).await? {
                Step::More => {}
                done => return Ok(done),
            }
        }
    }
}
