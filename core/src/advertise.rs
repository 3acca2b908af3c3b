//! What a service tells others about where it listens.

use std::net::SocketAddr;

use dormouse_proto::code::{Code, Coded};

use crate::{config::HostPort, store::Kind};

/// Why a service cannot tell others where it listens.
#[derive(Debug, thiserror::Error)]
pub enum AdvertiseError {
    /// Bound to all addresses of the machine, which is none that others could connect to.
    #[error(
        "{flag} is not given and the service listens on {bound}, which other machines cannot connect to; \
         give {flag} HOST:PORT, or listen on one address"
    )]
    Unspecified {
        /// The flag that would tell.
        flag: &'static str,
        /// What is bound.
        bound: SocketAddr,
    },
}

impl Coded for AdvertiseError {
    fn code(&self) -> Code {
        match self {
            Self::Unspecified { .. } => Code::FailedPrecondition,
        }
    }
}

/// What others are told: what was asked for, else what is bound. On SQLite nobody else listens to it.
pub fn advertised(
    flag: &'static str,
    asked: Option<&HostPort>,
    bound: SocketAddr,
    kind: Kind,
) -> Result<String, AdvertiseError> {
    match asked {
        Some(asked) => Ok(asked.0.clone()),
        None if bound.ip().is_unspecified() && kind == Kind::Postgres => {
            Err(AdvertiseError::Unspecified { flag, bound })
        }
        None => Ok(bound.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAG: &str = "--advertise-core";

    #[test]
    fn what_others_can_connect_to_passes() {
        let bound: SocketAddr = "10.0.0.3:8001".parse().expect("an address");
        let all: SocketAddr = "0.0.0.0:8001".parse().expect("an address");
        assert_eq!(advertised(FLAG, None, bound, Kind::Postgres).ok().as_deref(), Some("10.0.0.3:8001"));
        assert_eq!(advertised(FLAG, None, all, Kind::Sqlite).ok().as_deref(), Some("0.0.0.0:8001"));
        let given = HostPort("core-1.example.org:8001".to_owned());
        assert_eq!(advertised(FLAG, Some(&given), all, Kind::Postgres).ok(), Some(given.0));
    }

    #[test]
    fn what_others_cannot_connect_to_is_refused_with_the_flag_that_helps() {
        let all: SocketAddr = "[::]:8001".parse().expect("an address");
        let refused = advertised(FLAG, None, all, Kind::Postgres).expect_err("nobody connects there");
        assert!(refused.to_string().contains("give --advertise-core HOST:PORT"), "{refused}");
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
}
