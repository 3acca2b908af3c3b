//! What an instance leaves behind: checkpoints, events, attempts.

use dormouse_proto::{call::Refusal, management as wire};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    describe, parse,
    server::{Context, refuse},
};

/// Entries on one page.
const PAGE: u32 = 500;

impl Context {
    pub(super) async fn checkpoints(
        &self,
        request: wire::ListCheckpoints,
    ) -> Result<wire::CheckpointPage, Refusal> {
        let id = self.resolve(&request.id).await?;
        let limit = parse::page(request.limit, PAGE);
        let page = self
            .store()
            .checkpoints(&self.tenant, &id, request.cursor, limit, request.newest_first)
            .await
            .map_err(|error| refuse(&error))?;
        Ok(wire::CheckpointPage {
            checkpoints: page.checkpoints.iter().map(describe::checkpoint).collect(),
            next_cursor: page.next_cursor,
        })
    }

    pub(super) async fn events(
        &self,
        request: wire::ListEvents,
        shutdown: &CancellationToken,
    ) -> Result<wire::EventPage, Refusal> {
        let id = self.resolve(&request.id).await?;
        let limit = parse::page(request.limit, PAGE);
        let until = Instant::now() + parse::at_most(request.wait_micros, self.shared.options.longest_poll);
        let watcher = self.shared.watchers.watch(self.find(&id).await?.key);
        loop {
            let page = self
                .store()
                .events(&self.tenant, &id, request.after, limit)
                .await
                .map_err(|error| refuse(&error))?;
            let left = until.saturating_duration_since(Instant::now());
            if !page.events.is_empty() || left.is_zero() || shutdown.is_cancelled() {
                return Ok(wire::EventPage {
                    events: page.events.iter().map(describe::event).collect(),
                    next: page.next,
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = watcher.changed(left.min(self.shared.options.poll)) => {}
            }
        }
    }

    pub(super) async fn attempts(&self, request: wire::ListAttempts) -> Result<wire::AttemptList, Refusal> {
        let id = self.resolve(&request.id).await?;
        let mut attempts =
            self.store().attempts(&self.tenant, &id, u32::MAX).await.map_err(|error| refuse(&error))?;
        attempts.reverse();
        Ok(wire::AttemptList { attempts: attempts.iter().map(describe::attempt).collect() })
    }
}
