//! What stands in a certificate, and what is written into a new one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Damage, IdentityError, Role};

const DAY: Duration = Duration::from_hours(24);

/// Lifetime of the authority. Replacing it means touching every node, so it is long.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(24 * 365 * 10);

/// Lifetime of the others.
const LEAF_LIFETIME: Duration = Duration::from_hours(24 * 365);

/// A certificate is valid from so long before it was made: another machine's clock may be behind.
const CLOCKS_DIFFER_BY: Duration = DAY;

/// A new authority's certificate.
pub(super) fn of_authority() -> Result<CertificateParams, IdentityError> {
    let mut params = params("Dormouse authority", AUTHORITY_LIFETIME)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A new certificate for `role`; `holder` says to whom it was given, for people.
pub(super) fn of_role(role: Role, holder: Option<&str>) -> Result<CertificateParams, IdentityError> {
    let mut params = params(role.name(), LEAF_LIFETIME)?;
    if let Some(holder) = holder {
        params.distinguished_name.push(DnType::OrganizationalUnitName, holder);
    }
    let name = role.name().try_into().map_err(IdentityError::Make)?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![role.usage()];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(super) fn new_key() -> Result<KeyPair, IdentityError> {
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

/// What people want to know of a certificate.
pub(super) struct Facts {
    pub(super) not_after: SystemTime,
    pub(super) holder: Option<String>,
}

impl Facts {
    pub(super) fn of(pem: &str) -> Result<Self, Damage> {
        let der = first_certificate(pem)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| Damage::Certificate)?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let holder = certificate.subject().iter_organizational_unit().find_map(|unit| unit.as_str().ok());
        Ok(Self {
            not_after: UNIX_EPOCH + Duration::from_secs(seconds),
            holder: holder.map(|text| text.chars().filter(|c| !c.is_control()).collect()),
        })
    }

    /// How long it is still valid.
    pub(super) fn left(&self) -> Duration {
        left(self.not_after)
    }
}

/// How long it is until then; zero if it is over.
pub(super) fn left(until: SystemTime) -> Duration {
    until.duration_since(now()).unwrap_or_default()
}

/// Whether `certificate` is for `key`.
pub(super) fn is_for(certificate: &str, key: &KeyPair) -> Result<bool, Damage> {
    let certificate = first_certificate(certificate)?;
    let (_, certificate) = X509Certificate::from_der(&certificate).map_err(|_| Damage::Certificate)?;
    Ok(certificate.public_key().raw == key.subject_public_key_info())
}

/// Whether `authority` has signed `certificate`.
pub(super) fn is_signed_by(certificate: &str, authority: &str) -> Result<bool, Damage> {
    let (certificate, authority) = (first_certificate(certificate)?, first_certificate(authority)?);
    let (_, certificate) = X509Certificate::from_der(&certificate).map_err(|_| Damage::Certificate)?;
    let (_, authority) = X509Certificate::from_der(&authority).map_err(|_| Damage::Certificate)?;
    Ok(certificate.verify_signature(Some(authority.public_key())).is_ok())
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, Damage> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Damage::Pem(error.to_string()))
}
