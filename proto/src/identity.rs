//! The cluster's authority and the certificates that it signs, in the folder `pki` of a data directory.
//!
//! Made on first start, owner-only, each file whole or not there; two processes that start at once wait for
//! each other by a lock on the folder. A certificate that is about to expire, belongs to another key or to another
//! authority is made anew. The authority's key never leaves the folder where it was made: elsewhere the folder
//! holds the authority's certificate and the leaf that was issued for that place, and both are only read.
//!
//! Keys are Ed25519: with ring a handshake signs once and verifies twice in 90 µs, with ECDSA P-256 in 120 µs.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::code::{Code, Coded};
use crate::endpoint::{ADMINISTRATOR_NAME, CORE_NAME, ENVIRONMENT_NAME, Identity};

const DAY: Duration = Duration::from_hours(24);

/// Lifetime of the authority. Replacing it means touching every node, so it is long.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(24 * 365 * 10);

/// Lifetime of the others.
const LEAF_LIFETIME: Duration = Duration::from_hours(24 * 365);

/// With less than this left, a certificate is made anew at the next start of its service.
const RENEW_BELOW: Duration = Duration::from_hours(24 * 120);

/// A certificate is valid from so long before it was made: another machine's clock may be behind.
const CLOCKS_DIFFER_BY: Duration = DAY;

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
    fn file(self) -> &'static str {
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
    #[error("the authority in {} has expired; delete the folder, restart, and give its authority.pem to the others", dir.display())]
    AuthorityExpired {
        /// The folder.
        dir: PathBuf,
    },
    /// There is no valid certificate for this role here, and no key to make one.
    #[error(
        "{} has no valid {role}.pem, and the authority's key is elsewhere; issue one where it was made",
        dir.display()
    )]
    KeyElsewhere {
        /// The folder.
        dir: PathBuf,
        /// The file's name.
        role: &'static str,
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
        // The certificate is written last: without it, a key is left over from a start that was cut off.
        let Some(certificate_pem) = folder.read("authority.pem")? else {
            return Self::create(&folder);
        };
        let validity =
            Validity::of(&certificate_pem).map_err(|source| folder.damaged("authority.pem", source))?;
        if validity.not_after <= now() {
            return Err(IdentityError::AuthorityExpired { dir: pki_dir.to_owned() });
        }
        let issuer = match folder.read_key("authority.key")? {
            Some(key) => {
                let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key);
                Some(issuer.map_err(|error| folder.damaged("authority.pem", Damage::Key(error)))?)
            }
            None => None,
        };
        Ok(Self { dir: pki_dir.to_owned(), certificate_pem, issuer })
    }

    fn create(folder: &Folder) -> Result<Self, IdentityError> {
        let key = new_key()?;
        let mut params = params("Dormouse authority", AUTHORITY_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(IdentityError::Make)?;
        folder.write("authority.key", &key.serialize_pem())?;
        folder.write("authority.pem", &certificate.pem())?;
        Ok(Self {
            dir: folder.dir.clone(),
            certificate_pem: certificate.pem(),
            issuer: Some(Issuer::new(params, key)),
        })
    }

    /// The authority's certificate: what clients trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate for `role`, with its key. Makes it if there is none that is valid for some time. Blocks as
    /// [`Self::open_or_create`].
    pub fn identity(&self, role: Role) -> Result<Identity, IdentityError> {
        let folder = Folder::lock(&self.dir)?;
        let stored = self.stored(&folder, role)?;
        match (&self.issuer, stored) {
            (_, Some((identity, left))) if left > RENEW_BELOW => Ok(identity),
            (Some(issuer), _) => Self::issue(&folder, issuer, role),
            (None, Some((identity, left))) if left > Duration::ZERO => Ok(identity),
            (None, _) => Err(IdentityError::KeyElsewhere { dir: self.dir.clone(), role: role.file() }),
        }
    }

    /// When the stored certificate for `role` expires; `None` if there is none.
    pub fn expiry(&self, role: Role) -> Result<Option<SystemTime>, IdentityError> {
        let folder = Folder::lock(&self.dir)?;
        let name = format!("{}.pem", role.file());
        let Some(pem) = folder.read(&name)? else { return Ok(None) };
        let validity = Validity::of(&pem).map_err(|source| folder.damaged(&name, source))?;
        Ok(Some(validity.not_after))
    }

    /// When the authority expires.
    pub fn authority_expiry(&self) -> Result<SystemTime, IdentityError> {
        let validity = Validity::of(&self.certificate_pem)
            .map_err(|source| IdentityError::Damaged { path: self.dir.join("authority.pem"), source })?;
        Ok(validity.not_after)
    }

    /// The stored certificate for `role` and how long it is still valid, if it belongs to its key and to this
    /// authority.
    fn stored(&self, folder: &Folder, role: Role) -> Result<Option<(Identity, Duration)>, IdentityError> {
        let (pem, key) = (format!("{}.pem", role.file()), format!("{}.key", role.file()));
        let (Some(certificate_pem), Some(key)) = (folder.read(&pem)?, folder.read_key(&key)?) else {
            return Ok(None);
        };
        let ours = belongs(&certificate_pem, &key, &self.certificate_pem)
            .map_err(|source| folder.damaged(&pem, source))?;
        if !ours {
            return Ok(None);
        }
        let validity = Validity::of(&certificate_pem).map_err(|source| folder.damaged(&pem, source))?;
        let left = validity.not_after.duration_since(now()).unwrap_or_default();
        Ok(Some((Identity { certificate_pem, key_pem: key.serialize_pem() }, left)))
    }

    fn issue(folder: &Folder, issuer: &Issuer<'_, KeyPair>, role: Role) -> Result<Identity, IdentityError> {
        let key = new_key()?;
        let mut params = params(role.name(), LEAF_LIFETIME)?;
        let name = role.name().try_into().map_err(IdentityError::Make)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![role.usage()];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, issuer).map_err(IdentityError::Make)?;
        let identity = Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() };
        // Cut off between the two: the certificate that is left belongs to another key, and is made anew.
        folder.write(&format!("{}.key", role.file()), &identity.key_pem)?;
        folder.write(&format!("{}.pem", role.file()), &identity.certificate_pem)?;
        Ok(identity)
    }
}

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::Make)
}

fn params(name: &str, lifetime: Duration) -> Result<CertificateParams, IdentityError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(IdentityError::Random)?;
    // A serial number is positive, so its highest bit is 0.
    serial[0] &= 0x7f;
    let since_epoch = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = date_time_ymd(1970, 1, 1) + since_epoch;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - CLOCKS_DIFFER_BY;
    params.not_after = now + lifetime;
    Ok(params)
}

/// The machine's clock: what a peer holds a certificate against.
#[expect(clippy::disallowed_methods, reason = "certificates know no other clock than the machine's")]
fn now() -> SystemTime {
    SystemTime::now()
}

struct Validity {
    not_after: SystemTime,
}

impl Validity {
    fn of(pem: &str) -> Result<Self, Damage> {
        let der = first_certificate(pem)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| Damage::Certificate)?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { not_after: UNIX_EPOCH + Duration::from_secs(seconds) })
    }
}

/// Whether `authority` has signed `certificate`, and for `key`.
fn belongs(certificate: &str, key: &KeyPair, authority: &str) -> Result<bool, Damage> {
    let (certificate, authority) = (first_certificate(certificate)?, first_certificate(authority)?);
    let (_, certificate) = X509Certificate::from_der(&certificate).map_err(|_| Damage::Certificate)?;
    let (_, authority) = X509Certificate::from_der(&authority).map_err(|_| Damage::Certificate)?;
    let same_key = certificate.public_key().raw == key.subject_public_key_info();
    Ok(same_key && certificate.verify_signature(Some(authority.public_key())).is_ok())
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, Damage> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Damage::Pem(error.to_string()))
}

/// The folder, locked as long as this lives.
struct Folder {
    dir: PathBuf,
    lock: File,
}

impl Folder {
    fn lock(dir: &Path) -> Result<Self, IdentityError> {
        let failed = |action| move |source| IdentityError::File { action, path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create"))?;
        // The folder itself is what is locked: no file of its own, nothing to clean up.
        let lock = File::open(dir).map_err(failed("open"))?;
        lock.lock().map_err(failed("lock"))?;
        Ok(Self { dir: dir.to_owned(), lock })
    }

    fn read(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { action: "read", path, source }),
        }
    }

    fn read_key(&self, name: &str) -> Result<Option<KeyPair>, IdentityError> {
        let Some(pem) = self.read(name)? else { return Ok(None) };
        let path = self.dir.join(name);
        let metadata = fs::metadata(&path).map_err(|source| IdentityError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        KeyPair::from_pem(&pem).map(Some).map_err(|error| self.damaged(name, Damage::Key(error)))
    }

    /// Writes a file that is whole or not there, also after a power cut.
    fn write(&self, name: &str, text: &str) -> Result<(), IdentityError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        let written = (|| {
            // One that a cut-off start left behind is overwritten; its permissions may be anything.
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.lock.sync_all()
        })();
        written.map_err(|source| IdentityError::File { action: "write", path, source })
    }

    fn damaged(&self, name: &str, source: Damage) -> IdentityError {
        IdentityError::Damaged { path: self.dir.join(name), source }
    }
}
