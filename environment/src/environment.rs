//! The services of one node, wired: images, launcher, supervisor, wake scheduler.
//!
//! The start has one order: take the lease, look which processes of the last life still run,
//! settle what has none, and only then claim (so nothing is launched beside itself). The end
//! too: claims stop, launches that are under way finish, processes stay for the next life (or
//! are ended, see [`Handle::end_processes`]).
//!
//! A node that learns that its lease is lost kills its processes, since others go on with their
//! instances, takes a new lease, settles and goes on: nobody has to help it. If another service
//! took the lease, with a copy of this node's directory, it kills them and ends with an error.
//!
//! It opens no port: the management server is given a [`Handle`] and runs beside it.

use std::{collections::BTreeMap, ffi::OsString, io, time::Duration};

use dormouse_core::{
    domain::id::NodeId,
    fault, logging,
    store::{self, AttemptRef, Kind, NewNode, NodeLease, Store},
};
use dormouse_proto::code::{Code, Coded, Retry};
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

use crate::{
    attempts::{AttemptId, Attempts, Retention},
    condition::Condition,
    eager::Desk,
    house::House,
    images::{DEFAULT_MAX_BYTES, Images},
    launcher::{DEFAULT_OPEN_FILES, Launcher, Surroundings},
    lease::LeaseKeeper,
    node::{DataDirectory, DirectoryError, Slots, default_slots, host_name},
    scheduler::{self, WakeScheduler},
    spares::{self, Pool},
    supervisor::{self, Adopted, Found, Supervisor, chain},
    watch::{self, Watcher},
};

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// How this node is called in lists, for people.
    pub name: String,
    /// "host:port" where this node's management server listens; for other nodes and people.
    pub address: String,
    /// "host:port" of core replicas.
    pub core_addresses: Vec<String>,
    /// The authority's certificate, by which processes recognise core.
    pub authority_pem: String,
    /// The service's own environment: some variables are handed on to processes.
    pub environment: BTreeMap<OsString, OsString>,
    /// Idle time before an instance suspends; none: the SDK's default.
    pub idle_before_suspend: Option<Duration>,
    /// Processes at the same time.
    pub slots: usize,
    /// Bytes of the largest image.
    pub image_bytes: u64,
    /// Descriptors that a process may open.
    pub open_files: u64,
    /// How much of what ended attempts wrote is kept.
    pub retention: Retention,
    /// How wakes are claimed.
    pub scheduler: scheduler::Options,
    /// How processes are watched.
    pub supervisor: supervisor::Options,
}

impl Options {
    /// The defaults for a node with these addresses.
    pub fn new(address: String, core_addresses: Vec<String>, authority_pem: String) -> Self {
        Self {
            name: host_name(),
            address,
            core_addresses,
            authority_pem,
            environment: BTreeMap::new(),
            idle_before_suspend: None,
            slots: default_slots(),
            image_bytes: DEFAULT_MAX_BYTES,
            open_files: DEFAULT_OPEN_FILES,
            retention: Retention::default(),
            scheduler: scheduler::Options::default(),
            supervisor: supervisor::Options::default(),
        }
    }
}

/// Why the node does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Files in its directory, or the kernel.
    #[error("the node cannot start: {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Trying again cannot help.
    #[error("the store refuses this node")]
    Store(#[from] store::Error),
    /// The store cannot go on.
    #[error("the disk did not flush the database; check the disk, then start the service again: it recovers")]
    StoreBroken,
    /// Its supervisor gave up.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
    /// A defect of ours.
    #[error("a task of the node panicked")]
    Panicked(#[from] JoinError),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Directory(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::StoreBroken => Code::Unavailable,
            Self::Supervisor(source) => source.code(),
            Self::Io { .. } | Self::Panicked(_) => Code::Internal,
        }
    }
}

/// What the management server works with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    /// This node.
    pub node: NodeId,
    /// Images on this node.
    pub images: Images,
    /// Output of attempts on this node.
    pub attempts: Attempts,
    /// Keeps the addresses that processes read.
    pub launcher: Launcher,
    /// How many processes run here.
    pub slots: Slots,
    /// Whether it claims, and why not.
    pub condition: Condition,
    /// Lets starts in that are claimed at once.
    pub desk: Desk,
    end_processes: CancellationToken,
}

impl Handle {
    /// Ends the node together with its processes: they are asked, then killed, and their
    /// instances go back to the wake queue. No crash is counted.
    pub fn end_processes(&self) {
        self.end_processes.cancel();
    }
}

/// A node that holds its lease, has adopted and settled, and is ready to claim.
#[derive(Debug)]
pub struct Environment {
    options: Options,
    store: Store,
    node: NewNode,
    lease: NodeLease,
    handle: Handle,
    adopted: Vec<Adopted>,
    /// The lock; given back when everything has ended.
    directory: DataDirectory,
}

impl Environment {
    /// Takes the lease, adopts and settles. Within a tokio runtime.
    pub async fn open(directory: DataDirectory, store: Store, options: Options) -> Result<Self, Error> {
        let handle = open_parts(&directory, &options).await?;
        let node = NewNode {
            id: directory.node().clone(),
            name: options.name.clone(),
            address: options.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: u32::try_from(options.slots).unwrap_or(u32::MAX),
            lease: store.lease(),
        };
        let lease = store.lease_node(node.clone()).await?;
        fault::point("environment.leased");
        let adopted = settle(&handle.attempts, &store, &lease).await?;
        let this = Self { options, store, node, lease, handle, adopted, directory };
        // What was asked of it before it was started: a drained node stays drained.
        this.keeper().renew().await?;
        Ok(this)
    }

    /// For whoever runs beside it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `shutdown`, or until processes are to be ended, or until trying again cannot
    /// help. Then processes stay, unless [`Handle::end_processes`] was called.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        loop {
            let ended = self.live(&shutdown).await;
            let stopping = shutdown.is_cancelled() || self.handle.end_processes.is_cancelled();
            match ended {
                // Its processes are gone, so there is nothing left to lose.
                Err(error) if is_lease_lost(&error) && stopping => return Ok(()),
                Err(error) if is_lease_lost(&error) => {
                    if !self.begin_again(&shutdown).await? {
                        return Ok(());
                    }
                }
                ended => return ended,
            }
        }
    }

    fn keeper(&self) -> LeaseKeeper {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        LeaseKeeper::new(store, lease, self.handle.condition.clone(), self.directory.path().to_owned())
    }

    /// As long as one lease lasts.
    async fn live(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        // Whatever ends first ends the others: claims before the supervisor that takes them, and
        // the lease last, so that nobody takes over what is being ended in order.
        let (stop_claims, leave) = (shutdown.child_token(), CancellationToken::new());
        let (lost, let_go) = (CancellationToken::new(), CancellationToken::new());
        let ends = supervisor::Shutdown {
            leave: leave.clone(),
            end_processes: self.handle.end_processes.clone(),
            lost: lost.clone(),
        };
        let mut tasks = self.spawn_parts(ends, &stop_claims, &let_go);
        let condition = self.handle.condition.clone();
        let mut result = Ok(());
        let mut ended = async |tasks: &mut JoinSet<_>| match tasks.join_next().await {
            None => false,
            Some(done) => {
                match done.map_err(Error::from).flatten() {
                    Ok(Part::Scheduler) => leave.cancel(),
                    Ok(Part::Supervisor) => let_go.cancel(),
                    Ok(Part::Lease | Part::Watcher | Part::House | Part::Spares) => {}
                    Err(error) => {
                        if ends_lease(&error) {
                            condition.change(|facts| _ = facts.lease_lost.get_or_insert_with(Instant::now));
                            lost.cancel();
                        }
                        leave.cancel();
                        let_go.cancel();
                        if result.is_ok() {
                            result = Err(error);
                        }
                    }
                }
                stop_claims.cancel();
                true
            }
        };
        let end_processes = self.handle.end_processes.clone();
        loop {
            tokio::select! {
                more = ended(&mut tasks) => if !more { break },
                () = end_processes.cancelled(), if !stop_claims.is_cancelled() => stop_claims.cancel(),
            }
        }
        if end_processes.is_cancelled() && result.is_ok() {
            // Every process has ended and nobody claims any more.
            result = self.store.settle(&self.lease, &[]).await.map(drop).map_err(Into::into);
        }
        result
    }

    fn spawn_parts(
        &mut self,
        ends: supervisor::Shutdown,
        stop_claims: &CancellationToken,
        let_go: &CancellationToken,
    ) -> JoinSet<Result<Part, Error>> {
        let Self { options, store, lease, handle, .. } = self;
        let Handle { attempts, launcher, slots, condition, desk, .. } = handle.clone();
        let (pool, spares) = Pool::new(
            store.clone(),
            launcher.clone(),
            attempts.clone(),
            lease.clone(),
            slots.clone(),
            condition.clone(),
        );
        let (supervisor, starts) = Supervisor::new(
            options.supervisor.clone(),
            store.clone(),
            attempts,
            launcher,
            lease.clone(),
            slots.clone(),
            &condition,
            spares,
        );
        let (scheduler, _) = WakeScheduler::new(
            options.scheduler.clone(),
            store.clone(),
            lease.clone(),
            slots,
            condition,
            starts,
            desk,
        );
        let house = House::new(store.clone(), handle.images.clone(), handle.attempts.clone());
        let keeper = self.keeper();
        let adopted = std::mem::take(&mut self.adopted);
        let mut tasks = JoinSet::new();
        let watching = async move {
            supervisor.run(adopted, ends).await.map(|()| Part::Supervisor).map_err(Error::from)
        };
        tasks.spawn(watching.in_current_span());
        let stop = stop_claims.clone();
        let keeping_ready = async move { pool.run(stop).await.map(|()| Part::Spares).map_err(Into::into) };
        tasks.spawn(keeping_ready.in_current_span());
        let stop = stop_claims.clone();
        let scheduling =
            async move { scheduler.run(stop).await.map(|()| Part::Scheduler).map_err(Into::into) };
        tasks.spawn(scheduling.in_current_span());
        let stop = let_go.clone();
        let keeping = async move { keeper.run(stop).await.map(|()| Part::Lease).map_err(Into::into) };
        tasks.spawn(keeping.in_current_span());
        let stop = let_go.clone();
        tasks.spawn(async move { house.run(stop).await.map(|()| Part::House) }.in_current_span());
        // One machine's node has nobody to watch.
        if self.store.kind() == Kind::Postgres {
            let options = watch::Options::for_lease(self.store.lease());
            let watcher = Watcher::new(&options, self.store.clone(), self.lease.node.clone());
            let stop = let_go.clone();
            let looking = async move {
                watcher.run(stop).await;
                Ok(Part::Watcher)
            };
            tasks.spawn(looking.in_current_span());
        }
        let (store, stop) = (self.store.clone(), let_go.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = store.broken() => Err(Error::StoreBroken),
                () = stop.cancelled() => Ok(Part::House),
            }
        });
        tasks
    }

    /// Takes a new lease after the last one was lost, and settles. Tries for as long as trying
    /// can help; false: it was told to stop meanwhile.
    async fn begin_again(&mut self, shutdown: &CancellationToken) -> Result<bool, Error> {
        loop {
            match self.retake().await {
                Ok(()) => break,
                Err(error) if error.retry() == Retry::Never && !is_lease_lost(&error) => return Err(error),
                Err(error) => warn!(error = %chain(&error), "no new lease now; trying again"),
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(false),
                () = self.handle.end_processes.cancelled() => return Ok(false),
                () = sleep(RETAKE) => {}
            }
        }
        self.handle.condition.change(|facts| facts.lease_lost = None);
        info!(epoch = self.lease.epoch, "the node holds a new lease and goes on");
        Ok(true)
    }

    async fn retake(&mut self) -> Result<(), Error> {
        self.lease = self.store.retake_lease(&self.lease, self.node.clone()).await?;
        fault::point("environment.retaken");
        self.adopted = settle(&self.handle.attempts, &self.store, &self.lease).await?;
        Ok(())
    }
}

/// Between two tries to take a new lease.
const RETAKE: Duration = Duration::from_secs(1);

/// Whether watchers took the lease.
fn is_lease_lost(error: &Error) -> bool {
    matches!(stored(error), Some(store::Error::LeaseLost { .. }))
}

/// Whether the node does not hold its lease any more, whoever has it.
fn ends_lease(error: &Error) -> bool {
    matches!(stored(error), Some(store::Error::LeaseLost { .. } | store::Error::LeaseTaken { .. }))
}

/// What the store said, whoever asked it.
fn stored(error: &Error) -> Option<&store::Error> {
    match error {
        Error::Store(error) | Error::Supervisor(supervisor::Error::Store(error)) => Some(error),
        Error::Directory(_)
        | Error::Io { .. }
        | Error::StoreBroken
        | Error::Supervisor(_)
        | Error::Panicked(_) => None,
    }
}

/// Which part has ended.
enum Part {
    Spares,
    Supervisor,
    Scheduler,
    Lease,
    Watcher,
    House,
}

async fn open_parts(directory: &DataDirectory, options: &Options) -> Result<Handle, Error> {
    let (data, node) = (directory.path().to_owned(), directory.node().clone());
    let surroundings = Surroundings {
        environment: options.environment.clone(),
        core_addresses: options.core_addresses.clone(),
        authority_pem: options.authority_pem.clone(),
        idle_before_suspend: options.idle_before_suspend,
        open_files: options.open_files,
    };
    let (image_bytes, retention, slots) = (options.image_bytes, options.retention, Slots::new(options.slots));
    let opened = spawn_blocking(move || -> io::Result<Handle> {
        let images = Images::open(&data, image_bytes)?;
        let attempts = Attempts::open(&data, retention)?;
        let launcher = Launcher::open(&data, images.clone(), attempts.clone(), surroundings)?;
        let condition = Condition::new(slots.clone(), launcher.in_force());
        let end_processes = CancellationToken::new();
        let desk = Desk::default();
        Ok(Handle { node, images, attempts, launcher, slots, condition, desk, end_processes })
    });
    opened.await?.map_err(|source| Error::Io { what: "its folders cannot be made", source })
}

/// Looks which processes of the last life still run, and gives back what has none.
async fn settle(attempts: &Attempts, store: &Store, lease: &NodeLease) -> Result<Vec<Adopted>, Error> {
    let looked = {
        let attempts = attempts.clone();
        // Watching needs the runtime's context, which a blocking thread has.
        let look = move || {
            // First: one that had just served an attempt is recorded in both places.
            spares::end_leftovers(&attempts)?;
            supervisor::adopt(&attempts)
        };
        spawn_blocking(look).await?
    };
    let found =
        looked.map_err(|source| Error::Io { what: "what ran before cannot be looked through", source })?;
    fault::point("environment.adopted");
    let (mut adopted, mut ended, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for found in found {
        match found {
            Found::Living { id, key, process } => {
                let of = AttemptRef { instance: key, attempt: id.attempt };
                adopted.push(Adopted { of, id, process });
            }
            Found::Ended { id, key, report } => {
                reports.push((AttemptRef { instance: key, attempt: id.attempt }, report));
                ended.push(id);
            }
        }
    }
    let known: Vec<AttemptRef> = adopted.iter().map(|adopted| adopted.of).collect();
    let returned = store.settle_ended(lease, &known, reports).await?;
    fault::point("environment.settled");
    info!(adopted = adopted.len(), ended = ended.len(), returned = returned.len(), "settled what ran before");
    put_away(attempts, ended).await;
    Ok(adopted)
}

async fn put_away(attempts: &Attempts, ended: Vec<AttemptId>) {
    for id in ended {
        let span = logging::attempt(&id.tenant, &id.instance, id.attempt.0);
        supervisor::put_away(attempts.clone(), id).instrument(span).await;
    }
}
