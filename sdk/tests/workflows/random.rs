//! One workflow with a little of everything, crashed, paused and signalled at random.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result, Retry, hours, testing::Run};
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};

/// Steps whose result the workflow has seen: these are acknowledged, and never run again.
type Seen = Arc<Mutex<BTreeSet<String>>>;

fn runs(seen: &Seen, step: &str) {
    assert!(
        !seen.lock().expect("no test panics with it").contains(step),
        "{step} was acknowledged and runs again"
    );
}

async fn everything(ctx: Context, seen: Seen) -> Result<Vec<u64>> {
    let seen = &seen;
    let (ctx, mut all) = (&ctx, Vec::new());
    let squares: Vec<u64> = stream::iter(0..6_u64)
        .map(|i| async move {
            let name = &format!("square {i}");
            let work = move || async move {
                runs(seen, name);
                tokio::task::yield_now().await;
                Ok::<_, Failure>(i * i)
            };
            let square = ctx.step("square", work).key(i).await?;
            seen.lock().expect("no test panics with it").insert(name.clone());
            Ok::<_, Failure>(square)
        })
        .buffer_unordered(3)
        .try_collect()
        .await?;
    all.push(squares.iter().sum());
    try_join_all((1..4).map(|i| ctx.sleep("rest", hours(i)).key(i).into_future())).await?;
    let words = try_join_all((0..3).map(|i| ctx.signal::<u64>("word").key(i).into_future())).await?;
    all.push(words.iter().sum());
    let flaky = ctx.step_with("flaky", |this| async move {
        if this.number() < 3 {
            return Err(Failure::new("NOT_YET", this.number()));
        }
        runs(seen, "flaky");
        Ok(this.number())
    });
    all.push(u64::from(flaky.retry(Retry::exponential().initial(hours(1))).await?));
    seen.lock().expect("no test panics with it").insert("flaky".to_owned());
    let missing = ctx.signal::<u64>("never").within(hours(2)).await?;
    all.push(missing.unwrap_or(99));
    all.push(ctx.checkpoint("raw", [5]).await?.len() as u64);
    Ok(all)
}

#[tokio::test]
async fn whatever_happens_it_ends_the_same_way_and_saved_steps_run_once() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let seen = Seen::default();
        let workflow = move |ctx: Context, (): ()| everything(ctx, Arc::clone(&seen));
        let mut run = Run::new(workflow).idle(Duration::from_millis(2));
        for word in [1_u64, 10, 100] {
            run = run.signal_after(Duration::from_secs(random.u64(0..30_000)), "word", word);
        }
        let paused_at = random.u64(0..20_000);
        run = run
            .pause_after(Duration::from_secs(paused_at))
            .resume_after(Duration::from_secs(paused_at + random.u64(1..9_000)));
        for _ in 0..random.usize(0..8) {
            let n = random.usize(1..24);
            run = if random.bool() { run.crash_before_checkpoint(n) } else { run.crash_after_checkpoint(n) };
        }
        let shown = format!("seed {seed}: {run:?}");

        let done = run.run().await;

        assert_eq!(done.output::<Vec<u64>>().unwrap(), [55, 111, 3, 99, 1], "{shown}");
        assert_eq!(done.checkpoints().count(), 6 + 3 + 3 + 1 + 1 + 1, "{shown}");
    }
}
