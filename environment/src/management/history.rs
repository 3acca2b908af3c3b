//! What an instance leaves behind: checkpoints, events, attempts.

use dormouse_core::domain::id::InstanceId;
use dormouse_proto::{call::Refusal, management as wire};
use tokio::time::Instant;

use super::{
    describe, parse,
    server::{Context, Patience, refuse},
    watchers::News,
};
use crate::limits::{PAGE, PAGE_BYTES};

/// Events that are read at a time while nobody knows how large they are.
const FIRST_EVENTS: u32 = 8;

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
        patience: &Patience<'_>,
    ) -> Result<wire::EventPage, Refusal> {
        let id = self.resolve(&request.id).await?;
        let limit = parse::page(request.limit, PAGE);
        let until = Instant::now() + parse::at_most(request.wait_micros, self.shared.options.longest_poll);
        let watcher = self.shared.watchers.watch(self.find(&id).await?.key, News::Change);
        loop {
            let page = self.read_events(&id, request.after, limit).await?;
            let left = until.saturating_duration_since(Instant::now());
            if !page.events.is_empty() || left.is_zero() || patience.is_over() {
                return Ok(page);
            }
            patience.wait(watcher.changed(left.min(self.shared.options.poll))).await;
        }
    }

    /// As many as fit into one answer. An event may carry 4 MiB, so they are read a few at a time
    /// until it is known how large they are.
    async fn read_events(&self, id: &InstanceId, after: u64, limit: u32) -> Result<wire::EventPage, Refusal> {
        let mut page = wire::EventPage { events: Vec::new(), next: after };
        let (mut bytes, mut at_once) = (0, FIRST_EVENTS);
        loop {
            let left = limit.saturating_sub(u32::try_from(page.events.len()).unwrap_or(u32::MAX));
            let wanted = at_once.min(left);
            if wanted == 0 {
                return Ok(page);
            }
            let read = self.store().events(&self.tenant, id, page.next, wanted).await;
            let events = read.map_err(|error| refuse(&error))?.events;
            let last = u32::try_from(events.len()).is_ok_and(|read| read < wanted);
            for event in &events {
                bytes += event.message.len() + event.payload.as_ref().map_or(0, |payload| payload.data.len());
                if bytes > PAGE_BYTES && !page.events.is_empty() {
                    return Ok(page);
                }
                page.next = event.number;
                page.events.push(describe::event(event));
            }
            if last {
                return Ok(page);
            }
            at_once = if bytes > PAGE_BYTES / 16 { FIRST_EVENTS } else { at_once * 4 };
        }
    }

    /// The newest ones.
    pub(super) async fn attempts(&self, request: wire::ListAttempts) -> Result<wire::AttemptList, Refusal> {
        let id = self.resolve(&request.id).await?;
        let mut attempts =
            self.store().attempts(&self.tenant, &id, PAGE).await.map_err(|error| refuse(&error))?;
        attempts.reverse();
        Ok(wire::AttemptList { attempts: attempts.iter().map(describe::attempt).collect() })
    }
}
