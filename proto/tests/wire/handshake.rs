//! Who may talk to whom, and in which version.

use dormouse_proto::call::{CallError, Callee, Caller, InstanceProtocol, ManagementProtocol};
use dormouse_proto::code::{Code, Coded};
use dormouse_proto::endpoint::{self, CORE_NAME, ConnectError, ENVIRONMENT_NAME};
use dormouse_proto::identity::{Authority, Role};
use dormouse_proto::peer::Peer;
use rcgen::ExtendedKeyUsagePurpose;

use crate::pair::{LOOPBACK, Pair, Place, certificate, echo, hello, request, soon, told};

#[tokio::test]
async fn the_first_request_rides_with_the_hello() {
    let place = Place::new();
    let (client, server) = place.connection().await;
    let (caller, _pushes) =
        Caller::<InstanceProtocol>::open(client.clone(), hello(1)).await.expect("a stream");
    let serve = async {
        let mut callee = Callee::<InstanceProtocol>::accept(server).await.expect("a hello");
        let call = callee.next().await.expect("a request").expect("a request");
        let answer = echo(&call.frame);
        call.reply(answer).await.expect("the client is there");
        callee
    };
    let (answer, _callee) =
        soon("the answer", async { tokio::join!(caller.call(request("first", 1)), serve) }).await;
    assert_eq!(told(&answer.expect("an answer")).0, "first");
    assert_eq!(client.stats().frame_tx.stream, 1, "in one datagram"); // what is in several takes a frame in each
}

/// Datagrams that look for a path's size are many in the life of a short process.
#[tokio::test]
async fn one_probe_finds_the_size_of_the_path() {
    let Pair { caller, mut callee, connection, .. } = Place::new().pair().await;
    let serve = async {
        while let Ok(Some(call)) = callee.next().await {
            let answer = echo(&call.frame);
            call.reply(answer).await.expect("the client is there");
        }
    };
    let ask = async {
        while connection.stats().path.current_mtu < 1452 {
            caller.call(request("again", 1)).await.expect("an answer");
        }
        caller.close("found");
    };
    soon("a larger size", async { tokio::join!(serve, ask) }).await;
    assert_eq!(connection.stats().path.sent_plpmtud_probes, 1);
}

#[tokio::test]
async fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
    for version in [0, 2, u32::MAX] {
        let place = Place::new();
        let (client, server) = place.connection().await;
        let (caller, _pushes) =
            Caller::<InstanceProtocol>::open(client, hello(version)).await.expect("a stream");
        let (answer, accepted) = soon("the refusal", async {
            tokio::join!(caller.call(request("first", 1)), Callee::<InstanceProtocol>::accept(server))
        })
        .await;
        assert!(
            matches!(accepted, Err(CallError::Refused { code: Code::Unimplemented, .. })),
            "{accepted:?}"
        );
        let Err(CallError::Refused { code: Code::Unimplemented, message }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(
            message,
            format!(
                "version {version} of the instance protocol is not spoken here, version 1 is; use a release that \
                 speaks it"
            )
        );
        assert!(matches!(caller.closed().await, CallError::Refused { .. }));
    }
}

#[tokio::test]
async fn a_first_frame_that_is_no_hello_is_refused() {
    let place = Place::new();
    let (client, server) = place.connection().await;
    let opened = Caller::<InstanceProtocol>::open(client, request("no hello", 1)).await;
    let (caller, _pushes) = opened.expect("a stream");
    let accepted = soon("the refusal", Callee::<InstanceProtocol>::accept(server)).await;
    assert!(matches!(accepted, Err(CallError::Refused { code: Code::InvalidArgument, .. })), "{accepted:?}");
    let CallError::Refused { message, .. } = soon("the end", caller.closed()).await else {
        panic!("refused")
    };
    assert!(message.contains("version 1"), "{message}");
}

#[tokio::test]
async fn a_client_of_the_other_protocol_finds_nobody() {
    let place = Place::new();
    let accept = async { place.server.accept().await.expect("a client").await };
    let connect = place.connect::<ManagementProtocol>(place.authority.certificate_pem(), None, CORE_NAME);
    let (refused, accepted) = soon("the refusal", async { tokio::join!(connect, accept) }).await;
    assert!(matches!(refused, Err(ConnectError::Untrusted { .. })), "{refused:?}");
    assert_eq!(refused.map(drop).expect_err("refused").code(), Code::Unauthenticated);
    assert!(accepted.is_err());
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_trusted() {
    let place = Place::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = Authority::open_or_create(folder.path()).expect("another authority");
    for (pem, name) in
        [(other.certificate_pem(), CORE_NAME), (place.authority.certificate_pem(), ENVIRONMENT_NAME)]
    {
        let accept = async { place.server.accept().await.expect("a client").await };
        let connect = place.connect::<InstanceProtocol>(pem, None, name);
        let (refused, accepted) = soon("the refusal", async { tokio::join!(connect, accept) }).await;
        assert!(matches!(refused, Err(ConnectError::Untrusted { .. })), "{refused:?}");
        assert!(accepted.is_err());
    }
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says_or_nobody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    let identity = authority.identity(Role::Environment).expect("a certificate");
    let pem = authority.certificate_pem();
    let server =
        endpoint::server_endpoint::<ManagementProtocol>(LOOPBACK, &identity, Some(pem)).expect("a server");
    let address = server.local_addr().expect("bound").to_string();
    let client = endpoint::client_endpoint().expect("a client");
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let stranger = Authority::open_or_create(elsewhere.path()).expect("another authority");

    let shown_by =
        |name, days_left| certificate(folder.path(), name, ExtendedKeyUsagePurpose::ClientAuth, days_left);
    let shown = [
        (Some(authority.identity(Role::Administrator).expect("a certificate")), Some(Peer::Administrator)),
        (Some(authority.identity(Role::Core).expect("a certificate")), None),
        (Some(authority.identity(Role::Environment).expect("a certificate")), None),
        (Some(stranger.identity(Role::Administrator).expect("a certificate")), None),
        (Some(shown_by("somebody.dormouse", 9)), Some(Peer::Other)),
        (Some(shown_by("*.dormouse", 9)), Some(Peer::Other)),
        (Some(shown_by("administrator.dormouse", 9)), Some(Peer::Administrator)),
        (Some(shown_by("administrator.dormouse", -1)), None),
        (None, Some(Peer::Anonymous)),
    ];
    for (identity, expected) in shown {
        let config =
            endpoint::client_config::<ManagementProtocol>(pem, identity.as_ref()).expect("a configuration");
        let accept = async { server.accept().await.expect("a client").await };
        let connect = endpoint::connect(&client, config, &address, ENVIRONMENT_NAME);
        let (connected, accepted) = soon("the handshake", async { tokio::join!(connect, accept) }).await;
        assert_eq!(accepted.as_ref().ok().map(Peer::of), expected);
        // The client is done before the server has seen its certificate: it hears of the refusal after.
        if let (Ok(connection), None) = (connected, expected) {
            soon("the refusal", connection.closed()).await;
        }
    }
}

#[tokio::test]
async fn a_name_is_looked_up_and_an_unknown_one_says_so() {
    let place = Place::new();
    let port = place.server.local_addr().expect("bound").port();
    let config = || {
        endpoint::client_config::<InstanceProtocol>(place.authority.certificate_pem(), None)
            .expect("a configuration")
    };
    let accept = async { place.server.accept().await.expect("a client").await.expect("a handshake") };
    let address = format!("localhost:{port}");
    let connect = endpoint::connect(&place.client, config(), &address, CORE_NAME);
    let (connected, _accepted) = soon("the handshake", async { tokio::join!(connect, accept) }).await;
    connected.expect("localhost is here");
    let refused = endpoint::connect(&place.client, config(), "no port", CORE_NAME).await;
    assert!(matches!(refused, Err(ConnectError::Address { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_chosen_port_is_taken_again_while_it_is_free() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(&folder.path().join("pki")).expect("an authority");
    let identity = authority.identity(Role::Core).expect("a certificate");
    let file = folder.path().join("core.address");
    let start = || {
        endpoint::server_endpoint_remembered::<InstanceProtocol>(LOOPBACK, &file, &identity, None)
            .expect("a server")
            .local_addr()
            .expect("bound")
    };
    let first = start();
    assert_eq!(std::fs::read_to_string(&file).expect("written"), format!("{first}\n"));
    let occupied = {
        // quinn gives a socket back when the endpoint's task has ended.
        let mut socket = std::net::UdpSocket::bind(first);
        while socket.is_err() {
            tokio::task::yield_now().await;
            socket = std::net::UdpSocket::bind(first);
        }
        socket
    };
    drop(occupied);
    assert_eq!(start(), first);

    let taken = std::net::UdpSocket::bind(LOOPBACK).expect("a port");
    std::fs::write(&file, taken.local_addr().expect("bound").to_string()).expect("written");
    let other = start();
    assert_ne!(other, taken.local_addr().expect("bound"));
    assert_eq!(std::fs::read_to_string(&file).expect("written"), format!("{other}\n"));
}

/// Nothing here sets rustls's default provider of the process.
#[tokio::test]
async fn the_process_keeps_its_own_tls_provider() {
    let Pair { .. } = Place::new().pair().await;
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}
