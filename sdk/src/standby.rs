//! A process that was launched before there is an instance for it, and that may serve one instance after the other.
//!
//! Its descriptor is no pipe but a control channel, on which the environment sends orders. The main thread reads
//! them and runs the workflows, as in every process; the connection's thread stands by at core, registers each
//! attempt when its document is there, and stays connected. What is left of the hand-over is short: the document,
//! the environment variables in it, one registration on a connection that exists.
//!
//! The end of the channel is the end of the environment. A process without an instance leaves then, one with an
//! instance goes on and leaves after it.
//!
//! It says that it is done only when its instance's ending is recorded and nothing of the workflow runs any more that
//! it can know of. Whether it is used again is decided outside, by who looks at it from there. After a suspension it
//! leaves: to be used again it would have to drop the workflow where it stands, and so run its destructors, which
//! no suspension does.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, mpsc as thread_mpsc},
    thread,
    time::Duration,
};

use dormouse_proto::{
    instance::Standby,
    launch::{LaunchDocument, Order, Report, SpareDocument, order, report::Word},
};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    connection::{Line, socket},
    fault,
    ledger::{Ending, Fate},
    process::{Image, LINK_STACK, Output, Start, crash, exit, leave, run_workflow},
    sys,
};

/// Largest order in bytes: a launch document with its environment.
const ORDER_MAX: usize = 1 << 20;
/// The layout of the documents that this release reads.
const FORMAT: u32 = 1;
/// How long blocking work that outlives its workflow is waited for; then the process is not used again.
const RUNTIME_ENDS_WITHIN: Duration = Duration::from_millis(200);

/// What the main thread wants of the connection's.
enum Task {
    StandBy(Box<SpareDocument>),
    Serve {
        document: Box<LaunchDocument>,
        started: thread_mpsc::SyncSender<Start>,
        output: Arc<Output>,
    },
    /// Nothing more is to come.
    Leave,
}

/// Serves the orders that come through descriptor `fd`, and ends the process.
pub(crate) fn serve(image: &Image, fd: RawFd) -> ! {
    if let Err(error) = sys::set_close_on_exec(fd) {
        refuse(&format!("descriptor {fd}: {error}"));
    }
    // One at a time: what the next one is depends on what became of it.
    let (tasks, queue) = mpsc::channel(1);
    let (over, ended) = thread_mpsc::channel();
    let link = thread::Builder::new().name("dormouse-link".to_owned()).stack_size(LINK_STACK);
    let link = link.spawn(move || {
        // A panic here would leave a workflow that waits for ever.
        match catch_unwind(AssertUnwindSafe(|| connect(fd, queue, over))) {
            Ok(Ok(())) => sys::exit(exit::LEFT),
            Ok(Err(error)) => refuse(&format!("no connection can be made: {error}")),
            Err(_) => crash(&Arc::default()),
        }
    });
    if let Err(error) = link {
        refuse(&format!("no thread for the connection: {error}"));
    }
    loop {
        let task = match receive(fd) {
            Ok(Some((order::Order::StandBy(document), descriptors))) => {
                if !descriptors.is_empty()
                    && let Err(error) = sys::take_over(&descriptors)
                {
                    refuse(&format!("its new directory cannot be used: {error}"));
                }
                Task::StandBy(Box::new(document))
            }
            Ok(Some((order::Order::Launch(document), _))) => {
                run(image, fd, document, &tasks, &ended);
                continue;
            }
            Ok(None) => Task::Leave,
            Err(reason) => refuse(&reason),
        };
        let leaves = matches!(task, Task::Leave);
        // The connection's thread lives as long as the process.
        let _ = tasks.blocking_send(task);
        if leaves {
            park();
        }
    }
}

/// The connection's thread ends the process.
fn park() -> ! {
    loop {
        thread::park();
    }
}

/// One instance, from its document to the word that it is done.
fn run(
    image: &Image,
    fd: RawFd,
    mut document: LaunchDocument,
    tasks: &mpsc::Sender<Task>,
    ended: &thread_mpsc::Receiver<()>,
) {
    if !document.environment.is_empty()
        && let Err(error) = sys::replace_environment(std::mem::take(&mut document.environment))
    {
        refuse(&format!("its environment cannot be set: {error}"));
    }
    // Read from the environment that was just set.
    fault::this_is_attempt(document.attempt);
    if document.stay {
        // What the workflow starts and abandons stays this process's, so that it shows.
        sys::adopt_orphans();
    }
    report(fd, Word::Taken);
    fault::pass(fault::Point::DocumentTaken);
    let (started, start) = thread_mpsc::sync_channel(1);
    let output = Arc::new(Output::default());
    let serve = Task::Serve { document: Box::new(document), started, output: Arc::clone(&output) };
    let _ = tasks.blocking_send(serve);
    let runtime = image.runtime();
    if let Ok(start) = start.recv() {
        let workflow = AssertUnwindSafe(|| run_workflow(image.workflows(), &runtime, &start));
        match catch_unwind(workflow) {
            Ok(Ok(payload)) => start.ledger.end(Ending::Completed(payload)),
            Ok(Err(failure)) => start.ledger.end(Ending::Failed(failure)),
            Err(_) => crash(&output),
        }
    }
    output.flush();
    // Told only if the ending is recorded and the process may go on; else it ends meanwhile.
    if ended.recv().is_err() {
        park();
    }
    if let Ok(Some(runtime)) = runtime {
        // Ends tasks that the workflow left behind, and threads that do nothing any more.
        runtime.shutdown_timeout(RUNTIME_ENDS_WITHIN);
    }
    sys::stop_timers();
    report(fd, Word::Done);
}

/// The connection's thread.
fn connect(fd: RawFd, queue: mpsc::Receiver<Task>, over: thread_mpsc::Sender<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let timers = runtime.handle().clone();
    runtime.block_on(async {
        let line = Line::new(socket()?);
        // A task: waking one costs no system call, waking what `block_on` runs itself does.
        let mut tasks = JoinSet::new();
        tasks.spawn(work(fd, line, queue, over, timers));
        match tasks.join_next().await {
            Some(Err(panic)) if panic.is_panic() => resume_unwind(panic.into_panic()),
            Some(Err(error)) => Err(io::Error::other(error)),
            Some(Ok(())) | None => Ok(()),
        }
    })
}

/// Does what the main thread asks for; in between the connection is kept.
async fn work(
    fd: RawFd,
    mut line: Line,
    mut queue: mpsc::Receiver<Task>,
    over: thread_mpsc::Sender<()>,
    timers: tokio::runtime::Handle,
) {
    // What there is to show core between two instances, and whether it is still to be said that core knows it.
    let (mut shown, mut owed) = (None, false);
    loop {
        let task = tokio::select! {
            biased;
            task = queue.recv() => task,
            refused = stay_ready(&mut line, owed), if shown.is_some() => match refused {
                None => {
                    if std::mem::take(&mut owed) {
                        report(fd, Word::Ready);
                    }
                    continue;
                }
                Some(fate) => leave(&fate, &Arc::default()),
            },
        };
        match task {
            Some(Task::StandBy(document)) => {
                match read(*document) {
                    Ok(read) => shown = Some(read),
                    Err(reason) => refuse(&reason),
                }
                show(&mut line, shown.as_ref());
                owed = true;
            }
            Some(Task::Serve { document, started, output }) => {
                let stay = document.stay;
                let begin = |ledger| {
                    // The workflow's thread waits for exactly this.
                    let _ = started.send(Start { ledger, timers: timers.clone() });
                };
                match line.serve(*document, begin).await {
                    Fate::Ended if stay && output.flushed() => {
                        // The attempt's token is forgotten with it.
                        show(&mut line, shown.as_ref());
                        // The main thread waits for exactly this.
                        let _ = over.send(());
                    }
                    fate => {
                        line.close().await;
                        leave(&fate, &output)
                    }
                }
            }
            Some(Task::Leave) | None => return line.close().await,
        }
    }
}

/// Connects, or waits until the connection is lost and connects again: without an instance there is no hurry. The
/// answer is why that is over.
async fn stay_ready(line: &mut Line, owed: bool) -> Option<Fate> {
    if !owed {
        line.lost().await;
    }
    line.stand_by().await.err()
}

/// Where core is, and what it is shown.
type Shown = (LaunchDocument, Standby);

/// From now on this is what core is shown.
fn show(line: &mut Line, shown: Option<&Shown>) {
    let Some((to_core, standby)) = shown else { return };
    if let Err(reason) = line.renew(to_core.clone(), Some(standby.clone())) {
        refuse(&reason);
    }
}

fn read(document: SpareDocument) -> Result<Shown, String> {
    let SpareDocument { format, standby, core_addresses, authority_pem, addresses_fd } = document;
    if format != FORMAT {
        return Err(format!(
            "its document's format is {format}, this SDK reads {FORMAT}; build the image anew"
        ));
    }
    if addresses_fd >= 0 {
        sys::set_close_on_exec(addresses_fd).map_err(|error| format!("addresses: {error}"))?;
    }
    let standby = Standby::decode(standby.as_slice()).map_err(|error| error.to_string())?;
    let to_core = LaunchDocument { core_addresses, authority_pem, addresses_fd, ..LaunchDocument::default() };
    Ok((to_core, standby))
}

type Received = (order::Order, Vec<OwnedFd>);

/// The next order; `None`: the environment is gone.
fn receive(fd: RawFd) -> Result<Option<Received>, String> {
    let (bytes, descriptors) = sys::receive(fd, ORDER_MAX).map_err(|error| error.to_string())?;
    if bytes.is_empty() {
        return Ok(None);
    }
    match Order::decode(bytes.as_slice()).map_err(|error| error.to_string())?.order {
        Some(order) => Ok(Some((order, descriptors))),
        None => Err("it is of a newer release; build the image anew".to_owned()),
    }
}

fn report(fd: RawFd, word: Word) {
    sys::send(fd, &Report { word: word.into() }.encode_to_vec());
}

fn refuse(reason: &str) -> ! {
    eprintln!("dormouse-sdk: an order of the environment cannot be followed: {reason}");
    sys::exit(exit::DOCUMENT)
}
