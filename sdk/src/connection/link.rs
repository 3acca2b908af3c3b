//! Finding core: connects to one of its replicas, whichever answers first, and registers there.
//!
//! It tries for ever, re-reading the list of replicas that the environment keeps, and gives up only when
//! core says that this attempt may not go on. At most one registration of this process is under way.

use std::{
    collections::{VecDeque, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use dormouse_proto::{
    call::{CallError, Caller, InstanceProtocol, Protocol as _},
    code::Code,
    endpoint::{CORE_NAME, Transport, client_config_with, connect},
    instance::{self, ClientFrame, Standby, client_frame, server_frame},
    launch::LaunchDocument,
    trust::Trust,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use prost::bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{Again, KEEP_ALIVE, Session, course::Course};
use crate::{
    ledger::{Fate, Ledger, Pace, Request},
    sys,
};

/// The first try to connect to an address; each further round is more patient, up to the second figure.
const CONNECT_WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// An address that has not answered for so long is joined by the next: from, in the first round, up to.
const BESIDE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// From the handshake to the answer of the registration.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);
/// Between two rounds over all addresses: from, doubling up to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A search for core that lasts so long is said on stderr.
const SAY_AFTER: Duration = Duration::from_secs(5);
/// Bytes of the list of addresses that are read.
const ADDRESSES_MAX: usize = 64 << 10;

/// Why one try to register failed.
enum Failed {
    /// Another try may help.
    Later(String),
    Fate(Fate),
}

/// Finds core.
pub(super) struct Link {
    document: LaunchDocument,
    /// What is shown to core as long as there is no instance.
    standby: Option<Standby>,
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    /// Where core has accepted this attempt and this release before.
    known: Option<String>,
    rounds: u32,
    /// Not all that is stored is here: a registration asks for it.
    lacks: bool,
    course: Course,
}

impl Link {
    pub(super) fn new(endpoint: quinn::Endpoint, document: LaunchDocument) -> Result<Self, String> {
        let mut course = Course::begin(&document);
        let transport = Transport { keep_alive: KEEP_ALIVE, ..Transport::default() };
        let config = client_config_with::<InstanceProtocol>(
            Trust::Authority(&document.authority_pem),
            None,
            &transport,
        )
        .map_err(|error| format!("the launch document's authority: {error}"))?;
        course.prepared();
        Ok(Self { document, standby: None, endpoint, config, known: None, rounds: 0, lacks: true, course })
    }

    /// How the launch went.
    pub(super) fn course(&mut self) -> &mut Course {
        &mut self.course
    }

    /// What there is to say from now on: stand by, or register this document's attempt.
    pub(super) fn renew(&mut self, document: LaunchDocument, standby: Option<Standby>) {
        self.course = Course::begin(&document);
        self.course.prepared();
        self.document = document;
        self.standby = standby;
    }

    /// The first registration, with everything that is stored; on a connection that stands by, if there is one.
    pub(super) async fn begin(
        &mut self,
        kept: Option<Session>,
    ) -> Result<(Session, Arc<Ledger>, mpsc::Receiver<Request>), Fate> {
        let pace = match self.document.idle_before_suspend_micros {
            0 => Pace::default(),
            micros => Pace { idle: Duration::from_micros(micros), ..Pace::default() },
        };
        self.lacks = true;
        let Again { session, mut registered } = match kept {
            Some(session) => self.register_on(session).await?,
            None => self.register().await?,
        };
        if registered.workflow.is_empty() {
            registered.workflow.clone_from(&self.document.workflow);
        }
        let stored = Pages::of(&mut registered);
        let (ledger, requests) = Ledger::new(registered, pace);
        let session = self.load(&ledger, session, stored).await?;
        Ok((session, ledger, requests))
    }

    /// The connection is back: tells the ledger, and goes on loading what it lacks.
    pub(super) async fn begin_again(&mut self, ledger: &Ledger) -> Result<Session, Fate> {
        self.lacks = !ledger.is_loaded();
        let Again { session, mut registered } = self.register().await?;
        let stored = Pages::of(&mut registered);
        ledger.registered_again(registered);
        if self.lacks { self.load(ledger, session, stored).await } else { Ok(session) }
    }

    /// Loads what came with the registration and, from a core that does not push them (before 0.3.0), the pages
    /// behind it.
    async fn load(&mut self, ledger: &Ledger, session: Session, stored: Pages) -> Result<Session, Fate> {
        let (mut session, mut stored) = (session, stored);
        loop {
            match stored.load(ledger, &session.caller).await {
                Ok(()) => return Ok(session),
                Err(Failed::Fate(fate)) => return Err(fate),
                Err(Failed::Later(_)) => {}
            }
            drop(session);
            tokio::time::sleep(PAUSE.0).await;
            let mut again = self.register().await?;
            stored = Pages::of(&mut again.registered);
            ledger.registered_again(again.registered);
            session = again.session;
        }
    }

    /// Tries every address until one of them registers this attempt.
    async fn register(&mut self) -> Result<Again, Fate> {
        loop {
            if let (session, server_frame::Outcome::Registered(registered)) = self.connected().await? {
                return Ok(Again { session, registered });
            }
        }
    }

    /// Tries every address until one of them keeps the connection without an instance.
    pub(super) async fn stand_by(&mut self) -> Result<Session, Fate> {
        loop {
            if let (session, server_frame::Outcome::StandingBy(_)) = self.connected().await? {
                return Ok(session);
            }
        }
    }

    /// Registers on a connection that stands by or has served an instance before; if that does not do, on another.
    async fn register_on(&mut self, mut session: Session) -> Result<Again, Fate> {
        // Nothing was launched: there is nothing to tell of it.
        let _nothing = self.course.asked();
        let asking = timeout(REGISTER_WITHIN, self.ask(&session.caller));
        match asking.await {
            Ok(Ok(server_frame::Outcome::Registered(registered))) => {
                session.registration = session.next;
                session.next += 1;
                return Ok(Again { session, registered });
            }
            Ok(Err(Failed::Fate(fate))) => return Err(fate),
            Ok(Ok(_) | Err(Failed::Later(_))) | Err(_) => {}
        }
        drop(session);
        self.register().await
    }

    /// Tries every address until one of them accepts what there is to say.
    async fn connected(&mut self) -> Result<(Session, server_frame::Outcome), Fate> {
        let since = Instant::now();
        let mut said = false;
        let mut round = 0;
        loop {
            let reason = match self.try_all(round).await {
                Ok(accepted) => {
                    if said {
                        let seconds = since.elapsed().as_secs();
                        eprintln!("dormouse-sdk: connected to core again after {seconds} s");
                    }
                    return Ok(accepted);
                }
                Err(Failed::Fate(fate)) => return Err(fate),
                Err(Failed::Later(why)) => why,
            };
            if !said && since.elapsed() >= SAY_AFTER {
                eprintln!("dormouse-sdk: core cannot be reached: {reason}; trying on");
                said = true;
            }
            tokio::time::sleep(self.spread(doubled(PAUSE, round))).await;
            round += 1;
        }
    }

    /// One round over all addresses: connects to the first that answers, and registers there.
    async fn try_all(&mut self, round: u32) -> Result<(Session, server_frame::Outcome), Failed> {
        let mut addresses = VecDeque::from(self.addresses());
        let mut reason = "no address of core is known".to_owned();
        while !addresses.is_empty() {
            let (address, connection) = self.connect_to_any(&mut addresses, round).await?;
            let registering = timeout(REGISTER_WITHIN, self.begin_at(connection));
            reason = match registering.await {
                Ok(Ok(accepted)) => {
                    self.known = Some(address);
                    return Ok(accepted);
                }
                Ok(Err(Failed::Fate(fate))) => return Err(Failed::Fate(fate)),
                Ok(Err(Failed::Later(why))) => why,
                Err(_) => format!("core at {address} did not answer the registration"),
            };
        }
        Err(Failed::Later(reason))
    }

    /// The first of these that answers. A dead machine tells nobody that it is dead, so the next one is not
    /// kept waiting for it: it is tried beside it after a moment, or at once if that one refuses.
    ///
    /// Takes away what was tried. Only connecting is raced: two registrations would fence each other.
    async fn connect_to_any(
        &self,
        addresses: &mut VecDeque<String>,
        round: u32,
    ) -> Result<(String, quinn::Connection), Failed> {
        let mut trying = FuturesUnordered::new();
        let mut reason = String::new();
        loop {
            match addresses.pop_front() {
                Some(address) => trying.push(self.connect_to(address, round)),
                None if trying.is_empty() => return Err(Failed::Later(reason)),
                None => {}
            }
            tokio::select! {
                Some((address, tried)) = trying.next() => match tried {
                    Ok(connection) => return Ok((address, connection)),
                    Err(why) => reason = why,
                },
                () = tokio::time::sleep(doubled(BESIDE, round)), if !addresses.is_empty() => {}
            }
        }
    }

    async fn connect_to(&self, address: String, round: u32) -> (String, Result<quinn::Connection, String>) {
        let connecting = connect(&self.endpoint, self.config.clone(), &address, CORE_NAME);
        let tried = match timeout(doubled(CONNECT_WITHIN, round), connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("nobody answers at {address}")),
        };
        (address, tried)
    }

    /// Where core may be: what the environment's list says now, then what the launch knew. Each process
    /// begins elsewhere, so that the survivors of a lost replica share its load; where it was connected
    /// last comes last, for it has just gone or sent this process away.
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
        if let Some(at) = addresses.iter().position(|address| Some(address) == self.known.as_ref()) {
            let last = addresses.remove(at);
            addresses.push(last);
        }
        addresses
    }

    async fn begin_at(
        &mut self,
        connection: quinn::Connection,
    ) -> Result<(Session, server_frame::Outcome), Failed> {
        let hello = client_frame::Operation::Hello(instance::Hello {
            protocol_version: InstanceProtocol::VERSION,
            client: concat!("dormouse-sdk ", env!("CARGO_PKG_VERSION")).to_owned(),
        });
        let opened = Caller::<InstanceProtocol>::open(connection, hello.into()).await;
        let (caller, pushes) = opened.map_err(|error| self.judge_call(error))?;
        let outcome = self.ask(&caller).await?;
        let next = u32::from(matches!(outcome, server_frame::Outcome::Registered(_)));
        Ok((Session { caller, pushes, registration: 0, next }, outcome))
    }

    /// Says what there is to say, and answers what was accepted.
    async fn ask(&mut self, caller: &Caller<InstanceProtocol>) -> Result<server_frame::Outcome, Failed> {
        let frame = if let Some(standby) = &self.standby {
            client_frame::Operation::Standby(standby.clone()).into()
        } else {
            let register = client_frame::Operation::Register(instance::RegisterInstance {
                token: self.document.token.clone(),
                instance_id: self.document.instance_id.clone(),
                attempt: self.document.attempt,
                stream: self.lacks,
            });
            ClientFrame { launched: self.course.connected(), ..register.into() }
        };
        let answer = caller.call(frame).await.map_err(|error| self.judge_call(error))?;
        if self.standby.is_none() {
            self.course.registered();
        }
        match (answer.outcome, &self.standby) {
            (Some(accepted @ server_frame::Outcome::Registered(_)), None)
            | (Some(accepted @ server_frame::Outcome::StandingBy(_)), Some(_)) => Ok(accepted),
            (Some(server_frame::Outcome::Error(error)), _) => Err(self.judge(&error)),
            (other, _) => {
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
                if self.known.is_none() && !error.retryable =>
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
pub(super) fn doubled((from, to): (Duration, Duration), times: u32) -> Duration {
    from.saturating_mul(1 << times.min(16)).min(to)
}

/// What was stored before: the first page, and where the others are.
struct Pages {
    first: Vec<Bytes>,
    next_cursor: u64,
    streamed: bool,
}

impl Pages {
    fn of(registered: &mut instance::Registered) -> Self {
        let first = std::mem::take(&mut registered.checkpoints);
        Self { first, next_cursor: registered.next_cursor, streamed: registered.streamed }
    }

    async fn load(self, ledger: &Ledger, caller: &Caller<InstanceProtocol>) -> Result<(), Failed> {
        let unreadable = |error| Failed::Later(format!("a stored checkpoint cannot be read: {error}"));
        let mut cursor = self.next_cursor;
        ledger.load(self.first, cursor).map_err(unreadable)?;
        while cursor != 0 && !self.streamed {
            let page = page(caller, cursor).await?;
            cursor = page.next_cursor;
            ledger.load(page.checkpoints, cursor).map_err(unreadable)?;
        }
        Ok(())
    }
}

async fn page(caller: &Caller<InstanceProtocol>, cursor: u64) -> Result<instance::CheckpointPage, Failed> {
    let list = client_frame::Operation::ListCheckpoints(instance::ListCheckpoints { cursor });
    let answer = caller.call(list.into()).await.map_err(|error| Failed::Later(error.to_string()))?;
    match answer.outcome {
        Some(server_frame::Outcome::Page(page)) => Ok(page),
        other => Err(Failed::Later(format!("core answered a page with something else: {other:?}"))),
    }
}
