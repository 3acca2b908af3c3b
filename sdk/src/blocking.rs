//! The same for synchronous programs: operations are method calls that block.
//!
//! A workflow is a `fn(blocking::Context, Input) -> Result<Output>`; [`main!`](crate::main) takes it like an
//! asynchronous one. Steps are closures that run on the thread that calls. The connection's thread
//! suspends the process while the workflow stands at a wait, and ends it when the workflow returned, also
//! while other threads run. A context may be cloned into other threads.
//!
//! ```
//! use dormouse_sdk::{Result, blocking::Context};
//!
//! fn count(ctx: Context, words: Vec<String>) -> Result<usize> {
//!     let mut total = 0;
//!     for (i, word) in words.iter().enumerate() {
//!         total += ctx.step("count", || Ok::<_, std::io::Error>(word.len())).key(i).run()?;
//!     }
//!     Ok(total)
//! }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! # let run = dormouse_sdk::testing::Run::new(count).input(["ab", "c"]).run().await;
//! # assert_eq!(run.output::<usize>()?, 3); Ok::<_, dormouse_sdk::Failure>(()) })?;
//! # Ok::<(), dormouse_sdk::Failure>(())
//! ```

use std::{
    fmt,
    future::{Future, IntoFuture},
    panic::Location,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    context::{self, WakeReason},
    error::{Failure, Result},
    ledger::Ledger,
    retry::Retry,
    step::{Plan, Tries, Try, Turn},
    wait,
};

/// What unwinds a synchronous workflow when a test's simulated crash or suspension cuts it off.
pub(crate) struct CutOff;

/// A synchronous workflow's hold on its instance; see [`crate::Context`] for what each operation means.
#[derive(Clone)]
pub struct Context {
    inner: context::Context,
    timers: tokio::runtime::Handle,
}

/// Waits on the calling thread. Must not be called from asynchronous code.
fn block_on<F: Future>(timers: &tokio::runtime::Handle, ledger: &Ledger, future: F) -> F::Output {
    let done = timers.block_on(async {
        let mut future = pin!(future);
        loop {
            let mut changed = pin!(ledger.changed());
            changed.as_mut().enable();
            // Only in tests; a real process ends instead.
            if ledger.is_gone() {
                return None;
            }
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                () = changed => {}
            }
        }
    });
    // Not a panic: no message, and what the workflow holds is dropped.
    done.unwrap_or_else(|| std::panic::resume_unwind(Box::new(CutOff)))
}

impl Context {
    pub(crate) fn new(inner: context::Context, timers: tokio::runtime::Handle) -> Self {
        Self { inner, timers }
    }

    pub(crate) fn inner(&self) -> &context::Context {
        &self.inner
    }

    fn wait<F: IntoFuture>(&self, operation: F) -> F::Output {
        block_on(&self.timers, self.inner.ledger(), operation.into_future())
    }

    /// A step, see [`crate::Context::step`]. `work` runs on this thread, outside of any runtime.
    #[track_caller]
    pub fn step<F, T, E>(&self, name: impl Into<String>, mut work: F) -> Step<impl FnMut(Try) -> Result<T, E>>
    where
        F: FnMut() -> Result<T, E>,
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
    {
        self.step_with(name, move |_| work())
    }

    /// A step whose function learns which [`Try`] it is.
    #[track_caller]
    pub fn step_with<F, T, E>(&self, name: impl Into<String>, work: F) -> Step<F>
    where
        F: FnMut(Try) -> Result<T, E>,
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
    {
        Step { ctx: self.clone(), plan: Plan::new(name.into(), Location::caller()), work }
    }

    /// Saves bytes, or returns what was saved before, see [`crate::Context::checkpoint`]. `key` is empty
    /// when the name does not repeat.
    #[track_caller]
    pub fn checkpoint(
        &self,
        name: impl Into<String>,
        key: impl fmt::Display,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        self.wait(self.inner.checkpoint(name, bytes).key(key))
    }

    /// Reads bytes, see [`crate::Context::load`].
    #[track_caller]
    pub fn load(&self, name: impl Into<String>, key: impl fmt::Display) -> Result<Option<Vec<u8>>> {
        self.wait(self.inner.load(name).key(key))
    }

    /// Sleeps, durably, see [`crate::Context::sleep`].
    #[track_caller]
    pub fn sleep(&self, name: impl Into<String>, time: Duration) -> Sleep {
        Sleep { ctx: self.clone(), sleep: self.inner.sleep(name, time) }
    }

    /// Sleeps until a moment, see [`crate::Context::sleep_until`].
    #[track_caller]
    pub fn sleep_until(&self, name: impl Into<String>, moment: SystemTime) -> Sleep {
        Sleep { ctx: self.clone(), sleep: self.inner.sleep_until(name, moment) }
    }

    /// Waits for a signal, see [`crate::Context::signal`].
    #[track_caller]
    pub fn signal<T: DeserializeOwned + Send + 'static>(&self, name: impl Into<String>) -> Signal<T> {
        Signal { ctx: self.clone(), signal: self.inner.signal(name) }
    }

    /// Appends an event to the timeline, see [`crate::Context::event`].
    pub fn event(&self, name: impl Into<String>, payload: &impl Serialize) -> Result<()> {
        block_on(&self.timers, self.inner.ledger(), self.inner.event(name, payload))
    }

    /// Shows how far the instance is, see [`crate::Context::progress`].
    pub fn progress(&self, done: u64, total: u64) {
        self.inner.progress(done, total);
    }

    /// Shows how far the instance is, with a few words.
    pub fn progress_with(&self, done: u64, total: u64, message: impl Into<String>) {
        self.inner.progress_with(done, total, message);
    }

    /// Feeds the watchdog, see [`crate::Context::heartbeat`].
    pub fn heartbeat(&self) {
        self.inner.heartbeat();
    }

    /// Whether the instance was asked to cancel.
    pub fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
    }

    /// A step's idempotency key, see [`crate::Context::idempotency_key`].
    pub fn idempotency_key(&self, name: &str, key: impl fmt::Display) -> String {
        self.inner.idempotency_key(name, key)
    }

    /// The instance's id.
    pub fn instance_id(&self) -> &str {
        self.inner.instance_id()
    }

    /// Which launch of the instance this is.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt()
    }

    /// The name under which this workflow was started.
    pub fn workflow(&self) -> &str {
        self.inner.workflow()
    }

    /// Why this attempt was launched.
    pub fn wake_reason(&self) -> WakeReason {
        self.inner.wake_reason()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A step that has not run yet; made by [`Context::step`].
#[must_use = "a step runs only when `run` is called"]
pub struct Step<F> {
    ctx: Context,
    plan: Plan,
    work: F,
}

impl<F> Step<F> {
    /// Tells steps of one name apart.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }

    /// How often the step is tried; without this once.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.plan.retry = retry;
        self
    }

    /// Runs the step, or returns what it returned in an earlier launch.
    pub fn run<T, E>(mut self) -> Result<T>
    where
        F: FnMut(Try) -> Result<T, E>,
        T: Serialize + DeserializeOwned,
        E: Into<Failure>,
    {
        let ledger = Arc::clone(self.ctx.inner.ledger());
        let mut tries = block_on(&self.ctx.timers, &ledger, Tries::begin(&ledger, self.plan))?;
        let result = loop {
            match block_on(&self.ctx.timers, &ledger, tries.next()) {
                Turn::Over(result) => break result,
                Turn::Run(busy, this) => {
                    let result = (self.work)(this).map_err(Into::into);
                    if let Some(result) = block_on(&self.ctx.timers, &ledger, tries.ran(busy, result)) {
                        break result;
                    }
                }
            }
        };
        tries.done();
        result
    }
}

impl<F> fmt::Debug for Step<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// A durable sleep; made by [`Context::sleep`].
#[derive(Debug)]
#[must_use = "a sleep begins when `run` is called"]
pub struct Sleep {
    ctx: Context,
    sleep: wait::Sleep,
}

impl Sleep {
    /// Tells sleeps of one name apart.
    pub fn key(self, key: impl fmt::Display) -> Self {
        Self { sleep: self.sleep.key(key), ..self }
    }

    /// Sleeps. Fails only when the instance is cancelled.
    pub fn run(self) -> Result<()> {
        self.ctx.wait(self.sleep)
    }
}

/// A wait for a signal; made by [`Context::signal`].
#[derive(Debug)]
#[must_use = "a wait begins when `run` or `within` is called"]
pub struct Signal<T> {
    ctx: Context,
    signal: wait::Signal<T>,
}

impl<T: DeserializeOwned + Send + 'static> Signal<T> {
    /// Tells waits for signals of one name apart.
    pub fn key(self, key: impl fmt::Display) -> Self {
        Self { signal: self.signal.key(key), ..self }
    }

    /// Waits for the signal.
    pub fn run(self) -> Result<T> {
        self.ctx.wait(self.signal)
    }

    /// Waits at most so long: `None` when the time is up.
    pub fn within(self, time: Duration) -> Result<Option<T>> {
        self.ctx.wait(self.signal.within(time))
    }

    /// Waits until that moment: `None` when it has passed.
    pub fn until(self, moment: SystemTime) -> Result<Option<T>> {
        self.ctx.wait(self.signal.until(moment))
    }
}
