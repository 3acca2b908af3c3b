//! The timeline: appended in the transaction of what it tells, never changed.

use super::{
    Store,
    commit::{LockOrder, Request},
    error::Result,
    life::{self, Locked, Target},
    payload,
    sessions::Session,
    sql::{Arg, Stmt, Tx, args, count, stmt, storable},
};
use crate::domain::{
    event::{Event, EventKind, Progress},
    id::{Attempt, InstanceId, InstanceKey, Name, Tenant},
    payload::Payload,
    time::Micros,
};
use crate::timings;

/// The caller holds the instance's row, so numbers have no gaps.
const APPEND: Stmt = stmt!(
    "INSERT INTO event (instance, number, at, attempt, kind, message, data, encoding, type_name)
     SELECT $1, COALESCE(MAX(number), 0) + 1, $2, $3, $4, $5, $6, $7, $8 FROM event WHERE instance = $1"
);
const PAGE: Stmt = stmt!(
    "SELECT instance, number, at, attempt, kind, message, data, encoding, type_name
       FROM event WHERE instance = $1 AND number > $2 ORDER BY number LIMIT 0 + $3"
);
const PROGRESS: Stmt = stmt!(
    "UPDATE instance
        SET progress_done = $1, progress_total = $2, progress_message = $3, progress_at = $4,
            version = version + 1
      WHERE key = $5 AND tenant = $6 AND state = 'RUNNING' AND attempt = $7 AND session = $8"
);

/// What is to be appended.
pub(super) struct NewEvent<'a> {
    pub(super) kind: EventKind,
    pub(super) message: &'a str,
    pub(super) payload: Option<&'a Payload>,
}

impl<'a> NewEvent<'a> {
    pub(super) fn new(kind: EventKind, message: &'a str) -> Self {
        Self { kind, message, payload: None }
    }

    /// `kind, message, data, encoding, type_name`, with the message as it can be stored.
    pub(super) fn args(&self, message: &'a str) -> [Arg<'a>; 5] {
        let (data, encoding, type_name) = payload::columns(self.payload);
        [self.kind.as_str().into(), message.into(), data.into(), encoding.into(), type_name.into()]
    }
}

/// Appends to the timeline of an instance whose row is held.
pub(super) async fn append(
    tx: &mut Tx<'_>,
    instance: InstanceKey,
    attempt: Attempt,
    now: Micros,
    event: NewEvent<'_>,
) -> Result<()> {
    let message = storable(event.message);
    let (data, encoding, type_name) = payload::columns(event.payload);
    let args = args![instance, now, attempt, event.kind.as_str(), &message, data, encoding, type_name];
    tx.execute_one(&APPEND, args).await
}

/// What a workflow reports of itself.
enum Report {
    Custom { name: Name, payload: Payload },
    Progress(Progress),
}

struct Append {
    session: Session,
    report: Report,
}

impl Request for Append {
    type Answer = ();

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Event)
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.session.instance)
    }

    fn bytes(&self) -> usize {
        match &self.report {
            Report::Custom { payload, .. } => payload.data.len(),
            Report::Progress(_) => 0,
        }
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        let row = self.session.lock(tx).await?;
        row.life.admit(self.session.writer)?;
        let now = tx.now().await?;
        match &self.report {
            Report::Custom { name, payload } => {
                let event =
                    NewEvent { kind: EventKind::Custom, message: name.as_str(), payload: Some(payload) };
                append(tx, row.key, row.life.attempt, now, event).await?;
            }
            Report::Progress(progress) => self.progress(tx, &row, progress, now).await?,
        }
        tx.notify(super::Notice::Instance(row.key));
        Ok(())
    }
}

impl Append {
    async fn progress(&self, tx: &mut Tx<'_>, row: &Locked, progress: &Progress, now: Micros) -> Result<()> {
        let message = storable(&progress.message);
        let by = self.session.writer;
        let args =
            args![progress.done, progress.total, &message, now, row.key, &row.tenant, by.attempt, by.session];
        tx.execute_one(&PROGRESS, args).await?;
        let text = match progress.total {
            0 => format!("{} {}", progress.done, progress.message),
            total => format!("{} of {total} {}", progress.done, progress.message),
        };
        let event = NewEvent::new(EventKind::Progress, text.trim_end());
        append(tx, row.key, row.life.attempt, now, event).await
    }
}

/// A part of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// In the order of their numbers.
    pub events: Vec<Event>,
    /// Give this as `after` to read on.
    pub next: u64,
}

struct Page {
    target: Target,
    after: u64,
    limit: u32,
}

impl Request for Page {
    type Answer = EventPage;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<EventPage> {
        life::load(tx, self.target.key, &self.target.tenant).await?.ok_or_else(|| self.target.missing())?;
        let mut events = Vec::new();
        for row in tx.fetch(&PAGE, args![self.target.key, self.after, self.limit]).await? {
            events.push(Event {
                number: row.number("number")?,
                at: row.at("at")?,
                attempt: row.attempt("attempt")?,
                kind: row.parsed("kind", EventKind::parse)?,
                message: row.text("message")?,
                payload: payload::read(&row)?,
            });
        }
        let next = events.last().map_or(self.after, |event| event.number);
        Ok(EventPage { events, next })
    }
}

/// Longest message of a progress report, in bytes; the rest is cut.
const PROGRESS_MESSAGE: usize = 1000;

impl Store {
    /// Appends an author's event to the timeline of the session's instance.
    pub async fn event(&self, session: &Session, name: Name, payload: Payload) -> Result<()> {
        self.check_payload("event.payload", &payload)?;
        let request = Append { session: session.clone(), report: Report::Custom { name, payload } };
        self.write_instance(session.instance, request).await
    }

    /// Stores how far the session's instance is: in its row and in its timeline.
    pub async fn progress(&self, session: &Session, mut progress: Progress) -> Result<()> {
        payload::cut(&mut progress.message, PROGRESS_MESSAGE);
        let request = Append { session: session.clone(), report: Report::Progress(progress) };
        self.write_instance(session.instance, request).await
    }

    /// The timeline behind event number `after`, at most `limit` entries (at most 1,000).
    pub async fn events(
        &self,
        tenant: &Tenant,
        id: &InstanceId,
        after: u64,
        limit: u32,
    ) -> Result<EventPage> {
        let target = self.target(tenant, id).await?;
        let after = after.min(count(after).unsigned_abs());
        self.read(Page { target, after, limit: limit.clamp(1, 1000) }).await
    }
}
