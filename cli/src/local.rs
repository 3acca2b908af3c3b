//! Both services in this process, on one data directory: what `run` and `up` are made of.
//!
//! The order of the start: the directory's lock, the store, the certificates, core, and then the
//! environment, which adopts what still runs and only then launches. The end is the other way
//! round, so that a process can store its last words while it is being ended.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use dormouse_core::{
    authority,
    config::Settings,
    limits::DATABASE_PATIENCE,
    server::{Server, host_name},
    store::{self, Store},
};
use dormouse_environment::{
    config::options,
    environment::Handle,
    node::{DataDirectory, DirectoryError},
    service::{Core, Service},
};
use dormouse_proto::identity::Authority;
use tokio_util::sync::CancellationToken;

/// Services that are bound, have adopted what still ran, and are ready to run.
pub(crate) struct Local {
    core: Server,
    service: Service,
    store: Store,
    authority: Arc<Authority>,
}

impl Local {
    /// Opens everything. `None`: other services hold the data directory.
    pub(crate) async fn open(settings: Settings) -> anyhow::Result<Option<Self>> {
        let data_dir = settings.data_dir()?;
        let locked = tokio::task::spawn_blocking(move || DataDirectory::lock(&data_dir)).await?;
        let directory = match locked {
            Ok(directory) => directory,
            Err(DirectoryError::Held { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let store = Store::open(store::Options {
            patience: DATABASE_PATIENCE,
            ..settings.store_options(directory.path())
        })
        .await?;
        let certs = settings.certs(directory.path())?;
        let authority = Arc::new(authority::open(&certs, &store, &host_name()).await?);
        let core_options = settings.server_options(directory.path(), Arc::clone(&authority));
        let core = Server::bind(core_options, store.clone())?;
        let beside = Core::Listed(Box::new(Core::At(vec![core.handle().address().to_string()])));
        let service_options = options(&settings, beside, std::env::vars_os().collect());
        let service =
            Service::open(directory, store.clone(), Arc::clone(&authority), service_options).await?;
        Ok(Some(Self { core, service, store, authority }))
    }

    /// Where core listens.
    pub(crate) fn core_address(&self) -> SocketAddr {
        self.core.handle().address()
    }

    /// Where the environment listens.
    pub(crate) fn environment_address(&self) -> SocketAddr {
        self.service.address()
    }

    /// What the rows are in: `sqlite` or `postgres`.
    pub(crate) fn database(&self) -> &'static str {
        self.store.kind().as_str()
    }

    /// To have new certificates looked at.
    pub(crate) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    /// To end processes together with the services.
    pub(crate) fn handle(&self) -> Handle {
        self.service.handle()
    }

    /// Runs both until `shutdown`, or until processes are to be ended, or until one of them
    /// cannot go on.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { core, service, store, authority: _ } = self;
        let core_may_end = CancellationToken::new();
        let environment = async {
            let ended = service.run(shutdown.clone()).await;
            core_may_end.cancel();
            ended
        };
        let core = async {
            let ended = core.run(core_may_end.clone()).await;
            // Without core nothing can be launched that would get anywhere.
            shutdown.cancel();
            ended
        };
        let (environment, core) = tokio::join!(environment, core);
        store.close().await;
        core.context("core cannot go on")?;
        environment.context("the environment cannot go on")
    }
}
