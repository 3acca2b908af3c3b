//! Whom a client is taken for: by its administrator's certificate, or by the token in its hello.
//!
//! It only reads what the client has shown. What a role may do stands beside the operations.

use dormouse_core::domain::id::Tenant;
use dormouse_proto::{call::Refusal, code::Code, peer::Peer};

/// What a client may do; each may also do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(test), expect(dead_code, reason = "the roles of tokens, which are not let in yet"))]
pub(super) enum Role {
    /// Look.
    Reader,
    /// Start and steer instances, push images.
    Operator,
    /// Look after one tenant.
    Admin,
    /// Look after the cluster.
    Cluster,
}

impl Role {
    /// The word on the wire and in tables.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Cluster => "cluster",
        }
    }
}

/// A client that is somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credential {
    /// Whose instances and images it sees.
    pub(super) tenant: Tenant,
    /// What it may do with them.
    pub(super) role: Role,
}

/// Decides who asks, or refuses the hello. A token decides also where a certificate was shown: whoever presents
/// one means it, and it never gives more than the certificate.
pub(super) fn authenticate(peer: Peer, token: &str) -> Result<Credential, Refusal> {
    let refused = |message: &str| Err(Refusal::new(Code::Unauthenticated, message));
    if !token.is_empty() {
        return refused("the token is not known here; ask an administrator for another one");
    }
    match peer {
        Peer::Administrator => Ok(Credential { tenant: Tenant::default_tenant(), role: Role::Cluster }),
        Peer::Other => {
            refused("the certificate is no administrator's; show that one, or set DORMOUSE_TOKEN to a token")
        }
        Peer::Anonymous => refused(
            "there is no credential; set DORMOUSE_TOKEN to a token of your tenant, or show the administrator's \
             certificate (pki/administrator.pem of the services' data directory)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_administrator_needs_no_token() {
        let credential = authenticate(Peer::Administrator, "").expect("let in");
        assert_eq!((credential.tenant.as_str(), credential.role), ("default", Role::Cluster));
        for peer in [Peer::Anonymous, Peer::Other] {
            let refusal = authenticate(peer, "").expect_err("nobody");
            assert_eq!(refusal.code, Code::Unauthenticated);
            assert!(refusal.message.contains("DORMOUSE_TOKEN"), "{refusal:?}");
        }
    }

    #[test]
    fn roles_are_ordered_by_what_they_may_do() {
        assert!(Role::Reader < Role::Operator && Role::Operator < Role::Admin && Role::Admin < Role::Cluster);
    }
}
