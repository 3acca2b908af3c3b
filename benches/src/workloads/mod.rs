//! What Dormouse does, measured with its services as real processes.

mod checkpoints;
mod idle;
mod kept;
mod launches;
mod loaded;
mod resumes;
mod signals;
mod starting;
mod trace;
mod wakes;

use std::{future::Future, time::Duration};

use anyhow::Context as _;

use crate::registry::Entry;

/// Who is held against another stands below it.
pub(crate) fn entries() -> Vec<Entry> {
    let mut all = Vec::new();
    all.extend(checkpoints::entries());
    all.extend(launches::entries());
    all.extend(kept::entries());
    all.extend(wakes::entries());
    all.extend(resumes::entries());
    all.extend(signals::entries());
    all.extend(idle::entries());
    all.extend(loaded::entries());
    all.extend(starting::entries());
    all.extend(trace::entries());
    all
}

/// Looks until what it looks at is so.
async fn until(what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);
    let looking = async {
        while !look().await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    in_time(what, looking).await?
}

/// Ends a wait for what instances do by themselves: it comes soon, or never.
async fn in_time<T>(what: &str, wait: impl Future<Output = T>) -> anyhow::Result<T> {
    const PATIENCE: Duration = Duration::from_mins(1);
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("waited {PATIENCE:?} until {what}"))
}
