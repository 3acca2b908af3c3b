//! durable-rust on PostgreSQL. It has no durable sleep: W4a is not run.

use std::time::{Duration, Instant};

use durable::{Ctx, DurableError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sea_orm::{ConnectOptions, Database, DatabaseConnection};
use tokio::sync::Barrier;

use crate::{Amount, median, payload, per_second, tell};

/// Enough for every workflow at once.
const CONNECTIONS: u32 = 64;

pub(crate) async fn measure(url: &str, amount: Amount) -> anyhow::Result<()> {
    // Makes its tables; with few connections of its own.
    durable::init_db(url).await?.close().await?;
    let mut options = ConnectOptions::new(url);
    options.set_schema_search_path("public,durable").max_connections(CONNECTIONS).sqlx_logging(false);
    let db = Database::connect(options).await?;
    let (mut w1, mut w2, mut w3a, mut w3b16, mut w3b64) = (vec![], vec![], vec![], vec![], vec![]);
    let (steps, of_many, launches) = (amount.count(500, 5), amount.count(20, 2), amount.count(200, 3));
    for round in 0..amount.rounds {
        w1.push(median(workflow(&db, &format!("w1-{round}"), steps).await?));
        w2.push(many(&db, &format!("w2-{round}"), of_many).await?);
        let mut each = Vec::new();
        for n in 0..launches {
            let begun = Instant::now();
            workflow(&db, &format!("w3a-{round}-{n}"), 0).await?;
            each.push(begun.elapsed());
        }
        w3a.push(median(each));
        w3b16.push(trivial_at_once(&db, &format!("w3b16-{round}"), launches, 16).await?);
        w3b64.push(trivial_at_once(&db, &format!("w3b64-{round}"), launches, 64).await?);
    }
    tell("durable-rust.W1", "seconds", &format!("a step with 1 KiB, one of {steps} after the other"), &w1);
    tell(
        "durable-rust.W2",
        "per_second",
        &format!("steps with 1 KiB, 64 workflows × {of_many} at once"),
        &w2,
    );
    tell("durable-rust.W3a", "seconds", &format!("a trivial workflow, {launches} one after the other"), &w3a);
    tell("durable-rust.W3b.16", "per_second", &format!("{launches} trivial workflows, 16 under way"), &w3b16);
    tell("durable-rust.W3b.64", "per_second", &format!("{launches} trivial workflows, 64 under way"), &w3b64);
    Ok(())
}

/// A workflow with so many steps; how long each took.
async fn workflow(db: &DatabaseConnection, name: &str, steps: usize) -> Result<Vec<Duration>, DurableError> {
    let ctx = Ctx::start(db, name, None).await?.into_ctx();
    let mut took = Vec::with_capacity(steps);
    for n in 0..steps {
        let begun = Instant::now();
        ctx.step(&format!("step {n}"), || async move { Ok(payload(n)) }).await?;
        took.push(begun.elapsed());
    }
    ctx.complete(&"done").await?;
    Ok(took)
}

/// Steps per second of 64 workflows; their starts are not counted.
async fn many(db: &DatabaseConnection, name: &str, steps: usize) -> Result<f64, DurableError> {
    let started = Barrier::new(64);
    let all = stream::iter(0..64).map(|n| one_of_many(db, format!("{name}-{n}"), steps, &started));
    let begun: Vec<Instant> = all.buffer_unordered(64).try_collect().await?;
    Ok(per_second(64 * steps, begun.into_iter().min().unwrap_or_else(Instant::now)))
}

/// Does its steps when all of them have started; answers when it began them.
async fn one_of_many(
    db: &DatabaseConnection,
    name: String,
    steps: usize,
    started: &Barrier,
) -> Result<Instant, DurableError> {
    let ctx = Ctx::start(db, &name, None).await?.into_ctx();
    started.wait().await;
    let begun = Instant::now();
    for n in 0..steps {
        ctx.step(&format!("step {n}"), || async move { Ok(payload(n)) }).await?;
    }
    ctx.complete(&"done").await?;
    Ok(begun)
}

async fn trivial_at_once(
    db: &DatabaseConnection,
    name: &str,
    count: usize,
    at_once: usize,
) -> Result<f64, DurableError> {
    let begun = Instant::now();
    let all = stream::iter(0..count).map(|n| async move { workflow(db, &format!("{name}-{n}"), 0).await });
    all.buffer_unordered(at_once).try_collect::<Vec<_>>().await?;
    Ok(per_second(count, begun))
}
