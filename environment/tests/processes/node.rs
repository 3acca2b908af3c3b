//! A whole node on SQLite: claims, launches, watches, settles. The test plays core: it reads the
//! token out of the document that the fixture notes, and registers by it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dormouse_core::{
    domain::{
        event::EventKind,
        id::{Attempt, AttemptToken, InstanceId, Name, Tenant},
        instance::{State, Status},
        outcome::{EndedBy, Ending, Outcome},
        payload::Payload,
    },
    fault,
    limits::Limits,
    store::{self, Database, Instance, NewImage, Session, StartRequest, Store},
};
use dormouse_environment::{
    attempts::AttemptDirectory,
    environment::{Environment, Error, Handle, Options},
    node::DataDirectory,
    supervisor::Grace,
};
use dormouse_proto::launch::LaunchDocument;
use prost::Message;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bench::{fixture, runs, until};

mod leases;

/// A node that runs in this process.
struct Node {
    data: PathBuf,
    store: Store,
    handle: Handle,
    shutdown: CancellationToken,
    running: JoinSet<Result<(), Error>>,
}

fn tenant() -> Tenant {
    Tenant::default_tenant()
}

fn name(text: &str) -> Name {
    Name::parse("name", text).expect("a name")
}

fn instance_id(text: &str) -> InstanceId {
    InstanceId::parse(text).expect("an id")
}

async fn open_store(data: &Path, retention: Duration) -> Store {
    let mut options = store::Options::new(Database::Sqlite(data.join("dormouse.db")));
    options.limits = Limits {
        crashes: 2,
        crash_backoff: Duration::from_millis(1),
        cancel_grace: Duration::from_millis(100),
        retention,
        ..Limits::default()
    };
    Store::open(options).await.expect("a database")
}

/// Quick where people would be patient.
fn options(slots: usize) -> Options {
    let mut options =
        Options::new("127.0.0.1:0".to_owned(), vec!["127.0.0.1:1".to_owned()], "PEM".to_owned());
    options.slots = slots;
    options.supervisor.look_delay = Duration::from_millis(1);
    options.supervisor.launch_retry = Duration::from_millis(20);
    options.supervisor.grace =
        Grace { before_ask: Duration::from_millis(20), before_kill: Duration::from_millis(50) };
    options
}

impl Node {
    async fn open(data: &Path, options: Options) -> Self {
        Self::open_keeping(data, options, Limits::default().retention).await
    }

    /// Ended instances are kept for so long.
    async fn open_keeping(data: &Path, options: Options, retention: Duration) -> Self {
        let directory = DataDirectory::lock(data).expect("free");
        let store = open_store(directory.path(), retention).await;
        let data = directory.path().to_owned();
        let environment = Environment::open(directory, store.clone(), options).await.expect("opened");
        let handle = environment.handle();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(environment.run(shutdown.clone()));
        let stored = handle.images.store_file(&fixture()).expect("an image");
        let image = NewImage {
            tenant: tenant(),
            name: name("fixture"),
            version: name("1"),
            digest: stored.digest,
            size: stored.size,
            workflows: stored.inspection.workflows,
            sdk_version: stored.inspection.sdk_version,
            architecture: stored.inspection.architecture.to_owned(),
            chunks: 0,
        };
        store.put_image(image).await.expect("named");
        Self { data, store, handle, shutdown, running }
    }

    async fn fresh(folder: &tempfile::TempDir) -> Self {
        Self::open(&folder.path().join("data"), options(16)).await
    }

    async fn start(&self, id: &str, mode: &str) {
        self.start_with(id, mode, None).await;
    }

    async fn start_with(&self, id: &str, mode: &str, limit: Option<Duration>) {
        let request = StartRequest {
            tenant: tenant(),
            id: instance_id(id),
            image: name("fixture"),
            version: None,
            workflow: Some(name("fixture")),
            input: Payload::json("null"),
            env: BTreeMap::from([("FIXTURE".to_owned(), mode.to_owned())]),
            limit,
            start_at: None,
            priority: 5,
            follow_image: false,
        };
        self.store.start(request).await.expect("started");
    }

    async fn instance(&self, id: &str) -> Instance {
        self.store.instance(&tenant(), &instance_id(id)).await.expect("there")
    }

    async fn until_instance(&self, id: &str, what: &str, look: impl Fn(&Instance) -> bool) -> Instance {
        let wait = async {
            loop {
                let instance = self.instance(id).await;
                if look(&instance) {
                    return instance;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), wait).await;
        let Ok(found) = found else {
            panic!("{what}: not seen in 30 s; it is {:?}", self.instance(id).await);
        };
        found
    }

    fn directory(&self, id: &str, attempt: u32) -> AttemptDirectory {
        AttemptDirectory { path: self.data.join(format!("attempts/{id}.{attempt}")) }
    }

    fn pid(&self, id: &str, attempt: u32) -> Option<i32> {
        Some(self.directory(id, attempt).load_record().ok()??.pid)
    }

    /// What its process was given, once it has noted it.
    async fn token(&self, id: &str, attempt: u32) -> AttemptToken {
        let noted = self.directory(id, attempt).work().join("acted");
        let said = self.directory(id, attempt).path.join("stdout");
        until("the document", || {
            // It says so after the note is complete.
            let waits = fs::read_to_string(&said).is_ok_and(|text| text.contains("waiting"));
            let document = LaunchDocument::decode(fs::read(&noted).ok()?.as_slice()).ok()?;
            waits.then(|| AttemptToken(document.token.try_into().expect("32 bytes")))
        })
        .await
    }

    async fn register(&self, id: &str, attempt: u32) -> Session {
        let token = self.token(id, attempt).await;
        self.store.register(&token).await.expect("registered").session
    }

    async fn complete(&self, session: &Session) {
        self.store.end(session, Ending::Completed(Payload::json("1"))).await.expect("completed");
    }

    async fn leave(mut self) {
        self.shutdown.cancel();
        self.ended().await;
        self.store.close().await;
    }

    async fn ended(&mut self) {
        self.running.join_next().await.expect("it was started").expect("no panic").expect("a clean end");
    }

    async fn idle(&self) {
        until("no process", || (self.handle.slots.used() == 0).then_some(())).await;
        until("no files", || self.handle.attempts.living().expect("readable").is_empty().then_some(())).await;
    }
}

fn has_ended(instance: &Instance) -> bool {
    instance.life.outcome().is_some()
}

#[tokio::test]
async fn a_started_instance_is_launched_and_its_crashes_end_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("crash", "exit:3").await;
    let ended = node.until_instance("crash", "an ending", has_ended).await;
    assert_eq!(ended.life.outcome(), Some(Outcome::Failed));
    let failure = ended.failure.expect("a reason");
    assert_eq!(failure.code, "CRASHED");
    assert!(failure.message.contains("exited with code 3"), "{}", failure.message);
    assert_eq!(ended.life.attempt, Attempt(3), "two are forgiven");
    let attempts = node.store.attempts(&tenant(), &instance_id("crash"), 10).await.expect("read");
    let tails: Vec<_> =
        attempts.iter().map(|attempt| attempt.stderr_tail.clone().unwrap_or_default()).collect();
    assert_eq!(tails, ["leaving with 3\n"; 3]);
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn the_row_is_believed_not_the_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("done", "sleep").await;
    let session = node.register("done", 1).await;
    let pid = node.pid("done", 1).expect("known");
    node.complete(&session).await;
    // It lingers: asked, so its status is SIGTERM, and yet the instance is what it said.
    until("the process leaves", || (!runs(pid)).then_some(())).await;
    node.idle().await;
    let ended = node.instance("done").await;
    assert_eq!((ended.life.outcome(), ended.life.crashes), (Some(Outcome::Completed), 0));
    node.leave().await;
}

#[tokio::test]
async fn a_stop_and_a_time_limit_end_the_process_that_does_not_listen() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("stopped", "stubborn").await;
    node.start_with("limited", "stubborn", Some(Duration::from_millis(300))).await;
    node.register("stopped", 1).await;
    node.register("limited", 1).await;
    let pids = [node.pid("stopped", 1).expect("known"), node.pid("limited", 1).expect("known")];
    node.store.stop(&tenant(), &instance_id("stopped")).await.expect("stopped");
    let stopped = node.until_instance("stopped", "the stop", has_ended).await;
    assert!(matches!(
        stopped.life.state,
        State::Ended { outcome: Outcome::Cancelled, by: EndedBy::Controller, .. }
    ));
    let limited = node.until_instance("limited", "the limit", has_ended).await;
    assert!(matches!(
        limited.life.state,
        State::Ended { outcome: Outcome::Failed, by: EndedBy::Deadline, .. }
    ));
    until("both are killed", || pids.iter().all(|pid| !runs(*pid)).then_some(())).await;
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn a_cancel_that_is_not_felt_within_its_grace_ends_instance_and_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("numb", "sleep").await;
    node.register("numb", 1).await;
    let pid = node.pid("numb", 1).expect("known");
    node.store.cancel(&tenant(), &instance_id("numb")).await.expect("asked");
    let ended = node.until_instance("numb", "the grace", has_ended).await;
    assert!(matches!(ended.life.state, State::Ended { outcome: Outcome::Cancelled, by: EndedBy::Node, .. }));
    until("it is killed", || (!runs(pid)).then_some(())).await;
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn what_does_not_register_in_time_is_killed_before_the_next_attempt_and_is_no_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = options(16);
    options.scheduler.launch_deadline = Duration::from_secs(1);
    let node = Node::open(&folder.path().join("data"), options).await;
    node.start("slow", "stubborn").await;
    let first = until("the first process", || node.pid("slow", 1)).await;
    let again = node.until_instance("slow", "the next attempt", |i| i.life.attempt == Attempt(2)).await;
    assert!(!runs(first), "two attempts at once");
    assert_eq!(again.life.crashes, 0);
    let session = node.register("slow", 2).await;
    node.complete(&session).await;
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn a_broken_image_gives_its_claim_back_with_a_sentence_and_holds_up_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    let digest = node.handle.images.store_file(&fixture()).expect("there").digest;
    node.handle.images.remove(&digest).expect("removed");
    node.start("broken", "sleep").await;
    let third = node.until_instance("broken", "a few tries", |i| i.life.attempt >= Attempt(3)).await;
    assert_eq!(third.life.crashes, 0, "not its fault");
    let events = node.store.events(&tenant(), &instance_id("broken"), 0, 100).await.expect("read");
    let failed = events.events.iter().find(|event| event.kind == EventKind::LaunchFailed).expect("told");
    assert!(failed.message.contains("is not on this node; push it again"), "{}", failed.message);

    node.handle.images.store_file(&fixture()).expect("pushed again");
    let launched = node.until_instance("broken", "a launch", |i| i.life.is_open()).await.life.attempt;
    let live =
        until("a process", || (launched.0..launched.0 + 9).find(|n| node.pid("broken", *n).is_some())).await;
    let session = node.register("broken", live).await;
    node.complete(&session).await;
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn no_more_run_than_there_are_slots_and_all_get_their_turn() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::open(&folder.path().join("data"), options(2)).await;
    let ids: Vec<String> = (0..6).map(|n| format!("turn-{n}")).collect();
    for id in &ids {
        node.start(id, "sleep").await;
    }
    let mut left: Vec<&String> = ids.iter().collect();
    while !left.is_empty() {
        let id = until("a process", || left.iter().find(|id| node.pid(id, 1).is_some()).copied()).await;
        assert!(node.handle.slots.used() <= 2);
        let session = node.register(id, 1).await;
        node.complete(&session).await;
        left.retain(|other| *other != id);
    }
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn processes_outlive_the_service_and_are_adopted() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("stays", "sleep").await;
    let session = node.register("stays", 1).await;
    let (pid, data) = (node.pid("stays", 1).expect("known"), node.data.clone());
    node.leave().await;
    assert!(runs(pid), "it was to stay");

    let node = Node::open(&data, options(16)).await;
    assert_eq!(node.instance("stays").await.life.status(), Status::Running, "settled though it runs");
    until("it is watched", || (node.handle.slots.used() == 1).then_some(())).await;
    node.complete(&session).await;
    until("it is asked to leave", || (!runs(pid)).then_some(())).await;
    node.idle().await;
    node.leave().await;
}

#[tokio::test]
async fn a_process_that_ended_while_the_service_was_away_is_no_crash_and_its_last_words_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("unseen", "sleep").await;
    node.register("unseen", 1).await;
    let (pid, data) = (node.pid("unseen", 1).expect("known"), node.data.clone());
    let last_words = node.directory("unseen", 1).path.join("stderr");
    node.leave().await;
    fs::write(last_words, "farewell\n").expect("written");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
        .expect("our own child");
    until("it ends", || (!runs(pid)).then_some(())).await;

    let node = Node::open(&data, options(16)).await;
    let again = node.until_instance("unseen", "the next attempt", |i| i.life.attempt == Attempt(2)).await;
    assert_eq!(again.life.crashes, 0);
    let attempts = node.store.attempts(&tenant(), &instance_id("unseen"), 10).await.expect("read");
    let first = attempts.last().expect("the first");
    let exit = first.exit.clone().unwrap_or_default();
    assert!(exit.starts_with("unknown: "), "{exit}");
    assert_eq!(first.stderr_tail.as_deref(), Some("farewell\n"));
    node.handle.end_processes();
    node.leave().await;
}

#[tokio::test]
async fn processes_that_are_ended_with_the_service_are_no_crashes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut node = Node::fresh(&folder).await;
    node.start("interrupted", "sleep").await;
    node.register("interrupted", 1).await;
    let pid = node.pid("interrupted", 1).expect("known");
    node.handle.end_processes();
    node.ended().await;
    assert!(!runs(pid), "it was to end");
    let instance = node.store.instance(&tenant(), &instance_id("interrupted")).await.expect("there");
    assert_eq!((instance.life.status(), instance.life.crashes), (Status::Suspended, 0));
    node.store.close().await;
}

#[tokio::test]
async fn what_was_kept_long_enough_is_deleted_with_its_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::fresh(&folder).await;
    node.start("old", "exit:3").await;
    node.start("young", "sleep").await;
    node.register("young", 1).await;
    node.until_instance("old", "an ending", has_ended).await;
    let data = node.data.clone();
    until("its output", || data.join("outputs/old/3.stderr").exists().then_some(())).await;
    node.leave().await;

    let node = Node::open_keeping(&data, options(16), Duration::ZERO).await;
    until("its output goes", || (!data.join("outputs/old").exists()).then_some(())).await;
    let gone = node.store.instance(&tenant(), &instance_id("old")).await;
    assert!(matches!(gone, Err(store::Error::NoInstance { .. })), "{gone:?}");
    assert_eq!(node.instance("young").await.life.status(), Status::Running, "it has not ended");
    node.handle.end_processes();
    node.leave().await;
}

#[tokio::test]
async fn output_is_held_to_its_limit_also_if_it_came_all_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = options(16);
    options.supervisor.stream_bytes = 64 << 10;
    let node = Node::open(&folder.path().join("data"), options).await;
    node.start("flood", "flood:4096").await;
    node.until_instance("flood", "an ending", has_ended).await;
    node.idle().await;
    let output = fs::metadata(node.data.join("outputs/flood/1.stdout")).expect("kept");
    assert_eq!(output.len(), (4 << 20) + 4, "offsets stay true");
    assert!(output.blocks() * 512 <= (64 << 10) + 4096, "{} bytes on disk", output.blocks() * 512);
    node.leave().await;
}

/// Not a test of its own: the service that [`killed_anywhere_everything_heals`] kills.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test's own process tells its helper by a variable")]
async fn helper_runs_a_node() {
    let Some(data) = std::env::var_os("HELPER_NODE") else { return };
    let mut node = Node::open(Path::new(&data), options(16)).await;
    node.start("victim", "exit:3").await;
    node.start("lasting", "sleep").await;
    node.ended().await;
}

#[expect(clippy::disallowed_methods, reason = "tests start processes")]
async fn run_helper_until_killed(data: &Path, point: &str) {
    let mut helper = Command::new(std::env::current_exe().expect("a path"));
    helper.args(["--exact", "node::helper_runs_a_node"]).env("HELPER_NODE", data).env(fault::VARIABLE, point);
    let mut helper = helper.spawn().expect("started");
    let status = until(point, || helper.try_wait().expect("a child")).await;
    assert_eq!(status.signal(), Some(9), "killed at {point}");
}

/// Invariants 4 and 7 on a node: wherever it dies, the next start finds or settles everything.
#[tokio::test]
async fn killed_anywhere_everything_heals() {
    for point in [
        "environment.leased",
        "environment.adopted",
        "environment.settled",
        "scheduler.claimed",
        "launch.directory_made:2",
        "launch.spawned",
        "launch.spawned:2",
        "launch.recorded",
        "launch.recorded:2",
        "launch.document_written",
        "launch.document_written:2",
        "supervisor.exit_seen",
        "supervisor.exit_told",
        "supervisor.put_away",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        run_helper_until_killed(&data, point).await;
        let node = Node::open(&data, options(16)).await;
        // The helper may have died before it started them.
        node.start("victim", "exit:3").await;
        node.start("lasting", "sleep").await;
        let victim = node.until_instance("victim", point, has_ended).await;
        assert_eq!(victim.failure.map(|failure| failure.code).as_deref(), Some("CRASHED"), "{point}");
        let attempt = until(point, || (1..9).rev().find(|n| node.pid("lasting", *n).is_some_and(runs))).await;
        let session = node.register("lasting", attempt).await;
        assert_eq!(session.writer.attempt, node.instance("lasting").await.life.attempt, "{point}");
        node.complete(&session).await;
        node.idle().await;
        node.leave().await;
        let left = crate::launch::at_home_in(folder.path());
        assert!(left.is_empty(), "{point}: {left:?} still run");
    }
}
