//! Who is connected, and telling them what changed.
//!
//! A notice of the store only nudges: the session then reads its inbox and, if it differs from what the process
//! was told, pushes all of it. A slow poll stands beneath, one look for all sessions together, so a lost notice
//! costs latency and nothing else. A session also finds out that the instance was ended, or that a newer attempt or
//! session took over, and then tells the process that it is fenced.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_proto::call::{CallError, InstanceProtocol, Protocol, Replies};
use dormouse_proto::code::{Code, Coded};
use dormouse_proto::instance::ServerFrame;
use dormouse_proto::instance::server_frame::Outcome;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::request;
use super::wire::of_inbox;
use crate::domain::id::InstanceKey;
use crate::domain::instance::Writer;
use crate::store::{Inbox, Notice, Notices, Session, Stamp, Store};

/// The sessions of this core: at most one for each instance.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_instance: Mutex<HashMap<InstanceKey, Arc<Seat>>>,
}

/// One session, as others see it.
#[derive(Debug)]
pub(super) struct Seat {
    writer: Writer,
    nudge: Notify,
    fenced: CancellationToken,
    /// Suspends and endings that are with the store, and whether one was accepted. Such a process leaves on its
    /// own and must not hear "fenced" before it hears the answer.
    concluding: AtomicUsize,
    concluded: AtomicBool,
}

/// Gives the place up when it is dropped.
#[derive(Debug)]
pub(super) struct Entered {
    sessions: Arc<Sessions>,
    instance: InstanceKey,
    seat: Arc<Seat>,
}

impl Sessions {
    /// Takes the instance's place. An older session in it is told that it is fenced; if a newer one is there
    /// already, this one is.
    pub(super) fn enter(self: &Arc<Self>, session: &Session) -> Entered {
        let seat = Arc::new(Seat::new(session.writer));
        match self.lock().entry(session.instance) {
            Entry::Occupied(mut place) if is_older(place.get().writer, session.writer) => {
                place.insert(Arc::clone(&seat)).fenced.cancel();
            }
            Entry::Occupied(_) => seat.fenced.cancel(),
            Entry::Vacant(place) => {
                place.insert(Arc::clone(&seat));
            }
        }
        Entered { sessions: Arc::clone(self), instance: session.instance, seat }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Passes the store's notices on, until there are no more.
    pub(super) async fn listen(&self, mut notices: Notices) {
        while let Some(notice) = notices.next().await {
            match notice {
                Notice::Instance(key) => {
                    if let Some(seat) = self.lock().get(&key) {
                        seat.nudge.notify_one();
                    }
                }
                Notice::Everything => self.lock().values().for_each(|seat| seat.nudge.notify_one()),
                // For those who launch or wait for it; a session hears of its end by the change that it is.
                Notice::Wakes | Notice::Ended(_) | Notice::Tokens | Notice::Images => {}
            }
        }
    }

    /// Nudges the sessions of which something changed that no notice may have told: one look at all of them each
    /// `poll`. A session that it has not seen before is nudged once.
    pub(super) async fn look_again(&self, store: &Store, poll: Duration) -> Infallible {
        let mut seen: HashMap<InstanceKey, (Writer, Option<Stamp>)> = HashMap::new();
        loop {
            sleep(poll).await;
            let seats: Vec<_> = self.lock().iter().map(|(key, seat)| (*key, Arc::clone(seat))).collect();
            let keys: Vec<_> = seats.iter().map(|(key, _)| *key).collect();
            let stamps = match store.stamps(&keys).await {
                Ok(stamps) => stamps,
                Err(error) => {
                    warn!(%error, code = %error.code(), "looking after the sessions failed; looking again");
                    continue;
                }
            };
            let now = seats.into_iter().map(|(key, seat)| {
                let stamp = (seat.writer, stamps.get(&key).copied());
                if seen.get(&key) != Some(&stamp) {
                    seat.nudge.notify_one();
                }
                (key, stamp)
            });
            seen = now.collect();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceKey, Arc<Seat>>> {
        // Each change is one insertion or removal: nothing is ever half done.
        self.by_instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions count anew in each attempt.
fn is_older(one: Writer, other: Writer) -> bool {
    (one.attempt, one.session) < (other.attempt, other.session)
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Entry::Occupied(place) = self.sessions.lock().entry(self.instance)
            && Arc::ptr_eq(place.get(), &self.seat)
        {
            place.remove();
        }
    }
}

impl Entered {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

/// While it lives, a suspend or an ending is with the store.
#[derive(Debug)]
pub(super) struct Concluding<'a>(&'a Seat);

impl Seat {
    fn new(writer: Writer) -> Self {
        Self {
            writer,
            nudge: Notify::new(),
            fenced: CancellationToken::new(),
            concluding: AtomicUsize::new(0),
            concluded: AtomicBool::new(false),
        }
    }

    /// A newer session took over, or the instance has ended otherwise.
    pub(super) fn fence(&self) {
        self.fenced.cancel();
    }

    /// Waits for that.
    pub(super) async fn fenced(&self) {
        self.fenced.cancelled().await;
    }

    pub(super) fn conclude(&self) -> Concluding<'_> {
        self.concluding.fetch_add(1, Ordering::SeqCst);
        Concluding(self)
    }

    /// Whether the store has accepted the end of this session: nothing more is to come of it.
    pub(super) fn is_concluded(&self) -> bool {
        self.concluded.load(Ordering::SeqCst)
    }

    /// Whether the process has heard, or will hear with its next answer, that it is over.
    pub(super) fn is_leaving(&self) -> bool {
        self.concluding.load(Ordering::SeqCst) > 0 || self.concluded.load(Ordering::SeqCst)
    }
}

impl Concluding<'_> {
    /// The store has accepted it.
    pub(super) fn accepted(&self) {
        self.0.concluded.store(true, Ordering::SeqCst);
    }
}

impl Drop for Concluding<'_> {
    fn drop(&mut self) {
        self.0.concluding.fetch_sub(1, Ordering::SeqCst);
        // What was overlooked meanwhile is looked at now.
        self.0.nudge.notify_one();
    }
}

/// Pushes to one registration of a connection: what comes late for it is told apart from what is meant for the
/// next one. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pusher {
    replies: Replies<InstanceProtocol>,
    registration: u32,
}

impl Pusher {
    /// `registration` counts those of the connection, from 0.
    pub(super) fn new(replies: Replies<InstanceProtocol>, registration: u32) -> Self {
        Self { replies, registration }
    }

    /// Resolves when it is handed to the connection.
    pub(super) async fn push(&self, frame: ServerFrame) -> Result<(), CallError> {
        self.replies.push(ServerFrame { registration: self.registration, ..frame }).await
    }

    /// The connection below.
    pub(super) fn replies(&self) -> &Replies<InstanceProtocol> {
        &self.replies
    }
}

/// Keeps the process informed. `told` is what it has heard at its registration. Returns when it is fenced.
/// `again`: from a look that failed to the next.
pub(super) async fn inform(
    store: &Store,
    session: &Session,
    seat: &Seat,
    pusher: &Pusher,
    mut told: Inbox,
    again: Duration,
) {
    let mut failed = false;
    loop {
        let nudged = seat.nudge.notified();
        if failed {
            let _ = timeout(again, nudged).await;
        } else {
            nudged.await;
        }
        failed = false;
        if seat.is_leaving() {
            // It will hear that it is over; should it not be, it is nudged again.
            continue;
        }
        match store.inbox(session).await {
            Ok(inbox) if inbox == told => {}
            Ok(inbox) => {
                if let Err(error) = pusher.push(Outcome::Inbox(of_inbox(&inbox)).into()).await {
                    // The connection is gone; whoever reads requests from it ends the session.
                    debug!(%error, "an inbox was not pushed");
                }
                told = inbox;
            }
            Err(error) if error.code() == Code::Fenced => {
                if !seat.is_leaving() {
                    return;
                }
            }
            Err(error) => {
                failed = true;
                warn!(%error, code = %error.code(), "looking into an inbox failed; looking again");
            }
        }
    }
}

/// Tells the process that it is fenced, without its having asked.
pub(super) async fn push_fenced(session: &Session, pusher: &Pusher) {
    let error = request::Error::Store(store_fenced(session));
    if let Err(error) = pusher.push(InstanceProtocol::refuse(error.refusal())).await {
        debug!(%error, "a fenced process has gone already");
    }
}

fn store_fenced(session: &Session) -> crate::store::Error {
    crate::domain::instance::Refusal::Fenced { by: session.writer }.into()
}
