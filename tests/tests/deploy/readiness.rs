//! `Type=notify`: each program says when it answers, and that it was asked to end.

use std::{os::unix::net::UnixDatagram, path::Path, process::Command};

use dormouse_tests::{binaries::binary, fault, process::Service, wait};
use nix::sys::signal::Signal;

const ANY: &str = "127.0.0.1:0";

/// A service manager's end of it.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn listen(dir: &Path) -> Self {
        let path = dir.join("notify").display().to_string();
        let socket = UnixDatagram::bind(&path).expect("own directory");
        socket.set_nonblocking(true).expect("a socket of ours");
        Self { socket, path }
    }

    async fn hears(&self, wanted: &str) {
        let heard = wait::until(&format!("the service says {wanted}"), async || {
            let mut bytes = [0; 512];
            self.socket.recv(&mut bytes).map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned())
        })
        .await;
        assert_eq!(heard.trim(), wanted);
    }
}

/// As a container's health check asks; answers the exit code.
fn listening(part: &str, data: &[String]) -> Option<i32> {
    let mut command = Command::new(binary("dormouse"));
    command.args(["health", "--listening", part]).args(data);
    command.output().expect("it is built").status.code()
}

async fn tells_of_its_life(program: &str, part: &str, arguments: &[&str], beside: &[&str]) {
    let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a directory");
    let data = ["--data-dir".to_owned(), dir.path().join("data").display().to_string()];
    let start = |program: &str, arguments: &[&str], variables: &[(String, String)]| {
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).chain(data.clone()).collect();
        Service::start(&binary(program), &arguments, variables, &dir.path().join(format!("{program}.log")))
    };
    let _beside = beside.split_first().map(|(program, arguments)| start(program, arguments, &[]));
    let manager = Manager::listen(dir.path());
    let variables = [("NOTIFY_SOCKET".to_owned(), manager.path.clone())];
    let mut service = start(program, arguments, &variables);
    manager.hears("READY=1").await;
    assert_eq!(listening(part, &data), Some(0), "a service that is ready accepts connections");
    fault::send(service.pid(), Signal::SIGTERM);
    manager.hears("STOPPING=1").await;
    assert!(service.until_ended().await.success());
    assert_eq!(listening(part, &data), Some(4), "nobody is there");
}

#[tokio::test]
async fn both_services_in_one() {
    tells_of_its_life("dormouse", "environment", &["up", "--core", ANY, "--environment", ANY], &[]).await;
}

#[tokio::test]
async fn core() {
    tells_of_its_life("dormouse-core", "core", &["--listen", ANY], &[]).await;
}

#[tokio::test]
async fn environment() {
    tells_of_its_life(
        "dormouse-environment",
        "environment",
        &["--listen", ANY],
        &["dormouse-core", "--listen", ANY],
    )
    .await;
}
