use std::time::{Duration, UNIX_EPOCH};

use dormouse_sdk::{
    Context, Failure, Result, WakeReason, days, hours,
    testing::{Run, Status},
};

use crate::Counter;

#[tokio::test]
async fn a_long_sleep_leaves_the_process_and_comes_back() {
    async fn workflow(ctx: Context, (): ()) -> Result<Vec<u32>> {
        let before = ctx.step("before", async || Ok::<_, Failure>(ctx.attempt())).await?;
        ctx.sleep("night", hours(8)).await?;
        assert_eq!(ctx.wake_reason(), WakeReason::Due);
        let after = ctx.step("after", async || Ok::<_, Failure>(ctx.attempt())).await?;
        Ok(vec![before, after])
    }
    let done = Run::new(workflow).run().await;
    assert_eq!(done.output::<Vec<u32>>().unwrap(), [1, 2]);
    assert!(done.elapsed() >= hours(8) && done.elapsed() < hours(9), "{:?}", done.elapsed());
}

#[tokio::test]
async fn a_sleep_is_not_prolonged_by_crashes() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.sleep("night", hours(8)).await?;
        ctx.sleep("nap", Duration::from_millis(1)).await?;
        ctx.sleep_until("long ago", UNIX_EPOCH).await
    }
    let done = Run::new(workflow).survives_crashes().await;
    assert!(done.elapsed() < hours(9), "{:?}", done.elapsed());
    assert_eq!(done.checkpoints().count(), 3);
}

#[tokio::test]
async fn a_signal_is_taken_whenever_it_was_sent() {
    async fn workflow(ctx: Context, (): ()) -> Result<String> {
        ctx.signal("word").await
    }
    let early = Run::new(workflow).signal("word", "early").run().await;
    assert_eq!(early.launches(), 1);
    let late = Run::new(workflow).signal_after(days(400), "word", "late").run().await;
    assert_eq!(late.launches(), 2);
    let at_once = Run::new(workflow).signal_after(Duration::from_millis(3), "word", "pushed").run().await;
    for (done, word) in [(early, "early"), (late, "late"), (at_once, "pushed")] {
        assert_eq!(done.output::<String>().unwrap(), word);
    }
}

#[tokio::test]
async fn invariant_5_signals_come_in_order_each_to_one_wait() {
    async fn workflow(ctx: Context, n: u32) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for i in 0..n {
            all.push(ctx.signal("number").key(i).await?);
        }
        Ok(all)
    }
    let mut run = Run::new(workflow).input(6).signal("other", 99);
    for i in 0..6 {
        run = run.signal_after(days(i / 2), "number", i);
    }
    let done = run.survives_crashes().await;
    assert_eq!(done.output::<Vec<u64>>().unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn several_waits_at_once_each_take_one() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        let waits = (0..5).map(|i| ctx.signal::<u32>("vote").key(i).into_future());
        Ok(futures_util::future::try_join_all(waits).await?.iter().sum())
    }
    let mut run = Run::new(workflow);
    for i in 0..5 {
        run = run.signal_after(hours(i), "vote", 1 << i);
    }
    assert_eq!(run.survives_crashes().await.output::<u32>().unwrap(), 31);
}

#[tokio::test]
async fn a_wait_may_end_without_a_signal_and_a_relaunch_does_not_decide_again() {
    async fn workflow(ctx: Context, (): ()) -> Result<String> {
        let word = ctx.signal::<String>("word").within(days(2)).await?;
        ctx.sleep("afterwards", days(2)).await?;
        Ok(word.unwrap_or_else(|| "nobody".to_owned()))
    }
    // The signal comes after the limit, while the workflow sleeps: the decision stays.
    let done = Run::new(workflow).signal_after(days(3), "word", "too late").survives_crashes().await;
    assert_eq!(done.output::<String>().unwrap(), "nobody");
    let done = Run::new(workflow).signal_after(days(1), "word", "in time").survives_crashes().await;
    assert_eq!(done.output::<String>().unwrap(), "in time");
}

#[tokio::test]
async fn a_payload_that_does_not_decode_is_the_workflows_to_handle() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        match ctx.signal::<u32>("number").key(1).await {
            Ok(number) => Ok(number),
            Err(failure) if failure.code() == "SIGNAL_UNREADABLE" => ctx.signal("number").key(2).await,
            Err(failure) => Err(failure),
        }
    }
    let done = Run::new(workflow).signal("number", "seven").signal("number", 7).survives_crashes().await;
    assert_eq!(done.output::<u32>().unwrap(), 7);
}

#[tokio::test]
async fn a_running_step_keeps_the_instance_from_being_suspended() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        let step = ctx.step("work", async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, Failure>(ctx.attempt())
        });
        let (attempt, ()) =
            futures_util::future::try_join(step.into_future(), ctx.sleep("night", hours(8)).into_future())
                .await?;
        Ok(attempt)
    }
    let done = Run::new(workflow).idle(Duration::from_millis(5)).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 1);
}

#[tokio::test]
async fn what_happens_outside_of_steps_may_be_repeated() {
    let begun = Counter::default();
    let seen = begun.clone();
    let workflow = move |ctx: Context, (): ()| {
        begun.count();
        async move { ctx.sleep("night", hours(8)).await }
    };
    Run::new(workflow).run().await;
    assert_eq!(seen.get(), 2);
}

#[tokio::test]
#[should_panic(expected = "waits for the signal \"never\", and nothing like that is planned")]
async fn a_wait_for_what_never_comes_is_an_error_of_the_test() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.signal("never").await
    }
    Run::new(workflow).run().await;
}

#[tokio::test]
async fn a_wait_that_is_too_long_for_the_wire_is_refused() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.sleep("for ever", Duration::MAX).await
    }
    let done = Run::new(workflow).run().await;
    assert_eq!(done.output::<()>().unwrap_err().code(), "INVALID_ARGUMENT");
    assert_eq!(done.status(), Status::Failed);
}

#[tokio::test]
async fn a_thousand_sleeps_at_once() {
    async fn workflow(ctx: Context, n: u64) -> Result<usize> {
        let sleeps = (0..n).map(|i| ctx.sleep("nap", hours(1 + i % 3)).key(i).into_future());
        Ok(futures_util::future::try_join_all(sleeps).await?.len())
    }
    let done = Run::new(workflow).input(1000).run().await;
    assert_eq!(done.output::<usize>().unwrap(), 1000);
    assert!(done.elapsed() < hours(4));
}

#[tokio::test]
async fn a_signal_whose_push_was_lost_is_found_before_the_process_ends() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        let word: u32 = ctx.signal("word").await?;
        Ok(word + ctx.attempt())
    }
    let run = Run::new(workflow).signal_after(Duration::from_millis(3), "word", 40).without_pushes();
    // Core answers the suspension with "go on".
    assert_eq!(run.run().await.output::<u32>().unwrap(), 41);
}

#[tokio::test]
async fn a_cancel_whose_push_was_lost_is_found_by_asking() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.step("long", async || {
            ctx.cancelled().await;
            Ok::<_, Failure>(())
        })
        .await
    }
    let done = Run::new(workflow).cancel_after(Duration::from_millis(20)).without_pushes().run().await;
    assert_eq!(done.status(), Status::Completed, "nothing felt it");
}
