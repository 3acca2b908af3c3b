//! The server's end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prost::bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, VarInt};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::{Allowance, Budget, Share};
use super::outbox::{Outbox, send_alone};
use super::{CallError, Closing, Frame, Member, Protocol, Refusal};
use crate::code::Code;
use crate::frame::{self, FrameError, FrameReader};
use crate::limits;
use crate::peer::Peer;

/// The server's end of a connection: hands out requests, in the order in which they have arrived whole.
pub struct Callee<P: Protocol> {
    link: Arc<Link<P>>,
    hello: P::Up,
    reader: FrameReader<RecvStream>,
    budget: Budget,
    next: Next,
    /// Large frames on their way, at most [`limits::BULK_STREAMS`].
    bulk: JoinSet<Result<Call<P>, CallError>>,
}

/// What is known of the main stream's next frame.
#[derive(Debug, Default)]
struct Next {
    share: Share,
    /// When it must be here; set while a part of it is.
    until: Option<Instant>,
}

/// A request. It counts as in flight until it is answered, dismissed or dropped.
#[derive(Debug)]
pub struct Call<P: Protocol> {
    /// The request.
    pub frame: P::Up,
    answer: Answer<P>,
}

/// The right to answer one request. Dropped without an answer, it answers [`Code::Internal`], so that nobody
/// waits for ever.
pub struct Answer<P: Protocol> {
    id: u64,
    arrived: Instant,
    replies: Replies<P>,
    open: bool,
    budget: Budget,
    _share: Share,
}

/// The right of one request to be carried out and to hold its answer in memory; see [`limits::TURNS`].
#[derive(Debug)]
pub struct Turn {
    budget: Budget,
    held: tokio::sync::Mutex<Vec<OwnedSemaphorePermit>>,
}

/// Sends to the client: answers, through [`Answer`], and pushes. Cheap to clone; when the last clone and the
/// [`Callee`] are dropped, the connection ends.
pub struct Replies<P: Protocol> {
    link: Arc<Link<P>>,
}

struct Link<P: Protocol> {
    connection: Connection,
    answers: Arc<Outbox>,
    /// The stream of pushes, opened by the first one.
    pushes: OnceCell<Arc<Outbox>>,
    /// Tasks that send large frames.
    large: Mutex<JoinSet<()>>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

impl<P: Protocol> Callee<P> {
    /// Waits for the client's stream and its Hello, at most [`limits::HELLO_TIMEOUT`], and checks the version.
    /// The client is a stranger then: it can send no large frame until [`trust`](Self::trust).
    ///
    /// A version that is not spoken is refused by an answer and by the reason of the closed connection.
    pub async fn accept(connection: Connection) -> Result<Self, CallError> {
        let hello = timeout(limits::HELLO_TIMEOUT, Self::hear(&connection)).await.unwrap_or_else(|_| {
            let reason = format!("it said no hello within {:?}", limits::HELLO_TIMEOUT);
            Err(CallError::Malformed { reason })
        });
        let (link, reader, hello) = match hello {
            Ok(heard) => heard,
            Err(error) => {
                connection.close(Closing::Malformed.wire(), error.to_string().as_bytes());
                return Err(error);
            }
        };
        if let Err(refusal) = check_hello::<P>(&hello) {
            Replies { link }.refuse(hello.id(), refusal.clone()).await;
            return Err(CallError::Refused { code: refusal.code, message: refusal.message });
        }
        let (budget, next) = (Budget::new(), Next::default());
        Ok(Self { link, hello, reader, budget, next, bulk: JoinSet::new() })
    }

    /// The client has proved that it may be here: it may send large frames, and much at a time.
    pub fn trust(&self) {
        let connection = &self.link.connection;
        connection.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
        connection.set_max_concurrent_uni_streams(VarInt::from_u32(limits::BULK_STREAMS));
    }

    /// The client has proved whose it is: it may send more ([`Self::trust`]), as far as the others of its
    /// group, and all who count in `all`, leave it room. Hold `member` as long as the connection.
    pub fn admit(&mut self, member: &Member, all: &Allowance) {
        self.trust();
        self.budget.within(member.allowance());
        self.budget.within(all.clone());
    }

    async fn hear(
        connection: &Connection,
    ) -> Result<(Arc<Link<P>>, FrameReader<RecvStream>, P::Up), CallError> {
        let (sender, receiver) =
            connection.accept_bi().await.map_err(|error| CallError::of_connection(&error))?;
        let failed = |error| CallError::of_frame(&error, connection);
        let mut reader = FrameReader::new(receiver);
        if reader.length(limits::FRAME_MAX_BYTES).await.map_err(failed)?.is_none() {
            return Err(CallError::Malformed { reason: "its stream ended before the hello".to_owned() });
        }
        let hello = frame::decode(reader.body().await.map_err(failed)?).map_err(failed)?;
        let link = Link {
            connection: connection.clone(),
            answers: Outbox::new(sender),
            pushes: OnceCell::new(),
            large: Mutex::new(JoinSet::new()),
            protocol: std::marker::PhantomData,
        };
        Ok((Arc::new(link), reader, hello))
    }

    /// The client's first frame.
    pub fn hello(&self) -> &P::Up {
        &self.hello
    }

    /// Who the client proved to be in the handshake.
    pub fn peer(&self) -> Peer {
        Peer::of(&self.link.connection)
    }

    /// Refuses the hello: an answer to it, which is also the reason of the closed connection. Waits at most
    /// [`limits::FAREWELL_TIMEOUT`] until the client has it.
    pub async fn refuse(self, refusal: Refusal) {
        self.replies().refuse(self.hello.id(), refusal).await;
    }

    /// Waits for the next request; `None`: the client has closed. May be dropped at any moment.
    ///
    /// Waits also while [`limits::REQUESTS_IN_FLIGHT`] or [`limits::BYTES_IN_FLIGHT`] are without an answer. After an
    /// error the connection is closed.
    pub async fn next(&mut self) -> Result<Option<Call<P>>, CallError> {
        match self.receive().await {
            Err(CallError::Lost { .. }) if self.is_done() => Ok(None),
            Err(error @ CallError::Malformed { .. }) => {
                self.link.connection.close(Closing::Malformed.wire(), error.to_string().as_bytes());
                Err(error)
            }
            other => other,
        }
    }

    async fn receive(&mut self) -> Result<Option<Call<P>>, CallError> {
        let Self { link, reader, budget, next, bulk, .. } = self;
        let mut ended = false;
        loop {
            tokio::select! {
                arrived = receive_next(link, reader, budget, next), if !ended => match arrived? {
                    Some(arrived) => return call(link, arrived, budget, std::mem::take(next).share).map(Some),
                    // Large frames may still be on their way.
                    None => ended = true,
                },
                stream = link.connection.accept_uni(), if bulk.len() < limits::BULK_STREAMS as usize => match stream {
                    Ok(stream) => {
                        bulk.spawn(receive_alone(Arc::clone(link), stream, budget.clone()));
                    }
                    Err(error) => return Err(CallError::of_connection(&error)),
                },
                Some(arrived) = bulk.join_next() => return joined(arrived).map(Some),
            }
        }
    }

    /// Tells an orderly end from a loss.
    fn is_done(&self) -> bool {
        let done = Closing::Done.wire();
        let reason = self.link.connection.close_reason();
        matches!(reason, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == done)
    }

    /// Waits until something that no request asks for may be carried out, such as what a registration promised.
    pub fn turn(&self) -> impl Future<Output = Turn> + Send + use<P> {
        let budget = self.budget.clone();
        async move {
            let held = budget.turn().await.into();
            Turn { budget, held }
        }
    }

    /// Sends to this client.
    pub fn replies(&self) -> Replies<P> {
        Replies { link: Arc::clone(&self.link) }
    }

    /// The client's address.
    pub fn remote(&self) -> SocketAddr {
        self.link.connection.remote_address()
    }
}

impl<P: Protocol> Call<P> {
    /// Answers. The frame's id is set here. Resolves when the answer is handed to the connection, which waits
    /// while the client reads slowly; the request counts as in flight until then.
    ///
    /// An answer that is too large is replaced by [`Code::Internal`], and is an error here too.
    pub async fn reply(self, frame: P::Down) -> Result<(), CallError> {
        self.answer.reply(frame).await
    }

    /// The request and the right to answer it.
    pub fn into_parts(self) -> (P::Up, Answer<P>) {
        (self.frame, self.answer)
    }
}

impl<P: Protocol> Answer<P> {
    /// When the whole request was here.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// As [`Call::reply`].
    pub async fn reply(mut self, mut frame: P::Down) -> Result<(), CallError> {
        frame.set_id(self.id);
        let bytes = match frame::encode(&frame) {
            Ok(bytes) => bytes,
            // Dropping `self` tells the client.
            Err(error) => return Err(CallError::of_encoding(&error)),
        };
        drop(frame);
        self.open = false;
        self.replies.transmit(bytes).await
    }

    /// Waits until the request may be carried out. To be held until it is answered.
    pub async fn turn(&self) -> Turn {
        let held = self.budget.turn().await;
        Turn { budget: self.budget.clone(), held: held.into() }
    }

    /// Says that this request needs no answer (a heartbeat).
    pub fn dismiss(mut self) {
        self.open = false;
    }
}

impl Turn {
    /// Gives the turn to others while the request only waits, and takes it again.
    pub async fn aside<T>(&self, wait: impl Future<Output = T>) -> T {
        // One request has one task: nobody else locks this.
        self.held.lock().await.clear();
        let outcome = wait.await;
        *self.held.lock().await = self.budget.turn().await;
        outcome
    }
}

impl<P: Protocol> Drop for Answer<P> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let message = "the service could not form an answer; see its log";
        let mut frame = P::refuse(Refusal::new(Code::Internal, message));
        frame.set_id(self.id);
        if let Ok(bytes) = frame::encode(&frame) {
            // An error: the connection is gone, and with it whoever waits.
            drop(self.replies.link.answers.send(bytes));
        }
    }
}

impl<P: Protocol> Replies<P> {
    /// Sends a push (its id is set to 0) on the stream of pushes. Resolves when it is handed to the connection: a
    /// client that reads slowly makes this wait, so whoever pushes keeps only the newest truth meanwhile.
    pub async fn push(&self, mut frame: P::Down) -> Result<(), CallError> {
        frame.set_id(0);
        let bytes = frame::encode(&frame).map_err(|error| CallError::of_encoding(&error))?;
        let link = &self.link;
        let open = || async {
            let stream = link.connection.open_uni().await;
            stream.map(Outbox::new).map_err(|error| CallError::of_connection(&error))
        };
        self.read_in_time("a push", async {
            let pushes = link.pushes.get_or_try_init(open).await?;
            let ticket = pushes.send(bytes)?;
            pushes.written(ticket).await
        })
        .await
    }

    /// Closes at once. Answers that the client has not acknowledged may get lost.
    pub fn close(&self, closing: Closing, reason: &str) {
        self.link.connection.close(closing.wire(), reason.as_bytes());
    }

    /// Lets the client have the answers and pushes that were sent, then closes. Waits at most
    /// [`limits::FAREWELL_TIMEOUT`].
    pub async fn finish_and_close(&self, closing: Closing, reason: &str) {
        let flushed = async {
            if let Some(pushes) = self.link.pushes.get() {
                pushes.finish().await?;
            }
            self.link.answers.finish().await
        };
        tokio::select! {
            // Either outcome: what could be delivered is.
            _ = timeout(limits::FAREWELL_TIMEOUT, flushed) => {}
            _ = self.link.connection.closed() => {}
        }
        self.close(closing, reason);
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> CallError {
        CallError::of_connection(&self.link.connection.closed().await)
    }

    /// Answers a Hello that is refused, and closes.
    async fn refuse(&self, id: u64, refusal: Refusal) {
        let reason = refusal.reason();
        let mut frame = P::refuse(refusal);
        frame.set_id(id);
        if let Ok(bytes) = frame::encode(&frame) {
            // An error: the client has gone already.
            drop(self.transmit(bytes).await);
        }
        self.finish_and_close(Closing::Refused, &reason).await;
    }

    async fn transmit(&self, bytes: Vec<u8>) -> Result<(), CallError> {
        self.read_in_time("an answer", self.hand_over(bytes)).await
    }

    /// Ends the connection of a client that does not read.
    async fn read_in_time(
        &self,
        what: &str,
        sending: impl Future<Output = Result<(), CallError>>,
    ) -> Result<(), CallError> {
        let sent = timeout(limits::READ_TIMEOUT, sending).await;
        sent.unwrap_or_else(|_| {
            let reason = format!("{what} waited longer than {:?} to be read", limits::READ_TIMEOUT);
            self.close(Closing::Malformed, &reason);
            Err(CallError::Malformed { reason })
        })
    }

    async fn hand_over(&self, bytes: Vec<u8>) -> Result<(), CallError> {
        let link = &self.link;
        if bytes.len() - frame::PREFIX_BYTES <= limits::FRAME_MAX_BYTES {
            let ticket = link.answers.send(bytes)?;
            return link.answers.written(ticket).await;
        }
        let (done, sent) = tokio::sync::oneshot::channel();
        let connection = link.connection.clone();
        {
            let mut large = link.large.lock().unwrap_or_else(PoisonError::into_inner);
            while large.try_join_next().is_some() {}
            large.spawn(async move {
                // An error: whoever answered was dropped.
                drop(done.send(send_alone(&connection, &bytes).await));
            });
        }
        sent.await.unwrap_or_else(|_| Err(CallError::Lost { reason: "the answer was given up".to_owned() }))
    }
}

impl<P: Protocol> Drop for Link<P> {
    fn drop(&mut self) {
        // Does nothing if it was closed before, with a reason.
        self.connection.close(Closing::Done.wire(), b"");
    }
}

fn check_hello<P: Protocol>(hello: &P::Up) -> Result<(), Refusal> {
    let spoken = match (P::OLDEST_VERSION, P::VERSION) {
        (oldest, newest) if oldest == newest => format!("version {newest}"),
        (oldest, newest) => format!("versions {oldest} to {newest}"),
    };
    let name = P::NAME;
    match P::hello_version(hello) {
        _ if hello.id() == 0 => Err(Refusal::new(
            Code::InvalidArgument,
            "the hello has id 0, which is kept for pushes; choose another",
        )),
        Some(version) if (P::OLDEST_VERSION..=P::VERSION).contains(&version) => Ok(()),
        Some(version) => Err(Refusal::new(
            Code::Unimplemented,
            format!(
                "version {version} of the {name} is not spoken here, {spoken} is; use a release that speaks it"
            ),
        )),
        None => Err(Refusal::new(
            Code::InvalidArgument,
            format!("the first frame is no hello; say hello with {spoken} of the {name} first"),
        )),
    }
}

/// A request, and when the last byte of its frame was here.
type Arrived<F> = (F, Instant);

/// The next frame of the main stream. May be dropped at any moment: `next` keeps what is known of it.
async fn receive_next<P: Protocol>(
    link: &Link<P>,
    reader: &mut FrameReader<RecvStream>,
    budget: &Budget,
    next: &mut Next,
) -> Result<Option<Arrived<P::Up>>, CallError> {
    let failed = |error| CallError::of_frame(&error, &link.connection);
    // A quiet connection has no share of what others need: the length first.
    let Some(bytes) = reader.length(limits::FRAME_MAX_BYTES).await.map_err(failed)? else {
        return Ok(None);
    };
    budget.request(&mut next.share).await;
    budget.own_bytes(&mut next.share, bytes).await;
    let until = *next.until.get_or_insert_with(|| Instant::now() + limits::FRAME_TIMEOUT);
    let body = timeout_at(until, receive_body(reader, bytes, budget, &mut next.share)).await;
    let body = body.map_err(|_| too_slow())?.map_err(failed)?;
    let arrived = Instant::now();
    frame::decode_request(body).map(|frame| Some((frame, arrived))).map_err(failed)
}

/// The body of a frame of `bytes`; others' room is taken as it arrives. May be dropped at any moment.
async fn receive_body(
    reader: &mut FrameReader<RecvStream>,
    bytes: usize,
    budget: &Budget,
    share: &mut Share,
) -> Result<Bytes, FrameError> {
    let mut arrived = 0;
    while arrived < bytes {
        arrived = bytes.min(arrived + PART_BYTES);
        reader.arrived(arrived).await?;
        budget.shared_bytes(share, arrived).await;
    }
    reader.body().await
}

/// What may have arrived of a frame before others' room is taken for it.
const PART_BYTES: usize = 64 * 1024;

/// A large frame, alone on its stream.
async fn receive_alone<P: Protocol>(
    link: Arc<Link<P>>,
    stream: RecvStream,
    budget: Budget,
) -> Result<Call<P>, CallError> {
    let failed = |error| CallError::of_frame(&error, &link.connection);
    let mut reader = FrameReader::new(stream);
    let mut share = Share::default();
    let length = timeout(limits::FRAME_TIMEOUT, reader.length(limits::BULK_FRAME_MAX_BYTES));
    let Some(bytes) = length.await.map_err(|_| too_slow())?.map_err(failed)? else {
        return Err(CallError::Malformed {
            reason: "a stream for a large frame ended without one".to_owned(),
        });
    };
    budget.request(&mut share).await;
    budget.own_bytes(&mut share, bytes).await;
    let whole = async {
        let body = receive_body(&mut reader, bytes, &budget, &mut share).await?;
        reader.end().await?;
        let arrived = Instant::now();
        frame::decode_request(body).map(|frame| (frame, arrived))
    };
    let arrived = timeout(limits::FRAME_TIMEOUT, whole).await.map_err(|_| too_slow())?.map_err(failed)?;
    call(&link, arrived, &budget, share)
}

fn call<P: Protocol>(
    link: &Arc<Link<P>>,
    (frame, arrived): Arrived<P::Up>,
    budget: &Budget,
    share: Share,
) -> Result<Call<P>, CallError> {
    let id = frame.id();
    if id == 0 {
        return Err(CallError::Malformed {
            reason: "a request has id 0, which is kept for pushes".to_owned(),
        });
    }
    let replies = Replies { link: Arc::clone(link) };
    Ok(Call {
        frame,
        answer: Answer { id, arrived, replies, open: true, budget: budget.clone(), _share: share },
    })
}

fn joined<P: Protocol>(arrived: Result<Result<Call<P>, CallError>, JoinError>) -> Result<Call<P>, CallError> {
    match arrived {
        Ok(arrived) => arrived,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn too_slow() -> CallError {
    CallError::Malformed { reason: format!("a frame took longer than {:?}", limits::FRAME_TIMEOUT) }
}

impl<P: Protocol> Clone for Replies<P> {
    fn clone(&self) -> Self {
        Self { link: Arc::clone(&self.link) }
    }
}

impl<P: Protocol> fmt::Debug for Callee<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callee").field("connection", &self.link.connection).finish_non_exhaustive()
    }
}

impl<P: Protocol> fmt::Debug for Answer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("id", &self.id).field("open", &self.open).finish_non_exhaustive()
    }
}

impl<P: Protocol> fmt::Debug for Replies<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").field("connection", &self.link.connection).finish_non_exhaustive()
    }
}
