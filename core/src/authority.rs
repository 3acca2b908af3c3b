//! The certificates of this machine, held against the authority of the cluster.
//!
//! The first service on a database decides: its authority becomes the cluster's. Every other one must have
//! certificates of that authority, or it does not start: instances and clients would not trust it, or worse, would
//! trust somebody else. An SQLite database and the certificates beside it belong to one machine, so certificates that
//! were deleted there are simply made anew.

use std::path::{Path, PathBuf};

use dormouse_proto::code::{Code, Coded};
use dormouse_proto::identity::{Authority, IdentityError};
use dormouse_proto::trust::Fingerprint;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::store::{self, ClusterAuthority, Kind, Store};

/// Why the certificates of this machine cannot be used with this database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none, and the cluster has an authority.
    #[error(
        "{} holds no certificates, and this database belongs to the cluster with the authority {cluster}, made on \
         {host}; run there `dormouse certs issue {here} --out DIR`, copy DIR to this machine, and start with \
         --certs DIR",
        dir.display()
    )]
    Missing {
        /// Where they were looked for.
        dir: PathBuf,
        /// The cluster's authority.
        cluster: Fingerprint,
        /// Where it was made.
        host: Box<str>,
        /// This machine's name.
        here: Box<str>,
    },
    /// They are of another authority.
    #[error(
        "the certificates in {} are of the authority {ours}, and this database belongs to the cluster with the \
         authority {cluster}, made on {host}; if this machine shall join that cluster, run there `dormouse certs issue \
         {here} --out DIR`, copy DIR to this machine, and start with --certs DIR; else name another database",
        dir.display()
    )]
    Other {
        /// Where they are.
        dir: PathBuf,
        /// Their authority.
        ours: Fingerprint,
        /// The cluster's authority.
        cluster: Fingerprint,
        /// Where it was made.
        host: Box<str>,
        /// This machine's name.
        here: Box<str>,
    },
    /// The row holds no certificate.
    #[error("table cluster, column authority_pem: it is no certificate; restore it from a backup")]
    Unreadable(#[source] dormouse_proto::endpoint::TlsError),
    /// The files cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Other { .. } => Code::FailedPrecondition,
            Self::Unreadable(_) => Code::Internal,
            Self::Identity(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Opens the certificates in `dir` for a service on `store`, and makes them where that is right: on a new cluster,
/// and on one machine with SQLite. `here` is this machine's name.
pub async fn open(dir: &Path, store: &Store, here: &str) -> Result<Authority, Error> {
    let before = store.authority().await?;
    let may_create = before.is_none() || store.kind() == Kind::Sqlite;
    let Some(authority) = read(dir, may_create).await? else {
        let known = before.expect("without one we make ours");
        return Err(Error::Missing {
            dir: dir.to_owned(),
            cluster: fingerprint(&known)?,
            host: host(&known),
            here: here.into(),
        });
    };
    let key_host = if authority.has_key() { here } else { "" };
    let ours = ClusterAuthority { pem: authority.certificate_pem().to_owned(), host: key_host.to_owned() };
    let known = store.claim_authority(ours.clone()).await?;
    let (own, cluster) = (authority.fingerprint()?, fingerprint(&known)?);
    if own == cluster {
        return Ok(authority);
    }
    let gone = authority.is_new() && before.is_some(); // on SQLite, or it would not have been made
    if gone && store.replace_authority(&known.pem, ours).await? {
        warn!(dir = %dir.display(), "the certificates of this database were gone; there are new ones now");
        return Ok(authority);
    }
    // Another service was faster: ours must not be taken for the cluster's later.
    spawn_blocking(move || authority.discard()).await.expect("deleting two files does not panic")?;
    let (dir, host) = (dir.to_owned(), host(&known));
    Err(Error::Other { dir, ours: own, cluster, host, here: here.into() })
}

/// Makes `authority` that of the cluster, in place of the one it has; false: it was before. Services that run go on
/// with the old one until they are restarted.
pub async fn replace(authority: &Authority, store: &Store, here: &str) -> Result<bool, Error> {
    let host = if authority.has_key() { here } else { "" };
    let ours = ClusterAuthority { pem: authority.certificate_pem().to_owned(), host: host.to_owned() };
    // Somebody else may do the same at this moment: whoever is last has looked at the one before.
    loop {
        let known = store.claim_authority(ours.clone()).await?;
        if fingerprint(&known)? == authority.fingerprint()? {
            return Ok(false);
        }
        if store.replace_authority(&known.pem, ours.clone()).await? {
            return Ok(true);
        }
    }
}

async fn read(dir: &Path, may_create: bool) -> Result<Option<Authority>, Error> {
    let dir = dir.to_owned();
    let read = spawn_blocking(move || {
        if may_create { Authority::open_or_create(&dir).map(Some) } else { Authority::open(&dir) }
    });
    Ok(read.await.expect("reading certificates does not panic")?)
}

fn fingerprint(known: &ClusterAuthority) -> Result<Fingerprint, Error> {
    Fingerprint::of_pem(&known.pem).map_err(Error::Unreadable)
}

fn host(known: &ClusterAuthority) -> Box<str> {
    if known.host.is_empty() { "a machine that it does not name".into() } else { known.host.as_str().into() }
}
