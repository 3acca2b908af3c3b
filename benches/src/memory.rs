//! What a process holds in memory for itself.

use std::fs;

use anyhow::{Context as _, bail};

/// Bytes of a process that no other shares, clean and dirty. Run several of a program and take the middle: of
/// a single one the program's own pages count as private too.
pub(crate) fn private_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut kilobytes = None;
    for line in
        text.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
    {
        let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let number = number.with_context(|| format!("{path}: {line}"))?;
        kilobytes = Some(kilobytes.unwrap_or(0) + number);
    }
    match kilobytes {
        Some(kilobytes) => Ok(kilobytes * 1024),
        None => bail!("{path} says nothing about private memory"),
    }
}
