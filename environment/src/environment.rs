//! The services of one node, wired: images, launcher, supervisor, wake scheduler.
//!
//! The start has one order: take the lease, look which processes of the last life still run,
//! settle what has none, and only then claim (so nothing is launched beside itself). The end
//! too: claims stop, launches that are under way finish, processes stay for the next life (or
//! are ended, see [`Handle::end_processes`]).
//!
//! It opens no port: the management server is given a [`Handle`] and runs beside it.

use std::{collections::BTreeMap, ffi::OsString, io, time::Duration};

use dormouse_core::{
    domain::id::NodeId,
    fault, logging,
    store::{self, AttemptRef, Kind, NewNode, NodeLease, NodeReport, Store},
};
use dormouse_proto::code::{Code, Coded, Retry};
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

use crate::{
    attempts::{AttemptId, Attempts, Retention},
    house::House,
    images::{DEFAULT_MAX_BYTES, Images},
    launcher::{DEFAULT_OPEN_FILES, Launcher, Surroundings},
    node::{DataDirectory, DirectoryError, Slots, default_slots, host_name},
    scheduler::{self, WakeScheduler},
    supervisor::{self, Adopted, Found, Supervisor, chain},
};

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
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
    /// How long the node's lease lasts unrenewed, on PostgreSQL.
    pub lease: Duration,
    /// How wakes are claimed.
    pub scheduler: scheduler::Options,
    /// How processes are watched.
    pub supervisor: supervisor::Options,
}

impl Options {
    /// The defaults for a node with these addresses.
    pub fn new(address: String, core_addresses: Vec<String>, authority_pem: String) -> Self {
        Self {
            address,
            core_addresses,
            authority_pem,
            environment: BTreeMap::new(),
            idle_before_suspend: None,
            slots: default_slots(),
            image_bytes: DEFAULT_MAX_BYTES,
            open_files: DEFAULT_OPEN_FILES,
            retention: Retention::default(),
            lease: Duration::from_secs(15),
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
        let lease = store
            .lease_node(NewNode {
                id: directory.node().clone(),
                name: host_name(),
                address: options.address.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                slots: u32::try_from(options.slots).unwrap_or(u32::MAX),
                lease: options.lease,
            })
            .await?;
        fault::point("environment.leased");
        let adopted = settle(&handle.attempts, &store, &lease).await?;
        Ok(Self { options, store, lease, handle, adopted, directory })
    }

    /// For whoever runs beside it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `shutdown`, or until processes are to be ended, or until trying again cannot
    /// help. Then processes stay, unless [`Handle::end_processes`] was called.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { options, store, lease, handle, adopted, directory } = self;
        // Whatever ends first ends the others: claims before the supervisor that takes them.
        let (stop_claims, leave) = (shutdown.child_token(), CancellationToken::new());
        let lost = CancellationToken::new();
        let ends = supervisor::Shutdown {
            leave: leave.clone(),
            end_processes: handle.end_processes.clone(),
            lost: lost.clone(),
        };
        let (supervisor, starts) = Supervisor::new(
            options.supervisor,
            store.clone(),
            handle.attempts.clone(),
            handle.launcher.clone(),
            lease.clone(),
            handle.slots.clone(),
        );
        let (scheduler, _) =
            WakeScheduler::new(options.scheduler, store.clone(), lease.clone(), handle.slots.clone(), starts);
        let mut tasks: JoinSet<Result<Part, Error>> = JoinSet::new();
        tasks.spawn(
            async move { supervisor.run(adopted, ends).await.map(|()| Part::Supervisor).map_err(Into::into) }
                .in_current_span(),
        );
        let stop = stop_claims.clone();
        let scheduling =
            async move { scheduler.run(stop).await.map(|()| Part::Scheduler).map_err(Into::into) };
        tasks.spawn(scheduling.in_current_span());
        let keeping = keep_lease(store.clone(), lease.clone(), handle.clone(), options.lease, leave.clone());
        tasks.spawn(keeping.in_current_span());
        let house = House::new(store.clone(), handle.images.clone(), handle.attempts.clone());
        let stop = leave.clone();
        tasks.spawn(async move { house.run(stop).await.map(|()| Part::House) }.in_current_span());

        let mut result = Ok(());
        let mut ended = async |tasks: &mut JoinSet<_>| match tasks.join_next().await {
            None => false,
            Some(done) => {
                match done.map_err(Error::from).flatten() {
                    Ok(Part::Scheduler) => leave.cancel(),
                    Ok(Part::Supervisor | Part::Lease | Part::House) => {}
                    Err(error) => {
                        if let Error::Store(
                            store::Error::LeaseLost { .. } | store::Error::LeaseTaken { .. },
                        ) = error
                        {
                            lost.cancel();
                        }
                        leave.cancel();
                        if result.is_ok() {
                            result = Err(error);
                        }
                    }
                }
                stop_claims.cancel();
                true
            }
        };
        let end_processes = handle.end_processes.clone();
        loop {
            tokio::select! {
                more = ended(&mut tasks) => if !more { break },
                () = end_processes.cancelled(), if !stop_claims.is_cancelled() => stop_claims.cancel(),
            }
        }
        if handle.end_processes.is_cancelled() && result.is_ok() {
            // Every process has ended and nobody claims any more.
            result = store.settle(&lease, &[]).await.map(drop).map_err(Into::into);
        }
        drop(directory);
        result
    }
}

/// Which part has ended.
enum Part {
    Supervisor,
    Scheduler,
    Lease,
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
        Ok(Handle { node, images, attempts, launcher, slots, end_processes: CancellationToken::new() })
    });
    opened.await?.map_err(|source| Error::Io { what: "its folders cannot be made", source })
}

/// Looks which processes of the last life still run, and gives back what has none.
async fn settle(attempts: &Attempts, store: &Store, lease: &NodeLease) -> Result<Vec<Adopted>, Error> {
    let looked = {
        let attempts = attempts.clone();
        // Watching needs the runtime's context, which a blocking thread has.
        spawn_blocking(move || supervisor::adopt(&attempts)).await?
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

/// Renews the lease where it is a row.
async fn keep_lease(
    store: Store,
    lease: NodeLease,
    handle: Handle,
    length: Duration,
    shutdown: CancellationToken,
) -> Result<Part, Error> {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(Part::Lease),
            // On SQLite the lock on the directory is the lease: an idle machine writes nothing.
            () = sleep(length / 3), if store.kind() == Kind::Postgres => renew(&store, &lease, &handle).await?,
        }
    }
}

async fn renew(store: &Store, lease: &NodeLease, handle: &Handle) -> Result<(), Error> {
    let running = u32::try_from(handle.slots.used()).unwrap_or(u32::MAX);
    match store.renew_node(lease, NodeReport { running, ..NodeReport::default() }).await {
        Ok(_) => Ok(()),
        // Nobody can take the lease while the database answers nobody.
        Err(error) => unless_final(error, "the node's lease is not renewed now"),
    }
}

/// Ends the node only if trying again cannot help.
fn unless_final(error: store::Error, what: &'static str) -> Result<(), Error> {
    if error.retry() == Retry::Never {
        return Err(error.into());
    }
    warn!(error = %chain(&error), "{what}");
    Ok(())
}
