//! Steps: functions whose result is saved, so that they are not run again.
//!
//! [`Tries`] is what a step does between its tries, the same for asynchronous and synchronous
//! programs; the author's function runs outside of it. A step's result is slot 0 of its operation; the
//! pause after the n-th failed try is slot n, so that a relaunch goes on with try n + 1 when it is due.
//! A final failure is a result like any other: a relaunch fails in the same way and does not try again.
//!
//! A step that runs is never interrupted by Dormouse, except by a kill of the whole process.

use std::{
    any::type_name,
    fmt::{self, Write as _},
    future::{Future, IntoFuture},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use dormouse_proto::instance::{Payload, checkpoint};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Failure, Result, code},
    fault::{self, Point},
    ledger::{Admission, Busy, Ledger, Use},
    operation::{self, Kind, Operation, RESULT, Stored, Value},
    retry::Retry,
    wait,
};

/// One try of a step, as its function may want to know it.
#[derive(Clone, Debug)]
pub struct Try {
    number: u32,
    idempotency_key: String,
}

impl Try {
    /// 1, 2, 3 …, over all launches. A try that a crash cut off has the same number as the next.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The same 32 hexadecimal digits in every try and every launch of this step, and of no other: for
    /// services outside that can tell a repeated request by such a key.
    pub fn idempotency_key(&self) -> &str {
        &self.idempotency_key
    }
}

/// A digest of instance, name and key.
pub(crate) fn idempotency_key(instance_id: &str, name: &str, key: &str) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [instance_id, name, key] {
        // With its length, so that no two triples read alike.
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut text = String::with_capacity(32);
    for byte in &hash.finish().as_ref()[..16] {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What a step is, before it runs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) retry: Retry,
    pub(crate) place: &'static Location<'static>,
}

impl Plan {
    pub(crate) fn new(name: String, place: &'static Location<'static>) -> Self {
        Self { name, key: String::new(), retry: Retry::never(), place }
    }

    pub(crate) fn operation(&self) -> Result<Operation> {
        Operation::parse(&self.name, &self.key)
    }
}

/// What to do next.
pub(crate) enum Turn<T> {
    /// Run the function, then call [`Tries::ran`].
    Run(Busy, Try),
    /// The step is over.
    Over(Result<T>),
}

/// A step between its tries.
pub(crate) struct Tries {
    ledger: Arc<Ledger>,
    usage: Use,
    retry: Retry,
    failed: u32,
    /// When the next try is due.
    due_at: Option<i64>,
}

impl Tries {
    /// Claims the step's name and finds out how many tries failed already.
    pub(crate) async fn begin(ledger: &Arc<Ledger>, plan: Plan) -> Result<Self> {
        let operation = plan.operation()?;
        let usage = ledger.claim(operation, plan.place).await?;
        let mut failed = 0;
        let mut due_at = None;
        while let Some(Value::Due(at)) = ledger.take(usage.operation(), failed + 1).map(|stored| stored.value)
        {
            failed += 1;
            due_at = Some(at);
        }
        Ok(Self { ledger: Arc::clone(ledger), usage, retry: plan.retry, failed, due_at })
    }

    /// Of this step, in each try. Not made before it is needed: who resumes passes many steps that do not run.
    fn idempotency_key(&self) -> String {
        let Operation { name, key } = self.usage.operation();
        idempotency_key(&self.ledger.facts.instance_id, name, key)
    }

    /// Waits for the next try, or finds the result.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Turn<T> {
        if let Some(stored) = self.ledger.take(self.usage.operation(), RESULT) {
            return Turn::Over(self.read(stored).await);
        }
        if let Some(due_at) = self.due_at.take() {
            wait::until_due(&self.ledger, self.usage.operation(), due_at).await;
        }
        match self.ledger.admit(self.usage.operation()).await {
            Ok(Admission::Go(busy)) => {
                fault::pass(Point::BeforeStep);
                let idempotency_key = self.idempotency_key();
                Turn::Run(busy, Try { number: self.failed.saturating_add(1), idempotency_key })
            }
            Ok(Admission::Stored(stored)) => Turn::Over(self.read(stored).await),
            Err(failure) => Turn::Over(Err(failure)),
        }
    }

    /// Saves what a try returned. `None`: it failed and shall be tried again.
    pub(crate) async fn ran<T>(&mut self, busy: Busy, result: Result<T>) -> Option<Result<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        fault::pass(Point::StepRan);
        let over = match result {
            Ok(value) => Some(self.succeeded(value).await),
            Err(failure) => self.failed(failure).await.map(Err),
        };
        // Not earlier: what a step did is not safe before it is saved.
        drop(busy);
        over
    }

    async fn succeeded<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<T> {
        let payload =
            operation::encode(format_args!("the result of step {}", self.usage.operation()), &value)?;
        match self.save(payload).await? {
            // The first writer wins, and it may have been another try.
            Some(stored) => self.read(stored).await,
            None => Ok(value),
        }
    }

    /// Saves a result; returns what was stored before, if anything was.
    async fn save(&self, payload: Payload) -> Result<Option<Stored>> {
        let value = checkpoint::Value::Payload(payload);
        let saved =
            self.ledger.save(self.usage.operation(), RESULT, Kind::Step, value, String::new()).await?;
        Ok(saved.stored)
    }

    async fn failed(&mut self, failure: Failure) -> Option<Failure> {
        let failed = self.failed.saturating_add(1);
        match self.retry.pause(failed, &failure, self.spread(failed)) {
            Some(pause) => self.plan_next(failed, pause, &failure).await.err(),
            None => Some(self.give_up(failure).await),
        }
    }

    /// From 0 to 1, another for each instance, step and try: all that jitter needs.
    fn spread(&self, failed: u32) -> f64 {
        let mut hasher = DefaultHasher::new();
        (self.idempotency_key(), failed).hash(&mut hasher);
        let twelve_bits = u32::try_from(hasher.finish() >> 52).unwrap_or(0);
        f64::from(twelve_bits) / 4095.0
    }

    /// Makes the pause before the next try durable.
    async fn plan_next(&mut self, failed: u32, pause: Duration, failure: &Failure) -> Result<()> {
        let value = checkpoint::Value::DueInMicros(wait::micros(pause)?);
        let note = operation::note(&failure.to_string());
        let saved = self.ledger.save(self.usage.operation(), failed, Kind::Retry, value, note).await?;
        if let Some(Value::Due(due_at)) = saved.stored.map(|stored| stored.value) {
            self.due_at = Some(due_at);
        }
        self.failed = failed;
        Ok(())
    }

    /// Makes the final failure durable, so that a relaunch decides nothing else.
    async fn give_up(&self, failure: Failure) -> Failure {
        let saved = match operation::encode_failure(&failure) {
            Ok(payload) => self.save(payload).await,
            Err(error) => Err(error),
        };
        match saved {
            Ok(None) => failure,
            Ok(Some(stored)) => match self.read::<serde_json::Value>(stored).await {
                Err(stored) => stored,
                Ok(_) => failure,
            },
            Err(error) => error,
        }
    }

    /// Reads a stored result. One that is not what the code expects ends the instance.
    async fn read<T: DeserializeOwned>(&self, stored: Stored) -> Result<T> {
        let reason = match &stored.value {
            Value::Cancelled => return Err(Failure::cancelled()),
            Value::Payload(payload) if stored.kind == Kind::Step => {
                if let Some(failure) = operation::decode_failure(payload) {
                    return Err(failure);
                }
                match operation::decode(payload) {
                    Ok(value) => return Ok(value),
                    Err(reason) => reason,
                }
            }
            Value::Payload(_) | Value::Due(_) => "another kind of operation has used this name".to_owned(),
        };
        let failure =
            unreadable(self.usage.operation(), &stored, &format!("a step's {}", type_name::<T>()), &reason);
        self.ledger.fail_at_once(failure).await
    }

    /// The step is over.
    pub(crate) fn done(self) {
        self.usage.done();
    }
}

/// What is stored does not fit to the code.
pub(crate) fn unreadable(operation: &Operation, stored: &Stored, expected: &str, reason: &str) -> Failure {
    let stored = stored.describe();
    let message = format!(
        "what is stored under {operation} cannot be read: stored is {stored}, expected is {expected}: {reason}; \
         give the changed operation a new name, or run the image that stored it"
    );
    Failure::new(code::RESULT_UNREADABLE, message).permanent()
}

/// A function that a step runs: asynchronous, or blocking on a thread of its own.
pub trait Body<T>: Send {
    /// Runs one try. `limit` is its time limit.
    #[doc(hidden)]
    fn run(&mut self, this: Try, limit: Option<Duration>) -> impl Future<Output = Result<T>> + Send;
}

/// The body of [`Context::step`](crate::Context::step).
#[derive(Debug)]
pub struct Asynchronous<F>(pub(crate) F);

impl<F, Fut, T, E> Body<T> for Asynchronous<F>
where
    F: FnMut(Try) -> Fut + Send,
    Fut: Future<Output = Result<T, E>> + Send,
    E: Into<Failure>,
    T: Send,
{
    async fn run(&mut self, this: Try, limit: Option<Duration>) -> Result<T> {
        let work = (self.0)(this);
        let Some(limit) = limit else {
            return work.await.map_err(Into::into);
        };
        if let Ok(result) = tokio::time::timeout(limit, work).await {
            return result.map_err(Into::into);
        }
        Err(Failure::new(code::STEP_TIMED_OUT, format!("a try took longer than its limit of {limit:?}")))
    }
}

/// The body of [`Context::step_blocking`](crate::Context::step_blocking).
#[derive(Debug)]
pub struct Blocking<F>(pub(crate) Option<F>);

impl<F, T, E> Body<T> for Blocking<F>
where
    F: FnMut() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    async fn run(&mut self, _: Try, _: Option<Duration>) -> Result<T> {
        let Some(mut work) = self.0.take() else {
            // Only a try that was dropped keeps the function, and its step is never tried again.
            return std::future::pending().await;
        };
        match tokio::task::spawn_blocking(move || (work(), work)).await {
            Ok((result, work)) => {
                self.0 = Some(work);
                result.map_err(Into::into)
            }
            Err(error) => match error.try_into_panic() {
                // A panic is a crash, on whichever thread it happened.
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down, and this future with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// A step that has not run yet; `.await` runs it or returns what it returned in an earlier launch.
///
/// Made by [`Context::step`](crate::Context::step) and its siblings. Dropping the future of a step that
/// runs drops the function's future; what it did outside stays done, and nothing is saved.
#[must_use = "a step runs only when it is awaited"]
pub struct Step<'a, B, T> {
    ledger: Arc<Ledger>,
    plan: Plan,
    body: B,
    limit: Option<Duration>,
    /// What the function borrows, and what it returns.
    marks: PhantomData<fn(&'a ()) -> T>,
}

impl<B, T> Step<'_, B, T> {
    pub(crate) fn new(ledger: Arc<Ledger>, plan: Plan, body: B) -> Self {
        Self { ledger, plan, body, limit: None, marks: PhantomData }
    }

    /// Tells steps of one name apart: a file's path, a customer's number. At most 1,024 bytes without NUL.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }

    /// How often the step is tried; without this once.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.plan.retry = retry;
        self
    }
}

impl<F, T> Step<'_, Asynchronous<F>, T> {
    /// The longest that one try may take. A try that takes longer is dropped, and failed with
    /// `STEP_TIMED_OUT`; what it did outside stays done.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }
}

impl<B, T> fmt::Debug for Step<'_, B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("plan", &self.plan).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a, B, T> IntoFuture for Step<'a, B, T>
where
    B: Body<T> + 'a,
    T: Serialize + DeserializeOwned + Send + 'a,
{
    type Output = Result<T>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        // Boxed: the type can be named, and a workflow's own future stays small.
        Box::pin(run(self.ledger, self.plan, self.body, self.limit))
    }
}

async fn run<B, T>(ledger: Arc<Ledger>, plan: Plan, mut body: B, limit: Option<Duration>) -> Result<T>
where
    B: Body<T>,
    T: Serialize + DeserializeOwned + Send,
{
    let mut tries = Tries::begin(&ledger, plan).await?;
    let result = loop {
        match tries.next().await {
            Turn::Over(result) => break result,
            Turn::Run(busy, this) => {
                let result = body.run(this, limit).await;
                if let Some(result) = tries.ran(busy, result).await {
                    break result;
                }
            }
        }
    };
    tries.done();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_do_not_change_between_releases() {
        // Services outside remember these: a changed digest would repeat effects.
        assert_eq!(idempotency_key("order-1", "charge", ""), idempotency_key("order-1", "charge", ""));
        assert_ne!(idempotency_key("order-1", "ab", "c"), idempotency_key("order-1", "a", "bc"));
        assert_eq!(idempotency_key("order-1", "charge", "").len(), 32);
    }
}
