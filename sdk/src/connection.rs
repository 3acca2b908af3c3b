//! The connection to core: registers the attempt, answers the ledger's requests, passes on pushes.
//!
//! It runs on a thread of its own. A connection that is lost is none of the workflow's business: it connects
//! again, to any core replica and for ever, registers again under the same attempt and repeats what has no
//! answer; each request is one that core answers the same way when it comes twice. It gives up only when
//! core says that this attempt may not go on.
//!
//! It never decides anything about the instance: that is the ledger's.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use dormouse_proto::{
    call::{CallError, Caller, InstanceProtocol, Protocol as _, Pushes},
    code::Code,
    endpoint::{CORE_NAME, Transport, client_config_with, client_endpoint, connect},
    instance::{self, ServerFrame, client_frame, server_frame},
    launch::LaunchDocument,
    trust::Trust,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    fault::{self, Point},
    ledger::{Fate, Ledger, Pace, Request, keep},
    sys,
};

/// The first try to connect to an address; each further round is more patient, up to the second figure.
const CONNECT_WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// From the handshake to the answer of the registration.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);
/// Between two rounds over all addresses: from, doubling up to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
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
/// A search for core that lasts so long is said on stderr.
const SAY_AFTER: Duration = Duration::from_secs(5);
/// Bytes of the list of addresses that are read.
const ADDRESSES_MAX: usize = 64 << 10;

/// Runs until the process has nothing more to say to core. Calls `started` once, when the attempt is
/// registered and everything that is stored is known.
pub(crate) async fn run(document: LaunchDocument, started: impl FnOnce(Arc<Ledger>)) -> Fate {
    let mut link = match Link::new(document) {
        Ok(link) => link,
        Err(reason) => return Fate::Refused(reason),
    };
    let (mut session, ledger, mut requests) = match link.begin().await {
        Ok(begun) => begun,
        Err(fate) => return fate,
    };
    fault::pass(Point::AfterRegister);
    started(Arc::clone(&ledger));

    let mut keeper = pin!(keep(Arc::clone(&ledger)));
    let mut unanswered = Unanswered::default();
    loop {
        let left = serve(&mut session, &ledger, &mut requests, &mut unanswered, keeper.as_mut()).await;
        if let Left::Fate(fate) = left {
            session.caller.finish_and_close("the process ends").await;
            return fate;
        }
        // Before the next one registers: an old session has nothing to say beside a new one.
        drop(session);
        let again = match link.register().await {
            Ok(again) => again,
            Err(fate) => return fate,
        };
        session = again.session;
        ledger.registered_again(again.registered);
    }
}

struct Session {
    caller: Caller<InstanceProtocol>,
    pushes: Pushes<InstanceProtocol>,
}

struct Again {
    session: Session,
    registered: instance::Registered,
}

/// Why serving ended.
enum Left {
    Fate(Fate),
    Lost,
}

/// Why one try to register failed.
enum Failed {
    /// Another try may help.
    Later(String),
    Fate(Fate),
}

/// Finds core.
struct Link {
    document: LaunchDocument,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    /// Core has accepted this attempt and this release before.
    known: bool,
    rounds: u32,
}

impl Link {
    fn new(document: LaunchDocument) -> Result<Self, String> {
        let endpoint = client_endpoint().map_err(|error| format!("no socket for the connection: {error}"))?;
        let transport = Transport { keep_alive: KEEP_ALIVE, ..Transport::default() };
        let config = client_config_with::<InstanceProtocol>(
            Trust::Authority(&document.authority_pem),
            None,
            &transport,
        )
        .map_err(|error| format!("the launch document's authority: {error}"))?;
        Ok(Self { document, endpoint, config, known: false, rounds: 0 })
    }

    /// The first registration, with everything that is stored.
    async fn begin(&mut self) -> Result<(Session, Arc<Ledger>, mpsc::Receiver<Request>), Fate> {
        let pace = match self.document.idle_before_suspend_micros {
            0 => Pace::default(),
            micros => Pace { idle: Duration::from_micros(micros), ..Pace::default() },
        };
        loop {
            let Again { session, mut registered } = self.register().await?;
            let mut cursor = registered.next_cursor;
            if registered.workflow.is_empty() {
                registered.workflow.clone_from(&self.document.workflow);
            }
            let (ledger, requests) = Ledger::new(registered, pace);
            while cursor != 0 {
                match page(&session.caller, cursor).await {
                    Ok(page) => {
                        cursor = page.next_cursor;
                        ledger.load(page.checkpoints);
                    }
                    Err(Failed::Fate(fate)) => return Err(fate),
                    Err(Failed::Later(_)) => break,
                }
            }
            if cursor == 0 {
                return Ok((session, ledger, requests));
            }
            tokio::time::sleep(PAUSE.0).await;
        }
    }

    /// Tries every address until one of them registers this attempt.
    async fn register(&mut self) -> Result<Again, Fate> {
        let since = Instant::now();
        let mut said = false;
        let mut round = 0;
        loop {
            let mut reason = "no address of core is known".to_owned();
            for address in self.addresses() {
                match self.try_address(&address, round).await {
                    Ok(again) => {
                        if said {
                            let seconds = since.elapsed().as_secs();
                            eprintln!("dormouse-sdk: connected to core again after {seconds} s");
                        }
                        self.known = true;
                        return Ok(again);
                    }
                    Err(Failed::Fate(fate)) => return Err(fate),
                    Err(Failed::Later(why)) => reason = why,
                }
            }
            if !said && since.elapsed() >= SAY_AFTER {
                eprintln!("dormouse-sdk: core cannot be reached: {reason}; trying on");
                said = true;
            }
            tokio::time::sleep(self.spread(doubled(PAUSE, round))).await;
            round += 1;
        }
    }

    /// Where core may be: what the environment's list says now, then what the launch knew. Each process
    /// begins elsewhere, so that the survivors of a lost replica share its load.
    fn addresses(&mut self) -> Vec<String> {
        let mut addresses = Vec::new();
        if self.document.addresses_fd >= 0 {
            match sys::read_from_start(self.document.addresses_fd, ADDRESSES_MAX) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    addresses.extend(
                        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned),
                    );
                }
                Err(error) => eprintln!("dormouse-sdk: the list of core's addresses cannot be read: {error}"),
            }
        }
        self.rounds = self.rounds.wrapping_add(1);
        if !addresses.is_empty() {
            let start = self.hash() % addresses.len();
            addresses.rotate_left(start);
        }
        for address in &self.document.core_addresses {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    async fn try_address(&self, address: &str, round: u32) -> Result<Again, Failed> {
        let connecting = connect(&self.endpoint, self.config.clone(), address, CORE_NAME);
        let connection = match timeout(doubled(CONNECT_WITHIN, round), connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(Failed::Later(error.to_string())),
            Err(_) => return Err(Failed::Later(format!("nobody answers at {address}"))),
        };
        match timeout(REGISTER_WITHIN, self.register_at(connection)).await {
            Ok(registered) => registered,
            Err(_) => Err(Failed::Later(format!("core at {address} did not answer the registration"))),
        }
    }

    async fn register_at(&self, connection: quinn::Connection) -> Result<Again, Failed> {
        let hello = client_frame::Operation::Hello(instance::Hello {
            protocol_version: InstanceProtocol::VERSION,
            client: concat!("dormouse-sdk ", env!("CARGO_PKG_VERSION")).to_owned(),
        });
        let register = client_frame::Operation::Register(instance::RegisterInstance {
            token: self.document.token.clone(),
            instance_id: self.document.instance_id.clone(),
            attempt: self.document.attempt,
        });
        let opened = Caller::<InstanceProtocol>::open(connection, hello.into()).await;
        let (caller, pushes) = opened.map_err(|error| self.judge_call(error))?;
        let answer = caller.call(register.into()).await.map_err(|error| self.judge_call(error))?;
        match answer.outcome {
            Some(server_frame::Outcome::Registered(registered)) => {
                Ok(Again { session: Session { caller, pushes }, registered })
            }
            Some(server_frame::Outcome::Error(error)) => Err(self.judge(&error)),
            other => {
                Err(Failed::Later(format!("core answered the registration with something else: {other:?}")))
            }
        }
    }

    fn judge_call(&self, error: CallError) -> Failed {
        match error {
            CallError::Refused { code, message } => {
                self.judge(&instance::Error { code: code.as_str().to_owned(), message, retryable: false })
            }
            CallError::Lost { .. } | CallError::TooLarge { .. } | CallError::Malformed { .. } => {
                Failed::Later(error.to_string())
            }
        }
    }

    /// Whether a refusal is the last word.
    fn judge(&self, error: &instance::Error) -> Failed {
        let sentence = format!("core refuses this attempt: {} ({})", error.message, error.code);
        match Code::parse(&error.code) {
            Some(Code::Fenced) => Failed::Fate(Fate::Fenced),
            Some(Code::Unauthenticated | Code::PermissionDenied | Code::NotFound) => {
                Failed::Fate(Fate::Refused(sentence))
            }
            // An attempt that was accepted once meets a replica of another release: others will do.
            Some(Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented)
                if !self.known && !error.retryable =>
            {
                Failed::Fate(Fate::Refused(sentence))
            }
            _ => Failed::Later(sentence),
        }
    }

    fn hash(&self) -> usize {
        let mut hasher = DefaultHasher::new();
        (&self.document.instance_id, self.document.attempt, self.rounds).hash(&mut hasher);
        usize::try_from(hasher.finish() >> 33).unwrap_or(0)
    }

    /// Between half of `pause` and all of it.
    fn spread(&self, pause: Duration) -> Duration {
        let share = u32::try_from(self.hash() % 1000).unwrap_or(0);
        pause / 2 + pause * share / 2000
    }
}

/// `from` doubled so often, at most `to`.
fn doubled((from, to): (Duration, Duration), times: u32) -> Duration {
    from.saturating_mul(1 << times.min(16)).min(to)
}

async fn page(caller: &Caller<InstanceProtocol>, cursor: u64) -> Result<instance::CheckpointPage, Failed> {
    let list = client_frame::Operation::ListCheckpoints(instance::ListCheckpoints { cursor });
    let answer = caller.call(list.into()).await.map_err(|error| Failed::Later(error.to_string()))?;
    match answer.outcome {
        Some(server_frame::Outcome::Page(page)) => Ok(page),
        Some(server_frame::Outcome::Error(error)) if error.code == Code::Fenced.as_str() => {
            Err(Failed::Fate(Fate::Fenced))
        }
        other => Err(Failed::Later(format!("core answered a page with something else: {other:?}"))),
    }
}

/// Requests without an answer, in the order in which they were made.
#[derive(Default)]
struct Unanswered {
    requests: BTreeMap<u64, Pending>,
    last: u64,
}

struct Pending {
    request: Request,
    /// How often core could not serve it.
    refusals: u32,
}

type Call = Pin<Box<dyn Future<Output = (u64, Result<ServerFrame, CallError>)> + Send>>;

/// Asks, after a pause; `number` tells which request it was.
fn ask(
    caller: &Caller<InstanceProtocol>,
    number: u64,
    operation: client_frame::Operation,
    pause: Duration,
) -> Call {
    let caller = caller.clone();
    Box::pin(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        (number, caller.call(operation.into()).await)
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
    mut keeper: Pin<&mut impl Future<Output = String>>,
) -> Left {
    let Session { caller, pushes } = session;
    let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
    for (number, pending) in &unanswered.requests {
        calls.push(ask(caller, *number, pending.request.operation.clone(), Duration::ZERO));
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
                    calls.push(ask(caller, unanswered.last, request.operation.clone(), Duration::ZERO));
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
            push = pushes.next() => match push.map(|frame| frame.outcome) {
                Some(Some(outcome)) => {
                    if let Some(fate) = ledger.pushed(outcome) {
                        return Left::Fate(fate);
                    }
                }
                Some(None) => {}
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
            return Answered::Repeat(ask(caller, number, pending.request.operation.clone(), pause));
        }
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
