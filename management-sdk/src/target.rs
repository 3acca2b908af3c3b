//! Where the services are and who we are to them: an address and a folder of certificates.

use std::path::{Path, PathBuf};

use crate::Error;

/// The address of an environment and the folder that holds the administrator's certificate.
///
/// Without an address of its own it is read from the data directory at each connect, so
/// that services which come back on another port are found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    server: Option<String>,
    data_dir: PathBuf,
}

impl Target {
    /// The services of this data directory.
    #[must_use]
    pub fn data_dir(path: impl Into<PathBuf>) -> Self {
        Self { server: None, data_dir: path.into() }
    }

    /// The services at `host:port`, with the certificates in the data directory's `pki/`.
    #[must_use]
    pub fn with_server(mut self, address: impl Into<String>) -> Self {
        self.server = Some(address.into());
        self
    }

    /// `DORMOUSE_SERVER` and `DORMOUSE_DATA_DIR`, each with its default.
    pub fn from_environment() -> Result<Self, Error> {
        let mut target = Self::data_dir(default_data_dir()?);
        if let Some(server) = variable("DORMOUSE_SERVER") {
            let server = server.into_string().map_err(|value| {
                Error::Argument(format!(
                    "DORMOUSE_SERVER is {}; it must be text such as 127.0.0.1:8002",
                    value.display()
                ))
            })?;
            target = target.with_server(server);
        }
        Ok(target)
    }

    /// The data directory: of the services themselves, or one that holds only `pki/`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the certificates.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// `host:port` to connect to, read anew each time.
    pub(crate) fn address(&self) -> Result<String, Error> {
        if let Some(server) = &self.server {
            return parse_address(server);
        }
        let path = self.data_dir.join("environment.address");
        match std::fs::read_to_string(&path) {
            Ok(address) => parse_address(address.trim()),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NeverStarted(self.data_dir.clone()))
            }
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Set if the address comes from the data directory, for messages.
    pub(crate) fn own_directory(&self) -> Option<PathBuf> {
        self.server.is_none().then(|| self.data_dir.clone())
    }
}

/// `host:port`; a missing port is the default one, 8002.
fn parse_address(text: &str) -> Result<String, Error> {
    let invalid = || {
        Error::Argument(format!(
            "the server's address is {text:?}; it must be HOST:PORT, such as 127.0.0.1:8002"
        ))
    };
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c == '/') {
        return Err(invalid());
    }
    // "::1" and "[::1]" are hosts without a port.
    let bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    if bare_v6 {
        return Ok(format!("[{text}]:{DEFAULT_PORT}"));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !text.ends_with(']') => {
            port.parse::<u16>().map_err(|_| invalid()).map(|_| text.to_owned())
        }
        Some((_, _)) if text.ends_with(']') => Ok(format!("{text}:{DEFAULT_PORT}")),
        Some(_) => Err(invalid()),
        None => Ok(format!("{text}:{DEFAULT_PORT}")),
    }
}

/// The management protocol's port.
const DEFAULT_PORT: u16 = 8002;

/// `$DORMOUSE_DATA_DIR`, else `/var/lib/dormouse` for root, else `$XDG_DATA_HOME/dormouse`,
/// else `~/.local/share/dormouse`.
pub fn default_data_dir() -> Result<PathBuf, Error> {
    if let Some(dir) = variable("DORMOUSE_DATA_DIR") {
        return Ok(dir.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/dormouse".into());
    }
    if let Some(dir) = variable("XDG_DATA_HOME") {
        return Ok(Path::new(&dir).join("dormouse"));
    }
    match variable("HOME") {
        Some(home) => Ok(Path::new(&home).join(".local/share/dormouse")),
        None => Err(Error::Argument(
            "no data directory: HOME is not set; name one with --data-dir or DORMOUSE_DATA_DIR".to_owned(),
        )),
    }
}

/// An environment variable that is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "a controller's configuration: read once, when a target is made"
)]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_with_the_port() {
        for (given, expected) in [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("localhost", "localhost:8002"),
            ("::1", "[::1]:8002"),
            ("[::1]", "[::1]:8002"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(parse_address(given).expect(given), expected);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for given in ["", "host:port", ":8002", "http://host:1", "a b:1", "host:70000"] {
            let error = parse_address(given).expect_err(given);
            assert!(error.to_string().contains("HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_directory_without_services_says_how_to_start_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = Target::data_dir(dir.path()).address().expect_err("nothing ran here");
        assert!(matches!(error, Error::NeverStarted(_)), "{error}");
    }

    #[test]
    fn the_address_is_read_from_the_data_directory() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("environment.address"), "127.0.0.1:4711\n").expect("written");
        assert_eq!(Target::data_dir(dir.path()).address().expect("an address"), "127.0.0.1:4711");
    }
}
