//! When the certificates of this machine expire, for those who ask about health.

use std::{sync::Arc, time::SystemTime};

use dormouse_proto::{
    identity::{Authority, IdentityError, Role},
    management as wire,
};

use super::server::blocking;

/// Those of the machine, and what is wrong with them: one sentence each. What expires soon is no problem yet: clients
/// see when, and `dormouse doctor` warns.
pub(super) async fn certificates(authority: &Arc<Authority>) -> (Vec<wire::Certificate>, Vec<String>) {
    let authority = Arc::clone(authority);
    match blocking(move || read(&authority)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => (Vec::new(), vec![error.to_string()]),
        Err(refusal) => (Vec::new(), vec![refusal.message]),
    }
}

fn read(authority: &Authority) -> Result<(Vec<wire::Certificate>, Vec<String>), IdentityError> {
    let certificate = |name: &str, at| wire::Certificate { name: name.to_owned(), expires_at: micros(at) };
    let mut found = vec![certificate("authority", authority.authority_expiry()?)];
    let mut problems = Vec::new();
    for role in Role::ALL {
        let Some(leaf) = authority.leaf(role)? else { continue };
        let name = role.file();
        found.push(certificate(name, leaf.expires));
        if leaf.has_expired() {
            problems.push(format!(
                "the certificate of {name} has expired; run `dormouse doctor` on this machine"
            ));
        } else if !leaf.usable {
            problems.push(format!(
                "{name}.pem on this machine is of another authority or without its key, and is not used; run `dormouse \
                 doctor` there"
            ));
        }
    }
    Ok((found, problems))
}

fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
