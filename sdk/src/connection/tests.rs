//! The connection against a real transport and a core that fails in every way.

pub(crate) mod server;

use std::{
    collections::HashSet,
    fmt::Write as _,
    future::Future,
    io::{Seek as _, Write as _},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dormouse_proto::{
    instance::{self, client_frame::Operation, instance_event},
    launch::LaunchDocument,
};

use tokio::sync::watch;

use self::server::{Fault, Instance, Wire};
use super::run;
use crate::{
    Context, Failure, Result,
    ledger::{Ending, Fate},
    operation,
    process::Watched,
    testing::core::{Action, Ended},
};

/// Plays one launch of a workflow over the real connection.
async fn play<Fut>(document: LaunchDocument, workflow: impl FnOnce(Context) -> Fut) -> Fate
where
    Fut: Future<Output = Result<u64>>,
{
    let (started, start) = tokio::sync::oneshot::channel();
    let link = run(super::socket().unwrap(), document, |ledger| drop(started.send(ledger)));
    let work = async {
        let Ok(ledger) = start.await else {
            return std::future::pending().await;
        };
        let running = Box::pin(workflow(Context::new(ledger.clone())));
        ledger.end(match (Watched { running, ledger: &ledger }).await {
            Ok(output) => Ending::Completed(operation::encode("output", &output).unwrap()),
            Err(failure) => Ending::Failed(failure),
        });
        std::future::pending().await
    };
    let played = async {
        tokio::select! {
            fate = link => fate,
            fate = work => fate,
        }
    };
    tokio::time::timeout(Duration::from_mins(1), played).await.expect("a launch has an end")
}

async fn three_steps(ctx: Context) -> Result<u64> {
    let mut sum = 0;
    for i in 0..3_u64 {
        sum += ctx
            .step("step", move || async move { Ok::<_, Failure>(10_u64.pow(u32::try_from(i)?)) })
            .key(i)
            .await?;
    }
    Ok(sum)
}

fn output(instance: &Instance) -> u64 {
    match instance.core(|core| core.ended.clone()) {
        Some(Ended::Completed(output)) => operation::decode(&output).unwrap(),
        other => panic!("not completed: {other:?}"),
    }
}

#[tokio::test]
async fn a_workflow_completes_over_the_wire() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    assert_eq!(play(server.launch(), three_steps).await, Fate::Ended);
    assert_eq!((output(&instance), instance.registrations()), (111, 1));
}

#[tokio::test]
async fn each_request_may_lose_its_connection_before_and_after() {
    for fault in [Fault::LoseBefore, Fault::LoseAfter] {
        let mut hit = HashSet::new();
        // Each distinct request once, registrations too.
        let instance = Instance::new("w", ()).faults(move |operation| {
            let mut what = String::new();
            write!(what, "{operation:?}").unwrap();
            if hit.insert(what) { fault } else { Fault::None }
        });
        let server = instance.serve();
        let fate = play(server.launch(), three_steps).await;
        if fault == Fault::LoseAfter {
            // The ending is recorded; that its answer was lost is told to whoever registers again.
            assert!(matches!(fate, Fate::Ended | Fate::Fenced), "{fate:?}");
        } else {
            assert_eq!(fate, Fate::Ended);
        }
        assert_eq!(output(&instance), 111);
        assert_eq!(instance.core(|core| core.saved.len()), 3);
        assert!(instance.registrations() >= 4, "{}", instance.registrations());
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_signal_takes_no_second_signal() {
    let mut lost = false;
    let instance = Instance::new("w", ()).faults(move |operation| {
        let takes = matches!(operation, Operation::Checkpoint(asked)
            if matches!(asked.value, Some(instance::checkpoint::Value::TakeSignal(_))));
        if takes && !std::mem::replace(&mut lost, true) { Fault::LoseAfter } else { Fault::None }
    });
    for number in [3, 4] {
        let payload = operation::encode("signal", &number).unwrap();
        instance.core(|core| core.act_now(Action::Signal { name: "n".to_owned(), payload }));
    }
    let server = instance.serve();
    let fate = play(server.launch(), async |ctx: Context| {
        let first: u64 = ctx.signal("n").key(1).await?;
        let second: u64 = ctx.signal("n").key(2).await?;
        Ok(first * 10 + second)
    })
    .await;
    assert_eq!((fate, output(&instance)), (Fate::Ended, 34));
}

#[tokio::test]
async fn what_core_cannot_serve_now_is_repeated() {
    let mut refusals = 0;
    let instance = Instance::new("w", ()).faults(move |operation| {
        refusals += u32::from(matches!(operation, Operation::Checkpoint(_) | Operation::Register(_)));
        if refusals < 4 { Fault::Refuse("UNAVAILABLE") } else { Fault::None }
    });
    let server = instance.serve();
    assert_eq!(play(server.launch(), three_steps).await, Fate::Ended);
    assert_eq!(output(&instance), 111);
}

#[tokio::test]
async fn what_core_refuses_for_good_is_the_workflows_failure() {
    let instance = Instance::new("w", ()).faults(|operation| match operation {
        Operation::Checkpoint(_) => Fault::Refuse("INVALID_ARGUMENT"),
        _ => Fault::None,
    });
    let server = instance.serve();
    assert_eq!(play(server.launch(), three_steps).await, Fate::Ended);
    let ended = instance.core(|core| core.ended.clone());
    let Some(Ended::Failed(failure)) = ended else { panic!("{ended:?}") };
    assert_eq!(failure.code, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn an_ending_that_core_refuses_becomes_a_failure_that_says_why() {
    let instance = Instance::new("w", ()).faults(|operation| match operation {
        Operation::Event(event) if matches!(event.event, Some(instance_event::Event::Completed(_))) => {
            Fault::Refuse("INVALID_ARGUMENT")
        }
        _ => Fault::None,
    });
    let server = instance.serve();
    assert_eq!(play(server.launch(), three_steps).await, Fate::Ended);
    assert!(matches!(instance.core(|core| core.ended.clone()), Some(Ended::Failed(_))));
}

#[tokio::test]
async fn a_fenced_process_stops_whatever_told_it() {
    for refused in ["register", "checkpoint", "complete"] {
        let instance = Instance::new("w", ()).faults(move |operation| {
            let is = match operation {
                Operation::Register(_) => "register",
                Operation::Checkpoint(_) => "checkpoint",
                Operation::Event(_) => "complete",
                _ => "",
            };
            if is == refused { Fault::Refuse("FENCED") } else { Fault::None }
        });
        let server = instance.serve();
        assert_eq!(play(server.launch(), three_steps).await, Fate::Fenced, "{refused}");
    }
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let fencer = instance.clone();
    let fate = play(server.launch(), async move |ctx: Context| {
        fencer.fence().await;
        ctx.signal("never").await
    })
    .await;
    assert_eq!(fate, Fate::Fenced);
}

/// A registration that this process had given up was carried out after the one that was answered.
#[tokio::test]
async fn a_session_that_was_overtaken_by_another_of_its_own_process_registers_again() {
    let mut fences = 0;
    let instance = Instance::new("w", ()).faults(move |operation| {
        if matches!(operation, Operation::Checkpoint(_)) && fences < 2 {
            fences += 1;
            return Fault::Refuse("FENCED");
        }
        Fault::None
    });
    let server = instance.serve();
    assert_eq!(play(server.launch(), three_steps).await, Fate::Ended);
    assert_eq!((output(&instance), instance.registrations()), (111, 3));
}

#[tokio::test]
async fn dead_replicas_do_not_keep_the_living_one_waiting() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    // Sockets that take everything and say nothing, as a machine without power does.
    let silent: Vec<_> = (0..8).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let mut document = server.launch();
    document.core_addresses = silent.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    document.core_addresses.push(server.address.to_string());
    assert_eq!(play(document, three_steps).await, Fate::Ended);
    // Found in the first round, in which each is given a second.
    assert_eq!((output(&instance), instance.registrations()), (111, 1));
}

#[tokio::test]
async fn an_attempt_that_core_does_not_know_gives_up_with_the_reason() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let document = LaunchDocument { token: vec![1; 32], ..server.launch() };
    let Fate::Refused(reason) = play(document, three_steps).await else { panic!("it was not refused") };
    assert!(reason.contains("UNAUTHENTICATED"), "{reason}");
    let document = LaunchDocument { authority_pem: "no certificate".to_owned(), ..server.launch() };
    assert!(matches!(play(document, three_steps).await, Fate::Refused(_)));
}

#[tokio::test]
async fn a_resume_reads_all_pages() {
    let instance = Instance::new("w", ()).pages_of(7);
    let server = instance.serve();
    let work = async |ctx: Context| {
        for i in 0..50_u64 {
            ctx.step("step", || async { Ok::<_, Failure>(ctx.attempt()) }).key(i).await?;
        }
        ctx.signal::<u64>("on").await
    };
    assert_eq!(play(server.launch(), work).await, Fate::Suspended);
    let payload = operation::encode("signal", &5).unwrap();
    instance.act(Action::Signal { name: "on".to_owned(), payload }).await;
    assert_eq!(play(server.launch(), work).await, Fate::Ended);
    assert_eq!((output(&instance), instance.core(|core| core.saved.len())), (5, 51));
}

/// It goes as far as it knows the way. Whether a step was saved it knows when all pages are there: a connection that
/// is lost before changes nothing.
#[tokio::test]
async fn a_workflow_begins_before_all_pages_are_there() {
    for cut_off in [false, true] {
        let instance = Instance::new("w", ()).pages_of(2).streaming();
        let server = instance.serve();
        let (ran, passed) = (AtomicU64::new(0), watch::Sender::new(0_u64));
        let work = async |ctx: Context| {
            for i in 0..6_u64 {
                let step = ctx.step("step", || async {
                    ran.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Failure>(i)
                });
                step.key(i).await?;
                passed.send_replace(i + 1);
            }
            ctx.signal::<u64>("on").await
        };
        assert_eq!(play(server.launch(), work).await, Fate::Suspended);
        passed.send_replace(0);
        let payload = operation::encode("signal", &5).unwrap();
        instance.act(Action::Signal { name: "on".to_owned(), payload }).await;
        let follow = async {
            let mut passed = passed.subscribe();
            for pages in 1..3 {
                passed.wait_for(|passed| *passed == 2 * pages).await.unwrap();
                if cut_off && pages == 2 {
                    instance.cut_off();
                    instance.registered(3).await;
                    instance.stream(1).await;
                }
                instance.stream(1).await;
            }
        };
        let (fate, ()) = tokio::join!(play(server.launch(), work), follow);
        assert_eq!((fate, output(&instance), ran.load(Ordering::Relaxed)), (Fate::Ended, 5, 6));
    }
}

#[tokio::test]
async fn pushes_reach_a_workflow_that_runs() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let outside = instance.clone();
    let fate = play(server.launch(), async move |ctx: Context| {
        let step = ctx.step("long", || async {
            let payload = operation::encode("signal", &5)?;
            outside.act(Action::Signal { name: "n".to_owned(), payload }).await;
            outside.act(Action::Cancel).await;
            ctx.cancelled().await;
            Ok::<_, Failure>(1_u64)
        });
        let (one, n) =
            futures_util::future::join(step.into_future(), ctx.signal::<u64>("n").into_future()).await;
        let felt = match &n {
            Ok(_) => ctx.step("feels", || async { Ok::<_, Failure>(0_u64) }).await,
            Err(_) => ctx.step("feels not", || async { Err(Failure::cancelled()) }).await,
        };
        assert!(felt.is_err_and(|failure| failure.is_cancelled()));
        Ok(one? + n.unwrap_or(5))
    })
    .await;
    assert_eq!((fate, output(&instance)), (Fate::Ended, 6));
}

#[tokio::test]
async fn large_results_and_many_at_once_pass() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let fate = play(server.launch(), async |ctx: Context| {
        let big = ctx.step("big", || async { Ok::<_, Failure>("x".repeat(3 << 20)) }).await?;
        let many = (0..1000_u64)
            .map(|i| ctx.step("many", move || async move { Ok::<_, Failure>(i) }).key(i).into_future());
        let sum: u64 = futures_util::future::try_join_all(many).await?.iter().sum();
        Ok(sum + big.len() as u64)
    })
    .await;
    assert_eq!((fate, output(&instance)), (Fate::Ended, 499_500 + (3 << 20)));
}

#[tokio::test]
async fn another_replica_is_found_in_the_list_that_the_environment_keeps() {
    let instance = Instance::new("w", ());
    let first = instance.serve();
    let mut list = tempfile::tempfile().unwrap();
    let mut document = first.launch();
    document.core_addresses = vec!["127.0.0.1:9".to_owned()];
    document.addresses_fd = list.as_raw_fd();
    writeln!(list, "{}", first.address).unwrap();
    let outside = instance.clone();
    let fate = play(document, async move |ctx: Context| {
        let one = three_steps(ctx.clone()).await?;
        // The replica goes, another comes, and the environment says so.
        first.stop();
        let second = outside.serve();
        list.rewind()?;
        list.set_len(0)?;
        writeln!(list, "{}", second.address)?;
        let two = ctx.step("after", || async { Ok::<_, Failure>(1000_u64) }).await?;
        // It serves until the ending is recorded.
        std::mem::forget(second);
        Ok(one + two)
    })
    .await;
    assert_eq!((fate, output(&instance), instance.registrations()), (Fate::Ended, 1111, 2));
}

#[tokio::test]
async fn a_core_that_vanished_is_noticed_by_its_silence() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let mut wire = Wire::to(server.address).await;
    let mut document = server.launch();
    document.core_addresses = vec![wire.address.to_string(), server.address.to_string()];
    let begun = tokio::time::Instant::now();
    let fate = play(document, async move |ctx: Context| {
        let one = three_steps(ctx.clone()).await?;
        wire.cut();
        let two = ctx.step("after", || async { Ok::<_, Failure>(1000_u64) }).await?;
        Ok(one + two)
    })
    .await;
    assert_eq!((fate, output(&instance)), (Fate::Ended, 1111));
    // Well below the transport's time-out of 20 s, which is made for connections that are merely quiet.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn events_progress_and_heartbeats_pass_beside_steps() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let fate = play(server.launch(), async |ctx: Context| {
        for _ in 0..1000 {
            ctx.heartbeat();
        }
        ctx.event("began", &"now").await?;
        ctx.progress_with(1, 2, "half of it");
        let sum = three_steps(ctx.clone()).await?;
        ctx.progress(2, 2);
        Ok(sum)
    })
    .await;
    assert_eq!((fate, output(&instance), instance.registrations()), (Fate::Ended, 111, 1));
    let (events, progress) = instance.core(|core| (core.events.clone(), core.progress.clone()));
    assert_eq!(events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["began"]);
    assert_eq!(progress.map(|progress| (progress.done, progress.total)), Some((2, 2)));
}

#[tokio::test]
async fn a_suspension_that_core_declines_goes_on_with_what_is_there() {
    let instance = Instance::new("w", ());
    let server = instance.serve();
    let outside = instance.clone();
    let fate = play(server.launch(), async move |ctx: Context| {
        // Stored, and never pushed: the answer to the suspension brings it.
        let payload = operation::encode("signal", &5)?;
        outside.core(|core| core.act_now(Action::Signal { name: "n".to_owned(), payload }));
        ctx.signal("n").await
    })
    .await;
    assert_eq!((fate, output(&instance), instance.core(|core| core.attempt)), (Fate::Ended, 5, 1));
}
