//! What is missing, malformed, too large or unknown is refused by name, and has no effect (invariant 9).

use dormouse_proto::call::CallError;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::{
    Checkpoint, ClientFrame, Completed, CustomEvent, Failed, Failure, GetCheckpoint, Hello, InstanceEvent,
    OperationName, RegisterInstance, Suspend, Wait, checkpoint, instance_event,
};
use dormouse_proto::limits;

use crate::core::{Core, checkpoint, json, register, step};
use crate::db::{TestDb, tenant};

on_both! {
    who_has_no_token_of_ours_is_not_let_in,
    nothing_is_answered_before_the_registration_or_twice,
    fields_are_refused_by_name,
    payloads_pass_up_to_their_limit,
}

async fn who_has_no_token_of_ours_is_not_let_in(db: TestDb) {
    let core = Core::new(db);
    let claim = core.claimed("a").await;
    let client = core.connect().await;
    let said = |token: Vec<u8>, id: &str, attempt: u32| {
        Operation::Register(RegisterInstance { token, instance_id: id.to_owned(), attempt, stream: false })
    };
    let right = claim.token.0.to_vec();
    for (operation, code, says) in [
        (said(vec![7; 32], "a", 1), "UNAUTHENTICATED", "token is not known"),
        (said(Vec::new(), "a", 1), "UNAUTHENTICATED", "register.token is 0 bytes long"),
        (said(right.clone(), "b", 1), "UNAUTHENTICATED", "attempt 1 of instance \"b\""),
        (said(right, "a", 2), "UNAUTHENTICATED", "attempt 2 of instance \"a\""),
    ] {
        let error = client.refused(operation).await;
        assert_eq!(error.code, code, "{}", error.message);
        assert!(error.message.contains(says), "{}", error.message);
        assert!(!error.retryable);
    }
    // Nothing of that opened a session.
    assert_eq!(client.register(&claim).await.session, 1);
}

async fn nothing_is_answered_before_the_registration_or_twice(db: TestDb) {
    let core = Core::new(db);
    let claim = core.claimed("a").await;
    let client = core.connect().await;
    assert_eq!(client.refused(Operation::Checkpoint(step("early", "1"))).await.code, "UNAUTHENTICATED");
    assert_eq!(client.refused_frame(ClientFrame::default()).await.code, "UNIMPLEMENTED");
    client.register(&claim).await;
    assert_eq!(client.refused(register(&claim)).await.code, "FAILED_PRECONDITION");
    assert_eq!(client.refused(Operation::Hello(Hello::default())).await.code, "INVALID_ARGUMENT");
    assert_eq!(client.refused_frame(ClientFrame::default()).await.code, "UNIMPLEMENTED");
    assert_eq!(core.connect().await.register(&claim).await.session, 2);
}

async fn fields_are_refused_by_name(db: TestDb) {
    let core = Core::new(db);
    let (client, claim) = core.running("a").await;
    let named =
        |name: &str, key: &str| Some(OperationName { name: name.to_owned(), key: key.to_owned(), slot: 0 });
    let save = |change: fn(&mut Checkpoint)| {
        let mut request = step("a", "1");
        change(&mut request);
        Operation::Checkpoint(request)
    };
    let suspend = |wait: Wait| Operation::Suspend(Suspend { waits: vec![wait] });
    let event = |event: Option<instance_event::Event>| Operation::Event(InstanceEvent { event });
    let failure = |code: &str| {
        let failure = Some(Failure { code: code.to_owned(), ..Failure::default() });
        Some(instance_event::Event::Failed(Failed { failure }))
    };
    let long = "x".repeat(201);
    let cases = [
        (save(|request| request.operation = None), "checkpoint.operation is missing"),
        (save(|request| request.value = None), "checkpoint.value is missing"),
        (save(|request| request.kind = "magic".to_owned()), "checkpoint.kind is \"magic\""),
        (save(|request| request.operation = Some(OperationName::default())), "operation.name is empty"),
        (
            Operation::GetCheckpoint(GetCheckpoint { operation: named(&long, "") }),
            "operation.name has 201 bytes",
        ),
        (
            Operation::GetCheckpoint(GetCheckpoint { operation: named("a\u{7}", "") }),
            "operation.name contains",
        ),
        (Operation::GetCheckpoint(GetCheckpoint { operation: named("a", "\0") }), "operation.key contains"),
        (Operation::GetCheckpoint(GetCheckpoint { operation: None }), "get_checkpoint.operation is missing"),
        (
            Operation::Checkpoint(checkpoint("a", "due", checkpoint::Value::DueInMicros(-1))),
            "checkpoint.due_in_micros is -1",
        ),
        (
            Operation::Checkpoint(checkpoint("a", "signal", checkpoint::Value::TakeSignal(String::new()))),
            "checkpoint.take_signal is empty",
        ),
        (
            Operation::Checkpoint(checkpoint("a", "cancelled", checkpoint::Value::FeelCancel(false))),
            "checkpoint.feel_cancel is false",
        ),
        (
            save(|request| {
                if let Some(checkpoint::Value::Payload(payload)) = &mut request.value {
                    payload.encoding = "xml".to_owned();
                }
            }),
            "checkpoint.payload is encoded as \"xml\"",
        ),
        (Operation::Suspend(Suspend { waits: Vec::new() }), "suspend.waits is missing"),
        (suspend(Wait::default()), "wait.due_at is missing"),
        (suspend(Wait { due_at: Some(1), ..Wait::default() }), "wait.name is empty"),
        (suspend(Wait { resume: true, due_at: Some(1), ..Wait::default() }), "wait.resume is true beside"),
        (
            suspend(Wait { name: "a".to_owned(), signal: Some(String::new()), ..Wait::default() }),
            "wait.signal is empty",
        ),
        (event(None), "event.event is missing"),
        (
            event(Some(instance_event::Event::Completed(Completed { output: None }))),
            "completed.output is missing",
        ),
        (event(Some(instance_event::Event::Failed(Failed { failure: None }))), "failed.failure is missing"),
        (event(failure("")), "failed.failure.code is missing"),
        (event(failure(&long)), "failed.failure.code is 201 bytes long"),
        (
            event(Some(instance_event::Event::Custom(CustomEvent { name: "a".to_owned(), payload: None }))),
            "custom.payload is missing",
        ),
    ];
    for (operation, says) in cases {
        let error = client.refused(operation).await;
        assert_eq!(error.code, "INVALID_ARGUMENT", "{}", error.message);
        assert!(error.message.starts_with(says), "{} does not start with {says}", error.message);
    }
    let stored = core.db.store.checkpoints(&tenant(), &claim.id, 0, 10, false).await.expect("a page");
    assert_eq!(stored.checkpoints, []);
    assert_eq!(core.db.timeline(&claim.id).await, ["started", "claimed", "registered"]);
}

async fn payloads_pass_up_to_their_limit(db: TestDb) {
    let core = Core::new(db);
    let (client, _claim) = core.running("a").await;
    let largest = vec![b'1'; limits::PAYLOAD_MAX_BYTES];
    assert!(!client.save(step("largest", largest.clone())).await.existed);
    let again = client.save(step("largest", "1")).await;
    assert!(again.existed, "an answer of the largest size arrives too");
    let above = vec![b'1'; limits::PAYLOAD_MAX_BYTES + 1];
    let error = client.refused(Operation::Checkpoint(step("above", above))).await;
    assert_eq!(error.code, "INVALID_ARGUMENT");
    assert!(error.message.contains("at most 4194304 are allowed"), "{}", error.message);
    // What no frame can hold is not even sent; a peer that sends it all the same is refused at its length.
    let far_above = vec![b'1'; limits::BULK_FRAME_MAX_BYTES];
    let refused = client.call(Operation::Checkpoint(step("far above", far_above))).await;
    assert!(matches!(refused, Err(CallError::TooLarge { .. })), "{refused:?}");
    let output = Some(json(largest));
    let completed = instance_event::Event::Completed(Completed { output });
    client.ask(Operation::Event(InstanceEvent { event: Some(completed) })).await;
}
