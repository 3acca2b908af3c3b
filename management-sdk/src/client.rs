//! The connection: opened when it is needed, opened again when it is lost, and one place
//! that decides what is asked again.
//!
//! All clones of a client share one connection; many calls are in flight on it. A call whose
//! connection is lost is repeated on the next one. It never repeats what was refused, except
//! where the refusal itself says `UNAVAILABLE`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dormouse_proto::{
    call::{CallError, Caller, ManagementProtocol, Protocol},
    code::{Code, Retry},
    endpoint::{self, ConnectError},
    management::{self as wire, client_frame::Operation, server_frame::Outcome},
    trust::Distrust,
};
use tokio::{net::UdpSocket, sync::Mutex, time::Instant};
use tracing::debug;

use crate::{Error, Target, credentials};

/// How long a client tries.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long one attempt to connect may take. Default 5 s.
    pub connect_within: Duration,
    /// How long a call goes on trying after its connection was lost, or after the services
    /// said that they are not available just now. Default 60 s. The very first connect of
    /// [`Client::connect`] is tried once only.
    pub patience: Duration,
    /// What the services write in their logs for this client.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_within: Duration::from_secs(5),
            patience: Duration::from_mins(1),
            name: concat!("dormouse-management-sdk ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A controller's end of the management protocol. Cheap to clone; clones share a connection.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    target: Target,
    options: Options,
    endpoint: quinn::Endpoint,
    link: Mutex<Option<Link>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("target", &self.target)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// One connection that was opened.
#[derive(Clone)]
pub(crate) struct Link {
    caller: Caller<ManagementProtocol>,
    /// Knows better than the caller why it ended.
    connection: quinn::Connection,
    /// What it was connected to, for messages.
    address: String,
    /// Tells this connection from the one before.
    number: u64,
}

impl Client {
    /// Connects, with the defaults of [`Options`]. Fails at once if nobody listens.
    pub async fn connect(target: Target) -> Result<Self, Error> {
        Self::connect_with(target, Options::default()).await
    }

    /// Connects. Fails at once if nobody listens.
    ///
    /// Must be called inside a tokio runtime. Dropping the future abandons the connection.
    pub async fn connect_with(target: Target, options: Options) -> Result<Self, Error> {
        let endpoint = endpoint::client_endpoint().map_err(Error::Local)?;
        let client = Self { inner: Arc::new(Inner { target, options, endpoint, link: Mutex::new(None) }) };
        client.link().await?;
        Ok(client)
    }

    /// What it connects to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.inner.target
    }

    /// Closes the connection, for all clones, and waits some microseconds until the services were
    /// told. To be called before a process ends: otherwise they learn it only by a time-out. A
    /// later call opens it again.
    pub async fn close(&self) {
        let link = self.inner.link.lock().await.take();
        if let Some(link) = link {
            link.caller.finish_and_close("done").await;
        }
    }

    /// The connection that stands, or a new one.
    pub(crate) async fn link(&self) -> Result<Link, Error> {
        let mut slot = self.inner.link.lock().await;
        if let Some(link) = &*slot {
            return Ok(link.clone());
        }
        let link = self.inner.open().await?;
        *slot = Some(link.clone());
        Ok(link)
    }

    /// Forgets a connection that failed, unless another call already did.
    pub(crate) async fn forget(&self, link: &Link) {
        let mut slot = self.inner.link.lock().await;
        if slot.as_ref().is_some_and(|current| current.number == link.number) {
            link.caller.close("given up");
            *slot = None;
        }
    }

    /// Asks and reads the answer, again and again until there is one.
    pub(crate) async fn call<T>(
        &self,
        operation: Operation,
        read: impl Fn(Outcome) -> Result<T, String>,
    ) -> Result<T, Error> {
        self.call_counted(operation, read, &mut 0).await
    }

    /// As `call`; `sent` counts how often the request may have reached the services, so that
    /// the caller can tell "refused" from "refused because it was done the first time".
    pub(crate) async fn call_counted<T>(
        &self,
        operation: Operation,
        read: impl Fn(Outcome) -> Result<T, String>,
        sent: &mut u32,
    ) -> Result<T, Error> {
        let mut patience = Patience::new(self.inner.options.patience);
        loop {
            let failed = match self.link().await {
                Ok(link) => {
                    *sent += 1;
                    match link.call(operation.clone(), &read).await {
                        Ok(answer) => return Ok(answer),
                        Err(Failed::Final(error)) => return Err(error),
                        Err(Failed::Busy(error)) => error,
                        Err(Failed::Lost(error)) => {
                            // Asked first: closing it would overwrite why it ended.
                            let lost = self.inner.lost(&link.address, &link.connection, error);
                            self.forget(&link).await;
                            if !lost.retryable() {
                                return Err(lost);
                            }
                            lost
                        }
                    }
                }
                Err(error) if error.retryable() => error,
                Err(error) => return Err(error),
            };
            debug!(error = %failed, "asking again");
            if !patience.pause().await {
                return Err(failed);
            }
        }
    }

    /// How long a call goes on trying.
    pub(crate) fn patience(&self) -> Duration {
        self.inner.options.patience
    }
}

impl Inner {
    async fn open(&self) -> Result<Link, Error> {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let address = self.target.address()?;
        let token = self.target.token().read()?;
        let connection = tokio::select! {
            biased;
            connection = self.handshake(&address, token.is_some()) => connection?,
            () = refused_by_everybody(&address) => return Err(Error::NobodyListens {
                address,
                data_dir: self.target.own_directory(),
            }),
        };
        let hello = wire::ClientFrame {
            id: 0,
            operation: Some(Operation::Hello(wire::Hello {
                protocol_version: ManagementProtocol::VERSION,
                client: self.options.name.clone(),
                token: token.unwrap_or_default(),
            })),
        };
        let opened = Caller::open(connection.clone(), hello).await;
        let (caller, _no_pushes) = opened.map_err(|error| self.lost(&address, &connection, error))?;
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Link { caller, connection, address, number })
    }

    async fn handshake(&self, address: &str, has_token: bool) -> Result<quinn::Connection, Error> {
        let config = credentials::config(&self.target, has_token)?;
        let connecting = endpoint::connect(&self.endpoint, config, address, endpoint::ENVIRONMENT_NAME);
        match tokio::time::timeout(self.options.connect_within, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.not_connected(address, error)),
            Err(elapsed) => Err(Error::NoAnswer { address: address.to_owned(), source: elapsed.into() }),
        }
    }

    fn not_connected(&self, address: &str, error: ConnectError) -> Error {
        match error {
            ConnectError::Address { .. } => Error::Argument(error.to_string()),
            ConnectError::Untrusted { distrust, .. } => self.untrusted(address, distrust, error.into()),
            ConnectError::Silent { .. } | ConnectError::Failed { .. } => {
                Error::NoAnswer { address: address.to_owned(), source: error.into() }
            }
        }
    }

    fn untrusted(
        &self,
        address: &str,
        distrust: Distrust,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Error {
        let remedy = credentials::remedy(&self.target, distrust);
        Error::Untrusted { address: address.to_owned(), remedy, source }
    }

    /// A server judges our certificate only after we believe that the handshake is done.
    fn lost(&self, address: &str, connection: &quinn::Connection, error: CallError) -> Error {
        let address = address.to_owned();
        if let Some(reason) = connection.close_reason()
            && let Some(distrust) = Distrust::of(&reason)
        {
            return self.untrusted(&address, distrust, reason.into());
        }
        match error {
            CallError::Refused { code, message } => {
                Error::Refused { code, message, retryable: code.retry() == Retry::Later }
            }
            error => Error::Lost { address, patience: self.options.patience, source: error.into() },
        }
    }
}

/// Why one call on one connection gave no answer.
enum Failed {
    /// Refused, or not understood: asking again cannot help.
    Final(Error),
    /// The services ask for patience.
    Busy(Error),
    /// The connection is gone; the request may have been done.
    Lost(CallError),
}

impl Link {
    /// One request on this connection.
    pub(crate) async fn ask<T>(
        &self,
        operation: Operation,
        read: &impl Fn(Outcome) -> Result<T, String>,
    ) -> Result<T, Error> {
        match self.call(operation, read).await {
            Ok(answer) => Ok(answer),
            Err(Failed::Final(error) | Failed::Busy(error)) => Err(error),
            Err(Failed::Lost(error)) => Err(Error::Lost {
                address: self.address.clone(),
                patience: Duration::ZERO,
                source: error.into(),
            }),
        }
    }

    async fn call<T>(
        &self,
        operation: Operation,
        read: &impl Fn(Outcome) -> Result<T, String>,
    ) -> Result<T, Failed> {
        let frame = wire::ClientFrame { id: 0, operation: Some(operation) };
        let answer = match self.caller.call(frame).await {
            Ok(answer) => answer,
            Err(error @ CallError::TooLarge { .. }) => {
                return Err(Failed::Final(Error::Argument(error.to_string())));
            }
            Err(CallError::Refused { code, message }) => {
                let retryable = code.retry() == Retry::Later;
                return Err(Failed::Final(Error::Refused { code, message, retryable }));
            }
            Err(CallError::Malformed { reason }) => return Err(Failed::Final(self.malformed(reason))),
            Err(error) => return Err(Failed::Lost(error)),
        };
        match answer.outcome {
            Some(Outcome::Error(error)) => Err(refusal(error)),
            Some(outcome) => read(outcome).map_err(|what| Failed::Final(self.malformed(what))),
            None => Err(Failed::Final(self.malformed("an answer without an outcome".to_owned()))),
        }
    }

    fn malformed(&self, what: String) -> Error {
        Error::Malformed { address: self.address.clone(), what }
    }
}

fn refusal(error: wire::Error) -> Failed {
    // A code of a later release is not one of ours; what it says still counts.
    let code = Code::parse(&error.code).unwrap_or(Code::Internal);
    let refused = Error::Refused { code, message: error.message, retryable: error.retryable };
    if code == Code::Unavailable && error.retryable { Failed::Busy(refused) } else { Failed::Final(refused) }
}

/// An outcome of another kind than was asked for, named without its contents.
pub(crate) fn unexpected(outcome: &Outcome) -> String {
    let name = match outcome {
        Outcome::Error(_) => "an error",
        Outcome::Health(_) => "a health report",
        Outcome::Metrics(_) => "metrics",
        Outcome::UploadBegun(_) => "a begun upload",
        Outcome::ChunkStored(_) => "a stored chunk",
        Outcome::Image(_) => "an image",
        Outcome::Images(_) => "a page of images",
        Outcome::Deleted(_) => "a deletion",
        Outcome::Instance(_) => "an instance",
        Outcome::Instances(_) => "a page of instances",
        Outcome::Count(_) => "a count",
        Outcome::Signal(_) => "a stored signal",
        Outcome::Started(_) => "a started instance",
        Outcome::Checkpoints(_) => "a page of checkpoints",
        Outcome::Events(_) => "a page of events",
        Outcome::Attempts(_) => "a list of attempts",
        Outcome::Log(_) => "a piece of output",
        Outcome::Nodes(_) => "a list of nodes",
        Outcome::Node(_) => "a node",
        Outcome::Cores(_) => "a list of core replicas",
        Outcome::Tenant(_) => "a tenant",
        Outcome::Tenants(_) => "a list of tenants",
        Outcome::TokenCreated(_) => "a new token",
        Outcome::Tokens(_) => "a list of tokens",
        Outcome::Token(_) => "a token",
        Outcome::Pruned(_) => "a report of what was pruned",
    };
    format!("it holds {name}, which was not asked for")
}

/// Pauses between tries: 50 ms doubling to 2 s, ± 50 %, until the time is over.
pub(crate) struct Patience {
    until: Instant,
    next: Duration,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, next: Duration::from_millis(50) }
    }

    /// Sleeps before the next try; false if there is no time for one.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = self.next.mul_f64(0.5 + jitter());
        self.next = (self.next * 2).min(Duration::from_secs(2));
        if Instant::now() + pause >= self.until {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

/// From 0 to 1: spreads the tries of many clients that lost the same service.
#[expect(clippy::disallowed_methods, reason = "no test depends on how long these pauses are")]
fn jitter() -> f64 {
    fastrand::f64()
}

/// Ends only when every address behind `address` is known to have nobody bound to it. QUIC
/// alone cannot tell: its socket is unconnected and never hears that a port is closed. A
/// connected socket does, so a stopped service is noticed in microseconds, not by time-out.
async fn refused_by_everybody(address: &str) {
    let Ok(addresses) = tokio::net::lookup_host(address).await else { return std::future::pending().await };
    for address in addresses {
        if !refused(address).await {
            return std::future::pending().await;
        }
    }
}

async fn refused(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let probe = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        // Too short to be QUIC: a service that is there ignores it.
        socket.send(&[0]).await?;
        socket.recv(&mut [0; 1]).await
    };
    matches!(probe.await, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_nobody_has_is_refused_at_once() {
        let free =
            std::net::UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        refused_by_everybody(&free.to_string()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let mut patience = Patience::new(Duration::from_secs(10));
        let mut tries = 0;
        while patience.pause().await {
            tries += 1;
        }
        assert!((5..100).contains(&tries), "{tries}");
    }
}
