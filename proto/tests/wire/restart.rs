//! What a client notices of a server that was killed and came back.

use dormouse_proto::call::{CallError, Callee, Caller, InstanceProtocol};
use dormouse_proto::endpoint::{self, CORE_NAME};
use dormouse_proto::identity::{Authority, Role};
use tokio::runtime;

use crate::pair::{LOOPBACK, hello, request, soon};

#[test]
fn a_server_that_came_back_resets_connections_of_its_last_life() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(&folder.path().join("pki")).expect("an authority");
    let identity = authority.identity(Role::Core).expect("core's certificate");
    let life =
        || runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");

    let (first, client) = (life(), life());
    let serve =
        |address| endpoint::server_endpoint::<InstanceProtocol>(address, &identity, None).expect("a server");
    let server = first.block_on(async { serve(LOOPBACK) });
    let address = server.local_addr().expect("the server is bound");
    let accepting = first.spawn(async move {
        let connection = server.accept().await.expect("a client").await.expect("a handshake");
        let callee = Callee::<InstanceProtocol>::accept(connection).await.expect("a hello");
        // Held until this life is cut off.
        std::future::pending::<()>().await;
        drop((callee, server));
    });
    let caller = client.block_on(async {
        let endpoint = endpoint::client_endpoint().expect("a client");
        let config =
            endpoint::client_config::<InstanceProtocol>(authority.certificate_pem(), None).expect("TLS");
        let address = address.to_string();
        let connected = endpoint::connect(&endpoint, config, &address, CORE_NAME).await;
        let connection = connected.expect("the server is trusted");
        Caller::<InstanceProtocol>::open(connection, hello(1)).await.expect("a stream").0
    });

    // As if killed: its tasks are gone, nobody says goodbye.
    first.shutdown_background();
    assert!(accepting.is_finished() || client.block_on(accepting).is_err());
    let second = life();
    let _server = loop {
        let _inside = second.enter();
        // The port is free once the last task of the first life is dropped.
        if let Ok(server) = endpoint::server_endpoint::<InstanceProtocol>(address, &identity, None) {
            break server;
        }
        std::thread::yield_now();
    };

    let answer = client.block_on(soon("the reset", caller.call(request("first", 1))));
    let Err(CallError::Lost { reason }) = answer else { panic!("{answer:?}") };
    assert!(reason.contains("restarted"), "{reason}");
}
