//! What is wrong with a configuration: key, value, source, and what would pass.

use std::{io, path::PathBuf};

use dormouse_proto::code::{Code, Coded};

use super::Origin;

/// Why a configuration is refused. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was named.
    #[error("the configuration file {path} ({named}) cannot be read; check the path and its permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who names it.
        named: Origin,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No TOML.
    #[error("{path}:{line} is no TOML: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// Nobody knows this key.
    #[error("{at}: there is no key {key}; {remedy}")]
    UnknownKey {
        /// As it is written.
        key: String,
        /// Where.
        at: Origin,
        /// Which may be meant.
        remedy: String,
    },
    /// A value that cannot be.
    #[error("{key} is {value} ({at}); it must be {must}")]
    Value {
        /// Of which key.
        key: &'static str,
        /// As it is written; hidden if it may hold a secret.
        value: String,
        /// Where.
        at: Origin,
        /// What would pass.
        must: String,
    },
    /// Two keys that say the same in one layer.
    #[error("{first} ({first_at}) and {second} ({second_at}) are both set; leave one out")]
    Conflict {
        /// One key.
        first: &'static str,
        /// Where.
        first_at: Origin,
        /// The other.
        second: &'static str,
        /// Where.
        second_at: Origin,
    },
    /// Nobody says where everything is kept, and there is no home directory.
    #[error("there is no data directory: HOME is not set; name one with --data-dir or DORMOUSE_DATA_DIR")]
    NoDataDir,
    /// A file that a key names.
    #[error("the file {path}, which {key} ({at}) names, {problem}")]
    NamedFile {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Where.
        at: Origin,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}
