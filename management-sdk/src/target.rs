//! Where the services are, whom we trust to be them, and who we are to them.
//!
//! On the services' machine the data directory answers all three. Elsewhere they are said one by one: an address,
//! the cluster's authority (its certificate or that one's fingerprint), and a token. Files are read anew at each
//! connect, so that what was renewed or exchanged is found.

use std::path::{Path, PathBuf};

use dormouse_proto::trust::Fingerprint;

use crate::{Error, token::Token};

/// An environment, whom we trust to be it, and who we are to it.
///
/// Without an address of its own it is read from the data directory at each connect, so
/// that services which come back on another port are found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    server: Option<String>,
    data_dir: PathBuf,
    certs: Option<PathBuf>,
    authority: Authority,
    token: Token,
}

/// The authority that the services must be of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// The one of the data directory: `pki/authority.pem`.
    #[default]
    OfDirectory,
    /// The one whose certificate is in this PEM file.
    File(PathBuf),
    /// The one whose certificate has this fingerprint.
    Fingerprint(Fingerprint),
}

impl Authority {
    /// A file's path, or a fingerprint as `dormouse certs show` prints it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.starts_with("sha256:") {
            let fingerprint =
                text.parse().map_err(|error| Error::Argument(format!("the authority: {error}")))?;
            return Ok(Self::Fingerprint(fingerprint));
        }
        Ok(Self::File(text.into()))
    }
}

impl Target {
    /// The services of this data directory, as its administrator.
    #[must_use]
    pub fn data_dir(path: impl Into<PathBuf>) -> Self {
        let (server, certs) = (None, None);
        Self { server, data_dir: path.into(), certs, authority: Authority::OfDirectory, token: Token::None }
    }

    /// The services at `host:port`, with the certificates in the data directory's `pki/` for all that is
    /// not said otherwise.
    #[must_use]
    pub fn with_server(mut self, address: impl Into<String>) -> Self {
        self.server = Some(address.into());
        self
    }

    /// With the certificates in this folder instead of the data directory's `pki/`.
    #[must_use]
    pub fn with_certs(mut self, dir: impl Into<PathBuf>) -> Self {
        self.certs = Some(dir.into());
        self
    }

    /// Only services of this authority.
    #[must_use]
    pub fn with_authority(mut self, authority: Authority) -> Self {
        self.authority = authority;
        self
    }

    /// As the holder of a token, with its tenant and its rights; no certificate is shown then.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// `DORMOUSE_SERVER`, `DORMOUSE_CA`, `DORMOUSE_TOKEN` or `DORMOUSE_TOKEN_FILE`, `DORMOUSE_DATA_DIR`, and
    /// `DORMOUSE_CERTS`, each with its default.
    pub fn from_environment() -> Result<Self, Error> {
        let mut target = Self::data_dir(default_data_dir()?).with_token(Token::from_environment()?);
        if let Some(certs) = variable("DORMOUSE_CERTS") {
            target = target.with_certs(certs);
        }
        if let Some(server) = text_variable("DORMOUSE_SERVER", "text such as 127.0.0.1:8002")? {
            target = target.with_server(server);
        }
        if let Some(authority) = text_variable("DORMOUSE_CA", "a file's path or a fingerprint")? {
            target = target.with_authority(Authority::parse(&authority)?);
        }
        Ok(target)
    }

    /// Whom we trust.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where the secret that we show comes from.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The data directory: of the services themselves, or one that holds only `pki/`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the certificates.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.certs.clone().unwrap_or_else(|| self.data_dir.join("pki"))
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

/// An environment variable that is set and not empty, as text.
fn text_variable(name: &str, example: &str) -> Result<Option<String>, Error> {
    let text = variable(name).map(std::ffi::OsString::into_string).transpose();
    text.map_err(|value| Error::Argument(format!("{name} is {}; it must be {example}", value.display())))
}

/// An environment variable that is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "a controller's configuration: read once, when a target is made"
)]
pub(crate) fn variable(name: &str) -> Option<std::ffi::OsString> {
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
    fn an_authority_is_a_file_or_a_fingerprint() {
        let text = format!("sha256:{}", "0f".repeat(32));
        let Authority::Fingerprint(found) = Authority::parse(&text).expect("a fingerprint") else {
            panic!("taken for a file")
        };
        assert_eq!(found.to_string(), text);
        assert_eq!(Authority::parse("a/b.pem").expect("a path"), Authority::File("a/b.pem".into()));
        let error = Authority::parse("sha256:12").expect_err("too short");
        assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
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
