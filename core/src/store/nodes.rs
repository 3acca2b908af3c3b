//! Running environment services and their leases.
//!
//! A lease is an epoch: taking it raises the number, so that whoever held it before has lost
//! it. A claim holds the node's row while it claims, so no node claims without its lease
//! (invariant 4). On SQLite the lock on the data directory is the real lease, and the row is
//! written at the start only.

use std::time::Duration;

use super::{
    Notice, Store,
    commit::Request,
    error::{Error, Result},
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::NodeId,
    time::{Micros, span},
};

/// What a node says of itself when it takes its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Chosen once for a data directory.
    pub id: NodeId,
    /// For people: the host's name.
    pub name: String,
    /// Where its management server listens.
    pub address: String,
    /// Its release.
    pub version: String,
    /// Processes it runs at once.
    pub slots: u32,
    /// How long its lease lasts unrenewed.
    pub lease: Duration,
}

/// The right to claim for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLease {
    /// Which node.
    pub node: NodeId,
    /// Which of its leases: only the newest counts.
    pub epoch: u64,
}

/// What a node tells with each renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Processes it runs now.
    pub running: u32,
    /// It takes nothing new and waits for what runs.
    pub draining: bool,
    /// Why it claims nothing, one sentence; empty: it claims.
    pub not_claiming: String,
}

/// A node as people see it, and as other nodes watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its lease as it stands.
    pub lease: NodeLease,
    /// Raised by each renewal: a watcher compares it, never a time.
    pub renewals: u64,
    /// How long the lease lasts unrenewed.
    pub lease_length: Duration,
    /// The lease was taken from it.
    pub lost: bool,
    /// For people.
    pub name: String,
    /// Where its management server listens.
    pub address: String,
    /// Its release.
    pub version: String,
    /// Processes it runs at once.
    pub slots: u32,
    /// What it told last.
    pub report: NodeReport,
    /// When it took this lease.
    pub started_at: Micros,
    /// When it last renewed it; for people only.
    pub renewed_at: Micros,
}

const TAKE: Stmt = stmt!(
    "INSERT INTO node (id, name, address, version, slots, running, epoch, renewals, lease_micros, lost,
                       draining, not_claiming, started_at, renewed_at)
     VALUES ($1, $2, $3, $4, $5, 0, 1, 0, $6, FALSE, FALSE, '', $7, $7)
         ON CONFLICT (id) DO UPDATE
        SET name = $2, address = $3, version = $4, slots = $5, running = 0, epoch = node.epoch + 1,
            renewals = 0, lease_micros = $6, lost = FALSE, draining = FALSE, not_claiming = '',
            started_at = $7, renewed_at = $7
     RETURNING epoch"
);
const RENEW: Stmt = stmt!(
    "UPDATE node SET renewals = renewals + 1, renewed_at = $1, running = $2, draining = $3, not_claiming = $4
      WHERE id = $5 AND epoch = $6 AND NOT lost"
);
const HOLD: Stmt = stmt!("SELECT epoch FROM node WHERE id = $1 AND epoch = $2 AND NOT lost {for_share}");
/// Guarded by what the watcher saw for the whole length: a renewal meanwhile wins.
const LOSE: Stmt =
    stmt!("UPDATE node SET lost = TRUE WHERE id = $1 AND epoch = $2 AND renewals = $3 AND NOT lost");
const LIST: Stmt = stmt!(
    "SELECT id, name, address, version, slots, running, epoch, renewals, lease_micros, lost, draining,
            not_claiming, started_at, renewed_at
       FROM node ORDER BY name, id"
);

/// Holds the node's row for the transaction; refused if the lease is not held any more.
pub(super) async fn hold(tx: &mut Tx<'_>, lease: &NodeLease) -> Result<()> {
    match tx.fetch_optional(&HOLD, args![&lease.node, lease.epoch]).await? {
        Some(_) => Ok(()),
        None => Err(lost(lease)),
    }
}

fn lost(lease: &NodeLease) -> Error {
    Error::LeaseLost { node: lease.node.clone() }
}

struct Take {
    node: NewNode,
}

impl Request for Take {
    type Answer = NodeLease;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<NodeLease> {
        let node = &self.node;
        let now = tx.now().await?;
        let lease = span(node.lease).max(1);
        let args = args![&node.id, &node.name, &node.address, &node.version, node.slots, lease, now];
        let row = tx.write_fetch(&TAKE, args).await?.pop();
        let row = row.ok_or(Error::Broken { table: "node".to_owned(), rows: 0 })?;
        Ok(NodeLease { node: node.id.clone(), epoch: row.number("epoch")? })
    }
}

struct Renew {
    lease: NodeLease,
    report: NodeReport,
}

impl Request for Renew {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        let NodeReport { running, draining, not_claiming } = &self.report;
        let now = tx.now().await?;
        let args = args![now, *running, *draining, not_claiming, &self.lease.node, self.lease.epoch];
        match tx.execute(&RENEW, args).await? {
            0 => Err(lost(&self.lease)),
            _ => Ok(()),
        }
    }
}

struct Lose {
    lease: NodeLease,
    renewals: u64,
}

impl Request for Lose {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let args = args![&self.lease.node, self.lease.epoch, self.renewals];
        let lost = tx.execute(&LOSE, args).await? == 1;
        if lost {
            tx.notify(Notice::Everything);
        }
        Ok(lost)
    }
}

struct List;

impl Request for List {
    type Answer = Vec<Node>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        tx.fetch(&LIST, args![]).await?.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<Node> {
    let node = row.parsed("id", |text| NodeId::parse(text).ok())?;
    Ok(Node {
        lease: NodeLease { node, epoch: row.number("epoch")? },
        renewals: row.number("renewals")?,
        lease_length: Duration::from_micros(row.number("lease_micros")?),
        lost: row.flag("lost")?,
        name: row.text("name")?,
        address: row.text("address")?,
        version: row.text("version")?,
        slots: row.small("slots")?,
        report: NodeReport {
            running: row.small("running")?,
            draining: row.flag("draining")?,
            not_claiming: row.text("not_claiming")?,
        },
        started_at: row.at("started_at")?,
        renewed_at: row.at("renewed_at")?,
    })
}

impl Store {
    /// Takes the lease of a node: whoever held it before has lost it. Settle before the first
    /// claim.
    pub async fn lease_node(&self, node: NewNode) -> Result<NodeLease> {
        for (field, text) in
            [("node.name", &node.name), ("node.address", &node.address), ("node.version", &node.version)]
        {
            super::check_text(field, text)?;
        }
        self.write_node(Take { node }).await
    }

    /// Renews the lease and tells how the node is. Refused once the lease is lost: end the
    /// processes, take a new one, settle.
    pub async fn renew_node(&self, lease: &NodeLease, report: NodeReport) -> Result<()> {
        super::check_text("node.not_claiming", &report.not_claiming)?;
        self.write_node(Renew { lease: lease.clone(), report }).await
    }

    /// Takes the lease away from a node that was watched unrenewed (`renewals` stayed as seen)
    /// for its whole length, by the watcher's monotonic clock, with the database answering all
    /// that time. False: it has been renewed, or lost before.
    pub async fn lose_lease(&self, lease: &NodeLease, renewals: u64) -> Result<bool> {
        self.write_node(Lose { lease: lease.clone(), renewals }).await
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        self.read(List).await
    }
}
