//! Runs other durable execution systems as `dormouse-benches peers` asks for it, and writes a JSON line for each figure
//! on stdout: id, unit, what it is, a number for each round.
//!
//! Both run workflows as tasks inside one process, this one: no isolation, no launch. A durable step is counted as the
//! workflow sees it: from the end of one to the end of the next.

mod durable_rust;
mod duroxide;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How much is run.
#[derive(Clone, Copy, Debug)]
struct Amount {
    rounds: usize,
    quick: bool,
}

impl Amount {
    fn count(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [peer, place, rounds, amount] = arguments.as_slice() else {
        bail!("usage: dormouse-peers duroxide|duroxide-own|durable-rust FOLDER|URL ROUNDS full|quick");
    };
    let rounds = rounds.parse().with_context(|| format!("ROUNDS is {rounds}; give a number"))?;
    let amount = Amount { rounds, quick: amount == "quick" };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match peer.as_str() {
            "duroxide" => duroxide::measure(place, duroxide::Flush::Each, amount).await,
            "duroxide-own" => duroxide::measure(place, duroxide::Flush::Own, amount).await,
            "durable-rust" => durable_rust::measure(place, amount).await,
            other => bail!("{other} is no peer; say duroxide, duroxide-own or durable-rust"),
        }
    })
}

/// Writes a figure: base units, one number for each round.
fn tell(id: &str, unit: &str, what: &str, rounds: &[f64]) {
    println!("{}", serde_json::json!({ "id": id, "unit": unit, "what": what, "rounds": rounds }));
}

/// The middle one, in seconds.
fn median(mut all: Vec<Duration>) -> f64 {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default().as_secs_f64()
}

/// How many per second since then.
fn per_second(n: usize, since: Instant) -> f64 {
    n as f64 / since.elapsed().as_secs_f64()
}

/// 1 KiB of text that no page makes smaller.
fn payload(seed: usize) -> String {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..1024).map(letter).collect()
}
