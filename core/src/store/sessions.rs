//! What an instance's process asks for: register, suspend, end, look into its inbox.
//!
//! Every write names attempt and session and holds the instance's row (invariant 2).

use super::{
    AttemptRef, Store,
    checkpoints::{self, CheckpointPage},
    commit::{LockOrder, Request},
    endings,
    error::{Error, Result},
    events::NewEvent,
    life::{self, Found, Locked, life_columns},
    payload, signals,
    sql::{Row, Stmt, Tx, args, stmt},
};
use crate::domain::{
    event::EventKind,
    id::{AttemptToken, InstanceId, InstanceKey, Name, Tenant, TokenHash},
    instance::{Cancel, End, Refusal, Status, Suspend, Writer},
    outcome::{Ending, Outcome},
    payload::Payload,
    signal::Unread,
    time::Micros,
    wake::{Waits, WakeReason},
};
use crate::timings;

/// The right to write: one registration of one attempt. What it holds goes into each guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The instance's internal key: a session of a deleted instance fits no other.
    pub instance: InstanceKey,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its public id.
    pub id: InstanceId,
    /// Attempt and session.
    pub writer: Writer,
}

impl Session {
    /// Locks the row for a transition; an instance that is gone fences.
    pub(super) async fn lock(&self, tx: &mut Tx<'_>) -> Result<Locked> {
        life::lock(tx, self.instance, &self.tenant).await?.ok_or_else(|| self.fenced())
    }

    pub(super) fn fenced(&self) -> Error {
        Refusal::Fenced { by: self.writer }.into()
    }
}

/// What waits for an instance: the full truth, so that a lost push costs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbox {
    /// It shall suspend until it is resumed.
    pub paused: bool,
    /// How far a cancellation is.
    pub cancel: Cancel,
    /// Oldest first, at most `Limits::inbox_signals`.
    pub unread: Vec<Unread>,
}

/// All that a process needs to go on, so that resuming costs one round trip.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The right to write.
    pub session: Session,
    /// The entry point.
    pub workflow: Name,
    /// What the start gave it.
    pub input: Payload,
    /// Why this attempt was launched.
    pub wake_reason: WakeReason,
    /// The first page of what is stored.
    pub page: CheckpointPage,
    /// What waits for it.
    pub inbox: Inbox,
    /// When the first attempt registered.
    pub started_at: Micros,
    /// The database's clock at the registration.
    pub now: Micros,
}

/// The answer to a suspend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspension {
    /// Recorded: the process ends.
    Suspended,
    /// Something is there already: the process goes on and looks at this.
    Continue(Inbox),
}

/// What an instance sees of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnStatus {
    /// What people see.
    pub status: Status,
    /// The newest attempt and its newest session.
    pub writer: Writer,
    /// What waits for it.
    pub inbox: Inbox,
    /// The database's clock.
    pub now: Micros,
}

/// Which attempt it is, and what it was started with. None of that ever changes, so it is looked up before
/// the transaction that registers: no large input holds up the writers.
enum Find {
    Token(TokenHash),
    Attempt(AttemptRef),
}

macro_rules! find {
    ($which:literal) => {
        stmt!(concat!(
            "SELECT a.instance, a.attempt, a.wake_reason, i.tenant, i.id, i.workflow, s.input, s.encoding, s.type_name
               FROM attempt a
               JOIN instance i ON i.key = a.instance
               JOIN instance_start s ON s.instance = a.instance
              WHERE ",
            $which
        ))
    };
}

impl Request for Find {
    type Answer = Option<TokenOf>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        const BY_TOKEN: Stmt = find!("a.token_hash = $1");
        const BY_ATTEMPT: Stmt = find!("a.instance = $1 AND a.attempt = $2");
        let row = match self {
            Self::Token(hash) => tx.fetch_optional(&BY_TOKEN, args![hash.0.as_slice()]).await?,
            Self::Attempt(of) => tx.fetch_optional(&BY_ATTEMPT, args![of.instance, of.attempt]).await?,
        };
        row.as_ref().map(read_token).transpose()
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Self::Answer>> {
        self.run(tx).await.map(Some)
    }
}

fn read_token(row: &Row) -> Result<TokenOf> {
    Ok(TokenOf {
        attempt: AttemptRef { instance: row.instance("instance")?, attempt: row.attempt("attempt")? },
        id: row.parsed("id", |text| InstanceId::parse(text).ok())?,
        tenant: row.tenant("tenant")?,
        given: Given {
            workflow: row.name("workflow")?,
            input: payload::read_from(row, "input")?.unwrap_or_default(),
            wake_reason: row.parsed("wake_reason", WakeReason::parse)?,
        },
    })
}

/// Whom a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOf {
    /// The attempt.
    pub attempt: AttemptRef,
    /// The instance's public id.
    pub id: InstanceId,
    /// Whose instance it is.
    pub tenant: Tenant,
    /// What it goes on with.
    pub given: Given,
}

/// What an attempt was launched with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The entry point.
    pub workflow: Name,
    /// What the start gave the instance.
    pub input: Payload,
    /// Why it was launched.
    pub wake_reason: WakeReason,
}

struct Register {
    of: AttemptRef,
    inbox_signals: usize,
}

/// A registration as its transaction leaves the row.
struct Registered {
    session: Session,
    inbox: Inbox,
    started_at: Micros,
    checkpoints: bool,
    now: Micros,
}

impl Request for Register {
    type Answer = Registered;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Register)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.of.instance)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        // Deleted between look-up and lock: the token is not known any more.
        let row = life::lock_key(tx, self.of.instance).await?.ok_or(Error::UnknownToken)?;
        let now = tx.now().await?;
        let next = row.life.register(self.of.attempt, now)?;
        // What waits is read under the row's lock: afterwards it may say that somebody else writes, which
        // is no answer to a registration that was accepted.
        let found = life::write_registered(tx, &row, &next, now, self.inbox_signals).await?;
        let inbox = Inbox { paused: next.paused, cancel: next.cancel, unread: found.unread };
        let writer = Writer { attempt: next.attempt, session: next.session };
        let session = Session { instance: row.key, tenant: row.tenant, id: row.id, writer };
        let Found { started_at, checkpoints, .. } = found;
        Ok(Registered { session, inbox, started_at, checkpoints, now })
    }
}

/// The first page of the checkpoints, which only grow. Read after the commit, so that no large answer holds
/// up the writers, and outside of any transaction: what it saw it can only see again.
struct FirstPage {
    instance: InstanceKey,
    limits: checkpoints::PageLimits,
}

impl Request for FirstPage {
    type Answer = CheckpointPage;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<CheckpointPage> {
        checkpoints::page(tx, self.instance, 0, self.limits).await
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<CheckpointPage>> {
        self.run(tx).await.map(Some)
    }
}

async fn inbox_of(tx: &mut Tx<'_>, row: &Locked, max: usize) -> Result<Inbox> {
    let unread = signals::unread(tx, row.key, max).await?;
    Ok(Inbox { paused: row.life.paused, cancel: row.life.cancel, unread })
}

/// Reads the inbox; refused to who may not write any more.
struct LookInbox {
    session: Session,
    max: usize,
}

impl Request for LookInbox {
    type Answer = Inbox;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Inbox> {
        const LOOK: Stmt = stmt!(concat!(
            "SELECT ",
            life_columns!(),
            ", n.number AS signal, n.name AS signal_name
               FROM instance LEFT JOIN signal n ON n.instance = key AND n.consumed_by IS NULL
              WHERE key = $1 AND tenant = $2 ORDER BY n.number LIMIT 0 + $3"
        ));
        let session = &self.session;
        let rows = tx.fetch(&LOOK, args![session.instance, &session.tenant, self.max as u64]).await?;
        let row = life::read(rows.first().ok_or_else(|| session.fenced())?)?;
        row.life.admit(session.writer)?;
        let mut unread = Vec::new();
        for row in rows {
            if row.opt_int("signal")?.is_some() {
                unread.push(Unread { number: row.number("signal")?, name: row.name("signal_name")? });
            }
        }
        Ok(Inbox { paused: row.life.paused, cancel: row.life.cancel, unread })
    }

    async fn run_single(&self, tx: &mut Tx<'_>) -> Result<Option<Inbox>> {
        self.run(tx).await.map(Some)
    }
}

struct LookStatus {
    session: Session,
    max: usize,
}

impl Request for LookStatus {
    type Answer = OwnStatus;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<OwnStatus> {
        let row = life::load(tx, self.session.instance, &self.session.tenant).await?;
        let row = row.ok_or_else(|| self.session.fenced())?;
        let writer = Writer { attempt: row.life.attempt, session: row.life.session };
        let inbox = inbox_of(tx, &row, self.max).await?;
        Ok(OwnStatus { status: row.life.status(), writer, inbox, now: tx.now().await? })
    }
}

struct SuspendFor {
    session: Session,
    waits: Waits,
    inbox_signals: usize,
}

impl Request for SuspendFor {
    type Answer = (Suspension, Micros);

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Suspend)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.session.instance)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let row = self.session.lock(tx).await?;
        let unread = signals::unread_among(tx, row.key, &self.waits).await?;
        let now = tx.now().await?; // after the lock: waiting for it takes time
        let by = self.session.writer;
        let is_unread = |name: &Name| unread.contains(name);
        match row.life.suspend(by, self.waits.clone(), is_unread, now)? {
            Suspend::Again => Ok((Suspension::Suspended, now)),
            Suspend::Continue => {
                Ok((Suspension::Continue(inbox_of(tx, &row, self.inbox_signals).await?), now))
            }
            Suspend::Suspended(next) => {
                let waits = Payload::json(life::waits_text(&self.waits));
                let event = NewEvent { payload: Some(&waits), ..NewEvent::new(EventKind::Suspended, "") };
                life::write_telling(tx, &row, &next, now, event).await?;
                Ok((Suspension::Suspended, now))
            }
        }
    }
}

struct EndWith {
    session: Session,
    ending: Ending,
}

impl Request for EndWith {
    type Answer = Outcome;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Ending)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.session.instance)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Outcome> {
        let row = self.session.lock(tx).await?;
        let now = tx.now().await?;
        let asked = match &self.ending {
            Ending::Completed(_) => Outcome::Completed,
            Ending::Failed(_) => Outcome::Failed,
        };
        match row.life.end(self.session.writer, asked, now)? {
            End::Again => Ok(row.life.outcome().unwrap_or(asked)),
            End::Ended(next) => {
                let ending = endings::of(&self.ending);
                endings::write(tx, &row, &next, ending, now).await?;
                Ok(next.outcome().unwrap_or(asked))
            }
        }
    }
}

/// Waits of one suspension. More would make each look at the row slow.
const WAITS: usize = 10_000;

impl Store {
    /// Which attempt a token belongs to, whether or not it may still register.
    pub async fn token_of(&self, token: &AttemptToken) -> Result<TokenOf> {
        self.read(Find::Token(token.hash())).await?.ok_or(Error::UnknownToken)
    }

    /// The process of an attempt, which proved itself by its token, opens a session: all earlier
    /// ones of the instance are fenced.
    ///
    /// Refused with FENCED if a newer attempt was claimed or the attempt is over.
    pub async fn register_proved(&self, who: TokenOf) -> Result<Registration> {
        let TokenOf { attempt: of, given, .. } = who;
        let register = Register { of, inbox_signals: self.limits().inbox_signals };
        let registered = self.write_instance(of.instance, register).await?;
        let Registered { session, inbox, started_at, checkpoints, now } = registered;
        let page = if checkpoints {
            let limits = checkpoints::PageLimits::of(self.limits());
            self.read(FirstPage { instance: of.instance, limits }).await?
        } else {
            CheckpointPage { checkpoints: Vec::new(), next_cursor: 0 }
        };
        let Given { workflow, input, wake_reason } = given;
        Ok(Registration { session, workflow, input, wake_reason, page, inbox, started_at, now })
    }

    /// As [`Self::register_proved`], for who knows the attempt otherwise.
    pub async fn register_attempt(&self, of: AttemptRef) -> Result<Registration> {
        let who = self.read(Find::Attempt(of)).await?.ok_or(Error::UnknownToken)?;
        self.register_proved(who).await
    }

    /// [`Self::token_of`] and [`Self::register_proved`] in one.
    pub async fn register(&self, token: &AttemptToken) -> Result<Registration> {
        self.register_proved(self.token_of(token).await?).await
    }

    /// What waits for the session's instance now.
    pub async fn inbox(&self, session: &Session) -> Result<Inbox> {
        self.read(LookInbox { session: session.clone(), max: self.limits().inbox_signals }).await
    }

    /// What the session's instance is, also when it may not write any more.
    pub async fn own_status(&self, session: &Session) -> Result<OwnStatus> {
        self.read(LookStatus { session: session.clone(), max: self.limits().inbox_signals }).await
    }

    /// Records the waits and lets the process end; or tells it to go on. With the answer comes
    /// the database's clock.
    pub async fn suspend(&self, session: &Session, waits: Waits) -> Result<(Suspension, Micros)> {
        if waits.iter().len() > WAITS {
            let remedy = "wait for fewer things at once";
            return Err(Error::TooMany { what: "waits", max: WAITS as u64, remedy });
        }
        let inbox_signals = self.limits().inbox_signals;
        let request = SuspendFor { session: session.clone(), waits, inbox_signals };
        self.write_instance(session.instance, request).await
    }

    /// The workflow returned. The answer is CANCELLED if it had felt a cancellation.
    pub async fn end(&self, session: &Session, ending: Ending) -> Result<Outcome> {
        match &ending {
            Ending::Completed(output) => self.check_payload("completed.output", output)?,
            Ending::Failed(failure) => self.check_bytes("failed.details", failure.details.len())?,
        }
        self.write_instance(session.instance, EndWith { session: session.clone(), ending }).await
    }
}
