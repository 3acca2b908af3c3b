//! The sending half of one stream, shared by many senders.
//!
//! A frame is written at once, in the sender's own call, as far as flow control lets it; what is left is
//! written by a task that lives only as long as there is something left. So a sender that is dropped never
//! leaves half a frame, and the usual case needs no second task.

use std::collections::VecDeque;
use std::future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use quinn::{Connection, SendStream, WriteError};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::CallError;

/// Shared by the senders of one stream.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Told whenever the backlog has become empty, or never will.
    settled: Notify,
}

#[derive(Debug)]
struct State {
    stream: SendStream,
    backlog: VecDeque<Vec<u8>>,
    /// How much of the backlog's first frame is written.
    written: usize,
    /// Frames ever queued, and frames ever written.
    queued: u64,
    sent: u64,
    failed: Option<CallError>,
    /// Holds the task that writes the backlog; empty while there is none.
    flusher: JoinSet<()>,
    flushing: bool,
}

/// Names a frame, to wait until it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

impl Outbox {
    pub(crate) fn new(stream: SendStream) -> Arc<Self> {
        let state = State {
            stream,
            backlog: VecDeque::new(),
            written: 0,
            queued: 0,
            sent: 0,
            failed: None,
            flusher: JoinSet::new(),
            flushing: false,
        };
        Arc::new(Self { state: Mutex::new(state), settled: Notify::new() })
    }

    /// Takes a whole frame. It is written before this returns or, if the peer reads slowly, later.
    pub(crate) fn send(self: &Arc<Self>, frame: Vec<u8>) -> Result<Ticket, CallError> {
        let mut state = self.lock();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        state.queued += 1;
        let ticket = Ticket(state.queued);
        state.backlog.push_back(frame);
        if !state.flushing {
            // The waker of nobody: if the stream is not ready, the flusher asks again with its own.
            let mut nobody = Context::from_waker(Waker::noop());
            if state.poll_write(&mut nobody).is_pending() {
                state.flushing = true;
                let outbox = Arc::clone(self);
                while state.flusher.try_join_next().is_some() {}
                state.flusher.spawn(async move { outbox.flush().await });
            }
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
        }
        Ok(ticket)
    }

    /// Waits until the frame of `ticket` is handed to the connection. Dropping this changes nothing.
    pub(crate) async fn written(&self, ticket: Ticket) -> Result<(), CallError> {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            {
                let state = self.lock();
                if state.sent >= ticket.0 {
                    return Ok(());
                }
                if let Some(failed) = &state.failed {
                    return Err(failed.clone());
                }
            }
            settled.await;
        }
    }

    /// Waits until everything taken so far is handed to the connection, ends the stream and waits until the
    /// peer's end has acknowledged all of it.
    #[cfg(feature = "server")]
    pub(crate) async fn finish(&self) -> Result<(), CallError> {
        let last = Ticket(self.lock().queued);
        self.written(last).await?;
        let stopped = {
            let mut state = self.lock();
            // An error: it is finished already, or the peer wants no more.
            drop(state.stream.finish());
            state.stream.stopped()
        };
        stopped.await.map(drop).map_err(|error| CallError::Lost { reason: error.to_string() })
    }

    async fn flush(&self) {
        future::poll_fn(|context| {
            let mut state = self.lock();
            ready!(state.poll_write(context));
            state.flushing = false;
            Poll::Ready(())
        })
        .await;
        self.settled.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside leaves the state as it was between two statements; a broken stream fails by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes the backlog; ready when it is empty or the stream has failed.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(frame) = self.backlog.front() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &frame[self.written..])) {
                Ok(bytes) => self.written += bytes,
                Err(error) => {
                    self.failed = Some(lost(&error));
                    self.backlog.clear();
                    return Poll::Ready(());
                }
            }
            if self.written == frame.len() {
                self.backlog.pop_front();
                self.written = 0;
                self.sent += 1;
            }
        }
        Poll::Ready(())
    }
}

/// Sends a large frame alone, on a stream of its own. To be run by a task that nobody drops: half a frame
/// would look like a whole stream.
pub(crate) async fn send_alone(connection: &Connection, frame: &[u8]) -> Result<(), CallError> {
    let mut stream = connection.open_uni().await.map_err(|error| CallError::of_connection(&error))?;
    stream.write_all(frame).await.map_err(|error| lost(&error))?;
    // An error: the peer has stopped the stream, because the connection ends or it has what it needs.
    drop(stream.finish());
    Ok(())
}

fn lost(error: &WriteError) -> CallError {
    match error {
        WriteError::ConnectionLost(error) => CallError::of_connection(error),
        other => CallError::Lost { reason: other.to_string() },
    }
}
