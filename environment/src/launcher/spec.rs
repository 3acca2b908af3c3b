//! What is launched: pure. No file is touched and no process made here.
//!
//! The token is in the launch document only: never in the environment, in arguments or in a log.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    time::Duration,
};

use dormouse_core::{
    domain::id::{AttemptToken, Digest, InstanceKey, Name},
    timings::Laps,
};
use dormouse_proto::launch::{LaunchDocument, SpareDocument};
use prost::Message;

use super::sys::{ADDRESSES_FD, DOCUMENT_FD, Limit};
use crate::attempts::{AttemptDirectory, AttemptId};

/// Tells a process which descriptor its launch document comes from.
pub const LAUNCH_FD_VARIABLE: &str = "DORMOUSE_LAUNCH_FD";

/// Taken over from the service's own environment, if they are set there.
const INHERITED: [&str; 13] = [
    "PATH",
    "LANG",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// Where nothing is set.
const DEFAULTS: [(&str, &str); 2] = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8")];

/// One launch as it was claimed.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which attempt.
    pub id: AttemptId,
    /// The instance's key in the store.
    pub key: InstanceKey,
    /// Which image's bytes.
    pub image: Digest,
    /// The entry point; none: the image's only one.
    pub workflow: Option<Name>,
    /// Proves the attempt to core.
    pub token: AttemptToken,
    /// What the start named, on top of the scrubbed environment.
    pub env: BTreeMap<String, String>,
    /// How long its stages took.
    pub laps: Laps,
}

/// What is the same for every launch of a node.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The service's own environment, from which little is handed on.
    pub environment: BTreeMap<OsString, OsString>,
    /// "host:port" of core replicas at the start, in the order in which they are tried.
    pub core_addresses: Vec<String>,
    /// The authority's certificate.
    pub authority_pem: String,
    /// Idle time before the SDK suspends; none: the SDK's default.
    pub idle_before_suspend: Option<Duration>,
    /// Highest number of open descriptors of a process.
    pub open_files: u64,
}

/// Descriptors that a process may open: enough for a busy client, and a leak ends it before it
/// hurts the machine.
pub const DEFAULT_OPEN_FILES: u64 = 65_536;

/// Everything that the child needs, ready made.
pub(super) struct Spec {
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) document: Vec<u8>,
    pub(super) limits: [(Limit, u64); 2],
}

/// Why a launch cannot be put into words that a process takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Reserved, or no name.
    #[error("env {name:?} cannot be set: {reason}; leave it out")]
    Variable {
        /// As it was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Spec {
    /// Puts a launch into arguments, environment and document.
    pub(super) fn new(
        launch: &Launch,
        surroundings: &Surroundings,
        core_addresses: Vec<String>,
        directory: &AttemptDirectory,
    ) -> Result<Self, SpecError> {
        Ok(Self {
            arguments: arguments(launch),
            environment: environment(&launch.env, surroundings, directory)?,
            document: document(launch, surroundings, core_addresses).encode_to_vec(),
            limits: limits(surroundings),
        })
    }
}

/// What a spare is launched with: as any process, but nothing in it is of an instance.
pub(super) struct SpareSpec {
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) limits: [(Limit, u64); 2],
}

impl SpareSpec {
    /// `image` is for people who look at a list of processes.
    pub(super) fn new(
        image: &str,
        number: u64,
        surroundings: &Surroundings,
        directory: &AttemptDirectory,
    ) -> Result<Self, SpecError> {
        let number = number.to_string();
        let arguments = ["spare", image, &number].into_iter();
        Ok(Self {
            arguments: arguments.filter_map(|text| CString::new(text).ok()).collect(),
            environment: environment(&BTreeMap::new(), surroundings, directory)?,
            limits: limits(surroundings),
        })
    }
}

/// What tells a spare to be ready.
pub(super) fn spare_document(
    standby: Vec<u8>,
    surroundings: &Surroundings,
    core_addresses: Vec<String>,
) -> SpareDocument {
    SpareDocument {
        format: 1,
        standby,
        core_addresses,
        authority_pem: surroundings.authority_pem.clone(),
        addresses_fd: ADDRESSES_FD,
    }
}

/// The launch document for a process that runs already: the environment is in it too.
pub(super) fn handed_document(
    launch: &Launch,
    surroundings: &Surroundings,
    core_addresses: Vec<String>,
    directory: &AttemptDirectory,
    stay: bool,
) -> Result<LaunchDocument, SpecError> {
    let environment = environment(&launch.env, surroundings, directory)?;
    let of_the_launch = format!("{LAUNCH_FD_VARIABLE}=");
    let environment = environment.into_iter().map(CString::into_bytes);
    Ok(LaunchDocument {
        // It has read that one, and taken it away.
        environment: environment.filter(|text| !text.starts_with(of_the_launch.as_bytes())).collect(),
        stay,
        ..document(launch, surroundings, core_addresses)
    })
}

fn limits(surroundings: &Surroundings) -> [(Limit, u64); 2] {
    [(Limit::Core, 0), (Limit::OpenFiles, surroundings.open_files)]
}

/// Checks what a start names before it is stored: every launch would fail on it otherwise.
pub fn check_variable(name: &str, value: &str) -> Result<(), SpecError> {
    let refused = |reason| Err(SpecError::Variable { name: name.to_owned(), reason });
    if name.is_empty() || name.contains('=') {
        refused("a name is not empty and has no `=`")
    } else if name.contains('\0') || value.contains('\0') {
        refused("it contains NUL, which no environment can hold")
    } else if name == LAUNCH_FD_VARIABLE || name == "TMPDIR" {
        // By the second one the supervisor knows stray children of the attempt again.
        refused("it is set by the launcher")
    } else {
        Ok(())
    }
}

/// For people who look at a list of processes; a program finds its entry point in the document.
fn arguments(launch: &Launch) -> Vec<CString> {
    let workflow = launch.workflow.as_ref().map_or("workflow", Name::as_str);
    [workflow, launch.id.instance.as_str(), &launch.id.attempt.to_string()]
        .into_iter()
        // Names hold no control characters, so none is lost.
        .filter_map(|text| CString::new(text).ok())
        .collect()
}

fn environment(
    named: &BTreeMap<String, String>,
    surroundings: &Surroundings,
    directory: &AttemptDirectory,
) -> Result<Vec<CString>, SpecError> {
    let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
    for (name, value) in DEFAULTS {
        all.insert(name.into(), value.into());
    }
    for name in INHERITED {
        if let Some(value) = surroundings.environment.get(OsStr::new(name)) {
            all.insert(name.into(), value.clone());
        }
    }
    // Not the service's own home: what lies there is its operator's.
    all.insert("HOME".into(), directory.work().into());
    for (name, value) in named {
        check_variable(name, value)?;
        all.insert(name.into(), value.into());
    }
    all.insert("TMPDIR".into(), directory.tmp().into());
    all.insert(LAUNCH_FD_VARIABLE.into(), DOCUMENT_FD.to_string().into());
    all.iter().map(|(name, value)| variable(name, value)).collect()
}

fn variable(name: &OsStr, value: &OsStr) -> Result<CString, SpecError> {
    let text = [name.as_bytes(), b"=", value.as_bytes()].concat();
    CString::new(text).map_err(|_| SpecError::Variable {
        name: name.to_string_lossy().into_owned(),
        reason: "it contains NUL, which no environment can hold",
    })
}

fn document(launch: &Launch, surroundings: &Surroundings, core_addresses: Vec<String>) -> LaunchDocument {
    let idle = surroundings.idle_before_suspend.unwrap_or_default();
    LaunchDocument {
        format: 1,
        instance_id: launch.id.instance.to_string(),
        attempt: launch.id.attempt.0,
        workflow: launch.workflow.as_ref().map(ToString::to_string).unwrap_or_default(),
        token: launch.token.0.to_vec(),
        core_addresses,
        authority_pem: surroundings.authority_pem.clone(),
        addresses_fd: ADDRESSES_FD,
        idle_before_suspend_micros: u64::try_from(idle.as_micros()).unwrap_or(u64::MAX),
        ..LaunchDocument::default()
    }
}

/// The `TMPDIR` variable as an attempt's process has it: by it a stray child is known again.
pub(crate) fn mark(directory: &Path) -> Vec<u8> {
    let mut text = b"TMPDIR=".to_vec();
    text.extend(OsString::from(directory.join("tmp")).into_vec());
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dormouse_core::domain::id::{Attempt, InstanceId, Tenant};

    use super::*;

    fn launch(env: &[(&str, &str)]) -> Launch {
        Launch {
            id: AttemptId {
                tenant: Tenant::default_tenant(),
                instance: InstanceId::parse("order-7").expect("an id"),
                attempt: Attempt(3),
            },
            key: InstanceKey(5),
            image: Digest([1; 32]),
            workflow: Some(Name::parse("workflow", "order").expect("a name")),
            token: AttemptToken([7; 32]),
            laps: Laps::begin(),
            env: env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn spec(env: &[(&str, &str)], own: &[(&str, &str)]) -> Result<Spec, SpecError> {
        let surroundings = Surroundings {
            environment: own.iter().map(|(n, v)| (n.into(), v.into())).collect(),
            core_addresses: vec!["127.0.0.1:8001".to_owned()],
            authority_pem: "PEM".to_owned(),
            idle_before_suspend: Some(Duration::from_millis(5)),
            open_files: 100,
        };
        Spec::new(
            &launch(env),
            &surroundings,
            surroundings.core_addresses.clone(),
            &AttemptDirectory { path: PathBuf::from("/d/order-7.3") },
        )
    }

    #[test]
    fn the_environment_is_scrubbed_and_takes_what_the_start_named() {
        let own = [
            ("AWS_SECRET", "x"),
            ("PATH", "/bin"),
            ("https_proxy", "p"),
            ("HOME", "/root"),
            ("TMPDIR", "/t"),
        ];
        let spec = spec(&[("GREETING", "hello"), ("PATH", "/opt")], &own).expect("a valid launch");
        let texts: Vec<_> = spec.environment.iter().map(|text| text.to_str().expect("UTF-8")).collect();
        assert_eq!(
            texts,
            [
                "DORMOUSE_LAUNCH_FD=3",
                "GREETING=hello",
                "HOME=/d/order-7.3/work",
                "LANG=C.UTF-8",
                "PATH=/opt",
                "TMPDIR=/d/order-7.3/tmp",
                "https_proxy=p",
            ]
        );
    }

    #[test]
    fn reserved_and_impossible_variables_are_refused() {
        for (name, value) in
            [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0"), ("TMPDIR", "/"), ("DORMOUSE_LAUNCH_FD", "0")]
        {
            assert!(spec(&[(name, value)], &[]).is_err(), "{name:?}={value:?} was taken");
        }
    }

    #[test]
    fn the_token_is_in_the_document_and_nowhere_else() {
        let spec = spec(&[], &[]).expect("a valid launch");
        let document = LaunchDocument::decode(spec.document.as_slice()).expect("our own document");
        assert_eq!(document.token, [7; 32]);
        assert_eq!((document.attempt, document.addresses_fd), (3, 4));
        assert_eq!(document.idle_before_suspend_micros, 5_000);
        let arguments: Vec<_> = spec.arguments.iter().map(|text| text.to_str().expect("UTF-8")).collect();
        assert_eq!(arguments, ["order", "order-7", "3"]);
    }
}
