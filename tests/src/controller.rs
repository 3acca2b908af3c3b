//! A controller of a running Dormouse: a client, what tests ask of it again and again, and the
//! processes of its instances as the kernel shows them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use dormouse_management_sdk::{
    Checkpoint, Client, Event, ImageRef, Instance, Options, StartInstance, Status, Target,
};

use crate::{
    fault,
    previous::Release,
    process::{self, Pid},
    wait,
};

/// A living process of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Which of the data directories it was launched from.
    pub home: usize,
    /// Whose it is.
    pub instance: String,
    /// Of which attempt.
    pub attempt: u32,
    /// The process.
    pub pid: Pid,
}

/// A living process in a data directory, and the folder that is its own there.
struct Found {
    home: usize,
    name: String,
    pid: Pid,
}

impl Found {
    fn of_attempt(self) -> Option<Process> {
        let (instance, attempt) = self.name.rsplit_once('.')?;
        let attempt = attempt.parse().ok()?;
        Some(Process { home: self.home, instance: instance.to_owned(), attempt, pid: self.pid })
    }
}

/// Asks one environment, and looks at the processes of all.
#[derive(Clone, Debug)]
pub struct Controller {
    client: Option<Client>,
    homes: Vec<PathBuf>,
    scratch: PathBuf,
}

impl Controller {
    /// Without a client yet. `homes` are the data directories that processes may belong to.
    pub(crate) fn new(homes: Vec<PathBuf>, scratch: &Path) -> Self {
        Self { client: None, homes, scratch: scratch.to_owned() }
    }

    /// The same directories, seen by another client; its files go to a directory of this name.
    #[must_use]
    pub fn of_tenant(&self, client: Client, name: &str) -> Self {
        let scratch = self.scratch.join(name);
        std::fs::create_dir(&scratch).expect("names of a test differ");
        Self { client: Some(client), homes: self.homes.clone(), scratch }
    }

    /// Asks this one from now on.
    pub(crate) fn attach(&mut self, client: Client) {
        self.client = Some(client);
    }

    /// Processes may belong to this directory too.
    pub(crate) fn add_home(&mut self, home: PathBuf) {
        self.homes.push(home);
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The client.
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("the services were started")
    }

    /// Pushes a program of this workspace under its own name.
    pub async fn push(&self, program: &str) {
        self.push_of(Release::This, program).await;
    }

    /// Pushes an example of that release, built with its SDK, under its own name.
    pub async fn push_of(&self, release: Release, program: &str) {
        let image: ImageRef = program.parse().expect("a program's name is an image's name");
        let uploaded = self.client().upload_image(&release.binary(program), &image, |_| {}).await;
        uploaded.expect("the image is accepted");
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
        let of_it = self.processes().into_iter().filter(|process| process.instance == id);
        of_it.map(|process| (process.attempt, process.pid)).collect()
    }

    /// Every living process of an instance. Found by the directory that the launcher gave it, not by anything that
    /// the services remember.
    pub fn processes(&self) -> Vec<Process> {
        self.found("attempts").into_iter().filter_map(Found::of_attempt).collect()
    }

    /// Every living process that waits for an instance.
    pub fn spares(&self) -> Vec<Pid> {
        self.found("spares").into_iter().map(|found| found.pid).collect()
    }

    /// Waits until so many processes wait for an instance; answers them.
    pub async fn until_spares(&self, count: usize) -> Vec<Pid> {
        wait::until(&format!("{count} processes stand by"), async || {
            let spares = self.spares();
            if spares.len() == count { Ok(spares) } else { Err(format!("{spares:?}")) }
        })
        .await
    }

    /// The living processes in a folder of the data directories. Where a process works has the name of whom it
    /// belongs to now; one that works elsewhere has a temporary directory from its launch.
    fn found(&self, folder: &str) -> Vec<Found> {
        let mut all = Vec::new();
        for (temporary, pid) in process::with_variable("TMPDIR") {
            let works_in =
                pid.directory().filter(|path| self.homes.iter().any(|home| path.starts_with(home)));
            let path = works_in.unwrap_or_else(|| temporary.into());
            let below = |home: &PathBuf| path.strip_prefix(home.join(folder)).ok();
            let found = self.homes.iter().enumerate().find_map(|(home, at)| Some((home, below(at)?)));
            let name = found.and_then(|(home, below)| Some((home, below.to_str()?.split('/').next()?)));
            all.extend(name.map(|(home, name)| Found { home, name: name.to_owned(), pid }));
        }
        all
    }

    /// kill -9 of every process of an instance and of every one that waits for one; a launch may be on its way
    /// meanwhile.
    pub(crate) fn kill_processes(&self) {
        wait::until_blocking("no process of an instance is left", || {
            let mut all = self.spares();
            all.extend(self.processes().into_iter().map(|process| process.pid));
            for pid in &all {
                fault::kill_9(*pid);
            }
            if all.is_empty() { Ok(()) } else { Err(format!("there are {all:?}")) }
        });
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

/// A client of the services of this data directory, if they answer now.
pub(crate) async fn try_connect(data_dir: &Path) -> Result<Client, String> {
    let options = Options { patience: Duration::from_mins(1), ..Options::default() };
    let client = Client::connect_with(Target::data_dir(data_dir), options).await.map_err(chain)?;
    client.health().await.map_err(chain)?;
    Ok(client)
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
