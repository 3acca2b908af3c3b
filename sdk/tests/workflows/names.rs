use dormouse_sdk::{Context, Failure, Result, days, testing::Run};

#[tokio::test]
async fn a_name_that_is_used_twice_names_both_places() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.step("same", async || Ok::<_, Failure>(1)).await?;
        ctx.step("same", async || Ok::<_, Failure>(2)).await?;
        Ok(())
    }
    let failure = Run::new(workflow).run().await.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "NAME_USED_TWICE");
    assert_eq!(failure.message().matches("names.rs:").count(), 2, "{failure}");
}

#[tokio::test]
async fn all_kinds_of_operations_share_one_space_of_names() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.step("rest", async || Ok::<_, Failure>(1)).await?;
        ctx.sleep("rest", days(1)).await
    }
    let failure = Run::new(workflow).run().await.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "NAME_USED_TWICE");
}

#[tokio::test]
async fn a_key_makes_another_operation() {
    async fn workflow(ctx: Context, (): ()) -> Result<Vec<usize>> {
        let mut all = Vec::new();
        for key in ["", "a", "line\nbreak", "ü"] {
            all.push(ctx.step("length", async || Ok::<_, Failure>(key.len())).key(key).await?);
        }
        Ok(all)
    }
    let done = Run::new(workflow).survives_crashes().await;
    assert_eq!(done.output::<Vec<usize>>().unwrap(), [0, 1, 10, 2]);
}

#[tokio::test]
async fn a_wait_that_lost_a_select_may_be_asked_again() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        let mut rounds = 0;
        loop {
            tokio::select! {
                stop = ctx.signal::<u32>("stop").into_future() => return Ok(stop? + rounds),
                slept = ctx.sleep("round", days(1)).key(rounds).into_future() => slept?,
            }
            rounds += 1;
        }
    }
    let done = Run::new(workflow).signal_after(days(3) + days(1) / 2, "stop", 100).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 103);
}

#[tokio::test]
async fn bad_names_are_refused() {
    async fn workflow(ctx: Context, name: String) -> Result<()> {
        ctx.step(name, async || Ok::<_, Failure>(1)).await.map(drop)
    }
    for bad in [String::new(), "tab\there".to_owned(), "x".repeat(201)] {
        let failure = Run::new(workflow).input(&bad).run().await.output::<()>().unwrap_err();
        assert_eq!(failure.code(), "INVALID_ARGUMENT", "{bad:?}");
    }
}

#[tokio::test]
async fn another_kind_of_operation_under_a_stored_name_ends_the_instance() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        if ctx.attempt() == 1 {
            ctx.step("thing", async || Ok::<_, Failure>(1)).await?;
        } else {
            ctx.signal::<u32>("thing").await?;
        }
        Ok(())
    }
    let done = Run::new(workflow).crash_after_checkpoint(1).run().await;
    let failure = done.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "RESULT_UNREADABLE", "{failure}");
}
