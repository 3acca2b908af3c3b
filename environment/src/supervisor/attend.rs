//! One attempt on this node: from its launch, or its adoption, until its end is told and its
//! files are put away.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dormouse_core::{
    domain::{
        id::InstanceKey,
        outcome::{ExitReason, ExitReport},
    },
    fault,
    store::{self, AfterExit, AttemptRef, NodeLease, Store},
    timings,
};
use dormouse_proto::code::{Coded, Retry};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    Options,
    exit::{Process, STDERR_TAIL, tail_text},
    ledger::Ledger,
    logs::{self, Keeper},
};
use crate::{
    attempts::{AttemptId, Attempts, Stream},
    images::{OpenError, cluster::Fetches},
    launcher::{Launch, LaunchError, Launched, Launcher},
    node::Slot,
    pace::UnderWay,
    spares::{self, Files, Handed, Stay},
};

/// What the supervisor wants of an attempt; each is more urgent than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Go on.
    Run,
    /// It recorded its end, or was told to stop: it leaves by itself, or is asked, then killed.
    Leave,
    /// Nobody waits for it any more: ask now, then kill.
    Ask,
    /// The node drains: ask now, then kill, and give the instance back to the wake queue.
    HandBack,
    /// The service ends and takes its processes along: ask now, then kill.
    Stop,
    /// Kill now: the node has lost its lease.
    Kill,
}

/// What every attempt works with.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) store: Store,
    pub(super) attempts: Attempts,
    pub(super) launcher: Launcher,
    pub(super) fetches: Fetches,
    pub(super) spares: spares::Handle,
    pub(super) lease: NodeLease,
    pub(super) failures: Failures,
    pub(super) ledger: Ledger,
}

impl Shared {
    /// Holds an ended attempt's output to its limit, keeps it, and removes what nobody needs.
    async fn put_away(&self, id: AttemptId) {
        let (attempts, limit) = (self.attempts.clone(), self.options.stream_bytes);
        let done = spawn_blocking(move || {
            logs::trim_all(&attempts.directory(&id), limit);
            attempts.archive(&id)
        });
        note_put_away(done.await.map_err(io::Error::other).flatten());
    }

    /// The process is gone, and its instance is to go on elsewhere at once. One that had recorded
    /// its own end by then keeps it.
    async fn hand_back(&self, orders: &watch::Receiver<Order>, of: AttemptRef) -> bool {
        let why = format!("node {} drains", self.lease.node);
        tell(orders, || self.store.hand_back(&self.lease, of, why.clone())).await.is_some()
    }
}

/// How often in a row each instance's launch failed here, so that the pauses grow: each try is a
/// row and an event. Forgotten at a restart.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<InstanceKey, u32>>);

impl Failures {
    /// So many are remembered; beyond it everything is forgotten and pauses begin anew.
    const MAX: usize = 10_000;

    /// Counts one more, and says how long to wait now.
    fn count(&self, instance: InstanceKey, options: &Options) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= Self::MAX {
            counts.clear();
        }
        let count = counts.entry(instance).or_default();
        let pause = options.launch_retry.saturating_mul(1 << (*count).min(16));
        *count += 1;
        pause.min(options.launch_retry_max)
    }

    fn forget(&self, instance: InstanceKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&instance);
    }
}

impl Shared {
    /// Launches; an image that is not here, or not whole, is fetched first where there is a place
    /// to fetch it from.
    async fn launch_here(&self, launch: Launch, deadline: Instant) -> Result<Launched, LaunchError> {
        if !self.fetches.possible() {
            return self.launcher.launch(launch).await;
        }
        match self.launcher.launch(launch.clone()).await {
            Err(LaunchError::Image(OpenError::Missing { digest } | OpenError::Damaged { digest, .. })) => {
                self.fetches.fetch(digest, deadline).await?;
                self.launcher.launch(launch).await
            }
            launched => launched,
        }
    }
}

/// How an attempt comes to this node.
#[derive(Debug)]
pub(super) enum Work {
    /// Claimed; to be launched, and to have registered by then.
    Launch(Box<Launch>, Instant),
    /// It runs since an earlier life of this service.
    Adopted(Process),
}

/// One attempt with its slot.
#[derive(Debug)]
pub(super) struct Attend {
    pub(super) shared: Arc<Shared>,
    pub(super) of: AttemptRef,
    pub(super) id: AttemptId,
    pub(super) slot: Slot,
    /// The newest order; closed: the service ends and its processes stay.
    pub(super) orders: watch::Receiver<Order>,
    /// Told when something of the instance changed.
    pub(super) heard: Arc<Notify>,
    /// Its place among the launches under way; none once it registered, or if it runs already.
    pub(super) under_way: Option<UnderWay>,
}

/// How a watched process ended.
enum Ending {
    /// By itself, or because its row did not name it any more.
    Itself,
    /// We killed it: it had not registered in time.
    Late,
    /// We ended it because the node drains.
    HandedBack,
    /// We ended it for reasons that are not the instance's, and who ordered it settles them all.
    Ours,
    /// It has not: it says that its instance has, and waits for another one.
    Done,
}

impl Attend {
    /// Returns when the attempt is over and everybody knows, or when the service ends and leaves
    /// the process to its next life.
    pub(super) async fn run(mut self, work: Work) {
        match work {
            Work::Adopted(process) => self.attend(process, Step::None).await,
            Work::Launch(..) if *self.orders.borrow_and_update() >= Order::HandBack => self.not_begun().await,
            Work::Launch(launch, deadline) => self.begin(*launch, deadline).await,
        }
    }

    /// A spare takes the attempt, or a process is launched for it. A spare that ended before it
    /// had read its document has touched nothing: the same claim is launched anew, and no crash
    /// is counted.
    async fn begin(mut self, launch: Launch, deadline: Instant) {
        if let Some(Handed { process, mut stay }) = self.shared.spares.take(&launch).await {
            // Nothing was launched that others would wait for.
            self.under_way = None;
            let ending = match self.watch(&process, Some(&mut stay), Step::Register(deadline)).await {
                None => return,
                Some(Ending::Itself) if !stay.was_taken() => None,
                Some(ending) => Some(ending),
            };
            let Some(ending) = ending else {
                info!("its spare ended before it had its launch document: launched anew");
                self.forget(process).await;
                return self.begin_anew(launch, deadline).await;
            };
            return self.ended(process, Some(stay), ending).await;
        }
        self.begin_anew(launch, deadline).await;
    }

    async fn begin_anew(self, launch: Launch, deadline: Instant) {
        match self.launch(launch, deadline).await {
            Ok(process) => self.attend(process, Step::Register(deadline)).await,
            Err(error) => self.not_launched(&error).await,
        }
    }

    async fn attend(mut self, process: Process, first: Step) {
        let Some(ending) = self.watch(&process, None, first).await else { return };
        self.ended(process, None, ending).await;
    }

    /// Nothing of it is worth keeping.
    async fn forget(&self, process: Process) {
        if let Err(error) = process.collect().await {
            error!(%error, "the end of a process cannot be collected");
        }
        let (attempts, directory) = (self.shared.attempts.clone(), process.directory().clone());
        let done = spawn_blocking(move || attempts.discard(&directory)).await;
        if let Err(error) = done.map_err(io::Error::other).flatten() {
            warn!(%error, "the files of a process that did nothing cannot be removed");
        }
    }

    /// Its process has ended, or says that its instance has.
    async fn ended(mut self, mut process: Process, mut stay: Option<Stay>, mut ending: Ending) {
        if let (Ending::Done, Some(stay)) = (&ending, stay.take()) {
            process = match self.shared.spares.again(process, stay).await {
                Ok(again) => return self.goes_on_without(again).await,
                // Its channel is closed, and it leaves.
                Err(process) => process,
            };
            let leave = Step::Ask(Instant::now() + self.shared.options.grace.before_ask);
            match self.watch(&process, None, leave).await {
                Some(later) => ending = later,
                None => return,
            }
        }
        let report = match process.collect().await {
            Ok(exit) => exit.report,
            Err(error) => {
                error!(%error, "the end of a process cannot be collected");
                ExitReport { reason: ExitReason::Unknown, stderr_tail: String::new() }
            }
        };
        self.over(ending, report).await;
    }

    /// The attempt is over and its process is not. The row has the last word, as ever: only if it says that the
    /// instance had ended (or went on elsewhere) is the process used again. It holds its slot until then, so that
    /// whoever is claimed next finds it, and no other process is launched beside it.
    async fn goes_on_without(self, again: spares::Again) {
        drop(self.under_way);
        fault::point("supervisor.exit_seen");
        let (shared, of) = (&self.shared, self.of);
        shared.failures.forget(of.instance);
        let directory = shared.attempts.directory(&self.id);
        let stderr_tail = tail_text(&directory.stream(Stream::Stderr), STDERR_TAIL).unwrap_or_default();
        let report = ExitReport { reason: ExitReason::Code(0), stderr_tail };
        let told = if shared.ledger.note_now(&shared.store, of, report.clone()).await {
            Some(AfterExit::Recorded)
        } else {
            tell(&self.orders, || shared.store.exited(of, report.clone())).await
        };
        fault::point("supervisor.exit_told");
        let moved = if let Some(AfterExit::Recorded) = told {
            again.move_out(&self.id).await.ok()
        } else {
            warn!("a process that says that its instance has ended is ended: the store does not say so");
            again.end().await;
            None
        };
        if told.is_some() && !matches!(moved, Some((_, Files::Taken))) {
            shared.put_away(self.id).await;
            fault::point("supervisor.put_away");
        }
        // Not before: two attempts' records must not name one process.
        match moved {
            Some((ready, _)) => ready.stand_by(self.slot),
            None => drop(self.slot),
        }
    }

    async fn launch(&self, launch: Launch, deadline: Instant) -> Result<Process, LaunchError> {
        if Instant::now() >= deadline {
            return Err(LaunchError::TooLate);
        }
        let launched = self.shared.launch_here(launch, deadline).await?;
        debug!(pid = launched.process.pid, "launched");
        match Process::watch(launched) {
            Ok(process) => Ok(process),
            Err(source) => {
                // It was killed, so nothing of it is worth keeping.
                put_away(self.shared.attempts.clone(), self.id.clone()).await;
                Err(LaunchError::HandOver { what: "it could not be watched", source })
            }
        }
    }

    /// What lies in the image or in the start counts like a crash, so that it has an end; what
    /// lies in this node gives the claim back: another try later, perhaps on another node.
    async fn not_launched(self, error: &LaunchError) {
        let reason = chain(error);
        warn!(%reason, "a launch failed");
        drop((self.slot, self.under_way));
        let (store, of) = (&self.shared.store, self.of);
        let retry_in = self.shared.failures.count(self.of.instance, &self.shared.options);
        if error.is_instances_fault() {
            tell(&self.orders, || store.launch_failed(of, reason.clone())).await;
        } else {
            tell(&self.orders, || store.give_back(of, retry_in, reason.clone())).await;
        }
    }

    /// Claimed in the moment before the node was asked to drain.
    async fn not_begun(self) {
        drop((self.slot, self.under_way));
        self.shared.hand_back(&self.orders, self.of).await;
    }

    /// Until the process has ended: `None` if the service ends before and leaves it.
    async fn watch(&mut self, process: &Process, mut stay: Option<&mut Stay>, first: Step) -> Option<Ending> {
        let options = &self.shared.options;
        // Most attempts are over before the first look at their output.
        let mut keeper: Option<Keeper> = None;
        let mut tick = interval_at(Instant::now() + options.trim_every, options.trim_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ladder = Ladder { step: first, ending: Ending::Itself };
        // One that came before anybody waited for changes.
        ladder.order(*self.orders.borrow_and_update(), options);
        let mut pid_told = false;
        loop {
            let next = ladder.next_at();
            tokio::select! {
                biased;
                ended = process.ended() => {
                    if let Err(error) = ended {
                        error!(%error, "a process cannot be watched");
                    }
                    return Some(ladder.ending);
                }
                () = done(stay.as_deref_mut()) => {
                    if ladder.lets_go_on(*self.orders.borrow()) {
                        return Some(Ending::Done);
                    }
                    // It is asked to leave, and leaves when nobody can give it more.
                    stay.as_deref_mut().into_iter().for_each(Stay::close);
                }
                changed = self.orders.changed() => match changed {
                    Ok(()) => {
                        let order = *self.orders.borrow_and_update();
                        ladder.order(order, options);
                    }
                    Err(_) => return None,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.climb(process, &mut ladder).await;
                }
                // What changes first after its launch is that it registers.
                () = self.heard.notified(), if self.under_way.is_some() => {
                    self.under_way.take().into_iter().for_each(UnderWay::over);
                }
                () = given_up(self.under_way.as_ref()) => self.under_way = None,
                _ = tick.tick() => {
                    let directory = process.directory();
                    keeper.get_or_insert_with(|| Keeper::new(directory, options.stream_bytes)).hold().await;
                    // Most attempts are over by the first tick and spare the database this.
                    if !pid_told && process.age() >= options.trim_every {
                        pid_told = true;
                        self.tell_pid(process).await;
                    }
                }
            }
        }
    }

    /// The ladder's next step is due.
    async fn climb(&self, process: &Process, ladder: &mut Ladder) {
        let options = &self.shared.options;
        let done = match ladder.step {
            Step::None => Ok(()),
            Step::Register(_) => {
                ladder.step = self.look_for_registration().await;
                if matches!(ladder.step, Step::None | Step::Register(_)) {
                    return;
                }
                warn!("not registered before the launch deadline: killed");
                ladder.ending = Ending::Late;
                Ok(())
            }
            Step::Ask(_) => {
                ladder.step = Step::Kill(Instant::now() + options.grace.before_kill);
                process.ask()
            }
            Step::Kill(_) => {
                // Again, should something have escaped while we looked.
                ladder.step = Step::Kill(Instant::now() + options.grace.before_kill);
                process.kill_all().await
            }
        };
        if let Err(error) = done {
            error!(%error, "a process cannot be signalled");
        }
    }

    /// Asked once, a moment before the deadline. Without an answer nobody else can claim the row
    /// either, so it is asked again.
    async fn look_for_registration(&self) -> Step {
        let AttemptId { tenant, instance, attempt } = &self.id;
        match self.shared.store.attempts(tenant, instance, 1).await {
            Ok(newest) => match newest.first() {
                Some(record) if record.attempt == *attempt && record.registered_at.is_none() => {
                    Step::Kill(Instant::now())
                }
                _ => Step::None,
            },
            Err(_) => Step::Register(Instant::now() + self.shared.options.report_retry),
        }
    }

    async fn tell_pid(&self, process: &Process) {
        let pid = process.id().pid.unsigned_abs();
        // For people only: neither an outage nor a slow database holds up the watch.
        let told = timeout(Duration::from_secs(1), self.shared.store.launched(self.of, pid)).await;
        debug!(pid, ?told, "told its process");
    }

    /// Everything of the attempt has ended: tell it, then put its files away. In this order: who
    /// is cut off in between finds the record at the next start and tells it again.
    async fn over(self, ending: Ending, report: ExitReport) {
        drop((self.slot, self.under_way));
        fault::point("supervisor.exit_seen");
        let seen = Instant::now();
        debug!(reason = %report.reason, "ended");
        let (store, of) = (&self.shared.store, self.of);
        let told = match ending {
            // Settled by who ordered it: no crash.
            Ending::Ours | Ending::Done => true,
            Ending::HandedBack => self.shared.hand_back(&self.orders, of).await,
            Ending::Itself => {
                self.shared.failures.forget(of.instance);
                let in_order = report.reason == ExitReason::Code(0);
                let told = in_order && self.shared.ledger.note(store, of, report.clone()).await
                    || tell(&self.orders, || store.exited(of, report.clone())).await.is_some();
                timings::launch(timings::Launch::Exit, seen.elapsed());
                told
            }
            // A slow start is no crash.
            Ending::Late => {
                let message = ExitReason::LaunchDeadline.to_string();
                let retry_in = self.shared.failures.count(of.instance, &self.shared.options);
                tell(&self.orders, || store.give_back(of, retry_in, message.clone())).await.is_some()
            }
        };
        fault::point("supervisor.exit_told");
        if told {
            self.shared.put_away(self.id).await;
            fault::point("supervisor.put_away");
        }
    }
}

/// Tells the store until it has heard, and answers what it said; `None` if the service ends before, or if the store
/// refuses for good.
async fn tell<F, T>(orders: &watch::Receiver<Order>, mut call: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = store::Result<T>>,
{
    let mut pause = Duration::from_millis(50);
    loop {
        match call().await {
            Ok(answer) => return Some(answer),
            Err(error) if error.retry() == Retry::Never => {
                error!(error = %chain(&error), "the store takes no report of this attempt");
                return None;
            }
            Err(error) if orders.has_changed().is_err() => {
                info!(error = %chain(&error), "left to the next start: the store does not answer");
                return None;
            }
            Err(error) => debug!(%error, "the store does not answer; the report is repeated"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Removes what nobody needs of an ended attempt and keeps its output.
pub(crate) async fn put_away(attempts: Attempts, id: AttemptId) {
    let done = spawn_blocking(move || attempts.archive(&id)).await;
    note_put_away(done.map_err(io::Error::other).flatten());
}

fn note_put_away(done: io::Result<()>) {
    if let Err(error) = done {
        // At the next start it is found and tried again.
        warn!(%error, "the files of an ended attempt cannot be put away");
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// When a launch is not waited for any more.
async fn given_up(under_way: Option<&UnderWay>) {
    match under_way {
        Some(under_way) => sleep_until(under_way.until()).await,
        None => std::future::pending().await,
    }
}

/// What is done to a process next, and when.
struct Ladder {
    step: Step,
    ending: Ending,
}

/// When.
#[derive(Clone, Copy)]
enum Step {
    None,
    Register(Instant),
    Ask(Instant),
    Kill(Instant),
}

/// Returns when a process that may serve another instance says that this one's has ended.
async fn done(stay: Option<&mut Stay>) {
    match stay {
        Some(stay) => stay.done().await,
        None => std::future::pending().await,
    }
}

impl Ladder {
    /// Nobody wants the process to end: at most it was left to itself, since its ending was seen before its word.
    fn lets_go_on(&self, order: Order) -> bool {
        matches!(self.ending, Ending::Itself) && order <= Order::Leave && !matches!(self.step, Step::Kill(_))
    }

    fn next_at(&self) -> Option<Instant> {
        match self.step {
            Step::None => None,
            Step::Register(at) | Step::Ask(at) | Step::Kill(at) => Some(at),
        }
    }

    /// A step that is further on already stays, unless the order hastens it.
    fn order(&mut self, order: Order, options: &Options) {
        let now = Instant::now();
        match (order, self.step) {
            (Order::Run, _) | (Order::Leave, Step::Ask(_) | Step::Kill(_)) | (Order::Ask, Step::Kill(_)) => {}
            (Order::Leave, _) => self.step = Step::Ask(now + options.grace.before_ask),
            (Order::Ask, _) => self.step = Step::Ask(now),
            (Order::HandBack | Order::Stop, step) => {
                self.step = if let Step::Kill(_) = step { step } else { Step::Ask(now) };
                self.ending = if order == Order::Stop { Ending::Ours } else { Ending::HandedBack };
            }
            (Order::Kill, _) => {
                self.step = Step::Kill(now);
                self.ending = Ending::Ours;
            }
        }
    }
}
