//! Pruning, as a controller asks for it: of its own tenant only, a small batch for each request.

use std::time::Duration;

use dormouse_core::store::Pruned;
use dormouse_proto::{call::Refusal, management as wire};

use super::{
    parse,
    server::{Context, refuse},
};

/// Instances that one request deletes: it is answered soon, and another goes on.
const BATCH: u32 = 100;

impl Context {
    pub(super) async fn prune(&self, request: wire::PruneInstances) -> Result<wire::PruneReport, Refusal> {
        let older_than = match request.older_than_micros {
            0 => self.store().limits().retention,
            micros => Duration::from_micros(u64::try_from(micros).map_err(|_| {
                parse::invalid(format!(
                    "prune.older_than is {micros} µs; it must be positive, or 0 for the retention"
                ))
            })?),
        };
        let pruned = if request.dry_run {
            self.store().prunable(&self.tenant, older_than).await
        } else {
            self.store().prune_tenant(&self.tenant, older_than, BATCH).await
        };
        // Outputs go with the next pass of each node's house-keeping.
        let Pruned { instances, oldest, newest, more } = pruned.map_err(|error| refuse(&error))?;
        Ok(wire::PruneReport {
            count: instances,
            more,
            oldest_ended_at: oldest.map_or(0, |at| at.0),
            newest_ended_at: newest.map_or(0, |at| at.0),
        })
    }
}
