//! What instances printed: read by offset from this node's files, and followed across attempts.
//!
//! An output lies where its attempt ran, and nowhere else. Whoever asks another node is told which
//! one to ask; nothing is fetched from there, since this node holds no credential for that one.

use std::time::Duration;

use dormouse_core::domain::id::{Attempt, InstanceId};
use dormouse_proto::{call::Refusal, code::Code, management as wire};
use tokio::time::Instant;

use super::{
    parse,
    server::{Context, Patience, blocking, disk, refuse},
    watchers::News,
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
        let watcher = self.shared.watchers.watch(self.find(&id).await?.key, News::Change);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut looked = None;
            // A chunk is small: what follows it needs no turn while it waits for more.
            patience.wait(async { looked = Some(self.look(&id, stream, &request, left).await) }).await;
            let (chunk, newest_here) = match looked {
                Some(looked) => looked?,
                None => self.look(&id, stream, &request, Duration::ZERO).await?,
            };
            let life = self.find(&id).await?.life;
            let over = life.outcome().is_some();
            if chunk.data.is_empty() && chunk.next_attempt == 0 {
                let read_to_end = request.attempt == 0 || chunk.attempt_ended;
                let wanted = if read_to_end { life.attempt } else { Attempt(request.attempt) };
                if Some(wanted) > newest_here {
                    self.lies_here(&id, wanted, life.attempt).await?;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let news = !chunk.data.is_empty() || chunk.next_attempt != 0 || over;
            if news || left.is_zero() || patience.is_over() {
                return Ok(chunk);
            }
            // This attempt is over and the instance is not: the next one may take days.
            patience.wait(watcher.changed(left.min(NEXT_ATTEMPT_POLL))).await;
        }
    }

    /// Refuses if an attempt ran on another node, and says on which.
    async fn lies_here(&self, id: &InstanceId, wanted: Attempt, newest: Attempt) -> Result<(), Refusal> {
        let back = newest.0.saturating_sub(wanted.0).saturating_add(1);
        let attempts = self.store().attempts(&self.tenant, id, back).await.map_err(|error| refuse(&error))?;
        let Some(record) = attempts.iter().find(|record| record.attempt == wanted) else { return Ok(()) };
        if record.node.as_str() == self.this_node().id {
            return Ok(());
        }
        let nodes = self.store().nodes().await.map_err(|error| refuse(&error))?;
        let there = match nodes.iter().find(|node| node.lease.node == record.node) {
            Some(node) => format!("{} ({}); ask it with --server {}", node.name, record.node, node.address),
            None => record.node.to_string(),
        };
        Err(Refusal::new(
            Code::FailedPrecondition,
            format!("the output of attempt {wanted} of {id} lies where it ran, on node {there}"),
        ))
    }

    /// Reads once; waits for more while the attempt lives. With it the newest attempt that is
    /// known here.
    async fn look(
        &self,
        id: &InstanceId,
        stream: Stream,
        request: &wire::ReadLogs,
        wait: Duration,
    ) -> Result<(wire::LogChunk, Option<Attempt>), Refusal> {
        let unreadable = |error: std::io::Error| disk("the output cannot be read", &error);
        let attempts = self.shared.parts.attempts.clone();
        let known = {
            let (attempts, tenant, id) = (attempts.clone(), self.tenant.clone(), id.clone());
            blocking(move || attempts.of_instance(&tenant, &id)).await?.map_err(unreadable)?
        };
        let attempt = match request.attempt {
            0 => match known.last() {
                Some(newest) => *newest,
                None => return Ok((wire::LogChunk::default(), None)),
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
        Ok((describe(attempt, chunk, next), known.last().copied()))
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
