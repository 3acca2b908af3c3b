//! What a workflow is given: its durable operations, and what it may know about itself.

use std::{
    fmt,
    future::{Future, IntoFuture},
    panic::Location,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime},
};

use dormouse_proto::instance::{self, checkpoint, instance_event};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Failure, Result},
    ledger::{Admission, Ledger},
    operation::{self, Kind, Operation, RESULT, Stored, Value},
    step::{self, Asynchronous, Blocking, Plan, Step, Try, unreadable},
    wait::{Signal, Sleep},
};

/// Why this attempt was launched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WakeReason {
    /// The instance's first launch.
    Start,
    /// A sleep, a pause before a step's next try or a wait's limit is over.
    Due,
    /// A signal came that it waits for.
    Signal,
    /// It was resumed.
    Resume,
    /// It was cancelled.
    Cancel,
    /// It crashed, or its node was lost, or a launch failed.
    Retry,
    /// The launch before this one missed its deadline.
    LaunchMissed,
    /// A reason that this release does not know.
    Other(String),
}

impl WakeReason {
    fn parse(word: &str) -> Self {
        match word {
            "start" => Self::Start,
            "due" => Self::Due,
            "signal" => Self::Signal,
            "resume" => Self::Resume,
            "cancel" => Self::Cancel,
            "retry" => Self::Retry,
            "launch_missed" => Self::LaunchMissed,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A workflow's hold on its instance. Cheap to clone; may be moved to other tasks and threads.
///
/// Each durable operation (step, sleep, wait, checkpoint) is found by its name, and by name and key where
/// the name repeats; all kinds share one space of names. The same name and key twice in one launch is an
/// error that names both places. An operation that was dropped before it was over frees its name.
#[derive(Clone)]
pub struct Context {
    ledger: Arc<Ledger>,
}

impl Context {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger }
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// A step: runs `work`, saves its result, and returns it; in later launches only returns it.
    ///
    /// `work` may run again if the process or the machine ends before its result is acknowledged, and once
    /// for each try of the [policy](Step::retry). A failure that is final is saved like a result. The
    /// result travels as JSON, at most 4 MiB of it.
    ///
    /// ```
    /// # use dormouse_sdk::{Context, Result, Retry};
    /// # async fn fetch(_: &str) -> Result<String> { Ok("b".into()) }
    /// async fn copy(ctx: Context, url: String) -> Result<usize> {
    ///     let page = ctx.step("fetch", || fetch(&url)).retry(Retry::exponential()).await?;
    ///     Ok(page.len())
    /// }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let run = dormouse_sdk::testing::Run::new(copy).input("a").run().await;
    /// # assert_eq!(run.output::<usize>()?, 1); Ok::<_, dormouse_sdk::Failure>(()) })?;
    /// # Ok::<(), dormouse_sdk::Failure>(())
    /// ```
    #[track_caller]
    pub fn step<'a, N, F, Fut, T, E>(
        &self,
        name: N,
        mut work: F,
    ) -> Step<'a, Asynchronous<impl FnMut(Try) -> Fut + Send + use<'a, N, F, Fut, T, E>>, T>
    where
        N: Into<String>,
        F: FnMut() -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send,
        E: Into<Failure>,
        T: Serialize + DeserializeOwned + Send,
    {
        self.step_with(name, move |_| work())
    }

    /// A step whose function learns which [`Try`] it is: its number and its idempotency key.
    ///
    /// ```
    /// # use dormouse_sdk::{Context, Result};
    /// # async fn charge(_: u64, _key: String) -> Result<String> { Ok("paid".into()) }
    /// async fn pay(ctx: Context, cents: u64) -> Result<String> {
    ///     ctx.step_with("charge", |this| charge(cents, this.idempotency_key().to_owned())).await
    /// }
    /// ```
    #[track_caller]
    pub fn step_with<'a, F, Fut, T, E>(
        &self,
        name: impl Into<String>,
        work: F,
    ) -> Step<'a, Asynchronous<F>, T>
    where
        F: FnMut(Try) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send,
        E: Into<Failure>,
        T: Serialize + DeserializeOwned + Send,
    {
        let plan = Plan::new(name.into(), Location::caller());
        Step::new(Arc::clone(&self.ledger), plan, Asynchronous(work))
    }

    /// A step that occupies a thread of its own while it works: for what computes or blocks.
    ///
    /// It cannot be interrupted, so it has no time limit. [`Context::is_cancelled`] tells it when nobody
    /// needs it any more.
    #[track_caller]
    pub fn step_blocking<F, T, E>(&self, name: impl Into<String>, work: F) -> Step<'static, Blocking<F>, T>
    where
        F: FnMut() -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<Failure> + Send + 'static,
    {
        let plan = Plan::new(name.into(), Location::caller());
        Step::new(Arc::clone(&self.ledger), plan, Blocking(Some(work)))
    }

    /// Saves bytes of the author's own, or returns what was saved under this name before: at most 4 MiB,
    /// not looked into. Checkpoints never change; state that moves on is saved under a key that does.
    #[track_caller]
    pub fn checkpoint(&self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Checkpoint {
        let plan = Plan::new(name.into(), Location::caller());
        Checkpoint { ledger: Arc::clone(&self.ledger), plan, bytes: bytes.into() }
    }

    /// Reads what [`Context::checkpoint`] saved, in this launch or in an earlier one. May be asked often.
    #[track_caller]
    pub fn load(&self, name: impl Into<String>) -> Load {
        Load { ledger: Arc::clone(&self.ledger), plan: Plan::new(name.into(), Location::caller()) }
    }

    /// Sleeps, durably: the process may end meanwhile, and a restart of everything shortens or prolongs
    /// nothing. Counts from the moment when the sleep begins for the first time, by the database's clock.
    #[track_caller]
    pub fn sleep(&self, name: impl Into<String>, time: Duration) -> Sleep {
        Sleep::after(Arc::clone(&self.ledger), name.into(), Location::caller(), time)
    }

    /// Sleeps until a moment, durably. One that has passed does not sleep.
    #[track_caller]
    pub fn sleep_until(&self, name: impl Into<String>, moment: SystemTime) -> Sleep {
        Sleep::at(Arc::clone(&self.ledger), name.into(), Location::caller(), moment)
    }

    /// Waits for a signal of this name and takes it. Signals of one name are taken in the order in which they
    /// were sent, each by one wait; those sent before the wait began count too.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use dormouse_sdk::{Context, Result, days};
    /// async fn ask(ctx: Context, _: ()) -> Result<String> {
    ///     match ctx.signal::<bool>("approval").within(days(3)).await? {
    ///         Some(true) => Ok("approved".into()),
    ///         Some(false) => Ok("refused".into()),
    ///         None => Ok("nobody answered".into()),
    ///     }
    /// }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let run = dormouse_sdk::testing::Run::new(ask).signal_after(days(1), "approval", true).run().await;
    /// # assert_eq!(run.output::<String>()?, "approved"); Ok::<_, dormouse_sdk::Failure>(()) })?;
    /// # Ok::<(), dormouse_sdk::Failure>(())
    /// ```
    #[track_caller]
    pub fn signal<T: DeserializeOwned>(&self, name: impl Into<String>) -> Signal<T> {
        Signal::new(Arc::clone(&self.ledger), name.into(), Location::caller())
    }

    /// Appends an event to the instance's timeline, for people and for controllers that watch it. It is not
    /// found again: a relaunch that passes here appends another one. Inside a step it follows the step.
    pub async fn event(&self, name: impl Into<String>, payload: &impl Serialize) -> Result<()> {
        let name = name.into();
        operation::check_name("event", &name)?;
        let payload = Some(operation::encode(format_args!("event {name:?}"), payload)?);
        self.ledger.event(instance_event::Event::Custom(instance::CustomEvent { name, payload })).await
    }

    /// Shows how far the instance is. `total` 0 means unknown. Never waits: the newest value is sent a few
    /// times a second at most, and always before the instance ends or is suspended.
    pub fn progress(&self, done: u64, total: u64) {
        self.progress_with(done, total, "");
    }

    /// [`Context::progress`] with a few words.
    pub fn progress_with(&self, done: u64, total: u64, message: impl Into<String>) {
        self.ledger.progress(instance::Progress { done, total, message: operation::note(&message.into()) });
    }

    /// Feeds the watchdog that a start of the instance may have set. Never waits; may be called often.
    pub fn heartbeat(&self) {
        self.ledger.heartbeat();
    }

    /// Whether the instance was asked to cancel. For steps that run long: they are not interrupted.
    pub fn is_cancelled(&self) -> bool {
        self.ledger.is_cancelled()
    }

    /// Resolves when the instance is asked to cancel.
    pub async fn cancelled(&self) {
        loop {
            let mut changed = pin!(self.ledger.changed());
            changed.as_mut().enable();
            if self.ledger.is_cancelled() {
                return;
            }
            changed.await;
        }
    }

    /// The idempotency key of the step of this name and key (empty for none), as [`Try::idempotency_key`]
    /// gives it to the step itself.
    pub fn idempotency_key(&self, name: &str, key: impl fmt::Display) -> String {
        step::idempotency_key(&self.ledger.facts.instance_id, name, &key.to_string())
    }

    /// The instance's id.
    pub fn instance_id(&self) -> &str {
        &self.ledger.facts.instance_id
    }

    /// Which launch of the instance this is: 1, 2, 3 … Nothing durable should depend on it.
    pub fn attempt(&self) -> u32 {
        self.ledger.facts.attempt
    }

    /// The name under which this workflow was started.
    pub fn workflow(&self) -> &str {
        &self.ledger.facts.workflow
    }

    /// Why this attempt was launched. Nothing durable should depend on it.
    pub fn wake_reason(&self) -> WakeReason {
        WakeReason::parse(&self.ledger.facts.wake_reason)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.ledger.facts;
        write!(f, "Context({} attempt {} of {})", facts.instance_id, facts.attempt, facts.workflow)
    }
}

/// Bytes to be saved; made by [`Context::checkpoint`].
#[must_use = "a checkpoint is saved when it is awaited"]
pub struct Checkpoint {
    ledger: Arc<Ledger>,
    plan: Plan,
    bytes: Vec<u8>,
}

impl Checkpoint {
    /// Tells checkpoints of one name apart.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({:?}, {} bytes)", self.plan.name, self.bytes.len())
    }
}

impl IntoFuture for Checkpoint {
    type Output = Result<Vec<u8>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let usage = self.ledger.claim(self.plan.operation()?, self.plan.place).await?;
            let result = save(&self.ledger, usage.operation(), self.bytes).await;
            usage.done();
            result
        })
    }
}

async fn save(ledger: &Arc<Ledger>, operation: &Operation, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if let Some(stored) = ledger.take(operation, RESULT) {
        return saved(ledger, operation, stored).await;
    }
    let _busy = match ledger.admit(operation).await? {
        Admission::Go(busy) => busy,
        Admission::Stored(stored) => return saved(ledger, operation, stored).await,
    };
    let payload = operation::raw(format_args!("checkpoint {operation}"), bytes.clone())?;
    let value = checkpoint::Value::Payload(payload);
    match ledger.save(operation, RESULT, Kind::Checkpoint, value, String::new()).await?.stored {
        Some(stored) => saved(ledger, operation, stored).await,
        None => Ok(bytes),
    }
}

async fn saved(ledger: &Arc<Ledger>, operation: &Operation, stored: Stored) -> Result<Vec<u8>> {
    match (stored.kind, stored.value) {
        (_, Value::Cancelled) => Err(Failure::cancelled()),
        (Kind::Checkpoint, Value::Payload(payload)) => Ok(payload.data.into()),
        (kind, value) => {
            let reason = "another kind of operation has used this name";
            let stored = Stored { kind, value };
            ledger.fail_at_once(unreadable(operation, &stored, "a checkpoint of bytes", reason)).await
        }
    }
}

/// Bytes to be read; made by [`Context::load`].
#[derive(Debug)]
#[must_use = "a checkpoint is read when it is awaited"]
pub struct Load {
    ledger: Arc<Ledger>,
    plan: Plan,
}

impl Load {
    /// Tells checkpoints of one name apart.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }
}

impl IntoFuture for Load {
    type Output = Result<Option<Vec<u8>>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let operation = self.plan.operation()?;
            let stored = match self.ledger.peek(&operation, RESULT) {
                Some(stored) => Some(stored),
                // Saved in this launch, or not at all: only core has it.
                None => self.ledger.find(&operation).await?,
            };
            match stored {
                // Where the cancellation was felt, nothing was saved.
                None | Some(Stored { value: Value::Cancelled, .. }) => Ok(None),
                Some(stored) => saved(&self.ledger, &operation, stored).await.map(Some),
            }
        })
    }
}
