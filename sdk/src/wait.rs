//! Sleeps and waits for signals.
//!
//! When a wait is over is slot 1 of its operation, a moment by the database's clock that core computes
//! when the wait begins. What the wait decided is slot 0: a sleep passed, this signal was taken, or the
//! time was up. So a relaunch decides nothing twice. How long is left is measured against the `now` of
//! core's answers by this process's monotonic clock, which is never ahead (invariant 10).

use std::{
    any::type_name,
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    panic::Location,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dormouse_proto::instance::checkpoint;
use serde::de::DeserializeOwned;

use crate::{
    error::{Failure, Result, code},
    ledger::{Admission, Ledger, Use},
    operation::{self, DUE, Kind, Operation, RESULT, Stored, Value},
    step::{Plan, unreadable},
};

/// The longest timer that is set at once; when it fires, the clock is asked again. Bounds how long a
/// step of the clock of the machine (suspend to RAM) goes unnoticed.
const LONGEST_TIMER: Duration = Duration::from_hours(1);

/// When a wait is over.
#[derive(Clone, Copy, Debug)]
enum Due {
    After(Duration),
    At(SystemTime),
}

impl Due {
    fn wire(self) -> Result<checkpoint::Value> {
        Ok(match self {
            Self::After(duration) => checkpoint::Value::DueInMicros(micros(duration)?),
            Self::At(moment) => checkpoint::Value::DueAt(since_epoch(moment)?),
        })
    }
}

/// A duration on the wire. The longest is 292,000 years.
pub(crate) fn micros(duration: Duration) -> Result<i64> {
    i64::try_from(duration.as_micros()).map_err(|_| {
        Failure::invalid(format!("a wait of {duration:?} is too long; wait for a signal instead"))
    })
}

fn since_epoch(moment: SystemTime) -> Result<i64> {
    // A moment before 1970 has passed like any other.
    micros(moment.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Stands at a wait until `due_at` or until there is a cancellation to be felt.
pub(crate) async fn until_due(ledger: &Arc<Ledger>, operation: &Operation, due_at: i64) {
    let _open = ledger.open_wait(operation, Some(due_at), None);
    loop {
        let mut changed = pin!(ledger.changed());
        changed.as_mut().enable();
        let left = ledger.until(due_at);
        if left.is_zero() || ledger.is_cancel_asked() {
            return;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(left.min(LONGEST_TIMER)) => {}
        }
    }
}

/// The moment when the wait is over: the stored one, else a new one. `Err`: the wait is decided already.
async fn due_at(
    ledger: &Arc<Ledger>,
    operation: &Operation,
    due: Due,
) -> Result<std::result::Result<i64, Stored>> {
    let mut stored = ledger.take(operation, DUE);
    if stored.is_none() {
        let busy = match ledger.admit(operation).await? {
            Admission::Go(busy) => busy,
            Admission::Stored(stored) => return Ok(Err(stored)),
        };
        stored = ledger.save(operation, DUE, Kind::Due, due.wire()?, String::new()).await?.stored;
        drop(busy);
    }
    match stored {
        Some(Stored { value: Value::Due(due_at), .. }) => Ok(Ok(due_at)),
        Some(stored) => {
            let failure = unreadable(operation, &stored, "a wait's moment", "it is no moment");
            ledger.fail_at_once(failure).await
        }
        None => Err(Failure::new(
            dormouse_proto::code::Code::Internal.as_str(),
            "core stored the moment of a wait and did not say it",
        )),
    }
}

/// A durable sleep; made by [`Context::sleep`](crate::Context::sleep).
///
/// Fails only when the instance is cancelled.
#[derive(Debug)]
#[must_use = "a sleep begins when it is awaited"]
pub struct Sleep {
    ledger: Arc<Ledger>,
    plan: Plan,
    due: Due,
}

impl Sleep {
    pub(crate) fn after(
        ledger: Arc<Ledger>,
        name: String,
        place: &'static Location<'static>,
        d: Duration,
    ) -> Self {
        Self { ledger, plan: Plan::new(name, place), due: Due::After(d) }
    }

    pub(crate) fn at(
        ledger: Arc<Ledger>,
        name: String,
        place: &'static Location<'static>,
        t: SystemTime,
    ) -> Self {
        Self { ledger, plan: Plan::new(name, place), due: Due::At(t) }
    }

    /// Tells sleeps of one name apart.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }
}

impl IntoFuture for Sleep {
    type Output = Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let usage = self.ledger.claim(self.plan.operation()?, self.plan.place).await?;
            let stored = sleep(&self.ledger, usage.operation(), self.due).await?;
            let result = slept(&self.ledger, usage.operation(), stored).await;
            usage.done();
            result
        })
    }
}

async fn sleep(ledger: &Arc<Ledger>, operation: &Operation, due: Due) -> Result<Stored> {
    if let Some(stored) = ledger.take(operation, RESULT) {
        return Ok(stored);
    }
    let due_at = match due_at(ledger, operation, due).await? {
        Ok(due_at) => due_at,
        Err(stored) => return Ok(stored),
    };
    until_due(ledger, operation, due_at).await;
    match ledger.admit(operation).await? {
        Admission::Stored(stored) => Ok(stored),
        Admission::Go(_busy) => over(ledger, operation, Kind::Sleep, due_at).await,
    }
}

/// Saves that the wait ended because its time was up.
async fn over(ledger: &Arc<Ledger>, operation: &Operation, kind: Kind, due_at: i64) -> Result<Stored> {
    let value = checkpoint::Value::DueAt(due_at);
    let saved = ledger.save(operation, RESULT, kind, value, String::new()).await?;
    Ok(saved.stored.unwrap_or(Stored { kind, value: Value::Due(due_at) }))
}

async fn slept(ledger: &Arc<Ledger>, operation: &Operation, stored: Stored) -> Result<()> {
    match (stored.kind, &stored.value) {
        (_, Value::Cancelled) => Err(Failure::cancelled()),
        (Kind::Sleep, _) => Ok(()),
        _ => {
            let reason = "another kind of operation has used this name";
            ledger.fail_at_once(unreadable(operation, &stored, "a sleep", reason)).await
        }
    }
}

/// A wait for a signal; made by [`Context::signal`](crate::Context::signal).
///
/// Each wait takes one signal, the oldest unread one of that name. Fails with `SIGNAL_UNREADABLE` if the
/// payload is no `T` (the signal is consumed then), and when the instance is cancelled.
#[must_use = "a wait begins when it is awaited"]
pub struct Signal<T> {
    ledger: Arc<Ledger>,
    plan: Plan,
    payload: PhantomData<fn() -> T>,
}

impl<T> Signal<T> {
    pub(crate) fn new(ledger: Arc<Ledger>, name: String, place: &'static Location<'static>) -> Self {
        Self { ledger, plan: Plan::new(name, place), payload: PhantomData }
    }

    /// Tells waits for signals of one name apart. The signal itself has no key.
    pub fn key(mut self, key: impl fmt::Display) -> Self {
        self.plan.key = key.to_string();
        self
    }

    /// Waits at most so long: `None` when the time is up. A signal that is there when the wait looks is
    /// taken even then.
    pub fn within(self, time: Duration) -> SignalWithin<T> {
        SignalWithin { signal: self, due: Due::After(time) }
    }

    /// Waits until that moment: `None` when it has passed.
    pub fn until(self, moment: SystemTime) -> SignalWithin<T> {
        SignalWithin { signal: self, due: Due::At(moment) }
    }
}

impl<T> fmt::Debug for Signal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// A wait for a signal that ends; made by [`Signal::within`] and [`Signal::until`].
#[derive(Debug)]
#[must_use = "a wait begins when it is awaited"]
pub struct SignalWithin<T> {
    signal: Signal<T>,
    due: Due,
}

impl<T> SignalWithin<T> {
    /// Tells waits for signals of one name apart. The signal itself has no key.
    pub fn key(self, key: impl fmt::Display) -> Self {
        Self { signal: self.signal.key(key), ..self }
    }
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for Signal<T> {
    type Output = Result<T>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { ledger, plan, .. } = self;
            let operation = plan.operation()?;
            let usage = ledger.claim(operation.clone(), plan.place).await?;
            if let Some(payload) = signal(&ledger, usage, None).await? {
                return Ok(payload);
            }
            // An earlier release of the workflow gave this wait a limit, and it was reached. Without one
            // there is nothing that this wait could return.
            let stored = Stored { kind: Kind::Signal, value: Value::Due(0) };
            let reason = "the wait had a time limit then, which was reached";
            ledger.fail_at_once(unreadable(&operation, &stored, type_name::<T>(), reason)).await
        })
    }
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for SignalWithin<T> {
    type Output = Result<Option<T>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Option<T>>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Signal { ledger, plan, .. } = self.signal;
            let usage = ledger.claim(plan.operation()?, plan.place).await?;
            signal(&ledger, usage, Some(self.due)).await
        })
    }
}

async fn signal<T: DeserializeOwned>(
    ledger: &Arc<Ledger>,
    usage: Use,
    due: Option<Due>,
) -> Result<Option<T>> {
    let stored = decide(ledger, usage.operation(), due).await?;
    let result = received(ledger, usage.operation(), stored).await;
    usage.done();
    result
}

async fn received<T: DeserializeOwned>(
    ledger: &Arc<Ledger>,
    operation: &Operation,
    stored: Stored,
) -> Result<Option<T>> {
    match (stored.kind, &stored.value) {
        (_, Value::Cancelled) => Err(Failure::cancelled()),
        (Kind::Signal, Value::Due(_)) => Ok(None),
        (Kind::Signal, Value::Payload(payload)) => operation::decode(payload).map(Some).map_err(|reason| {
            let (sent, expected) = (operation::stored_type(payload), type_name::<T>());
            let message = format!(
                "the payload of signal {operation} cannot be read: sent was {sent}, expected is {expected}: {reason}"
            );
            Failure::new(code::SIGNAL_UNREADABLE, message).permanent()
        }),
        _ => {
            let reason = "another kind of operation has used this name";
            ledger.fail_at_once(unreadable(operation, &stored, "a signal", reason)).await
        }
    }
}

/// What the wait decides: a signal, that its time is up, or a cancellation.
async fn decide(ledger: &Arc<Ledger>, operation: &Operation, due: Option<Due>) -> Result<Stored> {
    if let Some(stored) = ledger.take(operation, RESULT) {
        return Ok(stored);
    }
    let due_at = match due {
        None => None,
        Some(due) => match due_at(ledger, operation, due).await? {
            Ok(due_at) => Some(due_at),
            Err(stored) => return Ok(stored),
        },
    };
    loop {
        until_signal(ledger, operation, due_at).await;
        let busy = match ledger.admit(operation).await? {
            Admission::Go(busy) => busy,
            Admission::Stored(stored) => return Ok(stored),
        };
        // An earlier ask of this very wait, dropped since, may have been answered meanwhile.
        if let Some(stored) = ledger.take(operation, RESULT) {
            return Ok(stored);
        }
        let offer = ledger.offer(&operation.name);
        let due_at = due_at.filter(|due_at| ledger.until(*due_at).is_zero());
        if offer.is_none() && due_at.is_none() {
            continue; // another wait was faster
        }
        // Also when the time is up: its push may be under way.
        if let Some(stored) = ledger.take_signal(operation, offer).await? {
            return Ok(stored);
        }
        if let Some(due_at) = due_at {
            return over(ledger, operation, Kind::Signal, due_at).await;
        }
        drop(busy);
    }
}

/// Stands at a wait until a signal of its name is unread, its time is up, a result turned up or there is
/// a cancellation to be felt.
async fn until_signal(ledger: &Arc<Ledger>, operation: &Operation, due_at: Option<i64>) {
    let _open = ledger.open_wait(operation, due_at, Some(&operation.name));
    loop {
        let mut changed = pin!(ledger.changed());
        changed.as_mut().enable();
        let left = due_at.map(|due_at| ledger.until(due_at));
        let over = left.is_some_and(|left| left.is_zero());
        if over || ledger.is_cancel_asked() || ledger.is_signalled(operation) {
            return;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(left.unwrap_or(LONGEST_TIMER).min(LONGEST_TIMER)) => {}
        }
    }
}
