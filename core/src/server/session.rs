//! The life of one connection: hello, registration, requests, farewell.
//!
//! A connection speaks for one attempt. It ends when the process leaves, when it is fenced, when it breaks the
//! protocol or when core shuts down. Its end is no ending of the instance: the row alone says what the instance is.

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
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, debug, error, info, warn};

use super::push::{self, Entered, Seat, Sessions};
use super::request::{self, Error};
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
}

/// Serves one connection to its end.
pub(super) async fn serve(
    shared: Shared,
    incoming: quinn::Incoming,
    mut place: Place,
    shutdown: CancellationToken,
) {
    let remote = incoming.remote_address();
    let callee = tokio::select! {
        () = shutdown.cancelled() => return,
        callee = greet(incoming) => callee,
    };
    let mut callee = match callee {
        Ok(callee) => callee,
        // Who only looks whether somebody listens, such as a health check, is no news.
        Err(error @ CallError::Lost { .. }) => return debug!(%remote, %error, "a peer left before its hello"),
        Err(error) => return info!(%remote, %error, "a connection was refused"),
    };
    let registered = tokio::select! {
        () = shutdown.cancelled() => {
            return callee.replies().close(Closing::ShuttingDown, "core is shutting down; connect again");
        }
        registered = timeout(REGISTER_WITHIN, register(&shared, &mut callee)) => registered,
    };
    match registered {
        Ok(Ok(Some(active))) => match admit(&shared, &active, &mut callee, &mut place) {
            Ok(_member) => {
                let span = span_of(&active.asked.session);
                active.run(callee, shutdown).instrument(span).await;
            }
            Err(reason) => callee.replies().finish_and_close(Closing::Refused, &reason).await,
        },
        Ok(Ok(None)) => debug!(%remote, "a connection ended before it registered"),
        Ok(Err(error)) => info!(%remote, %error, "a connection was lost before it registered"),
        Err(_) => {
            let reason = format!("no registration within {REGISTER_WITHIN:?}");
            callee.replies().finish_and_close(Closing::Malformed, &reason).await;
        }
    }
}

/// The process has proved that it may be here: it may send more, as far as others leave it room.
fn admit(
    shared: &Shared,
    active: &Active,
    callee: &mut Callee<InstanceProtocol>,
    place: &mut Place,
) -> Result<Member, String> {
    let tenant = &active.asked.session.tenant;
    let member = shared.tenants.join(tenant).ok_or_else(|| {
        let max = shared.tenants.members();
        format!("RESOURCE_EXHAUSTED: tenant {tenant} has {max} connections, which is the limit")
    })?;
    place.known();
    callee.admit(&member, &shared.all);
    Ok(member)
}

async fn greet(incoming: quinn::Incoming) -> Result<Callee<InstanceProtocol>, CallError> {
    match timeout(limits::CONNECT_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => Callee::accept(connection).await,
        Ok(Err(error)) => Err(CallError::Malformed { reason: format!("its handshake failed: {error}") }),
        Err(_) => Err(CallError::Malformed { reason: "its handshake took too long".to_owned() }),
    }
}

/// Waits for a registration that is accepted. `None`: the client has closed.
async fn register(
    shared: &Shared,
    callee: &mut Callee<InstanceProtocol>,
) -> Result<Option<Active>, CallError> {
    for _ in 0..REQUESTS_OF_A_STRANGER {
        let Some(call) = callee.next().await? else { return Ok(None) };
        let (frame, answer) = call.into_parts();
        let refused = match frame.operation {
            Some(Operation::Register(request)) => {
                launched(frame.launched.as_ref());
                timings::request(timings::Request::Register, Stage::Decode, answer.arrived());
                match open(shared, &request).await {
                    Ok(registration) => {
                        return welcome(shared, callee.replies(), answer, registration).await.map(Some);
                    }
                    Err(error) => error,
                }
            }
            Some(_) => Error::NotRegistered,
            None => Error::Unknown,
        };
        note(&refused, "a registration was refused");
        answer.reply(InstanceProtocol::refuse(refused.refusal())).await?;
    }
    let reason = format!("no registration among its first {REQUESTS_OF_A_STRANGER} requests");
    callee.replies().finish_and_close(Closing::Malformed, &reason).await;
    Err(CallError::Malformed { reason })
}

async fn open(shared: &Shared, request: &wire::RegisterInstance) -> Result<Registration, Error> {
    let token_of = shared.store.token_of(&token(&request.token)?).await?;
    let said = (request.instance_id.as_str(), request.attempt);
    // Before the registration, which would fence the process that the token belongs to.
    if said != (token_of.id.as_str(), token_of.attempt.attempt.0) {
        return Err(Error::OtherAttempt { id: request.instance_id.clone(), attempt: request.attempt });
    }
    Ok(shared.store.register_attempt(token_of.attempt).await?)
}

/// Takes the instance's place and answers all that the process needs to go on.
async fn welcome(
    shared: &Shared,
    replies: Replies<InstanceProtocol>,
    answer: Answer<InstanceProtocol>,
    registration: Registration,
) -> Result<Active, CallError> {
    fault::point("core.registered");
    let session = registration.session.clone();
    let entered = shared.sessions.enter(&session);
    let inbox = registration.inbox.clone();
    let since = Instant::now();
    let (frame, complete) = registered(registration);
    answer.reply(frame).await?;
    timings::request(timings::Request::Register, Stage::Reply, since);
    if !complete {
        // Looks for itself, and pushes all of it.
        replies.push(Outcome::Inbox(of_inbox(&inbox)).into()).await?;
    }
    span_of(&session).in_scope(|| info!("registered"));
    let asked = Asked { store: shared.store.clone(), session, seat: Arc::clone(entered.seat()) };
    Ok(Active { asked: Arc::new(asked), entered, replies, inbox, poll: shared.poll })
}

/// The answer to a registration. An input of the largest size leaves no room for checkpoints, and hardly any for
/// signals: then the checkpoints follow as pages, and the inbox as a push (`false`).
fn registered(registration: Registration) -> (wire::ServerFrame, bool) {
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
    (Outcome::Registered(answer).into(), complete)
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
    replies: Replies<InstanceProtocol>,
    /// What the process was told at its registration.
    inbox: Inbox,
    poll: Duration,
}

/// What each request of a session needs.
struct Asked {
    store: Store,
    session: Session,
    seat: Arc<Seat>,
}

impl Active {
    async fn run(self, mut callee: Callee<InstanceProtocol>, shutdown: CancellationToken) {
        let Self { asked, entered, replies, inbox, poll } = self;
        let mut requests = JoinSet::new();
        let mut first = true;
        let end = {
            let Asked { store, session, seat, .. } = &*asked;
            let informing = push::inform(store, session, seat, &replies, inbox, poll);
            tokio::pin!(informing);
            loop {
                tokio::select! {
                    call = callee.next() => match call {
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
        farewell(&asked.session, &replies, &mut requests, end).await;
        drop(entered);
    }
}

/// Lets the requests in flight have their answers, and closes.
async fn farewell(
    session: &Session,
    replies: &Replies<InstanceProtocol>,
    requests: &mut JoinSet<()>,
    end: End,
) {
    let (closing, reason) = match end {
        // Nobody is there to hear an answer. What the store has taken it carries out all the same.
        End::Gone => return debug!("the process has gone"),
        End::Fenced => {
            info!("fenced");
            push::push_fenced(session, replies).await;
            (Closing::Fenced, "a newer attempt or session took over, or the instance has ended")
        }
        End::ShuttingDown => (Closing::ShuttingDown, "core is shutting down; connect again"),
    };
    let finish = async {
        while let Some(done) = requests.join_next().await {
            report(done);
        }
    };
    tokio::select! {
        finished = timeout(FINISH_WITHIN, finish) => if finished.is_err() {
            warn!("requests were still in flight when the connection was closed");
        },
        _ = replies.closed() => {}
    }
    replies.finish_and_close(closing, reason).await;
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
fn note(error: &Error, what: &str) {
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
