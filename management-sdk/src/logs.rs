//! What a workflow prints: read from an offset, read from the end, or followed across
//! attempts. Offsets count bytes of one attempt's stream from its beginning, so that a lost
//! connection loses and repeats nothing.

use std::{fmt, time::Duration};

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Error, client::unexpected, instances::micros};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to read of an instance's output.
#[derive(Clone, Debug)]
pub struct LogRead {
    /// 0: the newest attempt with output.
    pub attempt: u32,
    /// Which stream.
    pub stream: Stream,
    /// From here; ignored if `tail_lines` is set.
    pub offset: u64,
    /// At most so many bytes; 0: the services' own limit.
    pub max_bytes: u32,
    /// The last so many lines instead.
    pub tail_lines: u32,
    /// How long to wait for more at the end (at most 30 s).
    pub wait: Duration,
}

impl LogRead {
    /// From the beginning of an attempt, without waiting.
    #[must_use]
    pub fn from_start(attempt: u32, stream: Stream) -> Self {
        Self { attempt, stream, offset: 0, max_bytes: 0, tail_lines: 0, wait: Duration::ZERO }
    }

    /// The last lines of the newest attempt.
    #[must_use]
    pub fn tail(stream: Stream, lines: u32) -> Self {
        Self { tail_lines: lines, ..Self::from_start(0, stream) }
    }
}

/// A piece of an attempt's output.
#[derive(Clone, Debug, Default)]
pub struct LogChunk {
    /// Of which attempt; 0: there is no output yet.
    pub attempt: u32,
    /// The bytes, which need not be text.
    pub data: Vec<u8>,
    /// Of the first byte.
    pub offset: u64,
    /// Where to go on.
    pub next_offset: u64,
    /// Bytes before `offset` that the limit of kept output dropped.
    pub dropped: u64,
    /// Nothing will be added to this attempt's output.
    pub attempt_ended: bool,
    /// A newer attempt with output.
    pub next_attempt: Option<u32>,
}

impl Client {
    /// Reads a piece of output.
    pub async fn read_log(&self, id: &str, read: &LogRead) -> Result<LogChunk, Error> {
        let request = Operation::Logs(wire::ReadLogs {
            id: id.to_owned(),
            attempt: read.attempt,
            stream: read.stream.as_str().to_owned(),
            offset: read.offset,
            max_bytes: read.max_bytes,
            tail_lines: read.tail_lines,
            wait_micros: micros(read.wait),
        });
        self.call(request, |outcome| match outcome {
            Outcome::Log(chunk) => Ok(LogChunk {
                attempt: chunk.attempt,
                data: chunk.data,
                offset: chunk.offset,
                next_offset: chunk.next_offset,
                dropped: chunk.dropped,
                attempt_ended: chunk.attempt_ended,
                next_attempt: (chunk.next_attempt != 0).then_some(chunk.next_attempt),
            }),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Follows a stream from `attempt` (its beginning) through every later attempt until the
    /// instance has ended.
    #[must_use]
    pub fn follow_log(&self, id: &str, attempt: u32, stream: Stream) -> LogFollower {
        self.follow_log_from(id, attempt, stream, 0)
    }

    /// As [`Client::follow_log`], from an offset of the first attempt.
    #[must_use]
    pub fn follow_log_from(&self, id: &str, attempt: u32, stream: Stream, offset: u64) -> LogFollower {
        let read =
            LogRead { offset, wait: Duration::from_secs(30), ..LogRead::from_start(attempt.max(1), stream) };
        LogFollower { client: self.clone(), id: id.to_owned(), read, ended: false, drain: false }
    }
}

/// One stream of an instance, followed across attempts; made by [`Client::follow_log`].
#[derive(Debug)]
pub struct LogFollower {
    client: Client,
    id: String,
    read: LogRead,
    /// The instance was seen ended before the last read.
    ended: bool,
    drain: bool,
}

impl LogFollower {
    /// From now on only what is there already: no waiting for more.
    pub fn drain(&mut self) {
        self.drain = true;
        self.read.wait = Duration::ZERO;
    }

    /// The next piece; `None` when the instance has ended and everything was read. Safe to
    /// drop and call again: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<LogChunk>, Error> {
        loop {
            let chunk = self.client.read_log(&self.id, &self.read).await?;
            if chunk.attempt == self.read.attempt && chunk.next_offset > self.read.offset {
                self.read.offset = chunk.next_offset;
                if !chunk.data.is_empty() {
                    return Ok(Some(chunk));
                }
                continue;
            }
            match chunk.next_attempt {
                Some(next) if next > self.read.attempt => {
                    self.read.attempt = next;
                    self.read.offset = 0;
                }
                _ if self.drain => return Ok(None),
                // A process may flush its last lines after its ending was stored, so both must
                // be over, and the instance first: then nothing was added after this read.
                _ if self.ended && chunk.attempt_ended => return Ok(None),
                _ if self.ended => {}
                _ => self.ended = self.client.instance(&self.id).await?.status.ended(),
            }
        }
    }
}
