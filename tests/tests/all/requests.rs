//! Cancel, pause, resume, stop and the time limit, in every state: each does what the table of the
//! architecture says, and its process is gone when it should be.

use std::time::Duration;

use dormouse_management_sdk::{Instance, Status, Timestamp};
use dormouse_proto::instance::{Cancel, Inbox, SuspendOutcome, server_frame::Outcome, suspend_outcome::Kind};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw::{self, RawClient},
    wait,
};

on_both! {
    a_cancel_in_every_state, a_pause_and_a_resume_in_every_state, a_stop_in_every_state, a_time_limit_in_every_state,
}

/// What an instance may be doing when a request comes.
struct States {
    /// Waits for its delayed start.
    delayed: Probe,
    /// Claimed, has a process, not yet registered.
    launching: Probe,
    /// Registered.
    running: Probe,
    client: RawClient,
    /// Waits for the signal `go`.
    suspended: Probe,
    /// Was suspended, is being launched again.
    relaunching: Probe,
}

/// One instance in each state. `limit` is given to all.
async fn in_every_state(cluster: &Cluster, limit: Option<Duration>) -> States {
    let limited = |start: dormouse_management_sdk::StartInstance| match limit {
        Some(limit) => start.limit(limit),
        None => start,
    };
    let in_an_hour = || Timestamp::from_micros(wait::now().as_micros() + 3_600_000_000);
    let delayed = Probe::start_with(cluster, "delayed", |start| limited(start).start_at(in_an_hour())).await;
    let running = Probe::start_with(cluster, "running", limited).await;
    let (client, _) = running.register(1).await;
    let suspended = Probe::start_with(cluster, "suspended", limited).await;
    let (suspending, _) = suspended.register(1).await;
    suspended.suspend_for(cluster, &suspending, "go").await;
    let relaunching = Probe::start_with(cluster, "relaunching", limited).await;
    let (suspending, _) = relaunching.register(1).await;
    relaunching.suspend_for(cluster, &suspending, "go").await;
    cluster.client().signal("relaunching", "go", None).await.expect("it waits for that");
    relaunching.document(2).await;
    let launching = Probe::start_with(cluster, "launching", limited).await;
    launching.document(1).await;
    States { delayed, launching, running, client, suspended, relaunching }
}

async fn ended(cluster: &Cluster, id: &str, status: Status) -> Instance {
    let instance = cluster.until_ended(id, status).await;
    cluster.until_no_process(id).await;
    instance
}

/// Its newest inbox, by the fallback to the push.
async fn inbox(client: &RawClient) -> Inbox {
    match client.ask(raw::poll()).await {
        Ok(Outcome::Inbox(inbox)) => inbox,
        other => panic!("a poll was answered {other:?}"),
    }
}

async fn is_fenced(document: &dormouse_proto::launch::LaunchDocument) {
    let late = RawClient::connect(document).await;
    let refusal = late.ask(raw::registration(document)).await.expect_err("an ended instance was registered");
    assert_eq!(refusal.code, "FENCED", "{refusal:?}");
}

async fn a_cancel_in_every_state(database: Database) {
    let cluster = Cluster::up(database).await;
    let states = in_every_state(&cluster, None).await;
    let documents = [states.launching.document(1).await];
    for probe in [&states.delayed, &states.launching, &states.running, &states.suspended, &states.relaunching]
    {
        cluster.client().cancel(&probe.id).await.expect("it has not ended");
        // A second one changes nothing.
        drop(cluster.client().cancel(&probe.id).await);
    }

    // What never ran ends at once, its open claim is fenced.
    ended(&cluster, "delayed", Status::Cancelled).await;
    assert_eq!(cluster.attempts("delayed").await, 0);
    ended(&cluster, "launching", Status::Cancelled).await;
    is_fenced(&documents[0]).await;

    // What runs is asked: it cannot suspend before it has felt it, and its output is kept.
    feels_it_and_ends(&cluster, &states.running, &states.client).await;
    // What waits for a signal is launched to feel it; what is being launched feels it there.
    for probe in [&states.suspended, &states.relaunching] {
        let (client, registered) = probe.register(2).await;
        assert_eq!(registered.inbox.expect("an inbox").cancel, i32::from(Cancel::Asked), "{}", probe.id);
        feels_it_and_ends(&cluster, probe, &client).await;
        assert_eq!(cluster.attempts(&probe.id).await, 2, "{}", probe.id);
    }
}

async fn feels_it_and_ends(cluster: &Cluster, probe: &Probe, client: &RawClient) {
    assert_eq!(inbox(client).await.cancel, i32::from(Cancel::Asked), "{}", probe.id);
    match client.ask(raw::suspend_for("go")).await {
        Ok(Outcome::Suspend(SuspendOutcome { kind, .. })) if kind == i32::from(Kind::Continue) => {}
        other => panic!("{}: a suspend before the cancel was felt was answered {other:?}", probe.id),
    }
    client.ask(raw::feel_cancel("here")).await.expect("it may feel it");
    assert_eq!(inbox(client).await.cancel, i32::from(Cancel::Felt), "{}", probe.id);
    client.ask(raw::complete(b"cleaned up")).await.expect("it may end");
    // As the SDK would.
    probe.crash(cluster).await;
    let instance = ended(cluster, &probe.id, Status::Cancelled).await;
    assert_eq!(instance.output.expect("its output is kept").data, b"cleaned up");
}

async fn a_pause_and_a_resume_in_every_state(database: Database) {
    let cluster = Cluster::up(database).await;
    let states = in_every_state(&cluster, None).await;
    for probe in [&states.delayed, &states.launching, &states.running, &states.suspended, &states.relaunching]
    {
        let paused = cluster.client().pause(&probe.id).await.expect("it has not ended");
        assert!(paused.paused, "{}", probe.id);
    }

    // A signal to the paused one does not launch it, nor does its delayed start.
    cluster.client().signal("suspended", "go", None).await.expect("it has not ended");
    // What runs is told, and goes on.
    assert!(inbox(&states.client).await.paused);
    states.client.ask(raw::save("while-paused", b"x")).await.expect("it may write");
    // What is being launched registers, and hears of it.
    let (_, registered) = states.launching.register(1).await;
    assert!(registered.inbox.expect("an inbox").paused);
    let (_, registered) = states.relaunching.register(2).await;
    assert!(registered.inbox.expect("an inbox").paused);
    // A crash while it is paused: no retry before the resume.
    states.running.crash(&cluster).await;
    cluster.until("running", "waits for its retry", |instance| instance.status == Status::Suspended).await;
    // Another instance passes the whole road meanwhile: the paused ones were looked at and left.
    let other = Probe::start(&cluster, "other").await;
    other.register(1).await;
    assert_eq!(cluster.attempts("suspended").await, 1, "launched while it was paused");
    assert_eq!(cluster.attempts("running").await, 1, "launched while it was paused");

    for id in ["suspended", "running"] {
        let resumed = cluster.client().resume(id).await.expect("it has not ended");
        assert!(!resumed.paused, "{id}");
    }
    let (_, registered) = states.suspended.register(2).await;
    assert_eq!(registered.inbox.expect("an inbox").unread.len(), 1, "the signal that came meanwhile");
    states.running.register(2).await;

    // Being cancelled, it cannot be paused; a cancel ends a pause.
    let cancelled = cluster.client().cancel("relaunching").await.expect("it has not ended");
    assert!(!cancelled.paused);
    cluster.client().pause("relaunching").await.expect_err("it is being cancelled");
}

async fn a_stop_in_every_state(database: Database) {
    let cluster = Cluster::up(database).await;
    let states = in_every_state(&cluster, None).await;
    let documents = [states.launching.document(1).await, states.running.document(1).await];
    for probe in [&states.delayed, &states.launching, &states.running, &states.suspended, &states.relaunching]
    {
        let stopped = cluster.client().stop(&probe.id).await.expect("it has not ended");
        assert_eq!(stopped.status, Status::Cancelled, "{}", probe.id);
        ended(&cluster, &probe.id, Status::Cancelled).await;
    }
    for document in &documents {
        is_fenced(document).await;
    }
    states.client.ask(raw::save("late", b"x")).await.expect_err("a stopped instance wrote");
}

async fn a_time_limit_in_every_state(database: Database) {
    let cluster = Cluster::up(database).await;
    // From the start on, so each state is reached before it passes.
    let states = in_every_state(&cluster, Some(Duration::from_secs(8))).await;
    cluster.client().pause("suspended").await.expect("it has not ended");
    for probe in [&states.delayed, &states.launching, &states.running, &states.suspended, &states.relaunching]
    {
        let instance = ended(&cluster, &probe.id, Status::Failed).await;
        let failure = instance.failure.expect("a failure");
        assert_eq!(failure.code, "TIME_LIMIT", "{}: {}", probe.id, failure.message);
        let lived = instance.ended_at.expect("ended").since(instance.created_at.expect("created"));
        assert!(lived >= Duration::from_secs(8), "{} ended after {lived:?}", probe.id);
    }
    wait::until("the running one is fenced", async || {
        states.client.ask(raw::save("late", b"x")).await.err().ok_or("it wrote after its limit")
    })
    .await;
}
