//! Processes that are launched before there is an instance for them.
//!
//! Launching one goes the way of every launch ([`super::spawn`]), with a control channel in place of the pipe. What
//! is left for the moment of the claim is short, and in one fixed order:
//!
//! 1. `process.json` in the spare's directory: from now on it names the attempt
//! 2. the directory renamed to the attempt's: the process keeps its working directory and its output files
//! 3. the launch document through the channel
//!
//! Whoever dies in between leaves either a record below `spares/`, whose process is ended at the next start, or one
//! of the attempt with a process that reads the end of its channel and leaves (invariant 4).

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use dormouse_core::{domain::id::Digest, fault};
use dormouse_proto::launch::order::Order;
use rustix::fs::{Mode, OFlags};

use super::{
    spawn::{
        Command, LaunchError, Launched, Site, append_only, descriptors, kill_unwatched, record_of, spawn,
    },
    spec::{Launch, SpareSpec, handed_document, spare_document},
    sys::Spawned,
};
use crate::{
    attempts::{AttemptDirectory, Stream},
    process::{ProcessId, ProcessRecord},
    spares::channel::Channel,
};

/// A spare that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct NewSpare {
    /// Never used before in this life of the service.
    pub(crate) number: u64,
    /// What it executes.
    pub(crate) image: Digest,
    /// The image for people.
    pub(crate) label: String,
    /// What it shows core.
    pub(crate) standby: Vec<u8>,
}

/// Launches a spare, and tells it to be ready.
pub(super) fn launch(
    site: &Site<'_>,
    new: &NewSpare,
    image: &File,
) -> Result<(Launched, Channel), LaunchError> {
    let files = |source| LaunchError::Files { path: format!("spares/{}", new.number), source };
    let directory = site.attempts.create_spare(new.number).map_err(files)?;
    let launched = launch_in(site, new, image, &directory);
    if launched.is_err()
        && let Err(e) = site.attempts.discard(&directory)
    {
        tracing::warn!(error = %e, path = %directory.path.display(), "a spare's directory stays behind");
    }
    launched
}

fn launch_in(
    site: &Site<'_>,
    new: &NewSpare,
    image: &File,
    directory: &AttemptDirectory,
) -> Result<(Launched, Channel), LaunchError> {
    let files = |source| LaunchError::Files { path: directory.path.display().to_string(), source };
    let spec = SpareSpec::new(&new.label, new.number, site.surroundings, directory)?;
    let (channel, end) = Channel::pair().map_err(files)?;
    let command = Command { arguments: &spec.arguments, environment: &spec.environment, limits: spec.limits };
    let descriptors = descriptors(site, directory, end)?;
    let Spawned { pid, pidfd } = spawn(&command, image, descriptors, directory)?;
    fault::point("spare.spawned");
    let known = ProcessId::of(pid).and_then(|process| {
        directory.write_record(&spare_record(site, process, &new.image))?;
        fault::point("spare.recorded");
        let document = spare_document(new.standby.clone(), site.surroundings, site.replicas.current());
        match channel.send(Order::StandBy(document), None) {
            // It has ended already: whoever waits for it to be ready hears why.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        Ok(process)
    });
    match known {
        Ok(process) => Ok((Launched { process, pidfd, directory: directory.clone() }, channel)),
        Err(source) => {
            kill_unwatched(&pidfd);
            Err(LaunchError::HandOver { what: "it could not be told to stand by", source })
        }
    }
}

/// Of a process that belongs to no attempt.
fn spare_record(site: &Site<'_>, process: ProcessId, image: &Digest) -> ProcessRecord {
    ProcessRecord {
        format: 1,
        boot_id: site.boot_id.to_owned(),
        pid: process.pid,
        start_time: process.start_time,
        key: 0,
        tenant: String::new(),
        instance: String::new(),
        attempt: 0,
        image: image.to_string(),
    }
}

/// Makes a spare the attempt's process. After an error it must be ended: nobody knows what it has read.
pub(super) fn hand_over(
    site: &Site<'_>,
    launch: &Launch,
    process: ProcessId,
    spare: &AttemptDirectory,
    channel: &Channel,
    stay: bool,
) -> Result<AttemptDirectory, LaunchError> {
    let failed = |what| move |source| LaunchError::Spare { what, source };
    let addresses = site.replicas.current();
    let directory = site.attempts.directory(&launch.id);
    let document = handed_document(launch, site.surroundings, addresses, &directory, stay)?;
    spare.write_record(&record_of(site, process, launch)).map_err(failed("it could not be recorded"))?;
    fault::point("spare.named");
    let directory = site.attempts.rename_spare(spare, &launch.id);
    let directory = directory.map_err(failed("its directory could not be renamed"))?;
    fault::point("spare.moved");
    channel.send(Order::Launch(document), None).map_err(failed("it does not take its document"))?;
    fault::point("spare.document_sent");
    Ok(directory)
}

/// Makes a process whose instance has ended a spare again, with a directory of its own. It says when it is ready.
pub(super) fn refit(
    site: &Site<'_>,
    new: &NewSpare,
    process: ProcessId,
    channel: &Channel,
) -> io::Result<AttemptDirectory> {
    let directory = site.attempts.create_spare(new.number)?;
    let told = (|| {
        directory.write_record(&spare_record(site, process, &new.image))?;
        fault::point("spare.refit_recorded");
        let outputs = [
            OwnedFd::from(append_only(&directory.stream(Stream::Stdout))?),
            OwnedFd::from(append_only(&directory.stream(Stream::Stderr))?),
        ];
        let work = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let work = rustix::fs::open(directory.work(), work, Mode::empty())?;
        let document = spare_document(new.standby.clone(), site.surroundings, site.replicas.current());
        channel.send(Order::StandBy(document), Some([outputs[0].as_fd(), outputs[1].as_fd(), work.as_fd()]))
    })();
    match told {
        Ok(()) => Ok(directory),
        Err(error) => {
            site.attempts.discard(&directory)?;
            Err(error)
        }
    }
}
