use std::time::Duration;

use dormouse_sdk::{
    Failure, Result, Retry,
    blocking::Context,
    days, hours,
    testing::{Run, Status},
};

use crate::Counter;

#[expect(clippy::needless_pass_by_value, reason = "a workflow owns what it is given")]
fn audit(ctx: Context, numbers: Vec<u64>) -> Result<u64> {
    let mut total = 0;
    for number in &numbers {
        total += ctx.step("square", || Ok::<_, Failure>(number * number)).key(number).run()?;
    }
    ctx.checkpoint("total", "", total.to_be_bytes())?;
    ctx.sleep("night", hours(8)).run()?;
    match ctx.signal::<u64>("bonus").within(days(1))? {
        Some(bonus) => Ok(total + bonus),
        None => Ok(total),
    }
}

#[tokio::test]
async fn a_synchronous_workflow_survives_everything_too() {
    let done = Run::new(audit).input([1, 2, 3]).survives_crashes().await;
    assert_eq!(done.output::<u64>().unwrap(), 14);
    assert!(done.elapsed() >= days(1) + hours(8));
    let done = Run::new(audit).input([1]).signal_after(days(1), "bonus", 10).survives_crashes().await;
    assert_eq!(done.output::<u64>().unwrap(), 11);
}

#[tokio::test]
async fn a_synchronous_step_is_tried_again() {
    let tries = Counter::default();
    let workflow = move |ctx: Context, (): ()| {
        let work = |_| match tries.count() {
            3 => Ok(3),
            n => Err(std::io::Error::other(format!("try {n}"))),
        };
        ctx.step_with("flaky", work).retry(Retry::fixed(hours(1))).run()
    };
    let done = Run::new(workflow).run().await;
    assert_eq!(done.output::<u32>().unwrap(), 3);
    assert!(done.elapsed() >= hours(2));
}

#[tokio::test]
async fn a_synchronous_wait_feels_the_cancel() {
    #[expect(clippy::needless_pass_by_value, reason = "a workflow owns what it is given")]
    fn workflow(ctx: Context, (): ()) -> Result<()> {
        let felt = ctx.signal::<()>("never").run().expect_err("only a cancel ends it");
        assert!(felt.is_cancelled() && ctx.is_cancelled());
        ctx.step("clean up", || Ok::<_, Failure>(())).run()?;
        Err(felt)
    }
    let done = Run::new(workflow).cancel_after(days(1)).survives_crashes().await;
    assert_eq!(done.status(), Status::Cancelled);
}

#[tokio::test]
async fn threads_share_a_context() {
    #[expect(clippy::needless_pass_by_value, reason = "a workflow owns what it is given")]
    fn workflow(ctx: Context, n: u32) -> Result<u32> {
        let sum = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..n)
                .map(|i| {
                    let ctx = ctx.clone();
                    scope.spawn(move || ctx.step("square", || Ok::<_, Failure>(i * i)).key(i).run())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<Result<u32>>()
        });
        ctx.load("nothing", "")?;
        sum
    }
    assert_eq!(Run::new(workflow).input(8).run().await.output::<u32>().unwrap(), 140);
}

#[tokio::test]
#[should_panic(expected = "the workflow's own words")]
async fn a_panic_is_the_tests_panic() {
    fn workflow(_: Context, (): ()) -> Result<()> {
        panic!("the workflow's own words");
    }
    Run::new(workflow).run().await;
}

#[tokio::test]
async fn a_synchronous_workflow_pauses_between_steps() {
    #[expect(clippy::needless_pass_by_value, reason = "a workflow owns what it is given")]
    fn workflow(ctx: Context, n: u32) -> Result<Vec<u32>> {
        let step = |i| {
            let work = || {
                std::thread::sleep(Duration::from_millis(5));
                Ok::<_, Failure>(ctx.attempt())
            };
            ctx.step("attempt", work).key(i).run()
        };
        (0..n).map(step).collect()
    }
    let run = Run::new(workflow).input(200).pause_after(Duration::from_millis(10)).resume_after(days(1));
    let attempts: Vec<u32> = run.run().await.output().unwrap();
    assert!(attempts.is_sorted() && attempts[199] == 2, "{attempts:?}");
}
