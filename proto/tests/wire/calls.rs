//! Requests, answers and pushes between two ends that behave.

use dormouse_proto::call::{CallError, Closing};
use dormouse_proto::code::Code;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::instance::{Error, Inbox, InstanceEvent, ServerFrame, UnreadSignal};
use dormouse_proto::limits;
use tokio::task::JoinSet;

use crate::pair::{Pair, Place, echo, request, soon, told};

#[tokio::test]
async fn answers_find_their_calls_in_any_order() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let mut calls = JoinSet::new();
    for n in 0..limits::REQUESTS_IN_FLIGHT {
        let caller = caller.clone();
        calls.spawn(async move {
            let name = format!("call {n}");
            let answer = caller.call(request(&name, n)).await.expect("an answer");
            assert_eq!(told(&answer), (name, n));
        });
    }
    let mut waiting = Vec::new();
    while waiting.len() < limits::REQUESTS_IN_FLIGHT {
        let call =
            soon("all requests to be in flight", callee.next()).await.expect("a request").expect("a request");
        waiting.push(call);
    }
    for call in waiting.into_iter().rev() {
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
    }
    while let Some(call) = soon("the answers", calls.join_next()).await {
        call.expect("the call went well");
    }
}

#[tokio::test]
async fn more_requests_than_may_be_in_flight_wait_and_none_is_lost() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let many = limits::REQUESTS_IN_FLIGHT * 3;
    let server = async {
        for _ in 0..many {
            let call = callee.next().await.expect("a request").expect("a request");
            let answer = echo(&call.frame);
            call.reply(answer).await.expect("the client is there");
        }
    };
    let client = async {
        let mut calls = JoinSet::new();
        for n in 0..many {
            let caller = caller.clone();
            calls.spawn(async move {
                caller.call(request(&n.to_string(), 1000)).await.map(|answer| told(&answer))
            });
        }
        calls.join_all().await
    };
    let (answers, ()) = soon("the answers", async { tokio::join!(client, server) }).await;
    assert_eq!(answers.into_iter().filter_map(Result::ok).count(), many);
}

#[tokio::test]
async fn large_frames_travel_both_ways_beside_small_ones() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let sizes = [
        limits::PAYLOAD_MAX_BYTES,
        10,
        limits::FRAME_MAX_BYTES - 100,
        limits::FRAME_MAX_BYTES,
        limits::FRAME_MAX_BYTES + 1,
        limits::PAYLOAD_MAX_BYTES,
        0,
        limits::PAYLOAD_MAX_BYTES,
        limits::PAYLOAD_MAX_BYTES,
        limits::PAYLOAD_MAX_BYTES,
    ];
    let server = async {
        let mut replies = JoinSet::new();
        for _ in sizes {
            let call = callee.next().await.expect("a request").expect("a request");
            let answer = echo(&call.frame);
            replies.spawn(call.reply(answer));
        }
        for reply in replies.join_all().await {
            reply.expect("the client is there");
        }
    };
    let client = async {
        let calls = sizes.map(|size| {
            let caller = caller.clone();
            async move { told(&caller.call(request("large", size)).await.expect("an answer")).1 }
        });
        calls.into_iter().collect::<JoinSet<_>>().join_all().await
    };
    let (mut got, ()) = soon("the answers", async { tokio::join!(client, server) }).await;
    let mut expected = sizes.to_vec();
    expected.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn what_is_too_large_is_refused_where_it_is_made() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let refused = caller.call(request("too large", limits::BULK_FRAME_MAX_BYTES)).await;
    assert!(
        matches!(refused, Err(CallError::TooLarge { max: limits::BULK_FRAME_MAX_BYTES, .. })),
        "{refused:?}"
    );

    let server = async {
        let call = callee.next().await.expect("a request").expect("a request");
        let answer = echo(&request("too large", limits::BULK_FRAME_MAX_BYTES));
        call.reply(answer).await
    };
    let (answer, replied) =
        soon("an answer", async { tokio::join!(caller.call(request("small", 1)), server) }).await;
    assert!(matches!(replied, Err(CallError::TooLarge { .. })), "{replied:?}");
    assert_eq!(code(&answer.expect("an answer, though a refusal")), Code::Internal.as_str());
}

#[tokio::test]
async fn pushes_arrive_in_order_also_large_ones() {
    let Pair { mut pushes, callee, .. } = Place::new().pair().await;
    let replies = callee.replies();
    let inbox = |count: u64| {
        let unread = (0..count).map(|number| UnreadSignal { number, name: "signal".repeat(30) }).collect();
        ServerFrame::from(Outcome::Inbox(Inbox { paused: false, cancel: 0, unread }))
    };
    let sizes = [1, 10_000, 0, 3];
    let server = async {
        for size in sizes {
            replies.push(inbox(size)).await.expect("the client is there");
        }
    };
    let client = async {
        for size in sizes {
            assert_eq!(pushes.next().await.expect("a push"), inbox(size));
        }
    };
    soon("the pushes", async { tokio::join!(client, server) }).await;
}

#[tokio::test]
async fn pushes_that_nobody_reads_wait_at_the_server() {
    let Pair { caller, pushes, mut callee, .. } = Place::new().pair().await;
    let replies = callee.replies();
    let unread = vec![UnreadSignal { number: 1, name: "x".repeat(100_000) }];
    let inbox = ServerFrame::from(Outcome::Inbox(Inbox { paused: false, cancel: 0, unread }));
    // More than the windows and the client's queue take.
    let mut flood = JoinSet::new();
    flood.spawn(async move {
        for _ in 0..1000 {
            replies.push(inbox.clone()).await?;
        }
        Ok::<(), CallError>(())
    });
    let server = async {
        let call = callee.next().await.expect("a request").expect("a request");
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
    };
    let (answer, ()) = soon("an answer beside the pushes", async {
        tokio::join!(caller.call(request("beside", 5)), server)
    })
    .await;
    assert_eq!(told(&answer.expect("an answer")), ("beside".to_owned(), 5));
    assert!(flood.try_join_next().is_none(), "1000 pushes of 100 kB went where nobody reads");
    caller.close("seen enough");
    drop(pushes);
    assert!(soon("the flood to fail", flood.join_next()).await.expect("a task").expect("no panic").is_err());
}

#[tokio::test]
async fn a_dropped_call_forgets_its_answer_and_nothing_else() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    {
        let dropped = caller.call(request("dropped", limits::PAYLOAD_MAX_BYTES));
        let arrives = callee.next();
        tokio::select! {
            biased;
            _ = dropped => panic!("nobody has answered"),
            call = arrives => {
                let call = call.expect("a request").expect("a request");
                let answer = echo(&call.frame);
                call.reply(answer).await.expect("the client is there");
            }
        }
    }
    let server = async {
        let call = callee.next().await.expect("a request").expect("a request");
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
    };
    let (answer, ()) =
        soon("the next", async { tokio::join!(caller.call(request("next", 1)), server) }).await;
    assert_eq!(told(&answer.expect("an answer")).0, "next");
}

#[tokio::test]
async fn a_request_that_the_service_drops_is_answered_and_a_heartbeat_is_not() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let heartbeat = || InstanceEvent { event: None };
    let server = async {
        let call = callee.next().await.expect("a heartbeat").expect("a heartbeat");
        call.into_parts().1.dismiss();
        drop(callee.next().await.expect("a request").expect("a request"));
    };
    let client = async {
        let event = dormouse_proto::instance::client_frame::Operation::Event(heartbeat());
        caller.send(event.into()).await.expect("the server is there");
        caller.call(request("dropped by the service", 1)).await
    };
    let (answer, ()) = soon("an answer", async { tokio::join!(client, server) }).await;
    assert_eq!(code(&answer.expect("an answer, though a refusal")), Code::Internal.as_str());
}

#[tokio::test]
async fn a_lost_connection_fails_every_call_and_says_why() {
    let place = Place::new();
    let Pair { caller, mut pushes, mut callee, .. } = place.pair().await;
    let server = async {
        let call = callee.next().await.expect("a request").expect("a request");
        callee.replies().close(Closing::ShuttingDown, "core is restarting");
        drop(call);
    };
    let (lost, ()) = soon("the loss", async { tokio::join!(caller.call(request("lost", 1)), server) }).await;
    let Err(CallError::Lost { reason }) = lost else { panic!("{lost:?}") };
    assert!(reason.contains("core is restarting"), "{reason}");
    assert!(matches!(caller.call(request("later", 1)).await, Err(CallError::Lost { .. })));
    assert!(matches!(caller.closed().await, CallError::Lost { .. }));
    assert_eq!(soon("the end of the pushes", pushes.next()).await, None);
}

#[tokio::test]
async fn a_service_that_says_goodbye_lets_its_last_answers_arrive() {
    let Pair { caller, mut callee, .. } = Place::new().pair().await;
    let server = async {
        let call = callee.next().await.expect("a request").expect("a request");
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
        callee.replies().finish_and_close(Closing::ShuttingDown, "bye").await;
    };
    let client = caller.call(request("last", limits::FRAME_MAX_BYTES - 100));
    let (answer, ()) = soon("the last answer", async { tokio::join!(client, server) }).await;
    assert_eq!(told(&answer.expect("an answer")).0, "last");
    let CallError::Lost { reason } = soon("the end", caller.closed()).await else { panic!("lost, but how?") };
    assert!(reason.contains("bye"), "{reason}");
}

/// A process that has ended its instance leaves at once; core hears of it all the same.
#[tokio::test]
async fn a_client_that_leaves_is_heard_before_it_is_gone() {
    let Pair { caller, mut callee, connection, .. } = Place::new().pair().await;
    let sent = connection.stats().udp_tx.datagrams;
    caller.finish_and_close("completed").await;
    // An acknowledgement may have left beside it.
    assert!(connection.stats().udp_tx.datagrams > sent, "it left before it said so");
    assert!(matches!(soon("the goodbye", callee.next()).await, Ok(None)));
    // A second goodbye is no second wait.
    caller.finish_and_close("again").await;
}

#[tokio::test]
async fn the_connection_ends_with_its_last_handle() {
    let Pair { caller, pushes, mut callee, connection } = Place::new().pair().await;
    drop(connection);
    let other = caller.clone();
    drop(caller);
    drop(pushes);
    drop(other);
    assert!(matches!(soon("the end", callee.next()).await, Ok(None)));
}

fn code(frame: &ServerFrame) -> &str {
    match &frame.outcome {
        Some(Outcome::Error(Error { code, .. })) => code,
        other => panic!("the server answered {other:?}"),
    }
}
