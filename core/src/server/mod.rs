//! The instance server: what a workflow's process talks to, on port 8001.
//!
//! - [`session`]: the life of one connection; [`standby`]: of one that belongs to no instance yet.
//! - [`request`]: one function for each operation.
//! - [`push`]: who is connected, and telling them what changed.
//! - [`wire`]: messages to domain types and back.
//! - [`presence`]: this core in the list of replicas; [`identity`]: which of them it is.
//!
//! It keeps nothing that matters: sessions, attempts and fences stand in the rows, so any core may be killed at
//! any moment, and any other answers the next request. It answers only what the store has made durable
//! (invariant 1), writes only with attempt and session (invariant 2) and never sees a process.

mod identity;
mod pages;
mod presence;
mod push;
mod request;
mod session;
mod standby;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_proto::call::{Allowance, Groups, InFlight, InstanceProtocol};
use dormouse_proto::code::{Code, Coded};
use dormouse_proto::door::{Door, Places};
use dormouse_proto::endpoint::{self, ServerError, TlsError, Transport};
use dormouse_proto::identity::renewal::Renewal;
use dormouse_proto::identity::{Authority, IdentityError, Role};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::identity::Identity;
pub use self::identity::IdentityFileError;
use self::presence::Presence;
pub use self::presence::host_name;
use self::push::Sessions;
use self::session::Shared;
use crate::advertise::{AdvertiseError, advertised};
use crate::config::HostPort;
use crate::limits::{self, LEAVE_WITHIN};
use crate::store::Store;
use crate::timings;

/// How the server runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen. With port 0 the port of the last run is taken again, if it is free.
    pub listen: SocketAddr,
    /// Holds `host:port` of what is bound.
    pub address_file: PathBuf,
    /// Holds the id by which this core is listed.
    pub id_file: PathBuf,
    /// The socket at which this machine reads the figures of [`crate::timings`].
    pub metrics_socket: PathBuf,
    /// `host:port` that others are told; none: what is bound.
    pub advertise: Option<HostPort>,
    /// How it is called in the list, for people.
    pub name: String,
    /// Makes the certificate, and renews it.
    pub authority: Arc<Authority>,
    /// How often a session looks for what no notice has told it.
    pub poll: Duration,
    /// Connections at a time; further ones are refused. Each takes some tens of KiB.
    pub places: Places,
    /// What the instances of one tenant may have in flight together; more waits.
    pub of_tenant: InFlight,
    /// What all may have in flight together; more waits.
    pub in_flight: InFlight,
}

impl Options {
    /// The defaults of the design, for a data directory.
    pub fn new(listen: SocketAddr, address_file: PathBuf, authority: Arc<Authority>) -> Self {
        Self {
            listen,
            id_file: address_file.with_file_name("core.id"),
            metrics_socket: address_file.with_file_name(timings::endpoint::CORE),
            address_file,
            advertise: None,
            name: host_name(),
            authority,
            poll: Duration::from_secs(5),
            places: limits::PLACES,
            of_tenant: limits::IN_FLIGHT_OF_TENANT,
            in_flight: limits::IN_FLIGHT,
        }
    }
}

/// Why the server did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error(transparent)]
    Endpoint(#[from] ServerError),
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Others could not connect to what they would be told.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// The data directory is another core's, or not usable.
    #[error(transparent)]
    IdentityFile(#[from] IdentityFileError),
    /// The store was closed under the server.
    #[error("the store was closed before the instance server; this is a defect")]
    StoreClosed,
    /// The store cannot go on.
    #[error("the disk did not flush the database; check the disk, then start the service again: it recovers")]
    StoreBroken,
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Endpoint(_) | Self::IdentityFile(IdentityFileError::Held { .. }) => {
                Code::FailedPrecondition
            }
            Self::Identity(error) => error.code(),
            Self::Advertise(error) => error.code(),
            Self::IdentityFile(IdentityFileError::Io { .. }) | Self::StoreClosed => Code::Internal,
            Self::StoreBroken => Code::Unavailable,
        }
    }
}

/// The instance server, bound and not yet running.
#[derive(Debug)]
pub struct Server {
    renewal: Renewal,
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    door: Door,
    presence: Presence,
    metrics: Option<timings::endpoint::Endpoint>,
    shared: Shared,
}

/// Looks at a running server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    address: SocketAddr,
    advertised: String,
    sessions: Arc<Sessions>,
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `host:port` that others are told.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// Instances whose process is connected now.
    pub fn sessions(&self) -> usize {
        self.sessions.count()
    }
}

impl Server {
    /// Makes or reads the certificate and binds the address. Must be called inside a tokio runtime; blocks for
    /// some milliseconds.
    pub fn bind(options: Options, store: Store) -> Result<Self, Error> {
        let listed = Identity::open(&options.id_file)?;
        let identity = options.authority.identity(Role::Core)?;
        let endpoint = endpoint::server_endpoint_remembered::<InstanceProtocol>(
            options.listen,
            &options.address_file,
            &identity,
            None,
        )?;
        let address =
            endpoint.local_addr().map_err(|source| ServerError::Bind { address: options.listen, source })?;
        let advertised = advertised("--advertise-core", options.advertise.as_ref(), address, store.kind())?;
        let sessions = Arc::default();
        let presence =
            Presence::new(store.clone(), Arc::clone(&sessions), listed, options.name.clone(), advertised);
        let shared = Shared {
            store,
            sessions,
            spares: Arc::default(),
            poll: options.poll,
            all: Allowance::new(options.in_flight),
            // Quotas bound a tenant's instances, and with them its connections.
            tenants: Arc::new(Groups::new(options.places.connections, options.of_tenant)),
        };
        let door = Door::new(options.places.clone());
        let renewal = Renewal::new(options.authority, Role::Core, &identity);
        // Figures are for people: without them everything else goes on.
        let metrics = timings::endpoint::Endpoint::bind(&options.metrics_socket)
            .inspect_err(|error| {
                let path = options.metrics_socket.display();
                warn!(%error, %path, "`dormouse metrics --core` has nobody to ask: no socket can be made");
            })
            .ok();
        Ok(Self { renewal, endpoint, address, door, presence, metrics, shared })
    }

    /// To look at the server while it runs.
    pub fn handle(&self) -> Handle {
        let advertised = self.presence.address().to_owned();
        Handle { address: self.address, advertised, sessions: Arc::clone(&self.shared.sessions) }
    }

    /// Serves until `shutdown`: then says in the list of replicas that it drains, accepts nothing new, lets
    /// requests in flight have their answers, tells every process to connect elsewhere, and leaves the list.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        info!(address = %self.address, "core listens for instances");
        let Self { renewal, endpoint, address: _, door, presence, metrics, shared } = self;
        let renewing = renewal.run(follow(endpoint.clone()));
        let listener = Listener { endpoint, door, shared };
        let (hand_over, drained) = (CancellationToken::new(), CancellationToken::new());
        // A server that cannot go on leaves in order all the same.
        let over = shutdown.child_token();
        let present = presence.keep(over.clone(), hand_over.clone(), drained.clone());
        let serve = async {
            let outcome = tokio::select! {
                outcome = listener.serve(&hand_over) => outcome,
                never = renewing => match never {},
            };
            over.cancel();
            drained.cancel();
            outcome
        };
        let figures = async {
            if let Some(metrics) = metrics {
                metrics.run(over.clone()).await;
            }
        };
        let (outcome, (), ()) = tokio::join!(serve, present, figures);
        info!("core has shut down");
        outcome
    }
}

/// Takes a new certificate. Connections that exist keep theirs.
fn follow(endpoint: quinn::Endpoint) -> impl FnMut(&endpoint::Identity) -> Result<(), TlsError> {
    move |identity| {
        let config = endpoint::server_config::<InstanceProtocol>(identity, None, &Transport::default())?;
        endpoint.set_server_config(Some(config));
        Ok(())
    }
}

/// The server while it runs.
struct Listener {
    endpoint: quinn::Endpoint,
    door: Door,
    shared: Shared,
}

impl Listener {
    /// Until every session was handed over, which begins with `hand_over`.
    async fn serve(&self, hand_over: &CancellationToken) -> Result<(), Error> {
        let over = hand_over.child_token();
        let mut connections = JoinSet::new();
        let outcome = self.accept(&mut connections, &over).await;
        // A store that has failed refuses whatever waits for it, and says why: its callers hear that before the end.
        over.cancel();
        self.drain(connections).await;
        self.endpoint.close(0u32.into(), b"core has shut down");
        // An error: somebody does not acknowledge the farewell; it will notice by its time-out.
        drop(timeout(LEAVE_WITHIN, self.endpoint.wait_idle()).await);
        outcome
    }

    async fn accept(&self, connections: &mut JoinSet<()>, shutdown: &CancellationToken) -> Result<(), Error> {
        let listening = self.shared.sessions.listen(self.shared.store.notices());
        let looking = self.shared.sessions.look_again(&self.shared.store, self.shared.poll);
        tokio::pin!(listening, looking);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                never = &mut looking => match never {},
                () = &mut listening => return Err(Error::StoreClosed),
                () = self.shared.store.broken() => return Err(Error::StoreBroken),
                Some(done) = connections.join_next() => report(done),
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, connections, shutdown),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Waits for the last connection. Who comes now is refused, not ignored: it tries elsewhere at once.
    async fn drain(&self, mut connections: JoinSet<()>) {
        loop {
            tokio::select! {
                done = connections.join_next() => match done {
                    Some(done) => report(done),
                    None => return self.endpoint.set_server_config(None),
                },
                Some(incoming) = self.endpoint.accept() => incoming.refuse(),
            }
        }
    }

    /// Serves a connection, if there is a place for it.
    fn admit(&self, incoming: quinn::Incoming, connections: &mut JoinSet<()>, shutdown: &CancellationToken) {
        if let Some((incoming, place)) = self.door.admit(incoming) {
            connections.spawn(session::serve(self.shared.clone(), incoming, place, shutdown.clone()));
        }
    }
}

fn report(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        error!(%error, "serving a connection panicked");
    }
}
