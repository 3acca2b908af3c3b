//! One process until its end, and what is known of it.
//!
//! A process is watched by its pidfd: readable means ended. Our own child then tells how, and
//! holds its number until it is collected; an adopted one tells how only where the kernel still
//! knows (Linux 6.15).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dormouse_core::domain::outcome::{ExitReason, ExitReport};
use rustix::process::Signal;
use tokio::{
    io::unix::AsyncFd,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::group;
use crate::{
    attempts::{AttemptDirectory, Stream},
    launcher::{
        Launched, Usage, kill_unwatched,
        sys::{self, Reaped, Status},
    },
    process::ProcessId,
};

/// Bytes of standard error that go into the report.
pub const STDERR_TAIL: usize = 4096;

/// How long the kernel may take to hand an adopted process to its parent and back to us.
const STRANGER_WAIT: Duration = Duration::from_millis(200);
const STRANGER_POLL: Duration = Duration::from_millis(5);

/// How long the ladder of a stop takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// For leaving by itself, before SIGTERM.
    pub before_ask: Duration,
    /// From SIGTERM to SIGKILL.
    pub before_kill: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        Self { before_ask: Duration::from_secs(10), before_kill: Duration::from_secs(5) }
    }
}

/// How an attempt's process ended, as far as this node can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// For the store and for people.
    pub report: ExitReport,
    /// What it used; known of our own children only.
    pub usage: Option<Usage>,
}

/// A process that is watched: our child, or one that an earlier run of this service started.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    directory: AttemptDirectory,
    pidfd: AsyncFd<OwnedFd>,
    out_of_memory_kills: Option<u64>,
    /// Processor time that was used for others, in microseconds.
    used_before: u64,
    since: Instant,
}

impl Process {
    /// Watches what was just launched; kills it if that is not possible, so that no process runs
    /// which nobody watches. Within a tokio runtime.
    pub fn watch(launched: Launched) -> io::Result<Self> {
        let Launched { process, pidfd, directory } = launched;
        Self::register(process, directory, pidfd).map_err(|(pidfd, error)| {
            kill_unwatched(&pidfd);
            error
        })
    }

    /// Watches a process of an earlier life.
    pub(super) fn adopt(id: ProcessId, directory: AttemptDirectory, pidfd: OwnedFd) -> io::Result<Self> {
        Self::register(id, directory, pidfd).map_err(|(_, error)| error)
    }

    fn register(
        id: ProcessId,
        directory: AttemptDirectory,
        pidfd: OwnedFd,
    ) -> Result<Self, (OwnedFd, io::Error)> {
        let pidfd = sys::watch(pidfd)?;
        let since = Instant::now();
        let out_of_memory_kills = recent_out_of_memory_kills();
        Ok(Self { id, directory, pidfd, out_of_memory_kills, used_before: 0, since })
    }

    /// The same process, which serves another attempt from now on: its files are elsewhere, and what
    /// it used until now was used for others.
    pub(crate) fn in_directory(self, directory: AttemptDirectory) -> Self {
        let used_before = sys::begin_accounting(self.id.pid);
        let out_of_memory_kills = recent_out_of_memory_kills();
        Self { directory, out_of_memory_kills, used_before, since: Instant::now(), ..self }
    }

    /// Returns, apart from the process, once it has ended.
    pub(crate) fn watch_end(&self) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let pidfd = sys::watch(self.pidfd.get_ref().try_clone()?).map_err(|(_, error)| error)?;
        // An error: it cannot be watched any more, which whoever looks at it will find.
        Ok(async move { drop(pidfd.readable().await) })
    }

    /// Which process.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Its files.
    pub fn directory(&self) -> &AttemptDirectory {
        &self.directory
    }

    /// How long it has been watched.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits until it has ended. Nothing is collected yet: may be dropped and called again.
    pub async fn ended(&self) -> io::Result<()> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if self.has_ended() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// To be called once it has [`ended`](Self::ended): kills what is left of its group, collects
    /// it and says how it ended.
    pub async fn collect(&self) -> io::Result<Exit> {
        let reaped = self.reap()?;
        let status = match reaped {
            Some(reaped) => Some(reaped.status),
            None => self.stranger_status().await,
        };
        if reaped.is_none() {
            // Not our child: its number may be another's by now, so its group is looked for.
            self.kill_all().await?;
        }
        let report = ExitReport { reason: self.reason(status), stderr_tail: self.stderr_tail() };
        let usage = reaped.map(|Reaped { usage, .. }| Usage {
            cpu_micros: usage.cpu_micros.saturating_sub(self.used_before),
            ..usage
        });
        Ok(Exit { report, usage })
    }

    /// The group first: as long as its leader is not collected, its number is nobody else's.
    fn reap(&self) -> io::Result<Option<Reaped>> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), look) {
            Ok(_) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        group::signal_group(self.id, Signal::KILL)?;
        sys::reap(self.pidfd.get_ref().as_fd())
    }

    /// The kernel knows once the parent has collected it, which is a matter of milliseconds.
    async fn stranger_status(&self) -> Option<Status> {
        let look = async {
            loop {
                if let Some(status) = sys::exit_of_stranger(self.pidfd.get_ref().as_fd()) {
                    return status;
                }
                sleep(STRANGER_POLL).await;
            }
        };
        timeout(STRANGER_WAIT, look).await.ok()
    }

    fn reason(&self, status: Option<Status>) -> ExitReason {
        match status {
            Some(Status::Code(code)) => ExitReason::Code(code),
            Some(Status::Signal(9)) if self.was_out_of_memory() => ExitReason::OutOfMemory,
            Some(Status::Signal(signal)) => ExitReason::Signal(signal),
            None => ExitReason::Unknown,
        }
    }

    /// The kernel counts its kills for the whole machine. That one of them was this process is
    /// likely, since workflows volunteer for it, and nobody else sends SIGKILL without our
    /// knowing; without cgroups nothing better is known.
    fn was_out_of_memory(&self) -> bool {
        match (self.out_of_memory_kills, out_of_memory_kills()) {
            (Some(before), Some(now)) => now > before,
            _ => false,
        }
    }

    fn stderr_tail(&self) -> String {
        tail_text(&self.directory.stream(Stream::Stderr), STDERR_TAIL).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %self.directory.path.display(), "standard error cannot be read");
            String::new()
        })
    }

    /// Asks the whole group to end (SIGTERM), and after the grace kills everything that belongs
    /// to the attempt. Returns once the process has ended; dropped, it goes no further.
    pub async fn stop(&self, grace: Grace) -> io::Result<()> {
        self.ask()?;
        match timeout(grace.before_kill, self.ended()).await {
            Ok(ended) => ended,
            Err(_) => self.kill().await,
        }
    }

    /// Asks the whole group to end (SIGTERM).
    pub(super) fn ask(&self) -> io::Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        // It runs, and should it end in between: our own child holds its number until it is
        // collected, which nobody does meanwhile; of a stranger only the process is asked.
        if self.is_child() {
            group::signal_group(self.id, Signal::TERM)
        } else {
            group::signal_process(self.pidfd.get_ref().as_fd(), Signal::TERM)
        }
    }

    /// Kills everything that belongs to the attempt and waits until its process has ended.
    pub async fn kill(&self) -> io::Result<()> {
        self.kill_all().await?;
        self.ended().await
    }

    /// Kills everything that belongs to the attempt.
    pub(super) async fn kill_all(&self) -> io::Result<()> {
        let (id, path) = (self.id, self.directory.path.clone());
        let found = spawn_blocking(move || group::kill_all(id, &path)).await.map_err(io::Error::other)?;
        // Should `/proc` not show it: the descriptor does.
        group::signal_process(self.pidfd.get_ref().as_fd(), Signal::KILL)?;
        found.map(drop)
    }

    /// Whether it has, collected or not.
    pub(crate) fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut look = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut look, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    fn is_child(&self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), look).is_ok()
    }
}

/// The count at a process's start. Reading it is slow, as such counters go, so a count of the
/// last second will do for a process that starts now.
fn recent_out_of_memory_kills() -> Option<u64> {
    static RECENT: Mutex<Option<(Instant, Option<u64>)>> = Mutex::new(None);
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    match *recent {
        Some((at, count)) if at.elapsed() < Duration::from_secs(1) => count,
        _ => {
            let count = out_of_memory_kills();
            *recent = Some((Instant::now(), count));
            count
        }
    }
}

/// Kills of the kernel for want of memory since the boot, on the whole machine.
fn out_of_memory_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// The end of a file as text: whole characters, from a line's beginning where there is one.
pub(crate) fn tail_text(path: &Path, bytes: usize) -> io::Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len();
    let start = size.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
    let mut tail = vec![0; usize::try_from(size - start).unwrap_or(bytes)];
    let read = file.read_at(&mut tail, start)?;
    tail.truncate(read);
    let mut text: &[u8] = &tail;
    if start > 0 {
        match text.iter().position(|byte| *byte == b'\n') {
            Some(line) if line + 1 < text.len() => text = &text[line + 1..],
            _ => {}
        }
    }
    // NUL fits into no column; an unreadable byte becomes three, so the limit is held at the end.
    let mut text = String::from_utf8_lossy(text).replace('\0', "\u{fffd}");
    if text.len() > bytes {
        let cut = text.ceil_char_boundary(text.len() - bytes);
        text.drain(..cut);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it used for others is not this attempt's: neither processor time nor memory.
    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        clippy::zombie_processes,
        reason = "a child of its own, which it collects"
    )]
    async fn a_process_that_serves_another_attempt_is_accounted_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = AttemptDirectory { path: folder.path().to_owned() };
        // 200 MB in one variable, given back; then it waits. Far more than this program has: see `Usage`.
        let script = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); unset x; echo ready; read y";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready).expect("it is ready");
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("it lives");
        let id = ProcessId::of(pid).expect("it lives");
        let process = Process::register(id, directory.clone(), pidfd).map_err(|(_, e)| e).expect("watched");
        let used = sys::begin_accounting(id.pid);
        assert!(used > 10_000, "200 MB cost some time: {used}");

        let process = process.in_directory(directory);
        drop(child.stdin.take());
        process.ended().await.expect("watched");
        let usage = process.collect().await.expect("collected").usage.expect("our own child");

        assert!(usage.cpu_micros < used, "{usage:?} after {used}");
        assert!(usage.peak_memory_bytes < 160_000_000, "{usage:?}");
    }

    #[test]
    fn a_tail_is_whole_characters_and_no_longer_than_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("stderr");
        assert_eq!(tail_text(&path, 10).expect("a missing file is empty"), "");
        fs::write(&path, "one\ntwo\nthree").expect("written");
        assert_eq!(tail_text(&path, 100).expect("read"), "one\ntwo\nthree");
        assert_eq!(tail_text(&path, 9).expect("read"), "three");
        fs::write(&path, "ä".repeat(50)).expect("written");
        let tail = tail_text(&path, 9).expect("read");
        assert!(tail.len() <= 9 && tail.ends_with("ää"), "{tail:?}");
        fs::write(&path, [0xff, 0, 0xff, b'x']).expect("written");
        assert!(tail_text(&path, 4).expect("read").ends_with('x'));
    }
}
