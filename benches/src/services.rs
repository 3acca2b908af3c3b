//! Dormouse as its users have it: the release's own programs as processes, on a data directory and a
//! database of their own, and one connection of a controller.
//!
//! On SQLite both services are one process (`dormouse up`), on PostgreSQL two, as they are deployed, unless a
//! workload needs it otherwise. They run with their defaults except for the variables that a workload sets.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use dormouse_management_sdk::{
    Client, ImageRef, Instance, Options, StartInstance, Status, Target, WaitOutcome,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixDatagram,
    time::{Instant, timeout},
};

use crate::context::{Context, Database, Store};

/// The name under which the image of the workloads is pushed.
pub(crate) const IMAGE: &str = "workload";
/// Nothing that is waited for takes nearly so long; whoever waits longer has found a defect.
const PATIENCE: Duration = Duration::from_secs(80);

/// Which processes the services are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As they are deployed on this database.
    Usual,
    /// `dormouse up`: both in one.
    Together,
    /// `dormouse-core` and `dormouse-environment`.
    Apart,
}

/// Running services. Dropped, they are killed; what their instances' processes do then ends with the run.
pub(crate) struct Services {
    programs: Vec<Program>,
    running: Vec<Running>,
    ready_after: Duration,
    client: Client,
    dir: PathBuf,
    /// Made for them, and removed with them.
    database: Option<Database>,
}

/// How a service is started, each time anew.
struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    settings: Vec<(&'static str, &'static str)>,
}

/// Variables that set what a workload needs otherwise than by default.
pub(crate) type Settings = [(&'static str, &'static str)];

struct Running {
    child: Child,
    name: String,
}

/// What processes have used since they were started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time of the services, in seconds.
    pub(crate) services: f64,
    /// The same of the processes that they started and that have ended.
    pub(crate) instances: f64,
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { services: self.services - before.services, instances: self.instances - before.instances }
    }
}

impl Services {
    /// Starts them on a new database, and pushes the image of the workloads.
    pub(crate) async fn start(context: &Context, store: Store, settings: &Settings) -> anyhow::Result<Self> {
        Self::start_as(context, store, Layout::Usual, settings).await
    }

    /// The same, as these processes.
    pub(crate) async fn start_as(
        context: &Context,
        store: Store,
        layout: Layout,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let database = context.database(store).await?;
        let mut services = Self::start_on(context, &database, layout, settings).await?;
        services.database = Some(database);
        Ok(services)
    }

    /// The same on this database, which may hold rows, and stays.
    pub(crate) async fn start_on(
        context: &Context,
        database: &Database,
        layout: Layout,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let dir = context.folder("services")?;
        let programs = programs(context, database, layout, &dir, settings)?;
        let (running, ready_after) = launch(&programs, &dir).await?;
        let client = connect(&dir).await?;
        let services = Self { programs, running, ready_after, client, dir, database: None };
        let workload = context.programs().image()?;
        let image = ImageRef { name: IMAGE.to_owned(), version: String::new() };
        services
            .client
            .upload_image(&workload, &image, |_| {})
            .await
            .context("the image of the workloads")?;
        Ok(services)
    }

    /// Where they keep everything.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A controller's one connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// From their start until they said that they are ready.
    pub(crate) fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// kill -9 of the services, not of their instances' processes.
    pub(crate) fn kill(&mut self) {
        for running in &mut self.running {
            running.end();
        }
        self.running.clear();
    }

    /// Starts them again on the same data directory and database.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        (self.running, self.ready_after) = launch(&self.programs, &self.dir).await?;
        Ok(())
    }

    /// Stops them in order, and starts them with other settings on the same data directory and database.
    pub(crate) async fn restart(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.end().await?;
        for program in &mut self.programs {
            program.settings = settings.to_vec();
        }
        self.start_again().await
    }

    /// Stops them in order, and removes what they have left.
    pub(crate) async fn stop(mut self, context: &Context) -> anyhow::Result<()> {
        self.end().await?;
        if let Some(database) = &self.database {
            context.remove(database).await?;
        }
        fs::remove_dir_all(&self.dir).with_context(|| self.dir.display().to_string())
    }

    /// As a service manager does it. The connection is opened again when it is needed.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.client.close().await;
        // The environment first: it ends its instances' accounts through the database.
        for mut running in std::mem::take(&mut self.running).into_iter().rev() {
            kill(running.pid(), Signal::SIGTERM)?;
            let ended = timeout(PATIENCE, running.ended()).await;
            ended.with_context(|| format!("{} does not stop\n{}", running.name, log_tail(&self.dir)))??;
        }
        Ok(())
    }

    /// The services' processes.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        self.running.iter().map(Running::pid).collect()
    }

    /// What they have used until now.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut all = Usage::default();
        for pid in self.pids() {
            let (own, children) = cpu_time(pid)?;
            all.services += own;
            all.instances += children;
        }
        Ok(all)
    }

    /// Starts a workflow of the image of the workloads; answers the instance's id.
    pub(crate) async fn begin(&self, workflow: &str, input: &impl Serialize) -> anyhow::Result<String> {
        let start = StartInstance::of(IMAGE).workflow(workflow).input(input)?;
        Ok(self.client.start(start).await?.instance.id)
    }

    /// Waits until an instance has ended, COMPLETED.
    pub(crate) async fn completed(&self, id: &str) -> anyhow::Result<Instance> {
        let instance = match self.client.wait(id, Some(PATIENCE)).await? {
            WaitOutcome::Ended(instance) => instance,
            WaitOutcome::TimedOut(instance) => {
                let waiting = instance.waiting_for.as_deref().unwrap_or("nothing");
                bail!("{id} is still {}, and waits for {waiting}", instance.status);
            }
        };
        if instance.status != Status::Completed {
            let failure = instance.failure.map(|failure| failure.message).unwrap_or_default();
            bail!("{id} ended {}: {failure}", instance.status);
        }
        Ok(instance)
    }

    /// The same; answers its output.
    pub(crate) async fn output<T: DeserializeOwned>(&self, id: &str) -> anyhow::Result<T> {
        let output = self.completed(id).await?.output;
        Ok(output.with_context(|| format!("{id} has no output"))?.decode()?)
    }

    /// Waits until so many instances of the workloads are in this state.
    pub(crate) async fn until_so_many(&self, status: Status, wanted: u32) -> anyhow::Result<()> {
        /// Between two looks, while nothing is measured.
        const PAUSE: Duration = Duration::from_millis(20);
        let looking = async {
            loop {
                let counts = self.client.count(Some(IMAGE)).await?;
                let found = counts.iter().find(|(counted, _)| *counted == status);
                if found.is_some_and(|(_, count)| *count >= u64::from(wanted)) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, looking)
            .await
            .with_context(|| format!("not all {wanted} instances are {status}"))?
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// kill -9; it may have ended by itself.
    fn end(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }

    /// Waits until it has ended by itself, in order.
    async fn ended(&mut self) -> anyhow::Result<()> {
        const PAUSE: Duration = Duration::from_millis(5);
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} ended, {status}", self.name);
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn programs(
    context: &Context,
    database: &Database,
    layout: Layout,
    dir: &Path,
    settings: &Settings,
) -> anyhow::Result<Vec<Program>> {
    const CORE: [&str; 2] = ["--core", "127.0.0.1:0"];
    const ENVIRONMENT: [&str; 2] = ["--environment", "127.0.0.1:0"];
    let program = |name: &str, own: &[&str]| -> anyhow::Result<Program> {
        let mut arguments: Vec<OsString> = own.iter().copied().map(OsString::from).collect();
        arguments.extend([OsString::from("--data-dir"), dir.join("data").into()]);
        arguments.push("--database".into());
        arguments.push(address(database));
        Ok(Program { path: context.programs().service(name)?, arguments, settings: settings.to_vec() })
    };
    let together = [&["up"][..], &CORE, &ENVIRONMENT].concat();
    let usual = match database {
        Database::Postgres { .. } if !context.programs().are_together() => Layout::Apart,
        _ => Layout::Together,
    };
    match if layout == Layout::Usual { usual } else { layout } {
        Layout::Usual | Layout::Together => Ok(vec![program("dormouse", &together)?]),
        Layout::Apart => {
            Ok(vec![program("dormouse-core", &CORE)?, program("dormouse-environment", &ENVIRONMENT)?])
        }
    }
}

/// Makes the tables of a new database, for who fills it before services run.
pub(crate) fn migrate(context: &Context, database: &Database) -> anyhow::Result<()> {
    let dir = context.folder("migrate")?;
    let mut command = Command::new(context.programs().service("dormouse")?);
    command.arg("migrate").arg("--data-dir").arg(&dir).arg("--database").arg(address(database));
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "dormouse migrate failed: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())
}

/// As the services and the loader are told of it.
pub(crate) fn address(database: &Database) -> OsString {
    match database {
        Database::Sqlite(path) => path.into(),
        Database::Postgres { url } => url.into(),
    }
}

/// Starts them, and waits until each has told its service manager, which is us, that it is ready.
async fn launch(programs: &[Program], dir: &Path) -> anyhow::Result<(Vec<Running>, Duration)> {
    let address = dir.join("ready");
    if address.exists() {
        fs::remove_file(&address)?;
    }
    let socket = UnixDatagram::bind(&address)
        .with_context(|| format!("{}; a shorter --disk may help", address.display()))?;
    let mut running = Vec::new();
    let begun = Instant::now();
    for program in programs {
        running.push(program.launch(dir, &address)?);
    }
    for _ in programs {
        let told = timeout(PATIENCE, until_ready(&socket, &mut running)).await;
        told.context("the services are not ready").and_then(|told| told).with_context(|| log_tail(dir))?;
    }
    let ready_after = begun.elapsed();
    fs::remove_file(&address)?;
    Ok((running, ready_after))
}

async fn until_ready(socket: &UnixDatagram, running: &mut [Running]) -> anyhow::Result<()> {
    /// Between two looks at whether one has ended; the message itself is not looked for, it comes.
    const LOOK: Duration = Duration::from_millis(200);
    let mut message = [0; 1024];
    loop {
        if let Ok(length) = timeout(LOOK, socket.recv(&mut message)).await {
            let length = length?;
            if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
        for one in running.iter_mut() {
            if let Some(status) = one.child.try_wait()? {
                let signal = status.signal().map(|number| format!(", signal {number}")).unwrap_or_default();
                bail!("{} ended while it was starting, {status}{signal}", one.name);
            }
        }
    }
}

impl Program {
    fn launch(&self, dir: &Path, ready: &Path) -> anyhow::Result<Running> {
        let log = OpenOptions::new().create(true).append(true).open(dir.join("services.log"))?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env("NOTIFY_SOCKET", ready).env("TMPDIR", dir);
        // Nothing of the developer's own set-up.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DORMOUSE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.settings.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| self.path.display().to_string())?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Running { child, name })
    }
}

async fn connect(dir: &Path) -> anyhow::Result<Client> {
    let options = Options { name: "dormouse-benches".to_owned(), ..Options::default() };
    Client::connect_with(Target::data_dir(dir.join("data")), options).await.with_context(|| log_tail(dir))
}

/// The end of what the services have printed.
fn log_tail(dir: &Path) -> String {
    const MOST: usize = 4096;
    let bytes = fs::read(dir.join("services.log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST)..]).into_owned()
}

/// CPU time of a process, and of its children that have ended and were waited for, in seconds.
fn cpu_time(pid: Pid) -> anyhow::Result<(f64, f64)> {
    /// Fixed by the kernel's interface to programs.
    const TICKS_PER_SECOND: f64 = 100.0;
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in it may hold anything. After it: state, and user time as the twelfth field.
    let fields = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(11).take(4));
    let ticks: Option<Vec<f64>> =
        fields.map(|fields| fields.filter_map(|field| field.parse().ok()).collect());
    match ticks.as_deref() {
        Some([user, system, of_children, system_of_children]) => {
            Ok(((user + system) / TICKS_PER_SECOND, (of_children + system_of_children) / TICKS_PER_SECOND))
        }
        _ => bail!("{path} is not as expected: {text}"),
    }
}
