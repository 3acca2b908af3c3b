//! Group commit: a writer task owns its connection for life and puts what is queued into one
//! transaction.
//!
//! There is no timer: an idle writer commits at once, a busy one in batches of what came
//! meanwhile. Neighbours of one kind that can be ([`Request::gathers`]) are one statement; a batch
//! that is nothing else commits with it, without a transaction around. Each caller gets its own
//! outcome. If a statement fails, the batch is rolled back and each request is repeated alone, so
//! that one cannot spoil another. A caller that stops waiting does not stop its request: no
//! request's future owns a transaction.
//!
//! An answer is sent only after the commit that makes it durable (invariant 1). Row locks are
//! taken in one order by everybody ([`LockOrder`]), so that batches cannot deadlock; where
//! another process makes one fail nevertheless, it is repeated.

use std::{
    any::{Any, TypeId},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Clock,
    error::{Error, Result, is_connection_lost, is_flush_failed, is_turned_away},
    notices::Hub,
    open::Connector,
    queue::{BatchLimits, Queue, Room},
    sql::{Conn, Tx},
    sqlite::not_copied,
};
use crate::domain::id::{InstanceId, InstanceKey, Tenant};
use crate::{
    fault,
    timings::{self, Committed},
};

/// What one transaction takes at most: bounds the time to the first answer. In bytes a quarter of
/// the largest payload, which is a batch of its own.
const BATCH: BatchLimits = BatchLimits { requests: 256, bytes: 1 << 20 };
/// A reader looks for one request at a time: others are free for the next.
const ONE: BatchLimits = BatchLimits { requests: 1, bytes: usize::MAX };
/// Times a request is tried that lost a race inside the database.
const TRIES: u32 = 8;

/// What a request locks first. Batches run in this order, arrival order within.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LockOrder {
    /// The place of an id that may not exist yet.
    Start(Tenant, InstanceId),
    /// An instance's row.
    Instance(InstanceKey),
    /// Rows that nobody who holds an instance waits for, or rows taken by SKIP LOCKED.
    Last,
}

/// One unit of reading or writing: judged and done in one transaction.
///
/// `run` may run more than once (after a rollback), so it must not consume the request.
/// What it refuses it refuses before it writes.
pub(super) trait Request: Send + Sync + 'static {
    /// What the caller gets.
    type Answer: Send + 'static;

    /// Whether storing it twice is the same as storing it once, so that it can be repeated after
    /// a commit whose outcome is unknown.
    fn repeatable(&self) -> bool {
        true
    }

    /// Under which name its times are recorded; none: they are not.
    fn timed(&self) -> Option<timings::Request> {
        None
    }

    /// Which rows it locks, in what order.
    fn order(&self) -> LockOrder {
        LockOrder::Last
    }

    /// Bytes that it holds in memory while it waits, as far as they are worth counting.
    fn bytes(&self) -> usize {
        0
    }

    /// Judges and writes.
    fn run(&self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Self::Answer>> + Send;

    /// The same as one guarded statement that commits by itself, if there is one and if it
    /// could decide; `None`: nothing was written, ask `run`.
    fn run_single(&self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Option<Self::Answer>>> + Send {
        let _ = tx;
        async { Ok(None) }
    }

    /// Whether it may be one of several in [`Self::run_set`].
    fn gathers(&self) -> bool {
        false
    }

    /// The same for several, in this order, as one statement, which commits by itself where no
    /// transaction is open. An answer for each; `None`: it could not decide, and nothing of that one
    /// was written.
    fn run_set(
        requests: &[&Self],
        tx: &mut Tx<'_>,
    ) -> impl Future<Output = Result<Vec<Option<Self::Answer>>>> + Send
    where
        Self: Sized,
    {
        let _ = tx;
        let undecided = requests.iter().map(|_| None).collect();
        async { Ok(undecided) }
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs neighbours of one kind as one statement and keeps their outcomes.
type RunSet = for<'a> fn(&'a mut [Box<dyn Work>], &'a mut Tx<'_>) -> BoxFuture<'a, Result<()>>;

/// A request of any type with its caller.
pub(super) trait Work: Any + Send {
    fn order(&self) -> LockOrder;
    fn bytes(&self) -> usize;
    /// Its kind, and how to run several of it together; none: it runs by itself.
    fn gathers(&self) -> Option<(TypeId, RunSet)>;
    /// Whether it has an outcome.
    fn is_decided(&self) -> bool;
    fn repeatable(&self) -> bool;
    /// Runs it and keeps the outcome. `Err`: roll back.
    fn run<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<()>>;
    /// As `run`, as a single statement; `Ok(false)`: could not decide.
    fn run_single<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<bool>>;
    /// The outcome is durable: tell the caller.
    fn answer(self: Box<Self>, committed: Committed);
    /// Tell the caller that it failed.
    fn fail(self: Box<Self>, error: Error);
}

/// A request in a queue.
pub(super) struct Queued<R: Request> {
    request: R,
    outcome: Option<Result<R::Answer>>,
    caller: oneshot::Sender<Told<R::Answer>>,
    _room: Room,
}

/// What a caller hears: the outcome, and when it came about if a transaction decided it.
type Told<T> = (Result<T>, Option<Committed>);

impl<R: Request> Queued<R> {
    pub(super) fn new(request: R, caller: oneshot::Sender<Told<R::Answer>>, room: Room) -> Self {
        Self { request, outcome: None, caller, _room: room }
    }

    fn run_set<'a>(works: &'a mut [Box<dyn Work>], tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut all: Vec<&mut Self> = works.iter_mut().filter_map(Self::of).collect();
            let requests: Vec<&R> = all.iter().map(|queued| &queued.request).collect();
            let answers = R::run_set(&requests, tx).await?;
            for (queued, answer) in all.iter_mut().zip(answers) {
                queued.outcome = answer.map(Ok);
            }
            Ok(())
        })
    }

    fn of(work: &mut Box<dyn Work>) -> Option<&mut Self> {
        let any: &mut dyn Any = work.as_mut();
        any.downcast_mut()
    }
}

impl<R: Request> Work for Queued<R> {
    fn order(&self) -> LockOrder {
        self.request.order()
    }

    fn bytes(&self) -> usize {
        self.request.bytes()
    }

    fn gathers(&self) -> Option<(TypeId, RunSet)> {
        let run_set: RunSet = Self::run_set;
        self.request.gathers().then_some((TypeId::of::<R>(), run_set))
    }

    fn is_decided(&self) -> bool {
        self.outcome.is_some()
    }

    fn repeatable(&self) -> bool {
        self.request.repeatable()
    }

    fn run<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let writes_before = tx.writes;
            match self.request.run(tx).await {
                Err(error) if !error.is_refusal() || tx.writes != writes_before => Err(error),
                outcome => {
                    self.outcome = Some(outcome);
                    Ok(())
                }
            }
        })
    }

    fn run_single<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let writes_before = tx.writes;
            self.outcome = match self.request.run_single(tx).await {
                // Nothing is open that would have to be rolled back.
                Err(error) if error.is_refusal() && tx.writes == writes_before => Some(Err(error)),
                outcome => outcome?.map(Ok),
            };
            Ok(self.outcome.is_some())
        })
    }

    fn answer(self: Box<Self>, committed: Committed) {
        if let Some(outcome) = self.outcome {
            // A caller that went away forgets the answer only.
            let _ = self.caller.send((outcome, Some(committed)));
        }
    }

    fn fail(self: Box<Self>, error: Error) {
        let _ = self.caller.send((Err(error), None));
    }
}

/// A connection and all that is needed to get the next one.
struct Link {
    connector: Connector,
    read_only: bool,
    conn: Option<Conn>,
    /// How long one statement may take.
    answer_within: Duration,
}

impl Link {
    /// The connection, a new one if the last was lost.
    async fn conn(&mut self) -> Result<(&mut Conn, &Connector)> {
        if self.conn.is_none() {
            let connecting = tokio::time::timeout(self.answer_within, self.connector.connect(self.read_only));
            let connected = connecting
                .await
                .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
            self.conn = Some(connected.map_err(Error::Unavailable)?);
        }
        let conn = self.conn.as_mut().expect("set just above");
        conn.set_answer_within(Some(self.answer_within));
        conn.refresh_plans().await?;
        Ok((conn, &self.connector))
    }

    /// On any error roll back: PostgreSQL would answer COMMIT without an error and store
    /// nothing, SQLite would commit the rest.
    async fn after<T>(&mut self, outcome: &Result<T, Failure>) {
        match outcome {
            Ok(_) => {}
            Err(Failure::Before(Error::Unavailable(_) | Error::FlushFailed(_)) | Failure::Unknown(_)) => {
                self.roll_back(true).await;
            }
            Err(Failure::Before(_)) => self.roll_back(false).await,
        }
    }

    /// Takes back what is open; a connection that cannot even do that is dropped.
    async fn roll_back(&mut self, lost: bool) {
        if let Some(mut conn) = self.conn.take()
            && !lost
            && Tx::roll_back(&mut conn).await.is_ok()
        {
            self.conn = Some(conn);
        }
    }
}

/// The writer of one lane.
pub(super) struct Writer {
    link: Link,
    clock: Clock,
    hub: Hub,
    /// Cancelled when the disk has not flushed: the store is over.
    broken: CancellationToken,
}

/// Where in its life a transaction failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Before the commit was sent: nothing is stored.
    #[error(transparent)]
    Before(Error),
    /// During the commit, and the connection is gone: nobody knows.
    #[error("the connection broke during the commit")]
    Unknown(#[source] sqlx::Error),
}

impl Writer {
    pub(super) fn new(
        connector: Connector,
        conn: Conn,
        answer_within: Duration,
        clock: Clock,
        hub: Hub,
        broken: CancellationToken,
    ) -> Self {
        Self {
            link: Link { connector, read_only: false, conn: Some(conn), answer_within },
            clock,
            hub,
            broken,
        }
    }

    /// Serves its queue until `closing`, then what is queued still, then says goodbye.
    pub(super) async fn run(mut self, mut queue: Queue, closing: CancellationToken) {
        let mut batch = Vec::new();
        while queue.take(&mut batch, BATCH, &closing).await {
            fault::batch("store.taken", batch.len());
            tracing::trace!(requests = batch.len(), "a batch is taken");
            self.serve(&mut batch).await;
            self.finish_log().await;
            if self.broken.is_cancelled() {
                // Dropping the queue tells whoever waits in it.
                return;
            }
        }
        if let Some(conn) = self.link.conn.take() {
            conn.close().await;
        }
    }

    /// Nobody waits for this: the batch is answered.
    async fn finish_log(&mut self) {
        let Link { connector, conn: Some(conn), .. } = &mut self.link else { return };
        if let Err(error) = connector.finish_log(conn).await {
            not_copied(&error, &self.broken);
        }
    }

    /// Leaves the batch empty.
    async fn serve(&mut self, batch: &mut Vec<Box<dyn Work>>) {
        let taken = Instant::now();
        let mut undecided = Vec::new();
        if batch.len() > 1 {
            batch.sort_by_cached_key(|work| work.order());
            match self.together(batch).await {
                Ok(()) => {
                    let committed = Committed { taken, durable: Instant::now() };
                    let requests = batch.len();
                    for work in batch.drain(..) {
                        if work.is_decided() {
                            work.answer(committed);
                            fault::batch("store.answered", requests);
                        } else {
                            undecided.push(work);
                        }
                    }
                }
                Err(Failure::Before(Error::FlushFailed(error))) => {
                    return batch.drain(..).for_each(|work| self.give_up(work, &error));
                }
                Err(error) => {
                    tracing::debug!(%error, requests = batch.len(), "a batch failed; each is repeated alone");
                    if let Failure::Unknown(error) = error {
                        fail_unrepeatable(batch, &error);
                    }
                }
            }
        }
        for work in batch.drain(..).chain(undecided) {
            self.alone(work, taken).await;
        }
    }

    /// The disk has not flushed. What is in the file is unknown, and no further write may rely on it.
    fn give_up(&self, work: Box<dyn Work>, error: &sqlx::Error) {
        if !self.broken.is_cancelled() {
            tracing::error!(%error, "the disk did not flush the database; the store ends");
            self.broken.cancel();
        }
        let copy = sqlx::Error::Io(std::io::Error::other(error.to_string()));
        work.fail(Error::FlushFailed(copy));
    }

    /// All of them in one transaction, or none. Those that one statement could not decide have no
    /// outcome then, and wrote nothing.
    async fn together(&mut self, batch: &mut [Box<dyn Work>]) -> Result<(), Failure> {
        let done = match set_of(batch) {
            (neighbours, Some(run_set)) if neighbours == batch.len() => self.as_set(batch, run_set).await,
            _ => self.transaction(batch).await,
        };
        self.link.after(&done).await;
        done
    }

    async fn transaction(&mut self, mut batch: &mut [Box<dyn Work>]) -> Result<(), Failure> {
        let (conn, connector) = self.link.conn().await.map_err(Failure::Before)?;
        let mut tx = Tx::begin(conn, &self.clock).await.map_err(|error| Failure::Before(error.into()))?;
        let requests = batch.len();
        fault::batch("store.begun", requests);
        while !batch.is_empty() {
            let (neighbours, run_set) = set_of(batch);
            let (set, rest) = batch.split_at_mut(neighbours);
            if let Some(run_set) = run_set {
                run_set(set, &mut tx).await.map_err(Failure::Before)?;
            }
            for work in set.iter_mut().filter(|work| run_set.is_none() || !work.is_decided()) {
                work.run(&mut tx).await.map_err(Failure::Before)?;
                fault::batch("store.row", requests);
            }
            batch = rest;
        }
        fault::batch("store.before_commit", requests);
        connector.wrote(tx.writes, tx.written_bytes);
        match tx.commit().await {
            Ok(notices) => {
                fault::batch("store.committed", requests);
                self.hub.committed(notices);
                Ok(())
            }
            Err(error) if is_connection_lost(&error) && !is_flush_failed(&error) => {
                Err(Failure::Unknown(error))
            }
            Err(error) => Err(Failure::Before(error.into())),
        }
    }

    /// One request in a transaction of its own, until it has an outcome.
    async fn alone(&mut self, mut work: Box<dyn Work>, taken: Instant) {
        let mut tries = 1;
        if self.broken.is_cancelled() {
            return work.fail(Error::Closed);
        }
        loop {
            let failure = match self.one(&mut work).await {
                Ok(()) => return work.answer(Committed { taken, durable: Instant::now() }),
                Err(Failure::Before(Error::FlushFailed(error))) => return self.give_up(work, &error),
                Err(failure) => failure,
            };
            let again = match &failure {
                Failure::Before(Error::Unavailable(_)) => tries < 2,
                Failure::Before(error) => error.is_conflict() && tries < TRIES,
                Failure::Unknown(_) => work.repeatable() && tries < 2,
            };
            if !again {
                let error = match failure {
                    Failure::Before(error) => error,
                    Failure::Unknown(source) => Error::Unconfirmed(source),
                };
                if !error.is_refusal() {
                    tracing::warn!(%error, cause = ?std::error::Error::source(&error), "a write failed");
                }
                return work.fail(error);
            }
            tries += 1;
        }
    }

    async fn one(&mut self, work: &mut Box<dyn Work>) -> Result<(), Failure> {
        let decided = self.single(work.as_mut()).await;
        self.link.after(&decided).await;
        if decided? {
            return Ok(());
        }
        self.together(std::slice::from_mut(work)).await
    }

    /// As one statement that commits by itself; false if it could not decide.
    async fn single(&mut self, work: &mut dyn Work) -> Result<bool, Failure> {
        let (conn, connector) = self.link.conn().await.map_err(Failure::Before)?;
        let mut tx = Tx::single(conn, &self.clock);
        let decided = work.run_single(&mut tx).await.map_err(of_statement)?;
        if decided {
            fault::point("store.committed");
            connector.wrote(tx.writes, tx.written_bytes);
            self.hub.committed(tx.notices);
        }
        Ok(decided)
    }

    /// The same for neighbours of one kind.
    async fn as_set(&mut self, set: &mut [Box<dyn Work>], run_set: RunSet) -> Result<(), Failure> {
        let (conn, connector) = self.link.conn().await.map_err(Failure::Before)?;
        let mut tx = Tx::single(conn, &self.clock);
        run_set(set, &mut tx).await.map_err(of_statement)?;
        fault::batch("store.committed", set.len());
        connector.wrote(tx.writes, tx.written_bytes);
        self.hub.committed(tx.notices);
        Ok(())
    }
}

/// What the failure of a statement that commits by itself means.
fn of_statement(error: Error) -> Failure {
    match error {
        Error::Unavailable(error) if !is_turned_away(&error) => Failure::Unknown(error),
        error => Failure::Before(error),
    }
}

/// How many of the first of a batch are neighbours of one kind, and how to run them as one
/// statement; none: the first runs by itself.
fn set_of(batch: &[Box<dyn Work>]) -> (usize, Option<RunSet>) {
    let Some((kind, run_set)) = batch.first().and_then(|first| first.gathers()) else { return (1, None) };
    let is_same = |work: &dyn Work| work.gathers().is_some_and(|(other, _)| other == kind);
    match batch.iter().take_while(|work| is_same(work.as_ref())).count() {
        1 => (1, None),
        neighbours => (neighbours, Some(run_set)),
    }
}

/// After a commit of unknown outcome only what may be stored twice is repeated.
fn fail_unrepeatable(batch: &mut Vec<Box<dyn Work>>, error: &sqlx::Error) {
    for work in batch.extract_if(.., |work| !work.repeatable()) {
        let copy = sqlx::Error::Io(std::io::Error::other(error.to_string()));
        work.fail(Error::Unconfirmed(copy));
    }
}

/// The queue that all readers share. Whoever is free takes the next; the lock is held only
/// while waiting for work.
pub(super) type ReadQueue = Arc<Mutex<Queue>>;

/// One of several readers: each looks at one moment of the database and writes nothing.
pub(super) struct Reader {
    link: Link,
    clock: Clock,
}

impl Reader {
    pub(super) fn new(connector: Connector, conn: Conn, answer_within: Duration, clock: Clock) -> Self {
        Self { link: Link { connector, read_only: true, conn: Some(conn), answer_within }, clock }
    }

    /// Serves the shared queue until `closing`.
    pub(super) async fn run(mut self, queue: ReadQueue, closing: CancellationToken) {
        let mut next = Vec::new();
        while queue.lock().await.take(&mut next, ONE, &closing).await {
            for work in next.drain(..) {
                self.look(work).await;
            }
        }
        if let Some(conn) = self.link.conn.take() {
            conn.close().await;
        }
    }

    async fn look(&mut self, mut work: Box<dyn Work>) {
        let taken = Instant::now();
        let mut tries = 1;
        loop {
            match self.one(work.as_mut()).await {
                Ok(()) => return work.answer(Committed { taken, durable: Instant::now() }),
                Err(Error::Unavailable(_)) if tries < 2 => tries += 1,
                Err(error) => {
                    if !error.is_refusal() {
                        tracing::warn!(%error, cause = ?std::error::Error::source(&error), "a read failed");
                    }
                    return work.fail(error);
                }
            }
        }
    }

    async fn one(&mut self, work: &mut dyn Work) -> Result<()> {
        let outcome = self.transaction(work).await.map_err(Failure::Before);
        self.link.after(&outcome).await;
        outcome.map_err(|failure| match failure {
            Failure::Before(error) => error,
            Failure::Unknown(source) => Error::Unconfirmed(source),
        })
    }

    async fn transaction(&mut self, work: &mut dyn Work) -> Result<()> {
        let (conn, _) = self.link.conn().await?;
        if work.run_single(&mut Tx::single(conn, &self.clock)).await? {
            return Ok(());
        }
        let mut tx = Tx::begin_read(conn, &self.clock).await?;
        work.run(&mut tx).await?;
        tx.commit().await.map(drop).map_err(Error::from)
    }
}
