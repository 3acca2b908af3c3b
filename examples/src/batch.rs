//! A CPU-bound search in plain synchronous code: which start below a bound has the longest
//! Collatz sequence (halve what is even, triple what is odd and add one, until 1)?
//!
//! It saves raw bytes of its own state after each block of starts and goes on from the newest
//! one, so a kill costs at most one block. Nothing here is asynchronous, and nothing in it
//! yields: the connection lives on a thread of its own.

use dormouse_sdk::{Failure, Result, blocking::Context};
use serde::{Deserialize, Serialize};

use crate::side_file;

/// What to search.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Batch {
    /// Starts from 1 up to here, this one left out. At most 10¹².
    pub below: u64,
    /// Starts between two checkpoints.
    #[serde(default = "hundred_thousand")]
    pub block: u64,
}

fn hundred_thousand() -> u64 {
    100_000
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Longest {
    /// The smallest start with the longest sequence.
    pub start: u64,
    /// The steps from there to 1.
    pub steps: u64,
}

/// Beyond this a sequence may leave 128 bits.
const BELOW_MAX: u64 = 1_000_000_000_000;

/// Searches all starts below `batch.below`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a workflow's function takes its context and its input by value"
)]
pub fn batch(ctx: Context, batch: Batch) -> Result<Longest> {
    if !(2..=BELOW_MAX).contains(&batch.below) || batch.block == 0 {
        let message = format!(
            "below is {} and block {}; below must be 2 to {BELOW_MAX}, block 1 or more",
            batch.below, batch.block
        );
        return Err(Failure::new("INVALID_INPUT", message).permanent());
    }
    let blocks = (batch.below - 1).div_ceil(batch.block);
    let mut longest = Longest::default();
    for block in 0..blocks {
        longest = if let Some(state) = ctx.load("block", block)? {
            read(&state)?
        } else {
            let first = block * batch.block + 1;
            let found = search(first, (first + batch.block).min(batch.below), longest);
            side_file::ran(ctx.attempt(), &format!("block {block}"))?;
            read(&ctx.checkpoint("block", block, write(found))?)?
        };
        ctx.progress(block + 1, blocks);
    }
    Ok(longest)
}

/// The longest sequence among these starts and what was found before.
fn search(first: u64, end: u64, before: Longest) -> Longest {
    let mut longest = before;
    for start in first..end {
        let steps = steps(start);
        if steps > longest.steps {
            longest = Longest { start, steps };
        }
    }
    longest
}

fn steps(start: u64) -> u64 {
    let mut n = u128::from(start);
    let mut steps = 0;
    while n > 1 {
        n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

/// The state as it is saved: two numbers, 16 bytes.
fn write(found: Longest) -> Vec<u8> {
    [found.start.to_le_bytes(), found.steps.to_le_bytes()].concat()
}

fn read(state: &[u8]) -> Result<Longest> {
    let wrong =
        || Failure::new("STATE", format!("a saved block has {} bytes, not 16", state.len())).permanent();
    let (start, steps) = state.split_first_chunk::<8>().ok_or_else(wrong)?;
    let steps = <[u8; 8]>::try_from(steps).map_err(|_| wrong())?;
    Ok(Longest { start: u64::from_le_bytes(*start), steps: u64::from_le_bytes(steps) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_records_are_found() {
        // OEIS A006877 (starts) and A006878 (steps).
        assert_eq!(search(1, 10, Longest::default()), Longest { start: 9, steps: 19 });
        assert_eq!(search(1, 100_000, Longest::default()), Longest { start: 77_031, steps: 350 });
    }

    #[test]
    fn state_is_read_as_it_was_written() {
        let found = Longest { start: 7, steps: u64::MAX };
        assert_eq!(read(&write(found)), Ok(found));
        assert!(read(&[0; 15]).is_err());
    }
}
