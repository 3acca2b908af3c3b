//! Watches the processes of instances.
//!
//! - [`exit`]: one process until its end, and how it ended.
//! - [`adopt`]: which processes of this service's earlier life still run.
//! - [`attend`]: one attempt from its launch until its end is told.
//! - [`ledger`]: ends that leave nothing to decide, told together.
//! - [`logs`]: output files, held to a limit and read by offset.
//!
//! The component [`Supervisor`] holds one task per attempt, compares what runs here with what the
//! store says should, and ends what should not: an attempt whose instance ended, was stopped, or
//! went on elsewhere.
//!
//! It believes the row, not the exit code: whether an end was a crash is the store's to say. It
//! never starts an attempt by itself: the wake scheduler does, through [`Handle::start`]. Keeps
//! invariant 7's part here: the end of every process that was launched is told, or found and
//! settled at the next start.

mod adopt;
mod attend;
mod exit;
mod group;
mod ledger;
pub mod logs;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use dormouse_core::{
    domain::{id::InstanceKey, outcome::EndedBy},
    fault, logging,
    store::{self, AttemptRef, NodeLease, Notice, Notices, Store, Superseded},
};
use dormouse_proto::code::{Code, Coded};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

pub use self::{
    adopt::{Found, adopt},
    exit::{Exit, Grace, Process, STDERR_TAIL},
};
use self::{
    attend::{Attend, Failures, Order, Shared, Work},
    ledger::Ledger,
};
use crate::{
    attempts::{AttemptId, Attempts},
    condition::{Condition, Facts},
    images::cluster::Fetches,
    launcher::{Launch, Launcher},
    node::{Slot, Slots},
    pace::UnderWay,
    spares,
};

pub(crate) use self::{
    attend::{chain, put_away},
    group::kill_all as kill_recorded,
};

/// How processes are watched.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a process may take to leave once its row does not name it any more.
    pub grace: Grace,
    /// Longest time between two comparisons with the store.
    pub poll: Duration,
    /// From a notice to the comparison it causes: many come at once.
    pub look_delay: Duration,
    /// How often the length of output files is looked at.
    pub trim_every: Duration,
    /// Bytes kept of one stream of one attempt.
    pub stream_bytes: u64,
    /// From a launch that failed to the next try; doubles with each further one.
    pub launch_retry: Duration,
    /// Longest pause between two tries to launch.
    pub launch_retry_max: Duration,
    /// Between two tries of the database.
    pub report_retry: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            grace: Grace::default(),
            poll: Duration::from_secs(5),
            look_delay: Duration::from_millis(200),
            trim_every: Duration::from_secs(1),
            stream_bytes: logs::DEFAULT_STREAM_BYTES,
            launch_retry: Duration::from_secs(1),
            launch_retry_max: Duration::from_mins(5),
            report_retry: Duration::from_millis(500),
        }
    }
}

/// Why the supervisor gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A defect of ours.
    #[error("a task of the supervisor panicked")]
    Panicked(#[from] JoinError),
    /// Trying again cannot help.
    #[error("the store refuses this node")]
    Store(#[from] store::Error),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Panicked(_) => Code::Internal,
            Self::Store(source) => source.code(),
        }
    }
}

/// A claimed attempt with all that its launch needs.
#[derive(Debug)]
pub struct Start {
    /// Which attempt, for the store.
    pub of: AttemptRef,
    /// What to launch.
    pub launch: Launch,
    /// If it has not registered by then, it is killed: a moment before the row is due again.
    pub register_by: Instant,
    /// Its slot.
    pub slot: Slot,
    /// Its place among the launches under way.
    pub under_way: UnderWay,
}

/// An attempt whose process outlived the service.
#[derive(Debug)]
pub struct Adopted {
    /// Which attempt, for the store.
    pub of: AttemptRef,
    /// Which attempt, for people and paths.
    pub id: AttemptId,
    /// Its process.
    pub process: Process,
}

/// Hands claimed attempts to the supervisor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    starts: mpsc::Sender<Start>,
}

impl Handle {
    /// Takes over a claimed attempt. False: the supervisor has ended; the claim then heals by its
    /// launch deadline, or is settled at the next start.
    pub async fn start(&self, start: Start) -> bool {
        self.starts.send(start).await.is_ok()
    }

    /// Of a supervisor that has ended.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self { starts: mpsc::channel(1).0 }
    }
}

/// How the supervisor ends.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Nothing new is started; processes stay, and are adopted at the next start.
    pub leave: CancellationToken,
    /// Processes are ended too, and their instances go back to the wake queue.
    pub end_processes: CancellationToken,
    /// The lease is lost: others launch what runs here, so it is killed.
    pub lost: CancellationToken,
}

/// Watches all processes of this node.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    lease: NodeLease,
    slots: Slots,
    /// Told when the node is asked to drain.
    condition: watch::Receiver<Facts>,
    starts: mpsc::Receiver<Start>,
    tasks: JoinSet<AttemptRef>,
    tracked: HashMap<AttemptRef, Tracked>,
    /// Instances of which a notice came since the last comparison.
    noticed: Noticed,
}

/// What the loop holds of an attempt. Dropped, it tells the attempt's task that the service ends.
#[derive(Debug)]
struct Tracked {
    orders: watch::Sender<Order>,
    /// Something of its instance changed.
    heard: Arc<Notify>,
}

impl Tracked {
    /// Only ever more urgent.
    fn order(&self, new: Order) {
        self.orders.send_if_modified(|order| {
            let more = new > *order;
            *order = new.max(*order);
            more
        });
    }
}

/// About whom something was told.
#[derive(Debug, Default)]
struct Noticed {
    some: HashSet<InstanceKey>,
    all: bool,
}

impl Noticed {
    fn concerns(&self, of: AttemptRef) -> bool {
        self.all || self.some.contains(&of.instance)
    }
}

/// Starts that wait for the supervisor's loop; whoever claims more waits.
const QUEUE: usize = 64;

impl Supervisor {
    /// For a node that holds its lease.
    #[expect(
        clippy::too_many_arguments,
        reason = "a part is made of the parts that it works with, in one place"
    )]
    pub(crate) fn new(
        options: Options,
        store: Store,
        attempts: Attempts,
        launcher: Launcher,
        lease: NodeLease,
        slots: Slots,
        condition: &Condition,
        spares: spares::Handle,
    ) -> (Self, Handle) {
        let (sender, starts) = mpsc::channel(QUEUE);
        let fetches = Fetches::new(store.clone(), launcher.images().clone());
        let (failures, condition) = (Failures::default(), condition.subscribe());
        let (lease_of, ledger) = (lease.clone(), Ledger::default());
        let shared =
            Shared { options, store, attempts, launcher, fetches, spares, lease: lease_of, failures, ledger };
        let (tracked, noticed) = (HashMap::new(), Noticed { all: true, ..Noticed::default() });
        let tasks = JoinSet::new();
        let this =
            Self { shared: Arc::new(shared), lease, slots, condition, starts, tasks, tracked, noticed };
        (this, Handle { starts: sender })
    }

    /// Watches what was adopted and what is started until `shutdown`; returns when every task has
    /// ended.
    pub async fn run(mut self, adopted: Vec<Adopted>, shutdown: Shutdown) -> Result<(), Error> {
        let mut notices = self.shared.store.notices();
        for Adopted { of, id, process } in adopted {
            let slot = self.slots.take();
            self.attend(of, id, slot, None, Work::Adopted(process));
        }
        let (mut look_at, mut poll_at) = (Instant::now(), Instant::now() + self.shared.options.poll);
        let mut looked_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = shutdown.lost.cancelled() => return self.end_all(Order::Kill).await,
                () = shutdown.end_processes.cancelled() => return self.end_all(Order::Stop).await,
                () = shutdown.leave.cancelled() => return self.leave_all().await,
                // It lives as long as the node.
                _ = self.condition.changed() => {
                    if self.suspends() {
                        self.tracked.values().for_each(|tracked| tracked.order(Order::HandBack));
                    }
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.tracked.remove(&done?);
                }
                Some(start) = self.starts.recv() => {
                    let Start { of, launch, register_by, slot, under_way } = start;
                    let id = launch.id.clone();
                    let work = Work::Launch(Box::new(launch), register_by);
                    self.attend(of, id, slot, Some(under_way), work);
                }
                open = concerned(&mut notices, &self.tracked, &mut self.noticed) => {
                    if !open { return self.leave_all().await }
                    // At once, unless there was a look a moment ago: many notices come together.
                    look_at = look_at.min((looked_at + self.shared.options.look_delay).max(Instant::now()));
                }
                () = sleep_until(look_at), if !self.tracked.is_empty() => {
                    let poll = self.shared.options.poll;
                    let now = Instant::now();
                    looked_at = now;
                    if now >= poll_at {
                        self.noticed.all = true;
                        poll_at = now + poll;
                    }
                    look_at = poll_at;
                    match self.compare().await {
                        Ok(next_in) => look_at = look_at.min(Instant::now() + next_in.min(poll)),
                        Err(error @ (store::Error::LeaseLost { .. } | store::Error::LeaseTaken { .. })) => {
                            warn!(%error, "this node has lost its lease: its processes are ended");
                            self.end_all(Order::Kill).await?;
                            return Err(error.into());
                        }
                        Err(error) => {
                            self.noticed.all = true;
                            warn!(error = %chain(&error), code = %error.code(), "what should run here is not known now");
                        }
                    }
                }
            }
        }
    }

    fn attend(&mut self, of: AttemptRef, id: AttemptId, slot: Slot, under_way: Option<UnderWay>, work: Work) {
        let first = if self.suspends() { Order::HandBack } else { Order::Run };
        let (sender, orders) = watch::channel(first);
        let heard = Arc::new(Notify::new());
        let span = logging::attempt(&id.tenant, &id.instance, id.attempt.0);
        self.tracked.insert(of, Tracked { orders: sender, heard: Arc::clone(&heard) });
        let attend = Attend { shared: Arc::clone(&self.shared), of, id, slot, orders, heard, under_way };
        let work = async move {
            attend.run(work).await;
            of
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Whether the node gives back what runs.
    fn suspends(&mut self) -> bool {
        self.condition.borrow_and_update().suspends()
    }

    /// One pass: ends what the store does not want here any more.
    /// Answers when a cancel's grace ends.
    async fn compare(&mut self) -> Result<Duration, store::Error> {
        let overdue = self.shared.store.cancel_overdue(&self.lease).await?;
        // Most of those that a notice came of have ended since, and are not asked about.
        let noticed = std::mem::take(&mut self.noticed);
        let ours: Vec<AttemptRef> = self.tracked.keys().copied().filter(|of| noticed.concerns(*of)).collect();
        for (of, why) in self.shared.store.superseded(&self.lease.node, &ours).await? {
            let urgency = match why {
                // The first two are on their way out; of a stop the process has been told.
                Superseded::Suspended | Superseded::Ended(_, EndedBy::Instance | EndedBy::Controller) => {
                    Order::Leave
                }
                Superseded::Fenced | Superseded::Ended(_, EndedBy::Node | EndedBy::Deadline) => Order::Ask,
            };
            if let Some(tracked) = self.tracked.get(&of) {
                tracked.order(urgency);
            }
        }
        Ok(overdue.next_in)
    }

    /// Launches that are under way are finished; processes stay. What was claimed and not begun
    /// goes back to the wake queue.
    async fn leave_all(mut self) -> Result<(), Error> {
        self.starts.close();
        let known: Vec<AttemptRef> = self.tracked.keys().copied().collect();
        // Closed channels tell the tasks.
        self.tracked.clear();
        self.shared.fetches.stop().await;
        while let Some(done) = self.tasks.join_next().await {
            done?;
        }
        self.give_back_unbegun(&known).await;
        info!(processes = known.len(), "left running; the next start adopts them");
        Ok(())
    }

    /// Ends every process. What they worked on is given back by [`Supervisor::run`]'s caller,
    /// once nobody claims any more: no crash is counted.
    async fn end_all(&mut self, how: Order) -> Result<(), Error> {
        self.starts.close();
        self.tracked.values().for_each(|tracked| tracked.order(how));
        self.shared.fetches.stop().await;
        let mut n_ended = 0;
        while let Some(done) = self.tasks.join_next().await {
            self.tracked.remove(&done?);
            n_ended += 1;
        }
        fault::point("supervisor.all_ended");
        info!(processes = n_ended, "ended");
        Ok(())
    }

    async fn give_back_unbegun(&self, known: &[AttemptRef]) {
        match self.shared.store.settle(&self.lease, known).await {
            Ok(returned) => info!(claims = returned.len(), "given back"),
            // They heal by their launch deadline, or at the next start.
            Err(error) => warn!(error = %chain(&error), "claims are not given back now"),
        }
    }
}

/// Notes a notice about something that runs here, and returns; false: the store is closed.
async fn concerned(
    notices: &mut Notices,
    tracked: &HashMap<AttemptRef, Tracked>,
    noticed: &mut Noticed,
) -> bool {
    loop {
        match notices.next().await {
            Some(Notice::Instance(key)) => {
                let mut ours = tracked.iter().filter(|(of, _)| of.instance == key).peekable();
                if ours.peek().is_some() {
                    ours.for_each(|(_, tracked)| tracked.heard.notify_waiters());
                    noticed.some.insert(key);
                    return true;
                }
            }
            Some(Notice::Everything) => {
                noticed.all = true;
                return true;
            }
            Some(Notice::Wakes | Notice::Ended(_) | Notice::Tokens | Notice::Images) => {}
            None => return false,
        }
    }
}
