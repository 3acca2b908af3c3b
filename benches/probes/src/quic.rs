//! A client and a server of quinn with TLS 1.3 by ring, and an echo: 1 KiB there, 64 bytes back, as a
//! checkpoint and its acknowledgement.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// The name in the server's certificate.
pub const NAME: &str = "probe.example";
/// What a client sends, in bytes.
pub const REQUEST: usize = 1024;
/// What the server answers, in bytes.
pub const ANSWER: usize = 64;

const ALPN: &[u8] = b"probe";

/// A server on a port of the system's choice. Must be called inside a runtime.
pub fn server(certificate: &Path, key: &Path) -> anyhow::Result<Endpoint> {
    let chain = vec![CertificateDer::from_pem_file(certificate).context("the certificate")?];
    let key = PrivateKeyDer::from_pem_file(key).context("the key")?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    Ok(Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0)))?)
}

/// A client's end, and how it connects: it trusts the authority in this file alone.
pub fn client(authority: &Path) -> anyhow::Result<Endpoint> {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(authority).with_context(|| authority.display().to_string())?;
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// quinn's own, but for connections that stay open while nothing happens.
fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config.keep_alive_interval(Some(Duration::from_secs(5)));
    config
}

/// Answers on the one stream of a connection, until the client goes.
pub async fn answer(connection: Connection) -> anyhow::Result<()> {
    let Ok((mut to, mut from)) = connection.accept_bi().await else {
        return Ok(()); // a client that only holds its connection opens none
    };
    let (mut request, answer) = ([0; REQUEST], [7; ANSWER]);
    while from.read_exact(&mut request).await.is_ok() && to.write_all(&answer).await.is_ok() {}
    Ok(())
}

/// One stream, on which echoes follow each other.
#[derive(Debug)]
pub struct Echo {
    to: SendStream,
    from: RecvStream,
}

impl Echo {
    /// Opens it.
    pub async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let (to, from) = connection.open_bi().await?;
        Ok(Self { to, from })
    }

    /// There and back.
    pub async fn once(&mut self) -> anyhow::Result<()> {
        self.to.write_all(&[7; REQUEST]).await?;
        self.from.read_exact(&mut [0; ANSWER]).await?;
        Ok(())
    }
}
