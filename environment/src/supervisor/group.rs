//! Signals to a whole attempt: its process and what that has started.
//!
//! Its process leads a session and a group of its own. Two means:
//! - [`signal_group`]: one call to the kernel, for as long as the leader is there (also ended but
//!   not collected, which holds its number);
//! - [`kill_all`]: looks through `/proc`, and so finds what has left the group or the session.
//!   Without cgroups a process that detaches itself *and* clears its environment after its
//!   parent ended gets away.
//!
//! Never hits a stranger: a number alone decides nothing. Whoever is signalled is held by a
//! pidfd, and is either a descendant of the leader while that one is held, or carries this
//! attempt's own `TMPDIR`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};

use crate::{
    launcher::spec,
    process::{ProcessId, Stat},
};

/// Looking again finds what was started while we looked; a process that starts others faster
/// than they are killed is left after so many rounds.
const ROUNDS: usize = 10;

/// Signals the leader's group. Only while the leader's number cannot belong to another: it runs,
/// or it is our own child and not yet collected.
pub(super) fn signal_group(leader: ProcessId, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(leader.pid) else { return Ok(()) };
    match kill_process_group(pid, signal) {
        // Nobody left to signal.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Signals the leader alone: an adopted process whose number might be free in a moment.
pub(super) fn signal_process(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Kills everything that belongs to the attempt, the leader included if it still runs. Blocking:
/// reads `/proc`. Answers how many were killed.
pub(crate) fn kill_all(leader: ProcessId, directory: &Path) -> io::Result<usize> {
    let mark = spec::mark(directory);
    let mut killed = HashSet::new();
    for _ in 0..ROUNDS {
        let found = find(leader, &mark)?;
        let new: Vec<_> = found.into_iter().filter(|(id, _)| !killed.contains(id)).collect();
        if new.is_empty() {
            break;
        }
        for (id, pidfd) in new {
            signal_process(pidfd.as_fd(), Signal::KILL)?;
            killed.insert(id);
        }
    }
    Ok(killed.len())
}

/// The members that run now, each held.
fn find(leader: ProcessId, mark: &[u8]) -> io::Result<Vec<(ProcessId, OwnedFd)>> {
    let all = snapshot()?;
    let leader_there = all.get(&leader.pid).is_some_and(|stat| stat.start_time == leader.start_time);
    let mut members = Vec::new();
    for (&pid, stat) in &all {
        if stat.start_time < leader.start_time {
            continue;
        }
        let kin = leader_there && (stat.session == leader.pid || descends(pid, leader.pid, &all));
        if !kin && !carries(pid, mark) {
            continue;
        }
        let id = ProcessId { pid, start_time: stat.start_time };
        let Some(pidfd) = id.open()? else { continue };
        // While we looked the leader may have gone and its number been used again; whoever is of
        // the new one's family does not carry our mark.
        if kin && !still(leader)? && !carries(pid, mark) {
            continue;
        }
        members.push((id, pidfd));
    }
    Ok(members)
}

fn still(id: ProcessId) -> io::Result<bool> {
    Ok(Stat::load(id.pid)?.is_some_and(|stat| stat.start_time == id.start_time))
}

fn snapshot() -> io::Result<HashMap<i32, Stat>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = Stat::load(pid)? {
            all.insert(pid, stat);
        }
    }
    Ok(all)
}

/// Follows the parents upwards. Ends: a snapshot of a changing tree might hold a circle, so each
/// number is passed once.
fn descends(pid: i32, ancestor: i32, all: &HashMap<i32, Stat>) -> bool {
    let mut seen = HashSet::new();
    let mut at = pid;
    while at > 1 && seen.insert(at) {
        if at == ancestor {
            return true;
        }
        let Some(stat) = all.get(&at) else { return false };
        at = stat.parent;
    }
    false
}

/// Whether a process was given this attempt's environment. One that we may not look into is not
/// ours.
fn carries(pid: i32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}
