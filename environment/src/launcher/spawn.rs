//! Launches one process, in one fixed order.
//!
//! 1. the attempt's directory, and the output files in it
//! 2. the pipe of the launch document, empty
//! 3. the process ([`sys::spawn`]): own session and group, only its own descriptors, its
//!    directory, its limits, then the exec of the verified file by descriptor
//! 4. `process.json`: boot, number, start time
//! 5. the launch document into the pipe, and the pipe closed
//!
//! A process that reads the end of the pipe instead of a document exits having touched nothing.
//! So whoever dies between two of these lines leaves no process that acts and is not known
//! (invariant 4 needs it: an unknown process could run beside the next attempt).

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use dormouse_core::{fault, timings};
use dormouse_proto::launch::LaunchDocument;
use prost::Message as _;
use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with},
    process::{Resource, getrlimit},
    time::ClockId,
};

use super::{
    replicas::Replicas,
    spec::{Launch, Spec, SpecError, Surroundings},
    sys::{self, Plan, SpawnError, Spawned, Step},
};
use crate::{
    attempts::{AttemptDirectory, Attempts, Stream},
    process::{ProcessId, ProcessRecord},
};

/// A process that has its document.
#[derive(Debug)]
pub struct Launched {
    /// Which process.
    pub process: ProcessId,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Its files.
    pub directory: AttemptDirectory,
}

/// Why an attempt has no process. None is left that acts.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The start named what no process can be given.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The attempt's directory or files.
    #[error("the attempt's files cannot be made in {path}")]
    Files {
        /// Where.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The image, by its store.
    #[error("the image cannot be used")]
    Image(#[from] crate::images::OpenError),
    /// The image, by the database.
    #[error(transparent)]
    Fetch(#[from] Arc<crate::images::cluster::FetchError>),
    /// Between clone and exec.
    #[error("the process could not be started")]
    Spawn(#[from] SpawnError),
    /// After the exec: the process could not be made known or given its document; it leaves.
    #[error("the process was started, but {what}")]
    HandOver {
        /// What failed.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A spare could not be made this attempt's process; it is ended.
    #[error("a spare could not be used: {what}")]
    Spare {
        /// What failed.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its launch deadline is near: the next attempt would run beside it.
    #[error("the node was too busy to launch it before its launch deadline")]
    TooLate,
    /// The launching thread is gone: a panic, or the runtime is being shut down.
    #[error("the launch was cut off")]
    CutOff,
}

impl LaunchError {
    /// Whether the same launch would fail on every node and at every time.
    pub(crate) fn is_instances_fault(&self) -> bool {
        match self {
            Self::Spec(_) => true,
            // A format or an environment that no exec takes; memory may be there later.
            Self::Spawn(error) => {
                error.step == Step::Exec && error.source.kind() != io::ErrorKind::OutOfMemory
            }
            Self::Files { .. }
            | Self::Image(_)
            | Self::Fetch(_)
            | Self::HandOver { .. }
            | Self::Spare { .. }
            | Self::TooLate
            | Self::CutOff => false,
        }
    }
}

/// What one launch works with.
pub(super) struct Site<'a> {
    pub(super) attempts: &'a Attempts,
    pub(super) replicas: &'a Replicas,
    pub(super) surroundings: &'a Surroundings,
    pub(super) boot_id: &'a str,
}

/// A file that is executed while somebody still holds a writing descriptor of it is refused with
/// ETXTBSY. Nobody here does, but a child of another thread, cloned while the image was being
/// stored, holds a copy until its own exec: well below a millisecond.
const TEXT_BUSY_TRIES: u32 = 100;
const TEXT_BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Launches. Blocking: about a millisecond; to be called off the async threads.
pub(super) fn launch(site: &Site<'_>, launch: &mut Launch, image: &File) -> Result<Launched, LaunchError> {
    let directory = site.attempts.directory(&launch.id);
    let files = |source| LaunchError::Files { path: directory.path.display().to_string(), source };
    let spec = Spec::new(launch, site.surroundings, site.replicas.current(), &directory)?;
    site.attempts.create(&launch.id).map_err(files)?;
    fault::point("launch.directory_made");
    let launched = launch_in(site, launch, image, &spec, &directory);
    if launched.is_err() && !directory.record().exists() {
        // Nobody was made known here: nothing to keep. Should it stay, the next start removes it.
        if let Err(e) = site.attempts.discard(&directory) {
            tracing::warn!(error = %e, path = %directory.path.display(), "a launch's directory stays behind");
        }
    }
    launched
}

fn launch_in(
    site: &Site<'_>,
    launch: &mut Launch,
    image: &File,
    spec: &Spec,
    directory: &AttemptDirectory,
) -> Result<Launched, LaunchError> {
    let files = |source| LaunchError::Files { path: directory.path.display().to_string(), source };
    let (reader, mut document) = document_pipe(spec.document.len() + MOMENT_BYTES).map_err(files)?;
    let descriptors = descriptors(site, directory, reader)?;
    launch.laps.pass(timings::Launch::Files);
    let command = Command { arguments: &spec.arguments, environment: &spec.environment, limits: spec.limits };
    let Spawned { pid, pidfd } = spawn(&command, image, descriptors, directory)?;
    launch.laps.pass(timings::Launch::Exec);
    fault::point("launch.spawned");

    // From here on every way out closes the pipe: a process without its document leaves.
    let hand_over = |what| move |source| LaunchError::HandOver { what, source };
    let process = ProcessId::of(pid).map_err(hand_over("is not visible in /proc"))?;
    let written = directory.write_record(&record_of(site, process, launch));
    if let Err(source) = written {
        drop(document);
        kill_unwatched(&pidfd);
        let _gone = std::fs::remove_file(directory.record());
        return Err(LaunchError::HandOver { what: "its process.json could not be written", source });
    }
    fault::point("launch.recorded");
    match document.write_all(&dated(&spec.document)) {
        Ok(()) => {}
        // It has ended already; its supervisor will say how.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(source) => {
            drop(document);
            kill_unwatched(&pidfd);
            let _gone = std::fs::remove_file(directory.record());
            return Err(LaunchError::HandOver { what: "its launch document could not be written", source });
        }
    }
    drop(document);
    launch.laps.pass(timings::Launch::HandOver);
    fault::point("launch.document_written");
    Ok(Launched { process, pidfd, directory: directory.clone() })
}

/// What makes a process known as this attempt's.
pub(super) fn record_of(site: &Site<'_>, process: ProcessId, launch: &Launch) -> ProcessRecord {
    ProcessRecord {
        format: 1,
        boot_id: site.boot_id.to_owned(),
        pid: process.pid,
        start_time: process.start_time,
        key: launch.key.0,
        tenant: launch.id.tenant.to_string(),
        instance: launch.id.instance.to_string(),
        attempt: launch.id.attempt.0,
        image: launch.image.to_string(),
    }
}

/// What a process is started with.
pub(super) struct Command<'a> {
    pub(super) arguments: &'a [CString],
    pub(super) environment: &'a [CString],
    pub(super) limits: [(sys::Limit, u64); 2],
}

/// What a process finds open: nothing to read, new output files, its document, the replicas' addresses.
pub(super) fn descriptors(
    site: &Site<'_>,
    directory: &AttemptDirectory,
    document: OwnedFd,
) -> Result<[OwnedFd; 5], LaunchError> {
    let files = |source| LaunchError::Files { path: directory.path.display().to_string(), source };
    Ok([
        raise(File::open("/dev/null").map_err(files)?)?,
        raise(append_only(&directory.stream(Stream::Stdout)).map_err(files)?)?,
        raise(append_only(&directory.stream(Stream::Stderr)).map_err(files)?)?,
        raise(document)?,
        raise(site.replicas.reader().map_err(files)?)?,
    ])
}

/// Kills a child that nobody will watch, and collects it.
pub(crate) fn kill_unwatched(pidfd: &OwnedFd) {
    use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    // Both fail only if it is gone.
    let _gone = pidfd_send_signal(pidfd, Signal::KILL);
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
}

/// Starts the process in its directory. It alone has its descriptors then: should it end, the other end of its
/// document's says so.
#[expect(clippy::needless_pass_by_value, reason = "they are closed here once the process has its own")]
pub(super) fn spawn(
    command: &Command<'_>,
    image: &File,
    descriptors: [OwnedFd; 5],
    directory: &AttemptDirectory,
) -> Result<Spawned, LaunchError> {
    let work = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let work = rustix::fs::open(directory.work(), work, Mode::empty())
        .map_err(|e| SpawnError { step: Step::Directory, source: e.into() })?;
    let (image, work) = (raise(image)?, raise(&work)?);
    let limits = command.limits.map(|(limit, value)| (limit, within_own(limit, value)));
    let plan = Plan {
        image: image.as_fd(),
        descriptors: descriptors.each_ref().map(AsFd::as_fd),
        directory: work.as_fd(),
        arguments: command.arguments,
        environment: command.environment,
        limits: &limits,
    };
    let mut tries = 1;
    loop {
        match sys::spawn(&plan) {
            Err(e) if e.source.kind() == io::ErrorKind::ExecutableFileBusy && tries < TEXT_BUSY_TRIES => {
                tries += 1;
                thread::sleep(TEXT_BUSY_PAUSE);
            }
            other => return Ok(other?),
        }
    }
}

/// A copy above every number that the child assigns: else it would overwrite one of its sources
/// before it is used. A service whose low numbers happen to be taken would not notice.
fn raise(fd: impl AsFd) -> Result<OwnedFd, SpawnError> {
    rustix::io::fcntl_dupfd_cloexec(fd, sys::RAISED_FROM)
        .map_err(|e| SpawnError { step: Step::Descriptors, source: e.into() })
}

/// A service without privileges cannot raise what it was given.
fn within_own(limit: sys::Limit, value: u64) -> u64 {
    let resource = match limit {
        sys::Limit::Core => Resource::Core,
        sys::Limit::OpenFiles => Resource::Nofile,
    };
    getrlimit(resource).maximum.map_or(value, |maximum| value.min(maximum))
}

/// The pipe, close-on-exec at both ends, large enough for the document to be written at once:
/// a process that never reads must not hold up the launcher. A user with very many pipes gets
/// them with one page only.
fn document_pipe(bytes: usize) -> io::Result<(OwnedFd, File)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    if fcntl_getpipe_size(&writer)? < bytes {
        fcntl_setpipe_size(&writer, bytes)?;
    }
    Ok((reader, File::from(writer)))
}

/// What [`dated`] adds to a document.
const MOMENT_BYTES: usize = 16;

/// The document, with the moment at which it is handed over: of a message's fields the last ones count.
fn dated(document: &[u8]) -> Vec<u8> {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let nanos = Duration::try_from(now).map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0));
    let moment = LaunchDocument { handed_over_nanos: nanos, ..LaunchDocument::default() };
    let mut dated = document.to_vec();
    dated.extend(moment.encode_to_vec());
    dated
}

pub(super) fn append_only(path: &Path) -> io::Result<File> {
    OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)
}
