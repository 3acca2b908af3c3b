//! What controllers ask of an instance: cancel, pause, resume, stop.

use super::{
    Store,
    commit::{LockOrder, Request},
    endings::{self, Says},
    error::Result,
    events::{self, NewEvent},
    life::{self, Target},
    sql::Tx,
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
}
