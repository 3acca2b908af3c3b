//! The cluster's authority and the certificates that it signs, in the folder `pki` of a data directory or one that
//! was named.
//!
//! Made on first start, owner-only, each file whole or not there; two processes that start at once wait for
//! each other by a lock on the folder. A certificate that is about to expire, belongs to another key or to another
//! authority is made anew. The authority's key never leaves the folder where it was made: elsewhere the folder
//! holds the authority's certificate and the leaves that were issued for that place, and all are only read.
//!
//! - [`renewal`]: new files are taken over while the services run.
//! - `folder`: how files are read and written. `certificate`: what stands in them.
//!
//! Keys are Ed25519: with ring a handshake signs once and verifies twice in 90 µs, with ECDSA P-256 in 120 µs.
//! No message and no log line holds a key.

mod certificate;
mod folder;
pub mod renewal;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tokio::sync::watch;

use self::certificate::{Facts, is_for, is_signed_by, new_key};
use self::folder::Folder;
use crate::code::{Code, Coded};
use crate::endpoint::{ADMINISTRATOR_NAME, CORE_NAME, ENVIRONMENT_NAME, Identity};
use crate::trust::Fingerprint;

/// With less than this left, a certificate is made anew where the authority's key is.
const RENEW_BELOW: Duration = Duration::from_hours(24 * 120);

/// With less than this left, people are told.
pub const WARN_BELOW: Duration = Duration::from_hours(24 * 30);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves instances, as [`CORE_NAME`].
    Core,
    /// Serves controllers, as [`ENVIRONMENT_NAME`].
    Environment,
    /// May do everything: a client's certificate.
    Administrator,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Core, Self::Environment, Self::Administrator];

    /// Its word, and the name of its files without their ending.
    pub fn file(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Environment => "environment",
            Self::Administrator => "administrator",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Core => CORE_NAME,
            Self::Environment => ENVIRONMENT_NAME,
            Self::Administrator => ADMINISTRATOR_NAME,
        }
    }

    /// A server's certificate is none for clients: nobody becomes administrator with it.
    fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Core | Self::Environment => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Administrator => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The folder or a file of it cannot be read or written.
    #[error("cannot {action} {}; check the folder's owner and its free space", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others may read a key.
    #[error(
        "{} may be read by others (mode {mode:o}); if nobody has, run chmod 600 on it, else delete it and \
         the .pem beside it",
        path.display()
    )]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file holds no certificate or no key.
    #[error("{} is damaged; restore it, or delete it and the file beside it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Damage,
    },
    /// The authority has expired.
    #[error(
        "the authority in {} has expired; make a new one as docs/certificates.md says under \"A new authority\"",
        dir.display()
    )]
    AuthorityExpired {
        /// The folder.
        dir: PathBuf,
    },
    /// There is no valid certificate for this role here, and no key to make one.
    #[error(
        "{} has no valid {role}.pem with its key, and the authority's key is elsewhere; where that is, run `dormouse \
         certs issue NAME --out DIR{}`, and copy what DIR holds into this folder",
        dir.display(),
        if *role == "administrator" { " --client" } else { "" }
    )]
    KeyElsewhere {
        /// The folder.
        dir: PathBuf,
        /// The file's name.
        role: &'static str,
    },
    /// The authority's key and certificate do not fit.
    #[error(
        "authority.key in {} is not of the authority.pem beside it; if that came from another machine, delete \
         authority.key, else restore both",
        dir.display()
    )]
    ForeignKey {
        /// The folder.
        dir: PathBuf,
    },
    /// Nothing can be issued here.
    #[error("{} has not the authority's key; run this on the machine where the authority was made", dir.display())]
    NoKey {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder for new certificates belongs to something else.
    #[error("{} holds {what}; choose another folder", dir.display())]
    Occupied {
        /// The folder.
        dir: PathBuf,
        /// What stands there.
        what: String,
    },
    /// Making a key or a certificate failed.
    #[error("making a certificate failed; this is a defect")]
    Make(#[source] rcgen::Error),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The certificate is no PEM.
    #[error("it is no PEM certificate: {0}")]
    Pem(String),
    /// The certificate is no X.509.
    #[error("it is no X.509 certificate")]
    Certificate,
    /// The key is none.
    #[error("it is no key")]
    Key(#[source] rcgen::Error),
}

impl Coded for IdentityError {
    fn code(&self) -> Code {
        match self {
            Self::File { .. } | Self::Random(_) => Code::Unavailable,
            Self::Exposed { .. }
            | Self::Damaged { .. }
            | Self::AuthorityExpired { .. }
            | Self::ForeignKey { .. }
            | Self::NoKey { .. }
            | Self::Occupied { .. }
            | Self::KeyElsewhere { .. } => Code::FailedPrecondition,
            Self::Make(_) => Code::Internal,
        }
    }
}

/// The authority of a cluster, and the certificates in its folder.
pub struct Authority {
    dir: PathBuf,
    certificate_pem: String,
    /// `None`: the key is elsewhere.
    issuer: Option<Issuer<'static, KeyPair>>,
    /// Made by this very opening.
    is_new: bool,
    /// Tells those who serve with these certificates to look at the files.
    looks: watch::Sender<()>,
}

/// One certificate of a folder, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What it is for.
    pub role: Role,
    /// When it expires.
    pub expires: SystemTime,
    /// To whom it was issued, if that was said.
    pub holder: Option<String>,
    /// Whether it is of this authority and its key is beside it.
    pub usable: bool,
}

impl Leaf {
    /// How long it is still valid, by this machine's clock.
    pub fn left(&self) -> Duration {
        certificate::left(self.expires)
    }

    /// Whether nobody accepts it any more.
    pub fn has_expired(&self) -> bool {
        self.left().is_zero()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the authority in `pki_dir`, or makes the folder and the authority. Blocks: a few milliseconds, or
    /// as long as another process is making it.
    pub fn open_or_create(pki_dir: &Path) -> Result<Self, IdentityError> {
        let folder = Folder::lock(pki_dir)?;
        match Self::read(&folder)? {
            Some(authority) => Ok(authority),
            None => Self::create(&folder),
        }
    }

    /// Reads the authority in `pki_dir`; `None`: there is none, and nothing was made. Blocks as
    /// [`Self::open_or_create`].
    pub fn open(pki_dir: &Path) -> Result<Option<Self>, IdentityError> {
        // A folder that is missing stays missing.
        if pki_dir.join(AUTHORITY_PEM).try_exists().is_ok_and(|exists| !exists) {
            return Ok(None);
        }
        Self::read(&Folder::lock(pki_dir)?)
    }

    fn read(folder: &Folder) -> Result<Option<Self>, IdentityError> {
        // The certificate is written last: without it, a key is left over from a start that was cut off.
        let Some(certificate_pem) = folder.read(AUTHORITY_PEM)? else { return Ok(None) };
        let damaged = |source| folder.damaged(AUTHORITY_PEM, source);
        if Facts::of(&certificate_pem).map_err(damaged)?.left().is_zero() {
            return Err(IdentityError::AuthorityExpired { dir: folder.dir.clone() });
        }
        let issuer = match folder.read_key(AUTHORITY_KEY)? {
            Some(key) if is_for(&certificate_pem, &key).map_err(damaged)? => {
                let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key);
                Some(issuer.map_err(|error| damaged(Damage::Key(error)))?)
            }
            // What it signed, nobody would accept.
            Some(_) => return Err(IdentityError::ForeignKey { dir: folder.dir.clone() }),
            None => None,
        };
        Ok(Some(Self::new(folder, certificate_pem, issuer, false)))
    }

    fn create(folder: &Folder) -> Result<Self, IdentityError> {
        let key = new_key()?;
        let params = certificate::of_authority()?;
        let certificate = params.self_signed(&key).map_err(IdentityError::Make)?;
        folder.write(AUTHORITY_KEY, &key.serialize_pem())?;
        folder.write(AUTHORITY_PEM, &certificate.pem())?;
        Ok(Self::new(folder, certificate.pem(), Some(Issuer::new(params, key)), true))
    }

    fn new(folder: &Folder, pem: String, issuer: Option<Issuer<'static, KeyPair>>, is_new: bool) -> Self {
        let looks = watch::Sender::new(());
        Self { dir: folder.dir.clone(), certificate_pem: pem, issuer, is_new, looks }
    }

    /// The authority's certificate: what clients trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The fingerprint of that certificate: what clients elsewhere are told.
    pub fn fingerprint(&self) -> Result<Fingerprint, IdentityError> {
        let read = Fingerprint::of_pem(&self.certificate_pem);
        read.map_err(|error| self.damaged(Damage::Pem(error.to_string())))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether certificates can be made here.
    pub fn has_key(&self) -> bool {
        self.issuer.is_some()
    }

    /// Whether it was made by this very opening.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Deletes an authority that was made by this very opening, and nobody heard of; another one stays.
    pub fn discard(self) -> Result<(), IdentityError> {
        if !self.is_new {
            return Ok(());
        }
        let folder = Folder::lock(&self.dir)?;
        if folder.read(AUTHORITY_PEM)?.as_deref() == Some(&self.certificate_pem) {
            // In this order a cut between the two leaves a key alone, which the next start overwrites.
            folder.remove(AUTHORITY_PEM)?;
            folder.remove(AUTHORITY_KEY)?;
        }
        Ok(())
    }

    /// The certificate for `role`, with its key. Makes it if there is none that is valid for some time. Blocks as
    /// [`Self::open_or_create`].
    pub fn identity(&self, role: Role) -> Result<Identity, IdentityError> {
        let folder = Folder::lock(&self.dir)?;
        let stored = self.stored(&folder, role)?;
        match (&self.issuer, stored) {
            (_, Some((identity, left))) if left > RENEW_BELOW => Ok(identity),
            (Some(issuer), _) => issue(&folder, issuer, role, None),
            (None, Some((identity, left))) if left > Duration::ZERO => Ok(identity),
            (None, _) => Err(IdentityError::KeyElsewhere { dir: self.dir.clone(), role: role.file() }),
        }
    }

    /// Issues certificates into `out`, for another machine or for a client: those of the services, and with `client`
    /// an administrator's. Each of them is new, so a repeat is a renewal. `holder` is written into them, for people.
    ///
    /// Makes the folder, owner-only. Refuses one that holds an authority's key or another cluster's certificates.
    /// The authority's key stays here. Blocks as [`Self::open_or_create`].
    pub fn issue(&self, out: &Path, holder: &str, client: bool) -> Result<(), IdentityError> {
        let issuer = self.issuer.as_ref().ok_or_else(|| IdentityError::NoKey { dir: self.dir.clone() })?;
        let folder = Folder::lock(out)?;
        let occupied = |what| Err(IdentityError::Occupied { dir: out.to_owned(), what });
        if out.join(AUTHORITY_KEY).exists() {
            return occupied("an authority's key".to_owned());
        }
        match folder.read(AUTHORITY_PEM)? {
            None => folder.write(AUTHORITY_PEM, &self.certificate_pem)?,
            Some(pem) => {
                let theirs = Fingerprint::of_pem(&pem);
                let theirs =
                    theirs.map_err(|error| folder.damaged(AUTHORITY_PEM, Damage::Pem(error.to_string())))?;
                if theirs != self.fingerprint()? {
                    return occupied(format!("certificates of another authority, {theirs}"));
                }
            }
        }
        for role in Role::ALL.into_iter().filter(|role| client || *role != Role::Administrator) {
            issue(&folder, issuer, role, Some(holder))?;
        }
        Ok(())
    }

    /// The stored certificate for `role`, for people; `None`: there is none.
    pub fn leaf(&self, role: Role) -> Result<Option<Leaf>, IdentityError> {
        let folder = Folder::lock(&self.dir)?;
        let name = format!("{}.pem", role.file());
        let Some(pem) = folder.read(&name)? else { return Ok(None) };
        let facts = Facts::of(&pem).map_err(|source| folder.damaged(&name, source))?;
        let usable = self.stored(&folder, role)?.is_some();
        Ok(Some(Leaf { role, expires: facts.not_after, holder: facts.holder, usable }))
    }

    /// When the stored certificate for `role` expires; `None` if there is none.
    pub fn expiry(&self, role: Role) -> Result<Option<SystemTime>, IdentityError> {
        Ok(self.leaf(role)?.map(|leaf| leaf.expires))
    }

    /// When the authority expires.
    pub fn authority_expiry(&self) -> Result<SystemTime, IdentityError> {
        Ok(Facts::of(&self.certificate_pem).map_err(|source| self.damaged(source))?.not_after)
    }

    /// Has whoever serves with these certificates look at the files now instead of within a minute.
    pub fn look_again(&self) {
        self.looks.send_replace(());
    }

    /// The stored certificate for `role` and how long it is still valid, if it belongs to its key and to this
    /// authority.
    fn stored(&self, folder: &Folder, role: Role) -> Result<Option<(Identity, Duration)>, IdentityError> {
        let (pem, key) = (format!("{}.pem", role.file()), format!("{}.key", role.file()));
        let (Some(certificate_pem), Some(key)) = (folder.read(&pem)?, folder.read_key(&key)?) else {
            return Ok(None);
        };
        let damaged = |source| folder.damaged(&pem, source);
        let ours = is_for(&certificate_pem, &key).map_err(damaged)?
            && is_signed_by(&certificate_pem, &self.certificate_pem).map_err(damaged)?;
        if !ours {
            return Ok(None);
        }
        let left = Facts::of(&certificate_pem).map_err(damaged)?.left();
        Ok(Some((Identity { certificate_pem, key_pem: key.serialize_pem() }, left)))
    }

    fn damaged(&self, source: Damage) -> IdentityError {
        IdentityError::Damaged { path: self.dir.join(AUTHORITY_PEM), source }
    }
}

const AUTHORITY_PEM: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";

/// Makes a certificate and writes it into the folder.
fn issue(
    folder: &Folder,
    issuer: &Issuer<'_, KeyPair>,
    role: Role,
    holder: Option<&str>,
) -> Result<Identity, IdentityError> {
    let key = new_key()?;
    let certificate =
        certificate::of_role(role, holder)?.signed_by(&key, issuer).map_err(IdentityError::Make)?;
    let identity = Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() };
    // Cut off between the two: the certificate that is left belongs to another key, and is made anew.
    folder.write(&format!("{}.key", role.file()), &identity.key_pem)?;
    folder.write(&format!("{}.pem", role.file()), &identity.certificate_pem)?;
    Ok(identity)
}
