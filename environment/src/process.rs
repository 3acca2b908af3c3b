//! Which process is meant: by boot, number and start time, never by number alone.
//!
//! A number is used again once its process is gone, and numbers begin anew after a boot. The
//! start time in clock ticks since the boot tells the two apart; the boot's id tells boots apart.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::launcher::sys;

/// A process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its number; also that of its session and of its process group.
    pub pid: i32,
    /// Clock ticks since the boot.
    pub start_time: u64,
}

/// What stands in an attempt's `process.json`: written before the process gets its document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The shape of this file: 1.
    pub format: u32,
    /// The kernel's id of the boot.
    pub boot_id: String,
    /// The process's number.
    pub pid: i32,
    /// Its start, in clock ticks since the boot.
    pub start_time: u64,
    /// The instance's key in the store.
    pub key: i64,
    /// Whose instance.
    pub tenant: String,
    /// Which instance.
    pub instance: String,
    /// Which attempt.
    pub attempt: u32,
    /// What it executes: the image's digest.
    pub image: String,
}

impl ProcessRecord {
    /// The process, if it is one of this boot.
    pub fn of_this_boot(&self, boot_id: &str) -> Option<ProcessId> {
        (self.boot_id == boot_id).then_some(ProcessId { pid: self.pid, start_time: self.start_time })
    }
}

/// The lines of `/proc/PID/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) parent: i32,
    pub(crate) session: i32,
    pub(crate) start_time: u64,
}

impl Stat {
    /// Reads it; `None` if there is no such process.
    pub(crate) fn load(pid: i32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is unreadable: {text:?}"))),
            // ESRCH: it ended between open and read.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(3) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The name (second field, in parentheses) may itself contain spaces and parentheses, so
    /// counting begins after the last one.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `rest` begins with field 3.
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }
}

impl ProcessId {
    /// The process of that number as it is now.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = Stat::load(pid)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} is gone")))?;
        Ok(Self { pid, start_time: stat.start_time })
    }

    /// A descriptor of exactly this process, also of one that ended and is not collected yet;
    /// `None` if it is gone, whoever has its number now.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match sys::pidfd_of(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Looked at after the descriptor was opened: if the number has this start time now, it
        // had it all the time in between.
        let stat = Stat::load(self.pid)?;
        Ok(stat.filter(|stat| stat.start_time == self.start_time).map(|_| pidfd))
    }
}

/// The kernel's id of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_that_looks_like_fields() {
        let text = "71 (a) R 1 (b) S 5 71 70 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 8888 1 1 1\n";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 5, session: 70, start_time: 8888 }));
        assert_eq!(Stat::parse("71 (a) R 1"), None);
    }

    #[test]
    fn a_number_with_another_start_time_is_a_stranger() {
        let own = ProcessId::of(rustix::process::getpid()).expect("/proc is mounted");
        assert!(own.open().expect("pidfds work").is_some());
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        assert!(other.open().expect("pidfds work").is_none());
    }
}
