//! Running core replicas: where processes and environments find them, and whether they are alive.
//!
//! A row says no more than "here I am"; nothing is decided by it. A replica that lost its row, or is
//! thought to be silent, goes on serving: attempts and sessions alone say who may write (invariant 2).
//! On PostgreSQL it is renewed, and others watch that, as with nodes; times in it are for people. On
//! SQLite there is one core, and the row is written at its start and its end only.

use std::time::Duration;

use super::{
    Store,
    commit::Request,
    error::{Error, Result},
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    id::ReplicaId,
    time::{Micros, span},
};

/// What a core replica says of itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Chosen once for a data directory.
    pub id: ReplicaId,
    /// For people: the host's name.
    pub name: String,
    /// Where processes connect.
    pub address: String,
    /// Its release.
    pub version: String,
    /// For how long it must be seen unrenewed before it counts as silent.
    pub lease: Duration,
}

/// One life of a core replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaLease {
    /// Which replica.
    pub replica: ReplicaId,
    /// Which of its lives: only the newest one's renewals count.
    pub epoch: u64,
}

/// What a core replica tells with each renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Instances whose process is connected to it.
    pub sessions: u64,
    /// It takes no new ones and sends those that it has elsewhere.
    pub draining: bool,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It counts.
    Kept,
    /// The row is gone: it was silent for long, and somebody tidied up. Enter again.
    Gone,
    /// Another process has entered with this id: a copied data directory. Enter with another id.
    Taken,
}

/// A core replica as people see it, and as others watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Which life of which replica.
    pub lease: ReplicaLease,
    /// Raised by each renewal: a watcher compares it, never a time.
    pub renewals: u64,
    /// For how long it must be seen unrenewed before it counts as silent.
    pub lease_length: Duration,
    /// For people: the host's name.
    pub name: String,
    /// Where processes connect.
    pub address: String,
    /// Its release.
    pub version: String,
    /// What it told last.
    pub report: ReplicaReport,
    /// When this life began.
    pub started_at: Micros,
    /// When it last renewed; for people only.
    pub renewed_at: Micros,
}

const ENTER: Stmt = stmt!(
    "INSERT INTO core_replica (id, name, address, version, epoch, renewals, lease_micros, sessions, draining,
                               started_at, renewed_at)
     VALUES ($1, $2, $3, $4, 1, 0, $5, 0, FALSE, $6, $6)
         ON CONFLICT (id) DO UPDATE
        SET name = $2, address = $3, version = $4, epoch = core_replica.epoch + 1, renewals = 0,
            lease_micros = $5, sessions = 0, draining = FALSE, started_at = $6, renewed_at = $6
     RETURNING epoch"
);
const RENEW: Stmt = stmt!(
    "UPDATE core_replica SET renewals = renewals + 1, renewed_at = $1, sessions = $2, draining = $3
      WHERE id = $4 AND epoch = $5"
);
const IS_THERE: Stmt = stmt!("SELECT epoch FROM core_replica WHERE id = $1");
const LEAVE: Stmt = stmt!("DELETE FROM core_replica WHERE id = $1 AND epoch = $2");
/// Guarded by what the watcher saw: a renewal meanwhile wins.
const FORGET: Stmt = stmt!("DELETE FROM core_replica WHERE id = $1 AND epoch = $2 AND renewals = $3");
const LIST: Stmt = stmt!(
    "SELECT id, name, address, version, epoch, renewals, lease_micros, sessions, draining, started_at,
            renewed_at
       FROM core_replica ORDER BY name, id"
);

struct Enter {
    replica: NewReplica,
}

impl Request for Enter {
    type Answer = ReplicaLease;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<ReplicaLease> {
        let NewReplica { id, name, address, version, lease } = &self.replica;
        let now = tx.now().await?;
        let args = args![id, name, address, version, span(*lease).max(1), now];
        let row = tx.write_fetch(&ENTER, args).await?.pop();
        let row = row.ok_or(Error::Broken { table: "core_replica".to_owned(), rows: 0 })?;
        Ok(ReplicaLease { replica: id.clone(), epoch: row.number("epoch")? })
    }
}

struct Renew {
    lease: ReplicaLease,
    report: ReplicaReport,
}

impl Request for Renew {
    type Answer = Renewal;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Renewal> {
        let ReplicaLease { replica, epoch } = &self.lease;
        let now = tx.now().await?;
        let args = args![now, self.report.sessions, self.report.draining, replica, *epoch];
        if tx.execute(&RENEW, args).await? > 0 {
            return Ok(Renewal::Kept);
        }
        let other = tx.fetch_optional(&IS_THERE, args![replica]).await?;
        Ok(if other.is_some() { Renewal::Taken } else { Renewal::Gone })
    }
}

struct Leave {
    lease: ReplicaLease,
}

impl Request for Leave {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        tx.execute(&LEAVE, args![&self.lease.replica, self.lease.epoch]).await?;
        Ok(())
    }
}

struct Forget {
    lease: ReplicaLease,
    renewals: u64,
}

impl Request for Forget {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let args = args![&self.lease.replica, self.lease.epoch, self.renewals];
        Ok(tx.execute(&FORGET, args).await? == 1)
    }
}

struct List;

impl Request for List {
    type Answer = Vec<Replica>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        tx.fetch(&LIST, args![]).await?.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<Replica> {
    let replica = row.parsed("id", |text| ReplicaId::parse(text).ok())?;
    Ok(Replica {
        lease: ReplicaLease { replica, epoch: row.number("epoch")? },
        renewals: row.number("renewals")?,
        lease_length: Duration::from_micros(row.number("lease_micros")?),
        name: row.text("name")?,
        address: row.text("address")?,
        version: row.text("version")?,
        report: ReplicaReport { sessions: row.number("sessions")?, draining: row.flag("draining")? },
        started_at: row.at("started_at")?,
        renewed_at: row.at("renewed_at")?,
    })
}

impl Store {
    /// A core replica has started: from now on processes are sent to it.
    pub async fn enter_replica(&self, replica: NewReplica) -> Result<ReplicaLease> {
        for (field, text) in [
            ("core.name", &replica.name),
            ("core.address", &replica.address),
            ("core.version", &replica.version),
        ] {
            super::check_text(field, text)?;
        }
        self.write_node(Enter { replica }).await
    }

    /// A sign of life, with how the replica is.
    pub async fn renew_replica(&self, lease: &ReplicaLease, report: ReplicaReport) -> Result<Renewal> {
        self.write_lease(Renew { lease: lease.clone(), report }).await
    }

    /// The replica ends in order. Nothing happens if another life of it has begun.
    pub async fn leave_replica(&self, lease: &ReplicaLease) -> Result<()> {
        self.write_node(Leave { lease: lease.clone() }).await
    }

    /// Removes a replica that was watched without a sign of life (`renewals` stayed as seen) for
    /// long. False: it has shown one, or is gone.
    pub async fn forget_replica(&self, lease: &ReplicaLease, renewals: u64) -> Result<bool> {
        self.write_node(Forget { lease: lease.clone(), renewals }).await
    }

    /// All core replicas that have not left, also those that were killed.
    pub async fn replicas(&self) -> Result<Vec<Replica>> {
        self.read(List).await
    }
}
