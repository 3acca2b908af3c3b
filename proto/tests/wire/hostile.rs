//! Peers that stall, lie or shout: each costs a bounded amount and loses only its own connection.

use std::time::Duration;

use dormouse_proto::call::{CallError, Callee, Caller, InstanceProtocol};
use dormouse_proto::frame;
use dormouse_proto::limits;
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use crate::pair::{Pair, Place, echo, hello, request, soon, told};

/// A client that speaks by hand, after its hello.
async fn by_hand(place: &Place) -> (Connection, SendStream, Callee<InstanceProtocol>) {
    let (client, stream, _, callee) = by_hand_with_answers(place).await;
    (client, stream, callee)
}

async fn by_hand_with_answers(
    place: &Place,
) -> (Connection, SendStream, RecvStream, Callee<InstanceProtocol>) {
    let (client, server) = place.connection().await;
    let (mut stream, answers) = client.open_bi().await.expect("a stream");
    let mut greeting = hello(1);
    greeting.id = 1;
    stream.write_all(&frame::encode(&greeting).expect("a frame")).await.expect("the server is there");
    let callee = Callee::accept(server).await.expect("a hello");
    callee.trust();
    (client, stream, answers, callee)
}

async fn assert_broken(callee: &mut Callee<InstanceProtocol>, client: &Connection, says: &str) {
    let broken = soon("the end", callee.next()).await;
    let Err(CallError::Malformed { reason }) = broken else { panic!("{broken:?}") };
    assert!(reason.contains(says), "{reason}");
    let closed = soon("the client to hear of it", client.closed()).await.to_string();
    assert!(closed.contains(says), "{closed}");
}

#[tokio::test]
async fn a_frame_above_the_limit_ends_the_connection() {
    let place = Place::new();
    let (client, mut stream, mut callee) = by_hand(&place).await;
    let above = u32::try_from(limits::FRAME_MAX_BYTES + 1).expect("small");
    stream.write_all(&above.to_be_bytes()).await.expect("the server is there");
    assert_broken(&mut callee, &client, "at most 262144 are allowed").await;
}

#[tokio::test]
async fn a_large_frame_above_its_limit_ends_the_connection() {
    let place = Place::new();
    let (client, _stream, mut callee) = by_hand(&place).await;
    let mut alone = client.open_uni().await.expect("a stream");
    alone.write_all(&u32::MAX.to_be_bytes()).await.expect("the server is there");
    assert_broken(&mut callee, &client, "at most 4259840 are allowed").await;
}

#[tokio::test]
async fn a_second_frame_behind_a_large_one_ends_the_connection() {
    let place = Place::new();
    let (client, _stream, mut callee) = by_hand(&place).await;
    let mut frames = frame::encode(&request("one", 1)).expect("a frame");
    frames.extend(frame::encode(&request("two", 1)).expect("a frame"));
    client.open_uni().await.expect("a stream").write_all(&frames).await.expect("the server is there");
    assert_broken(&mut callee, &client, "a frame of").await;
}

#[tokio::test]
async fn garbage_and_half_a_frame_end_the_connection() {
    for (bytes, says) in
        [(&b"\0\0\0\x02\xff\xff"[..], "no message"), (b"\0\0\0\x02", "ended inside"), (b"\0", "inside")]
    {
        let place = Place::new();
        let (client, mut stream, mut callee) = by_hand(&place).await;
        stream.write_all(bytes).await.expect("the server is there");
        stream.finish().expect("the stream is open");
        assert_broken(&mut callee, &client, says).await;
    }
}

#[tokio::test]
async fn a_request_with_the_id_of_pushes_ends_the_connection() {
    let place = Place::new();
    let (client, mut stream, mut callee) = by_hand(&place).await;
    stream
        .write_all(&frame::encode(&request("id 0", 1)).expect("a frame"))
        .await
        .expect("the server is there");
    assert_broken(&mut callee, &client, "id 0").await;
}

/// Large frames that are promised and never come hold the connection's own budget, and no one else's.
#[tokio::test]
async fn stalled_frames_cost_only_their_own_connection() {
    let place = Place::new();
    let (client, mut stream, mut callee) = by_hand(&place).await;
    let mut stalled = Vec::new();
    for _ in 0..limits::BULK_STREAMS {
        let mut alone = client.open_uni().await.expect("a stream");
        let promised = u32::try_from(limits::BULK_FRAME_MAX_BYTES).expect("small");
        alone.write_all(&promised.to_be_bytes()).await.expect("the server is there");
        stalled.push(alone);
    }
    let mut small = request("small", 1);
    small.id = 2;
    stream.write_all(&frame::encode(&small).expect("a frame")).await.expect("the server is there");
    let call = soon("the small frame beside the stalled ones", callee.next()).await;
    drop(call.expect("a request").expect("a request"));

    let Pair { caller, callee: mut other, .. } = place.pair().await;
    let server = async {
        let call = other.next().await.expect("a request").expect("a request");
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
    };
    let (answer, ()) = soon("the other connection", async {
        tokio::join!(caller.call(request("other", limits::PAYLOAD_MAX_BYTES)), server)
    })
    .await;
    assert_eq!(told(&answer.expect("an answer")).1, limits::PAYLOAD_MAX_BYTES);
}

/// A client that sends requests and reads no answers.
#[tokio::test]
async fn a_client_that_reads_nothing_stops_being_served() {
    let place = Place::new();
    let (client, mut stream, _unread, mut callee) = by_hand_with_answers(&place).await;
    let mut flood = JoinSet::new();
    flood.spawn(async move {
        for id in 2.. {
            let mut frame = request("flood", 200_000);
            frame.id = id;
            let bytes = frame::encode(&frame).expect("a frame");
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    // Answers pile up until the windows are full; then no further request is handed out.
    let mut replies = JoinSet::new();
    let handed_out = async {
        loop {
            let call = callee.next().await.expect("a request").expect("a request");
            let answer = echo(&call.frame);
            replies.spawn(call.reply(answer));
        }
    };
    let stalled = tokio::time::timeout(Duration::from_secs(3), handed_out).await;
    assert!(stalled.is_err());
    while replies.try_join_next().is_some() {}
    let in_flight = limits::BYTES_IN_FLIGHT + usize::try_from(limits::SEND_WINDOW_BYTES).expect("small");
    assert!(replies.len() <= in_flight / 200_000 + 20, "{} answers wait for a silent client", replies.len());
    client.close(0u32.into(), b"");
    soon("the flood to end", flood.join_next()).await.expect("a task").expect("no panic");
}

/// Time is virtual: the runtime jumps to the next timer when nothing else is to do.
#[tokio::test]
async fn a_frame_that_never_ends_ends_the_connection() {
    let place = Place::new();
    let (client, mut stream, mut callee) = by_hand(&place).await;
    stream.write_all(b"\0\0\0\x09abc").await.expect("the server is there");
    tokio::time::pause();
    let broken = callee.next().await;
    let Err(CallError::Malformed { reason }) = broken else { panic!("{broken:?}") };
    assert!(reason.contains("60s"), "{reason}");
    drop(client);
}

#[tokio::test]
async fn a_client_that_says_no_hello_is_not_waited_for() {
    let place = Place::new();
    let (client, server) = place.connection().await;
    tokio::time::pause();
    let refused = Callee::<InstanceProtocol>::accept(server).await;
    assert!(matches!(refused, Err(CallError::Malformed { .. })), "{refused:?}");
    drop(client);
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left() {
    for (bytes, says) in [(&b"\xff\xff\xff\xff"[..], "at most"), (b"\0\0\0\x02\xff\xff", "no message")] {
        let place = Place::new();
        let (client, server) = place.connection().await;
        let (caller, _pushes) = Caller::<InstanceProtocol>::open(client, hello(1)).await.expect("a stream");
        let lie = async {
            let (mut stream, receiver) = server.accept_bi().await.expect("a stream");
            stream.write_all(bytes).await.expect("the client is there");
            (stream, receiver)
        };
        let (answer, _streams) =
            soon("the end", async { tokio::join!(caller.call(request("lied to", 1)), lie) }).await;
        let Err(CallError::Malformed { reason }) = answer else { panic!("{answer:?}") };
        assert!(reason.contains(says), "{reason}");
        soon("the server to hear of it", server.closed()).await;
    }
}
