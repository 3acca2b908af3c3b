//! A workflow's process: from its launch document to its end.
//!
//! The main thread runs the workflow; a thread of its own stays connected to core, so a workflow
//! that computes or blocks stays connected too. Both make ready what they can before the launch document
//! arrives, or while the other waits. The process leaves at once when its ending or its
//! suspension is recorded, also while other threads run. It never records an ending for a panic: that
//! is a crash, and the environment tells it from the exit.
//!
//! # Exit codes
//!
//! Nobody decides by them, core's row counts; they are for people.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | the ending or the suspension is recorded; or the environment gave the launch up before it began |
//! | 2 | started by hand: it said what it is |
//! | 3 | the launch document cannot be read |
//! | 4 | fenced: a newer attempt or session writes now |
//! | 5 | core refuses this attempt, or what it sends, for good; the reason is on stderr |
//! | 101 | a panic |

#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io::{self, Write as _},
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{self, Poll},
    thread,
    time::Duration,
};

use dormouse_proto::{instance::Payload, launch::LaunchDocument};
use prost::Message as _;
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    blocking,
    connection::{self, socket},
    context::Context,
    error::Result,
    fault,
    ledger::{Ending, Fate, Ledger},
    standby, sys,
    workflow::{Entry, Workflow, find},
};

/// Exit codes, see the module.
pub(crate) mod exit {
    pub(crate) const LEFT: u8 = 0;
    pub(crate) const BY_HAND: u8 = 2;
    pub(crate) const DOCUMENT: u8 = 3;
    pub(crate) const FENCED: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    pub(crate) const PANIC: u8 = 101;
}

/// The layout of the launch document that this release reads.
const DOCUMENT_FORMAT: u32 = 1;
/// Largest launch document in bytes: addresses and one certificate.
const DOCUMENT_MAX: u64 = 1 << 20;
/// How long a process that leaves waits for its own output: another thread may hold stdout for ever.
const FLUSH: Duration = Duration::from_millis(500);
/// Stack of the thread that stays connected.
pub(crate) const LINK_STACK: usize = 512 << 10;
/// Stack of the thread that writes out what is buffered.
const FLUSH_STACK: usize = 64 << 10;

/// Whether this process was launched as an instance, so that [`Image::run`] takes it over.
///
/// For programs that are more than a workflow; [`main!`](crate::main) needs no such question.
#[expect(clippy::disallowed_methods, reason = "how a launched process learns that it is one")]
pub fn launched() -> bool {
    std::env::var_os(sys::LAUNCH_FD).is_some()
}

/// What an executable holds for Dormouse: workflows, and the section that names them. Made by
/// [`image!`](crate::image).
#[derive(Debug)]
pub struct Image {
    workflows: Vec<Workflow>,
    threads: usize,
}

impl Image {
    /// From the macro, which knows the section.
    #[doc(hidden)]
    pub fn new(section: &'static [u8], workflows: Vec<Workflow>) -> Self {
        // Read once, so that the linker keeps it whatever it strips.
        sys::keep(section);
        Self { workflows, threads: 0 }
    }

    /// Gives asynchronous workflows a runtime with so many worker threads.
    ///
    /// Without this it has one thread, the main one: most workflows wait, a thread costs each of many
    /// instances memory, and what computes belongs into
    /// [`Context::step_blocking`](crate::Context::step_blocking) anyway.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Runs this process as the instance that it was launched for, and ends it. Call it first in `main`:
    /// before other threads, and before anything is written to stdout.
    ///
    /// A process that was started by hand says what it is and exits with 2.
    pub fn run(self) -> ! {
        let Some(fd) = sys::take_launch_fd() else {
            self.explain();
            sys::exit(exit::BY_HAND);
        };
        match fd.parse() {
            // A spare, or a process that may serve several instances.
            Ok(channel) if sys::is_socket(channel) => standby::serve(&self, channel),
            _ => self.run_instance(fd),
        }
    }

    pub(crate) fn workflows(&self) -> &[Workflow] {
        &self.workflows
    }

    fn explain(&self) {
        let program = std::env::args().next().unwrap_or_else(|| "PROGRAM".to_owned());
        let names: Vec<_> = self.workflows.iter().map(Workflow::name).collect();
        let choice = if let [_] = self.workflows[..] { "" } else { " --workflow NAME" };
        // Nothing to be done if stderr is closed: the exit code says it too.
        let _ = writeln!(
            std::io::stderr(),
            "This is a Dormouse image (SDK {}) with the workflows: {}.\n\
             It is launched by Dormouse, not by hand. Run it with:\n\n    dormouse run {program}{choice} --input JSON",
            env!("CARGO_PKG_VERSION"),
            names.join(", "),
        );
    }

    fn run_instance(self, fd: String) -> ! {
        let (started, start) = mpsc::sync_channel(1);
        let output = Arc::new(Output::default());
        let shared = Arc::clone(&output);
        let link =
            thread::Builder::new().name("dormouse-link".to_owned()).stack_size(LINK_STACK).spawn(move || {
                // A panic here would leave a workflow that waits for ever.
                let connected = catch_unwind(AssertUnwindSafe(|| stay_connected(fd, started, &shared)));
                match connected {
                    Ok(fate) => leave(&fate, &shared),
                    Err(_) => crash(&shared),
                }
            });
        if let Err(error) = link {
            eprintln!("dormouse-sdk: no thread for the connection: {error}");
            sys::exit(exit::REFUSED);
        }
        // While the connection is made.
        // Never dropped: that would wait for blocking tasks, and nothing may hold up the ending.
        let runtime = ManuallyDrop::new(self.runtime());
        if let Ok(start) = start.recv() {
            match catch_unwind(AssertUnwindSafe(|| run_workflow(&self.workflows, &runtime, &start))) {
                Ok(Ok(output)) => start.ledger.end(Ending::Completed(output)),
                Ok(Err(failure)) => start.ledger.end(Ending::Failed(failure)),
                Err(_) => crash(&output),
            }
        }
        // While the ending is on its way. The connection's thread ends the process when it is acknowledged.
        output.flush();
        loop {
            thread::park();
        }
    }

    /// The runtime for asynchronous workflows, if there is one.
    pub(crate) fn runtime(&self) -> io::Result<Option<Runtime>> {
        if !self.workflows.iter().any(|workflow| matches!(workflow.entry, Entry::Asynchronous(_))) {
            return Ok(None);
        }
        let mut builder = match self.threads {
            0 => tokio::runtime::Builder::new_current_thread(),
            threads => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(threads);
                builder
            }
        };
        builder.enable_all().build().map(Some)
    }
}

/// What the workflow's thread gets from the connection's.
pub(crate) struct Start {
    pub(crate) ledger: Arc<Ledger>,
    /// The runtime of the connection's thread: it drives the timers of blocking workflows.
    pub(crate) timers: tokio::runtime::Handle,
}

/// The launch document; without one the process ends.
fn await_document(fd: &str) -> LaunchDocument {
    match read_document(fd) {
        Ok(Some(document)) => {
            fault::this_is_attempt(document.attempt);
            document
        }
        // The environment went away, or thought better of it: nothing was touched.
        Ok(None) => sys::exit(exit::LEFT),
        Err(reason) => {
            eprintln!("dormouse-sdk: the launch document of descriptor {fd} cannot be read: {reason}");
            sys::exit(exit::DOCUMENT);
        }
    }
}

fn read_document(fd: &str) -> Result<Option<LaunchDocument>, String> {
    let fd = fd.parse().map_err(|_| "the descriptor is no number".to_owned())?;
    let bytes = sys::read_to_end(fd, DOCUMENT_MAX).map_err(|error| error.to_string())?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(format!("it is longer than {DOCUMENT_MAX} bytes"));
    }
    let document = LaunchDocument::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    if document.format != DOCUMENT_FORMAT {
        let format = document.format;
        return Err(format!(
            "its format is {format}, this SDK reads {DOCUMENT_FORMAT}; build the image anew"
        ));
    }
    if document.addresses_fd >= 0 {
        sys::set_close_on_exec(document.addresses_fd).map_err(|error| format!("addresses: {error}"))?;
    }
    Ok(Some(document))
}

/// The connection's thread. Returns only if there is no connection to be had; else the process ends in here.
fn stay_connected(fd: String, started: mpsc::SyncSender<Start>, output: &Arc<Output>) -> Fate {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Fate::Refused(format!("no runtime for the connection: {error}")),
    };
    let timers = runtime.handle().clone();
    let output = Arc::clone(output);
    runtime.block_on(async {
        // A task: waking one costs no system call, waking what `block_on` runs itself does.
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            let fate = match socket() {
                // Before the document is there: it decides nothing of this.
                Ok(socket) => {
                    let begin = |ledger| {
                        // The workflow's thread waits for exactly this.
                        let _ = started.send(Start { ledger, timers });
                    };
                    connection::run(socket, await_document(&fd), begin).await
                }
                Err(error) => Fate::Refused(format!("no socket for the connection: {error}")),
            };
            // At once: taking the runtime apart would cost as much as a step.
            leave(&fate, &output)
        });
        match connection.join_next().await {
            Some(Err(panic)) if panic.is_panic() => resume_unwind(panic.into_panic()),
            ended => Fate::Refused(format!("the connection ended without a fate: {ended:?}")),
        }
    })
}

pub(crate) fn run_workflow(
    workflows: &[Workflow],
    runtime: &io::Result<Option<Runtime>>,
    start: &Start,
) -> Result<Payload> {
    let workflow = find(workflows, &start.ledger.facts.workflow)?;
    let ctx = Context::new(Arc::clone(&start.ledger));
    let runtime = runtime.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    match (&workflow.entry, runtime) {
        (Entry::Blocking(run), _) => run(blocking::Context::new(ctx, start.timers.clone())),
        (Entry::Asynchronous(run), Some(runtime)) => runtime.block_on(async {
            let running = run(ctx);
            Watched { running, ledger: &start.ledger }.await
        }),
        (Entry::Asynchronous(_), None) => unreachable!("an image with such a workflow has a runtime"),
    }
}

/// Tells the ledger when the workflow works: only one that rests is suspended.
pub(crate) struct Watched<'a, F> {
    pub(crate) running: F,
    pub(crate) ledger: &'a Ledger,
}

impl<F: Future + Unpin> Future for Watched<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        self.ledger.polling(true);
        let poll = Pin::new(&mut self.running).poll(cx);
        self.ledger.polling(false);
        poll
    }
}

pub(crate) fn leave(fate: &Fate, output: &Arc<Output>) -> ! {
    match fate {
        Fate::Ended | Fate::Suspended => {
            output.flushed();
            sys::exit(exit::LEFT)
        }
        // Not even its output counts any more.
        Fate::Fenced => sys::exit(exit::FENCED),
        Fate::Refused(reason) => {
            eprintln!("dormouse-sdk: {reason}");
            output.flushed();
            sys::exit(exit::REFUSED)
        }
    }
}

/// The message is on stderr already: the panic hook wrote it.
pub(crate) fn crash(output: &Arc<Output>) -> ! {
    output.flushed();
    sys::exit(exit::PANIC)
}

/// What is buffered is written out once before the process leaves, but not waited for without end: whoever holds
/// stdout's lock for ever keeps what it buffered.
#[derive(Default)]
pub(crate) struct Output {
    begun: AtomicBool,
    written: Mutex<bool>,
    told: Condvar,
}

impl Output {
    /// On a thread that may be held up.
    pub(crate) fn flush(&self) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        // A closed stdout has nothing to flush; a full disk is not worth a crash.
        let _ = io::stdout().flush();
        let _ = io::stderr().flush();
        sys::flush_c_streams();
        *self.lock() = true;
        self.told.notify_all();
    }

    /// Waits for that, at most [`FLUSH`]; has a thread do it if nobody does. Answers whether it is done.
    pub(crate) fn flushed(self: &Arc<Self>) -> bool {
        if !self.begun.load(Ordering::Relaxed) {
            let output = Arc::clone(self);
            let writer = thread::Builder::new().stack_size(FLUSH_STACK).spawn(move || output.flush());
            if writer.is_err() {
                return false;
            }
        }
        // Late: the process leaves all the same.
        let waited = self.told.wait_timeout_while(self.lock(), FLUSH, |written| !*written);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // Nothing panics while it holds the lock.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
