//! One row for each launch: its token's hash, where it ran, how it ended. For people and for
//! registration; it decides nothing else.

use super::{
    Store,
    commit::{LockOrder, Request},
    error::Result,
    life::Target,
    sql::{Row, Stmt, Tx, args, stmt, storable},
};
use crate::domain::{
    id::{Attempt, InstanceId, InstanceKey, NodeId, Tenant},
    outcome::{ExitReason, ExitReport},
    time::Micros,
    wake::WakeReason,
};

/// One attempt of one instance, as services name it to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptRef {
    /// The instance's internal key.
    pub instance: InstanceKey,
    /// Which launch.
    pub attempt: Attempt,
}

/// A launch as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Which.
    pub attempt: Attempt,
    /// Where.
    pub node: NodeId,
    /// Why.
    pub wake_reason: WakeReason,
    /// When it was claimed.
    pub claimed_at: Micros,
    /// When its process first registered.
    pub registered_at: Option<Micros>,
    /// When its end was reported.
    pub ended_at: Option<Micros>,
    /// Its process, if its node said so.
    pub pid: Option<u32>,
    /// How it ended, one sentence; none while nobody has reported it.
    pub exit: Option<String>,
    /// The end of its standard error.
    pub stderr_tail: Option<String>,
}

const OVER: Stmt = stmt!(
    "UPDATE attempt
        SET ended_at = $1, exit_kind = $2, exit_value = $3, exit_message = $4, stderr_tail = $5
      WHERE instance = $6 AND attempt = $7 AND ended_at IS NULL"
);
const LAUNCHED: Stmt = stmt!("UPDATE attempt SET pid = $1 WHERE instance = $2 AND attempt = $3");
const LIST: Stmt = stmt!(
    "SELECT instance, attempt, node, wake_reason, claimed_at, registered_at, ended_at, pid, exit_message,
            stderr_tail
       FROM attempt WHERE instance = $1 ORDER BY attempt DESC LIMIT 0 + $2"
);

/// How an attempt came to its end.
pub(super) enum Over<'a> {
    /// Its process ended.
    Exited(&'a ExitReport),
    /// Without a process, or without knowing of one; the word and a sentence.
    Without(&'static str, &'a str),
}

impl Over<'_> {
    /// One sentence.
    pub(super) fn message(&self) -> String {
        match self {
            Over::Exited(report) => report.reason.to_string(),
            Over::Without(_, message) => (*message).to_owned(),
        }
    }
}

/// Records the end of an attempt; the first report stays.
pub(super) async fn over(tx: &mut Tx<'_>, of: AttemptRef, over: &Over<'_>, now: Micros) -> Result<()> {
    let (kind, value, tail) = match over {
        Over::Without(kind, _) => (*kind, None, None),
        Over::Exited(report) => {
            let (kind, value) = columns(report.reason);
            (kind, value, Some(storable(&report.stderr_tail)))
        }
    };
    let message = over.message();
    let message = storable(&message);
    let args = args![now, kind, value, &message, tail.as_deref(), of.instance, of.attempt];
    tx.execute(&OVER, args).await?;
    Ok(())
}

/// `exit_kind, exit_value`.
pub(super) fn columns(reason: ExitReason) -> (&'static str, Option<i64>) {
    match reason {
        ExitReason::Code(code) => ("code", Some(i64::from(code))),
        ExitReason::Signal(signal) => ("signal", Some(i64::from(signal))),
        ExitReason::OutOfMemory => ("out_of_memory", None),
        ExitReason::LaunchDeadline => ("launch_deadline", None),
        ExitReason::Unknown => ("unknown", None),
    }
}

struct Launched {
    of: AttemptRef,
    pid: u32,
}

impl Request for Launched {
    type Answer = ();

    fn order(&self) -> LockOrder {
        LockOrder::Instance(self.of.instance)
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<()> {
        // None: the instance was deleted meanwhile; nobody asks any more.
        tx.execute(&LAUNCHED, args![self.pid, self.of.instance, self.of.attempt]).await?;
        Ok(())
    }
}

struct List {
    target: Target,
    limit: u32,
}

impl Request for List {
    type Answer = Vec<AttemptRecord>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer> {
        tx.fetch(&LIST, args![self.target.key, self.limit]).await?.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<AttemptRecord> {
    Ok(AttemptRecord {
        attempt: row.attempt("attempt")?,
        node: row.parsed("node", |text| NodeId::parse(text).ok())?,
        wake_reason: row.parsed("wake_reason", WakeReason::parse)?,
        claimed_at: row.at("claimed_at")?,
        registered_at: row.opt_at("registered_at")?,
        ended_at: row.opt_at("ended_at")?,
        pid: match row.opt_int("pid")? {
            Some(_) => Some(row.small("pid")?),
            None => None,
        },
        exit: row.opt_text("exit_message")?,
        stderr_tail: row.opt_text("stderr_tail")?,
    })
}

impl Store {
    /// Records which process an attempt is; for people only, may be left out.
    pub async fn launched(&self, of: AttemptRef, pid: u32) -> Result<()> {
        self.write_instance(of.instance, Launched { of, pid }).await
    }

    /// The newest launches of an instance, newest first; at most `limit` (at most 1,000).
    pub async fn attempts(&self, tenant: &Tenant, id: &InstanceId, limit: u32) -> Result<Vec<AttemptRecord>> {
        let target = self.target(tenant, id).await?;
        self.read(List { target, limit: limit.clamp(1, 1000) }).await
    }
}
