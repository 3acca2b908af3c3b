//! The client's end.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::budget::{Budget, Share};
use super::outbox::{Outbox, send_alone};
use super::{CallError, Closing, Frame, Protocol};
use crate::frame::{self, FrameReader};
use crate::limits;

/// The Hello's id. Its only possible answer is a refusal.
const HELLO_ID: u64 = 1;

/// How long [`Caller::finish_and_close`] waits for the last datagram to leave this machine.
const LEAVE_WITHIN: Duration = Duration::from_millis(20);

/// The client's end of a connection. Cheap to clone; when the last clone is dropped, the connection ends.
pub struct Caller<P: Protocol> {
    inner: Arc<Inner<P>>,
}

/// What the server sends without being asked, in order.
pub struct Pushes<P: Protocol> {
    frames: mpsc::Receiver<P::Down>,
    /// Keeps the tasks that read.
    _inner: Arc<Inner<P>>,
}

struct Inner<P: Protocol> {
    link: Arc<Link<P>>,
    /// The tasks that read, and those that send large frames.
    tasks: Mutex<JoinSet<()>>,
}

/// What calls and the reading tasks share.
struct Link<P: Protocol> {
    connection: Connection,
    outbox: Arc<Outbox>,
    budget: Budget,
    next_id: AtomicU64,
    waiting: Mutex<Waiting<P>>,
}

struct Waiting<P: Protocol> {
    calls: HashMap<u64, Waiter<P>>,
    /// Why there will be no more answers.
    failed: Option<CallError>,
}

/// A call without an answer. Its share is kept until the answer comes, whether or not somebody still waits.
struct Waiter<P: Protocol> {
    answer: oneshot::Sender<P::Down>,
    _share: Share,
}

impl<P: Protocol> Caller<P> {
    /// Opens the stream of calls and sends `hello`, which leaves together with the first request.
    ///
    /// Does not wait for the server: a Hello that is refused fails the first call with [`CallError::Refused`].
    pub async fn open(connection: Connection, mut hello: P::Up) -> Result<(Self, Pushes<P>), CallError> {
        let (sender, receiver) =
            connection.open_bi().await.map_err(|error| CallError::of_connection(&error))?;
        let link = Arc::new(Link {
            connection,
            outbox: Outbox::new(sender),
            budget: Budget::new(),
            next_id: AtomicU64::new(HELLO_ID + 1),
            waiting: Mutex::new(Waiting { calls: HashMap::new(), failed: None }),
        });
        hello.set_id(HELLO_ID);
        let frame = frame::encode(&hello).map_err(|error| CallError::of_encoding(&error))?;
        link.outbox.send(frame)?;

        let (pushes, frames) = mpsc::channel(limits::PUSHES_WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(read_answers(Arc::clone(&link), receiver));
        tasks.spawn(read_streams(Arc::clone(&link), pushes));
        let inner = Arc::new(Inner { link, tasks: Mutex::new(tasks) });
        Ok((Self { inner: Arc::clone(&inner) }, Pushes { frames, _inner: inner }))
    }

    /// Sends a request and waits for its answer. The frame's id is set here.
    ///
    /// Waits first while [`limits::REQUESTS_IN_FLIGHT`] or [`limits::BYTES_IN_FLIGHT`] are without an answer.
    /// Dropping the future before it has sent means that nothing was sent; later it only forgets the answer.
    /// There is no deadline: a connection without a sign of the peer ends after [`limits::IDLE_TIMEOUT`].
    pub async fn call(&self, frame: P::Up) -> Result<P::Down, CallError> {
        let link = &self.inner.link;
        let (id, bytes) = link.encode(frame)?;
        let share = link.budget.share(bytes.len()).await;
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = link.waiting();
            if let Some(failed) = &waiting.failed {
                return Err(failed.clone());
            }
            waiting.calls.insert(id, Waiter { answer: sender, _share: share });
        }
        self.transmit(bytes)?;
        match answer.await {
            Ok(answer) => Ok(answer),
            // Its waiter was dropped: the connection failed, and says why.
            Err(_) => Err(link.failure()),
        }
    }

    /// Sends a request that has no answer. Resolves when it is handed to the connection.
    pub async fn send(&self, frame: P::Up) -> Result<(), CallError> {
        let link = &self.inner.link;
        let (_, bytes) = link.encode(frame)?;
        let size = bytes.len() - frame::PREFIX_BYTES;
        if size > limits::FRAME_MAX_BYTES {
            return Err(CallError::TooLarge { bytes: size, max: limits::FRAME_MAX_BYTES });
        }
        let ticket = link.outbox.send(bytes).map_err(|_| link.failure())?;
        link.outbox.written(ticket).await
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> CallError {
        let error = self.inner.link.connection.closed().await;
        let failed = self.inner.link.waiting().failed.clone();
        failed.unwrap_or_else(|| CallError::of_connection(&error))
    }

    /// Ends the connection. Calls in flight fail.
    pub fn close(&self, reason: &str) {
        self.inner.link.connection.close(Closing::Done.wire(), reason.as_bytes());
    }

    /// Ends the connection and waits, some microseconds, until the peer was told, so that the process may exit
    /// right after. What must not get lost has been answered before; what was not answered may get lost.
    /// (Waiting until the endpoint is idle instead would take three probe time-outs.)
    pub async fn finish_and_close(&self, reason: &str) {
        let connection = &self.inner.link.connection;
        if connection.close_reason().is_some() {
            return;
        }
        // A closed connection sends one thing more, its farewell. (On a runtime of several threads another datagram may
        // slip in between these two lines; then this returns early, and the peer may notice only by its time-out.)
        let sent = connection.stats().udp_tx.datagrams;
        self.close(reason);
        let told = async {
            while connection.stats().udp_tx.datagrams == sent {
                tokio::task::yield_now().await;
            }
        };
        // Nothing to do if it fails: the peer notices by its idle time-out.
        drop(tokio::time::timeout(LEAVE_WITHIN, told).await);
    }

    /// The connection below, for its address and its statistics.
    pub fn connection(&self) -> &Connection {
        &self.inner.link.connection
    }

    /// Hands a frame to the connection, on the main stream or, if it is large, on one of its own.
    fn transmit(&self, bytes: Vec<u8>) -> Result<(), CallError> {
        let link = &self.inner.link;
        if bytes.len() - frame::PREFIX_BYTES <= limits::FRAME_MAX_BYTES {
            // A failure concerns the whole connection: the reader knows more about it.
            return link.outbox.send(bytes).map(drop).map_err(|_| link.failure());
        }
        let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let link = Arc::clone(link);
        tasks.spawn(async move {
            if let Err(error) = send_alone(&link.connection, &bytes).await {
                link.fail(error);
            }
        });
        Ok(())
    }
}

impl<P: Protocol> Pushes<P> {
    /// The next push; `None` when the connection has ended. May be dropped at any moment.
    pub async fn next(&mut self) -> Option<P::Down> {
        self.frames.recv().await
    }
}

impl<P: Protocol> Drop for Inner<P> {
    fn drop(&mut self) {
        // Does nothing if it was closed before, with a reason.
        self.link.connection.close(Closing::Done.wire(), b"");
    }
}

/// Reads the main stream: answers up to the frame limit.
async fn read_answers<P: Protocol>(link: Arc<Link<P>>, stream: RecvStream) {
    let mut reader = FrameReader::new(stream);
    let error = loop {
        match read(&link, &mut reader, limits::FRAME_MAX_BYTES).await {
            Ok(Some(frame)) if frame.id() == 0 => {
                let reason = "a push came on the stream of answers".to_owned();
                break CallError::Malformed { reason };
            }
            Ok(Some(frame)) => link.answer(frame),
            // The server says nothing more here: it closes the connection, and its reason is worth waiting for.
            Ok(None) => {
                let closed = tokio::time::timeout(limits::FAREWELL_TIMEOUT, link.connection.closed()).await;
                break closed.map_or_else(|_| link.failure(), |error| CallError::of_connection(&error));
            }
            Err(error) => break error,
        }
    };
    link.end(error);
}

/// Accepts the server's streams: large answers, and pushes. Ends with the connection.
async fn read_streams<P: Protocol>(link: Arc<Link<P>>, pushes: mpsc::Sender<P::Down>) {
    let mut streams = JoinSet::new();
    // The transport's limit on open streams bounds the set.
    while let Ok(stream) = link.connection.accept_uni().await {
        while streams.try_join_next().is_some() {}
        streams.spawn(read_stream(Arc::clone(&link), stream, pushes.clone()));
    }
}

async fn read_stream<P: Protocol>(link: Arc<Link<P>>, stream: RecvStream, pushes: mpsc::Sender<P::Down>) {
    let mut reader = FrameReader::new(stream);
    loop {
        match read(&link, &mut reader, limits::BULK_FRAME_MAX_BYTES).await {
            // An error: nobody reads pushes. They are the full truth each time, so nothing is lost by it.
            Ok(Some(frame)) if frame.id() == 0 => drop(pushes.send(frame).await),
            Ok(Some(frame)) => link.answer(frame),
            Ok(None) => return,
            Err(error) => return link.end(error),
        }
    }
}

async fn read<P: Protocol>(
    link: &Link<P>,
    reader: &mut FrameReader<RecvStream>,
    max: usize,
) -> Result<Option<P::Down>, CallError> {
    let failed = |error| CallError::of_frame(&error, &link.connection);
    if reader.length(max).await.map_err(failed)?.is_none() {
        return Ok(None);
    }
    let body = reader.body().await.map_err(failed)?;
    frame::decode(body).map(Some).map_err(failed)
}

impl<P: Protocol> Link<P> {
    /// Fails what is in flight and closes the connection, if the peer has not.
    fn end(&self, error: CallError) {
        let closing = match &error {
            CallError::Malformed { .. } => Closing::Malformed,
            CallError::Lost { .. } | CallError::Refused { .. } | CallError::TooLarge { .. } => Closing::Done,
        };
        let reason = error.to_string();
        self.fail(error);
        self.connection.close(closing.wire(), reason.as_bytes());
    }

    fn encode(&self, mut frame: P::Up) -> Result<(u64, Vec<u8>), CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        frame.set_id(id);
        let bytes = frame::encode(&frame).map_err(|error| CallError::of_encoding(&error))?;
        Ok((id, bytes))
    }

    /// Gives an answer to whom it belongs. Nobody may be waiting: heartbeats have no waiter.
    fn answer(&self, frame: P::Down) {
        if frame.id() == HELLO_ID {
            if let Some(refusal) = P::refusal(&frame) {
                self.fail(CallError::Refused { code: refusal.code, message: refusal.message });
            }
            return;
        }
        let waiter = self.waiting().calls.remove(&frame.id());
        if let Some(waiter) = waiter {
            // An error: the call was dropped and forgets its answer.
            drop(waiter.answer.send(frame));
        }
    }

    /// Ends every call in flight and every later one. The first reason stays.
    fn fail(&self, error: CallError) {
        let calls = {
            let mut waiting = self.waiting();
            waiting.failed.get_or_insert(error);
            std::mem::take(&mut waiting.calls)
        };
        drop(calls);
    }

    /// Why there is no answer.
    fn failure(&self) -> CallError {
        if let Some(failed) = self.waiting().failed.clone() {
            return failed;
        }
        match self.connection.close_reason() {
            Some(reason) => CallError::of_connection(&reason),
            None => CallError::Lost { reason: "its stream of calls ended".to_owned() },
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<P>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Protocol> Clone for Caller<P> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<P: Protocol> fmt::Debug for Caller<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("connection", &self.inner.link.connection).finish_non_exhaustive()
    }
}

impl<P: Protocol> fmt::Debug for Pushes<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushes").finish_non_exhaustive()
    }
}
