//! Attempts that ended without having said so: told by their node, found by a node that
//! starts, taken from a node that lost its lease, or over because time is.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    Store,
    attempts::{self, AttemptRef, Over},
    commit::{LockOrder, Request},
    damage,
    endings::{self, Says, code, stated},
    error::Result,
    events::{self, NewEvent},
    life::{self, Locked, life_columns},
    nodes::{self, NodeLease},
    payload,
    sql::{Row, Stmt, Tx, args, stmt, storable},
};
use crate::domain::{
    event::EventKind,
    id::{Attempt, NodeId},
    instance::{CrashPolicy, Exit, Life, State},
    outcome::{EndedBy, ExitReport, Outcome},
    time::Micros,
};
use crate::timings;

/// What became of an instance whose attempt is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterExit {
    /// It is launched again from this moment on.
    Again {
        /// When.
        wake_at: Micros,
    },
    /// The crash ended it.
    Ended(Outcome),
    /// The row was not that attempt's any more, or it had recorded its own end: only the
    /// attempt's report was written.
    Recorded,
}

/// Why a process that a node runs should not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Superseded {
    /// A newer attempt, another node, or the instance was deleted: kill it.
    Fenced,
    /// The instance has ended. `EndedBy::Instance`: the process is on its way out by itself.
    Ended(Outcome, EndedBy),
    /// It suspended itself: the process is on its way out by itself.
    Suspended,
}

/// How the end of an attempt came to be known.
enum Told {
    Exited(ExitReport),
    NotLaunched(String),
    GivenBack { retry_in: Duration, message: String },
}

struct OverFor {
    of: AttemptRef,
    told: Told,
    policy: CrashPolicy,
}

impl Request for OverFor {
    type Answer = AfterExit;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Exit)
    }

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.of.instance)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<AfterExit> {
        let Some(row) = life::lock_key(tx, self.of.instance).await? else { return Ok(AfterExit::Recorded) };
        let now = tx.now().await?;
        let over = self.over();
        attempts::over(tx, self.of, &over, now).await?;
        let exit = match &self.told {
            Told::Exited(_) | Told::NotLaunched(_) => {
                Exit::Crashed { newest_checkpoint: life::newest_checkpoint(tx, row.key).await? }
            }
            Told::GivenBack { retry_in, .. } => Exit::GivenBack { retry_in: *retry_in },
        };
        let Some(next) = row.life.exited(self.of.attempt, exit, &self.policy, now) else {
            return Ok(AfterExit::Recorded);
        };
        self.tell(tx, &row, &over.message(), now).await?;
        apply(tx, &row, &next, &over.message(), now).await
    }
}

impl OverFor {
    fn over(&self) -> Over<'_> {
        match &self.told {
            Told::Exited(report) => Over::Exited(report),
            Told::NotLaunched(message) => Over::Without("not_launched", message),
            Told::GivenBack { message, .. } => Over::Without("given_back", message),
        }
    }

    async fn tell(&self, tx: &mut Tx<'_>, row: &Locked, message: &str, now: Micros) -> Result<()> {
        let (kind, tail) = match &self.told {
            Told::Exited(report) => (EventKind::Crashed, report.stderr_tail.as_str()),
            Told::NotLaunched(_) | Told::GivenBack { .. } => (EventKind::LaunchFailed, ""),
        };
        let tail = (!tail.is_empty()).then(|| payload::raw(tail.as_bytes(), "stderr"));
        let event = NewEvent { kind, message, payload: tail.as_ref() };
        events::append(tx, row.key, self.of.attempt, now, event).await
    }
}

/// Ends of attempts whose rows do not name them any more, or had ended by then: nothing is left to decide, so
/// it takes no look at the row and no lock of it. Once not named, never named again: a newer claim raises the
/// attempt.
const ACCOUNT: Stmt = stmt!(
    "UPDATE attempt
        SET ended_at = $2, exit_kind = c.kind, exit_value = c.amount, exit_message = c.said, stderr_tail = c.tail
       FROM (SELECT CAST(value ->> 0 AS BIGINT) AS of, CAST(value ->> 1 AS BIGINT) AS number,
                    value ->> 2 AS kind, CAST(value ->> 3 AS BIGINT) AS amount, value ->> 4 AS said,
                    value ->> 5 AS tail
               FROM {each}) AS c
      WHERE attempt.instance = c.of AND attempt.attempt = c.number AND attempt.ended_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM instance AS i
                         WHERE i.key = c.of AND i.attempt = c.number AND i.node IS NOT NULL)
     RETURNING instance, attempt"
);

struct Account {
    exits: Vec<(AttemptRef, ExitReport)>,
}

impl Request for Account {
    /// Those that are accounted for.
    type Answer = HashSet<AttemptRef>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let rows: Vec<_> = self.exits.iter().map(|(of, report)| columns(*of, report)).collect();
        let rows = serde_json::to_string(&rows).expect("numbers and texts are JSON");
        let now = tx.now().await?;
        let done = tx.write_fetch(&ACCOUNT, args![&rows, now]).await?;
        let read = |row: &Row| {
            Ok(AttemptRef { instance: row.instance("instance")?, attempt: row.attempt("attempt")? })
        };
        done.iter().map(read).collect()
    }
}

/// In the order of ACCOUNT.
fn columns(
    of: AttemptRef,
    report: &ExitReport,
) -> (i64, u32, &'static str, Option<i64>, String, Cow<'_, str>) {
    let (kind, amount) = attempts::columns(report.reason);
    let tail = storable(&report.stderr_tail);
    (of.instance.0, of.attempt.0, kind, amount, report.reason.to_string(), tail)
}

/// Writes what follows from an exit.
async fn apply(tx: &mut Tx<'_>, row: &Locked, next: &Life, reason: &str, now: Micros) -> Result<AfterExit> {
    match &next.state {
        State::Ended { outcome, .. } => {
            let failure = (*outcome == Outcome::Failed).then(|| {
                stated(
                    code::CRASHED,
                    format!("{} crashes without progress; the last: {reason}", next.crashes),
                )
            });
            let says = Says { output: None, failure: failure.as_ref() };
            endings::write(tx, row, next, says, now).await?;
            Ok(AfterExit::Ended(*outcome))
        }
        State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Suspended { .. } => {
            life::write(tx, row, next, now).await?;
            Ok(next.wake_at().map_or(AfterExit::Recorded, |wake_at| AfterExit::Again { wake_at }))
        }
    }
}

/// Rows that name a node, in key order; a range of the index on `node`.
const OF_NODE: Stmt = stmt!(concat!(
    "SELECT ",
    life_columns!(),
    " FROM instance WHERE node = $1 AND node IS NOT NULL ORDER BY key LIMIT 0 + $2 {for_update}"
));
/// Rows that one transaction takes over: their writers wait meanwhile.
const TAKE_OVER: u32 = 100;
/// Held, so that none of them takes a new lease in the middle. Those that have nothing left are
/// many after a while, and are not touched.
const LOST_NODES: Stmt = stmt!(
    "SELECT id FROM node
      WHERE lost AND EXISTS (SELECT 1 FROM instance WHERE instance.node = node.id AND instance.node IS NOT NULL)
      ORDER BY id {for_update}"
);

/// Gives rows of a node back to the wake queue.
async fn return_rows(
    tx: &mut Tx<'_>,
    node: &NodeId,
    known: &HashSet<AttemptRef>,
    reports: &HashMap<AttemptRef, ExitReport>,
    limit: u32,
    why: &'static str,
) -> Result<Vec<AttemptRef>> {
    let mut returned = Vec::new();
    let rows = tx.fetch(&OF_NODE, args![node, limit]).await?;
    let now = tx.now().await?;
    for row in rows {
        let Some(row) = damage::readable(life::read(&row))? else { continue };
        let of = AttemptRef { instance: row.key, attempt: row.life.attempt };
        if known.contains(&of) {
            continue;
        }
        let newest_checkpoint = life::newest_checkpoint(tx, row.key).await?;
        let Some(next) = row.life.settle(node, newest_checkpoint, now) else { continue };
        let over = reports.get(&of).map_or(Over::Without("returned", why), Over::Exited);
        attempts::over(tx, of, &over, now).await?;
        let message = over.message();
        events::append(tx, row.key, of.attempt, now, NewEvent::new(EventKind::Returned, &message)).await?;
        life::write(tx, &row, &next, now).await?;
        returned.push(of);
    }
    Ok(returned)
}

struct Settle {
    lease: NodeLease,
    known: HashSet<AttemptRef>,
    ended: HashMap<AttemptRef, ExitReport>,
}

impl Request for Settle {
    type Answer = Vec<AttemptRef>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        nodes::hold(tx, &self.lease).await?;
        let why = "its node knows no process of it";
        let returned = return_rows(tx, &self.lease.node, &self.known, &self.ended, u32::MAX, why).await?;
        let now = tx.now().await?;
        for (of, report) in &self.ended {
            // Of those that were returned it is noted already; the others had recorded their end.
            attempts::over(tx, *of, &Over::Exited(report), now).await?;
        }
        Ok(returned)
    }
}

struct TakeOver;

impl Request for TakeOver {
    type Answer = Vec<AttemptRef>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        let mut returned = Vec::new();
        for row in tx.fetch(&LOST_NODES, args![]).await? {
            let node = row.parsed("id", |text| NodeId::parse(text).ok())?;
            let (none, no_reports) = (HashSet::new(), HashMap::new());
            let room = TAKE_OVER.saturating_sub(u32::try_from(returned.len()).unwrap_or(u32::MAX));
            let why = "its node lost its lease";
            returned.extend(return_rows(tx, &node, &none, &no_reports, room, why).await?);
        }
        Ok(returned)
    }
}

struct HandBack {
    lease: NodeLease,
    of: AttemptRef,
    why: String,
}

impl Request for HandBack {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool> {
        nodes::hold(tx, &self.lease).await?;
        let Some(row) = life::lock_key(tx, self.of.instance).await? else { return Ok(false) };
        let now = tx.now().await?;
        attempts::over(tx, self.of, &Over::Without("returned", &self.why), now).await?;
        if row.life.attempt != self.of.attempt {
            return Ok(false);
        }
        let newest_checkpoint = life::newest_checkpoint(tx, row.key).await?;
        let Some(next) = row.life.settle(&self.lease.node, newest_checkpoint, now) else { return Ok(false) };
        let event = NewEvent::new(EventKind::Returned, &self.why);
        events::append(tx, row.key, self.of.attempt, now, event).await?;
        life::write(tx, &row, &next, now).await?;
        Ok(true)
    }
}

/// Instances whose time ended, and when the next one's does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Ended now; a process that still runs is to be killed.
    pub ended: Vec<AttemptRef>,
    /// When to look again; [`Duration::MAX`]: nothing has a limit.
    pub next_in: Duration,
}

/// Time limits that one transaction looks at.
const EXPIRE: u32 = 100;

const PAST_DEADLINE: Stmt = stmt!(concat!(
    "SELECT ",
    life_columns!(),
    " FROM instance
      WHERE deadline_at IS NOT NULL AND ended_at IS NULL AND deadline_at <= $1
      ORDER BY deadline_at, key LIMIT 0 + $2 {skip_locked}"
));
/// That it is not null follows. Said again it would cost the plan: where no instance has a limit, PostgreSQL
/// would take the comparison for true of every third that lives, and sort them.
const NEXT_DEADLINE: Stmt = stmt!(
    "SELECT deadline_at FROM instance
      WHERE ended_at IS NULL AND deadline_at > $1
      ORDER BY deadline_at, key LIMIT 1"
);

struct Expire;

impl Request for Expire {
    type Answer = Expired;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Expired> {
        let now = tx.now().await?;
        let (mut ended, mut damaged) = (Vec::new(), false);
        for row in tx.fetch(&PAST_DEADLINE, args![now, EXPIRE]).await? {
            let Some(row) = damage::readable(life::read(&row))? else {
                damaged = true;
                continue;
            };
            if let Some(next) = row.life.expire(now) {
                let failure = stated(code::TIME_LIMIT, "the instance's time limit passed".to_owned());
                let says = Says { output: None, failure: Some(&failure) };
                endings::write(tx, &row, &next, says, now).await?;
                ended.push(AttemptRef { instance: row.key, attempt: row.life.attempt });
            }
        }
        // Who holds a row lets it go soon; who damaged one does not.
        let after = if damaged { now } else { Micros(i64::MIN) };
        let next = tx.fetch_optional(&NEXT_DEADLINE, args![after]).await?;
        let next_in = match next.map(|row| row.at("deadline_at")).transpose()? {
            None => Duration::MAX,
            Some(at) => at.since(now),
        };
        Ok(Expired { ended, next_in })
    }
}

const CANCELS_OF_NODE: Stmt = stmt!(concat!(
    "SELECT ",
    life_columns!(),
    " FROM instance
      WHERE node = $1 AND node IS NOT NULL AND state = 'RUNNING' AND cancel = 'asked'
      ORDER BY key {for_update}"
));

/// Cancellations of a node whose grace is over.
struct Overdue {
    lease: NodeLease,
    grace: Duration,
}

impl Request for Overdue {
    type Answer = Expired;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Expired> {
        nodes::hold(tx, &self.lease).await?;
        let rows = tx.fetch(&CANCELS_OF_NODE, args![&self.lease.node]).await?;
        let now = tx.now().await?;
        let (mut ended, mut next_in) = (Vec::new(), Duration::MAX);
        for row in rows {
            let read = row.at("cancel_at").and_then(|since| Ok((since, life::read(&row)?)));
            let Some((since, row)) = damage::readable(read)? else { continue };
            let of = row.life.attempt;
            match row.life.cancel_overdue(of, self.grace, now) {
                Some(next) => {
                    endings::write(tx, &row, &next, Says::default(), now).await?;
                    ended.push(AttemptRef { instance: row.key, attempt: of });
                }
                None => next_in = next_in.min((since + self.grace).since(now)),
            }
        }
        Ok(Expired { ended, next_in })
    }
}

struct FindSuperseded {
    node: NodeId,
    running: Vec<AttemptRef>,
}

impl Request for FindSuperseded {
    type Answer = Vec<(AttemptRef, Superseded)>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        const LOOK: Stmt = stmt!(concat!("SELECT ", life_columns!(), " FROM instance WHERE key = $1"));
        let mut found = Vec::new();
        for of in &self.running {
            let row = tx.fetch_optional(&LOOK, args![of.instance]).await?;
            let verdict = match row.map(|row: Row| life::read(&row)).transpose()? {
                None => Some(Superseded::Fenced),
                Some(row) => judge(&row.life, of.attempt, &self.node),
            };
            found.extend(verdict.map(|verdict| (*of, verdict)));
        }
        Ok(found)
    }
}

/// Why attempt `of` on `node` should not run; none: it should.
fn judge(life: &Life, of: Attempt, node: &NodeId) -> Option<Superseded> {
    if life.attempt != of {
        return Some(Superseded::Fenced);
    }
    match &life.state {
        State::Launching { node: at, .. } | State::Running { node: at } => {
            (at != node).then_some(Superseded::Fenced)
        }
        State::Ended { outcome, by, .. } => Some(Superseded::Ended(*outcome, *by)),
        // Its claim was given back, or it waits for its retry: this process is nobody's.
        State::Pending { .. } => Some(Superseded::Fenced),
        State::Suspended { waits, .. } if waits.for_retry() => Some(Superseded::Fenced),
        State::Suspended { .. } => Some(Superseded::Suspended),
    }
}

impl Store {
    /// The process of an attempt ended. If it had not recorded an ending or a suspension, that
    /// is a crash: launched again after a pause, or ended beyond the limit.
    pub async fn exited(&self, of: AttemptRef, mut report: ExitReport) -> Result<AfterExit> {
        payload::cut(&mut report.stderr_tail, STDERR_TAIL);
        self.over(of, Told::Exited(report)).await
    }

    /// As [`Self::exited`], of many at once, for those whose ends leave nothing to decide: their attempts had
    /// recorded an ending or a suspension, or are not the newest. Answers the others, of which nothing is
    /// written: they are to be told one by one.
    pub async fn account_exits(&self, mut exits: Vec<(AttemptRef, ExitReport)>) -> Result<Vec<AttemptRef>> {
        let Some((first, _)) = exits.first() else { return Ok(Vec::new()) };
        let lane = first.instance;
        for (_, report) in &mut exits {
            payload::cut(&mut report.stderr_tail, STDERR_TAIL);
        }
        // Rows are locked in this order.
        exits.sort_by_key(|(of, _)| *of);
        let told: Vec<AttemptRef> = exits.iter().map(|(of, _)| *of).collect();
        let done = self.write_instance(lane, Account { exits }).await?;
        Ok(told.into_iter().filter(|of| !done.contains(of)).collect())
    }

    /// An attempt's process could not be started: counts as a crash.
    pub async fn launch_failed(&self, of: AttemptRef, mut message: String) -> Result<AfterExit> {
        payload::cut(&mut message, STDERR_TAIL);
        self.over(of, Told::NotLaunched(message)).await
    }

    /// The claim is given back for a reason that is not the instance's fault (its image cannot
    /// be fetched, the node drains): no crash, due again after `retry_in`.
    pub async fn give_back(
        &self,
        of: AttemptRef,
        retry_in: Duration,
        mut message: String,
    ) -> Result<AfterExit> {
        payload::cut(&mut message, STDERR_TAIL);
        self.over(of, Told::GivenBack { retry_in, message }).await
    }

    async fn over(&self, of: AttemptRef, told: Told) -> Result<AfterExit> {
        let policy = self.crash_policy();
        self.write_instance(of.instance, OverFor { of, told, policy }).await
    }

    /// Returns each row that names the node, and of whose attempt it knows no process, to the
    /// wake queue. At the node's start, after a lost lease, and before its first claim.
    pub async fn settle(&self, lease: &NodeLease, known: &[AttemptRef]) -> Result<Vec<AttemptRef>> {
        self.settle_ended(lease, known, Vec::new()).await
    }

    /// As [`Self::settle`]; of the attempts in `ended` the node found that their processes ended
    /// unseen, and what they left: that is noted, and is no crash.
    pub async fn settle_ended(
        &self,
        lease: &NodeLease,
        known: &[AttemptRef],
        ended: Vec<(AttemptRef, ExitReport)>,
    ) -> Result<Vec<AttemptRef>> {
        let known = known.iter().copied().collect();
        let mut ended: HashMap<_, _> = ended.into_iter().collect();
        for report in ended.values_mut() {
            payload::cut(&mut report.stderr_tail, STDERR_TAIL);
        }
        self.write_node(Settle { lease: lease.clone(), known, ended }).await
    }

    /// Gives one instance back to the wake queue whose process this node has ended for reasons of
    /// its own (it drains): no crash, due at once. The process must be gone. False: the row is
    /// not that attempt's any more, or it had recorded its own end.
    pub async fn hand_back(&self, lease: &NodeLease, of: AttemptRef, mut why: String) -> Result<bool> {
        payload::cut(&mut why, STDERR_TAIL);
        self.write_node(HandBack { lease: lease.clone(), of, why }).await
    }

    /// Returns rows of nodes whose lease is lost, some at a time: call it again until it returns
    /// none. Every node that looks repeats it.
    pub async fn take_over(&self) -> Result<Vec<AttemptRef>> {
        self.write_node(TakeOver).await
    }

    /// Ends instances whose time limit passed, some at a time: call it again while it ended any.
    pub async fn expire(&self) -> Result<Expired> {
        self.write_node(Expire).await
    }

    /// Ends instances of the node that did not feel their cancellation within the grace
    /// (`Limits::cancel_grace`).
    pub async fn cancel_overdue(&self, lease: &NodeLease) -> Result<Expired> {
        let grace = self.limits().cancel_grace;
        self.write_node(Overdue { lease: lease.clone(), grace }).await
    }

    /// Which of the attempts that a node runs should not run any more, and why.
    pub async fn superseded(
        &self,
        node: &NodeId,
        running: &[AttemptRef],
    ) -> Result<Vec<(AttemptRef, Superseded)>> {
        self.read(FindSuperseded { node: node.clone(), running: running.to_vec() }).await
    }
}

/// Longest end of standard error, or message, that is kept, in bytes.
const STDERR_TAIL: usize = 4096;
