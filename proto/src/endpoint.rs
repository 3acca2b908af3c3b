//! The one place that configures quinn and rustls: TLS 1.3 by ring, ALPN, windows, time-outs, sockets.
//!
//! The provider is named here and passed on; the process default is neither set nor read, so that a workflow
//! may bring its own. A server proves itself by a certificate of the cluster's authority under a constant
//! name, whatever its address.

use std::fmt;
use std::io;
#[cfg(feature = "server")]
use std::net::Ipv4Addr;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig};
use quinn::{ConnectionError, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use crate::call::Protocol;
use crate::code::{Code, Coded};
use crate::limits;
use crate::trust::{Distrust, Trust};

/// The name in the certificate of every core replica.
pub const CORE_NAME: &str = "core.dormouse";

/// The name in the certificate of every environment.
pub const ENVIRONMENT_NAME: &str = "environment.dormouse";

/// The name in the certificate of a client that may do everything.
pub const ADMINISTRATOR_NAME: &str = "administrator.dormouse";

/// The environment variable that, set to `off`, turns UDP segmentation offload off: some kernels and network
/// cards lose what is sent with it.
pub const SEGMENTATION_OFFLOAD_VARIABLE: &str = "DORMOUSE_QUIC_SEGMENTATION_OFFLOAD";

/// Largest datagram, in bytes: what fits into an Ethernet frame, behind the headers of IPv6 and UDP. Whether a path
/// lets it pass is tried by one probe, and by one more, half way to what always passes, where it does not. The
/// transport's own search sends four each way, each acknowledged: half of all datagrams of a short process.
const DATAGRAM_BYTES: u16 = 1452;
/// What passes everywhere.
const INITIAL_MTU: u16 = 1200;

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, and those between it and the authority's, if any.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads both files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| TlsError::Read { path: path.display().to_string(), source })
        };
        Ok(Self { certificate_pem: read(certificate)?, key_pem: read(key)? })
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates("certificate", &self.certificate_pem)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|source| TlsError::Pem { what: "private key", source })
    }
}

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{path} cannot be read; it should be a PEM file")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A text is no PEM, or holds something else.
    #[error("the {what} is not readable as PEM; issue it again")]
    Pem {
        /// What it should be.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM text holds nothing.
    #[error("the {what} is empty; issue it again")]
    Empty {
        /// What it should be.
        what: &'static str,
    },
    /// Certificate and key do not fit, or the authority is none.
    #[error("the certificates are not usable; issue them again")]
    Unusable(#[source] rustls::Error),
    /// Nothing can be checked against the authority's certificate.
    #[error("the authority's certificate is not usable; issue it again")]
    Authority(#[source] rustls::client::VerifierBuilderError),
    /// The provider lacks what QUIC needs.
    #[error("the TLS provider lacks the cipher suite that QUIC starts with; this is a defect of the build")]
    Provider(#[source] NoInitialCipherSuite),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is malformed or its name is unknown.
    #[error("{address} is not a known address; give host:port")]
    Address {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there in time.
    #[error("nobody answers at {address}; check that the service runs there and that UDP passes")]
    Silent {
        /// The address.
        address: String,
    },
    /// The peer is not whom we trust, or speaks another protocol.
    #[error(
        "the service at {address} is not the expected one: {reason}; check the address and the authority"
    )]
    Untrusted {
        /// The address.
        address: String,
        /// Which of the two ends has to be mended.
        distrust: Distrust,
        /// What TLS says.
        reason: String,
    },
    /// The peer refused, or the network failed.
    #[error("no connection to {address}: {reason}")]
    Failed {
        /// The address.
        address: String,
        /// What happened.
        reason: String,
    },
}

impl Coded for ConnectError {
    fn code(&self) -> Code {
        match self {
            Self::Address { .. } => Code::InvalidArgument,
            Self::Silent { .. } | Self::Failed { .. } => Code::Unavailable,
            Self::Untrusted { .. } => Code::Unauthenticated,
        }
    }
}

/// How connections behave. The defaults are those of [`limits`].
#[derive(Clone, Debug)]
pub struct Transport {
    /// A connection without a sign of the peer for so long is lost.
    pub idle_timeout: Duration,
    /// A quiet connection shows a sign this often.
    pub keep_alive: Duration,
    /// Whether the kernel may cut large sends into datagrams.
    pub segmentation_offload: bool,
}

impl Default for Transport {
    /// Reads [`SEGMENTATION_OFFLOAD_VARIABLE`].
    #[expect(clippy::disallowed_methods, reason = "a switch against broken drivers, for every program alike")]
    fn default() -> Self {
        let offload = std::env::var_os(SEGMENTATION_OFFLOAD_VARIABLE);
        Self {
            idle_timeout: limits::IDLE_TIMEOUT,
            keep_alive: limits::KEEP_ALIVE,
            segmentation_offload: offload.is_none_or(|value| value != "off"),
        }
    }
}

impl Transport {
    /// What a client has from the beginning: it knows whom it talks to.
    fn client(&self) -> Arc<TransportConfig> {
        let mut config = self.config();
        config
            .max_concurrent_uni_streams(VarInt::from_u32(limits::BULK_STREAMS))
            .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
        Arc::new(config)
    }

    /// A server's: whoever connects may send a hello and little more, until `Callee::trust` opens the windows.
    #[cfg(feature = "server")]
    fn server(&self) -> Arc<TransportConfig> {
        let mut config = self.config();
        config
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .receive_window(VarInt::from_u32(limits::STRANGER_WINDOW_BYTES));
        Arc::new(config)
    }

    fn config(&self) -> TransportConfig {
        let idle = self.idle_timeout.try_into().expect("an idle time-out is far below 2^62 ms");
        let mut config = TransportConfig::default();
        let mut sizes = MtuDiscoveryConfig::default();
        // A change so large that the search begins at its upper end, and mostly ends there: see `DATAGRAM_BYTES`.
        sizes.upper_bound(DATAGRAM_BYTES).minimum_change((DATAGRAM_BYTES - INITIAL_MTU) / 2 + 1);
        config
            .mtu_discovery_config(Some(sizes))
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
            .send_window(limits::SEND_WINDOW_BYTES)
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(self.segmentation_offload)
            // A first packet to a service that is just starting is repeated after 0.3 s, not after 1 s.
            .initial_rtt(Duration::from_millis(100));
        config
    }
}

/// An endpoint for outgoing connections, on a port of the system's choice. Must be called inside a tokio
/// runtime.
pub fn client_endpoint() -> io::Result<quinn::Endpoint> {
    // Reaches IPv4 too; a machine without IPv6 has only the second.
    let any = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
    let socket = UdpSocket::bind(any).or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    quinn::Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
}

/// How to connect: trusts the authority alone, and shows `identity` if there is one and the server asks.
pub fn client_config<P: Protocol>(
    authority_pem: &str,
    identity: Option<&Identity>,
) -> Result<quinn::ClientConfig, TlsError> {
    client_config_with::<P>(Trust::Authority(authority_pem), identity, &Transport::default())
}

/// As [`client_config`], with another kind of trust and another transport.
pub fn client_config_with<P: Protocol>(
    trust: Trust<'_>,
    identity: Option<&Identity>,
    transport: &Transport,
) -> Result<quinn::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Unusable)?
        .dangerous() // the name is rustls's; what is given checks all that its own one does
        .with_custom_certificate_verifier(trust.verifier(provider())?);
    let mut tls = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain()?, identity.key()?).map_err(TlsError::Unusable)?
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![P::ALPN.to_vec()];
    // A ticket cannot be handed to another process, and a process seldom connects twice.
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(TlsError::Provider)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport.client());
    Ok(config)
}

/// Connects to `address` (`host:port`), whose certificate must say `server_name`. Tries each address that the
/// host has, each for at most [`limits::CONNECT_TIMEOUT`]. Dropping the future gives the attempt up.
pub async fn connect(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: &str,
    server_name: &str,
) -> Result<quinn::Connection, ConnectError> {
    let mut failure = None;
    for candidate in resolve(address).await? {
        match connect_to(endpoint, config.clone(), candidate, server_name).await {
            Ok(connection) => return Ok(connection),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| ConnectError::Address {
        address: address.to_owned(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    }))
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    // The usual case takes no thread for a look-up.
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let found = tokio::net::lookup_host(address).await;
    found
        .map(Iterator::collect)
        .map_err(|source| ConnectError::Address { address: address.to_owned(), source })
}

async fn connect_to(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    server_name: &str,
) -> Result<quinn::Connection, ConnectError> {
    let failed = |reason: String| ConnectError::Failed { address: address.to_string(), reason };
    let connecting =
        endpoint.connect_with(config, address, server_name).map_err(|error| failed(error.to_string()))?;
    match timeout(limits::CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => {
            Err(ConnectError::Silent { address: address.to_string() })
        }
        Ok(Err(error)) => Err(match Distrust::of(&error) {
            Some(distrust) => {
                ConnectError::Untrusted { address: address.to_string(), distrust, reason: error.to_string() }
            }
            None => failed(error.to_string()),
        }),
    }
}

/// An endpoint that accepts connections at `address`, as `identity`. Must be called inside a tokio runtime.
///
/// With `clients`, the PEM of an authority, a client may show a certificate of it that is meant for clients;
/// [`Peer::of`](crate::peer::Peer::of) tells who did. One that shows another certificate, or an expired one, is
/// not let in.
#[cfg(feature = "server")]
pub fn server_endpoint<P: Protocol>(
    address: SocketAddr,
    identity: &Identity,
    clients: Option<&str>,
) -> Result<quinn::Endpoint, ServerError> {
    let config = server_config::<P>(identity, clients, &Transport::default())?;
    let socket = server_socket(address).map_err(|source| ServerError::Bind { address, source })?;
    quinn::Endpoint::new(
        crate::restart::endpoint_config(identity),
        Some(config),
        socket,
        Arc::new(TokioRuntime),
    )
    .map_err(|source| ServerError::Bind { address, source })
}

/// As [`server_endpoint`], and writes what was bound into `file` as `host:port`, for the clients of this machine.
/// With port 0 the port in that file is taken again, if it is free, so that clients find the service after a
/// restart.
#[cfg(feature = "server")]
pub fn server_endpoint_remembered<P: Protocol>(
    address: SocketAddr,
    file: &Path,
    identity: &Identity,
    clients: Option<&str>,
) -> Result<quinn::Endpoint, ServerError> {
    let remembered = if address.port() == 0 { remembered_port(file) } else { None };
    let again = remembered.map(|port| SocketAddr::new(address.ip(), port));
    let endpoint = match again.map(|again| server_endpoint::<P>(again, identity, clients)) {
        Some(Err(ServerError::Bind { address: taken, source })) => {
            tracing::warn!(address = %taken, error = %source, "the port of the last run is taken; choosing another");
            server_endpoint::<P>(address, identity, clients)?
        }
        Some(outcome) => outcome?,
        None => server_endpoint::<P>(address, identity, clients)?,
    };
    let written = endpoint.local_addr().and_then(|bound| remember(file, bound));
    written.map_err(|source| ServerError::Remember { path: file.display().to_string(), source })?;
    Ok(endpoint)
}

#[cfg(feature = "server")]
fn remembered_port(file: &Path) -> Option<u16> {
    // Whatever is wrong with the file: the service then starts as if for the first time, and writes it anew.
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse::<SocketAddr>().ok().map(|address| address.port()).filter(|port| *port != 0)
}

/// Writes a file that is whole or not there.
#[cfg(feature = "server")]
fn remember(file: &Path, mut bound: SocketAddr) -> io::Result<()> {
    if bound.ip().is_unspecified() {
        bound.set_ip(match bound {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let new = file.with_extension("address.new");
    std::fs::write(&new, format!("{bound}\n"))?;
    std::fs::rename(&new, file)
}

/// Why a server endpoint could not be made.
#[cfg(feature = "server")]
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificates are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be bound.
    #[error("cannot listen on {address} (UDP); choose another address or end what listens there")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address was bound, and could not be written down.
    #[error("cannot write {path}; check the folder's owner and its free space")]
    Remember {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a server speaks and how; for `Endpoint::set_server_config` when a certificate was renewed.
///
/// With `clients` the authority's certificate is also sent, after the server's own: a client that was told no
/// more than its fingerprint finds it there.
#[cfg(feature = "server")]
pub fn server_config<P: Protocol>(
    identity: &Identity,
    clients: Option<&str>,
    transport: &Transport,
) -> Result<quinn::ServerConfig, TlsError> {
    use quinn::crypto::rustls::QuicServerConfig;
    use rustls::server::WebPkiClientVerifier;

    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Unusable)?;
    let mut chain = identity.chain()?;
    let builder = match clients {
        Some(authority_pem) => {
            chain.extend(certificates(AUTHORITY, authority_pem)?);
            let roots = Arc::new(roots(authority_pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .allow_unauthenticated() // a token in the hello may stand in
                .build();
            builder.with_client_cert_verifier(verifier.map_err(TlsError::Authority)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_single_cert(chain, identity.key()?).map_err(TlsError::Unusable)?;
    tls.alpn_protocols = vec![P::ALPN.to_vec()];
    // Nobody resumes (see `client_config`): tickets would be made and stored for nothing.
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(TlsError::Provider)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport.server())
        .max_incoming(limits::HANDSHAKES)
        .incoming_buffer_size(limits::HANDSHAKE_BYTES)
        .incoming_buffer_size_total(limits::HANDSHAKES_BYTES);
    Ok(config)
}

/// One socket serves all connections, so its buffers are raised as far as the kernel allows.
#[cfg(feature = "server")]
fn server_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};

    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    for (name, result) in [
        ("receive", socket.set_recv_buffer_size(limits::SOCKET_BUFFER_BYTES)),
        ("send", socket.set_send_buffer_size(limits::SOCKET_BUFFER_BYTES)),
    ] {
        if let Err(error) = result {
            tracing::warn!(%error, "the socket keeps its {name} buffer");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The one TLS provider of the whole tree.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is named when the authority's PEM is not usable.
const AUTHORITY: &str = "authority's certificate";

pub(crate) fn roots(authority_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(AUTHORITY, authority_pem)? {
        roots.add(certificate).map_err(TlsError::Unusable)?;
    }
    Ok(roots)
}

pub(crate) fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|source| TlsError::Pem { what, source })?;
    if found.is_empty() { Err(TlsError::Empty { what }) } else { Ok(found) }
}
