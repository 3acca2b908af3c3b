//! Peers that stall, lie or shout at running services: each costs a bounded amount, is closed with
//! a reason or answered with a code, and nobody else notices.

use std::{fs, net::UdpSocket};

use dormouse_management_sdk::{StartInstance, Status};
use dormouse_proto::{instance, limits, management};
use dormouse_tests::{
    cluster::{Cluster, Database, Part},
    fault,
    process::Pid,
    stranger::{Door, Stranger, announce, framed},
};
use tokio::task::JoinSet;

/// Sleeps once and ends.
const PROGRAM: &str = "sleeper";

/// Bytes of memory that a process has in use.
fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.number())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    let kib: u64 = line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}

/// Whoever behaves well is served: a whole life of an instance, from its start to its output.
async fn assert_served(cluster: &Cluster, id: &str) {
    cluster.client().health().await.expect("the environment answers");
    let input = serde_json::json!({ "sleeps": 1, "pause_ms": 1 });
    cluster.start(StartInstance::of(PROGRAM).id(id).input(&input).expect("JSON")).await;
    cluster.until_ended(id, Status::Completed).await;
}

async fn fresh() -> Cluster {
    let cluster = Cluster::up(Database::Sqlite).await;
    cluster.push(PROGRAM).await;
    assert_served(&cluster, "before").await;
    cluster
}

#[tokio::test]
async fn a_hundred_peers_announce_frames_and_never_send_them() {
    const PEERS: usize = 100;
    let mut cluster = fresh().await;
    let (data, service) = (cluster.data_dir(), cluster.service(Part::Both).pid());
    let before = resident(service);
    let mut peers = Vec::new();
    for door in Door::ALL {
        let mut coming = JoinSet::new();
        for _ in 0..PEERS {
            let data = data.clone();
            coming.spawn(async move {
                let mut peer = door.greet(&data).await;
                peer.write(&announce(limits::FRAME_MAX_BYTES)).await;
                let mut large = Vec::new();
                if door == Door::Environment {
                    for _ in 0..limits::BULK_STREAMS {
                        let mut stream = peer.connection.open_uni().await.expect("it proved itself");
                        drop(stream.write_all(&announce(limits::BULK_FRAME_MAX_BYTES)).await);
                        large.push(stream);
                    }
                }
                (peer, large)
            });
        }
        peers.extend(coming.join_all().await);
    }
    // Long before the announced frames are given up.
    let meanwhile = tokio::time::timeout(limits::FRAME_TIMEOUT / 2, assert_served(&cluster, "meanwhile"));
    meanwhile.await.expect("whoever announces takes nothing from others");
    // What all of them announced is 7 GiB.
    let grown = resident(service).saturating_sub(before);
    assert!(grown < 150 << 20, "{grown} bytes of memory for {} silent peers", peers.len());
    // Core knows nothing of its strangers: it waits ten seconds for their registration.
    for (peer, _) in &peers[..PEERS] {
        let reason = peer.until_closed().await;
        assert!(reason.contains("no registration within 10s"), "{reason}");
    }
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn a_stranger_cannot_send_a_large_frame() {
    let cluster = fresh().await;
    let peer = Door::Core.greet(&cluster.data_dir()).await;
    let opened = peer.connection.open_uni().await;
    assert!(opened.is_err(), "a stranger may open a stream for large frames");
    let reason = peer.until_closed().await;
    assert!(reason.contains("no registration within 10s"), "{reason}");
}

#[tokio::test]
async fn frames_that_are_wrong_end_their_connection_with_a_reason() {
    let cluster = fresh().await;
    let data = cluster.data_dir();
    let above = announce(limits::FRAME_MAX_BYTES + 1).to_vec();
    let cases: [(&str, Vec<u8>, bool, &str); 6] = [
        ("oversized", above, false, "at most 262144 are allowed"),
        ("the largest number", announce(0xffff_ffff).to_vec(), false, "at most 262144 are allowed"),
        ("truncated", [&announce(100)[..], b"half"].concat(), true, "ended inside a frame"),
        ("a truncated length", vec![0, 0], true, "ended inside a frame"),
        ("garbage", framed(&[0xff; 64]), false, "no message of this protocol"),
        ("id 0", framed(&[]), false, "id 0"),
    ];
    for door in Door::ALL {
        for (what, bytes, ends, says) in &cases {
            let mut peer = door.greet(&data).await;
            peer.write(bytes).await;
            if *ends {
                peer.requests.finish().expect("the stream is open");
            }
            let reason = peer.until_closed().await;
            assert!(reason.contains(says), "{door:?}, {what}: {reason}");
        }
        // The same instead of a hello.
        for (what, bytes, says) in [
            ("garbage", framed(&[0xff; 64]), "no message of this protocol"),
            ("no hello", framed(&[8, 1]), "the first frame is no hello"),
            ("oversized", announce(0xffff_ffff).to_vec(), "at most 262144 are allowed"),
        ] {
            let mut peer = door.connect(&data).await;
            peer.write(&bytes).await;
            let reason = peer.until_closed().await;
            assert!(reason.contains(says), "{door:?}, {what}: {reason}");
        }
    }
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn random_bytes_and_datagrams_harm_nobody() {
    const ROUNDS: usize = 50;
    let cluster = fresh().await;
    let (data, mut random) = (cluster.data_dir(), fault::random());
    let mut bytes = |most: usize| -> Vec<u8> {
        let mut bytes = vec![0; random.usize(1..most)];
        random.fill(&mut bytes);
        bytes
    };
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for door in Door::ALL {
        let address = door.address(&data);
        for round in 0..ROUNDS {
            let mut noise = bytes(1400);
            // A third looks like the first packet of a connection, a third like a later one.
            noise[0] = [0xc3, 0x43, noise[0]][round % 3];
            socket.send_to(&noise, &address).expect("loopback takes it");
        }
        let mut peers = Vec::new();
        for round in 0..ROUNDS {
            let mut peer = if round % 2 == 0 { door.greet(&data).await } else { door.connect(&data).await };
            peer.write(&bytes(4096)).await;
            peers.push(peer);
        }
        // And as the body of a frame, which is then read as a message.
        for _ in 0..ROUNDS {
            let mut peer = door.greet(&data).await;
            peer.write(&framed(&bytes(200))).await;
            peers.push(peer);
        }
        assert_served(&cluster, &format!("among-{}", peers.len() + usize::from(door == Door::Core))).await;
    }
}

/// The error that answers the request `frame`, which has the id 2.
async fn refusal_of_core(peer: &mut Stranger, frame: &[u8]) -> instance::Error {
    peer.write(&framed(frame)).await;
    let answer: instance::ServerFrame = peer.read().await.expect("an answer");
    match answer.outcome {
        Some(instance::server_frame::Outcome::Error(error)) => error,
        other => panic!("answered {other:?}"),
    }
}

async fn refusal_of_environment(peer: &mut Stranger, frame: &[u8]) -> management::Error {
    peer.write(&framed(frame)).await;
    let answer: management::ServerFrame = peer.read().await.expect("an answer");
    match answer.outcome {
        Some(management::server_frame::Outcome::Error(error)) => error,
        other => panic!("answered {other:?}"),
    }
}

/// Field 1 (the id) is 2; field 999 is an operation that no release knows, of three bytes.
const UNKNOWN: &[u8] = b"\x08\x02\xba\x3e\x03abc";
/// A request with an id and nothing else.
const EMPTY: &[u8] = b"\x08\x02";

#[tokio::test]
async fn what_no_release_knows_is_unimplemented() {
    let cluster = fresh().await;
    let data = cluster.data_dir();
    for frame in [UNKNOWN, EMPTY] {
        let refusal = refusal_of_core(&mut Door::Core.greet(&data).await, frame).await;
        assert_eq!(refusal.code, "UNIMPLEMENTED", "{}", refusal.message);
        let refusal = refusal_of_environment(&mut Door::Environment.greet(&data).await, frame).await;
        assert_eq!(refusal.code, "UNIMPLEMENTED", "{}", refusal.message);
        assert!(refusal.message.contains("release"), "{}", refusal.message);
    }
    // A hello again and again is a request like another: refused, and without an effect.
    let mut peer = Door::Environment.greet(&data).await;
    for _ in 0..1_000 {
        peer.write(&Door::Environment.hello()).await;
        let answer: management::ServerFrame = peer.read().await.expect("an answer");
        let Some(management::server_frame::Outcome::Error(error)) = answer.outcome else {
            panic!("answered {answer:?}");
        };
        assert_eq!(error.code, "INVALID_ARGUMENT", "{}", error.message);
    }
    let mut peer = Door::Core.greet(&data).await;
    for _ in 0..20 {
        peer.write(&Door::Core.hello()).await;
    }
    let reason = peer.until_closed().await;
    assert!(reason.contains("no registration among its first 16 requests"), "{reason}");
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn a_text_that_is_no_utf_8_is_told_by_its_field() {
    let cluster = fresh().await;
    let data = cluster.data_dir();
    // Operation 22, `list`, with its field 1, `status`: two bytes that no text holds.
    let list = b"\x08\x02\xb2\x01\x04\x0a\x02\xff\xfe";
    let mut peer = Door::Environment.greet(&data).await;
    peer.write(&framed(list)).await;
    let reason = peer.until_closed().await;
    assert!(reason.contains("ListInstances.status") && reason.contains("UTF-8"), "{reason}");
    // Operation 3, `register`, with its field 2, `instance_id`.
    let register = b"\x08\x02\x1a\x04\x12\x02\xff\xfe";
    let mut peer = Door::Core.greet(&data).await;
    peer.write(&framed(register)).await;
    let reason = peer.until_closed().await;
    assert!(reason.contains("RegisterInstance.instance_id") && reason.contains("UTF-8"), "{reason}");
    assert_served(&cluster, "after").await;
}
