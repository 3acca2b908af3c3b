//! What the disk needs to make 4 KiB durable.

use std::{fs::File, io::Write as _, time::Instant};

use crate::{
    context::Context,
    figure::{Figure, Latencies},
    registry::Findings,
};

const BLOCK: [u8; 4096] = [7; 4096];

pub(crate) async fn measure(context: &Context) -> anyhow::Result<Findings> {
    let (warm_up, count) = (context.count(200, 1), context.count(2000, 5));
    let folder = context.folder("fsync")?;
    let mut rounds = Vec::new();
    for round in 0..context.rounds() {
        let path = folder.join(round.to_string());
        rounds.push(tokio::task::spawn_blocking(move || flush(&path, warm_up, count)).await??);
    }
    let what = format!("append 4 KiB and fdatasync; {count} a round after {warm_up}");
    Ok(vec![Figure::latency("fsync", what, &rounds)].into())
}

fn flush(path: &std::path::Path, warm_up: u32, count: u32) -> anyhow::Result<Latencies> {
    let mut file = File::create(path)?;
    let mut latencies = Latencies::new();
    for number in 0..warm_up + count {
        let began = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        if number >= warm_up {
            latencies.add(began.elapsed());
        }
    }
    Ok(latencies)
}
