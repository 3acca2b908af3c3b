//! `logs`: what an instance printed, its stdout on stdout and its stderr on stderr.

use std::io::{self, Write};

use dormouse_management_sdk::{Client, LogChunk, LogRead, Stream};
use tokio::sync::mpsc;

use super::Ctx;
use crate::{
    args::{Format, Logs},
    exit::Exit,
    output::{Screen, print_bytes, say},
};

pub(crate) async fn logs(ctx: &Ctx, args: Logs) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let id = client.instance(&args.id).await?.id;
    let streams = args.stream.map_or(vec![Stream::Stdout, Stream::Stderr], |stream| vec![stream]);
    if args.follow {
        let mut both = Both::follow(&client, &id, args.attempt.unwrap_or(1), 0, 0, &streams);
        while let Some((stream, chunk)) = both.next().await? {
            show(&ctx.screen, stream, &chunk)?;
        }
        return Ok(Exit::Done);
    }
    for stream in streams {
        match (args.tail, args.attempt) {
            (Some(lines), _) => the_last(&client, ctx, &id, stream, lines).await?,
            (None, Some(attempt)) => read_on(&client, ctx, &id, LogRead::from_start(attempt, stream)).await?,
            (None, None) => {
                let mut all = client.follow_log(&id, 1, stream);
                all.drain();
                while let Some(chunk) = all.next().await? {
                    show(&ctx.screen, stream, &chunk)?;
                }
            }
        }
    }
    if args.tail.is_none() {
        say_what_lies_elsewhere(&client, &id, args.attempt).await?;
    }
    Ok(Exit::Done)
}

/// An output lies where its attempt ran: says where what was not printed is.
async fn say_what_lies_elsewhere(client: &Client, id: &str, only: Option<u32>) -> anyhow::Result<()> {
    let health = client.health().await?;
    if health.database == "sqlite" {
        return Ok(()); // One machine has it all.
    }
    let mut elsewhere = client.attempts(id).await?;
    elsewhere
        .retain(|attempt| attempt.node != health.node && only.is_none_or(|only| attempt.attempt == only));
    if elsewhere.is_empty() {
        return Ok(());
    }
    for node in client.nodes().await? {
        let there = elsewhere.iter().filter(|attempt| attempt.node == node.id);
        let numbers: Vec<String> = there.map(|attempt| attempt.attempt.to_string()).collect();
        if !numbers.is_empty() {
            let (numbers, name, address) = (numbers.join(", "), &node.name, &node.address);
            say(&format!(
                "(attempt {numbers} ran on node {name}: its output is there, ask with --server {address})"
            ));
        }
    }
    Ok(())
}

async fn the_last(client: &Client, ctx: &Ctx, id: &str, stream: Stream, lines: u32) -> anyhow::Result<()> {
    let chunk = client.read_log(id, &LogRead::tail(stream, lines)).await?;
    show(&ctx.screen, stream, &chunk)?;
    if chunk.attempt == 0 {
        return Ok(());
    }
    // Long lines may be more than one answer holds.
    let rest = LogRead { offset: chunk.next_offset, ..LogRead::from_start(chunk.attempt, stream) };
    read_on(client, ctx, id, rest).await
}

/// An attempt's output from an offset to its present end.
async fn read_on(client: &Client, ctx: &Ctx, id: &str, mut read: LogRead) -> anyhow::Result<()> {
    loop {
        let chunk = client.read_log(id, &read).await?;
        if chunk.attempt != read.attempt || chunk.data.is_empty() {
            return Ok(());
        }
        show(&ctx.screen, read.stream, &chunk)?;
        read.offset = chunk.next_offset;
    }
}

fn show(screen: &Screen, stream: Stream, chunk: &LogChunk) -> anyhow::Result<()> {
    if screen.format == Format::Json {
        let document = serde_json::json!({
            "attempt": chunk.attempt,
            "stream": stream.as_str(),
            "offset": chunk.offset,
            "dropped": chunk.dropped,
            "text": String::from_utf8_lossy(&chunk.data),
        });
        return print_bytes(format!("{document}\n").as_bytes());
    }
    if chunk.dropped > 0 && chunk.offset == chunk.dropped {
        say(&format!(
            "({} bytes of attempt {} before this were dropped by the limit)",
            chunk.dropped, chunk.attempt
        ));
    }
    pass_on(stream, &chunk.data)
}

/// Bytes of the workflow to our own stream of that name.
pub(crate) fn pass_on(stream: Stream, data: &[u8]) -> anyhow::Result<()> {
    match stream {
        Stream::Stdout => print_bytes(data),
        Stream::Stderr => {
            // A closed stderr must not end what it only reports.
            let mut stderr = io::stderr().lock();
            let _ = stderr.write_all(data).and_then(|()| stderr.flush());
            Ok(())
        }
    }
}

/// Several streams followed at once. The tasks end when this is dropped.
pub(crate) struct Both {
    pieces: mpsc::Receiver<Result<(Stream, LogChunk), dormouse_management_sdk::Error>>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Both {
    /// From an attempt on, each stream from its own offset in it.
    pub(crate) fn follow(
        client: &Client,
        id: &str,
        attempt: u32,
        stdout: u64,
        stderr: u64,
        streams: &[Stream],
    ) -> Self {
        let (sender, pieces) = mpsc::channel(16);
        let mut tasks = tokio::task::JoinSet::new();
        for &stream in streams {
            let offset = match stream {
                Stream::Stdout => stdout,
                Stream::Stderr => stderr,
            };
            let mut follower = client.follow_log_from(id, attempt, stream, offset);
            let sender = sender.clone();
            tasks.spawn(async move {
                loop {
                    let piece = match follower.next().await {
                        Ok(None) => return,
                        Ok(Some(chunk)) => Ok((stream, chunk)),
                        Err(error) => Err(error),
                    };
                    let failed = piece.is_err();
                    if sender.send(piece).await.is_err() || failed {
                        return;
                    }
                }
            });
        }
        Self { pieces, _tasks: tasks }
    }

    /// The next piece of either; `None` when all have ended. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(Stream, LogChunk)>> {
        Ok(self.pieces.recv().await.transpose()?)
    }
}
