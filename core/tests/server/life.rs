//! Registering, saving, suspending, ending, and who may not any more.

use std::time::Duration;

use dormouse_core::domain::instance::Status;
use dormouse_core::domain::outcome::Outcome as Ending;
use dormouse_core::store::Claim;
use dormouse_proto::call::CallError;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{
    Cancel, Completed, CustomEvent, Failed, Failure, GetCheckpoint, GetInstanceStatus, Heartbeat,
    InstanceEvent, ListCheckpoints, PollSignals, Progress, SignalAck, StoredCheckpoint, Suspend,
    SuspendOutcome, UnreadSignal, Wait, checkpoint, instance_event, stored_checkpoint, suspend_outcome,
};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::task::JoinSet;

use crate::core::{Client, Core, checkpoint, json, operation, register, soon, step};
use crate::db::{self, TestDb, tenant};

on_both! {
    a_registration_answers_all_that_a_process_needs,
    each_kind_of_value_is_stored_once,
    a_signal_is_taken_in_the_transaction_that_stores_it,
    a_cancellation_is_felt_with_its_checkpoint,
    pages_follow_the_registration,
    an_input_of_the_largest_size_leaves_the_rest_for_later,
    a_suspended_process_is_not_told_that_it_is_fenced,
    a_suspend_goes_on_when_something_is_there,
    endings_are_accepted_again,
    events_and_looks_are_answered_and_heartbeats_are_not,
    invariant_2_nothing_of_an_older_session_is_stored,
    invariant_2_nothing_of_an_older_attempt_is_stored,
    invariant_2_another_core_fences_too,
}

async fn a_registration_answers_all_that_a_process_needs(db: TestDb) {
    let core = Core::new(db);
    let claim = core.claimed("a").await;
    let first = core.connect().await;
    let registered = first.register(&claim).await;
    assert_eq!((registered.session, registered.attempt), (1, 1));
    assert_eq!(registered.instance_id, "a");
    assert_eq!(registered.wake_reason, "start");
    assert_eq!(registered.workflow, claim.workflow.as_str());
    assert!(registered.input.is_some());
    assert!(registered.checkpoints.is_empty());
    assert_eq!((registered.now, registered.started_at), (db::START.0, db::START.0));

    first.save(step("one", "1")).await;
    core.db.send(&claim.id, "news").await;
    let again = core.connect().await.register(&claim).await;
    assert_eq!((again.session, again.attempt, again.next_cursor), (2, 1, 0));
    assert_eq!(names(&again.checkpoints), ["one"]);
    assert_eq!(bytes(&stored(&again.checkpoints[0])), b"1");
    let inbox = again.inbox.expect("an inbox");
    assert_eq!(inbox.unread, [UnreadSignal { number: 1, name: "news".to_owned() }]);
    assert_eq!((inbox.paused, inbox.cancel()), (false, Cancel::No));
}

async fn each_kind_of_value_is_stored_once(db: TestDb) {
    let core = Core::new(db);
    let (client, _claim) = core.running("a").await;
    let due = checkpoint::Value::DueInMicros(5_000_000);
    let requests = [
        (step("step", "1"), step("step", "2")),
        (checkpoint("nap", "due", due.clone()), checkpoint("nap", "due", due)),
        (
            checkpoint("until", "due", checkpoint::Value::DueAt(77)),
            checkpoint("until", "due", checkpoint::Value::DueAt(78)),
        ),
    ];
    for (first, second) in requests {
        let stored = client.save(first).await;
        assert!(!stored.existed);
        core.db.advance(Duration::from_secs(1));
        let again = client.save(second).await;
        assert!(again.existed);
        assert_eq!(again.now, stored.now + 1_000_000);
        let (new, old) = (stored.stored.expect("stored"), again.stored.expect("stored"));
        assert_eq!((new.attempt, new.stored_at), (old.attempt, old.stored_at));
        match old.value.expect("a value") {
            // What the first request sent does not travel back, what another one finds does.
            stored_checkpoint::Value::Payload(payload) => {
                assert_eq!((new.value, payload), (None, json("1")));
            }
            stored_checkpoint::Value::DueAt(at) => {
                assert_eq!(new.value, Some(stored_checkpoint::Value::DueAt(at)));
                assert_eq!(
                    at,
                    if old.operation == Some(operation("nap")) { new.stored_at + 5_000_000 } else { 77 }
                );
            }
            stored_checkpoint::Value::Cancelled(_) => panic!("nobody cancelled"),
        }
    }
    let Outcome::Found(found) = client.ask(get("step")).await else { panic!("another answer") };
    assert_eq!(bytes(&found.stored.expect("stored")), b"1");
    let Outcome::Found(found) = client.ask(get("nothing")).await else { panic!("another answer") };
    assert_eq!(found.stored, None);
}

async fn a_signal_is_taken_in_the_transaction_that_stores_it(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    let take = |name: &str| checkpoint(name, "signal", checkpoint::Value::TakeSignal("news".to_owned()));
    let nothing = client.save(take("wait")).await;
    assert_eq!((nothing.stored, nothing.existed), (None, false));

    core.db.send(&claim.id, "other").await;
    core.db.send(&claim.id, "news").await;
    core.db.send(&claim.id, "news").await;
    let taken = client.save(take("wait")).await;
    assert_eq!(bytes(&taken.stored.expect("a signal")), b"\"hello\"");
    assert!(client.save(take("wait")).await.existed, "one wait consumes one signal");
    let Outcome::Inbox(inbox) = client.ask(Operation::PollSignals(PollSignals {})).await else {
        panic!("another answer");
    };
    let unread: Vec<u64> = inbox.unread.iter().map(|unread| unread.number).collect();
    assert_eq!(unread, [1, 3]);
}

async fn a_cancellation_is_felt_with_its_checkpoint(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    let feel = || checkpoint("here", "cancelled", checkpoint::Value::FeelCancel(true));
    assert_eq!(client.save(feel()).await.stored, None, "nobody has asked");
    core.db.store.cancel(&tenant(), &claim.id).await.expect("a cancel");
    let felt = client.save(feel()).await.stored.expect("felt");
    assert_eq!(felt.value, Some(stored_checkpoint::Value::Cancelled(true)));
    client.ask(complete("\"cleaned up\"")).await;
    assert_eq!(core.db.status(&claim.id).await, Status::Ended(Ending::Cancelled));
}

async fn pages_follow_the_registration(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    // 1,100 small ones, then three of which no two fit into one page.
    let mut saves = JoinSet::new();
    for n in 0..1100 {
        let caller = client.caller.clone();
        let request = Operation::Checkpoint(step(&format!("small {n:04}"), "0"));
        saves.spawn(async move { caller.call(request.into()).await });
    }
    for saved in saves.join_all().await {
        saved.expect("the connection lives");
    }
    for n in 0..3 {
        client.save(step(&format!("large {n}"), vec![b'0'; 600_000])).await;
    }
    let other = core.connect().await;
    let registered = other.register(&claim).await;
    assert_eq!(registered.checkpoints.len(), 1000);
    let mut sizes = Vec::new();
    let (mut all, mut cursor) = (registered.checkpoints, registered.next_cursor);
    while cursor != 0 {
        let page = Operation::ListCheckpoints(ListCheckpoints { cursor });
        let Outcome::Page(page) = other.ask(page).await else { panic!("another answer") };
        sizes.push(page.checkpoints.len());
        all.extend(page.checkpoints);
        cursor = page.next_cursor;
    }
    assert_eq!(sizes, [101, 1, 1]);
    let mut found = names(&all);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 1103, "each checkpoint comes once");

    // Who asks for it gets the same pages without asking for each.
    let mut third = core.connect().await;
    let mut request = register(&claim);
    if let Operation::Register(register) = &mut request {
        register.stream = true;
    }
    let Outcome::Registered(registered) = third.ask(request).await else { panic!("another answer") };
    assert!(registered.streamed);
    let (mut all, mut more) = (registered.checkpoints, true);
    while more {
        let Outcome::Page(page) = third.pushed().await else { panic!("another push") };
        all.extend(page.checkpoints);
        more = page.next_cursor != 0;
    }
    let mut streamed = names(&all);
    streamed.sort_unstable();
    assert_eq!(streamed, found);
}

async fn an_input_of_the_largest_size_leaves_the_rest_for_later(db: TestDb) {
    let core = Core::new(db);
    let lease = core.db.node("node-a").await;
    let mut request = db::request("a");
    request.input.data = vec![b'7'; 4 << 20].into();
    core.db.store.start(request).await.expect("a start");
    let claim = core.db.claim_one(&lease).await;
    let first = core.connect().await;
    first.register(&claim).await;
    first.save(step("one", vec![b'1'; 100_000])).await;
    for n in 0..400 {
        core.db.send(&claim.id, &format!("{n:0200}")).await;
    }
    let mut second = core.connect().await;
    let registered = second.register(&claim).await;
    assert_eq!(registered.input.expect("an input").data.len(), 4 << 20);
    assert!(registered.checkpoints.is_empty());
    let page = Operation::ListCheckpoints(ListCheckpoints { cursor: registered.next_cursor });
    let Outcome::Page(page) = second.ask(page).await else { panic!("another answer") };
    assert_eq!((names(&page.checkpoints), page.next_cursor), (vec!["one".to_owned()], 0));
    assert_eq!(second.inbox().await.unread.len(), 400);
}

async fn a_suspended_process_is_not_told_that_it_is_fenced(db: TestDb) {
    let core = Core::new(db);
    let (mut client, claim) = core.running("a").await;
    let due = db::START.0 + 60_000_000;
    assert_eq!(suspended(client.ask(sleep(due)).await), suspend_outcome::Kind::Suspended);
    assert_eq!(core.db.status(&claim.id).await, Status::Suspended);
    assert_eq!(
        suspended(client.ask(sleep(due)).await),
        suspend_outcome::Kind::Suspended,
        "the answer got lost"
    );
    // Waking it is news about the instance, but not for this process, which is leaving.
    core.db.store.cancel(&tenant(), &claim.id).await.expect("a cancel");
    let late = client.refused(Operation::Checkpoint(step("late", "1"))).await;
    assert_eq!(late.code, "FENCED");
    client.caller.finish_and_close("suspended").await;
    assert_eq!(soon("the end", client.pushes.next()).await, None);
}

async fn a_suspend_goes_on_when_something_is_there(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    assert_eq!(suspended(client.ask(sleep(db::START.0)).await), suspend_outcome::Kind::Continue);
    core.db.send(&claim.id, "news").await;
    let wait = Wait { name: "wait".to_owned(), signal: Some("news".to_owned()), ..Wait::default() };
    let Outcome::Suspend(answer) = client.ask(Operation::Suspend(Suspend { waits: vec![wait] })).await else {
        panic!("another answer");
    };
    assert_eq!(answer.kind(), suspend_outcome::Kind::Continue);
    assert_eq!(answer.inbox.expect("an inbox").unread.len(), 1);
    assert_eq!(core.db.status(&claim.id).await, Status::Running);
}

async fn endings_are_accepted_again(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    client.ask(complete("1")).await;
    client.ask(complete("1")).await;
    assert_eq!(core.db.status(&claim.id).await, Status::Ended(Ending::Completed));
    assert_eq!(client.refused(Operation::Checkpoint(step("late", "1"))).await.code, "FENCED");

    let (client, claim) = core.running("b").await;
    let failure = Failure {
        code: "DECLINED".to_owned(),
        message: "x".repeat(100_000),
        retryable: true,
        details: b"{}".to_vec(),
    };
    let fail = || event(instance_event::Event::Failed(Failed { failure: Some(failure.clone()) }));
    client.ask(fail()).await;
    client.ask(fail()).await;
    assert_eq!(core.db.status(&claim.id).await, Status::Ended(Ending::Failed));
}

async fn events_and_looks_are_answered_and_heartbeats_are_not(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    let heartbeat = event(instance_event::Event::Heartbeat(Heartbeat {}));
    client.caller.send(heartbeat.into()).await.expect("the connection lives");
    let progress = Progress { done: 3, total: 9, message: "hashing".to_owned() };
    client.ask(event(instance_event::Event::Progress(progress))).await;
    let custom = CustomEvent { name: "paid".to_owned(), payload: Some(json("9")) };
    client.ask(event(instance_event::Event::Custom(custom))).await;
    assert!(matches!(client.ask(Operation::SignalAck(SignalAck { number: 1 })).await, Outcome::Acked(_)));
    let Outcome::Status(status) = client.ask(Operation::GetStatus(GetInstanceStatus {})).await else {
        panic!("another answer");
    };
    assert_eq!((status.status.as_str(), status.attempt, status.session), ("RUNNING", 1, 1));
    assert_eq!(status.now, db::START.0);
    assert_eq!(core.db.timeline(&claim.id).await, ["started", "claimed", "registered", "progress", "custom"]);
}

/// The old connection still stands while the same process registers again, or a thief of its token.
async fn invariant_2_nothing_of_an_older_session_is_stored(db: TestDb) {
    let core = Core::new(db);
    let (old, claim) = core.running("a").await;
    let new = core.connect().await;
    assert_eq!(new.register(&claim).await.session, 2);
    assert_fenced(&core, &old, &claim).await;
    assert_eq!(core.handle.sessions(), 1);
    assert!(!new.save(step("new", "1")).await.existed);
}

async fn invariant_2_nothing_of_an_older_attempt_is_stored(db: TestDb) {
    let core = Core::new(db);
    let (old, claim) = core.running("a").await;
    core.db.store.exited(claim.attempt_ref(), db::exit()).await.expect("accounted");
    let next = relaunch(&core).await;
    let new = core.connect().await;
    assert_eq!(new.register(&next).await.attempt, 2);
    assert_fenced(&core, &old, &claim).await;
    let late = core.connect().await.refused(register(&claim)).await;
    assert_eq!(late.code, "FENCED");
    assert!(!new.save(step("new", "1")).await.existed);
}

/// As before, but the cores know of each other only what the database says.
async fn invariant_2_another_core_fences_too(db: TestDb) {
    let mut core = Core::new(db);
    let replica = core.replica().await;
    let (old, claim) = core.running("a").await;
    let new = core.connect_to(replica.address()).await;
    assert_eq!(new.register(&claim).await.session, 2);
    assert_fenced(&core, &old, &claim).await;
    assert!(!new.save(step("new", "1")).await.existed);
    assert_eq!(replica.sessions(), 1);
}

/// The wake after the crash, claimed by the same node.
async fn relaunch(core: &Core) -> Claim {
    core.db.advance(Duration::from_mins(1));
    let lease = core.db.node("node-a").await;
    core.db.claim_one(&lease).await
}

/// Sends every kind of write; each is refused, or the connection is gone already. Nothing is stored.
async fn assert_fenced(core: &Core, old: &Client, claim: &Claim) {
    core.db.send(&claim.id, "news").await;
    let before = (core.db.life(&claim.id).await, core.db.timeline(&claim.id).await);
    let writes = [
        Operation::Checkpoint(step("old", "1")),
        Operation::Checkpoint(checkpoint("old", "due", checkpoint::Value::DueInMicros(1))),
        Operation::Checkpoint(checkpoint("old", "due", checkpoint::Value::DueAt(1))),
        Operation::Checkpoint(checkpoint("old", "signal", checkpoint::Value::TakeSignal("news".to_owned()))),
        Operation::Checkpoint(checkpoint("old", "cancelled", checkpoint::Value::FeelCancel(true))),
        sleep(i64::MAX),
        event(instance_event::Event::Progress(Progress::default())),
        event(instance_event::Event::Custom(CustomEvent {
            name: "old".to_owned(),
            payload: Some(json("1")),
        })),
        complete("1"),
        event(instance_event::Event::Failed(Failed {
            failure: Some(Failure { code: "OLD".to_owned(), ..Failure::default() }),
        })),
    ];
    for write in writes {
        match old.call(write.clone()).await {
            Ok(Outcome::Error(error)) => assert_eq!(error.code, "FENCED", "{write:?}"),
            Err(CallError::Lost { .. }) => {}
            other => panic!("{write:?} was answered {other:?}"),
        }
    }
    assert!(old.ended().await.contains("took over"), "the old connection ends and says why");
    assert_eq!((core.db.life(&claim.id).await, core.db.timeline(&claim.id).await), before);
    let stored = core.db.store.checkpoints(&tenant(), &claim.id, 0, 100, false).await.expect("a page");
    assert_eq!(stored.checkpoints, []);
    let signals = core.db.store.signals(&tenant(), &claim.id, 0, 10).await.expect("signals");
    assert!(signals.iter().all(|signal| signal.consumed_by.is_none()));
}

fn suspended(outcome: Outcome) -> suspend_outcome::Kind {
    match outcome {
        Outcome::Suspend(answer @ SuspendOutcome { .. }) => answer.kind(),
        other => panic!("core answered {other:?}"),
    }
}

fn sleep(due_at: i64) -> Operation {
    let wait = Wait { name: "nap".to_owned(), due_at: Some(due_at), ..Wait::default() };
    Operation::Suspend(Suspend { waits: vec![wait] })
}

fn complete(output: &str) -> Operation {
    event(instance_event::Event::Completed(Completed { output: Some(json(output)) }))
}

fn event(event: instance_event::Event) -> Operation {
    Operation::Event(InstanceEvent { event: Some(event) })
}

fn get(name: &str) -> Operation {
    Operation::GetCheckpoint(GetCheckpoint { operation: Some(operation(name)) })
}

fn stored(bytes: &Bytes) -> StoredCheckpoint {
    StoredCheckpoint::decode(bytes.clone()).expect("a checkpoint")
}

fn names(checkpoints: &[Bytes]) -> Vec<String> {
    checkpoints.iter().map(|bytes| stored(bytes).operation.expect("a name").name).collect()
}

fn bytes(stored: &StoredCheckpoint) -> &[u8] {
    match &stored.value {
        Some(stored_checkpoint::Value::Payload(payload)) => &payload.data,
        other => panic!("stored is {other:?}"),
    }
}
