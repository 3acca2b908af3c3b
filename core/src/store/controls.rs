//! What controllers ask of an instance: cancel, pause, resume, stop, delete.

use super::{
    Store,
    commit::{LockOrder, Request},
    endings::{self, Says},
    error::{Error, Result},
    events::{self, NewEvent},
    life::{self, Target},
    sql::{Stmt, Tx, args, stmt},
};
use crate::domain::{
    event::EventKind,
    id::{InstanceId, Tenant},
    instance::{Cancel, Life},
    time::Micros,
};

/// A request that changes the row and says so in the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Cancel,
    Pause,
    Resume,
    Stop,
}

impl Control {
    fn decide(self, life: &Life, now: Micros) -> Result<Life> {
        Ok(match self {
            Self::Cancel => life.cancel(now)?,
            Self::Pause => life.pause()?,
            Self::Resume => life.resume()?,
            Self::Stop => life.stop(now)?,
        })
    }

    /// The event of a change that does not end the instance; none where nothing is new.
    fn event(self, old: &Life) -> Option<EventKind> {
        match self {
            Self::Cancel => (old.cancel == Cancel::No).then_some(EventKind::CancelAsked),
            Self::Pause => (!old.paused).then_some(EventKind::Paused),
            Self::Resume => old.paused.then_some(EventKind::Resumed),
            Self::Stop => None,
        }
    }
}

struct Ask {
    target: Target,
    control: Control,
}

impl Request for Ask {
    type Answer = ();

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.target.key)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        let row = life::lock_target(tx, &self.target).await?;
        let now = tx.now().await?;
        let next = self.control.decide(&row.life, now)?;
        if next == row.life {
            return Ok(());
        }
        if next.outcome().is_some() {
            return endings::write(tx, &row, &next, Says::default(), now).await;
        }
        life::write(tx, &row, &next, now).await?;
        if let Some(kind) = self.control.event(&row.life) {
            events::append(tx, row.key, next.attempt, now, NewEvent::new(kind, "")).await?;
        }
        Ok(())
    }
}

/// Rows of each table that one step deletes: a large instance must not hold up the writer.
const STEP: u32 = 1_000;

const DELETE_CHECKPOINTS: Stmt = stmt!(
    "DELETE FROM checkpoint WHERE instance = $1
        AND number IN (SELECT number FROM checkpoint WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_SIGNALS: Stmt = stmt!(
    "DELETE FROM signal WHERE instance = $1
        AND number IN (SELECT number FROM signal WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_EVENTS: Stmt = stmt!(
    "DELETE FROM event WHERE instance = $1
        AND number IN (SELECT number FROM event WHERE instance = $1 ORDER BY number LIMIT $2)"
);
const DELETE_ATTEMPTS: Stmt = stmt!(
    "DELETE FROM attempt WHERE instance = $1
        AND attempt IN (SELECT attempt FROM attempt WHERE instance = $1 ORDER BY attempt LIMIT $2)"
);
const DELETE_START: Stmt = stmt!("DELETE FROM instance_start WHERE instance = $1");
const DELETE_ENDING: Stmt = stmt!("DELETE FROM instance_ending WHERE instance = $1");
const DELETE_INSTANCE: Stmt =
    stmt!("DELETE FROM instance WHERE key = $1 AND tenant = $2 AND ended_at IS NOT NULL");

/// One step of a deletion. The row goes last: until then the instance is listed and can be
/// deleted again, so that a deletion that was interrupted leaves nothing behind for ever.
struct DeleteStep {
    target: Target,
}

impl Request for DeleteStep {
    /// Whether all is gone.
    type Answer = bool;

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.target.key)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let row = life::lock_target(tx, &self.target).await?;
        if row.life.outcome().is_none() {
            return Err(Error::NotEnded { id: row.id });
        }
        for stmt in [&DELETE_CHECKPOINTS, &DELETE_SIGNALS, &DELETE_EVENTS, &DELETE_ATTEMPTS] {
            if tx.execute(stmt, args![row.key, STEP]).await? == u64::from(STEP) {
                return Ok(false);
            }
        }
        tx.execute(&DELETE_START, args![row.key]).await?;
        tx.execute(&DELETE_ENDING, args![row.key]).await?;
        tx.execute_one(&DELETE_INSTANCE, args![row.key, &row.tenant]).await?;
        tx.notify(super::Notice::Instance(row.key));
        Ok(true)
    }
}

/// Ended instances whose retention is over.
struct Prunable {
    keep: std::time::Duration,
    limit: u32,
}

impl Request for Prunable {
    type Answer = Vec<Target>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        const FIND: Stmt = stmt!(
            "SELECT key, tenant, id FROM instance
              WHERE ended_at IS NOT NULL AND ended_at <= $1 ORDER BY ended_at, key LIMIT $2"
        );
        let before = tx.now().await? - self.keep;
        let rows = tx.fetch(&FIND, args![before, self.limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(Target {
                    key: row.instance("key")?,
                    tenant: row.tenant("tenant")?,
                    id: row.parsed("id", |text| InstanceId::parse(text).ok())?,
                })
            })
            .collect()
    }
}

impl Store {
    /// Asks the workflow to clean up and end. What never ran ends at once.
    pub async fn cancel(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        self.ask(tenant, id, Control::Cancel).await
    }

    /// Holds every wake until [`Self::resume`]; a running instance suspends when it can.
    pub async fn pause(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        self.ask(tenant, id, Control::Pause).await
    }

    /// Ends a pause.
    pub async fn resume(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        self.ask(tenant, id, Control::Resume).await
    }

    /// Ends it at once, without asking the workflow; its node kills the process.
    pub async fn stop(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        self.ask(tenant, id, Control::Stop).await
    }

    async fn ask(&self, tenant: &Tenant, id: &InstanceId, control: Control) -> Result<()> {
        let target = self.target(tenant, id).await?;
        self.write_instance(target.key, Ask { target, control }).await
    }

    /// Deletes an ended instance with all it stored, in small steps.
    pub async fn delete(&self, tenant: &Tenant, id: &InstanceId) -> Result<()> {
        let target = self.target(tenant, id).await?;
        self.delete_target(target).await
    }

    async fn delete_target(&self, target: Target) -> Result<()> {
        while !self.write_instance(target.key, DeleteStep { target: target.clone() }).await? {}
        self.stored().forget(&target.tenant);
        Ok(())
    }

    /// Deletes at most `limit` instances that ended longer ago than the retention
    /// (`Limits::retention`); answers how many. Call it again while it answers `limit`.
    pub async fn prune(&self, limit: u32) -> Result<u32> {
        let targets = self.read(Prunable { keep: self.limits().retention, limit }).await?;
        let mut pruned = 0;
        for target in targets {
            match self.delete_target(target).await {
                Ok(()) => pruned += 1,
                // Somebody else was faster.
                Err(Error::NoInstance { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }
}
