//! An instance for which the test itself speaks: its process only takes its launch document and
//! lives on, so that each state can be held for as long as a test wants to look at it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dormouse_management_sdk::{Instance, StartInstance};
use dormouse_proto::{
    instance::{Registered, SuspendOutcome, server_frame::Outcome, suspend_outcome::Kind},
    launch::LaunchDocument,
};
use prost::Message;

use crate::{
    controller::Controller,
    fault,
    raw::{self, RawClient},
    wait,
};

/// The program: takes its launch document, writes it where it is told, and does nothing more.
const PROGRAM: &str = "probe";
/// Tells it where.
const FOLDER_VARIABLE: &str = "DORMOUSE_PROBE_DIR";

/// One such instance.
#[derive(Debug)]
pub struct Probe {
    /// The instance.
    pub id: String,
    folder: PathBuf,
}

impl Probe {
    /// Starts one as it is, now.
    pub async fn start(controller: &Controller, id: &str) -> Self {
        Self::start_with(controller, id, |start| start).await
    }

    /// Starts one; `change` may add a limit, a delay, a priority.
    pub async fn start_with(
        controller: &Controller,
        id: &str,
        change: impl FnOnce(StartInstance) -> StartInstance,
    ) -> Self {
        Self::push(controller).await;
        Self::start_pushed(controller, id, change).await
    }

    /// Pushes its image.
    pub async fn push(controller: &Controller) {
        controller.push(PROGRAM).await;
    }

    /// As [`Self::start_with`], where the image has been pushed.
    pub async fn start_pushed(
        controller: &Controller,
        id: &str,
        change: impl FnOnce(StartInstance) -> StartInstance,
    ) -> Self {
        let folder = controller.scratch().join(format!("probe-{id}"));
        fs::create_dir(&folder).expect("ids of a test differ");
        let start = StartInstance::of(PROGRAM).id(id).env(FOLDER_VARIABLE, folder.display().to_string());
        controller.start(change(start)).await;
        Self { id: id.to_owned(), folder }
    }

    /// What the launcher gave to the process of this attempt, once it is there.
    pub async fn document(&self, attempt: u32) -> LaunchDocument {
        let path = self.path(attempt);
        let what = format!("attempt {attempt} of {} has its document", self.id);
        let bytes = wait::until(&what, async || fs::read(&path)).await;
        LaunchDocument::decode(&bytes[..]).expect("the launcher wrote it")
    }

    /// Registers this attempt, once it is launched.
    pub async fn register(&self, attempt: u32) -> (RawClient, Registered) {
        RawClient::register(&self.document(attempt).await).await
    }

    /// How many processes got a document.
    pub fn launches(&self) -> usize {
        let entries = fs::read_dir(&self.folder).expect("own directory").flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "document")).count()
    }

    /// kill -9 of its process: a crash.
    pub async fn crash(&self, controller: &Controller) {
        fault::kill_9(controller.until_process(&self.id).await);
        controller.until_no_process(&self.id).await;
    }

    /// Suspends it for a signal; its process ends, as the SDK's would.
    pub async fn suspend_for(&self, controller: &Controller, client: &RawClient, signal: &str) -> Instance {
        match client.ask(raw::suspend_for(signal)).await {
            Ok(Outcome::Suspend(SuspendOutcome { kind, .. })) if kind == i32::from(Kind::Suspended) => {}
            other => panic!("the suspend was answered {other:?}"),
        }
        self.crash(controller).await;
        controller.until_suspended(&self.id).await
    }

    fn path(&self, attempt: u32) -> PathBuf {
        self.folder.join(format!("{attempt}.document"))
    }

    /// The directory in which its processes leave their documents.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
