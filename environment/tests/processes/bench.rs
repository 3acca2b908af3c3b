//! A data directory with the fixture as its image, and means to wait for what processes do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dormouse_core::domain::id::{Attempt, AttemptToken, Digest, InstanceId, InstanceKey, Name, Tenant};
use dormouse_core::timings::Laps;
use dormouse_environment::{
    attempts::{AttemptDirectory, AttemptId, Attempts, Retention, Stream},
    images::{DEFAULT_MAX_BYTES, Images},
    launcher::{Launch, LaunchError, Launcher, Surroundings},
    supervisor::Process,
};
use sha2::{Digest as _, Sha256};

pub(crate) struct Bench {
    pub(crate) data: PathBuf,
    pub(crate) images: Images,
    pub(crate) attempts: Attempts,
    pub(crate) launcher: Launcher,
    pub(crate) image: Digest,
    folder: Option<tempfile::TempDir>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bench = Self::open(folder.path());
        bench.folder = Some(folder);
        bench
    }

    /// The same directory again, as after a restart.
    pub(crate) fn open(data: &Path) -> Self {
        let images = Images::open(data, DEFAULT_MAX_BYTES).expect("made");
        let attempts = Attempts::open(data, Retention::default()).expect("made");
        let image = images.store_file(&fixture()).expect("the fixture is an image").digest;
        let surroundings = Surroundings {
            environment: [("SECRET".into(), "of the operator".into()), ("TZ".into(), "UTC".into())].into(),
            core_addresses: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
            authority_pem: "PEM".to_owned(),
            idle_before_suspend: None,
            open_files: 512,
        };
        let launcher = Launcher::open(data, images.clone(), attempts.clone(), surroundings).expect("opened");
        Self { data: data.to_owned(), images, attempts, launcher, image, folder: None }
    }

    pub(crate) fn request(&self, name: &str, mode: &str) -> Launch {
        Launch {
            id: id(name),
            key: InstanceKey(1),
            image: self.image,
            workflow: Some(Name::parse("workflow", "fixture").expect("a name")),
            token: AttemptToken([9; 32]),
            env: BTreeMap::from([("FIXTURE".to_owned(), mode.to_owned())]),
            laps: Laps::begin(),
        }
    }

    pub(crate) async fn try_launch(&self, name: &str, mode: &str) -> Result<Process, LaunchError> {
        let launched = self.launcher.launch(self.request(name, mode)).await?;
        Ok(Process::watch(launched).expect("watched"))
    }

    pub(crate) async fn launch(&self, name: &str, mode: &str) -> Process {
        self.try_launch(name, mode).await.expect("launched")
    }

    pub(crate) fn directory(&self, name: &str) -> AttemptDirectory {
        self.attempts.directory(&id(name))
    }

    pub(crate) fn stdout(&self, name: &str) -> String {
        fs::read_to_string(self.directory(name).stream(Stream::Stdout)).expect("readable")
    }

    /// Until its standard output contains the text.
    pub(crate) async fn said(&self, name: &str, text: &str) -> String {
        until(text, || Some(self.stdout(name)).filter(|output| output.contains(text))).await
    }

    /// The processes that the fixture has started.
    pub(crate) async fn relatives(&self, name: &str) -> Vec<i32> {
        let output = self.said(name, "]\n").await;
        let (_, rest) = output.split_once("relatives [").expect("named");
        let (list, _) = rest.split_once(']').expect("closed");
        list.split(", ").map(|pid| pid.parse().expect("a number")).collect()
    }
}

pub(crate) fn id(name: &str) -> AttemptId {
    let instance = InstanceId::parse(name).expect("an id");
    AttemptId { tenant: Tenant::default_tenant(), instance, attempt: Attempt(1) }
}

/// Looks until something is there; a look costs little, and each wait has an end.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not seen in 30 s"))
}

/// Whether a process executes: one that ended and is not collected does not.
pub(crate) fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The fixture, compiled once per content.
#[expect(clippy::disallowed_methods, reason = "tests start processes and read cargo's variables")]
pub(crate) fn fixture() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/workflow.rs");
    let digest = Digest(Sha256::digest(fs::read(source).expect("readable")).into()).to_string();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let binary = folder.join(format!("fixture-{}", &digest[..16]));
    // Each test may be a process of its own: the first one compiles, the others wait.
    let turn = fs::File::create(folder.join("fixture.lock")).expect("made");
    turn.lock().expect("locked");
    if !binary.exists() {
        let own = folder.join(format!("fixture-{}.new", &digest[..16]));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let done = Command::new(rustc).args(["--edition=2024", "-o"]).arg(&own).arg(source).status();
        assert!(done.expect("rustc runs").success(), "the fixture does not compile");
        fs::rename(own, &binary).expect("renamed");
    }
    binary
}
