use std::{sync::Mutex, time::Duration};

use dormouse_sdk::{
    Context, Failure, Result, Retry,
    testing::{Run, Status},
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all};

use crate::Counter;

#[tokio::test]
async fn a_saved_step_is_not_run_again() {
    let ran = Counter::default();
    let seen = ran.clone();
    let workflow = move |ctx: Context, (): ()| {
        let ran = ran.clone();
        async move {
            let one = ctx.step("one", async || Ok::<_, Failure>(ran.count())).await?;
            let two = ctx.step("two", async || Ok::<_, Failure>(ran.count())).await?;
            Ok::<_, Failure>((one, two))
        }
    };
    let done = Run::new(workflow).crash_after_checkpoint(1).run().await;
    assert_eq!(done.output::<(u32, u32)>().unwrap(), (1, 2));
    assert_eq!((seen.get(), done.launches()), (2, 2));
}

#[tokio::test]
async fn a_step_whose_result_was_lost_runs_again() {
    let ran = Counter::default();
    let workflow = move |ctx: Context, (): ()| {
        let ran = ran.clone();
        async move { ctx.step("one", async || Ok::<_, Failure>(ran.count())).await }
    };
    let done = Run::new(workflow).crash_before_checkpoint(1).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 2);
}

#[tokio::test]
async fn any_standard_error_passes_through_the_question_mark() {
    async fn workflow(ctx: Context, text: String) -> Result<i32> {
        let number: i32 = ctx.step("parse", async || text.parse::<i32>()).await?;
        Ok(number + "1".parse::<i32>()?)
    }
    assert_eq!(Run::new(workflow).input("41").run().await.output::<i32>().unwrap(), 42);
    let failure = Run::new(workflow).input("x").run().await.output::<i32>().unwrap_err();
    assert_eq!((failure.code(), failure.message()), ("ERROR", "invalid digit found in string"));
}

#[tokio::test]
async fn tries_are_counted_over_launches_and_pauses_are_durable() {
    let tries = Counter::default();
    let seen = tries.clone();
    let workflow = move |ctx: Context, (): ()| {
        let tries = tries.clone();
        async move {
            let policy = Retry::exponential().attempts(5).initial(Duration::from_secs(100)).jitter(0.0);
            ctx.step_with("flaky", async |this| match tries.count() {
                4 => Ok(this.number()),
                n => Err(Failure::new("FLAKY", format!("try {n}"))),
            })
            .retry(policy)
            .await
        }
    };
    let done = Run::new(workflow).crash_after_checkpoint(2).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 4);
    assert_eq!(seen.get(), 4, "a pause that was stored is not tried before its time");
    assert!(done.elapsed() >= Duration::from_mins(10), "{:?}", done.elapsed());
    assert!(done.launches() >= 4, "long pauses suspend: {} launches", done.launches());
}

#[tokio::test]
async fn the_last_failure_is_final_and_survives() {
    let tries = Counter::default();
    let seen = tries.clone();
    let workflow = move |ctx: Context, (): ()| {
        let tries = tries.clone();
        async move {
            let policy = Retry::fixed(Duration::from_millis(1)).attempts(3);
            let failed = ctx
                .step("charge", async || Err::<(), _>(Failure::new("NO", tries.count())))
                .retry(policy)
                .await;
            let failure = failed.expect_err("each try fails");
            ctx.step("undo", async || Ok::<_, Failure>(())).await?;
            Ok::<_, Failure>(failure.message().to_owned())
        }
    };
    let done = Run::new(workflow).crash_after_checkpoint(3).crash_after_checkpoint(4).run().await;
    assert_eq!(
        done.output::<String>().unwrap(),
        "3",
        "the failure of the first launch is the one that counts"
    );
    assert_eq!(seen.get(), 3);
}

#[tokio::test]
async fn what_is_permanent_is_tried_once() {
    let tries = Counter::default();
    let seen = tries.clone();
    let workflow = move |ctx: Context, (): ()| {
        let tries = tries.clone();
        async move {
            let declined = async || {
                tries.count();
                Err::<(), _>(Failure::new("DECLINED", "no money").permanent().with_details("EUR"))
            };
            ctx.step("charge", declined).retry(Retry::exponential()).await
        }
    };
    let done = Run::new(workflow).run().await;
    let failure = done.output::<()>().unwrap_err();
    assert_eq!((failure.code(), failure.is_retryable(), seen.get()), ("DECLINED", false, 1));
    assert_eq!(failure.details(), Some(&"EUR".into()));
    assert_eq!(done.status(), Status::Failed);
}

#[tokio::test]
async fn a_try_may_be_limited_in_time() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        ctx.step_with("slow", |this| async move {
            if this.number() == 1 {
                std::future::pending::<()>().await;
            }
            Ok::<_, Failure>(this.number())
        })
        .timeout(Duration::from_millis(5))
        .retry(Retry::fixed(Duration::ZERO))
        .await
    }
    assert_eq!(Run::new(workflow).run().await.output::<u32>().unwrap(), 2);
}

#[tokio::test]
async fn a_blocking_step_may_be_tried_again() {
    let tries = Counter::default();
    let workflow = move |ctx: Context, (): ()| {
        let tries = tries.clone();
        async move {
            let work = move || match tries.count() {
                1 => Err(std::io::Error::other("not yet")),
                n => Ok(n),
            };
            ctx.step_blocking("work", work).retry(Retry::fixed(Duration::ZERO)).await
        }
    };
    assert_eq!(Run::new(workflow).run().await.output::<u32>().unwrap(), 2);
}

#[tokio::test]
async fn several_steps_at_once() {
    async fn workflow(ctx: Context, n: u32) -> Result<u32> {
        let (a, b) = futures_util::future::try_join(
            ctx.step("a", async || Ok::<_, Failure>(1)).into_future(),
            ctx.step("b", async || Ok::<_, Failure>(2)).into_future(),
        )
        .await?;
        let all = try_join_all((0..n).map(|i| {
            ctx.step("square", move || async move { Ok::<_, Failure>(i * i) }).key(i).into_future()
        }));
        let streamed: Vec<u32> = futures_util::stream::iter(0..n)
            .map(|i| {
                ctx.step("cube", move || async move { Ok::<_, Failure>(i * i * i) }).key(i).into_future()
            })
            .buffer_unordered(4)
            .try_collect()
            .await?;
        Ok(a + b + all.await?.iter().sum::<u32>() + streamed.iter().sum::<u32>())
    }
    let done = Run::new(workflow).input(10).survives_crashes().await;
    assert_eq!(done.output::<u32>().unwrap(), 3 + 285 + 2025);
    assert_eq!(done.checkpoints().count(), 22);
}

#[tokio::test]
async fn a_step_knows_its_idempotency_key() {
    let keys: std::sync::Arc<Mutex<Vec<String>>> = std::sync::Arc::default();
    let seen = std::sync::Arc::clone(&keys);
    let workflow = move |ctx: Context, (): ()| {
        let keys = std::sync::Arc::clone(&keys);
        async move {
            ctx.step_with("charge", |this| {
                keys.lock().unwrap().push(this.idempotency_key().to_owned());
                async { Ok::<_, Failure>(()) }
            })
            .key(7)
            .await?;
            Ok::<_, Failure>(ctx.idempotency_key("charge", 7))
        }
    };
    let key: String = Run::new(workflow).crash_before_checkpoint(1).run().await.output().unwrap();
    assert_eq!(*seen.lock().unwrap(), [key.clone(), key]);
}

#[tokio::test]
async fn a_result_that_no_longer_decodes_ends_the_instance() {
    let launch = Counter::default();
    let workflow = move |ctx: Context, (): ()| {
        let first = launch.count() == 1;
        async move {
            // Another release of the workflow, in miniature.
            if first {
                ctx.step("count", async || Ok::<_, Failure>("three".to_owned())).await?;
            } else {
                let caught = ctx.step("count", async || Ok::<_, Failure>(3_u32)).await;
                panic!("no code of the workflow may act on it, not even on the error: {caught:?}");
            }
            Ok::<_, Failure>(())
        }
    };
    let done = Run::new(workflow).crash_after_checkpoint(1).run().await;
    let failure = done.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "RESULT_UNREADABLE");
    for part in ["\"count\"", "alloc::string::String", "u32"] {
        assert!(failure.message().contains(part), "{part} is missing: {failure}");
    }
}

#[tokio::test]
async fn an_input_that_does_not_decode_names_both_types() {
    async fn workflow(_: Context, _: u32) -> Result<()> {
        panic!("never begun");
    }
    let failure = Run::new(workflow).input("text").run().await.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "INPUT_UNREADABLE");
    assert!(failure.message().contains("u32") && failure.message().contains("str"), "{failure}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_a_remedy() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.step("big", async || Ok::<_, Failure>("x".repeat(5 << 20))).await.map(drop)
    }
    let failure = Run::new(workflow).run().await.output::<()>().unwrap_err();
    assert_eq!(failure.code(), "INVALID_ARGUMENT");
    assert!(failure.message().contains("\"big\"") && failure.message().contains("file"), "{failure}");
}

#[tokio::test]
async fn raw_checkpoints_are_read_in_this_launch_and_the_next() {
    async fn workflow(ctx: Context, (): ()) -> Result<Vec<u8>> {
        assert_eq!(ctx.load("state").key(2).await?, None);
        let one = ctx.checkpoint("state", [1]).key(1).await?;
        assert_eq!(ctx.load("state").key(1).await?.as_deref(), Some(one.as_slice()));
        let attempt = u8::try_from(ctx.attempt()).unwrap_or(0);
        ctx.checkpoint("attempt", [attempt]).await
    }
    let done = Run::new(workflow).crash_after_checkpoint(2).run().await;
    assert_eq!(done.output::<Vec<u8>>().unwrap(), [1], "the first writer wins");
}

#[tokio::test]
async fn events_and_progress_reach_the_timeline() {
    async fn workflow(ctx: Context, (): ()) -> Result<()> {
        ctx.event("began", &1).await?;
        for done in 0..1000 {
            ctx.progress(done, 1000);
        }
        ctx.heartbeat();
        ctx.progress(1000, 1000);
        Ok(())
    }
    let done = Run::new(workflow).run().await;
    assert_eq!(done.events().collect::<Vec<_>>(), [("began", 1.into())]);
    assert_eq!(done.progress(), Some((1000, 1000)), "the newest is sent before the end");
}

#[tokio::test]
#[should_panic(expected = "the workflow's own words")]
async fn a_panic_is_the_tests_panic() {
    async fn workflow(_: Context, (): ()) -> Result<()> {
        panic!("the workflow's own words");
    }
    Run::new(workflow).run().await;
}

#[tokio::test]
async fn what_other_tasks_still_do_does_not_hold_up_the_ending() {
    async fn workflow(ctx: Context, (): ()) -> Result<u32> {
        let other = ctx.clone();
        // Nobody waits for these: they are cut off with the process.
        std::thread::spawn(move || {
            for n in 0..1_000_000 {
                other.progress(n, 0);
            }
        });
        let never = ctx.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let work = never.step("never", async || {
                std::future::pending::<()>().await;
                Ok::<_, Failure>(())
            });
            work.await
        });
        ctx.step("done", async || Ok::<_, Failure>(7)).await
    }
    assert_eq!(Run::new(workflow).run().await.output::<u32>().unwrap(), 7);
}
