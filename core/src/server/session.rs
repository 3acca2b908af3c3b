//! The life of one connection: hello, registration, requests, farewell.
//!
//! A connection speaks for one attempt at a time. It ends when the process leaves, when it is fenced, when it
//! breaks the protocol or when core shuts down. Its end is no ending of the instance: the row alone says what the
//! instance is. Before its first registration a spare's connection may stand by ([`super::standby`]); once core has
//! accepted the ending of its instance it may register for another one of the same tenant.

use std::sync::Arc;
use std::time::Duration;

use dormouse_proto::call::{
    Allowance, Answer, Call, CallError, Callee, Closing, Groups, InstanceProtocol, Member, Protocol, Replies,
};
use dormouse_proto::door::Place;
use dormouse_proto::instance as wire;
use dormouse_proto::instance::client_frame::Operation;
use dormouse_proto::instance::instance_event;
use dormouse_proto::instance::server_frame::Outcome;
use dormouse_proto::limits;
use prost::Message;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, debug, error, info, warn};

use super::pages;
use super::push::{self, Entered, Pusher, Seat, Sessions};
use super::request::{self, Error};
use super::standby::{Spare, Spares};
use super::wire::{FIRST_CURSOR, of_inbox, of_page, of_payload, token};
use crate::domain::id::Tenant;
use crate::domain::instance::Writer;
use crate::limits::{FINISH_WITHIN, REGISTER_WITHIN, REQUESTS_OF_A_STRANGER};
use crate::store::{Inbox, Registration, Session, Store};
use crate::timings::{self, Stage};
use crate::{fault, logging};

/// What every connection shares.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) sessions: Arc<Sessions>,
    pub(super) spares: Arc<Spares>,
    pub(super) poll: Duration,
    /// What all connections may have in flight together.
    pub(super) all: Allowance,
    /// The same for each tenant.
    pub(super) tenants: Arc<Groups<Tenant>>,
}

/// Why a session ends.
enum End {
    /// The process has closed the connection, or it is lost.
    Gone,
    Fenced,
    ShuttingDown,
    /// The instance has ended in order, and the process asks for another one.
    Again(Box<Call<InstanceProtocol>>),
}

/// Serves one connection to its end.
pub(super) async fn serve(
    shared: Shared,
    incoming: quinn::Incoming,
    place: Place,
    shutdown: CancellationToken,
) {
    let remote = incoming.remote_address();
    let callee = tokio::select! {
        () = shutdown.cancelled() => return,
        callee = greet(incoming) => callee,
    };
    let callee = match callee {
        Ok(callee) => callee,
        // Who only looks whether somebody listens, such as a health check, is no news.
        Err(error @ CallError::Lost { .. }) => return debug!(%remote, %error, "a peer left before its hello"),
        Err(error) => return info!(%remote, %error, "a connection was refused"),
    };
    let by = Instant::now() + REGISTER_WITHIN;
    let mut guest =
        Guest { shared, callee, place, by, requests: 0, spare: None, member: None, registered: 0 };
    let mut first = None;
    loop {
        let registered = tokio::select! {
            () = shutdown.cancelled() => {
                let reason = "core is shutting down; connect again";
                return guest.callee.replies().close(Closing::ShuttingDown, reason);
            }
            registered = guest.register(first.take()) => registered,
        };
        let active = match registered {
            Ok(Some(active)) => active,
            Ok(None) => return debug!(%remote, "a connection ended before it registered"),
            Err(error) => return info!(%remote, %error, "a connection was lost before it registered"),
        };
        if let Err(reason) = guest.admit(&active) {
            let reason = format!("RESOURCE_EXHAUSTED: {reason}");
            return guest.callee.replies().finish_and_close(Closing::Refused, &reason).await;
        }
        let span = span_of(&active.asked.session);
        first = active.run(&mut guest.callee, &shutdown).instrument(span).await;
        if first.is_none() {
            return;
        }
    }
}

/// A connection before its registration, and between two.
struct Guest {
    shared: Shared,
    callee: Callee<InstanceProtocol>,
    place: Place,
    /// When a stranger must have proved itself.
    by: Instant,
    /// What it has asked for in vain.
    requests: usize,
    /// Set while it stands by.
    spare: Option<Spare>,
    /// Set once it has proved whose it is.
    member: Option<(Tenant, Member)>,
    /// How often it has registered.
    registered: u32,
}

impl Guest {
    /// The process has proved that it may be here: it may send more, as far as others leave it room.
    fn admit(&mut self, active: &Active) -> Result<(), String> {
        self.join(&active.asked.session.tenant)?;
        self.spare = None;
        if self.registered == 0
            && let Some((_, member)) = &self.member
        {
            self.callee.admit(member, &self.shared.all);
        }
        self.registered += 1;
        Ok(())
    }

    /// Takes one of its tenant's places; a second time does nothing.
    fn join(&mut self, tenant: &Tenant) -> Result<(), String> {
        if self.member.is_none() {
            let tenants = &self.shared.tenants;
            let member = tenants.join(tenant).ok_or_else(|| {
                let max = tenants.members();
                format!("tenant {tenant} has {max} connections, which is the limit")
            })?;
            self.member = Some((tenant.clone(), member));
            self.place.known();
        }
        Ok(())
    }

    /// Waits for a registration that is accepted. `None`: the client has closed, or was sent away.
    async fn register(&mut self, first: Option<Call<InstanceProtocol>>) -> Result<Option<Active>, CallError> {
        let mut first = first;
        while self.requests < REQUESTS_OF_A_STRANGER {
            let call = match first.take() {
                Some(call) => call,
                None => match self.next().await? {
                    Some(call) => call,
                    None => return Ok(None),
                },
            };
            let (frame, answer) = call.into_parts();
            let done = match frame.operation {
                Some(Operation::Register(request)) => {
                    launched(frame.launched.as_ref());
                    timings::request(timings::Request::Register, Stage::Decode, answer.arrived());
                    match self.open(&request).await {
                        Ok(registration) => {
                            let pusher = Pusher::new(self.callee.replies(), self.registered);
                            let welcome = welcome(&self.shared, pusher, answer, registration, request.stream);
                            return welcome.await.map(Some);
                        }
                        Err(error) => Err(error),
                    }
                }
                Some(Operation::Standby(request)) => self.stand_by(&request).await,
                Some(_) => Err(Error::NotRegistered),
                None => Err(Error::Unknown),
            };
            let frame = done.unwrap_or_else(|refused| {
                self.requests += 1;
                note(&refused, "a registration was refused");
                InstanceProtocol::refuse(refused.refusal())
            });
            answer.reply(frame).await?;
        }
        let reason = format!("no registration among its first {REQUESTS_OF_A_STRANGER} requests");
        self.callee.replies().finish_and_close(Closing::Malformed, &reason).await;
        Err(CallError::Malformed { reason })
    }

    /// The next request; who is known may take any time, until the same spare connects again.
    async fn next(&mut self) -> Result<Option<Call<InstanceProtocol>>, CallError> {
        if self.member.is_none() {
            if let Ok(call) = timeout_at(self.by, self.callee.next()).await {
                return call;
            }
            let reason = format!("no registration within {REGISTER_WITHIN:?}");
            self.callee.replies().finish_and_close(Closing::Malformed, &reason).await;
            return Err(CallError::Malformed { reason });
        }
        let Some(spare) = &self.spare else { return self.callee.next().await };
        tokio::select! {
            call = self.callee.next() => call,
            () = spare.replaced() => {
                self.callee.replies().close(Closing::Refused, "the same spare has connected again");
                Ok(None)
            }
        }
    }

    /// A spare process: its connection stays until it has an instance.
    async fn stand_by(&mut self, shown: &wire::Standby) -> Result<wire::ServerFrame, Error> {
        if self.member.is_some() {
            return Err(Error::StandsBy);
        }
        let spare = self.shared.spares.admit(&self.shared.store, shown).await?;
        self.join(&spare.tenant).map_err(Error::Full)?;
        debug!(node = shown.node, tenant = %spare.tenant, number = shown.number, "a spare stands by");
        self.spare = Some(spare);
        Ok(Outcome::StandingBy(wire::StandingBy {}).into())
    }

    async fn open(&self, request: &wire::RegisterInstance) -> Result<Registration, Error> {
        let token_of = self.shared.store.token_of(&token(&request.token)?).await?;
        let said = (request.instance_id.as_str(), request.attempt);
        // Before the registration, which would fence the process that the token belongs to.
        if said != (token_of.id.as_str(), token_of.attempt.attempt.0) {
            return Err(Error::OtherAttempt { id: request.instance_id.clone(), attempt: request.attempt });
        }
        if self.member.as_ref().is_some_and(|(tenant, _)| *tenant != token_of.tenant) {
            return Err(Error::OtherTenant);
        }
        Ok(self.shared.store.register_proved(token_of).await?)
    }
}

async fn greet(incoming: quinn::Incoming) -> Result<Callee<InstanceProtocol>, CallError> {
    match timeout(limits::CONNECT_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => Callee::accept(connection).await,
        Ok(Err(error)) => Err(CallError::Malformed { reason: format!("its handshake failed: {error}") }),
        Err(_) => Err(CallError::Malformed { reason: "its handshake took too long".to_owned() }),
    }
}

/// Takes the instance's place and answers all that the process needs to go on.
async fn welcome(
    shared: &Shared,
    pusher: Pusher,
    answer: Answer<InstanceProtocol>,
    registration: Registration,
    stream: bool,
) -> Result<Active, CallError> {
    fault::point("core.registered");
    let session = registration.session.clone();
    let entered = shared.sessions.enter(&session);
    let inbox = registration.inbox.clone();
    let since = Instant::now();
    let (mut told, complete) = registered(registration);
    told.streamed = stream && told.next_cursor != 0;
    let rest = told.streamed.then_some(told.next_cursor);
    answer.reply(Outcome::Registered(told).into()).await?;
    timings::request(timings::Request::Register, Stage::Reply, since);
    if !complete {
        // Looks for itself, and pushes all of it.
        pusher.push(Outcome::Inbox(of_inbox(&inbox)).into()).await?;
    }
    span_of(&session).in_scope(|| info!("registered"));
    let asked = Asked { store: shared.store.clone(), session, seat: Arc::clone(entered.seat()) };
    Ok(Active { asked: Arc::new(asked), entered, pusher, inbox, rest, poll: shared.poll })
}

/// The answer to a registration. An input of the largest size leaves no room for checkpoints, and hardly any for
/// signals: then the checkpoints follow as pages, and the inbox as a push (`false`).
fn registered(registration: Registration) -> (wire::Registered, bool) {
    let Registration { session, workflow, input, wake_reason, page, inbox, started_at, now } = registration;
    let page = of_page(page);
    let mut answer = wire::Registered {
        session: session.writer.session.0.into(),
        instance_id: session.id.as_str().to_owned(),
        attempt: session.writer.attempt.0,
        workflow: workflow.as_str().to_owned(),
        input: Some(of_payload(input)),
        wake_reason: wake_reason.as_str().to_owned(),
        checkpoints: page.checkpoints,
        next_cursor: page.next_cursor,
        inbox: Some(of_inbox(&inbox)),
        now: now.0,
        started_at: started_at.0,
        streamed: false,
    };
    // What surrounds the answer in its frame.
    let room = limits::BULK_FRAME_MAX_BYTES - 64;
    if answer.encoded_len() > room {
        answer.checkpoints.clear();
        answer.next_cursor = FIRST_CURSOR;
    }
    let complete = answer.encoded_len() <= room;
    if let (false, Some(inbox)) = (complete, &mut answer.inbox) {
        inbox.unread.clear();
    }
    (answer, complete)
}

/// What every line about a session carries.
fn span_of(session: &Session) -> Span {
    let Writer { attempt, session: number } = session.writer;
    logging::session(&session.tenant, &session.id, attempt.0, number.0)
}

/// A registered connection.
struct Active {
    asked: Arc<Asked>,
    entered: Entered,
    pusher: Pusher,
    /// What the process was told at its registration.
    inbox: Inbox,
    /// Where the stored checkpoints go on that it was promised.
    rest: Option<u64>,
    poll: Duration,
}

/// What each request of a session needs.
pub(super) struct Asked {
    pub(super) store: Store,
    pub(super) session: Session,
    pub(super) seat: Arc<Seat>,
}

impl Active {
    /// Until the session is over; answers the registration that the process asks for next, if it does.
    async fn run(
        self,
        callee: &mut Callee<InstanceProtocol>,
        shutdown: &CancellationToken,
    ) -> Option<Call<InstanceProtocol>> {
        let Self { asked, entered, pusher, inbox, rest, poll } = self;
        let mut requests = JoinSet::new();
        if let Some(cursor) = rest {
            let (asked, pusher, turn) = (Arc::clone(&asked), pusher.clone(), callee.turn());
            let pages = async move { pages::push_from(cursor, &asked, &pusher, turn.await).await };
            requests.spawn(pages.in_current_span());
        }
        let mut first = true;
        let end = {
            let Asked { store, session, seat, .. } = &*asked;
            let informing = push::inform(store, session, seat, &pusher, inbox, poll);
            tokio::pin!(informing);
            loop {
                tokio::select! {
                    call = callee.next() => match call {
                        Ok(Some(call)) if seat.is_concluded() && is_registration(&call) => {
                            break End::Again(Box::new(call));
                        }
                        Ok(Some(call)) => {
                            if std::mem::take(&mut first) {
                                launched(call.frame.launched.as_ref());
                            }
                            requests.spawn(answer(Arc::clone(&asked), call).in_current_span());
                        }
                        Ok(None) => break End::Gone,
                        Err(error) => {
                            info!(%error, "a connection ended");
                            break End::Gone;
                        }
                    },
                    Some(done) = requests.join_next() => report(done),
                    () = &mut informing => break End::Fenced,
                    () = seat.fenced() => break End::Fenced,
                    () = shutdown.cancelled() => break End::ShuttingDown,
                }
            }
        };
        let again = farewell(&asked.session, &pusher, &mut requests, end).await;
        drop(entered);
        again
    }
}

/// Lets the requests in flight have their answers, and closes, unless the process goes on with another instance.
async fn farewell(
    session: &Session,
    pusher: &Pusher,
    requests: &mut JoinSet<()>,
    end: End,
) -> Option<Call<InstanceProtocol>> {
    let (closing, reason) = match end {
        // Nobody is there to hear an answer. What the store has taken it carries out all the same.
        End::Gone => {
            debug!("the process has gone");
            return None;
        }
        End::Fenced => {
            info!("fenced");
            push::push_fenced(session, pusher).await;
            (Closing::Fenced, "a newer attempt or session took over, or the instance has ended")
        }
        End::ShuttingDown => (Closing::ShuttingDown, "core is shutting down; connect again"),
        End::Again(call) => {
            // Answers of the last instance are none of the next one's.
            if finish(requests, pusher.replies()).await {
                return Some(*call);
            }
            (Closing::ShuttingDown, "requests of the last instance are still in flight; connect again")
        }
    };
    finish(requests, pusher.replies()).await;
    pusher.replies().finish_and_close(closing, reason).await;
    None
}

/// Waits for the requests in flight. False: they were not done in time, or the connection is gone.
async fn finish(requests: &mut JoinSet<()>, replies: &Replies<InstanceProtocol>) -> bool {
    let finish = async {
        while let Some(done) = requests.join_next().await {
            report(done);
        }
    };
    tokio::select! {
        biased;
        finished = timeout(FINISH_WITHIN, finish) => {
            if finished.is_err() {
                warn!("requests were still in flight when the connection was closed");
            }
            finished.is_ok()
        }
        _ = replies.closed() => false,
    }
}

fn is_registration(call: &Call<InstanceProtocol>) -> bool {
    matches!(call.frame.operation, Some(Operation::Register(_)))
}

fn report(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        // Its client was told INTERNAL when the answer was dropped.
        error!(%error, "a request panicked");
    }
}

/// Records what a process tells of its launch. Heard with the registration and the request after it only.
fn launched(told: Option<&wire::Launched>) {
    let Some(wire::Launched {
        start_micros,
        endpoint_micros,
        handshake_micros,
        register_micros,
        first_step_micros,
    }) = told
    else {
        return;
    };
    for (stage, micros) in [
        (timings::Launch::Start, start_micros),
        (timings::Launch::Endpoint, endpoint_micros),
        (timings::Launch::Handshake, handshake_micros),
        (timings::Launch::Register, register_micros),
        (timings::Launch::FirstStep, first_step_micros),
    ] {
        if let Some(micros) = *micros {
            timings::launch(stage, Duration::from_micros(micros.into()));
        }
    }
}

/// Carries out one request and answers it.
async fn answer(asked: Arc<Asked>, call: Call<InstanceProtocol>) {
    let (frame, answer) = call.into_parts();
    let Asked { store, session, seat } = &*asked;
    if frame.operation.as_ref().is_some_and(is_heartbeat) {
        return answer.dismiss();
    }
    // Held until the answer is handed over.
    let _turn = answer.turn().await;
    let timed = frame.operation.as_ref().and_then(request::timed);
    if let Some(timed) = timed {
        timings::request(timed, Stage::Decode, answer.arrived());
    }
    let outcome = match frame.operation {
        Some(operation) => perform(store, session, seat, operation).await,
        None => Err(Error::Unknown),
    };
    let since = Instant::now();
    reply(seat, answer, outcome).await;
    if let Some(timed) = timed {
        timings::request(timed, Stage::Reply, since);
    }
}

async fn perform(
    store: &Store,
    session: &Session,
    seat: &Seat,
    operation: Operation,
) -> Result<Outcome, Error> {
    if !request::concludes(&operation) {
        return request::perform(store, session, operation).await;
    }
    let concluding = seat.conclude();
    let outcome = request::perform(store, session, operation).await;
    if outcome.as_ref().is_ok_and(request::concluded) {
        concluding.accepted();
    }
    outcome
}

async fn reply(seat: &Seat, answer: Answer<InstanceProtocol>, outcome: Result<Outcome, Error>) {
    let (frame, fenced) = match outcome {
        Ok(outcome) => (outcome.into(), false),
        Err(error) => {
            note(&error, "a request was refused");
            (InstanceProtocol::refuse(error.refusal()), error.is_fenced())
        }
    };
    fault::point("core.before_reply");
    if let Err(error) = answer.reply(frame).await {
        debug!(%error, "an answer was not sent");
    }
    if fenced && !seat.is_leaving() {
        seat.fence();
    }
}

fn is_heartbeat(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Event(wire::InstanceEvent { event: Some(instance_event::Event::Heartbeat(_)) })
    )
}

/// Logs a defect or an outage as such; what a client did wrong only for those who look for it.
pub(super) fn note(error: &Error, what: &str) {
    use dormouse_proto::code::{Code, Coded};
    match error.code() {
        Code::Internal => error!(error = chain(error), "{what}"),
        Code::Unavailable | Code::ResourceExhausted => warn!(error = chain(error), "{what}"),
        code => debug!(%code, error = chain(error), "{what}"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
