use std::time::Duration;

use dormouse_sdk::{Context, Failure, Result, days, hours, testing::Run};

/// Which attempt ran each of its steps.
async fn steps(ctx: Context, n: u32) -> Result<Vec<u32>> {
    let mut attempts = Vec::new();
    for i in 0..n {
        attempts.push(
            ctx.step("step", async || {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, Failure>(ctx.attempt())
            })
            .key(i)
            .await?,
        );
    }
    Ok(attempts)
}

#[tokio::test]
async fn a_paused_instance_finishes_its_step_and_leaves_until_it_is_resumed() {
    let run = Run::new(steps).input(40).pause_after(Duration::from_millis(15)).resume_after(days(1));
    let done = run.run().await;
    let attempts: Vec<u32> = done.output().unwrap();
    assert_eq!(done.launches(), 2);
    assert!(attempts.is_sorted() && attempts[39] == 2, "{attempts:?}");
    assert!(done.elapsed() >= days(1));
}

#[tokio::test]
async fn a_pause_that_is_over_before_the_step_is_changes_nothing() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        ctx.step("long", async || {
            tokio::time::sleep(Duration::from_millis(60)).await;
            Ok::<_, Failure>(())
        })
        .await?;
        Ok(ctx.attempt())
    }
    let run =
        Run::new(workflow).pause_after(Duration::from_millis(10)).resume_after(Duration::from_millis(20));
    assert_eq!(run.run().await.output::<u32>().unwrap(), 1);
}

#[tokio::test]
async fn a_paused_sleeper_sleeps_on_until_it_is_resumed() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        ctx.sleep("night", hours(8)).await?;
        Ok(ctx.attempt())
    }
    let done = Run::new(workflow).pause_after(hours(1)).resume_after(days(2)).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 2, "no launch while it was paused");
    assert!(done.elapsed() >= days(2));
}

#[tokio::test]
async fn a_cancel_ends_a_pause() {
    let run = Run::new(steps).input(40).pause_after(Duration::from_millis(15)).cancel_after(days(1));
    assert!(run.run().await.output::<Vec<u32>>().unwrap_err().is_cancelled());
}
