//! Whom a client is taken for: by its administrator's certificate, or by the token in its hello;
//! and whether a token still counts.
//!
//! A token is looked up again for each request, unless it was a moment ago and nobody told of a
//! change since: so a revocation holds at once on connections that exist, also where its notice
//! got lost. What a role may do stands in [`rights`](super::rights).

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dormouse_core::{
    domain::{
        access::{Role, TokenName, TokenSecret},
        id::{Tenant, TokenHash},
        time::Micros,
    },
    store::{Standing, Store},
};
use dormouse_proto::{call::Refusal, code::Code, peer::Peer};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::server::refuse;

/// How long a token is taken for what it was. A notice ends it sooner.
const FRESH: Duration = Duration::from_secs(1);

/// A client that is somebody.
#[derive(Debug)]
pub(super) struct Credential {
    /// Whose instances and images it sees.
    pub(super) tenant: Tenant,
    /// What it may do with them.
    pub(super) role: Role,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    Certificate,
    Token(Token),
}

#[derive(Debug)]
struct Token {
    name: TokenName,
    hash: TokenHash,
    looked: Mutex<Looked>,
}

/// When a token was last found valid.
#[derive(Clone, Copy, Debug)]
struct Looked {
    /// How many changes of tokens had been told before.
    changes: u64,
    /// Valid until then, as far as we know.
    until: Instant,
}

/// As people know it: in messages, in the log and in timelines.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proof {
            Proof::Certificate => f.write_str("the administrator"),
            Proof::Token(token) => write!(f, "token {}", token.name),
        }
    }
}

/// What is known about changes of tokens: how many were told.
pub(super) type Changes = watch::Sender<u64>;

/// Decides who asks, or refuses the hello. A token decides also where a certificate was shown:
/// whoever presents one means it, and it never gives more than the certificate. A wrong one
/// costs one look into an index, and one that cannot be any nothing.
pub(super) async fn authenticate(
    peer: Peer,
    token: &str,
    store: &Store,
    changes: &Changes,
) -> Result<Credential, Refusal> {
    if !token.is_empty() {
        return by_token(token, store, changes).await;
    }
    match peer {
        Peer::Administrator => Ok(Credential {
            tenant: Tenant::default_tenant(),
            role: Role::Cluster,
            proof: Proof::Certificate,
        }),
        Peer::Other => Err(unauthenticated(
            "the certificate is no administrator's; show that one, or set DORMOUSE_TOKEN to a token",
        )),
        Peer::Anonymous => Err(unauthenticated(
            "there is no credential; set DORMOUSE_TOKEN to a token of your tenant, or show the administrator's \
             certificate (pki/administrator.pem of the services' data directory)",
        )),
    }
}

async fn by_token(token: &str, store: &Store, changes: &Changes) -> Result<Credential, Refusal> {
    let hash = TokenSecret::parse(token).ok_or_else(unknown)?.hash();
    let (looked_at, changes) = (Instant::now(), *changes.borrow());
    let found = store.token(hash).await.map_err(|error| refuse(&error))?;
    let (found, standing) = found.ok_or_else(unknown)?;
    let looked = Looked { changes, until: looked_at + valid(&found.name, standing)? };
    let proof = Proof::Token(Token { name: found.name, hash, looked: Mutex::new(looked) });
    Ok(Credential { tenant: found.tenant, role: found.role, proof })
}

/// How long a token may be taken for valid.
fn valid(name: &TokenName, standing: Standing) -> Result<Duration, Refusal> {
    let gone = |word: &str, at: Micros| {
        let at = Timestamp::from_microsecond(at.0).map(|at| at.to_string()).unwrap_or_default();
        unauthenticated(format!("token {name} {word} at {at}; ask an administrator for another one"))
    };
    match standing {
        Standing::Valid { left } => Ok(left.map_or(FRESH, |left| left.min(FRESH))),
        Standing::Revoked { at } => Err(gone("was revoked", at)),
        Standing::Expired { at } => Err(gone("expired", at)),
    }
}

fn unknown() -> Refusal {
    unauthenticated("the token is not known here; ask an administrator for another one")
}

fn unauthenticated(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Unauthenticated, message)
}

impl Credential {
    /// Whether it still counts. A database that does not answer counts as no.
    pub(super) async fn check(&self, store: &Store, changes: &Changes) -> Result<(), Refusal> {
        let Proof::Token(token) = &self.proof else { return Ok(()) };
        // Read before the look: a change that is told during it makes the next request look again.
        let (now, changes) = (Instant::now(), *changes.borrow());
        let last = *token.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if last.changes == changes && now < last.until {
            return Ok(());
        }
        let found = store.token(token.hash).await.map_err(|error| refuse(&error))?;
        let (found, standing) = found.ok_or_else(unknown)?;
        let looked = Looked { changes, until: now + valid(&found.name, standing)? };
        *token.looked.lock().unwrap_or_else(PoisonError::into_inner) = looked;
        Ok(())
    }

    /// Waits until it does not count any more, and says why. Looks when a change is told, and
    /// every `poll`, for a notice may get lost and a token expires without one.
    pub(super) async fn lost(&self, store: &Store, changes: &Changes, poll: Duration) -> Refusal {
        if matches!(self.proof, Proof::Certificate) {
            return std::future::pending().await;
        }
        let mut told = changes.subscribe();
        loop {
            match self.check(store, changes).await {
                Err(refusal) if refusal.code == Code::Unauthenticated => return refusal,
                // Nobody knows: requests are refused meanwhile, the connection stays.
                Ok(()) | Err(_) => {}
            }
            // Told, polled, or the service ends, which others see.
            drop(timeout(poll, told.changed()).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::store::{Database, Options};

    use super::*;

    async fn store(folder: &tempfile::TempDir) -> Store {
        let database = Database::Sqlite(folder.path().join("dormouse.db"));
        Store::open(Options::new(database)).await.expect("a store")
    }

    #[tokio::test]
    async fn only_an_administrator_needs_no_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, changes) = (store(&folder).await, Changes::new(0));
        let let_in = authenticate(Peer::Administrator, "", &store, &changes).await.expect("let in");
        assert_eq!((let_in.tenant.as_str(), let_in.role), ("default", Role::Cluster));
        for peer in [Peer::Anonymous, Peer::Other] {
            let refusal = authenticate(peer, "", &store, &changes).await.expect_err("nobody");
            assert_eq!(refusal.code, Code::Unauthenticated);
            assert!(refusal.message.contains("DORMOUSE_TOKEN"), "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_token_is_refused_even_beside_a_certificate() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, changes) = (store(&folder).await, Changes::new(0));
        let other = TokenSecret::from_random([7; 32]);
        for token in ["x", "dmt_", other.reveal()] {
            let answer = authenticate(Peer::Administrator, token, &store, &changes).await;
            let refusal = answer.expect_err("not known");
            assert_eq!(refusal.code, Code::Unauthenticated);
            assert!(!refusal.message.contains(other.reveal()), "a secret in a message");
        }
    }
}
