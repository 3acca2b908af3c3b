//! What this machine has left: load, memory, room on the data directory's disk.
//!
//! Read from the kernel when asked, in microseconds; what cannot be read counts as unknown and
//! stops nothing.

use std::{fs, io, path::Path};

use rustix::fs::statvfs;

/// What is left now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Load average of the last minute, in thousandths; 0 if unknown.
    pub load_milli: u64,
    /// Memory that new processes may take, in bytes; 0 if unknown.
    pub memory_free_bytes: u64,
}

impl Machine {
    /// Reads both.
    pub fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            load_milli: load_milli(&read("/proc/loadavg")).unwrap_or(0),
            memory_free_bytes: meminfo(&read("/proc/meminfo"), "MemAvailable:").unwrap_or(0),
        }
    }
}

/// All memory of the machine, in bytes; none if unknown.
pub fn memory_bytes() -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// "0.52 0.58 …": the first word in thousandths.
fn load_milli(text: &str) -> Option<u64> {
    let (whole, part) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let thousandths = format!("{part:0<3}");
    Some(whole.parse::<u64>().ok()? * 1000 + thousandths.get(..3)?.parse::<u64>().ok()?)
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// A disk with too little room to launch anything there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullDisk {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that must be.
    pub needed: u64,
}

/// Room that a launch and its output want, unless the disk is small.
const ROOM: u64 = 64 << 20;
/// The part of a small disk that must be free.
const PART: u64 = 20;

/// Whether the disk under a directory is too full to launch anything; `None`: there is room.
pub fn full_disk(directory: &Path) -> io::Result<Option<FullDisk>> {
    let disk = statvfs(directory)?;
    // What is kept for root does not count: the services may be anybody.
    Ok(too_full(disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
}

fn too_full(free: u64, all: u64) -> Option<FullDisk> {
    let needed = ROOM.min(all / PART);
    (free < needed).then_some(FullDisk { free, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        assert_eq!(load_milli("12.05 3.10 1.00 2/345 678\n"), Some(12_050));
        assert_eq!(load_milli("nonsense"), None);
        let text = "MemTotal:       16000 kB\nMemAvailable:   8000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(8_192_000));
        assert_eq!(meminfo(text, "MemFree:"), None);
        assert!(Machine::look().memory_free_bytes > 0);
    }

    #[test]
    fn a_disk_is_full_when_little_is_left_of_it() {
        let gib = 1 << 30;
        assert_eq!(too_full(gib, 100 * gib), None);
        assert_eq!(too_full(ROOM - 1, 100 * gib), Some(FullDisk { free: ROOM - 1, needed: ROOM }));
        assert_eq!(too_full(1 << 20, 8 << 20), None, "a small disk has little room and may be used");
        assert!(too_full(100 << 10, 8 << 20).is_some());
        let here = full_disk(Path::new("/")).expect("there is one");
        assert!(here.is_none_or(|disk| disk.free < disk.needed));
    }
}
