//! Whom a client trusts: an authority by its certificate, or by no more than the certificate's fingerprint.
//!
//! A fingerprint is short enough to be told over the telephone. The server sends its authority's certificate
//! after its own; the one with the fingerprint becomes the root, and from there on everything is checked as with
//! the certificate itself: signature, name, time and purpose. What else the server sends gains nothing by it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use quinn::ConnectionError;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::endpoint::{TlsError, certificates, roots};

/// What a fingerprint begins with: the digest's name.
const PREFIX: &str = "sha256:";

/// SHA-256 of a certificate's DER: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no fingerprint; it must be sha256: and 64 hexadecimal digits, as `dormouse certs show` prints it"
)]
pub struct NoFingerprint {
    text: String,
}

impl Fingerprint {
    /// Of the first certificate in a PEM text.
    pub fn of_pem(pem: &str) -> Result<Self, TlsError> {
        Ok(Self::of(&certificates("certificate", pem)?[0]))
    }

    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(bytes)
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    /// Takes colons between the digits, too, and capital letters: other programs print them so.
    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let wrong = || NoFingerprint { text: text.chars().take(100).collect() };
        let digits = text.strip_prefix(PREFIX).ok_or_else(wrong)?.replace(':', "");
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom to trust.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The authority with this certificate, as PEM.
    Authority(&'a str),
    /// The authority whose certificate has this fingerprint, and which the server must send.
    Fingerprint(Fingerprint),
}

impl Trust<'_> {
    pub(crate) fn verifier(
        self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        match self {
            Self::Authority(pem) => {
                let roots = Arc::new(roots(pem)?);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                Ok(verifier.map_err(TlsError::Authority)?)
            }
            Self::Fingerprint(fingerprint) => Ok(Arc::new(Pinned { fingerprint, provider })),
        }
    }
}

/// Verifies as usual, with a root that the server sent and the client knows by its fingerprint.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = others.iter().find(|certificate| Fingerprint::of(certificate) == self.fingerprint);
        let root = root.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong between two ends that found each other: which of the two has to be mended, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// The server's certificate is of another authority than the trusted one.
    ServerAuthority,
    /// The server's certificate is not valid now: it has expired, or a clock is wrong.
    ServerExpired,
    /// The server's certificate has another name: another service listens there.
    ServerName,
    /// The client's certificate is of another authority than the server's.
    ClientAuthority,
    /// The client's certificate is not valid now: it has expired, or a clock is wrong.
    ClientExpired,
    /// The server wants no such certificate from clients, or wants one where none was shown.
    ClientCertificate,
    /// The server speaks another protocol.
    Protocol,
    /// Something else that TLS found.
    Other,
}

impl Distrust {
    /// What TLS said when it ended a connection; `None`: it did not.
    pub fn of(error: &ConnectionError) -> Option<Self> {
        // QUIC's codes 0x100 to 0x1ff are TLS alerts (RFC 8446, section 6).
        let alert = |code: u64| u8::try_from(code.checked_sub(0x100)?).ok();
        match error {
            ConnectionError::TransportError(error) => Some(match alert(error.code.into())? {
                42 => Self::ServerName,
                45 => Self::ServerExpired,
                48 | 51 => Self::ServerAuthority,
                120 => Self::Protocol,
                _ => Self::Other,
            }),
            ConnectionError::ConnectionClosed(close) => Some(match alert(close.error_code.into())? {
                45 => Self::ClientExpired,
                48 | 51 => Self::ClientAuthority,
                42 | 43 | 46 | 116 => Self::ClientCertificate,
                120 => Self::Protocol,
                _ => Self::Other,
            }),
            _ => None,
        }
    }
}
