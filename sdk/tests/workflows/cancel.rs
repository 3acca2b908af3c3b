use std::time::Duration;

use dormouse_sdk::{
    Context, Failure, Result, Retry, days, hours,
    testing::{Run, Status},
};

use crate::Counter;

/// Waits, and cleans up durably when it is cancelled.
async fn careful(ctx: Context, (): ()) -> Result<String> {
    ctx.step("begin", async || Ok::<_, Failure>(())).await?;
    match ctx.signal::<String>("word").within(days(9)).await {
        Ok(word) => Ok(word.unwrap_or_default()),
        Err(failure) if failure.is_cancelled() => {
            ctx.sleep("let it settle", hours(1)).await?;
            ctx.step("clean up", async || Ok::<_, Failure>("cleaned".to_owned())).await
        }
        Err(failure) => Err(failure),
    }
}

#[tokio::test]
async fn an_open_wait_feels_the_cancel_and_the_clean_up_runs_normally() {
    let done = Run::new(careful).cancel_after(days(1)).survives_crashes().await;
    assert_eq!(done.status(), Status::Cancelled);
    assert_eq!(done.output::<String>().unwrap(), "cleaned", "the output is kept");
    assert!(done.elapsed() < days(2));
}

#[tokio::test]
async fn the_first_operation_that_is_not_saved_feels_it() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        ctx.step("long", async || {
            // Runs on, although it is asked to stop.
            ctx.cancelled().await;
            assert!(ctx.is_cancelled());
            Ok::<_, Failure>(())
        })
        .await?;
        let felt = ctx.step("feels it", async || Ok::<_, Failure>(1)).await.expect_err("cancelled here");
        assert!(felt.is_cancelled());
        ctx.step("normal again", async || Ok::<_, Failure>(2)).await
    }
    let done = Run::new(workflow).cancel_after(Duration::from_millis(20)).run().await;
    assert_eq!((done.output::<u32>().unwrap(), done.status()), (2, Status::Cancelled));
    assert_eq!(
        done.checkpoints().map(|(name, _)| name).collect::<Vec<_>>(),
        ["long", "feels it", "normal again"]
    );
}

#[tokio::test]
async fn a_relaunch_feels_it_at_the_same_place() {
    let done = Run::new(careful)
        .cancel_after(Duration::ZERO)
        .crash_after_checkpoint(1)
        .crash_after_checkpoint(2)
        .crash_after_checkpoint(3)
        .run()
        .await;
    assert_eq!(done.status(), Status::Cancelled);
    assert!(done.output::<String>().unwrap_err().is_cancelled(), "\"begin\" felt it, each time");
    assert_eq!(done.checkpoints().collect::<Vec<_>>(), [("begin", "")]);
}

#[tokio::test]
async fn one_of_several_feels_it_and_the_others_run() {
    async fn workflow(ctx: Context, (): ()) -> Result<usize> {
        let waits = (0..4).map(|i| ctx.sleep("nap", hours(1)).key(i).into_future());
        let results = futures_util::future::join_all(waits).await;
        Ok(results.iter().filter(|result| result.is_err()).count())
    }
    let done = Run::new(workflow).cancel_after(Duration::from_mins(5)).survives_crashes().await;
    assert_eq!(done.output::<usize>().unwrap(), 1);
}

#[tokio::test]
async fn the_pause_between_tries_feels_it() {
    let tries = Counter::default();
    let seen = tries.clone();
    let workflow = move |ctx: Context, (): ()| {
        let tries = tries.clone();
        async move {
            let fails = async || Err::<(), _>(Failure::new("NO", tries.count()));
            ctx.step("stubborn", fails).retry(Retry::fixed(days(1)).forever()).await
        }
    };
    let done = Run::new(workflow).cancel_after(days(2) + hours(1)).run().await;
    assert!(done.output::<()>().unwrap_err().is_cancelled());
    assert_eq!(seen.get(), 3);
}

#[tokio::test]
async fn a_raw_checkpoint_feels_it_too() {
    async fn workflow(ctx: Context, (): ()) -> Result<Vec<u8>> {
        ctx.checkpoint("state", [1]).await
    }
    let done = Run::new(workflow).cancel_after(Duration::ZERO).run().await;
    assert!(done.output::<Vec<u8>>().unwrap_err().is_cancelled());
}
