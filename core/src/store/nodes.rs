//! Running environment services and their leases.
//!
//! A lease is an epoch: taking it raises the number, so that whoever held it before has lost
//! it. A claim holds the node's row while it claims, so no node claims without its lease
//! (invariant 4). On SQLite the lock on the data directory is the real lease, and the row is
//! written at the start and when a drain is asked for or answered.
//!
//! Two ways to lose it are told apart: *lost*, a watcher took it and the node takes a new one;
//! *taken*, another process with the same id took it, and one of the two must not run at all.

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// It takes nothing new, because it was asked to drain.
    pub draining: bool,
    /// Why it claims nothing, one sentence; empty: it claims, as far as slots are free.
    pub not_claiming: String,
    /// Load average of the last minute, in thousandths.
    pub load_milli: u64,
    /// Memory that is free for more processes.
    pub memory_free_bytes: u64,
    /// What confines its processes, and where it keeps images: a short phrase each.
    pub in_force: Vec<String>,
}

/// What controllers ask of a node. It stays over the node's restart, until it is taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Drain {
    /// Claim.
    #[default]
    No,
    /// Claim nothing, wait for what runs.
    Wait,
    /// Claim nothing, end what runs and give it back to the wake queue.
    Suspend,
}

impl Drain {
    /// Its word in the row and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Wait => "wait",
            Self::Suspend => "suspend",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::No, Self::Wait, Self::Suspend].into_iter().find(|drain| drain.as_str() == word)
    }
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
    /// What is asked of it.
    pub drain: Drain,
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
/// One statement that commits by itself; the database's clock, if none is given.
const RENEW: Stmt = stmt!(
    "UPDATE node SET renewals = renewals + 1, renewed_at = COALESCE($1, {clock}), running = $2, draining = $3,
                     not_claiming = $4, load_milli = $5, memory_free_bytes = $6, in_force = $7
      WHERE id = $8 AND epoch = $9 AND NOT lost RETURNING drain"
);
/// Only over the very lease that was lost, or over its successor if that is ours and the answer
/// was lost: else somebody else with this id has taken it.
const RETAKE: Stmt = stmt!(
    "UPDATE node SET epoch = epoch + 1, renewals = 0, lost = FALSE, running = 0, draining = FALSE,
                     not_claiming = '', renewed_at = $1, started_at = $1
      WHERE id = $2 AND (epoch = $3 OR (epoch = $3 + 1 AND name = $4 AND address = $5)) RETURNING epoch"
);
const HOLDER: Stmt = stmt!("SELECT epoch, name, address FROM node WHERE id = $1");
const ASK: Stmt = stmt!("UPDATE node SET drain = $1 WHERE id = $2");
/// The row of a lease `$1`, `$2` that is not lost; held until the transaction's end.
macro_rules! held {
    () => {
        "SELECT epoch FROM node WHERE id = $1 AND epoch = $2 AND NOT lost {for_share}"
    };
}
pub(super) use held;

const HOLD: Stmt = stmt!(held!());
/// Guarded by what the watcher saw for the whole length: a renewal meanwhile wins.
const LOSE: Stmt =
    stmt!("UPDATE node SET lost = TRUE WHERE id = $1 AND epoch = $2 AND renewals = $3 AND NOT lost");
const LIST: Stmt = stmt!(
    "SELECT id, name, address, version, slots, running, epoch, renewals, lease_micros, lost, draining,
            not_claiming, load_milli, memory_free_bytes, in_force, drain, started_at, renewed_at
       FROM node ORDER BY name, id"
);

/// Holds the node's row for the transaction; refused if the lease is not held any more.
pub(super) async fn hold(tx: &mut Tx<'_>, lease: &NodeLease) -> Result<()> {
    if is_held(tx, lease).await? { Ok(()) } else { Err(why_not_held(tx, lease).await?) }
}

/// Holds the node's row for the transaction if the lease is held still.
pub(super) async fn is_held(tx: &mut Tx<'_>, lease: &NodeLease) -> Result<bool> {
    Ok(tx.fetch_optional(&HOLD, args![&lease.node, lease.epoch]).await?.is_some())
}

/// Whether watchers took it, or somebody else with the same id.
pub(super) async fn why_not_held(tx: &mut Tx<'_>, lease: &NodeLease) -> Result<Error> {
    let node = lease.node.clone();
    let Some(row) = tx.fetch_optional(&HOLDER, args![&node]).await? else {
        return Ok(Error::LeaseLost { node });
    };
    if row.number("epoch")? == lease.epoch {
        return Ok(Error::LeaseLost { node });
    }
    Ok(Error::LeaseTaken { node, name: row.text("name")?, address: row.text("address")? })
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

impl Renew {
    async fn renew(&self, tx: &mut Tx<'_>) -> Result<Option<Drain>> {
        let NodeReport { running, draining, not_claiming, load_milli, memory_free_bytes, in_force } =
            &self.report;
        let in_force = in_force.join(BETWEEN_PHRASES);
        let (now, lease) = (tx.given_now(), &self.lease);
        let args = args![
            now,
            *running,
            *draining,
            not_claiming,
            *load_milli,
            *memory_free_bytes,
            &in_force,
            &lease.node,
            lease.epoch
        ];
        let row = tx.write_fetch(&RENEW, args).await?.pop();
        row.map(|row| row.parsed("drain", Drain::parse)).transpose()
    }
}

impl Request for Renew {
    type Answer = Drain;

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Drain>> {
        self.renew(tx).await
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Drain> {
        match self.renew(tx).await? {
            Some(asked) => Ok(asked),
            None => Err(why_not_held(tx, &self.lease).await?),
        }
    }
}

/// Between the phrases of a report, which are each one line.
const BETWEEN_PHRASES: &str = "\n";

struct Retake {
    lost: NodeLease,
    node: NewNode,
}

impl Request for Retake {
    type Answer = NodeLease;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<NodeLease> {
        let now = tx.now().await?;
        let NodeLease { node, epoch } = &self.lost;
        let args = args![now, node, *epoch, &self.node.name, &self.node.address];
        match tx.write_fetch(&RETAKE, args).await?.pop() {
            Some(row) => Ok(NodeLease { node: node.clone(), epoch: row.number("epoch")? }),
            None => Err(why_not_held(tx, &self.lost).await?),
        }
    }
}

struct AskDrain {
    node: String,
    drain: Drain,
}

impl Request for AskDrain {
    type Answer = Node;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Node> {
        let nodes: Vec<Node> = tx.fetch(&LIST, args![]).await?.iter().map(read).collect::<Result<_>>()?;
        let node = named(&self.node, nodes)?;
        if node.drain != self.drain {
            tx.execute_one(&ASK, args![self.drain.as_str(), &node.lease.node]).await?;
            // The node, and whoever waits for it.
            tx.notify(Notice::Everything);
        }
        Ok(Node { drain: self.drain, ..node })
    }
}

/// The node that people mean: its id, the beginning of it that no other has, or its name.
fn named(asked: &str, nodes: Vec<Node>) -> Result<Node> {
    let fits = |node: &Node| {
        let id = node.lease.node.as_str();
        id == asked || node.name == asked || (!asked.is_empty() && id.starts_with(asked))
    };
    let (mut fitting, others): (Vec<Node>, Vec<Node>) = nodes.into_iter().partition(fits);
    if let Some(exact) = fitting.iter().position(|node| node.lease.node.as_str() == asked) {
        return Ok(fitting.swap_remove(exact));
    }
    let describe = |node: &Node| format!("{} ({})", node.lease.node, node.name);
    match (fitting.len(), fitting.pop()) {
        (1, Some(node)) => Ok(node),
        (_, None) => Err(Error::NoNode { asked: asked.to_owned(), known: shown(&others, describe) }),
        (_, Some(last)) => {
            fitting.push(last);
            Err(Error::AmbiguousNode { asked: asked.to_owned(), candidates: shown(&fitting, describe) })
        }
    }
}

/// Some of them, for a message.
fn shown(nodes: &[Node], describe: impl Fn(&Node) -> String) -> Vec<String> {
    let mut shown: Vec<String> = nodes.iter().take(Error::MAX_CANDIDATES).map(describe).collect();
    if nodes.len() > shown.len() {
        shown.push("…".to_owned());
    }
    shown
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

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }

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
            load_milli: row.number("load_milli")?,
            memory_free_bytes: row.number("memory_free_bytes")?,
            in_force: row.text("in_force")?.lines().map(str::to_owned).collect(),
        },
        drain: row.parsed("drain", Drain::parse)?,
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

    /// Renews the lease and tells how the node is; answers what is asked of it. Over a connection
    /// of its own, which is given up once it has not answered for a fifth of [`Store::lease`].
    ///
    /// Refused once the lease is lost: end the processes, take a new one
    /// ([`Self::retake_lease`]), settle. Refused for good once it is taken: end everything.
    pub async fn renew_node(&self, lease: &NodeLease, report: NodeReport) -> Result<Drain> {
        super::check_text("node.not_claiming", &report.not_claiming)?;
        for phrase in &report.in_force {
            super::check_text("node.in_force", phrase)?;
        }
        self.write_lease(Renew { lease: lease.clone(), report }).await
    }

    /// Takes a new lease after `lost` was lost, for the `node` that held it. None of its processes
    /// may run any more; settle before the first claim. Refused if another service with this
    /// node's id was first.
    pub async fn retake_lease(&self, lost: &NodeLease, node: NewNode) -> Result<NodeLease> {
        self.write_node(Retake { lost: lost.clone(), node }).await
    }

    /// Asks a node to drain, or to claim again. `node` is its id, a beginning of it that is
    /// unique, or its name. Answers the node as it was when it was asked.
    pub async fn ask_drain(&self, node: &str, drain: Drain) -> Result<Node> {
        super::check_text("node.id", node)?;
        self.write_node(AskDrain { node: node.to_owned(), drain }).await
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

    /// All nodes, for who watches their leases: over the connection of renewals, so that an
    /// answer that comes at all comes in time.
    pub async fn watch_nodes(&self) -> Result<Vec<Node>> {
        self.write_lease(List).await
    }
}
