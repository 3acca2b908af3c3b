//! The connection to core: registers the attempt, answers the ledger's requests, passes on pushes.
//!
//! It runs on a thread of its own. A connection that is lost is none of the workflow's business: it connects
//! again, to any core replica and for ever, registers again under the same attempt and repeats what has no
//! answer; each request is one that core answers the same way when it comes twice. It gives up only when
//! core says that this attempt may not go on.
//!
//! It never decides anything about the instance: that is the ledger's.

mod course;
mod link;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use dormouse_proto::{
    call::{CallError, Caller, InstanceProtocol, Pushes},
    code::Code,
    instance::{self, ClientFrame, ServerFrame, client_frame, server_frame},
    launch::LaunchDocument,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

pub(crate) use dormouse_proto::endpoint::client_endpoint as socket;

use self::{
    course::Course,
    link::{Link, doubled},
};
use crate::{
    fault::{self, Point},
    ledger::{Fate, Ledger, Request, keep},
};

/// Before a request that core could not serve is repeated: from, doubling up to.
const REPEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A limit that stays reached for so many repeats is the workflow's business.
const REPEATS_OF_EXHAUSTED: u32 = 8;
/// A quiet connection shows a sign this often, and gets one back.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Core is lost when a request waits and nothing at all has arrived for so long, not even a sign: twice
/// [`KEEP_ALIVE`]. The transport's own time-out is made for connections on which nobody waits.
const SILENCE: Duration = Duration::from_secs(4);
/// How often that is looked at.
const LISTEN: Duration = Duration::from_millis(500);

/// How often in a row, without an answer in between, this process asks whether it is the attempt that is fenced
/// or only a session of it …
const RECLAIMS: u32 = 3;
/// … and how long it waits to hear that: its steps go on meanwhile, and a fenced process shall end.
const RECLAIM_WITHIN: Duration = Duration::from_secs(5);

/// Runs on a `socket` until the process has nothing more to say to core. Calls `started` once, when the attempt is
/// registered; what is stored may still be on its way then.
pub(crate) async fn run(
    socket: quinn::Endpoint,
    document: LaunchDocument,
    started: impl FnOnce(Arc<Ledger>),
) -> Fate {
    let mut line = Line::new(socket);
    let fate = line.serve(document, started).await;
    line.close().await;
    fate
}

/// A process's way to core, which may serve one attempt after the other on the same connection.
pub(crate) struct Line {
    socket: quinn::Endpoint,
    link: Option<Link>,
    /// The connection, while no attempt is served on it.
    session: Option<Session>,
}

impl Line {
    pub(crate) fn new(socket: quinn::Endpoint) -> Self {
        Self { socket, link: None, session: None }
    }

    /// Says what there is to say from now on.
    pub(crate) fn renew(
        &mut self,
        document: LaunchDocument,
        standby: Option<instance::Standby>,
    ) -> Result<(), String> {
        match &mut self.link {
            Some(link) => link.renew(document, standby),
            // This one is for this document already.
            None if standby.is_none() => self.link = Some(Link::new(self.socket.clone(), document)?),
            None => {
                self.link.insert(Link::new(self.socket.clone(), document.clone())?).renew(document, standby);
            }
        }
        Ok(())
    }

    /// Connects and stands by, unless the connection is there still. Tries for ever; fails only if core says that
    /// this process may not be here.
    pub(crate) async fn stand_by(&mut self) -> Result<(), Fate> {
        let is_connected = |session: &Session| session.caller.connection().close_reason().is_none();
        if self.session.as_ref().is_some_and(is_connected) {
            return Ok(());
        }
        self.session = None;
        let Some(link) = &mut self.link else { return Ok(()) };
        self.session = Some(link.stand_by().await?);
        Ok(())
    }

    /// Waits until the connection that stands by is lost.
    pub(crate) async fn lost(&mut self) {
        let Some(session) = &mut self.session else { return };
        // Nothing is pushed to who has no instance; what comes is late, for the one before.
        while session.pushes.next().await.is_some() {}
    }

    /// Until the process has nothing more to say of this attempt. The connection stays, if it is there still.
    pub(crate) async fn serve(
        &mut self,
        document: LaunchDocument,
        started: impl FnOnce(Arc<Ledger>),
    ) -> Fate {
        if let Err(reason) = self.renew(document, None) {
            return Fate::Refused(reason);
        }
        let Some(link) = &mut self.link else { return Fate::Refused("there is no way to core".to_owned()) };
        let (mut session, ledger, mut requests) = match link.begin(self.session.take()).await {
            Ok(begun) => begun,
            Err(fate) => return fate,
        };
        fault::pass(Point::AfterRegister);
        started(Arc::clone(&ledger));

        let mut keeper = pin!(keep(Arc::clone(&ledger)));
        let mut unanswered = Unanswered::default();
        loop {
            let (course, keeper) = (link.course(), keeper.as_mut());
            let left = serve(&mut session, &ledger, &mut requests, &mut unanswered, course, keeper).await;
            let (fate, fenced) = match left {
                Left::Fate(fate) => (Some(fate), false),
                Left::Fenced if unanswered.reclaims >= RECLAIMS => (Some(Fate::Fenced), true),
                Left::Fenced => (None, true),
                Left::Lost => (None, false),
            };
            if let Some(fate) = fate {
                self.session = Some(session);
                return fate;
            }
            // Before the next one registers: an old session has nothing to say beside a new one.
            drop(session);
            let registering = link.begin_again(&ledger);
            let again = if fenced {
                unanswered.reclaims += 1;
                timeout(RECLAIM_WITHIN, registering).await.unwrap_or(Err(Fate::Fenced))
            } else {
                registering.await
            };
            session = match again {
                Ok(session) => session,
                Err(fate) => return fate,
            };
        }
    }

    /// Tells core that the process ends.
    pub(crate) async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.caller.finish_and_close("the process ends").await;
        }
    }
}

struct Session {
    caller: Caller<InstanceProtocol>,
    pushes: Pushes<InstanceProtocol>,
    /// Which of this connection's registrations it is, counted from 0: pushes say for which they are.
    registration: u32,
    /// The number of the next one.
    next: u32,
}

struct Again {
    session: Session,
    registered: instance::Registered,
}

/// Why serving ended.
enum Left {
    Fate(Fate),
    Lost,
    /// Another session may write now: that of a newer attempt, or one that this very process opened and gave up.
    /// A registration that was slow, in an outage of the database say, is carried out though nobody waits for it
    /// any more, and may overtake the one that was answered. Registering once more tells which it is.
    Fenced,
}

/// Requests without an answer, in the order in which they were made.
#[derive(Default)]
struct Unanswered {
    requests: BTreeMap<u64, Pending>,
    last: u64,
    /// Registrations after a fence, without an answer since.
    reclaims: u32,
}

struct Pending {
    request: Request,
    /// How often core could not serve it.
    refusals: u32,
}

type Call = Pin<Box<dyn Future<Output = (u64, Result<ServerFrame, CallError>)> + Send>>;

/// Asks, after a pause; `number` tells which request it was.
fn ask(caller: &Caller<InstanceProtocol>, number: u64, frame: ClientFrame, pause: Duration) -> Call {
    let caller = caller.clone();
    Box::pin(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        (number, caller.call(frame).await)
    })
}

/// The number of what has no answer.
const UNANSWERED: u64 = 0;

/// Says what has no answer. Whether it arrived shows in what has one.
fn tell(caller: &Caller<InstanceProtocol>, operation: client_frame::Operation) -> Call {
    let caller = caller.clone();
    Box::pin(
        async move { (UNANSWERED, caller.send(operation.into()).await.map(|()| ServerFrame::default())) },
    )
}

/// Serves the ledger until the connection is lost or the process's part is over.
async fn serve(
    session: &mut Session,
    ledger: &Ledger,
    requests: &mut mpsc::Receiver<Request>,
    unanswered: &mut Unanswered,
    course: &mut Course,
    mut keeper: Pin<&mut impl Future<Output = String>>,
) -> Left {
    let Session { caller, pushes, registration, .. } = session;
    let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
    for (number, pending) in &unanswered.requests {
        calls.push(ask(caller, *number, pending.request.operation.clone().into(), Duration::ZERO));
    }
    let mut silence = Silence::new(caller.connection());
    let mut listen = tokio::time::interval(LISTEN);
    listen.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(request) = requests.recv() => {
                if request.is_answered() {
                    if unanswered.requests.is_empty() {
                        silence = Silence::new(caller.connection());
                    }
                    unanswered.last += 1;
                    let frame = ClientFrame { launched: course.asked(), ..request.operation.clone().into() };
                    calls.push(ask(caller, unanswered.last, frame, Duration::ZERO));
                    unanswered.requests.insert(unanswered.last, Pending { request, refusals: 0 });
                } else {
                    calls.push(tell(caller, request.operation));
                }
            }
            Some((number, answer)) = calls.next(), if !calls.is_empty() => {
                match unanswered.answer(caller, ledger, number, answer) {
                    Answered::Repeat(call) => calls.push(call),
                    Answered::Done => {}
                    Answered::Left(left) => return left,
                }
            }
            push = pushes.next() => match push {
                // Late, and meant for the instance that this process served before.
                Some(frame) if frame.registration != *registration => {}
                Some(ServerFrame { outcome: Some(server_frame::Outcome::Page(page)), .. }) => {
                    // What cannot be read now may be after another registration.
                    if ledger.load(page.checkpoints, page.next_cursor).is_err() {
                        return Left::Lost;
                    }
                }
                Some(frame) => match frame.outcome.and_then(|outcome| ledger.pushed(outcome)) {
                    Some(Fate::Fenced) => return Left::Fenced,
                    Some(fate) => return Left::Fate(fate),
                    None => {}
                },
                None => return Left::Lost,
            },
            refusal = keeper.as_mut() => return Left::Fate(Fate::Refused(refusal)),
            _ = listen.tick(), if !unanswered.requests.is_empty() => {
                if silence.lasts(caller.connection()) {
                    return Left::Lost;
                }
            }
        }
    }
}

enum Answered {
    Done,
    Repeat(Call),
    Left(Left),
}

impl Unanswered {
    fn answer(
        &mut self,
        caller: &Caller<InstanceProtocol>,
        ledger: &Ledger,
        number: u64,
        answer: Result<ServerFrame, CallError>,
    ) -> Answered {
        let Some(pending) = self.requests.get_mut(&number) else {
            return Answered::Done;
        };
        let outcome = match answer {
            Ok(ServerFrame { outcome: Some(outcome), .. }) => outcome,
            // An outcome of a newer release: it cannot be read, and will not be with a repeat.
            Ok(ServerFrame { outcome: None, .. }) => {
                refusal(Code::Unimplemented, "core's answer cannot be read")
            }
            Err(CallError::Lost { .. } | CallError::Malformed { .. } | CallError::Refused { .. }) => {
                return Answered::Left(Left::Lost);
            }
            Err(error @ CallError::TooLarge { .. }) => refusal(Code::InvalidArgument, &error.to_string()),
        };
        if is_worth_repeating(&outcome, pending.refusals) {
            let pause = doubled(REPEAT, pending.refusals);
            pending.refusals += 1;
            return Answered::Repeat(ask(caller, number, pending.request.operation.clone().into(), pause));
        }
        if is_fenced(&outcome) {
            return Answered::Left(Left::Fenced);
        }
        self.reclaims = 0;
        let Some(pending) = self.requests.remove(&number) else {
            return Answered::Done;
        };
        match ledger.answered(pending.request, outcome) {
            Some(fate) => Answered::Left(Left::Fate(fate)),
            None => Answered::Done,
        }
    }
}

fn refusal(code: Code, message: &str) -> server_frame::Outcome {
    server_frame::Outcome::Error(instance::Error {
        code: code.as_str().to_owned(),
        message: message.to_owned(),
        retryable: false,
    })
}

fn is_fenced(outcome: &server_frame::Outcome) -> bool {
    matches!(outcome, server_frame::Outcome::Error(error) if error.code == Code::Fenced.as_str())
}

/// Whether core could not serve the request now but may later. A limit that is reached may stay reached.
fn is_worth_repeating(outcome: &server_frame::Outcome, refusals: u32) -> bool {
    let server_frame::Outcome::Error(error) = outcome else {
        return false;
    };
    let exhausted = error.code == Code::ResourceExhausted.as_str();
    error.retryable && (!exhausted || refusals < REPEATS_OF_EXHAUSTED)
}

/// Listens whether core is still there while a request waits for its answer. A core that lives but is slow
/// acknowledges the signs of life; one that was killed without a farewell does not.
struct Silence {
    received: u64,
    since: Instant,
}

impl Silence {
    fn new(connection: &quinn::Connection) -> Self {
        Self { received: connection.stats().udp_rx.datagrams, since: Instant::now() }
    }

    fn lasts(&mut self, connection: &quinn::Connection) -> bool {
        let received = connection.stats().udp_rx.datagrams;
        if received != self.received {
            *self = Self { received, since: Instant::now() };
        }
        self.since.elapsed() >= SILENCE
    }
}
