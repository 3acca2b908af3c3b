//! From a target to a TLS configuration, and from what TLS says to a sentence with a remedy.

use std::{
    io::{Error as IoError, ErrorKind},
    path::{Path, PathBuf},
};

use dormouse_proto::{
    call::ManagementProtocol,
    endpoint::{self, Identity, TlsError, Transport},
    trust::{Distrust, Trust},
};

use crate::{Authority, Error, Target};

/// Reads what the target names. Without a token the administrator's certificate is needed.
pub(crate) fn config(target: &Target, has_token: bool) -> Result<quinn::ClientConfig, Error> {
    let identity = if has_token { None } else { Some(administrator(target)?) };
    let pem;
    let (trust, file) = match target.authority() {
        Authority::Fingerprint(fingerprint) => (Trust::Fingerprint(*fingerprint), target.pki()),
        Authority::File(path) => {
            pem = read(path).map_err(|source| Error::File { path: path.clone(), source })?;
            (Trust::Authority(&pem), path.clone())
        }
        Authority::OfDirectory => {
            let path = target.pki().join("authority.pem");
            pem = read(&path).map_err(|source| match source.kind() {
                ErrorKind::NotFound => Error::NoAuthority(path.clone()),
                _ => Error::Credentials { pki: target.pki(), source: source.into() },
            })?;
            (Trust::Authority(&pem), path)
        }
    };
    let config =
        endpoint::client_config_with::<ManagementProtocol>(trust, identity.as_ref(), &Transport::default());
    config.map_err(|source| Error::Unusable { path: file, source: source.into() })
}

fn administrator(target: &Target) -> Result<Identity, Error> {
    let pki = target.pki();
    let loaded = Identity::load(&pki.join("administrator.pem"), &pki.join("administrator.key"));
    loaded.map_err(|error| match error {
        TlsError::Read { source, .. } if source.kind() == ErrorKind::NotFound => Error::NoCredential { pki },
        error => Error::Credentials { pki, source: error.into() },
    })
}

fn read(path: &Path) -> Result<String, IoError> {
    std::fs::read_to_string(path)
}

/// What to do about it.
pub(crate) fn remedy(target: &Target, distrust: Distrust) -> String {
    let ours = target.pki().join("administrator.pem");
    match distrust {
        Distrust::ServerAuthority => wrong_authority(target),
        Distrust::ServerExpired => {
            "its certificate is not valid now: compare both machines' clocks; if it has \
            expired, renew it with `dormouse certs issue` where the cluster's authority is"
                .to_owned()
        }
        Distrust::ServerName | Distrust::Protocol => {
            "that is no environment of Dormouse: give the address of one, port 8002 by default".to_owned()
        }
        Distrust::ClientAuthority => format!(
            "{} is of another cluster's authority: name the right data directory, copy `pki/` from it, or set \
             DORMOUSE_TOKEN",
            ours.display()
        ),
        Distrust::ClientExpired => format!(
            "{} is not valid now: compare both machines' clocks; if it has expired, renew it with `dormouse certs \
             issue NAME --out DIR --client` where the cluster's authority is",
            ours.display()
        ),
        Distrust::ClientCertificate => {
            format!(
                "it does not take {} for a client's certificate: set DORMOUSE_TOKEN instead",
                ours.display()
            )
        }
        Distrust::Other => "check the address, the authority and the certificates".to_owned(),
    }
}

fn wrong_authority(target: &Target) -> String {
    let of_file = |path: PathBuf| {
        format!(
            "it is of another authority than {}: compare that with `dormouse certs show` on the services' machine, \
             and name the right file or fingerprint with --ca or DORMOUSE_CA",
            path.display()
        )
    };
    match target.authority() {
        Authority::Fingerprint(fingerprint) => format!(
            "it shows no authority with the fingerprint {fingerprint}: compare that with `dormouse certs show` on \
             the services' machine; if it is the right one, somebody else answers at this address"
        ),
        Authority::File(path) => of_file(path.clone()),
        Authority::OfDirectory => of_file(target.pki().join("authority.pem")),
    }
}
