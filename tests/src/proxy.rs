//! A network between services and their database that a test breaks: a proxy in front of a
//! PostgreSQL server, on a port of this machine.
//!
//! Bytes that are held back are not lost: when the fault is over they arrive, late, as a network
//! delivers what it had queued. So a commit that was given up long ago may still reach the server.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes pass.
    None,
    /// What the services say does not arrive.
    SilentServices,
    /// What the database says does not arrive.
    SilentDatabase,
    /// Each piece is this late, in both directions.
    Slow(Duration),
    /// Connections are reset, and new ones too.
    Refuse,
}

/// A proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    upstream: PgConnectOptions,
    fault: watch::Sender<Fault>,
    /// Each change resets the connections that there are.
    resets: watch::Sender<u64>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of the server that this URL names, by a socket or by address; passes everything.
    pub fn before(url: &str) -> Self {
        let upstream: PgConnectOptions = url.parse().expect("a URL of a database");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("own socket");
        let address = listener.local_addr().expect("it is bound");
        let (fault, stop) = (watch::Sender::new(Fault::None), CancellationToken::new());
        let resets = watch::Sender::new(0);
        let network = Network {
            target: Target::of(&upstream),
            fault: fault.subscribe(),
            resets: resets.subscribe(),
            stop: stop.clone(),
        };
        // Of its own: it works also while the test's runtime is busy.
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(network.run(listener));
        });
        Self { address, upstream, fault, resets, stop, thread: Some(thread) }
    }

    /// The same database, through the proxy.
    pub fn url(&self) -> String {
        let user = self.upstream.get_username();
        let database = self.upstream.get_database().expect("the URL names one");
        format!("postgres://{user}@{}/{database}?sslmode=disable", self.address)
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Resets every connection that there is; new ones are as the fault says.
    pub fn reset_all(&self) {
        self.resets.send_modify(|n| *n += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; another one would hide the test's.
            let _ = thread.join();
        }
    }
}

#[derive(Clone, Debug)]
enum Target {
    Socket(PathBuf),
    Address(String, u16),
}

impl Target {
    fn of(options: &PgConnectOptions) -> Self {
        let (host, port) = (options.get_host(), options.get_port());
        match options.get_socket() {
            Some(folder) => Self::Socket(folder.join(format!(".s.PGSQL.{port}"))),
            None if host.starts_with('/') => {
                Self::Socket(PathBuf::from(host).join(format!(".s.PGSQL.{port}")))
            }
            None => Self::Address(host.to_owned(), port),
        }
    }
}

/// The proxy's own end.
#[derive(Clone, Debug)]
struct Network {
    target: Target,
    fault: watch::Receiver<Fault>,
    resets: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl Network {
    async fn run(self, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("within a runtime");
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept() => {
                    let (service, _) = accepted.expect("own socket");
                    connections.spawn(self.clone().connection(service));
                }
            }
        }
    }

    /// One connection until it ends, or is reset.
    async fn connection(mut self, mut service: TcpStream) {
        self.resets.mark_unchanged();
        let (mut refused, mut resets) = (self.fault.clone(), self.resets.clone());
        tokio::select! {
            biased;
            _ = refused.wait_for(|fault| *fault == Fault::Refuse) => {}
            _ = resets.changed() => {}
            // Whoever hung up first ends the other.
            _ = self.relay(&mut service) => {}
        }
        // The drop then resets it instead of saying goodbye. An error: it is gone already.
        let _ = service.set_zero_linger();
    }

    async fn relay(&self, service: &mut TcpStream) -> io::Result<()> {
        match &self.target {
            Target::Socket(path) => self.between(service, UnixStream::connect(path).await?).await,
            Target::Address(host, port) => {
                self.between(service, TcpStream::connect((host.as_str(), *port)).await?).await
            }
        }
    }

    async fn between(
        &self,
        service: &mut TcpStream,
        database: impl AsyncRead + AsyncWrite,
    ) -> io::Result<()> {
        let (service_says, service_hears) = service.split();
        let (database_says, database_hears) = tokio::io::split(database);
        let asked = pass(service_says, database_hears, self.fault.clone(), Fault::SilentServices);
        let answered = pass(database_says, service_hears, self.fault.clone(), Fault::SilentDatabase);
        tokio::select! { ended = asked => ended, ended = answered => ended }
    }
}

/// Hands on the bytes of one direction, and holds them back under the fault `silent`.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut fault: watch::Receiver<Fault>,
    silent: Fault,
) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            return Ok(());
        }
        let now = *fault.borrow();
        if let Fault::Slow(late) = now {
            tokio::time::sleep(late).await;
        }
        // An error: the proxy ends, and everything with it.
        if fault.wait_for(|fault| *fault != silent).await.is_err() {
            return Ok(());
        }
        to.write_all(&piece[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// An echo in place of a database.
    fn echo() -> (SocketAddr, JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                if stream.write_all(&byte).is_err() {
                    break;
                }
            }
        });
        (address, thread)
    }

    #[test]
    fn what_was_held_back_arrives_late_and_a_reset_is_heard() {
        let (address, thread) = echo();
        let proxy = Proxy::before(&format!("postgres://nobody@{address}/nothing"));
        assert_eq!(proxy.url(), format!("postgres://nobody@{}/nothing?sslmode=disable", proxy.address));
        let mut client = std::net::TcpStream::connect(proxy.address).expect("it listens");
        let mut byte = [0];
        for fault in [Fault::SilentServices, Fault::SilentDatabase] {
            proxy.set(fault);
            client.set_read_timeout(Some(Duration::from_millis(200))).expect("own socket");
            client.write_all(b"x").expect("taken");
            // Not `read`, which a signal interrupts where there is a time-out.
            assert!(client.read_exact(&mut byte).is_err(), "{fault:?} let it pass");
            proxy.set(Fault::None);
            client.set_read_timeout(Some(Duration::from_mins(1))).expect("own socket");
            client.read_exact(&mut byte).expect("late");
        }
        proxy.reset_all();
        assert_eq!(client.read_exact(&mut byte).expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
        proxy.set(Fault::Refuse);
        let mut other = std::net::TcpStream::connect(proxy.address).expect("it listens");
        assert!(other.read_exact(&mut byte).is_err() || other.write_all(b"x").is_err(), "refused");
        drop(proxy);
        thread.join().expect("the echo ended");
    }
}
