//! Whose turn it is: claims while tenants have quotas of running instances.
//!
//! Without such a quota claims read one range of the wake index for each priority, whosever the
//! wakes are. A tenant that is full would leave its backlog at the front of those ranges, to be
//! read over by every claim. So while there are quotas each tenant has ranges of its own: what
//! is full is not looked at, and those that are due share what a claim may take.
//!
//! The quota is exact across nodes: a claim counts while it holds the tenant's row, and nothing
//! but a claim makes the count grow. Rows of tenants are locked in the order of their names and
//! before any instance's, so that claims and starts cannot wait for each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::Result,
    life::life_columns,
    sql::{Row, Stmt, Tx, args, stmt},
    tenants,
    wakes::env,
};
use crate::domain::{id::Tenant, time::Micros};

/// The earliest wake of each tenant and priority: three looks into indices for each pair that has a wake at
/// all, however many it has. After a pair comes the next priority of its tenant, after the last one the next tenant. Both are
/// asked for in the order of the index: of another one PostgreSQL would read over all that has ended.
/// Compared as pairs they would be one look, but SQLite then reads over all wakes of the pair before.
const HEADS: Stmt = stmt!(
    "WITH RECURSIVE head(tenant, priority, wake_at) AS (
         SELECT n.tenant, n.priority, n.wake_at FROM instance AS n
          WHERE n.key = (SELECT i.key FROM instance AS i WHERE i.wake_at IS NOT NULL AND NOT i.paused
                          ORDER BY i.tenant, i.priority, i.wake_at, i.key LIMIT 1)
          UNION ALL
         SELECT n.tenant, n.priority, n.wake_at FROM head
           JOIN instance AS n
             ON n.key = COALESCE(
                    (SELECT i.key FROM instance AS i
                      WHERE i.tenant = head.tenant AND i.priority > head.priority
                        AND i.wake_at IS NOT NULL AND NOT i.paused
                      ORDER BY i.tenant, i.priority, i.wake_at, i.key LIMIT 1),
                    (SELECT i.key FROM instance AS i
                      WHERE i.tenant > head.tenant AND i.wake_at IS NOT NULL AND NOT i.paused
                      ORDER BY i.tenant, i.priority, i.wake_at, i.key LIMIT 1)))
     SELECT head.tenant, head.priority, head.wake_at, q.max_running
       FROM head LEFT JOIN tenant AS q ON q.name = head.tenant
      ORDER BY head.priority DESC, head.wake_at, head.tenant"
);
const DUE: Stmt = stmt!(concat!(
    "SELECT ",
    life_columns!(),
    ", image_name, image_version, image_digest, workflow, ",
    env!(),
    " FROM instance
      WHERE tenant = $1 AND priority = $2 AND wake_at IS NOT NULL AND NOT paused AND wake_at <= $3
      ORDER BY wake_at, key LIMIT 0 + $4 {skip_locked}"
));

/// A tenant's earliest wake of one priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) tenant: Tenant,
    pub(super) priority: u8,
    pub(super) wake_at: Micros,
    /// Whether the tenant has a quota of running instances.
    max_running: Option<u64>,
}

/// The heads of all tenants: highest priority first, earliest wake first.
pub(super) async fn heads(tx: &mut Tx<'_>) -> Result<Vec<Head>> {
    let rows = tx.fetch(&HEADS, args![]).await?;
    rows.iter()
        .map(|row| {
            let priority = u8::try_from(row.small("priority")?);
            Ok(Head {
                tenant: row.tenant("tenant")?,
                priority: priority.map_err(|error| row.unreadable("priority", error.to_string()))?,
                wake_at: row.at("wake_at")?,
                max_running: tenants::quota(row, "max_running")?,
            })
        })
        .collect()
}

/// Due wakes of a head's tenant and priority that nobody holds; they are held from here on.
pub(super) async fn due(tx: &mut Tx<'_>, head: &Head, now: Micros, most: u64) -> Result<Vec<Row>> {
    tx.fetch(&DUE, args![&head.tenant, head.priority, now, most]).await
}

/// How many more may run of a tenant that has a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// So many: this transaction holds the tenant's row, and nobody else can add to them.
    Free(u64),
    /// There may be some, but the claim is filled by others: not looked at in this one.
    Later,
}

/// The room of the tenants that have a quota and something due. Others have room for all.
#[derive(Debug, Default)]
pub(super) struct Rooms(BTreeMap<Tenant, Room>);

impl Rooms {
    /// Counts, and holds the rows of at most `limit` tenants that have room.
    pub(super) async fn look(tx: &mut Tx<'_>, due: &[Head], limit: u32, now: Micros) -> Result<Self> {
        let mut rooms = BTreeMap::new();
        let mut chosen = BTreeSet::new();
        let limited = due.iter().filter_map(|head| Some((&head.tenant, head.max_running?)));
        let limited: Vec<_> = limited.collect();
        if limited.is_empty() {
            return Ok(Self(rooms));
        }
        // Without locks, so that a full tenant holds up nobody.
        let running = tenants::running(tx, now).await?;
        for (tenant, max) in limited {
            let room = if running.get(tenant).is_some_and(|running| *running >= max) {
                Room::Free(0)
            } else {
                if chosen.len() < limit as usize {
                    chosen.insert(tenant);
                }
                Room::Later
            };
            rooms.insert(tenant.clone(), room);
        }
        let mut quotas = Vec::new();
        for tenant in chosen {
            let row = tenants::lock(tx, tenant).await?;
            quotas.push((tenant, tenants::quota(&row, "max_running")?.unwrap_or(u64::MAX)));
        }
        // Again, now that nobody else can add.
        let running = tenants::running(tx, now).await?;
        for (tenant, max) in quotas {
            let free = max.saturating_sub(running.get(tenant).copied().unwrap_or(0));
            rooms.insert(tenant.clone(), Room::Free(free));
        }
        Ok(Self(rooms))
    }

    /// How many of the tenant's wakes this claim may take.
    pub(super) fn of(&self, tenant: &Tenant) -> u64 {
        match self.0.get(tenant) {
            None => u64::MAX,
            Some(Room::Free(free)) => *free,
            Some(Room::Later) => 0,
        }
    }

    /// Whether the tenant's wakes wait for room and not for a time.
    pub(super) fn is_full(&self, tenant: &Tenant) -> bool {
        self.0.get(tenant) == Some(&Room::Free(0))
    }

    /// So many were taken.
    pub(super) fn took(&mut self, tenant: &Tenant, n: u64) {
        if let Some(Room::Free(free)) = self.0.get_mut(tenant) {
            *free = free.saturating_sub(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tenant_is_told_from_one_that_comes_later() {
        let tenant = |name: &str| Tenant::parse(name).expect("a tenant");
        let mut rooms = Rooms([(tenant("a"), Room::Free(2)), (tenant("b"), Room::Later)].into());
        assert_eq!(
            (rooms.of(&tenant("a")), rooms.of(&tenant("b")), rooms.of(&tenant("c"))),
            (2, 0, u64::MAX)
        );
        rooms.took(&tenant("a"), 2);
        rooms.took(&tenant("c"), 9);
        let full = ["a", "b", "c"].map(|name| rooms.is_full(&tenant(name)));
        assert_eq!(full, [true, false, false]);
    }
}
