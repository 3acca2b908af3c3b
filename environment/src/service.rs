//! The whole environment in one piece: a node and the management server beside it, on one data
//! directory. The `dormouse` command runs it next to core in one process, the
//! `dormouse-environment` binary alone.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use dormouse_core::{
    advertise::{AdvertiseError, advertised},
    config::HostPort,
    logging,
    store::Store,
};
use dormouse_proto::{
    code::{Code, Coded},
    door::Places,
    identity::Authority,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use crate::cores::Core;
use crate::{
    attempts::Retention,
    cores::{Cores, Known},
    environment::{self, Environment, Handle},
    management::{self, Parts, Server, ThisNode},
    node::{DataDirectory, default_slots},
    scheduler, supervisor,
};

/// What an environment is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the management server listens. Port 0: that of the last run, or any.
    pub listen: SocketAddr,
    /// `host:port` that others are told; none: what is bound.
    pub advertise: Option<HostPort>,
    /// Where core is, for the processes.
    pub core: Core,
    /// How this node is called in lists, for people.
    pub name: String,
    /// Processes at the same time; none: by cores and memory.
    pub slots: Option<usize>,
    /// This process's own environment: some of it is handed on to processes.
    pub environment: BTreeMap<OsString, OsString>,
    /// From a claim to its registration.
    pub launch_deadline: Duration,
    /// Idle time before an instance suspends.
    pub idle_before_suspend: Duration,
    /// Bytes of the largest image.
    pub image_bytes: u64,
    /// Bytes kept of one stream of one attempt.
    pub stream_bytes: u64,
    /// How much of what ended attempts wrote is kept.
    pub retention: Retention,
    /// Controllers at a time.
    pub connections: usize,
}

impl Options {
    fn management(&self, address_file: PathBuf, authority: Arc<Authority>) -> management::Options {
        let base = management::Options::new(self.listen, address_file, authority);
        // No machine and no tenant takes every place.
        let half = self.connections.div_ceil(2);
        let places = Places { connections: self.connections, of_one_address: half, ..base.places };
        management::Options { places, connections_of_tenant: half, ..base }
    }

    fn node(self, address: String, cores: Vec<String>, authority_pem: String) -> environment::Options {
        let base = environment::Options::new(address, cores, authority_pem);
        environment::Options {
            name: self.name,
            environment: self.environment,
            slots: self.slots.unwrap_or_else(default_slots),
            idle_before_suspend: Some(self.idle_before_suspend),
            image_bytes: self.image_bytes,
            retention: self.retention,
            scheduler: scheduler::Options { launch_deadline: self.launch_deadline, ..base.scheduler },
            supervisor: supervisor::Options { stream_bytes: self.stream_bytes, ..base.supervisor },
            ..base
        }
    }
}

/// Why an environment does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The management server.
    #[error(transparent)]
    Management(#[from] management::Error),
    /// Others could not connect to what they would be told.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// The node.
    #[error(transparent)]
    Node(#[from] environment::Error),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Management(error) => error.code(),
            Self::Advertise(error) => error.code(),
            Self::Node(error) => error.code(),
        }
    }
}

/// An environment that is bound, holds its lease, and has adopted what still ran.
pub struct Service {
    node: Environment,
    server: Server,
    parts: Parts,
    handle: Handle,
    cores: Cores,
}

impl Service {
    /// Waits for core's address, binds the management server, takes the lease, adopts and settles. Within a tokio runtime.
    pub async fn open(
        directory: DataDirectory,
        store: Store,
        authority: Arc<Authority>,
        options: Options,
    ) -> Result<Self, Error> {
        let address_file = directory.path().join("environment.address");
        let authority_pem = authority.certificate_pem().to_owned();
        let server = Server::bind(options.management(address_file, authority))?;
        let asked = options.advertise.as_ref();
        let address = advertised("--advertise-environment", asked, server.address(), store.kind())?;
        let cores = Cores::find(options.core.clone(), store.clone()).await;
        let node_options = options.node(address, cores.known().addresses(), authority_pem);
        let span = logging::node(directory.node());
        let node = Environment::open(directory, store.clone(), node_options).instrument(span).await?;
        let handle = node.handle();
        let parts = Parts {
            store,
            images: handle.images.clone(),
            attempts: handle.attempts.clone(),
            desk: handle.desk.clone(),
            this_node: describe(handle.clone(), cores.known()),
        };
        Ok(Self { node, server, parts, handle, cores })
    }

    /// Where the management server listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// For whoever runs beside it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `shutdown`, or until processes are to be ended ([`Handle::end_processes`]), or
    /// until trying again cannot help. Controllers are answered until the node has ended.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { node, server, parts, handle, cores } = self;
        let node_ended = CancellationToken::new();
        let span = logging::node(&handle.node);
        let node = async {
            let result = node.run(shutdown).instrument(span).await;
            node_ended.cancel();
            result
        };
        let follow = node_ended.run_until_cancelled(cores.follow(handle.launcher.replicas()));
        let (result, (), _) = tokio::join!(node, server.run(parts, node_ended.clone()), follow);
        Ok(result?)
    }
}

fn describe(handle: Handle, cores: Known) -> Arc<dyn Fn() -> ThisNode + Send + Sync> {
    let slots = u32::try_from(handle.slots.total()).unwrap_or(u32::MAX);
    Arc::new(move || {
        let report = handle.condition.report();
        // A drain is a wish and no problem.
        let problem = (!report.draining && !report.not_claiming.is_empty())
            .then(|| format!("this node claims nothing: {}", report.not_claiming));
        ThisNode {
            id: handle.node.to_string(),
            slots,
            report,
            core_address: cores.addresses().join(", "),
            silent_cores: cores.silent(),
            problems: problem.into_iter().collect(),
            without_spares: handle.condition.now().without_spares,
        }
    })
}
