//! What the store adds to one flush: checkpoints of 1 KiB, one after the other from one
//! instance, and from 64 at once.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewCheckpoint, NewValue, Operation},
        id::{Digest, InstanceId, Key, Name, NodeId, Tenant},
        payload::{Encoding, Payload},
    },
    store::{Database, NewImage, NewNode, Options, Session, StartRequest, Store},
};
use tokio::task::JoinSet;

const INSTANCES: u32 = 64;
const PAYLOAD: usize = 1024;

/// Runs all rounds and prints the table.
pub(crate) async fn measure(count: u32, rounds: u32, dir: &Path) -> anyhow::Result<()> {
    let (mut flushes, mut alone, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let folder = tempfile::Builder::new().prefix("dormouse-bench-").tempdir_in(dir)?;
        flushes.push(flush(folder.path(), count)?);
        let (store, sessions) = open(folder.path()).await?;
        let first = sessions.first().context("no session")?;
        alone.push(sequential(&store, first, count).await?);
        together.push(at_once(&store, &sessions, count).await?);
        store.close().await;
        eprintln!("round {} of {rounds}", round + 1);
    }
    let (flush, save, each) = (median(&flushes), median(&alone), median(&together));
    println!("{count} a round, {rounds} rounds, median (fastest to slowest round)");
    println!("append 4 KiB and fdatasync, p50       {}", shown(&flushes));
    println!("a checkpoint of 1 KiB, p50            {}   {:.2} x", shown(&alone), ratio(save, flush));
    println!(
        "the same from {INSTANCES} instances at once, each {}   {:.2} x",
        shown(&together),
        ratio(each, flush)
    );
    println!("that is {:.0} checkpoints per second", 1.0 / each.as_secs_f64());
    Ok(())
}

/// The limit: what a disk needs to make 4 KiB durable. The median of one round.
fn flush(folder: &Path, count: u32) -> anyhow::Result<Duration> {
    let mut file = File::create(folder.join("flushed"))?;
    let mut times = Vec::new();
    for _ in 0..count {
        let began = now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    Ok(median(&times))
}

async fn sequential(store: &Store, session: &Session, count: u32) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for n in 0..count {
        let began = now();
        store.save(session, checkpoint(&format!("alone {n}"))?).await?;
        times.push(began.elapsed());
    }
    Ok(median(&times))
}

/// Time per checkpoint when each instance has one under way all the time.
async fn at_once(store: &Store, sessions: &[Session], count: u32) -> anyhow::Result<Duration> {
    let each = count.div_ceil(INSTANCES);
    let began = now();
    let mut writers = JoinSet::new();
    for session in sessions {
        let (store, session) = (store.clone(), session.clone());
        writers.spawn(async move {
            for n in 0..each {
                store.save(&session, checkpoint(&format!("together {n}"))?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(began.elapsed() / (each * INSTANCES))
}

/// A new database with as many registered instances.
async fn open(folder: &Path) -> anyhow::Result<(Store, Vec<Session>)> {
    let store = Store::open(Options::new(Database::Sqlite(folder.join("dormouse.db")))).await?;
    let (tenant, name) = (Tenant::default_tenant(), Name::parse("name", "bench")?);
    let image = NewImage {
        tenant: tenant.clone(),
        name: name.clone(),
        version: name.clone(),
        digest: Digest([1; 32]),
        size: 1,
        workflows: vec![name.clone()],
        sdk_version: "none".to_owned(),
        architecture: "none".to_owned(),
        chunks: 0,
    };
    store.put_image(image).await?;
    for n in 0..INSTANCES {
        let start = StartRequest {
            tenant: tenant.clone(),
            id: InstanceId::parse(&format!("bench-{n}"))?,
            image: name.clone(),
            version: None,
            workflow: None,
            input: Payload::json("null"),
            env: BTreeMap::new(),
            limit: None,
            start_at: None,
            priority: 5,
            follow_image: false,
        };
        store.start(start).await?;
    }
    let node = NewNode {
        id: NodeId::parse("bench")?,
        name: "bench".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        version: "none".to_owned(),
        slots: INSTANCES,
        lease: Duration::from_secs(15),
    };
    let lease = store.lease_node(node).await?;
    let claimed = store.claim_due(&lease, INSTANCES, Duration::from_mins(10)).await?;
    let mut sessions = Vec::new();
    for claim in claimed.claims {
        sessions.push(store.register(&claim.token).await?.session);
    }
    if sessions.len() != INSTANCES as usize {
        bail!("{} of {INSTANCES} instances were claimed", sessions.len());
    }
    Ok((store, sessions))
}

fn checkpoint(name: &str) -> anyhow::Result<NewCheckpoint> {
    let data = vec![7; PAYLOAD];
    Ok(NewCheckpoint {
        operation: Operation { name: Name::parse("name", name)?, key: Key::none(), slot: 0 },
        kind: Kind::Checkpoint,
        value: NewValue::Payload(Payload { data, encoding: Encoding::Raw, type_name: String::new() }),
        note: String::new(),
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn ratio(figure: Duration, limit: Duration) -> f64 {
    figure.as_secs_f64() / limit.as_secs_f64()
}

fn shown(rounds: &[Duration]) -> String {
    let micros = |time: Option<&Duration>| time.map_or(0, Duration::as_micros);
    let (fastest, slowest) = (micros(rounds.iter().min()), micros(rounds.iter().max()));
    format!("{:>5} µs ({fastest} to {slowest})", median(rounds).as_micros())
}
