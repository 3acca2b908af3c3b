//! One machine's Dormouse for one test: real services on a data directory and a database of their
//! own, and a client that talks to them.
//!
//! What it starts ends with it, the processes of instances too. It shares nothing with another
//! cluster, so tests run side by side.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
};

use dormouse_management_sdk::{Client, NewToken, Quotas, Role, Target, Token};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    binaries::binary,
    controller::{Controller, try_connect},
    database::Rows,
    fault,
    guard::Guard,
    postgres,
    previous::Release,
    process::Service,
    trace::Tracer,
    wait,
};
pub use crate::{controller::chain, database::Database};

/// Which processes the services are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `dormouse up`: both in one.
    Together,
    /// `dormouse-core` and `dormouse-environment`.
    Apart,
}

/// A program of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Both in one: `dormouse up`.
    Both,
    /// `dormouse-core`.
    Core,
    /// `dormouse-environment`.
    Environment,
}

impl Layout {
    /// Its programs, in the order in which they are started.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Self::Together => &[Part::Both],
            Self::Apart => &[Part::Core, Part::Environment],
        }
    }
}

/// Running services and what belongs to them.
#[derive(Debug)]
pub struct Cluster {
    running: Vec<(Part, Service)>,
    layout: Layout,
    release: Release,
    rows: Rows,
    controller: Controller,
    variables: Vec<(String, String)>,
    tracer: Option<Tracer>,
    /// For the case that this process is killed.
    guard: Option<Guard>,
    dir: TempDir,
}

impl Cluster {
    /// `dormouse up` on a fresh data directory and a fresh database, ready to be asked.
    pub async fn up(database: Database) -> Self {
        Self::up_as(Layout::Together, database).await
    }

    /// The same, as one process or as two.
    pub async fn up_as(layout: Layout, database: Database) -> Self {
        Self::up_with(Release::This, layout, database).await
    }

    /// The same, with the programs of that release.
    pub async fn up_with(release: Release, layout: Layout, database: Database) -> Self {
        Self::ready(layout, release, Rows::make(database).await).await
    }

    /// On a server that the test itself kills and starts again.
    pub async fn up_on(layout: Layout, server: &postgres::Server) -> Self {
        Self::up_at(layout, server.url("postgres")).await
    }

    /// On whatever is at this address.
    pub async fn up_at(layout: Layout, url: String) -> Self {
        Self::ready(layout, Release::This, Rows::Own { url }).await
    }

    async fn ready(layout: Layout, release: Release, rows: Rows) -> Self {
        let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a temporary directory");
        let guard = Some(Guard::killing_all_of(dir.path()));
        let (running, variables, tracer) = (Vec::new(), Vec::new(), None);
        let controller = Controller::new(vec![dir.path().join("data")], dir.path());
        let mut cluster = Self { running, layout, release, rows, controller, variables, tracer, guard, dir };
        cluster.start_services().await;
        cluster
    }

    // --- services -----------------------------------------------------------------------

    /// Sets a variable of the services that are started from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Forgets it again.
    pub fn unset_variable(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// A core that is started from now on is traced.
    pub fn trace_core(&mut self, tracer: Tracer) {
        self.tracer = Some(tracer);
    }

    /// Stops the services in order, as a service manager does, and starts those of that release.
    pub async fn exchange(&mut self, release: Release) {
        for (_, mut service) in std::mem::take(&mut self.running) {
            fault::send(service.pid(), Signal::SIGTERM);
            let status = service.until_ended().await;
            assert!(status.success(), "stopped in order, {status}\n{}", service.log_tail());
        }
        self.release = release;
        self.start_services().await;
    }

    /// Starts what does not run and waits until it answers.
    pub async fn start_services(&mut self) {
        for part in self.layout.parts() {
            self.launch(*part);
        }
        self.until_answering().await;
    }

    /// Starts what does not run, and does not wait: it may be told to kill itself.
    pub fn launch_services(&mut self) {
        for part in self.layout.parts() {
            self.launch(*part);
        }
    }

    fn launch(&mut self, part: Part) {
        self.running.retain_mut(|(known, service)| *known != part || service.exit().is_none());
        if self.running.iter().any(|(known, _)| *known == part) {
            return;
        }
        let (program, mut arguments) = match part {
            Part::Both => ("dormouse", vec!["up".to_owned()]),
            Part::Core => ("dormouse-core", Vec::new()),
            Part::Environment => ("dormouse-environment", Vec::new()),
        };
        arguments.extend(["--data-dir".to_owned(), self.data_dir().display().to_string()]);
        if let Some(url) = self.database_url() {
            arguments.extend(["--database".to_owned(), url.to_owned()]);
        }
        // Ports of their own; a service takes the same one again when it comes back.
        let any = "127.0.0.1:0".to_owned();
        if part != Part::Environment {
            arguments.extend(["--core".to_owned(), any.clone()]);
        }
        if part != Part::Core {
            arguments.extend(["--environment".to_owned(), any]);
        }
        let log = self.dir.path().join(format!("{program}.log"));
        let mut program = self.release.binary(program);
        if let (Some(tracer), Part::Core) = (&self.tracer, part) {
            (program, arguments) = tracer.command(&program, arguments);
        }
        let service = Service::start(&program, &arguments, &self.variables, &log);
        self.running.push((part, service));
    }

    /// Waits until a core that was launched again has its port. Nobody of it is asked: it may be told to kill itself
    /// at what it would do then.
    pub async fn until_core_listens(&self) {
        let address =
            fs::read_to_string(self.data_dir().join("core.address")).expect("it has listened before");
        let (_, port) = address.trim().rsplit_once(':').expect("host and port");
        let port = format!(":{:04X} ", port.parse::<u16>().expect("a port"));
        wait::until("core has its port", async || {
            let sockets = fs::read_to_string("/proc/net/udp").map_err(|error| error.to_string())?;
            if sockets.contains(&port) { Ok(()) } else { Err(sockets) }
        })
        .await;
    }

    /// Waits until the services answer, and connects a client of their own making.
    async fn until_answering(&mut self) {
        let data_dir = self.data_dir();
        let running = &mut self.running;
        let client = wait::until("the services answer", async || {
            for (part, service) in running.iter_mut() {
                if let Some(status) = service.exit() {
                    panic!("{part:?} ended while it was starting, {status}\n{}", service.log_tail());
                }
            }
            try_connect(&data_dir).await
        })
        .await;
        self.controller.attach(client);
    }

    /// kill -9 of one program.
    pub fn kill(&mut self, part: Part) {
        let at = self.running.iter().position(|(known, _)| *known == part);
        let (_, mut service) = self.running.remove(at.unwrap_or_else(|| panic!("{part:?} does not run")));
        service.kill();
    }

    /// kill -9 of every service.
    pub fn kill_services(&mut self) {
        for (_, service) in &mut self.running {
            service.kill();
        }
        self.running.clear();
    }

    /// kill -9 of every service and of every process of an instance, as a power cut does.
    pub fn kill_everything(&mut self) {
        self.kill_services();
        self.controller.kill_processes();
    }

    /// Starts a further core on the same database, which knows nothing of the sessions of the first;
    /// answers where it listens.
    pub async fn second_core(&mut self) -> (Service, String) {
        let dir = self.dir.path().join("second");
        fs::create_dir(&dir).expect("one second core is enough");
        copy_folder(&self.data_dir().join("pki"), &dir.join("pki"));
        let mut arguments = vec!["--data-dir".to_owned(), dir.display().to_string()];
        let url = self.database_url().expect("a file has one core").to_owned();
        arguments.extend(["--database".to_owned(), url, "--core".to_owned(), "127.0.0.1:0".to_owned()]);
        let log = self.dir.path().join("second-core.log");
        let service = Service::start(&binary("dormouse-core"), &arguments, &self.variables, &log);
        let address =
            wait::until("the second core listens", async || fs::read_to_string(dir.join("core.address")))
                .await;
        (service, address.trim().to_owned())
    }

    /// A service that runs.
    pub fn service(&mut self, part: Part) -> &mut Service {
        let found = self.running.iter_mut().find(|(known, _)| *known == part);
        &mut found.unwrap_or_else(|| panic!("{part:?} does not run")).1
    }

    /// Waits until a service that was told to kill itself has done so.
    pub async fn until_killed(&mut self) {
        let running = &mut self.running;
        wait::until("a service has killed itself at its named point", async || {
            let ended = running.iter_mut().any(|(_, service)| service.exit().is_some());
            if ended { Ok(()) } else { Err("all run") }
        })
        .await;
        self.running.retain_mut(|(_, service)| service.exit().is_none());
    }

    // --- what a test asks ---------------------------------------------------------------

    /// The services' directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Makes a token of a tenant, which is created if it is missing; answers its secret.
    pub async fn token(&self, tenant: &str, name: &str, role: Role) -> String {
        let client = self.client();
        client.create_tenant(tenant, Quotas::default()).await.expect("the administrator may");
        let token = NewToken { tenant: tenant.to_owned(), name: name.to_owned(), role, valid: None };
        client.create_token(token).await.expect("the administrator may").secret
    }

    /// A controller with this token.
    pub async fn controller_with(&self, secret: &str, name: &str) -> Controller {
        let token = Token::text(secret).expect("a token");
        let target = Target::data_dir(self.data_dir()).with_token(token);
        let client = Client::connect(target).await.expect("the token lets it in");
        self.controller.of_tenant(client, name)
    }

    /// The URL of the database; none for SQLite.
    pub fn database_url(&self) -> Option<&str> {
        self.rows.url()
    }
}

/// What a test asks.
impl Deref for Cluster {
    type Target = Controller;

    fn deref(&self) -> &Controller {
        &self.controller
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_everything();
        self.guard.take().into_iter().for_each(Guard::dismiss);
        if std::thread::panicking() {
            // Kept so that somebody can look.
            self.dir.disable_cleanup(true);
            eprintln!("the directory of the failed test: {}", self.dir.path().display());
        }
    }
}

/// Keys keep their owner and mode.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("own directory");
    fs::set_permissions(to, fs::metadata(from).expect("it is there").permissions()).expect("own directory");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("an entry has a name");
        fs::copy(&path, to.join(name)).expect("own directory");
    }
}
