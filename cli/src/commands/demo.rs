//! `dormouse demo`: the whole story in one minute.
//!
//! The fixity workflow, which is inside this very binary, audits a real folder. Meanwhile the
//! demo kills the workflow's process, then the services, lets the workflow sleep without a
//! process, kills the services again, and at the end checks the manifest without Dormouse and
//! compares what ran with what was saved. It uses only what every user has: `dormouse up`
//! as a child process, the management protocol, and `kill -9`. Everything lies in a temporary
//! folder, and nothing is left running, also after Ctrl-C.

mod folder;
mod proof;
mod services;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, bail};
use dormouse_management_sdk::{Client, ImageRef, Instance, StartInstance, Status, Watch};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::{folder::Folder, services::Services};
use crate::{
    args::Demo,
    exit::Exit,
    output::{bytes, say, table},
};

const INSTANCE: &str = "demo-audit";
/// How long the hashing is meant to take, so that a person can follow.
const HASHING: Duration = Duration::from_secs(14);
/// How long it sleeps: long enough to suspend (2 s) and to be seen asleep.
const SETTLE_SECONDS: u64 = 8;
const PARALLEL: u32 = 4;

/// One thing that was killed, for the table at the end.
struct Killed {
    what: String,
    when: String,
    then: String,
}

struct Story {
    services: Services,
    client: Client,
    watch: Watch,
    now: Instance,
    killed: Vec<Killed>,
}

pub(crate) async fn demo(args: Demo) -> anyhow::Result<Exit> {
    let stage = tempfile::Builder::new().prefix("dormouse-demo-").tempdir().context("no temporary folder")?;
    let folder = folder::choose(args.folder.as_deref(), stage.path())?;
    let plan = Plan::new(&folder, stage.path());
    headline(&folder);

    let mut demo = Story::begin(&plan, stage.path()).await?;
    demo.kill_the_workflow(&plan).await?;
    demo.kill_the_services(&plan).await?;
    demo.sleep(&plan).await?;
    let ended = demo.finish().await?;

    let proof = proof::collect(&demo.client, INSTANCE, &plan.side_file).await?;
    let verified = proof::verify(&plan.manifest)?;
    demo.services.stop().await?;
    report(&demo.killed, &proof, &verified, &ended);
    if proof.saved_and_run_again > 0 {
        bail!("{} saved steps ran again: this is a bug of ours, please report it", proof.saved_and_run_again);
    }
    if let Some(keep) = &args.keep {
        std::fs::copy(&plan.manifest, keep).with_context(|| format!("cannot write {}", keep.display()))?;
        say(&format!("The manifest is {}.", keep.display()));
    }
    Ok(Exit::Done)
}

/// What is audited, how fast, and where the traces go.
struct Plan {
    root: PathBuf,
    files: u64,
    manifest: PathBuf,
    side_file: PathBuf,
    pace: Duration,
}

impl Plan {
    fn new(folder: &Folder, stage: &Path) -> Self {
        let each = HASHING * PARALLEL / u32::try_from(folder.files.max(1)).unwrap_or(u32::MAX);
        Self {
            root: folder.root.clone(),
            files: folder.files,
            manifest: stage.join("manifest.sha256"),
            side_file: stage.join("what-ran"),
            pace: each.min(Duration::from_millis(500)),
        }
    }

    fn input(&self) -> serde_json::Value {
        serde_json::json!({
            "root": self.root,
            "manifest": self.manifest,
            "parallel": PARALLEL,
            "pace_ms": u64::try_from(self.pace.as_millis()).unwrap_or(500),
            "settle_seconds": SETTLE_SECONDS,
        })
    }
}

impl Story {
    /// Starts the services, pushes this binary, starts the audit.
    async fn begin(plan: &Plan, stage: &Path) -> anyhow::Result<Self> {
        let services = Services::start(&stage.join("data")).await?;
        let client = services.client().await?;
        step(&format!("`dormouse up` runs (pid {}): SQLite, certificates made on the spot.", services.pid()));
        let myself = std::env::current_exe().context("this program's own file cannot be found")?;
        let pushed = client
            .upload_image(&myself, &ImageRef { name: "demo".to_owned(), version: String::new() }, |_| {})
            .await?;
        step(&format!(
            "Pushed the image {} ({}): this very binary, which holds the workflow `fixity`.",
            pushed.image.name,
            bytes(pushed.image.size)
        ));
        let side_file = plan.side_file.to_str().context("the temporary folder's name is not text")?;
        let start = StartInstance::of("demo")
            .id(INSTANCE)
            .workflow("fixity")
            .input(&plan.input())?
            .env("DORMOUSE_SIDE_FILE", side_file);
        let now = client.start(start).await?.instance;
        step(&format!("Started instance {INSTANCE}: a process of its own will hash {} files.", plan.files));
        let watch = client.watch(INSTANCE);
        Ok(Self { services, client, watch, now, killed: Vec::new() })
    }

    /// kill -9 of the workflow's process in the middle of its work.
    async fn kill_the_workflow(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.until(|now| done(now) >= plan.files / 4).await?;
        let (attempt, pid) = self.process().await?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("the workflow's process cannot be killed")?;
        let at = done(&self.now);
        bang(&format!("kill -9 {pid}: the workflow's process, at {at} of {} files.", plan.files));
        self.until(|now| now.attempt > attempt && now.status == Status::Running).await?;
        let (_, new_pid) = self.process().await?;
        let saved = self.now.checkpoints;
        step(&format!(
            "It crashed, so it is launched again: attempt {}, pid {new_pid}, with {saved} saved results.",
            self.now.attempt
        ));
        self.killed.push(Killed {
            what: format!("workflow process {pid}"),
            when: format!("{at} of {} files hashed", plan.files),
            then: format!("attempt {} went on with {saved} saved results", self.now.attempt),
        });
        Ok(())
    }

    /// kill -9 of both services; the workflow's process lives on and is adopted.
    async fn kill_the_services(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.until(|now| done(now) >= plan.files * 6 / 10).await?;
        let (attempt, pid) = self.process().await?;
        let up = self.services.pid();
        let at = done(&self.now);
        self.services.kill().await?;
        bang(&format!("kill -9 {up}: both services, at {at} of {} files.", plan.files));
        let alive = services::is_alive(pid);
        step(&format!(
            "The workflow's process {pid} {}: it holds what it has and looks for core.",
            if alive { "lives on" } else { "has ended" }
        ));
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.services.start_again().await?;
        self.until(|now| done(now) > at || now.status.ended()).await?;
        let same = self.now.attempt == attempt;
        let then = if same {
            format!("process {pid} was adopted, still attempt {attempt}")
        } else {
            format!("attempt {} took over", self.now.attempt)
        };
        step(&format!("`dormouse up` again (pid {}): {then}.", self.services.pid()));
        self.killed.push(Killed {
            what: format!("both services, process {up}"),
            when: format!("{at} of {} files hashed", plan.files),
            then,
        });
        Ok(())
    }

    /// The durable sleep, with the services killed once more while nothing else exists.
    async fn sleep(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let (_, pid) = self.process().await?;
        self.until(|now| now.status == Status::Suspended || now.status.ended()).await?;
        services::gone(pid).await;
        let waiting = self.now.waiting_for.clone().unwrap_or_default();
        step(&format!(
            "All {} files are hashed. The workflow {waiting}; its process {pid} is gone.",
            plan.files
        ));
        let up = self.services.pid();
        self.services.kill().await?;
        bang(&format!("kill -9 {up}: the services. Now no process of Dormouse exists at all."));
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.services.start_again().await?;
        step(&format!("`dormouse up` again (pid {}): the sleep is in the database.", self.services.pid()));
        self.killed.push(Killed {
            what: format!("both services, process {up}"),
            when: "the workflow asleep, without a process".to_owned(),
            then: "woken when it was due".to_owned(),
        });
        Ok(())
    }

    /// The wake, the manifest, the ending.
    async fn finish(&mut self) -> anyhow::Result<Instance> {
        let asleep = self.now.attempt;
        self.until(|now| now.attempt > asleep && now.status != Status::Suspended).await?;
        step(&format!("Woken: attempt {} looks whether a file has changed meanwhile.", self.now.attempt));
        self.until(|now| now.status.ended()).await?;
        match (self.now.status, &self.now.failure) {
            (Status::Completed, _) => step("COMPLETED: the manifest is written."),
            (status, Some(failure)) => bail!("the audit {status}: {}: {}", failure.code, failure.message),
            (status, None) => bail!("the audit {status}"),
        }
        Ok(self.now.clone())
    }

    /// The running process: attempt and pid. A node tells a pid when a process is a moment old,
    /// and raises no version for it, so it is asked for again.
    async fn process(&mut self) -> anyhow::Result<(u32, i32)> {
        self.until(|now| now.status == Status::Running || now.status.ended()).await?;
        let asked = async {
            loop {
                let attempts = self.client.attempts(INSTANCE).await?;
                let newest = attempts.iter().max_by_key(|attempt| attempt.attempt);
                let newest = newest.context("it was never launched")?;
                if let Some(pid) = newest.pid {
                    return Ok((newest.attempt, i32::try_from(pid).context("no process has this number")?));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), asked)
            .await
            .context("the services do not know the workflow's process")?
    }

    /// Follows the instance, drawing its progress, until it is as wanted or has ended.
    async fn until(&mut self, wanted: impl Fn(&Instance) -> bool) -> anyhow::Result<()> {
        while !wanted(&self.now) {
            match self.watch.next().await? {
                Some(now) => self.now = now,
                None if wanted(&self.now) => {}
                None => {
                    let failure = self.now.failure.as_ref().map(|f| format!(": {}", f.message));
                    bail!("the audit {} too early{}", self.now.status, failure.unwrap_or_default())
                }
            }
            draw(&self.now);
        }
        Ok(())
    }
}

fn done(instance: &Instance) -> u64 {
    instance.progress.as_ref().map_or(0, |progress| progress.done)
}

fn headline(folder: &Folder) {
    say(&format!(
        "A fixity audit of {} ({} files, {}): every file is hashed as a durable step.\n",
        folder.root.display(),
        folder.files,
        bytes(folder.bytes)
    ));
}

fn step(text: &str) {
    let green = Style::new().fg_color(Some(AnsiColor::Green.into()));
    say(&format!("{}{green}  ✓{green:#} {text}", clear()));
}

fn bang(text: &str) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    say(&format!("{}{red}  ✗ {text}{red:#}", clear()));
}

/// A bar that is drawn over itself; nothing where nobody watches.
fn draw(now: &Instance) {
    use std::io::{IsTerminal as _, Write as _};
    let Some(progress) = &now.progress else { return };
    let mut stderr = std::io::stderr();
    if !stderr.is_terminal() {
        return;
    }
    let total = progress.total.unwrap_or(progress.done).max(1);
    let filled = usize::try_from(progress.done * 30 / total).unwrap_or(30).min(30);
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(30 - filled));
    let line = format!("{}    {bar} {} of {total} files, attempt {}", clear(), progress.done, now.attempt);
    // Drawing is for the eye only; a terminal that went away must not end the demo.
    if stderr.write_all(line.as_bytes()).and_then(|()| stderr.flush()).is_err() {
        tracing::debug!("the terminal takes nothing more");
    }
}

/// Begins the line anew where a bar may stand in it.
fn clear() -> &'static str {
    use std::io::IsTerminal as _;
    if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" }
}

fn report(killed: &[Killed], proof: &proof::Proof, verified: &proof::Verified, ended: &Instance) {
    say("");
    say(&table(
        &["KILLED WITH -9", "WHEN", "WHAT HAPPENED"],
        killed.iter().map(|k| vec![k.what.clone(), k.when.clone(), k.then.clone()]),
    ));
    say(&table(
        &["STEPS", ""],
        [
            ("results saved", proof.saved),
            ("run once", proof.run_once),
            ("run again, because they were under way when killed", proof.run_again),
            ("saved and yet run again", proof.saved_and_run_again),
        ]
        .into_iter()
        .map(|(what, n)| vec![what.to_owned(), n.to_string()]),
    ));
    say(&format!(
        "{} launches. Verified without Dormouse: {} of {} files match the manifest{}.",
        ended.attempt,
        verified.matching,
        verified.lines,
        if verified.by_sha256sum { " (sha256sum -c)" } else { "" }
    ));
}
