//! Several machines for one test: core replicas and nodes, each a process on a data directory of its
//! own, all on one PostgreSQL database and with the certificates of one authority.
//!
//! Each can be killed, stopped, continued, told to end, and started again, alone. What is started
//! here ends with it, the processes of instances too. It shares nothing with another test but the
//! database server, and that only if the test brings none of its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use dormouse_management_sdk::Client;
use dormouse_proto::{
    call::InstanceProtocol,
    endpoint::{self, CORE_NAME},
    identity::{Authority, Role},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    cluster::copy_folder,
    controller::{Controller, Process, chain, try_connect},
    database::{Database, Rows},
    fault,
    guard::Guard,
    postgres,
    previous::Release,
    process::Service,
    wait,
};

/// One machine: it runs one service. Counted from 0, cores and nodes each for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// Runs `dormouse-core`.
    Core(usize),
    /// Runs `dormouse-environment`.
    Node(usize),
}

impl Machine {
    fn program(self) -> &'static str {
        match self {
            Self::Core(_) => "dormouse-core",
            Self::Node(_) => "dormouse-environment",
        }
    }

    fn name(self) -> String {
        match self {
            Self::Core(number) => format!("core-{number}"),
            Self::Node(number) => format!("node-{number}"),
        }
    }
}

/// A machine's service and how it is started.
#[derive(Debug)]
struct Place {
    release: Release,
    service: Option<Service>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// How it reaches the database, if not as the others do.
    database: Option<String>,
}

/// The machines and what belongs to them.
#[derive(Debug)]
pub struct Machines {
    places: BTreeMap<Machine, Place>,
    /// Each asks its node; all see the processes of all.
    controllers: BTreeMap<usize, Controller>,
    rows: Rows,
    /// For the case that this process is killed.
    guard: Option<Guard>,
    dir: TempDir,
}

impl Machines {
    /// So many core replicas and nodes on a database of their own, all answering.
    pub async fn up(cores: usize, nodes: usize) -> Self {
        let mut machines = Self::none().await;
        machines.add(cores, nodes);
        machines.start_all().await;
        machines
    }

    /// The same on a server that the test itself kills and starts again.
    pub async fn up_on(server: &postgres::Server, cores: usize, nodes: usize) -> Self {
        Self::up_at(&server.url("postgres"), cores, nodes).await
    }

    /// The same on the database at this URL, which stays the test's business.
    pub async fn up_at(url: &str, cores: usize, nodes: usize) -> Self {
        let mut machines = Self::with(Rows::Own { url: url.to_owned() }).await;
        machines.add(cores, nodes);
        machines.start_all().await;
        machines
    }

    /// No machine yet, on a database of its own: for tests that set something before the first start.
    pub async fn none() -> Self {
        Self::with(Rows::make(Database::Postgres).await).await
    }

    async fn with(rows: Rows) -> Self {
        let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a temporary directory");
        let guard = Some(Guard::killing_all_of(dir.path()));
        let authority = dir.path().join("authority");
        let made = tokio::task::spawn_blocking(move || make_certificates(&authority));
        made.await.expect("certificates are made");
        Self { places: BTreeMap::new(), controllers: BTreeMap::new(), rows, guard, dir }
    }

    /// Adds machines, with their certificates; nothing runs there yet.
    pub fn add(&mut self, cores: usize, nodes: usize) {
        let (had_cores, had_nodes) = (self.cores().count(), self.nodes().count());
        for number in had_cores..had_cores + cores {
            self.add_machine(Machine::Core(number));
        }
        for number in had_nodes..had_nodes + nodes {
            let home = self.data_dir(Machine::Node(number));
            let mut controller = Controller::new(self.homes(), self.dir.path());
            self.controllers.values_mut().chain([&mut controller]).for_each(|c| c.add_home(home.clone()));
            self.controllers.insert(number, controller);
            self.add_machine(Machine::Node(number));
        }
    }

    fn add_machine(&mut self, machine: Machine) {
        let home = self.data_dir(machine);
        fs::create_dir(&home).expect("a machine is added once");
        copy_folder(&self.dir.path().join("authority"), &home.join("pki"));
        let (arguments, variables) = (Vec::new(), Vec::new());
        self.places.insert(
            machine,
            Place { release: Release::This, service: None, arguments, variables, database: None },
        );
    }

    fn homes(&self) -> Vec<PathBuf> {
        self.nodes().map(|machine| self.data_dir(machine)).collect()
    }

    /// The core replicas.
    pub fn cores(&self) -> impl Iterator<Item = Machine> {
        self.places.keys().copied().filter(|machine| matches!(machine, Machine::Core(_)))
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Machine> {
        self.places.keys().copied().filter(|machine| matches!(machine, Machine::Node(_)))
    }

    // --- services -----------------------------------------------------------------------

    /// Sets a variable of the machine's service, from its next start on.
    pub fn set_variable(&mut self, machine: Machine, name: &str, value: &str) {
        self.unset_variable(machine, name);
        self.place(machine).variables.push((name.to_owned(), value.to_owned()));
    }

    /// Forgets it again.
    pub fn unset_variable(&mut self, machine: Machine, name: &str) {
        self.place(machine).variables.retain(|(known, _)| known != name);
    }

    /// The machine's service is of that release, from its next start on.
    pub fn set_release(&mut self, machine: Machine, release: Release) {
        self.place(machine).release = release;
    }

    /// Further arguments of the machine's service, from its next start on, instead of earlier ones.
    pub fn set_arguments(&mut self, machine: Machine, arguments: &[&str]) {
        self.place(machine).arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// The machine reaches the database by this URL, from its service's next start on.
    pub fn set_database(&mut self, machine: Machine, url: &str) {
        self.place(machine).database = Some(url.to_owned());
    }

    /// Starts what does not run, cores first, and waits until all answer.
    pub async fn start_all(&mut self) {
        let (cores, nodes): (Vec<_>, Vec<_>) = (self.cores().collect(), self.nodes().collect());
        for machines in [cores, nodes] {
            for machine in &machines {
                self.launch(*machine);
            }
            for machine in machines {
                self.until_answering(machine).await;
            }
        }
    }

    /// Starts a machine's service and waits until it answers.
    pub async fn start(&mut self, machine: Machine) {
        self.launch(machine);
        self.until_answering(machine).await;
    }

    /// Starts a machine's service if it does not run, and does not wait: it may be told to kill
    /// itself.
    pub fn launch(&mut self, machine: Machine) {
        let arguments = self.arguments(machine);
        let log = self.dir.path().join(format!("{}.log", machine.name()));
        let place = self.place(machine);
        if place.service.as_mut().is_some_and(|service| service.exit().is_none()) {
            return;
        }
        let program = place.release.binary(machine.program());
        let service = Service::start(&program, &arguments, &place.variables, &log);
        place.service = Some(service);
    }

    fn arguments(&mut self, machine: Machine) -> Vec<String> {
        let home = self.data_dir(machine).display().to_string();
        let url = self.place(machine).database.clone().unwrap_or_else(|| self.database_url().to_owned());
        let mut arguments = vec!["--data-dir".to_owned(), home, "--database".to_owned(), url];
        // Ports of their own; a service takes the same one again when it comes back.
        arguments.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
        arguments.extend(self.place(machine).arguments.iter().cloned());
        arguments
    }

    /// Waits until a machine's service answers.
    pub async fn until_answering(&mut self, machine: Machine) {
        let home = self.data_dir(machine);
        let service = self.service(machine);
        let ended = |service: &mut Service| {
            if let Some(status) = service.exit() {
                panic!("{machine:?} ended while it was starting, {status}\n{}", service.log_tail());
            }
        };
        let what = format!("{machine:?} answers");
        match machine {
            Machine::Core(_) => {
                wait::until(&what, async || {
                    ended(service);
                    greet_core(&home).await
                })
                .await;
            }
            Machine::Node(number) => {
                let client = wait::until(&what, async || {
                    ended(service);
                    try_connect(&home).await
                })
                .await;
                self.controllers.get_mut(&number).expect("it was added").attach(client);
            }
        }
    }

    /// kill -9 of a machine's service; the processes of its instances live on.
    pub fn kill(&mut self, machine: Machine) {
        self.service(machine).kill();
        self.place(machine).service = None;
    }

    /// A machine without power: kill -9 of its service and of the processes of its instances.
    pub fn kill_whole(&mut self, machine: Machine) {
        self.kill(machine);
        wait::until_blocking("no process of an instance is left there", || {
            match self.processes_on(machine) {
                none if none.is_empty() => Ok(()),
                some => {
                    for process in &some {
                        fault::kill_9(process.pid);
                    }
                    Err(format!("there are {some:?}"))
                }
            }
        });
    }

    /// SIGSTOP to a machine's service.
    pub fn freeze(&mut self, machine: Machine) {
        self.send(machine, Signal::SIGSTOP);
    }

    /// SIGCONT to a machine's service.
    pub fn thaw(&mut self, machine: Machine) {
        self.send(machine, Signal::SIGCONT);
    }

    /// SIGSTOP to a machine's service and to the processes of its instances.
    pub fn freeze_whole(&mut self, machine: Machine) {
        self.freeze(machine);
        self.processes_on(machine).iter().for_each(|process| fault::send(process.pid, Signal::SIGSTOP));
    }

    /// SIGCONT to the processes of a machine's instances, then to its service.
    pub fn thaw_whole(&mut self, machine: Machine) {
        self.processes_on(machine).iter().for_each(|process| fault::send(process.pid, Signal::SIGCONT));
        self.thaw(machine);
    }

    /// SIGTERM to a machine's service; it ends in its own time.
    pub fn terminate(&mut self, machine: Machine) {
        self.send(machine, Signal::SIGTERM);
    }

    /// Sends a machine's service a signal.
    pub fn send(&mut self, machine: Machine, signal: Signal) {
        fault::send(self.service(machine).pid(), signal);
    }

    /// Waits until a machine's service has ended by itself.
    pub async fn until_ended(&mut self, machine: Machine) -> ExitStatus {
        let status = self.service(machine).until_ended().await;
        self.place(machine).service = None;
        status
    }

    /// A machine's service; it must have been started.
    pub fn service(&mut self, machine: Machine) -> &mut Service {
        let service = self.place(machine).service.as_mut();
        service.unwrap_or_else(|| panic!("{machine:?} does not run"))
    }

    fn place(&mut self, machine: Machine) -> &mut Place {
        self.places.get_mut(&machine).unwrap_or_else(|| panic!("{machine:?} was not added"))
    }

    // --- what a test asks ---------------------------------------------------------------

    /// Asks this node; it must have been started. While the node is away, its client waits.
    pub fn controller(&self, node: usize) -> &Controller {
        self.controllers.get(&node).unwrap_or_else(|| panic!("node {node} was not added"))
    }

    /// The same one's client.
    pub fn client(&self, node: usize) -> &Client {
        self.controller(node).client()
    }

    /// Pushes a program of this workspace to every node that runs, under its own name.
    pub async fn push(&self, program: &str) {
        for (number, controller) in &self.controllers {
            if self.places[&Machine::Node(*number)].service.is_some() {
                controller.push(program).await;
            }
        }
    }

    /// Every living process of an instance on this node.
    pub fn processes_on(&self, machine: Machine) -> Vec<Process> {
        let Machine::Node(number) = machine else { return Vec::new() };
        let all = self.controllers.values().next().map(Controller::processes).unwrap_or_default();
        all.into_iter().filter(|process| process.home == number).collect()
    }

    /// Every living process of an instance, on every node: `home` is the node's number.
    pub fn processes(&self) -> Vec<Process> {
        self.controllers.values().next().map(Controller::processes).unwrap_or_default()
    }

    /// Where a core replica listens, as it has written down.
    pub fn core_address(&self, core: Machine) -> String {
        let path = self.data_dir(core).join("core.address");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{core:?}: {error}"));
        text.trim().to_owned()
    }

    /// A machine's data directory.
    pub fn data_dir(&self, machine: Machine) -> PathBuf {
        self.dir.path().join(machine.name())
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The URL of the database.
    pub fn database_url(&self) -> &str {
        self.rows.url().expect("machines share a server")
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for place in self.places.values_mut() {
            if let Some(service) = &mut place.service {
                service.kill();
            }
        }
        // Any of them sees the processes of all.
        self.controllers.values().take(1).for_each(Controller::kill_processes);
        self.guard.take().into_iter().for_each(Guard::dismiss);
        if std::thread::panicking() {
            // Kept so that somebody can look.
            self.dir.disable_cleanup(true);
            eprintln!("the directory of the failed test: {}", self.dir.path().display());
        }
    }
}

/// An authority and what it certifies, for every machine to copy.
fn make_certificates(dir: &Path) {
    let authority = Authority::open_or_create(dir).expect("an authority can be made");
    for role in [Role::Core, Role::Environment, Role::Administrator] {
        authority.identity(role).expect("it certifies");
    }
}

/// Shakes hands with the core of this data directory.
async fn greet_core(home: &Path) -> Result<(), String> {
    const WITHIN: Duration = Duration::from_secs(2);
    let address = fs::read_to_string(home.join("core.address")).map_err(chain)?;
    let authority = fs::read_to_string(home.join("pki/authority.pem")).map_err(chain)?;
    let endpoint = endpoint::client_endpoint().map_err(chain)?;
    let config = endpoint::client_config::<InstanceProtocol>(&authority, None).map_err(chain)?;
    let connecting = endpoint::connect(&endpoint, config, address.trim(), CORE_NAME);
    let connected = tokio::time::timeout(WITHIN, connecting).await.map_err(chain)?;
    connected.map_err(chain)?.close(0u32.into(), b"only looked");
    Ok(())
}
