//! Deleting what has ended long ago.

use std::time::Duration;

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, Timestamp, client::unexpected, instances::micros};

/// What a round of pruning deleted, or what pruning would delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many instances.
    pub instances: u64,
    /// When the first of them ended.
    pub oldest_ended_at: Option<Timestamp>,
    /// When the last of them ended.
    pub newest_ended_at: Option<Timestamp>,
    /// There are more: ask again.
    pub more: bool,
}

impl Client {
    /// Deletes a small batch of the tenant's instances that ended longer ago than that, or than
    /// the services keep them; the longest ago first. Call it again while there are
    /// more. Nodes remove the outputs within some minutes.
    pub async fn prune(&self, older_than: Option<Duration>) -> Result<Pruned, Error> {
        self.ask_to_prune(older_than, false).await
    }

    /// What [`Self::prune`] would delete in all.
    pub async fn prunable(&self, older_than: Option<Duration>) -> Result<Pruned, Error> {
        self.ask_to_prune(older_than, true).await
    }

    async fn ask_to_prune(&self, older_than: Option<Duration>, dry_run: bool) -> Result<Pruned, Error> {
        // 0 stands for the retention of the services.
        let older_than_micros = older_than.map_or(0, |age| micros(age).max(1));
        let request = Operation::Prune(wire::PruneInstances { dry_run, older_than_micros });
        self.call(request, |outcome| match outcome {
            Outcome::Pruned(report) => Ok(Pruned {
                instances: report.count,
                oldest_ended_at: Timestamp::optional(report.oldest_ended_at),
                newest_ended_at: Timestamp::optional(report.newest_ended_at),
                more: report.more,
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }
}
