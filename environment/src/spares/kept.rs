//! One process that is kept, from its launch to its end.

use std::{io, sync::Arc, time::Duration};

use dormouse_core::{
    domain::{
        id::Digest,
        outcome::{ExitReason, ExitReport},
    },
    fault,
    store::Kept as Wish,
};
use dormouse_proto::launch::report::Word;
use prost::Message as _;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    channel::Channel,
    look::Look,
    pool::{Of, Shared},
};
use crate::{
    attempts::{AttemptDirectory, AttemptId, Attempts},
    images::OpenError,
    launcher::{Launch, LaunchError, NewSpare},
    node::SparePlace,
    process,
    supervisor::{Process, chain, kill_recorded},
};

/// How long a process may take from its launch until it stands by. The author's own code before
/// the SDK's is part of it.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(30);
/// The same where an attempt waits for it.
pub(super) const READY_SOON: Duration = Duration::from_secs(5);
/// The same for one that has served an instance: nothing but the SDK's own code is in between.
const READY_AGAIN_WITHIN: Duration = Duration::from_secs(5);
/// A process that is not needed any more leaves by itself within this time, or is killed.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Before further looks at a process that seems to have left something behind: the kernel shows a thread for a moment
/// after it was joined, on a busy machine for longer.
const LOOK_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(20), Duration::from_millis(80)];

/// A process that waits for an instance.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) of: Of,
    pub(super) number: u64,
    /// Instances that it has served.
    pub(super) served: u32,
    pub(super) process: Process,
    channel: Channel,
    /// As it was before its first instance.
    before: Arc<Look>,
    pub(super) place: Option<SparePlace>,
}

/// Why a process does not stand by.
#[derive(Debug)]
pub(super) struct NotReady {
    /// For people.
    pub(super) reason: String,
    /// Somebody else ended it: nothing is wrong with the image.
    pub(super) killed: bool,
}

impl From<String> for NotReady {
    fn from(reason: String) -> Self {
        Self { reason, killed: false }
    }
}

impl NotReady {
    /// It ended, as the report says.
    pub(super) fn ended(what: &str, report: Option<&ExitReport>) -> Self {
        /// SIGKILL: nobody does that to itself.
        const KILL: i32 = 9;
        let killed = report.is_some_and(|report| report.reason == ExitReason::Signal(KILL));
        let how = report.map(|report| format!(": {}", last_words(report))).unwrap_or_default();
        Self { reason: format!("{what}{how}"), killed }
    }
}

/// A process that was made an attempt's.
#[derive(Debug)]
pub(crate) struct Handed {
    /// To be watched to its end, as any.
    pub(crate) process: Process,
    /// What it says, and what makes it a spare again.
    pub(crate) stay: Stay,
}

/// The channel of a process that serves an instance.
#[derive(Debug)]
pub(crate) struct Stay {
    of: Of,
    number: u64,
    served: u32,
    channel: Option<Channel>,
    before: Arc<Look>,
    taken: bool,
}

impl Stay {
    /// Returns when the process says that its instance has ended in order; else never. May be
    /// dropped at any moment.
    pub(crate) async fn done(&mut self) {
        while let Some(channel) = &self.channel {
            match channel.report().await {
                Some(Word::Done) => return,
                Some(Word::Taken) => self.taken = true,
                Some(Word::Ready | Word::Unknown) => {}
                None => self.channel = None,
            }
        }
        std::future::pending().await
    }

    /// Nothing more is given to the process: it leaves once it has no instance.
    pub(crate) fn close(&mut self) {
        self.channel = None;
    }

    pub(super) fn of(&self) -> &Of {
        &self.of
    }

    /// Whether it may serve another one, where so many are allowed.
    pub(super) fn may_serve_more(&self, reuse: u32) -> bool {
        self.served + 1 < reuse
    }

    /// Whether the process has read its launch document; to be asked once it has ended. One that
    /// has not has touched nothing, and its attempt can be launched anew.
    pub(crate) fn was_taken(&mut self) -> bool {
        while let Some(word) = self.channel.as_ref().and_then(Channel::reported) {
            self.taken |= word == Word::Taken;
        }
        self.taken
    }
}

impl Kept {
    /// Launches a process for this wish, and waits until it stands by. The error is for people; no
    /// process is left then.
    pub(super) async fn begin(
        shared: &Shared,
        wish: &Wish,
        place: Option<SparePlace>,
        within: Duration,
    ) -> Result<Self, NotReady> {
        let new = shared.new_spare(wish).await?;
        let number = new.number;
        let launched = match shared.launcher.launch_spare(new.clone()).await {
            Err(LaunchError::Image(OpenError::Missing { digest } | OpenError::Damaged { digest, .. }))
                if shared.fetches.possible() =>
            {
                fetch(shared, digest).await?;
                shared.launcher.launch_spare(new).await
            }
            launched => launched,
        };
        let (launched, channel) = launched.map_err(|error| chain(&error))?;
        let process = Process::watch(launched).map_err(|error| format!("it cannot be watched: {error}"))?;
        let of = Of::wish(wish);
        let ready = Self::ready(shared, &process, &channel, within).await;
        match ready {
            Ok(before) => {
                debug!(number, pid = process.id().pid, "a spare stands by");
                Ok(Self { of, number, served: 0, process, channel, before: Arc::new(before), place })
            }
            Err(reason) => {
                let report = shared.finish(process, Some(channel)).await;
                Err(NotReady::ended(&reason, report.as_ref()))
            }
        }
    }

    async fn ready(
        shared: &Shared,
        process: &Process,
        channel: &Channel,
        within: Duration,
    ) -> Result<Look, String> {
        tokio::select! {
            word = timeout(within, channel.report()) => match word {
                Ok(Some(Word::Ready)) => {}
                Ok(Some(_)) => return Err("it said something else than that it is ready".to_owned()),
                Ok(None) => return Err("it ended before it stood by".to_owned()),
                Err(_) => return Err(format!("it did not stand by within {within:?}")),
            },
            _ = process.ended() => return Err("it ended before it stood by".to_owned()),
            () = shared.closing.cancelled() => return Err("spares are not wanted any more".to_owned()),
        }
        look(process).await.map_err(|error| format!("it cannot be looked at: {error}"))
    }

    /// Makes it the process of an attempt. After an error it is on its way out.
    pub(super) async fn hand_over(
        self,
        shared: &Arc<Shared>,
        launch: Launch,
        reuse: u32,
    ) -> Result<Handed, LaunchError> {
        let Self { of, number, served, process, channel, before, place } = self;
        drop(place);
        let (launcher, id) = (shared.launcher.clone(), process.id());
        let (spare, stay) = (process.directory().clone(), served + 1 < reuse);
        let span = tracing::Span::current();
        let handed = spawn_blocking(move || {
            let _in = span.enter();
            let handed = launcher.hand_over(&launch, id, &spare, &channel, stay);
            (handed, channel, launch)
        });
        let Ok((handed, channel, launch)) = handed.await else { return Err(LaunchError::CutOff) };
        match handed {
            Ok(directory) => {
                debug!(number, pid = id.pid, served, "a spare was handed over");
                let process = process.in_directory(directory);
                let stay = Stay { of, number, served, channel: Some(channel), before, taken: false };
                Ok(Handed { process, stay })
            }
            Err(error) => {
                // Where its files are now depends on how far it came.
                let attempt = shared.attempts.directory(&launch.id);
                shared.finish(process, Some(channel)).await;
                if let Err(error) = shared.attempts.discard(&attempt) {
                    warn!(%error, path = %attempt.path.display(), "a spare's directory stays behind");
                }
                Err(error)
            }
        }
    }
}

/// A process whose instance has ended and that left nothing behind. It stands where its attempt's files are.
#[derive(Debug)]
pub(super) struct Idle {
    of: Of,
    number: u64,
    served: u32,
    process: Process,
    channel: Channel,
    before: Arc<Look>,
    /// Its directory is as it was made.
    files_are_unused: bool,
}

impl Idle {
    /// Looks whether it may serve another one. Else it is answered as it is, with its channel closed: it leaves
    /// by itself.
    pub(super) async fn look_at(process: Process, stay: Stay) -> Result<Self, Process> {
        let Stay { of, number, served, channel, before, .. } = stay;
        let Some(channel) = channel else { return Err(process) };
        let mut now = look(&process).await;
        for pause in LOOK_AGAIN_AFTER {
            if !now.as_ref().is_ok_and(|now| now.left_since(&before).is_some()) {
                break;
            }
            sleep(pause).await;
            now = look(&process).await;
        }
        let pid = process.id().pid;
        match now.map(|now| (now.left_since(&before), now.files_are_unused(&before))) {
            Ok((None, files_are_unused)) => {
                let served = served + 1;
                Ok(Self { of, number, served, process, channel, before, files_are_unused })
            }
            Ok((Some(left), _)) => {
                info!(pid, "not used again: its instance left {left}");
                Err(process)
            }
            Err(error) => {
                info!(pid, %error, "not used again: it cannot be looked at");
                Err(process)
            }
        }
    }

    /// Makes it a spare again: with the attempt's directory if that is unused, else with a new one, and then the
    /// attempt's is left as it is. After an error it has ended, and all files are where they were.
    pub(super) async fn move_out(self, shared: &Shared, id: &AttemptId) -> Result<(Kept, Files), ()> {
        let wish = shared.wish(&self.of);
        let Some(wish) = wish.filter(|wish| self.served < wish.reuse && !shared.closing.is_cancelled())
        else {
            self.end().await;
            return Err(());
        };
        if self.files_are_unused {
            let (attempts, id, number) = (shared.attempts.clone(), id.clone(), self.number);
            let renamed = spawn_blocking(move || attempts.rename_back(&id, number)).await;
            match renamed.map_err(io::Error::other).flatten() {
                Ok(directory) => {
                    fault::point("spare.moved_back");
                    return Ok((self.kept(directory), Files::Taken));
                }
                // A new one will do.
                Err(error) => debug!(%error, "a directory was not used again"),
            }
        }
        self.refit(shared, &wish).await.map(|kept| (kept, Files::Left))
    }

    async fn refit(mut self, shared: &Shared, wish: &Wish) -> Result<Kept, ()> {
        let new = match shared.new_spare(wish).await {
            Ok(new) => new,
            Err(reason) => {
                debug!(reason, "not used again");
                self.end().await;
                return Err(());
            }
        };
        self.number = new.number;
        let (id, launcher, channel) = (self.process.id(), shared.launcher.clone(), self.channel);
        let refitted = spawn_blocking(move || (launcher.refit(&new, id, &channel), channel)).await;
        let Ok((refitted, channel)) = refitted else {
            end_in_place(self.process, None).await;
            return Err(());
        };
        self.channel = channel;
        let Ok(directory) = refitted else {
            self.end().await;
            return Err(());
        };
        if let Ok(Some(Word::Ready)) = timeout(READY_AGAIN_WITHIN, self.channel.report()).await {
            return Ok(self.kept(directory));
        }
        debug!(number = self.number, "not used again: it did not stand by");
        self.end().await;
        discard(&shared.attempts, directory).await;
        Err(())
    }

    fn kept(self, directory: AttemptDirectory) -> Kept {
        let Self { of, number, served, process, channel, before, .. } = self;
        let process = process.in_directory(directory);
        Kept { of, number, served, process, channel, before, place: None }
    }

    /// Ends it. What its instance left in its files stays.
    pub(super) async fn end(self) {
        end_in_place(self.process, Some(self.channel)).await;
    }
}

/// What became of the files of an attempt whose process serves another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// They are to be put away.
    Left,
    /// There was nothing in them, and the process took them along.
    Taken,
}

impl Shared {
    /// What a process without an instance is launched, or refitted, with.
    async fn new_spare(&self, wish: &Wish) -> Result<NewSpare, String> {
        let key = self.key().await.map_err(|error| chain(&error))?;
        let number = self.number();
        let standby = key.sign(self.lease.node.as_str(), self.lease.epoch, wish.tenant.as_str(), number);
        Ok(NewSpare {
            number,
            image: wish.digest,
            label: format!("{}:{}", wish.image, wish.version),
            standby: standby.encode_to_vec(),
        })
    }

    /// Ends a process that has no instance, and removes its files. Answers how it ended.
    pub(super) async fn finish(&self, process: Process, channel: Option<Channel>) -> Option<ExitReport> {
        let directory = process.directory().clone();
        let report = end_in_place(process, channel).await;
        discard(&self.attempts, directory).await;
        report
    }

    /// Ends what waits for an instance.
    pub(super) async fn end(&self, kept: Kept) -> Option<ExitReport> {
        let Kept { process, channel, number, place, .. } = kept;
        drop(place);
        let report = self.finish(process, Some(channel)).await;
        debug!(number, "a spare was ended");
        report
    }
}

/// Ends a process that has no instance, and leaves its files. Answers as [`Shared::finish`].
async fn end_in_place(process: Process, channel: Option<Channel>) -> Option<ExitReport> {
    drop(channel);
    if timeout(LEAVE_WITHIN, process.ended()).await.is_err()
        && let Err(error) = process.kill().await
    {
        warn!(%error, "a spare cannot be ended");
    }
    match process.collect().await {
        Ok(exit) => Some(exit.report),
        Err(error) => {
            warn!(%error, "the end of a spare cannot be collected");
            None
        }
    }
}

/// The end of what it wrote to standard error, or how it ended.
fn last_words(report: &ExitReport) -> String {
    let last = report.stderr_tail.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| report.reason.to_string(), str::to_owned)
}

async fn fetch(shared: &Shared, digest: Digest) -> Result<(), String> {
    let until = Instant::now() + READY_WITHIN;
    shared.fetches.fetch(digest, until).await.map_err(|error| chain(&*error))
}

async fn look(process: &Process) -> io::Result<Look> {
    let (pid, directory) = (process.id().pid, process.directory().clone());
    spawn_blocking(move || Look::at(pid, &directory)).await.map_err(io::Error::other)?
}

async fn discard(attempts: &Attempts, directory: AttemptDirectory) {
    let attempts = attempts.clone();
    let path = directory.path.clone();
    let done = spawn_blocking(move || attempts.discard(&directory)).await.map_err(io::Error::other).flatten();
    if let Err(error) = done {
        warn!(%error, path = %path.display(), "a spare's directory stays behind");
    }
}

/// At a start, before anything is launched: whoever is recorded as a spare of an earlier life is
/// ended. Usually none lives: its channel ended with that life. Blocking.
pub(crate) fn end_leftovers(attempts: &Attempts) -> io::Result<()> {
    let boot_id = process::boot_id()?;
    for directory in attempts.spares()? {
        match directory.load_record() {
            Ok(Some(record)) => {
                if let Some(process) = record.of_this_boot(&boot_id) {
                    kill_recorded(process, &directory.path)?;
                }
            }
            // Not made known: it read the end of its channel.
            Ok(None) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                warn!(path = %directory.path.display(), "process.json is unreadable; the folder is removed");
            }
            Err(e) => return Err(e),
        }
        attempts.discard(&directory)?;
    }
    Ok(())
}
