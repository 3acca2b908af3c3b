//! Configuration in layers: defaults < file < environment < flags, the same for every program.
//!
//! - `keys`: the table of keys, and [`Values`], a field for each.
//! - `value`: types, how each is read and shown.
//! - `layers`: the file and the variables; `flags`: the command line, made from the table.
//!
//! Every value knows who said it ([`Origin`]), so a refusal names key, value, file and line (or
//! variable, or flag) and what would pass; and `dormouse config show` says what is in force and
//! why. A bad value is refused also where a higher layer hides it: it would count one day.
//! Variables of the environment that are no keys are left alone: orchestrators set some that begin
//! with DORMOUSE_ for services of that name.

mod error;
mod flags;
mod keys;
mod layers;
mod value;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use error::Error;
pub use flags::{CoreAlone, EnvironmentAlone, Flags, Program};
pub use keys::{KEYS, Key, Of, Takes, Values, must_of};
pub use layers::{Given, Origin};
pub use value::{Bytes, DatabaseUrl, HostPort, LogFilter, LogFormat, Name, Shape, Value, parse_duration};

use dormouse_proto::{door::Places, identity::Authority};

use crate::{
    limits::Limits,
    server,
    store::{self, Database},
};

/// The variable that names the file.
const CONFIG_VARIABLE: &str = "DORMOUSE_CONFIG";

/// Where values come from; kept, so that the file can be read anew while the program runs.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// With the program's own defaults as the first.
    flags: Vec<Given>,
    environment: BTreeMap<OsString, OsString>,
    file: Option<(PathBuf, Origin)>,
}

/// What is in force, and who said it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A value for each key.
    pub values: Values,
    origins: BTreeMap<&'static str, Origin>,
    database: Option<DatabaseUrl>,
    default_data_dir: Option<PathBuf>,
}

/// One line of `dormouse config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which key.
    pub key: &'static str,
    /// As a file would write it, without secrets; empty: see the key's `absent`.
    pub value: String,
    /// Who said it.
    pub origin: Origin,
}

impl Sources {
    /// Of a program with these flags and variables.
    pub fn new<P: Program>(flags: Flags<P>, environment: BTreeMap<OsString, OsString>) -> Self {
        let own = P::DEFAULTS.iter().map(|(name, text)| Given {
            key: Key::named(name).expect("a program's own defaults are of keys: a test reads them"),
            text: (*text).to_owned(),
            origin: Origin::Program(P::NAME),
        });
        let named = flags.config.map(|path| (path, Origin::Flag("--config".to_owned())));
        let file = named.or_else(|| {
            let path = environment.get(OsStr::new(CONFIG_VARIABLE)).filter(|path| !path.is_empty())?;
            Some((PathBuf::from(path), Origin::Variable(CONFIG_VARIABLE)))
        });
        Self { flags: own.chain(flags.given).collect(), environment, file }
    }

    /// The file that is read, if one is named.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Reads all layers anew. Blocking: it reads files.
    pub fn load(&self) -> Result<Settings, Error> {
        let mut given = self.flags.clone();
        given.extend(layers::variables(&self.environment)?);
        if let Some((path, named)) = &self.file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable {
                path: path.clone(),
                named: named.clone(),
                source,
            })?;
            given.extend(layers::file(path, &text)?);
        }
        let settings = Settings::read(&given)?;
        Ok(Settings { default_data_dir: default_data_dir(&self.environment), ..settings })
    }
}

impl Settings {
    fn read(given: &[Given]) -> Result<Self, Error> {
        // Each alone, so that a bad one is found beneath a good one too.
        for one in given {
            Values::read(|key| (key.name == one.key.name).then_some(one))?;
        }
        let highest = |key: &'static Key| {
            given.iter().filter(|given| given.key.name == key.name).max_by_key(|given| given.origin.layer())
        };
        let values = Values::read(highest)?;
        let origins: BTreeMap<_, _> =
            KEYS.iter().map(|key| (key.name, keys::origin_of(highest(key)))).collect();
        let database = database(&values, &origins)?;
        Ok(Self { values, origins, database, default_data_dir: None })
    }

    /// Where the services of this machine keep everything, as an absolute path.
    pub fn data_dir(&self) -> Result<PathBuf, Error> {
        let dir = self.values.data_dir.as_ref().or(self.default_data_dir.as_ref()).ok_or(Error::NoDataDir)?;
        std::path::absolute(dir).map_err(|_| Error::NoDataDir)
    }

    /// Where this machine's certificates are; without a setting in the data directory.
    pub fn certs(&self, data_dir: &Path) -> Result<PathBuf, Error> {
        match &self.values.certs {
            Some(dir) => std::path::absolute(dir).map_err(|_| Error::NoDataDir),
            None => Ok(data_dir.join("pki")),
        }
    }

    /// Who said the value of a key.
    pub fn origin(&self, key: &Key) -> &Origin {
        &self.origins[key.name]
    }

    /// Every key in the order of the table.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |key: &Key| Entry {
            key: key.name,
            value: self.values.shown(key),
            origin: self.origin(key).clone(),
        };
        KEYS.iter().map(entry).collect()
    }

    /// Where the rows are; without a setting in the data directory.
    pub fn database(&self, data_dir: &Path) -> Database {
        match &self.database {
            Some(url) => Database::parse(&url.0).expect("it was read as one"),
            None => Database::Sqlite(data_dir.join("dormouse.db")),
        }
    }

    /// How this node and this core replica are called, for people.
    pub fn name(&self) -> String {
        self.values.name.as_ref().map_or_else(server::host_name, |name| name.0.clone())
    }

    /// How the instance server runs.
    pub fn server_options(&self, data_dir: &Path, authority: Arc<Authority>) -> server::Options {
        let listen = self.values.core_listen;
        let base = server::Options::new(listen, data_dir.join("core.address"), authority);
        let connections = usize::try_from(self.values.core_connections).unwrap_or(usize::MAX);
        // All processes of a machine may have one address.
        let places = Places { connections, of_one_address: connections, ..base.places };
        let advertise = self.values.advertise_core.clone();
        server::Options { name: self.name(), advertise, places, ..base }
    }

    /// How the store is opened.
    pub fn store_options(&self, data_dir: &Path) -> store::Options {
        let base = store::Options::new(self.database(data_dir));
        store::Options { limits: self.limits(), lease: self.values.lease, ..base }
    }

    /// Whether the rows are elsewhere than `other` says, or another password opens them.
    pub(crate) fn other_database(&self, other: &Self) -> bool {
        self.database != other.database
    }

    /// What one instance may store and how often it may fail.
    pub fn limits(&self) -> Limits {
        let values = &self.values;
        Limits {
            payload_bytes: values.payload_bytes.in_memory(),
            checkpoints: values.checkpoints,
            unread_signals: values.unread_signals,
            crashes: values.crashes,
            crash_backoff: values.crash_backoff,
            crash_backoff_max: values.crash_backoff_max,
            launch_deadline: values.launch_deadline,
            cancel_grace: values.cancel_grace,
            retention: values.retention,
            ..Limits::default()
        }
    }
}

/// `/var/lib/dormouse` for root, else `$XDG_DATA_HOME/dormouse`, else `~/.local/share/dormouse`; the
/// commands of controllers look there too.
fn default_data_dir(environment: &BTreeMap<OsString, OsString>) -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/dormouse"));
    }
    let set = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    if let Some(dir) = set("XDG_DATA_HOME") {
        return Some(Path::new(dir).join("dormouse"));
    }
    set("HOME").map(|home| Path::new(home).join(".local/share/dormouse"))
}

/// What `database` or `database_file` says, whichever stands in the higher layer.
fn database(values: &Values, origins: &BTreeMap<&'static str, Origin>) -> Result<Option<DatabaseUrl>, Error> {
    let (url_at, file_at) = (&origins["database"], &origins["database_file"]);
    let Some(path) = &values.database_file else { return Ok(values.database.clone()) };
    if values.database.is_some() {
        match url_at.layer().cmp(&file_at.layer()) {
            std::cmp::Ordering::Greater => return Ok(values.database.clone()),
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => {
                return Err(Error::Conflict {
                    first: "database",
                    first_at: url_at.clone(),
                    second: "database_file",
                    second_at: file_at.clone(),
                });
            }
        }
    }
    let wrong = |problem: String| Error::NamedFile {
        path: path.clone(),
        key: "database_file",
        at: file_at.clone(),
        problem,
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| wrong(format!("cannot be read ({error}); check its path and permissions")))?;
    let must = <DatabaseUrl as Value>::must();
    match DatabaseUrl::parse(text.trim()) {
        Some(url) if !text.trim().contains('\n') => Ok(Some(url)),
        _ => Err(wrong(format!("holds no address of a database; it must hold one line, {must}"))),
    }
}

#[cfg(test)]
mod tests;
