//! Starts an instance's process.
//!
//! [`spec`] says what is launched, [`spawn`] does it in one fixed order, [`sys`] holds the system
//! calls; [`standby`] is for processes that are launched before there is an instance for them. The launcher never decides when or whether an attempt is launched (the wake scheduler
//! does), and never watches what it launched (the supervisor does).
//!
//! Keeps invariant 4's last part: every process that may act was made known before it could.

mod replicas;
pub(crate) mod spawn;
pub(crate) mod spec;
mod standby;
pub(crate) mod sys;

use std::{io, path::Path, sync::Arc};

use dormouse_core::timings;
use tokio::task::spawn_blocking;
use tracing::Span;

pub use self::{
    replicas::Replicas,
    spawn::{LaunchError, Launched},
    spec::{DEFAULT_OPEN_FILES, LAUNCH_FD_VARIABLE, Launch, SpecError, Surroundings, check_variable},
    sys::{SpawnError, Step, Usage},
};
pub(crate) use self::{spawn::kill_unwatched, standby::NewSpare};
use crate::{
    attempts::{AttemptDirectory, Attempts},
    images::Images,
    process::{self, ProcessId},
    spares::channel::Channel,
};

/// Launches processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Launcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    images: Images,
    attempts: Attempts,
    replicas: Replicas,
    surroundings: Surroundings,
    boot_id: String,
}

impl Launcher {
    /// For one data directory.
    pub fn open(
        data: &Path,
        images: Images,
        attempts: Attempts,
        surroundings: Surroundings,
    ) -> io::Result<Self> {
        sys::keep_children_waitable()?;
        let shared = Shared {
            images,
            attempts,
            replicas: Replicas::open(data, &surroundings.core_addresses)?,
            surroundings,
            boot_id: process::boot_id()?,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The images that it executes.
    pub fn images(&self) -> &Images {
        &self.shared.images
    }

    /// What confines the processes that it starts, and where their images are: a phrase each.
    pub fn in_force(&self) -> Vec<String> {
        vec![
            "own session and process group".to_owned(),
            format!("at most {} open files, no core dumps", self.shared.surroundings.open_files),
            "scrubbed environment".to_owned(),
            "no sandbox, no memory limit".to_owned(),
            format!("images in {}", self.shared.images.directory().display()),
        ]
    }

    /// The addresses that running processes read.
    pub fn replicas(&self) -> &Replicas {
        &self.shared.replicas
    }

    /// Launches one attempt, on a blocking thread. Once begun it goes to its end, also when this
    /// future is dropped: its process is then found by its record at the next start.
    pub async fn launch(&self, launch: Launch) -> Result<Launched, LaunchError> {
        let shared = Arc::clone(&self.shared);
        let span = Span::current();
        let done = spawn_blocking(move || span.in_scope(|| shared.launch(launch)));
        done.await.map_err(|_| LaunchError::CutOff)?
    }
}

/// Of spares.
impl Launcher {
    /// Launches a spare, on a blocking thread; goes to its end as [`Self::launch`].
    pub(crate) async fn launch_spare(&self, new: NewSpare) -> Result<(Launched, Channel), LaunchError> {
        let shared = Arc::clone(&self.shared);
        let done = spawn_blocking(move || {
            let image = shared.images.open_verified(&new.image)?;
            standby::launch(&shared.site(), &new, &image)
        });
        done.await.map_err(|_| LaunchError::CutOff)?
    }

    /// Makes a spare the process of an attempt. Blocking: a file, a rename, a datagram.
    pub(crate) fn hand_over(
        &self,
        launch: &Launch,
        process: ProcessId,
        spare: &AttemptDirectory,
        channel: &Channel,
        stay: bool,
    ) -> Result<AttemptDirectory, LaunchError> {
        standby::hand_over(&self.shared.site(), launch, process, spare, channel, stay)
    }

    /// Makes a process whose instance has ended a spare again. Blocking.
    pub(crate) fn refit(
        &self,
        new: &NewSpare,
        process: ProcessId,
        channel: &Channel,
    ) -> io::Result<AttemptDirectory> {
        standby::refit(&self.shared.site(), new, process, channel)
    }
}

impl Shared {
    fn site(&self) -> spawn::Site<'_> {
        spawn::Site {
            attempts: &self.attempts,
            replicas: &self.replicas,
            surroundings: &self.surroundings,
            boot_id: &self.boot_id,
        }
    }

    fn launch(&self, mut launch: Launch) -> Result<Launched, LaunchError> {
        launch.laps.pass(timings::Launch::Queue);
        let image = self.images.open_verified(&launch.image)?;
        launch.laps.pass(timings::Launch::Verify);
        let launched = spawn::launch(&self.site(), &mut launch, &image)?;
        launch.laps.record();
        Ok(launched)
    }
}
