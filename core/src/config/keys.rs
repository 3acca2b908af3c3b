//! Every key of the services: its type, default, limits and meaning. The one place for them: flags,
//! `dormouse config show` and `docs/configuration.md` are made from, or held equal to, this table.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    Error, Given, Origin,
    value::{Bytes, DatabaseUrl, HostPort, LogFilter, LogFormat, Name, Shape, Value},
};

/// Which services look at a key. All of them know all keys, so that they can share one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// All.
    Both,
    /// Core.
    Core,
    /// The environment.
    Environment,
}

/// When a change of the file counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// At the next start.
    Restart,
    /// At a reload (SIGHUP).
    Reload,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// In the file.
    pub name: &'static str,
    /// On the command line, without the dashes; see also [`super::Program::flags`].
    pub flag: &'static str,
    /// In the environment, the first that is set.
    pub variables: &'static [&'static str],
    /// What the value is, in a usage line.
    pub value: &'static str,
    /// What it means, in one paragraph.
    pub help: &'static str,
    /// If nothing sets it. Empty: see `absent`.
    pub default: &'static str,
    /// What holds without a value, for people.
    pub absent: &'static str,
    /// The least and the most.
    pub range: Option<(&'static str, &'static str)>,
    /// Who looks at it.
    pub of: Of,
    /// When a change counts.
    pub takes: Takes,
    /// Its value is shown with its secrets hidden.
    pub secret: bool,
    /// How a file writes it.
    pub shape: Shape,
    /// A relative path in a file begins at the file's folder.
    pub is_path: bool,
}

impl Key {
    const BASE: Self = Self {
        name: "",
        flag: "",
        variables: &[],
        value: "",
        help: "",
        default: "",
        absent: "",
        range: None,
        of: Of::Both,
        takes: Takes::Restart,
        secret: false,
        shape: Shape::Text,
        is_path: false,
    };

    /// The key of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Its default, for people.
    pub fn default_shown(&self) -> &'static str {
        if self.default.is_empty() { self.absent } else { self.default }
    }
}

/// Reads what was given for a key, or its default.
fn read<T: Value>(key: &'static Key, given: Option<&Given>) -> Result<T, Error> {
    let Some(given) = given else {
        if key.default.is_empty() {
            return Ok(T::NONE.expect("a key without a default may be absent: a test reads all"));
        }
        return Ok(T::parse(key.default).expect("defaults can be read: a test reads all"));
    };
    let refused = || Error::Value {
        key: key.name,
        value: if key.secret { "not usable (hidden)".to_owned() } else { format!("{:?}", given.text) },
        at: given.origin.clone(),
        must: must::<T>(key),
    };
    let value = T::parse(&given.text).ok_or_else(refused)?;
    let parse = |text| T::parse(text).expect("limits can be read: a test reads all");
    match key.range {
        Some((least, most)) if !(parse(least)..=parse(most)).contains(&value) => Err(refused()),
        _ => Ok(value),
    }
}

/// What would pass, as it follows "it must be".
fn must<T: Value>(key: &Key) -> String {
    match key.range {
        Some((least, most)) => format!("{}, from {least} to {most}", T::must()),
        None => T::must().to_owned(),
    }
}

macro_rules! keys {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty { $($field:ident: $value:expr),+ $(,)? })+) => {
        /// Every key, in the order of the documentation.
        pub static KEYS: &[Key] = &[$(Key {
            name: stringify!($name),
            help: concat!($($help),+),
            shape: <$type as Value>::SHAPE,
            is_path: <$type as Value>::IS_PATH,
            $($field: $value,)+
            ..Key::BASE
        }),+];

        /// What is in force: a value for every key.
        #[derive(Clone, Debug)]
        pub struct Values {
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Values {
            /// Reads each key's value; `given` says what was set for it, at the highest layer.
            pub(super) fn read<'a>(
                given: impl Fn(&'static Key) -> Option<&'a Given>,
            ) -> Result<Self, Error> {
                let mut keys = KEYS.iter();
                // In the order of the table, which is that of the fields.
                $(let $name = {
                    let key = keys.next().expect("a key for each field");
                    read::<$type>(key, given(key))?
                };)+
                Ok(Self { $($name),+ })
            }

            /// A value as a file would write it, without secrets; empty if it is absent.
            pub fn shown(&self, key: &Key) -> String {
                match key.name {
                    $(stringify!($name) => Value::show(&self.$name),)+
                    other => unreachable!("{other} is no key"),
                }
            }
        }

        /// What would pass for a key.
        pub fn must_of(key: &Key) -> String {
            match key.name {
                $(stringify!($name) => must::<$type>(key),)+
                other => unreachable!("{other} is no key"),
            }
        }
    };
}

keys! {
    /// Where the services of one machine keep everything: lock, certificates, addresses, images, outputs,
    /// and the database if it is SQLite. Made if it is missing, readable by its owner alone.
    data_dir: Option<PathBuf> {
        flag: "data-dir", variables: &["DORMOUSE_DATA_DIR"], value: "DIR",
        absent: "/var/lib/dormouse for root, else ~/.local/share/dormouse",
    }
    /// The folder of this machine's certificates: where the cluster's authority was made the folder that holds its
    /// key, elsewhere one that `dormouse certs issue` made there.
    certs: Option<PathBuf> {
        flag: "certs", variables: &["DORMOUSE_CERTS"], value: "DIR",
        absent: "pki in data_dir",
    }
    /// Where the rows are: postgres://USER@HOST/NAME of a cluster, or a path of an SQLite file. It may hold a
    /// password, so prefer database_file.
    database: Option<DatabaseUrl> {
        flag: "database", variables: &["DORMOUSE_DATABASE"], value: "URL", secret: true,
        absent: "SQLite, the file dormouse.db in data_dir",
    }
    /// A file that holds what `database` would say, so that a password stands in no unit file, variable or
    /// process list.
    database_file: Option<PathBuf> {
        flag: "database-file", variables: &["DORMOUSE_DATABASE_FILE"], value: "FILE",
        absent: "none",
    }
    /// How this node and this core replica are called in lists, for people; nothing is found by it.
    name: Option<Name> {
        flag: "name", variables: &["DORMOUSE_NAME"], value: "NAME", absent: "the machine's host name",
    }
    /// Where core listens for workflows (UDP). Port 0: that of the last run, or any.
    core_listen: SocketAddr {
        flag: "core-listen", variables: &["DORMOUSE_CORE_LISTEN"], value: "ADDR",
        default: "127.0.0.1:8001", of: Of::Core,
    }
    /// Where the environment listens for controllers (UDP). Port 0: that of the last run, or any.
    environment_listen: SocketAddr {
        flag: "environment-listen", variables: &["DORMOUSE_ENVIRONMENT_LISTEN"], value: "ADDR",
        default: "127.0.0.1:8002", of: Of::Environment,
    }
    /// Where workflows on other machines are told that core listens.
    advertise_core: Option<HostPort> {
        flag: "advertise-core", variables: &["DORMOUSE_ADVERTISE_CORE"], value: "HOST:PORT",
        absent: "core_listen, which must then be one address on PostgreSQL", of: Of::Core,
    }
    /// Where other machines are told that the environment listens.
    advertise_environment: Option<HostPort> {
        flag: "advertise-environment", variables: &["DORMOUSE_ADVERTISE_ENVIRONMENT"], value: "HOST:PORT",
        absent: "environment_listen, which must then be one address on PostgreSQL", of: Of::Environment,
    }
    /// Where the environment's processes find core, where core does not run in the same process. Several are
    /// separated by commas.
    core_addresses: Vec<HostPort> {
        flag: "core-addresses", variables: &["DORMOUSE_CORE_ADDRESSES", "DORMOUSE_CORE"], value: "HOST:PORT",
        absent: "on PostgreSQL the list of core replicas there, else what core wrote into data_dir", of: Of::Environment,
    }
    /// How many workflow processes may live at once on this node.
    slots: Option<u32> {
        flag: "slots", variables: &["DORMOUSE_SLOTS"], value: "N", range: Some(("1", "100000")),
        absent: "max(16, 8 × cores), fewer if memory is short", of: Of::Environment,
    }
    /// How long the lease of a node, or of a core replica, lasts unrenewed, on PostgreSQL; it is renewed every third
    /// of it.
    lease: Duration {
        flag: "lease", variables: &["DORMOUSE_LEASE"], value: "TIME", range: Some(("3s", "10m")),
        default: "15s",
    }
    /// How long ended instances are kept.
    retention: Duration {
        flag: "retention", variables: &["DORMOUSE_RETENTION"], value: "TIME", range: Some(("1m", "36500d")),
        default: "30d",
    }
    /// From a claim to the registration of the process. Past it the process is killed and the wake is due again.
    launch_deadline: Duration {
        flag: "launch-deadline", variables: &["DORMOUSE_LAUNCH_DEADLINE"], value: "TIME",
        range: Some(("1s", "1h")), default: "30s",
    }
    /// From a cancel that reached a process to its end by force, if it does not end by itself.
    cancel_grace: Duration {
        flag: "cancel-grace", variables: &["DORMOUSE_CANCEL_GRACE"], value: "TIME",
        range: Some(("0s", "7d")), default: "5m",
    }
    /// How long the root future of a workflow must have been idle before it suspends.
    idle_before_suspend: Duration {
        flag: "idle-before-suspend", variables: &["DORMOUSE_IDLE_BEFORE_SUSPEND"], value: "TIME",
        range: Some(("1ms", "1d")), default: "2s", of: Of::Environment,
    }
    /// Crashes in a row without a new checkpoint after which an instance fails.
    crashes: u32 {
        flag: "crashes", variables: &["DORMOUSE_CRASHES"], value: "N", range: Some(("0", "1000000")),
        default: "10",
    }
    /// The first pause after a crash; it doubles with each further one, up to crash_backoff_max.
    crash_backoff: Duration {
        flag: "crash-backoff", variables: &["DORMOUSE_CRASH_BACKOFF"], value: "TIME",
        range: Some(("1ms", "1d")), default: "1s",
    }
    /// The longest pause after a crash.
    crash_backoff_max: Duration {
        flag: "crash-backoff-max", variables: &["DORMOUSE_CRASH_BACKOFF_MAX"], value: "TIME",
        range: Some(("1ms", "7d")), default: "5m",
    }
    /// Bytes of one payload: checkpoint, signal, event, input, output. The wire carries no more than the default.
    payload_bytes: Bytes {
        flag: "payload-bytes", variables: &["DORMOUSE_PAYLOAD_BYTES"], value: "SIZE",
        range: Some(("1KiB", "4MiB")), default: "4MiB",
    }
    /// Checkpoints of one instance; a resume reads them all.
    checkpoints: u64 {
        flag: "checkpoints", variables: &["DORMOUSE_CHECKPOINTS"], value: "N",
        range: Some(("1", "100000000")), default: "1000000",
    }
    /// Signals that were sent to one instance and not consumed yet.
    unread_signals: u64 {
        flag: "unread-signals", variables: &["DORMOUSE_UNREAD_SIGNALS"], value: "N",
        range: Some(("1", "10000000")), default: "10000",
    }
    /// Bytes of the largest image.
    image_bytes: Bytes {
        flag: "image-bytes", variables: &["DORMOUSE_IMAGE_BYTES"], value: "SIZE",
        range: Some(("1MiB", "16GiB")), default: "512MiB", of: Of::Environment,
    }
    /// Bytes kept of each stream (stdout, stderr) of one attempt: the newest.
    output_stream_bytes: Bytes {
        flag: "output-stream-bytes", variables: &["DORMOUSE_OUTPUT_STREAM_BYTES"], value: "SIZE",
        range: Some(("64KiB", "1TiB")), default: "10MiB", of: Of::Environment,
    }
    /// Bytes of output kept of all attempts of one instance.
    output_instance_bytes: Bytes {
        flag: "output-instance-bytes", variables: &["DORMOUSE_OUTPUT_INSTANCE_BYTES"], value: "SIZE",
        range: Some(("64KiB", "1TiB")), default: "100MiB", of: Of::Environment,
    }
    /// Bytes of output kept on this node; the instances that ended longest ago go first.
    output_node_bytes: Bytes {
        flag: "output-node-bytes", variables: &["DORMOUSE_OUTPUT_NODE_BYTES"], value: "SIZE",
        range: Some(("1MiB", "1024TiB")), default: "10GiB", of: Of::Environment,
    }
    /// Instances' processes connected to this core at a time; further ones are refused.
    core_connections: u32 {
        flag: "core-connections", variables: &["DORMOUSE_CORE_CONNECTIONS"], value: "N",
        range: Some(("1", "1000000")), default: "10000", of: Of::Core,
    }
    /// Controllers connected to this environment at a time; further ones are refused.
    environment_connections: u32 {
        flag: "environment-connections", variables: &["DORMOUSE_ENVIRONMENT_CONNECTIONS"], value: "N",
        range: Some(("1", "1000000")), default: "1000", of: Of::Environment,
    }
    /// Which log lines are written to stderr: error, warn, info, debug or trace, also for each module, such as
    /// info,dormouse_core=debug.
    log: LogFilter {
        flag: "log", variables: &["DORMOUSE_LOG", "RUST_LOG"], value: "FILTER", default: "info",
        takes: Takes::Reload,
    }
    /// How log lines are written: text for people, or json with one object a line.
    log_format: LogFormat {
        flag: "log-format", variables: &["DORMOUSE_LOG_FORMAT"], value: "FORMAT", default: "text",
    }
}

/// What was said of a key, or that nothing was.
pub(super) fn origin_of(given: Option<&Given>) -> Origin {
    given.map_or(Origin::Default, |given| given.origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_limit_can_be_read() {
        let values = Values::read(|_| None).expect("defaults are good");
        for key in KEYS {
            assert_eq!(values.shown(key), key.default, "{}: the default is written as it is shown", key.name);
            assert!(!key.default_shown().is_empty(), "{}", key.name);
            for limit in key.range.map(|(least, most)| [least, most]).into_iter().flatten() {
                let text = limit.to_owned();
                let given = Given { key, text, origin: Origin::Default };
                let read = Values::read(|other| (other.name == key.name).then_some(&given));
                read.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }

    #[test]
    fn names_follow_one_rule() {
        for (n, key) in KEYS.iter().enumerate() {
            assert_eq!(key.flag, key.name.replace('_', "-"));
            assert_eq!(key.variables[0], format!("DORMOUSE_{}", key.name.to_uppercase()));
            assert!(KEYS[n + 1..].iter().all(|other| other.name != key.name), "{} twice", key.name);
        }
    }
}
