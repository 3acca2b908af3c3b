//! What this launch knows of its instance, and who may do what now.
//!
//! The ledger stands between the workflow, whose operations it admits and whose requests it passes
//! on, and a *driver*, which answers them: the connection to core or the author's test kit. It holds
//! what is stored, which names were used, which waits are open, what runs, and the inbox.
//!
//! It never talks to anybody, never ends the process and never waits for time by itself. It keeps
//! invariants 3 and 5 on this side: what is stored is what counts, and each signal goes to one wait.

mod guard;
mod inbox;
mod keeper;
mod shelf;
mod state;

use std::{
    collections::hash_map::Entry,
    panic::Location,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_proto::instance::{self, InstanceEvent, checkpoint, client_frame, instance_event, server_frame};
use prost::bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use self::{
    guard::Held,
    inbox::Cancelled,
    state::{Absorbed, OpenWait, Phase, State, Verdict, is_ordinary},
};
pub(crate) use self::{
    guard::{Busy, Offer, Use, WaitGuard},
    keeper::keep,
};
use crate::{
    error::{Failure, Result, code},
    fault::{self, Point},
    operation::{Kind, Operation, RESULT, Stored},
};

/// Requests that may wait for the driver. Further ones wait with their senders.
const REQUESTS: usize = 64;

/// Heartbeats are passed on at most this often: core flushes them much more seldom.
const HEARTBEAT_PACE: Duration = Duration::from_secs(1);

/// How the process's part in the instance ended. The driver says it, whoever runs the process obeys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The ending is recorded.
    Ended,
    /// The suspension is recorded.
    Suspended,
    /// A newer attempt or session writes now.
    Fenced,
    /// Core does not know this attempt, or refuses to speak with this release.
    Refused(String),
}

/// What a driver gets to answer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: client_frame::Operation,
    /// The unread signal that was promised to the wait that asks.
    offered: Option<u64>,
    reply: Option<oneshot::Sender<Result<Reply>>>,
}

impl Request {
    /// Whether anybody is to be answered; a heartbeat is not.
    pub(crate) fn is_answered(&self) -> bool {
        self.reply.is_some()
    }
}

/// An answer, as an operation sees it. What is stored lies in the ledger.
#[derive(Debug)]
enum Reply {
    Done,
    /// What is stored lies in the ledger, unless it is exactly what was sent.
    Saved,
    Found(Option<Stored>),
}

/// The answer to a save.
#[derive(Debug)]
pub(crate) struct Saved {
    /// What is stored; `None` if it is exactly the bytes that were sent, or if no signal was there to be taken.
    pub(crate) stored: Option<Stored>,
}

/// How patient the keeper is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A workflow that does nothing for so long is suspended.
    pub(crate) idle: Duration,
    /// An inbox without news for so long is asked for: its pushes may have been lost.
    pub(crate) poll: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Duration::from_secs(2), poll: Duration::from_secs(30) }
    }
}

/// What does not change during a launch.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) instance_id: String,
    pub(crate) attempt: u32,
    pub(crate) workflow: String,
    pub(crate) wake_reason: String,
    pub(crate) input: instance::Payload,
}

/// How the instance ends.
#[derive(Debug)]
pub(crate) enum Ending {
    Completed(instance::Payload),
    Failed(Failure),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) facts: Facts,
    pace: Pace,
    requests: mpsc::Sender<Request>,
    state: Mutex<State>,
    /// Operations that wait look again.
    changed: Notify,
    /// The keeper looks again.
    watch: Notify,
}

/// What an operation may do.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It may run; nothing is suspended while it holds this.
    Go(Busy),
    /// Its result is there: the mark of the cancellation that it just felt, or what core had.
    Stored(Stored),
}

impl Ledger {
    /// From the first registration; what is stored is not in it yet, see [`Ledger::load`].
    pub(crate) fn new(registered: instance::Registered, pace: Pace) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (requests, driver) = mpsc::channel(REQUESTS);
        let mut state = State::new(registered.now);
        state.inbox.merge(registered.inbox.unwrap_or_default());
        let facts = Facts {
            instance_id: registered.instance_id,
            attempt: registered.attempt,
            workflow: registered.workflow,
            wake_reason: registered.wake_reason,
            input: registered.input.unwrap_or_default(),
        };
        let state = Mutex::new(state);
        let ledger = Self { facts, pace, requests, state, changed: Notify::new(), watch: Notify::new() };
        (Arc::new(ledger), driver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; a poisoned one would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // For drivers.

    /// A page of what was stored before this launch; `next_cursor` is 0 in the last.
    pub(crate) fn load(&self, page: Vec<Bytes>, next_cursor: u64) -> Result<(), prost::DecodeError> {
        let mut state = self.lock();
        let loaded = state.shelf.put(page, next_cursor == 0);
        self.look_again(state);
        loaded
    }

    /// Whether all of that is here.
    pub(crate) fn is_loaded(&self) -> bool {
        self.lock().shelf.is_complete()
    }

    /// The connection is back. What was stored is loaded as before.
    pub(crate) fn registered_again(&self, registered: instance::Registered) {
        let mut state = self.lock();
        state.clock.learn(registered.now);
        state.news(registered.inbox);
        self.look_again(state);
    }

    /// A push.
    pub(crate) fn pushed(&self, outcome: server_frame::Outcome) -> Option<Fate> {
        match outcome {
            server_frame::Outcome::Inbox(inbox) => {
                let mut state = self.lock();
                state.news(Some(inbox));
                self.look_again(state);
                None
            }
            server_frame::Outcome::Error(error) if is_fenced(&error) => Some(Fate::Fenced),
            // A newer release may push what this one does not know.
            _ => None,
        }
    }

    /// The answer to a request. Whoever asked may be gone: what it says counts all the same.
    pub(crate) fn answered(&self, request: Request, outcome: server_frame::Outcome) -> Option<Fate> {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        let answer = match outcome {
            server_frame::Outcome::Error(error) if is_fenced(&error) => return Some(Fate::Fenced),
            server_frame::Outcome::Error(error) => {
                state.refused(&request);
                Err(Failure::of_wire(error))
            }
            outcome => match state.absorb(&request, outcome) {
                Ok(Absorbed::Reply(reply)) => Ok(reply),
                Ok(Absorbed::Fate(fate)) => return Some(fate),
                Err(failure) => Err(failure),
            },
        };
        if is_ordinary(&request) {
            // Concerns nobody but who asked, and perhaps the keeper: others would look in vain.
            let keeper = state.is_watched();
            drop(state);
            if keeper {
                self.watch.notify_one();
            }
        } else {
            self.look_again(state);
        }
        if let Some(reply) = request.reply {
            // Whoever asked may have been dropped; the ledger knows.
            let _ = reply.send(answer);
        }
        None
    }

    /// The driver is gone; nothing begins or ends any more.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.phase = Phase::Gone;
        self.look_again(state);
    }

    fn look_again(&self, state: MutexGuard<'_, State>) {
        let keeper = state.is_watched();
        drop(state);
        self.changed.notify_waiters();
        if keeper {
            self.watch.notify_one();
        }
    }

    // For operations.

    /// Claims a name for this launch, and waits until it is known what is stored for it.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        operation: Operation,
        place: &'static Location<'static>,
    ) -> Result<Use> {
        let usage = self.claim_name(operation, place)?;
        while !self.is_loaded() {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_loaded() || self.lock().has_result(&usage.operation) {
                break;
            }
            changed.await;
        }
        Ok(usage)
    }

    fn claim_name(self: &Arc<Self>, operation: Operation, place: &'static Location<'static>) -> Result<Use> {
        match self.lock().used.entry(operation.clone()) {
            Entry::Occupied(used) => {
                let first = used.get();
                let message = format!(
                    "{operation} is used twice in this launch, at {first} and at {place}; give each a name or a \
                     key of its own"
                );
                Err(Failure::new(code::NAME_USED_TWICE, message).permanent())
            }
            Entry::Vacant(free) => {
                free.insert(place);
                Ok(Use { ledger: Arc::clone(self), operation, done: false })
            }
        }
    }

    /// Takes what is stored there; it is read once.
    pub(crate) fn take(&self, operation: &Operation, slot: u32) -> Option<Stored> {
        self.lock().take(operation, slot)
    }

    /// What was stored there before this launch, if it is here; left where it is.
    pub(crate) fn peek(&self, operation: &Operation, slot: u32) -> Option<Stored> {
        self.lock().shelf.look(operation, slot)
    }

    /// Waits until `operation` may run: not while the instance is paused, frozen or ending. The first one
    /// that finds a cancellation asked feels it instead.
    pub(crate) async fn admit(self: &Arc<Self>, operation: &Operation) -> Result<Admission> {
        let mut held = None;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let verdict = self.lock().admit();
            match verdict {
                Verdict::Go => return Ok(Admission::Go(Busy(Arc::clone(self)))),
                Verdict::Feel => {
                    if let Some(stored) = self.feel(operation).await? {
                        return Ok(Admission::Stored(stored));
                    }
                    continue;
                }
                Verdict::Held => held = held.or_else(|| Some(Held::begin(self))),
                Verdict::Wait => {}
            }
            changed.await;
        }
    }

    /// Feels the cancellation at `operation`; `None` if another operation was faster.
    async fn feel(&self, operation: &Operation) -> Result<Option<Stored>> {
        let value = checkpoint::Value::FeelCancel(true);
        let request = save_request(operation, RESULT, Kind::Cancelled, value, String::new());
        // First a place in the queue, then the decision: a future that is dropped here has decided nothing.
        let place = self.place().await;
        let answer = {
            let mut state = self.lock();
            if state.verdict() != Verdict::Feel {
                return Ok(None);
            }
            state.feeling = true;
            self.send(&mut state, place, request, None)
        };
        match answer.await {
            Ok(reply) => reply.map(|_| self.take(operation, RESULT)),
            Err(_) => std::future::pending().await,
        }
    }

    /// Saves a checkpoint, or gets what is stored already.
    pub(crate) async fn save(
        &self,
        operation: &Operation,
        slot: u32,
        kind: Kind,
        value: checkpoint::Value,
        note: String,
    ) -> Result<Saved> {
        self.save_offered(operation, slot, save_request(operation, slot, kind, value, note), None).await
    }

    /// Takes a signal as the wait's result: the one that was offered to it, or any that core knows of.
    /// `None`: there is none.
    pub(crate) async fn take_signal(
        &self,
        operation: &Operation,
        offered: Option<Offer>,
    ) -> Result<Option<Stored>> {
        let value = checkpoint::Value::TakeSignal(operation.name.to_string());
        let request = save_request(operation, RESULT, Kind::Signal, value, String::new());
        Ok(self.save_offered(operation, RESULT, request, offered).await?.stored)
    }

    async fn save_offered(
        &self,
        operation: &Operation,
        slot: u32,
        request: client_frame::Operation,
        offered: Option<Offer>,
    ) -> Result<Saved> {
        fault::pass(Point::BeforeCheckpoint);
        match self.call(request, offered).await? {
            Reply::Saved => Ok(Saved { stored: self.take(operation, slot) }),
            Reply::Done | Reply::Found(_) => Ok(Saved { stored: None }),
        }
    }

    /// Reads a result from core.
    pub(crate) async fn find(&self, operation: &Operation) -> Result<Option<Stored>> {
        let operation = Some(operation.slot(RESULT));
        let request = client_frame::Operation::GetCheckpoint(instance::GetCheckpoint { operation });
        match self.call(request, None).await? {
            Reply::Found(found) => Ok(found),
            Reply::Done | Reply::Saved => Ok(None),
        }
    }

    /// Appends an event to the timeline.
    pub(crate) async fn event(&self, event: instance_event::Event) -> Result<()> {
        self.call(client_frame::Operation::Event(InstanceEvent { event: Some(event) }), None).await.map(drop)
    }

    async fn call(&self, operation: client_frame::Operation, offered: Option<Offer>) -> Result<Reply> {
        let answer = loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let place = self.place().await;
            {
                let mut state = self.lock();
                if state.may_send(&operation) {
                    let offered = offered.map(Offer::ask);
                    break self.send(&mut state, place, operation, offered);
                }
            }
            drop(place);
            changed.await;
        };
        match answer.await {
            Ok(reply) => reply,
            // The driver ended, and the process is about to.
            Err(_) => std::future::pending().await,
        }
    }

    async fn place(&self) -> mpsc::Permit<'_, Request> {
        match self.requests.reserve().await {
            Ok(place) => place,
            Err(_) => std::future::pending().await,
        }
    }

    /// From here on the request counts, also if its future is dropped.
    #[expect(clippy::unused_self, reason = "the place in the queue is the ledger's own")]
    fn send(
        &self,
        state: &mut State,
        place: mpsc::Permit<'_, Request>,
        operation: client_frame::Operation,
        offered: Option<u64>,
    ) -> oneshot::Receiver<Result<Reply>> {
        let (reply, answer) = oneshot::channel();
        state.in_flight += 1;
        place.send(Request { operation, offered, reply: Some(reply) });
        answer
    }

    /// Tells core that the process works. Neither waited for nor repeated.
    pub(crate) fn heartbeat(&self) {
        let now = Instant::now();
        {
            let mut state = self.lock();
            if state.heartbeat_at.is_some_and(|last| now < last + HEARTBEAT_PACE) {
                return;
            }
            state.heartbeat_at = Some(now);
        }
        let event = Some(instance_event::Event::Heartbeat(instance::Heartbeat {}));
        let operation = client_frame::Operation::Event(InstanceEvent { event });
        // A full queue shows that it works, too.
        let _ = self.requests.try_send(Request { operation, offered: None, reply: None });
    }

    /// Keeps the newest progress; the keeper sends it at its own pace.
    pub(crate) fn progress(&self, progress: instance::Progress) {
        let first = {
            let mut state = self.lock();
            // What another thread still says then could hold up the ending for ever.
            state.ending.is_none()
                && state.phase != Phase::Closing
                && state.progress.replace(progress).is_none()
        };
        if first {
            self.watch.notify_one();
        }
    }

    // For waits.

    pub(crate) fn open_wait(
        self: &Arc<Self>,
        operation: &Operation,
        due_at: Option<i64>,
        signal: Option<&str>,
    ) -> WaitGuard {
        let mut state = self.lock();
        let id = state.next_wait;
        state.next_wait += 1;
        let wait = OpenWait { operation: operation.clone(), due_at, signal: signal.map(Into::into) };
        state.waits.insert(id, wait);
        state.active_at = Instant::now();
        drop(state);
        self.watch.notify_one();
        WaitGuard { ledger: Arc::clone(self), id }
    }

    /// How long until `due_at`, by the database's clock; zero if it passed.
    pub(crate) fn until(&self, due_at: i64) -> Duration {
        self.lock().clock.until(due_at)
    }

    /// The oldest unread signal of this name that no other wait was offered.
    pub(crate) fn offer(self: &Arc<Self>, name: &str) -> Option<Offer> {
        let number = self.lock().inbox.offer(name)?;
        Some(Offer { ledger: Arc::clone(self), number, asked: false })
    }

    /// Resolves when an operation that waits should look again. Made before looking.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.lock().inbox.cancelled != Cancelled::No
    }

    /// Whether an operation that waits should stop waiting to feel the cancellation.
    pub(crate) fn is_cancel_asked(&self) -> bool {
        let state = self.lock();
        state.inbox.cancelled == Cancelled::Asked && !state.feeling
    }

    /// Whether a wait for a signal should stop waiting: one is unread, or the wait was decided by an earlier
    /// ask that was dropped before its answer came.
    pub(crate) fn is_signalled(&self, operation: &Operation) -> bool {
        let state = self.lock();
        state.has_result(operation) || state.inbox.has(&operation.name)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().phase == Phase::Gone
    }

    // For whoever runs the workflow.

    /// The workflow's future begins or ends a poll.
    pub(crate) fn polling(&self, polling: bool) {
        let mut state = self.lock();
        state.polling = polling;
        state.active_at = Instant::now();
        let pausing = !polling && state.inbox.paused && state.is_watched();
        drop(state);
        if pausing {
            self.watch.notify_one();
        }
    }

    /// Ends the instance: nothing new begins, what is under way is answered, then the ending is sent. The
    /// first ending counts.
    pub(crate) fn end(&self, ending: Ending) {
        let mut state = self.lock();
        if state.ending.is_none() && state.phase != Phase::Closing {
            state.ending = Some(ending);
        }
        drop(state);
        self.watch.notify_one();
    }

    /// Fails the instance, whatever the workflow would make of an error: its code does not fit to what
    /// is stored, so nothing that it did now would be right.
    pub(crate) async fn fail_at_once<T>(&self, failure: Failure) -> T {
        self.end(Ending::Failed(failure));
        std::future::pending().await
    }
}

fn is_fenced(error: &instance::Error) -> bool {
    error.code == dormouse_proto::code::Code::Fenced.as_str()
}

fn save_request(
    operation: &Operation,
    slot: u32,
    kind: Kind,
    value: checkpoint::Value,
    note: String,
) -> client_frame::Operation {
    client_frame::Operation::Checkpoint(instance::Checkpoint {
        operation: Some(operation.slot(slot)),
        kind: kind.as_str().to_owned(),
        note,
        value: Some(value),
    })
}
