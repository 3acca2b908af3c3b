//! How long the stages of requests and of launches take: histograms in this process, always on.
//!
//! Each record is two additions to atomic counters, made by the task that has done the work, after it is done:
//! never inside a transaction, never under a lock. A histogram has a fixed number of buckets, so nothing grows with
//! what is recorded, and nothing runs while nobody asks: an idle service stays idle. No series is named after an
//! instance, a tenant or a node.
//!
//! The figures are of this process since its start and of nobody else; they are lost with it. Both services record
//! here, so where they share a process they share the figures. [`text`] writes them for people and for Prometheus,
//! [`endpoint`] serves them to this machine.

pub mod endpoint;
mod histogram;
mod text;

use std::time::Duration;

use tokio::time::Instant;

pub use self::histogram::{Bucket, Histogram};
pub use self::text::{Format, render};

/// An enum of labels: each variant with its word, and all of them in order.
macro_rules! labels {
    ($(#[$doc:meta])+ $name:ident { $($(#[$what:meta])+ $variant:ident $word:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$what])+ $variant,)+ }

        impl $name {
            /// All, in the order in which they happen.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

labels! {
    /// What was asked for.
    Request {
        /// A controller starts an instance.
        Start "start",
        /// A node claims due wakes.
        Claim "claim",
        /// A process registers.
        Register "register",
        /// An instance saves a checkpoint.
        Checkpoint "checkpoint",
        /// An instance reports progress, or an event of its own.
        Event "event",
        /// A controller sends a signal.
        Signal "signal",
        /// An instance suspends.
        Suspend "suspend",
        /// An instance has ended.
        Ending "ending",
        /// A node tells the end of a process.
        Exit "exit",
    }
}

labels! {
    /// A stage of a request. They follow each other; a few microseconds between them belong to none.
    Stage {
        /// From the last byte of its frame to the moment when its turn to be carried out has come: decoding,
        /// and waiting behind what its client and its tenant have in flight.
        Decode "decode",
        /// From the store's queue to the transaction that takes it.
        Queue "queue",
        /// That transaction, with all others that share it, until it is durable.
        Commit "commit",
        /// From there until the task that asked goes on.
        Answer "answer",
        /// Forming the answer and handing it to the connection.
        Reply "reply",
    }
}

labels! {
    /// A stage of a launch. They follow each other, except that the process begins while the node still hands over.
    Launch {
        /// The node's look for due wakes that claimed it.
        Claim "claim",
        /// From there until a thread launches it.
        Queue "queue",
        /// The image is there, and is what its digest says.
        Verify "verify",
        /// Its directory, its output files and the pipe of its launch document.
        Files "files",
        /// From the system call that makes the process until the kernel executes the image.
        Exec "exec",
        /// The process is made known on the disk and has its launch document.
        HandOver "hand_over",
        /// Told by the process: from there until its main function has read the document.
        Start "start",
        /// Told by the process: its socket and its TLS configuration.
        Endpoint "endpoint",
        /// Told by the process: the handshake with core.
        Handshake "handshake",
        /// Told by the process: the registration, there and back.
        Register "register",
        /// Told by the process: from there until the workflow asks for something durable, or has ended.
        FirstStep "first_step",
        /// From the moment when the node sees the process's end until it is told to the store.
        Exit "exit",
    }
}

/// The histograms of one process.
#[derive(Debug)]
pub struct Timings {
    requests: [[Histogram; Stage::ALL.len()]; Request::ALL.len()],
    launches: [Histogram; Launch::ALL.len()],
}

/// Those of this process.
static TIMINGS: Timings = Timings::new();

impl Timings {
    #[expect(clippy::large_stack_arrays, reason = "made by the compiler, for the static; tests have room")]
    const fn new() -> Self {
        Self {
            requests: [const { [const { Histogram::new() }; Stage::ALL.len()] }; Request::ALL.len()],
            launches: [const { Histogram::new() }; Launch::ALL.len()],
        }
    }

    fn request(&self, request: Request, stage: Stage) -> &Histogram {
        &self.requests[request as usize][stage as usize]
    }

    fn launch(&self, stage: Launch) -> &Histogram {
        &self.launches[stage as usize]
    }
}

/// Records a stage of a request that took until now.
pub fn request(request: Request, stage: Stage, since: Instant) {
    TIMINGS.request(request, stage).record(since.elapsed());
}

/// Records a stage of a launch.
pub fn launch(stage: Launch, took: Duration) {
    TIMINGS.launch(stage).record(took);
}

/// The stages of one launch as they pass, recorded together once it has succeeded: so each counts launches.
#[derive(Clone, Debug)]
pub struct Laps {
    since: Instant,
    passed: Vec<(Launch, Duration)>,
}

impl Laps {
    /// The first stage begins now.
    pub fn begin() -> Self {
        Self { since: Instant::now(), passed: Vec::with_capacity(Launch::ALL.len()) }
    }

    /// A stage is over, and the next begins.
    pub fn pass(&mut self, stage: Launch) {
        let now = Instant::now();
        self.passed.push((stage, now - self.since));
        self.since = now;
    }

    /// It was launched.
    pub fn record(self) {
        for (stage, took) in self.passed {
            launch(stage, took);
        }
    }
}

/// When a queued request was taken by a transaction, and when that was durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) taken: Instant,
    pub(crate) durable: Instant,
}

/// Records what became of a request that was queued then. To be called by the task that has waited for it.
pub(crate) fn committed(request: Request, queued: Instant, committed: Committed) {
    let Committed { taken, durable } = committed;
    TIMINGS.request(request, Stage::Queue).record(taken - queued);
    TIMINGS.request(request, Stage::Commit).record(durable - taken);
    TIMINGS.request(request, Stage::Answer).record(durable.elapsed());
}
