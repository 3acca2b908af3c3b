//! Exits, stops, whole groups, output.

use std::time::Duration;

use dormouse_core::domain::outcome::ExitReason;
use dormouse_environment::{
    attempts::Stream,
    supervisor::{Exit, Grace, Process, logs},
};

use crate::bench::{Bench, id, runs, until};

async fn exit_of(process: &Process) -> Exit {
    process.ended().await.expect("watched");
    process.collect().await.expect("collected")
}

#[tokio::test]
async fn an_exit_code_is_told_with_the_end_of_standard_error_and_what_was_used() {
    let bench = Bench::new();
    let exit = exit_of(&bench.launch("code", "exit:42").await).await;
    assert_eq!(exit.report.reason, ExitReason::Code(42));
    assert_eq!(exit.report.stderr_tail, "leaving with 42\n");
    let usage = exit.usage.expect("our own child");
    assert!(usage.peak_memory_bytes > 100_000, "{usage:?}");
}

#[tokio::test]
async fn a_signal_is_told() {
    let bench = Bench::new();
    for number in [6, 9, 10] {
        let name = format!("signal-{number}");
        let exit = exit_of(&bench.launch(&name, &format!("signal:{number}")).await).await;
        assert_eq!(exit.report.reason, ExitReason::Signal(number));
    }
}

#[tokio::test]
async fn a_panic_is_told_by_its_message() {
    let bench = Bench::new();
    let exit = exit_of(&bench.launch("panic", "no such mode").await).await;
    assert_eq!(exit.report.reason, ExitReason::Code(101));
    assert!(exit.report.stderr_tail.contains("unknown mode \"no such mode\""), "{}", exit.report.stderr_tail);
}

#[tokio::test]
async fn a_stop_asks_first() {
    let bench = Bench::new();
    let process = bench.launch("asked", "sleep").await;
    bench.said("asked", "waiting").await;
    process.stop(Grace { before_kill: Duration::from_secs(30), ..Grace::default() }).await.expect("stopped");
    assert_eq!(exit_of(&process).await.report.reason, ExitReason::Signal(15));
}

#[tokio::test]
async fn what_does_not_listen_is_killed_after_the_grace() {
    let bench = Bench::new();
    let process = bench.launch("deaf", "stubborn").await;
    bench.said("deaf", "waiting").await;
    process
        .stop(Grace { before_kill: Duration::from_millis(50), ..Grace::default() })
        .await
        .expect("stopped");
    assert_eq!(exit_of(&process).await.report.reason, ExitReason::Signal(9));
}

#[tokio::test]
async fn a_kill_takes_all_relatives_also_those_in_other_groups_and_sessions() {
    let bench = Bench::new();
    let process = bench.launch("clan", "family").await;
    let relatives = bench.relatives("clan").await;
    assert_eq!(relatives.len(), 3);
    assert!(relatives.iter().all(|pid| runs(*pid)));
    process.kill().await.expect("killed");
    exit_of(&process).await;
    until("all relatives end", || relatives.iter().all(|pid| !runs(*pid)).then_some(())).await;
}

#[tokio::test]
async fn what_an_ended_process_leaves_in_its_group_is_killed() {
    let bench = Bench::new();
    let process = bench.launch("parent", "orphan").await;
    let exit = exit_of(&process).await;
    assert_eq!(exit.report.reason, ExitReason::Code(0));
    let relatives = bench.relatives("parent").await;
    until("the relative ends", || relatives.iter().all(|pid| !runs(*pid)).then_some(())).await;
}

#[tokio::test]
async fn a_kill_leaves_other_attempts_alone() {
    let bench = Bench::new();
    let (one, other) = (bench.launch("one", "family").await, bench.launch("other", "family").await);
    let (_, others) = (bench.relatives("one").await, bench.relatives("other").await);
    one.kill().await.expect("killed");
    exit_of(&one).await;
    assert!(runs(other.id().pid) && others.iter().all(|pid| runs(*pid)));
    other.kill().await.expect("killed");
    exit_of(&other).await;
}

#[tokio::test]
async fn output_that_grows_beyond_its_limit_loses_its_oldest_bytes_and_never_blocks() {
    let bench = Bench::new();
    let process = bench.launch("flood", "flood:2048").await;
    let path = bench.directory("flood").stream(Stream::Stdout);
    let mut dropped = 0;
    while tokio::time::timeout(Duration::from_millis(1), process.ended()).await.is_err() {
        dropped += logs::trim(&path, 256 << 10).expect("holes");
    }
    dropped += logs::trim(&path, 256 << 10).expect("holes");
    exit_of(&process).await;
    bench.attempts.archive(&id("flood")).expect("archived");
    let read = |from| logs::read(&bench.attempts, &id("flood"), Stream::Stdout, from, 64).expect("readable");
    let start = read(logs::From::Offset(0));
    assert_eq!((start.offset, start.dropped), (dropped, dropped));
    assert!(dropped > 1 << 20, "dropped {dropped}");
    let end = read(logs::From::LastLines(1));
    assert_eq!((end.data.as_slice(), end.next_offset, end.ended), (b"end\n".as_slice(), (2 << 20) + 4, true));
}

#[tokio::test]
async fn an_attempt_that_wrote_nothing_leaves_nothing() {
    let bench = Bench::new();
    exit_of(&bench.launch("silent", "signal:9").await).await;
    // The fixture notes its document there.
    std::fs::remove_file(bench.directory("silent").work().join("acted")).expect("it acted");
    bench.attempts.archive(&id("silent")).expect("archived");
    bench.attempts.archive(&id("silent")).expect("twice");
    assert_eq!(bench.attempts.living().expect("readable"), []);
    assert_eq!(std::fs::read_dir(bench.data.join("outputs")).expect("readable").count(), 0);
}
