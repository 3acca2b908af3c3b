//! One machine's Dormouse for one test: real services on a data directory and a database of their
//! own, and a client that talks to them.
//!
//! What it starts ends with it, the processes of instances too. It shares nothing with another
//! cluster, so tests run side by side.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use dormouse_management_sdk::{
    Checkpoint, Client, Event, ImageRef, Instance, Options, StartInstance, Status, Target,
};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::{
    binaries::binary,
    fault,
    guard::Guard,
    postgres,
    process::{self, Pid, Service},
    wait,
};

/// Which database a case runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file in the data directory.
    Sqlite,
    /// A database of its own on the server that all tests share.
    Postgres,
}

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

/// Where the rows are.
#[derive(Debug)]
enum Rows {
    Sqlite,
    /// Dropped with the cluster.
    Shared {
        url: String,
        name: String,
    },
    /// The server is the test's.
    Own {
        url: String,
    },
}

/// Running services and what belongs to them.
#[derive(Debug)]
pub struct Cluster {
    running: Vec<(Part, Service)>,
    layout: Layout,
    rows: Rows,
    client: Option<Client>,
    variables: Vec<(String, String)>,
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
        let rows = match database {
            Database::Sqlite => Rows::Sqlite,
            Database::Postgres => create_database().await,
        };
        Self::ready(layout, rows).await
    }

    /// On a server that the test itself kills and starts again.
    pub async fn up_on(layout: Layout, server: &postgres::Server) -> Self {
        Self::ready(layout, Rows::Own { url: server.url("postgres") }).await
    }

    async fn ready(layout: Layout, rows: Rows) -> Self {
        let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a temporary directory");
        let guard = Some(Guard::killing_all_of(dir.path()));
        let (running, variables) = (Vec::new(), Vec::new());
        let mut cluster = Self { running, layout, rows, client: None, variables, guard, dir };
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
        let service = Service::start(&binary(program), &arguments, &self.variables, &log);
        self.running.push((part, service));
    }

    /// Waits until the services answer, and connects a client of their own making.
    async fn until_answering(&mut self) {
        let options = Options { patience: Duration::from_mins(1), ..Options::default() };
        let target = Target::data_dir(self.data_dir());
        let running = &mut self.running;
        let client = wait::until("the services answer", async || {
            for (part, service) in running.iter_mut() {
                if let Some(status) = service.exit() {
                    panic!("{part:?} ended while it was starting, {status}\n{}", service.log_tail());
                }
            }
            let client = Client::connect_with(target.clone(), options.clone()).await.map_err(chain)?;
            client.health().await.map_err(chain)?;
            Ok::<_, String>(client)
        })
        .await;
        self.client = Some(client);
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
        // A launch may have been on its way.
        wait::until_blocking("no process of an instance is left", || match &self.processes()[..] {
            [] => Ok(()),
            some => {
                for (_, _, pid) in some {
                    fault::kill_9(*pid);
                }
                Err(format!("there are {some:?}"))
            }
        });
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

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The URL of the database; none for SQLite.
    pub fn database_url(&self) -> Option<&str> {
        match &self.rows {
            Rows::Sqlite => None,
            Rows::Shared { url, .. } | Rows::Own { url } => Some(url),
        }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("the services were started")
    }

    /// Pushes a program of this workspace under its own name.
    pub async fn push(&self, program: &str) {
        let image: ImageRef = program.parse().expect("a program's name is an image's name");
        self.client().upload_image(&binary(program), &image, |_| {}).await.expect("the image is accepted");
    }

    /// Starts an instance; answers its id.
    pub async fn start(&self, start: StartInstance) -> String {
        self.client().start(start).await.expect("the start is accepted").instance.id
    }

    /// The instance as it is.
    pub async fn get(&self, id: &str) -> Instance {
        self.client().instance(id).await.expect("the instance is there")
    }

    /// Waits until the instance is as wanted.
    pub async fn until(&self, id: &str, what: &str, wanted: impl Fn(&Instance) -> bool) -> Instance {
        let what = format!("{id} {what}");
        wait::until(&what, async || {
            let instance = self.client().instance(id).await.map_err(chain)?;
            if wanted(&instance) {
                return Ok(instance);
            }
            // Final: what is waited for will not come.
            assert!(!instance.status.ended(), "waited until {what}; but {}", described(&instance));
            Err(described(&instance))
        })
        .await
    }

    /// Waits until it is suspended and its process is gone.
    pub async fn until_suspended(&self, id: &str) -> Instance {
        let instance =
            self.until(id, "is suspended", |i| i.status == Status::Suspended && !i.launching).await;
        self.until_no_process(id).await;
        instance
    }

    /// Waits until it has ended; the ending must be this one.
    pub async fn until_ended(&self, id: &str, wanted: Status) -> Instance {
        let instance = self.until(id, "has ended", |instance| instance.status.ended()).await;
        if instance.status != wanted {
            let events = self.events(id).await;
            let events: Vec<String> =
                events.iter().map(|e| format!("{} {} {}", e.attempt, e.kind, e.message)).collect();
            panic!("{}, not {wanted}; its events: {events:#?}", described(&instance));
        }
        instance
    }

    /// Waits until the instance has exactly one process; answers it.
    pub async fn until_process(&self, id: &str) -> Pid {
        wait::until(&format!("{id} has a process"), async || match self.processes_of(id)[..] {
            [(_, pid)] => Ok(pid),
            ref others => Err(format!("{} processes", others.len())),
        })
        .await
    }

    /// Waits until no process of the instance is left.
    pub async fn until_no_process(&self, id: &str) {
        wait::until(&format!("{id} has no process"), async || match &self.processes_of(id)[..] {
            [] => Ok(()),
            some => Err(format!("there are {some:?}")),
        })
        .await;
    }

    /// The living processes of an instance, each with its attempt, as the kernel shows them.
    pub fn processes_of(&self, id: &str) -> Vec<(u32, Pid)> {
        let all = self.processes();
        all.into_iter().filter(|(known, _, _)| known == id).map(|(_, attempt, pid)| (attempt, pid)).collect()
    }

    /// Every living process of an instance: id, attempt, process. Found by the temporary
    /// directory that the launcher gave it, not by anything that the services remember.
    fn processes(&self) -> Vec<(String, u32, Pid)> {
        let attempts = self.data_dir().join("attempts");
        process::with_variable("TMPDIR")
            .into_iter()
            .filter_map(|(value, pid)| {
                let below = Path::new(&value).strip_prefix(&attempts).ok()?.to_str()?.to_owned();
                let (id, attempt) = below.split('/').next()?.rsplit_once('.')?;
                Some((id.to_owned(), attempt.parse().ok()?, pid))
            })
            .collect()
    }

    /// All checkpoints, in the order in which they were stored.
    pub async fn checkpoints(&self, id: &str) -> Vec<Checkpoint> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.client().checkpoints(id, cursor, 0, false).await.expect("checkpoints are listed");
            all.extend(page.checkpoints);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return all;
            }
        }
    }

    /// All events, oldest first.
    pub async fn events(&self, id: &str) -> Vec<Event> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = self.client().events(id, after, 0, Duration::ZERO).await.expect("events are listed");
            if page.events.is_empty() {
                return all;
            }
            all.extend(page.events);
            after = page.next;
        }
    }

    /// How often the instance was launched, and that no attempt is missing.
    pub async fn attempts(&self, id: &str) -> u32 {
        let attempts = self.client().attempts(id).await.expect("attempts are listed");
        let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt).collect();
        let count = u32::try_from(numbers.len()).expect("few");
        assert_eq!(numbers, (1..=count).collect::<Vec<u32>>(), "the attempts of {id} have gaps");
        count
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_everything();
        self.guard.take().into_iter().for_each(Guard::dismiss);
        if let Rows::Shared { name, .. } = &self.rows {
            let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            if let Err(error) = in_own_runtime(administer(statement)) {
                eprintln!("the database {name} is left: {error}");
            }
        }
        if std::thread::panicking() {
            // Kept so that somebody can look.
            self.dir.disable_cleanup(true);
            eprintln!("the directory of the failed test: {}", self.dir.path().display());
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// What a failed wait prints of an instance.
fn described(instance: &Instance) -> String {
    let waiting = instance.waiting_for.as_deref().unwrap_or("for nothing");
    let failure = instance.failure.as_ref().map(|f| format!(" {} {}", f.code, f.message)).unwrap_or_default();
    format!(
        "{} is {}{failure}, attempt {}, launching {}, {} crashes, {} checkpoints, waits {waiting}",
        instance.id,
        instance.status,
        instance.attempt,
        instance.launching,
        instance.crashes,
        instance.checkpoints
    )
}

async fn create_database() -> Rows {
    let name = format!("dormouse_test_{:016x}", fastrand::u64(..));
    administer(format!("CREATE DATABASE {name}")).await.expect("the superuser may create a database");
    Rows::Shared { url: postgres::with_database(postgres::shared_url(), &name), name }
}

async fn administer(statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(postgres::shared_url()).await?;
    // Made of our own digits: nothing to escape.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// For a drop, which may happen inside a runtime.
fn in_own_runtime<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(future)
        });
        work.join().expect("the thread does not panic")
    })
}

/// Keys keep their owner and mode.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("own directory");
    fs::set_permissions(to, fs::metadata(from).expect("it is there").permissions()).expect("own directory");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("an entry has a name");
        fs::copy(&path, to.join(name)).expect("own directory");
    }
}
