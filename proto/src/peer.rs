//! Who a client proved to be, by the certificate that it showed in the handshake.
//!
//! The handshake itself (see [`crate::endpoint::server_config`]) has checked the rest: the signature of the cluster's
//! authority, the time, that the certificate is meant for clients, and that the client holds its key. Here only its
//! name is read: being somebody of the cluster is not yet being its administrator.

use quinn::Connection;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use crate::endpoint::ADMINISTRATOR_NAME;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody who showed no certificate.
    Anonymous,
    /// A holder of an administrator's certificate of the cluster's authority.
    Administrator,
    /// A holder of another client's certificate of the authority, which gives no right.
    Other,
}

impl Peer {
    /// Who proved to be at the other end. Of a client's own connection, it tells nothing.
    pub fn of(connection: &Connection) -> Self {
        let chain =
            connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        match chain.as_ref().and_then(|chain| chain.first()) {
            None => Self::Anonymous,
            Some(certificate) if is_named(certificate, ADMINISTRATOR_NAME) => Self::Administrator,
            Some(_) => Self::Other,
        }
    }
}

/// Whether a certificate says `name`. This is how TLS compares names of servers; those of clients look the same.
fn is_named(certificate: &CertificateDer<'_>, name: &'static str) -> bool {
    let name = ServerName::try_from(name).expect("our names are names of hosts");
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}
