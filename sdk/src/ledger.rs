//! What this launch knows of its instance, and who may do what now.
//!
//! The ledger stands between the workflow, whose operations it admits and whose requests it passes
//! on, and a *driver*, which answers them: the connection to core or the author's test kit. It holds
//! what is stored, which names were used, which waits are open, what runs, and the inbox.
//!
//! It never talks to anybody, never ends the process and never waits for time by itself. It keeps
//! invariants 3 and 5 on this side: what is stored is what counts, and each signal goes to one wait.

mod inbox;
mod keeper;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    panic::Location,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_proto::instance::{
    self, InstanceEvent, checkpoint, client_frame, instance_event, server_frame, suspend_outcome,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use self::inbox::{Cancelled, Inbox};
pub(crate) use self::keeper::keep;
use crate::{
    error::{Failure, Result, code},
    fault::{self, Point},
    operation::{Kind, Operation, RESULT, Stored, Value},
};

/// Requests that may wait for the driver. Further ones wait with their senders.
const REQUESTS: usize = 64;

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

/// What does not change during a launch.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) instance_id: String,
    pub(crate) attempt: u32,
    pub(crate) workflow: String,
    pub(crate) wake_reason: String,
    pub(crate) input: instance::Payload,
}

/// Whether operations may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// A suspension is under way.
    Frozen,
    /// The ending is under way, or the process is about to end.
    Closing,
    /// The driver is gone. Only in tests: a real process ends with it.
    Gone,
}

/// How the instance ends.
#[derive(Debug)]
pub(crate) enum Ending {
    Completed(instance::Payload),
    Failed(Failure),
}

/// The database's clock, as far as this process can know it: never ahead of it, because the sample
/// was taken before the answer that brought it arrived.
#[derive(Clone, Copy, Debug)]
struct Clock {
    sample: i64,
    at: Instant,
}

impl Clock {
    fn learn(&mut self, sample: i64) {
        if sample > 0 {
            *self = Self { sample, at: Instant::now() };
        }
    }

    fn now(&self) -> i64 {
        let elapsed = i64::try_from(self.at.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.sample.saturating_add(elapsed)
    }

    /// How long until `due_at`; zero if it passed.
    fn until(&self, due_at: i64) -> Duration {
        Duration::from_micros(u64::try_from(due_at.saturating_sub(self.now())).unwrap_or(0))
    }
}

/// A wait that the workflow stands at.
#[derive(Debug)]
struct OpenWait {
    operation: Operation,
    due_at: Option<i64>,
    signal: Option<Box<str>>,
}

#[derive(Debug)]
struct State {
    stored: HashMap<Operation, Vec<(u32, Stored)>>,
    used: HashMap<Operation, &'static Location<'static>>,
    clock: Clock,
    inbox: Inbox,
    inbox_at: Instant,
    phase: Phase,
    waits: BTreeMap<u64, OpenWait>,
    next_wait: u64,
    /// Steps that run, and other operations that are not waits.
    busy: usize,
    /// Operations that a pause holds back.
    held: usize,
    /// Requests without an answer.
    in_flight: usize,
    /// A request to feel the cancellation is under way.
    feeling: bool,
    /// The workflow's future is being polled right now.
    polling: bool,
    /// When the workflow last did something.
    active_at: Instant,
    /// Not suspended again before.
    suspend_after: Option<Instant>,
    progress: Option<instance::Progress>,
    progress_at: Option<Instant>,
    ending: Option<Ending>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) facts: Facts,
    idle: Duration,
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
    /// From the first registration. `idle` is how long a workflow does nothing before it is suspended.
    pub(crate) fn new(
        registered: instance::Registered,
        idle: Duration,
    ) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (requests, driver) = mpsc::channel(REQUESTS);
        let now = Instant::now();
        let mut state = State {
            stored: HashMap::new(),
            used: HashMap::new(),
            clock: Clock { sample: registered.now, at: now },
            inbox: Inbox::default(),
            inbox_at: now,
            phase: Phase::Open,
            waits: BTreeMap::new(),
            next_wait: 0,
            busy: 0,
            held: 0,
            in_flight: 0,
            feeling: false,
            polling: false,
            active_at: now,
            suspend_after: None,
            progress: None,
            progress_at: None,
            ending: None,
        };
        state.inbox.merge(registered.inbox.unwrap_or_default());
        state.load(registered.checkpoints);
        let facts = Facts {
            instance_id: registered.instance_id,
            attempt: registered.attempt,
            workflow: registered.workflow,
            wake_reason: registered.wake_reason,
            input: registered.input.unwrap_or_default(),
        };
        let state = Mutex::new(state);
        let ledger = Self { facts, idle, requests, state, changed: Notify::new(), watch: Notify::new() };
        (Arc::new(ledger), driver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; a poisoned one would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // For drivers.

    /// A further page of what was stored before this launch.
    pub(crate) fn load(&self, checkpoints: Vec<instance::StoredCheckpoint>) {
        self.lock().load(checkpoints);
    }

    /// The connection is back. What was stored is known already.
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

    /// Claims a name for this launch.
    pub(crate) fn claim(
        self: &Arc<Self>,
        operation: Operation,
        place: &'static Location<'static>,
    ) -> Result<Use> {
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
        let mut state = self.lock();
        let slots = state.stored.get_mut(operation)?;
        let at = slots.iter().position(|(stored, _)| *stored == slot)?;
        let (_, stored) = slots.swap_remove(at);
        if slots.is_empty() {
            state.stored.remove(operation);
        }
        Some(stored)
    }

    /// What is stored there, left where it is.
    pub(crate) fn peek(&self, operation: &Operation, slot: u32) -> Option<Stored> {
        let state = self.lock();
        let (_, stored) = state.stored.get(operation)?.iter().find(|(stored, _)| *stored == slot)?;
        Some(stored.clone())
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
        let place = self.place().await;
        let offered = offered.map(Offer::ask);
        let answer = self.send(&mut self.lock(), place, operation, offered);
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
        let event = Some(instance_event::Event::Heartbeat(instance::Heartbeat {}));
        let operation = client_frame::Operation::Event(InstanceEvent { event });
        // A full queue shows that it works, too.
        let _ = self.requests.try_send(Request { operation, offered: None, reply: None });
    }

    /// Keeps the newest progress; the keeper sends it at its own pace.
    pub(crate) fn progress(&self, progress: instance::Progress) {
        let first = self.lock().progress.replace(progress).is_none();
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
        let decided =
            state.stored.get(operation).is_some_and(|slots| slots.iter().any(|(slot, _)| *slot == RESULT));
        decided || state.inbox.has(&operation.name)
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Go,
    Feel,
    /// A pause holds it back.
    Held,
    Wait,
}

enum Absorbed {
    Reply(Reply),
    Fate(Fate),
}

impl State {
    fn load(&mut self, checkpoints: Vec<instance::StoredCheckpoint>) {
        for (name, stored) in checkpoints.into_iter().filter_map(Stored::of_wire) {
            self.store(name, stored);
        }
    }

    fn store(&mut self, name: instance::OperationName, stored: Stored) {
        let operation = Operation { name: name.name.into(), key: name.key.into() };
        let slots = self.stored.entry(operation).or_default();
        // An answer that was repeated says the same again: checkpoints do not change.
        if !slots.iter().any(|(slot, _)| *slot == name.slot) {
            slots.push((name.slot, stored));
        }
    }

    fn news(&mut self, inbox: Option<instance::Inbox>) {
        if let Some(inbox) = inbox {
            self.inbox.merge(inbox);
            self.inbox_at = Instant::now();
        }
    }

    fn verdict(&self) -> Verdict {
        match self.phase {
            Phase::Frozen | Phase::Closing | Phase::Gone => Verdict::Wait,
            Phase::Open if self.ending.is_some() || self.feeling => Verdict::Wait,
            Phase::Open if self.inbox.cancelled == Cancelled::Asked => Verdict::Feel,
            Phase::Open if self.inbox.paused => Verdict::Held,
            Phase::Open => Verdict::Go,
        }
    }

    /// The verdict, and its consequence in the same breath: nothing is frozen in between.
    fn admit(&mut self) -> Verdict {
        let verdict = self.verdict();
        if verdict == Verdict::Go {
            self.busy += 1;
        }
        verdict
    }

    /// Whether the keeper has something to decide.
    fn is_watched(&self) -> bool {
        !self.waits.is_empty() || self.held > 0 || self.ending.is_some()
    }

    /// Core refused the request: what it had reserved is free again.
    fn refused(&mut self, request: &Request) {
        if let Some(number) = request.offered {
            self.inbox.withdraw(number);
        }
        match &request.operation {
            client_frame::Operation::Checkpoint(checkpoint) if is_feeling(checkpoint) => self.feeling = false,
            client_frame::Operation::Suspend(_) => self.thaw(),
            _ => {}
        }
    }

    fn thaw(&mut self) {
        if self.phase == Phase::Frozen {
            self.phase = Phase::Open;
        }
        self.active_at = Instant::now();
    }

    fn absorb(&mut self, request: &Request, outcome: server_frame::Outcome) -> Result<Absorbed> {
        use server_frame::Outcome;
        let reply = match (&request.operation, outcome) {
            (client_frame::Operation::Checkpoint(asked), Outcome::Checkpoint(answer)) => {
                self.checkpoint_stored(asked, request.offered, answer)?
            }
            (client_frame::Operation::GetCheckpoint(_), Outcome::Found(answer)) => {
                Reply::Found(answer.stored.and_then(Stored::of_wire).map(|(_, stored)| stored))
            }
            (client_frame::Operation::Suspend(_), Outcome::Suspend(answer)) => {
                self.clock.learn(answer.now);
                if answer.kind == suspend_outcome::Kind::Suspended as i32 {
                    fault::pass(Point::AfterSuspend);
                    return Ok(Absorbed::Fate(Fate::Suspended));
                }
                self.news(answer.inbox);
                self.thaw();
                Reply::Done
            }
            (client_frame::Operation::Event(asked), Outcome::Event(_)) => match asked.event {
                Some(instance_event::Event::Completed(_) | instance_event::Event::Failed(_)) => {
                    fault::pass(Point::AfterComplete);
                    return Ok(Absorbed::Fate(Fate::Ended));
                }
                _ => Reply::Done,
            },
            (client_frame::Operation::PollSignals(_), Outcome::Inbox(inbox)) => {
                self.news(Some(inbox));
                Reply::Done
            }
            (_, outcome) => {
                self.refused(request);
                let message = format!("core answered with something else: {outcome:?}");
                return Err(Failure::new(dormouse_proto::code::Code::Internal.as_str(), message));
            }
        };
        Ok(Absorbed::Reply(reply))
    }

    fn checkpoint_stored(
        &mut self,
        asked: &instance::Checkpoint,
        offered: Option<u64>,
        answer: instance::CheckpointStored,
    ) -> Result<Reply> {
        self.clock.learn(answer.now);
        if let Some(number) = offered {
            self.inbox.taken(number);
        }
        let feeling = is_feeling(asked);
        if feeling {
            self.feeling = false;
        }
        let Some(stored) = answer.stored else {
            return Ok(Reply::Saved);
        };
        fault::pass(Point::AfterCheckpoint);
        if !answer.existed && matches!(asked.value, Some(checkpoint::Value::Payload(_))) {
            // Whoever sent these bytes has them.
            return Ok(Reply::Saved);
        }
        let Some((name, stored)) = Stored::of_wire(stored) else {
            let message = "core answered with a checkpoint that this release cannot read";
            return Err(Failure::new(dormouse_proto::code::Code::Internal.as_str(), message));
        };
        if feeling && matches!(stored.value, Value::Cancelled) {
            self.inbox.cancelled = Cancelled::Felt;
        }
        self.store(name, stored);
        Ok(Reply::Saved)
    }
}

/// Whether the answer changes nothing for other operations.
fn is_ordinary(request: &Request) -> bool {
    match &request.operation {
        client_frame::Operation::Checkpoint(checkpoint) => !matches!(
            checkpoint.value,
            Some(checkpoint::Value::TakeSignal(_) | checkpoint::Value::FeelCancel(_))
        ),
        client_frame::Operation::Event(_) | client_frame::Operation::GetCheckpoint(_) => true,
        _ => false,
    }
}

fn is_feeling(checkpoint: &instance::Checkpoint) -> bool {
    matches!(checkpoint.value, Some(checkpoint::Value::FeelCancel(_)))
}

/// A claimed name. Dropped before the operation is over, the name is free again: a wait inside a
/// `select!` that lost may be asked for again.
#[derive(Debug)]
pub(crate) struct Use {
    ledger: Arc<Ledger>,
    operation: Operation,
    done: bool,
}

impl Use {
    pub(crate) fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The operation is over: its name stays taken, what was stored for it is not needed any more.
    pub(crate) fn done(mut self) {
        self.done = true;
        self.ledger.lock().stored.remove(&self.operation);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.done {
            self.ledger.lock().used.remove(&self.operation);
        }
    }
}

/// Something runs that must not be cut off.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Ledger>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        state.active_at = Instant::now();
        let keeper = state.busy == 0 && state.is_watched();
        drop(state);
        if keeper {
            self.0.watch.notify_one();
        }
    }
}

/// An operation that a pause holds back.
#[derive(Debug)]
struct Held(Arc<Ledger>);

impl Held {
    fn begin(ledger: &Arc<Ledger>) -> Self {
        ledger.lock().held += 1;
        ledger.watch.notify_one();
        Self(Arc::clone(ledger))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
    }
}

/// An open wait.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    ledger: Arc<Ledger>,
    id: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.waits.remove(&self.id);
        state.active_at = Instant::now();
    }
}

/// An unread signal that is kept for one wait until it asks for it.
#[derive(Debug)]
pub(crate) struct Offer {
    ledger: Arc<Ledger>,
    number: u64,
    asked: bool,
}

impl Offer {
    /// The wait asks core; from here on the answer decides about the signal.
    fn ask(mut self) -> u64 {
        self.asked = true;
        self.number
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if !self.asked {
            self.ledger.lock().inbox.withdraw(self.number);
            self.ledger.changed.notify_waiters();
        }
    }
}
