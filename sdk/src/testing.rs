//! Tests of workflows without any server: core in memory, time that is skipped, crashes at will.
//!
//! A [`Run`] plays the whole life of one instance inside the test: launches, suspensions, relaunches from
//! what is stored. While the workflow rests (it stands at a durable wait and nothing else happens), the
//! clock jumps to whatever comes next, so a sleep of a month takes milliseconds. The workflow really is cut
//! off and begun anew at each suspension, as in production.
//!
//! ```
//! use dormouse_sdk::{Context, Result, days, testing::Run};
//!
//! async fn remind(ctx: Context, name: String) -> Result<String> {
//!     ctx.sleep("a month", days(30)).await?;
//!     ctx.step("greet", || async { Ok::<_, std::io::Error>(format!("hello, {name}")) }).await
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! // in a #[tokio::test]:
//! let done = Run::new(remind).input("Ada").survives_crashes().await;
//! assert_eq!(done.output::<String>()?, "hello, Ada");
//! assert!(done.elapsed() >= days(30));
//! # Ok::<_, dormouse_sdk::Failure>(()) })?;
//! # Ok::<(), dormouse_sdk::Failure>(())
//! ```

pub(crate) mod core;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use dormouse_proto::instance::Payload;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};

use self::core::{Action, Answer, Core, Crash, Ended};
use crate::{
    blocking::{self, CutOff},
    context::Context,
    error::{Failure, Result},
    ledger::{Ending, Fate, Ledger, Pace, Request, keep},
    operation,
    process::Watched,
    workflow::{Entry, Function, Workflow},
};

/// How long a workflow does nothing before the clock is moved on, in real time.
const IDLE: Duration = Duration::from_millis(10);
/// How often a process asks for what is not announced.
const POLL: Duration = Duration::from_millis(50);
/// An instance that needs more launches goes round in circles.
const LAUNCHES_MAX: u32 = 10_000;

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The workflow returned `Ok`.
    Completed,
    /// The workflow returned `Err`.
    Failed,
    /// The workflow felt a cancellation; whatever it returned then is kept.
    Cancelled,
}

/// One instance that is to be played, and what happens to it from outside.
#[derive(Clone)]
#[must_use = "nothing runs before `run`"]
pub struct Run {
    workflow: Workflow,
    input: Payload,
    plan: Vec<(Duration, Action)>,
    crashes: Vec<Crash>,
    pace: Pace,
    pushes: bool,
}

impl Run {
    /// An instance of this workflow, asynchronous or synchronous.
    pub fn new<M>(workflow: impl Function<M>) -> Self {
        Self {
            workflow: workflow.workflow("workflow"),
            input: Payload::default(),
            plan: Vec::new(),
            crashes: Vec::new(),
            pace: Pace { idle: IDLE, ..Pace::default() },
            pushes: true,
        }
    }

    /// Its input; `null` without one.
    ///
    /// # Panics
    /// If it cannot be written as JSON.
    pub fn input(mut self, input: impl Serialize) -> Self {
        self.input = json("the input", &input);
        self
    }

    /// Sends a signal before the instance starts.
    ///
    /// # Panics
    /// If the payload cannot be written as JSON.
    pub fn signal(self, name: impl Into<String>, payload: impl Serialize) -> Self {
        self.signal_after(Duration::ZERO, name, payload)
    }

    /// Sends a signal so long after the start. Times are by the skipping clock: it passes them while the
    /// workflow rests.
    ///
    /// # Panics
    /// If the payload cannot be written as JSON.
    pub fn signal_after(self, after: Duration, name: impl Into<String>, payload: impl Serialize) -> Self {
        let payload = json("the signal", &payload);
        self.then(after, Action::Signal { name: name.into(), payload })
    }

    /// Cancels the instance so long after the start.
    pub fn cancel_after(self, after: Duration) -> Self {
        self.then(after, Action::Cancel)
    }

    /// Pauses the instance so long after the start.
    pub fn pause_after(self, after: Duration) -> Self {
        self.then(after, Action::Pause)
    }

    /// Resumes the instance so long after the start.
    pub fn resume_after(self, after: Duration) -> Self {
        self.then(after, Action::Resume)
    }

    /// Crashes the process when its n-th checkpoint (1, 2, 3 …) is stored and the workflow does not know yet.
    pub fn crash_after_checkpoint(mut self, n: usize) -> Self {
        self.crashes.push(Crash::After(n));
        self
    }

    /// Crashes the process when its n-th checkpoint is about to be stored: the work is done and lost.
    pub fn crash_before_checkpoint(mut self, n: usize) -> Self {
        self.crashes.push(Crash::Before(n));
        self
    }

    /// How long, in real time, the workflow does nothing before it is suspended; 10 ms without this. Longer
    /// for workflows that wait for something outside of steps.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.pace.idle = idle;
        self
    }

    /// What happens from outside is not announced to a process that runs: it has to find out by itself, as
    /// when a push gets lost. (It asks every 50 ms then, in production every 30 s.)
    pub fn without_pushes(mut self) -> Self {
        self.pushes = false;
        self.pace.poll = POLL;
        self
    }

    fn then(mut self, after: Duration, action: Action) -> Self {
        self.plan.push((after, action));
        self
    }

    /// Plays the instance to its end. Must run inside a tokio runtime with timers, as `#[tokio::test]` gives it.
    ///
    /// # Panics
    /// If the workflow panics, or if it waits for something that nobody plans to send.
    pub async fn run(self) -> Done {
        let mut core = Core::new(self.workflow.name(), self.input, &self.plan, self.crashes);
        core.act();
        loop {
            assert!(
                core.attempt < LAUNCHES_MAX,
                "{LAUNCHES_MAX} launches and no end: the workflow goes round in circles"
            );
            match launch(&self.workflow.entry, &mut core, self.pace, self.pushes).await {
                Cut::Fate(Fate::Ended) => return Done::of(core),
                Cut::Fate(Fate::Suspended) => {
                    if let Err(waits) = core.sleep_until_wake() {
                        panic!("the workflow waits for {waits}, and nothing like that is planned");
                    }
                }
                Cut::Fate(fate) => panic!("the test kit ended the process: {fate:?}"),
                Cut::Crash => core.crashed(),
            }
        }
    }

    /// Plays the instance once undisturbed, then once with a crash before and once with a crash after each
    /// of its checkpoints, and checks that it ends the same way each time. Returns the undisturbed run.
    ///
    /// # Panics
    /// If an ending differs; the message says which checkpoint it was. And as [`Run::run`] does.
    pub async fn survives_crashes(self) -> Done {
        let calm = self.clone().run().await;
        for (number, name) in (1..).zip(calm.core.saved.clone()) {
            for (when, crash) in [("before", Crash::Before(number)), ("after", Crash::After(number))] {
                let mut disturbed = self.clone();
                disturbed.crashes.push(crash);
                let done = disturbed.run().await;
                let (name, key, slot) = &name;
                assert_eq!(
                    done.core.ended, calm.core.ended,
                    "with a crash {when} checkpoint {number} ({name:?}, key {key:?}, slot {slot}) was stored, the \
                     workflow ended in another way than without"
                );
            }
        }
        calm
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("plan", &self.plan)
            .field("crashes", &self.crashes)
            .finish_non_exhaustive()
    }
}

fn json(what: &str, value: &impl Serialize) -> Payload {
    match operation::encode(what, value) {
        Ok(payload) => payload,
        Err(failure) => panic!("{failure}"),
    }
}

/// Why a launch ended.
enum Cut {
    Fate(Fate),
    Crash,
}

async fn launch(entry: &Entry, core: &mut Core, pace: Pace, pushes: bool) -> Cut {
    let mut registered = core.launch();
    let stored = std::mem::take(&mut registered.checkpoints);
    let (ledger, requests) = Ledger::new(registered, pace);
    ledger.load(stored, 0).expect("what was encoded here");
    let ctx = Context::new(Arc::clone(&ledger));
    let cut = match entry {
        Entry::Asynchronous(run) => {
            let running = run(ctx);
            let work = async {
                end(&ledger, Watched { running, ledger: &ledger }.await);
                std::future::pending().await
            };
            tokio::select! {
                cut = drive(core, requests, &ledger, pushes) => cut,
                cut = work => cut,
            }
        }
        Entry::Blocking(run) => {
            let run = Arc::clone(run);
            let ctx = blocking::Context::new(ctx, tokio::runtime::Handle::current());
            let (done, mut result) = oneshot::channel();
            std::thread::spawn(move || {
                // The receiver is there until it has heard this.
                let _ = done.send(catch_unwind(AssertUnwindSafe(|| run(ctx))));
            });
            let mut returned = false;
            let cut = {
                let mut driving = pin!(drive(core, requests, &ledger, pushes));
                loop {
                    tokio::select! {
                        cut = &mut driving => break cut,
                        result = &mut result, if !returned => {
                            returned = true;
                            end(&ledger, unwound(result));
                        }
                    }
                }
            };
            ledger.abandon();
            if !returned {
                // It is cut off at its next operation.
                drop(result.await);
            }
            cut
        }
    };
    ledger.abandon();
    cut
}

/// What a synchronous workflow returned; its panic is the test's.
fn unwound(
    result: Result<std::thread::Result<Result<Payload>>, oneshot::error::RecvError>,
) -> Result<Payload> {
    match result {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) if panic.is::<CutOff>() => {
            Err(Failure::new("CUT_OFF", "cut off before its driver was"))
        }
        Ok(Err(panic)) => resume_unwind(panic),
        Err(oneshot::error::RecvError { .. }) => panic!("the workflow's thread ended without a word"),
    }
}

fn end(ledger: &Ledger, result: Result<Payload>) {
    ledger.end(match result {
        Ok(output) => Ending::Completed(output),
        Err(failure) => Ending::Failed(failure),
    });
}

/// Answers the ledger, and does what is planned, until the process's part is over.
async fn drive(
    core: &mut Core,
    mut requests: mpsc::Receiver<Request>,
    ledger: &Arc<Ledger>,
    pushes: bool,
) -> Cut {
    let mut keeper = pin!(keep(Arc::clone(ledger)));
    loop {
        let action_in = core.next_action_in();
        let request = tokio::select! {
            Some(request) = requests.recv() => Some(request),
            refusal = keeper.as_mut() => panic!("{refusal}"),
            () = tokio::time::sleep(action_in.unwrap_or_default()), if action_in.is_some() => None,
        };
        // Before the request is answered: on a busy machine its turn may come late.
        if core.act() && pushes {
            ledger.pushed(dormouse_proto::instance::server_frame::Outcome::Inbox(core.inbox()));
        }
        let Some(request) = request else { continue };
        match core.handle(&request.operation) {
            Answer::Outcome(outcome) => {
                if let Some(fate) = ledger.answered(request, *outcome) {
                    return Cut::Fate(fate);
                }
            }
            Answer::Crash => return Cut::Crash,
            Answer::Nothing => {}
        }
    }
}

/// An instance that has ended.
#[derive(Debug)]
pub struct Done {
    core: Core,
    elapsed: Duration,
}

impl Done {
    fn of(core: Core) -> Self {
        let elapsed = core.elapsed();
        Self { core, elapsed }
    }

    /// How it ended.
    pub fn status(&self) -> Status {
        match &self.core.ended {
            _ if self.core.is_cancelled() => Status::Cancelled,
            Some(Ended::Completed(_)) => Status::Completed,
            Some(Ended::Failed(_)) | None => Status::Failed,
        }
    }

    /// What the workflow returned.
    ///
    /// # Panics
    /// If the output is no `T`.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T> {
        match &self.core.ended {
            Some(Ended::Completed(output)) => match operation::decode(output) {
                Ok(value) => Ok(value),
                Err(reason) => panic!("the output cannot be read: {reason}"),
            },
            Some(Ended::Failed(failure)) => Err(Failure::from_wire(failure.clone())),
            None => Err(Failure::new("NO_ENDING", "the instance has not ended")),
        }
    }

    /// How often the process was launched.
    pub fn launches(&self) -> u32 {
        self.core.attempt
    }

    /// From the start to the ending, by the clock that skips.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Name and key of each checkpoint, in the order in which they were stored: results of steps and waits,
    /// and raw checkpoints.
    pub fn checkpoints(&self) -> impl Iterator<Item = (&str, &str)> {
        self.core.saved.iter().filter(|(_, _, slot)| *slot == 0).map(|(name, key, _)| (&**name, &**key))
    }

    /// Name and payload of each event.
    pub fn events(&self) -> impl Iterator<Item = (&str, serde_json::Value)> {
        self.core.events.iter().map(|event| {
            let payload =
                event.payload.as_ref().and_then(|payload| serde_json::from_slice(&payload.data).ok());
            (event.name.as_str(), payload.unwrap_or_default())
        })
    }

    /// The newest progress: done and total.
    pub fn progress(&self) -> Option<(u64, u64)> {
        self.core.progress.as_ref().map(|progress| (progress.done, progress.total))
    }
}
