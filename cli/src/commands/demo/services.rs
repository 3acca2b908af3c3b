//! `dormouse up` as a child process that can be killed and started again, and the promise that
//! nothing of it is left when the demo is over.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use dormouse_management_sdk::{Client, Target};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::commands::client_options;

/// How long a start may take before something is wrong.
const READY: Duration = Duration::from_secs(30);
/// How often an ending is looked for: there is no notification about somebody else's child.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Services {
    data_dir: PathBuf,
    child: Child,
}

impl Services {
    /// Starts them and waits until they answer.
    pub(super) async fn start(data_dir: &Path) -> anyhow::Result<Self> {
        let services = Self { data_dir: data_dir.to_owned(), child: spawn(data_dir)? };
        let mut services = services;
        services.ready().await?;
        Ok(services)
    }

    /// Starts them again on what is there.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.data_dir)?;
        self.ready().await
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect_with(Target::data_dir(&self.data_dir), client_options()).await?)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// kill -9, and gone.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the services cannot be killed")
    }

    /// Asks them to end, and waits.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            let pid = i32::try_from(pid).context("no process has this number")?;
            kill(Pid::from_raw(pid), Signal::SIGTERM).context("the services cannot be stopped")?;
        }
        self.child.wait().await.context("the services cannot be waited for")?;
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let data_dir = self.data_dir.clone();
        let answering = async {
            loop {
                let target = Target::data_dir(&data_dir);
                if let Ok(client) = Client::connect_with(target, client_options()).await
                    && client.health().await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(READY, answering) => {
                answered.with_context(|| format!("the services did not answer; they said: {}", self.said()))
            }
            status = self.child.wait() => {
                bail!("the services ended at once ({}); they said: {}", status?, self.said())
            }
        }
    }

    fn said(&self) -> String {
        let log = fs::read_to_string(log_file(&self.data_dir)).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Services {
    /// Also on Ctrl-C: first the services, then every workflow process that still works in
    /// our data directory.
    fn drop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            end(pid);
        }
        for pid in processes_in(&self.data_dir) {
            end(pid);
        }
    }
}

fn end(pid: i32) {
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        && error != Errno::ESRCH
    {
        tracing::warn!(pid, %error, "a process of the demo could not be ended");
    }
}

#[expect(clippy::disallowed_methods, reason = "the demo starts `dormouse up` as a user would")]
fn spawn(data_dir: &Path) -> anyhow::Result<Child> {
    let myself = std::env::current_exe().context("this program's own file cannot be found")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_file(data_dir))
        .context("the services' log cannot be written")?;
    Command::new(myself)
        .arg("up")
        .arg("--data-dir")
        .arg(data_dir)
        // Other services may have the usual ports; these are found by the data directory.
        .args(["--core", "127.0.0.1:0", "--environment", "127.0.0.1:0"])
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| !is_ours(name)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C of the terminal is ours to handle, in the right order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("`dormouse up` cannot be started")
}

/// The demo shows Dormouse as it comes, whatever the services of this machine are told.
fn is_ours(variable: &OsStr) -> bool {
    variable.as_encoded_bytes().starts_with(b"DORMOUSE_")
}

fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.with_extension("log")
}

pub(super) fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

/// Returns once no process has this number.
pub(super) async fn gone(pid: i32) {
    while is_alive(pid) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Processes whose working directory lies in this folder: instances, each in its own.
fn processes_in(folder: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder)))
        .collect()
}
