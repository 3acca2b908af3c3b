//! What instances printed: read by offset from this node's files, and followed across attempts.

use std::time::Duration;

use dormouse_core::domain::id::{Attempt, InstanceId};
use dormouse_proto::{call::Refusal, management as wire};
use tokio::time::Instant;

use super::{
    parse,
    server::{Context, Patience, blocking, disk},
};
use crate::{
    attempts::{AttemptId, Stream},
    supervisor::logs::{self, CHUNK_MAX, Chunk, From},
};

/// How soon a follower of an attempt that is over notices the next one.
const NEXT_ATTEMPT_POLL: Duration = Duration::from_millis(500);

impl Context {
    pub(super) async fn logs(
        &self,
        request: wire::ReadLogs,
        patience: &Patience<'_>,
    ) -> Result<wire::LogChunk, Refusal> {
        let stream = parse::stream(&request.stream)?;
        let id = self.resolve(&request.id).await?;
        let until = Instant::now() + parse::at_most(request.wait_micros, self.shared.options.longest_poll);
        let watcher = self.shared.watchers.watch(self.find(&id).await?.key);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut looked = None;
            // A chunk is small: what follows it needs no turn while it waits for more.
            patience.wait(async { looked = Some(self.look(&id, stream, &request, left).await) }).await;
            let chunk = match looked {
                Some(chunk) => chunk?,
                None => self.look(&id, stream, &request, Duration::ZERO).await?,
            };
            let over = self.find(&id).await?.life.outcome().is_some();
            let left = until.saturating_duration_since(Instant::now());
            let news = !chunk.data.is_empty() || chunk.next_attempt != 0 || over;
            if news || left.is_zero() || patience.is_over() {
                return Ok(chunk);
            }
            // This attempt is over and the instance is not: the next one may take days.
            patience.wait(watcher.changed(left.min(NEXT_ATTEMPT_POLL))).await;
        }
    }

    /// Reads once; waits for more while the attempt lives.
    async fn look(
        &self,
        id: &InstanceId,
        stream: Stream,
        request: &wire::ReadLogs,
        wait: Duration,
    ) -> Result<wire::LogChunk, Refusal> {
        let unreadable = |error: std::io::Error| disk("the output cannot be read", &error);
        let attempts = self.shared.parts.attempts.clone();
        let known = {
            let (attempts, tenant, id) = (attempts.clone(), self.tenant.clone(), id.clone());
            blocking(move || attempts.of_instance(&tenant, &id)).await?.map_err(unreadable)?
        };
        let attempt = match request.attempt {
            0 => match known.last() {
                Some(newest) => *newest,
                None => return Ok(wire::LogChunk::default()),
            },
            asked => Attempt(asked),
        };
        let from = match request.tail_lines {
            0 => From::Offset(request.offset),
            lines => From::LastLines(lines),
        };
        let of = AttemptId { tenant: self.tenant.clone(), instance: id.clone(), attempt };
        let max =
            usize::try_from(parse::page(request.max_bytes, u32::MAX)).unwrap_or(usize::MAX).min(CHUNK_MAX);
        let chunk = logs::follow(&attempts, &of, stream, from, max, wait).await.map_err(unreadable)?;
        let next = known.iter().find(|known| **known > attempt).copied();
        Ok(describe(attempt, chunk, next))
    }
}

fn describe(attempt: Attempt, chunk: Chunk, next: Option<Attempt>) -> wire::LogChunk {
    wire::LogChunk {
        attempt: attempt.0,
        data: chunk.data,
        offset: chunk.offset,
        next_offset: chunk.next_offset,
        dropped: chunk.dropped,
        attempt_ended: chunk.ended,
        next_attempt: next.map_or(0, |next| next.0),
    }
}
