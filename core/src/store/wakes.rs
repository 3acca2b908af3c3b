//! The one path that starts attempts: claim due wakes (invariant 4). The wake of an instance that is made and due
//! at once may be claimed by the transaction that makes it ([`Claimant`]).
//!
//! A claim reads the clock first (late is harmless, early impossible), holds its node's row
//! and takes rows that nobody holds, by priority, each a range of the wake index; while tenants
//! have quotas of running instances, by priority and tenant (`turns`).

use std::{collections::BTreeMap, slice, time::Duration};

use super::{
    Notice, Store,
    attempts::AttemptRef,
    commit::Request,
    damage,
    error::{Error, Result},
    instances::Instance,
    life::{self, life_columns},
    nodes::{self, NodeLease, held},
    sql::{Row, Stmt, Tx, args, stmt},
    turns::{self, Rooms},
};
use crate::domain::{
    event::EventKind,
    id::{Attempt, AttemptToken, Digest, InstanceId, InstanceKey, Name, Tenant},
    instance::Life,
    time::Micros,
    wake::WakeReason,
};
use crate::timings;

/// What the start named for each process.
macro_rules! env {
    () => {
        "(SELECT s.env FROM instance_start AS s WHERE s.instance = instance.key) AS env"
    };
}
pub(super) use env;

/// The earliest wake of each priority, highest first. One look into the index each; the list
/// is as long as there are priorities. Beside it, whether any tenant has a quota.
macro_rules! next {
    ($before:expr, $beside:literal) => {
        stmt!(concat!(
            "WITH ",
            $before,
            "p(priority) AS (VALUES (9), (8), (7), (6), (5), (4), (3), (2), (1), (0))
             SELECT CAST(p.priority AS BIGINT) AS priority,
                    (SELECT i.wake_at FROM instance AS i
                      WHERE i.priority = p.priority AND i.wake_at IS NOT NULL AND NOT i.paused
                      ORDER BY i.wake_at, i.key LIMIT 1) AS wake_at,
                    EXISTS (SELECT 1 FROM tenant WHERE max_running IS NOT NULL) AS quotas",
            $beside,
            " FROM p ORDER BY p.priority DESC"
        ))
    };
}
const NEXT: Stmt = next!("", "");
/// The same, and the node's lease, held from here on.
const HOLD: Stmt = next!(concat!("lease AS (", held!(), "), "), ", (SELECT COUNT(*) FROM lease) AS held");
macro_rules! due {
    ($order:literal) => {
        stmt!(concat!(
            "SELECT ",
            life_columns!(),
            ", image_name, image_version, image_digest, workflow, ",
            env!(),
            " FROM instance
              WHERE priority = $1 AND wake_at IS NOT NULL AND NOT paused AND wake_at <= $2
              ORDER BY ",
            $order,
            " LIMIT 0 + $3 {skip_locked}"
        ))
    };
}
const DUE: Stmt = due!("wake_at, key");
/// The same range of the index, backwards.
const DUE_NEWEST: Stmt = due!("wake_at DESC, key DESC");

/// What is written of each claim: instance, attempt, token's hash, reason, event.
macro_rules! claimed {
    () => {
        "(SELECT CAST(value ->> 0 AS BIGINT) AS of, CAST(value ->> 1 AS BIGINT) AS number,
                 value ->> 2 AS token, value ->> 3 AS reason, value ->> 4 AS message FROM {each}) AS c"
    };
}
macro_rules! close {
    () => {
        concat!(
            "UPDATE instance
                SET attempt = c.number, session = 0, open = TRUE, node = $2, wake_at = $3, changed_at = $4,
                    version = instance.version + 1
               FROM ",
            claimed!(),
            " WHERE instance.key = c.of AND instance.attempt = c.number - 1 AND NOT instance.paused
                AND instance.wake_at IS NOT NULL AND instance.wake_at <= $4"
        )
    };
}
macro_rules! note {
    ($unhex:literal) => {
        concat!(
            "INSERT INTO attempt (instance, attempt, token_hash, node, wake_reason, claimed_at)
             SELECT c.of, c.number, ",
            $unhex,
            ", $2, c.reason, $4 FROM ",
            claimed!()
        )
    };
}
macro_rules! tell {
    () => {
        concat!(
            "INSERT INTO event (instance, number, at, attempt, kind, message)
             SELECT c.of, (SELECT COALESCE(MAX(e.number), 0) + 1 FROM event AS e WHERE e.instance = c.of),
                    $4, c.number, $5, c.message FROM ",
            claimed!()
        )
    };
}
/// All claims of a look in one. The guard repeats what `Life::claim` relied on; the rows are held.
const CLAIM: Stmt = Stmt {
    sqlite: stmt!(concat!(close!(), " RETURNING key; ", note!("unhex(c.token)"), "; ", tell!())).sqlite,
    postgres: stmt!(concat!(
        "WITH i AS (",
        close!(),
        " RETURNING key), a AS (",
        note!("decode(c.token, 'hex')"),
        "), e AS (",
        tell!(),
        ") SELECT key FROM i"
    ))
    .postgres,
};

/// The right to launch one attempt, until it registers or the launch deadline passes.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The instance's internal key.
    pub instance: InstanceKey,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its public id.
    pub id: InstanceId,
    /// The attempt to launch.
    pub attempt: Attempt,
    /// What its process proves itself by. Only its hash is stored.
    pub token: AttemptToken,
    /// The entry point.
    pub workflow: Name,
    /// The image's name.
    pub image: Name,
    /// Its version.
    pub version: Name,
    /// Its bytes.
    pub digest: Digest,
    /// Environment variables that the start named.
    pub env: BTreeMap<String, String>,
    /// Why it is launched.
    pub reason: WakeReason,
    /// The launch deadline: from then on the wake is due again.
    pub until: Micros,
    /// When the instance's time limit ends it.
    pub deadline_at: Option<Micros>,
}

impl Claim {
    /// How services name this attempt to each other.
    pub fn attempt_ref(&self) -> AttemptRef {
        AttemptRef { instance: self.instance, attempt: self.attempt }
    }
}

/// What a look for due wakes found.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Each is launched once, by the caller.
    pub claims: Vec<Claim>,
    /// When to look again: zero if more was due than was taken, [`Duration::MAX`] if nothing is
    /// scheduled at all.
    pub next_due_in: Duration,
}

/// Pause before another look at wakes that are due but held by somebody's transaction.
const HELD: Duration = Duration::from_millis(20);

/// Who claims, and how long it may take to launch.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The node, by its lease.
    pub lease: NodeLease,
    /// From a claim to its registration; the wake is due again after it.
    pub launch_deadline: Duration,
}

struct ClaimDue {
    claimant: Claimant,
    limit: u32,
    /// How many of them may come from the newest end of what is due.
    newest: u32,
}

impl Request for ClaimDue {
    type Answer = Claims;

    fn timed(&self) -> Option<timings::Request> {
        Some(timings::Request::Claim)
    }

    /// A second claim takes other wakes.
    fn repeatable(&self) -> bool {
        false
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Claims> {
        let now = tx.now().await?;
        let next = self.hold(tx).await?;
        let (claims, next) = if next.quotas && next.any_due(now) {
            self.claim_by_tenant(tx, now).await?
        } else {
            let claims = self.claim_by_priority(tx, &next, now).await?;
            // What was not touched is as it was.
            let after = if next.any_due(now) { NextWakes::read(tx).await? } else { next };
            (claims, after.earliest())
        };
        let full = claims.len() >= self.limit as usize;
        let next_due_in = match next {
            None => Duration::MAX,
            Some(at) if at > now => at.since(now),
            Some(_) if full => Duration::ZERO,
            Some(_) => HELD,
        };
        Ok(Claims { claims, next_due_in })
    }
}

impl ClaimDue {
    /// Holds the node's lease, and looks at what is scheduled.
    async fn hold(&self, tx: &mut Tx<'_>) -> Result<NextWakes> {
        let rows = tx.fetch(&HOLD, args![&self.claimant.lease.node, self.claimant.lease.epoch]).await?;
        match rows.first().map(|row| row.int("held")).transpose()? {
            Some(1) => NextWakes::of(&rows),
            _ => Err(nodes::why_not_held(tx, &self.claimant.lease).await?),
        }
    }

    async fn claim_by_priority(&self, tx: &mut Tx<'_>, next: &NextWakes, now: Micros) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        let mut newest = self.newest;
        for (priority, wake_at) in &next.wakes {
            let room = self.room(&claims);
            if room == 0 || *wake_at > now {
                continue;
            }
            let oldest = room - newest.min(room);
            let rows = tx.fetch(&DUE, args![*priority, now, oldest]).await?;
            self.take(tx, &rows, &mut claims, now).await?;
            // There is more behind them.
            if rows.len() >= oldest as usize && newest > 0 {
                let rows = tx.fetch(&DUE_NEWEST, args![*priority, now, newest]).await?;
                self.take(tx, &rows, &mut claims, now).await?;
                newest -= newest.min(u32::try_from(rows.len()).unwrap_or(u32::MAX));
            }
        }
        self.claimant.write(tx, &claims, now).await?;
        Ok(claims)
    }

    /// The claims, and the earliest wake of a tenant that has room. One that is full has its turn
    /// when a slot of it frees, which is told, or when a launch of it misses its deadline, which
    /// the slow poll finds.
    async fn claim_by_tenant(&self, tx: &mut Tx<'_>, now: Micros) -> Result<(Vec<Claim>, Option<Micros>)> {
        let mut due = turns::heads(tx).await?;
        due.retain(|head| head.wake_at <= now);
        let mut rooms = Rooms::look(tx, &due, self.limit, now).await?;
        due.retain(|head| rooms.of(&head.tenant) > 0);
        let mut claims = Vec::new();
        for same in due.chunk_by(|a, b| a.priority == b.priority) {
            for (at, head) in same.iter().enumerate() {
                // Each gets its share of what the claim may take, and what those before it left.
                let share = u64::from(self.room(&claims)).div_ceil((same.len() - at) as u64);
                let most = share.min(rooms.of(&head.tenant));
                if most > 0 {
                    let before = claims.len();
                    let rows = turns::due(tx, head, now, most).await?;
                    self.take(tx, &rows, &mut claims, now).await?;
                    rooms.took(&head.tenant, (claims.len() - before) as u64);
                }
            }
        }
        self.claimant.write(tx, &claims, now).await?;
        let next = turns::heads(tx).await?;
        let next = next.iter().filter(|head| !rooms.is_full(&head.tenant)).map(|head| head.wake_at).min();
        Ok((claims, next))
    }

    /// How many more it may take.
    fn room(&self, claims: &[Claim]) -> u32 {
        self.limit.saturating_sub(u32::try_from(claims.len()).unwrap_or(u32::MAX))
    }

    /// Judges due rows that this transaction holds. A damaged one is put off at once.
    async fn take(&self, tx: &mut Tx<'_>, rows: &[Row], claims: &mut Vec<Claim>, now: Micros) -> Result<()> {
        for row in rows {
            let key = row.instance("key")?;
            // Both ends of a short range are the same.
            if claims.iter().any(|claim| claim.instance == key) {
                continue;
            }
            match damage::readable(self.judge(row, now))? {
                // None: it was taken or paused between index and lock.
                Some(claim) => claims.extend(claim),
                None => damage::put_off(tx, row, now).await?,
            }
        }
        Ok(())
    }

    /// Reads all that a claim needs, before anything is written.
    fn judge(&self, row: &Row, now: Micros) -> Result<Option<Claim>> {
        let locked = life::read(row)?;
        let Some((next, until)) = self.claimant.judge(&locked.life, now) else { return Ok(None) };
        let env = row.text("env")?;
        Ok(Some(Claim {
            instance: locked.key,
            attempt: next.attempt,
            token: fresh_token()?,
            workflow: row.name("workflow")?,
            image: row.name("image_name")?,
            version: row.name("image_version")?,
            digest: row.digest("image_digest")?,
            env: serde_json::from_str(&env).map_err(|error| row.unreadable("env", error.to_string()))?,
            reason: locked.life.wake_reason(now),
            until,
            deadline_at: next.deadline_at,
            tenant: locked.tenant,
            id: locked.id,
        }))
    }
}

impl Claimant {
    /// The life of a claimed instance, and its launch deadline; none: it is not to be launched now.
    fn judge(&self, life: &Life, now: Micros) -> Option<(Life, Micros)> {
        let until = now + self.launch_deadline;
        Some((life.claim(&self.lease.node, until, now)?, until))
    }

    /// Claims an instance that this transaction has just made, and says so in it. None: it is not due, or the node
    /// does not hold its lease; then it waits as any other.
    pub(super) async fn take(
        &self,
        tx: &mut Tx<'_>,
        made: &mut Instance,
        env: &BTreeMap<String, String>,
        now: Micros,
    ) -> Result<Option<Claim>> {
        let Some((next, until)) = self.judge(&made.life, now) else { return Ok(None) };
        if !nodes::is_held(tx, &self.lease).await? {
            return Ok(None);
        }
        let claim = Claim {
            instance: made.key,
            tenant: made.tenant.clone(),
            id: made.id.clone(),
            attempt: next.attempt,
            token: fresh_token()?,
            workflow: made.workflow.clone(),
            image: made.image.clone(),
            version: made.version.clone(),
            digest: made.digest,
            env: env.clone(),
            reason: made.life.wake_reason(now),
            until,
            deadline_at: next.deadline_at,
        };
        self.write(tx, slice::from_ref(&claim), now).await?;
        made.life = next;
        made.revision += 1;
        Ok(Some(claim))
    }

    /// Writes the claims, and that they were made.
    async fn write(&self, tx: &mut Tx<'_>, claims: &[Claim], now: Micros) -> Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        let node = &self.lease.node;
        let rows: Vec<_> = claims.iter().map(|claim| self.columns(claim)).collect();
        let rows = serde_json::to_string(&rows).expect("numbers and texts are JSON");
        let until = now + self.launch_deadline;
        let args = args![&rows, node, until, now, EventKind::Claimed.as_str()];
        let written = tx.write_fetch(&CLAIM, args).await?.len();
        if written != claims.len() {
            return Err(Error::Broken { table: "instance".to_owned(), rows: written as u64 });
        }
        for claim in claims {
            tx.notify(Notice::Instance(claim.instance));
        }
        Ok(())
    }

    /// In the order of `claimed!`.
    fn columns<'a>(&self, claim: &'a Claim) -> (i64, u32, String, &'a str, String) {
        let reason = claim.reason.as_str();
        let message = format!("node {}, because of {reason}", self.lease.node);
        (claim.instance.0, claim.attempt.0, hex(&claim.token.hash().0), reason, message)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What is scheduled, whosever it is.
struct NextWakes {
    /// The earliest wake of each priority that has one, highest first.
    wakes: Vec<(u8, Micros)>,
    /// Some tenant has a quota of running instances.
    quotas: bool,
}

impl NextWakes {
    async fn read(tx: &mut Tx<'_>) -> Result<Self> {
        Self::of(&tx.fetch(&NEXT, args![]).await?)
    }

    fn of(rows: &[Row]) -> Result<Self> {
        let mut next = Self { wakes: Vec::new(), quotas: false };
        for row in rows {
            next.quotas = row.flag("quotas")?;
            if let Some(wake_at) = row.opt_at("wake_at")? {
                let priority = u8::try_from(row.small("priority")?);
                let priority = priority.map_err(|error| row.unreadable("priority", error.to_string()))?;
                next.wakes.push((priority, wake_at));
            }
        }
        Ok(next)
    }

    fn earliest(&self) -> Option<Micros> {
        self.wakes.iter().map(|(_, wake_at)| *wake_at).min()
    }

    fn any_due(&self, now: Micros) -> bool {
        self.earliest().is_some_and(|wake_at| wake_at <= now)
    }
}

/// 32 bytes from the kernel's generator.
fn fresh_token() -> Result<AttemptToken> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(super::no_random_bytes)?;
    Ok(AttemptToken(bytes))
}

impl Store {
    /// Claims at most `limit` due wakes for the holder of `lease`; each starts one attempt. The
    /// wake of each is due again after `launch_deadline`. If the answer is lost, the claims
    /// that it carried heal by that deadline, or at once by [`Self::settle`].
    pub async fn claim_due(
        &self,
        lease: &NodeLease,
        limit: u32,
        launch_deadline: Duration,
    ) -> Result<Claims> {
        self.claim_from_both_ends(lease, limit, 0, launch_deadline).await
    }

    /// As [`Self::claim_due`]; where more is due than is taken, `newest` of them are those that became due last,
    /// so that what is started behind a long backlog has its turn before it. Tenants with a quota share what
    /// a claim takes in another way.
    pub async fn claim_from_both_ends(
        &self,
        lease: &NodeLease,
        limit: u32,
        newest: u32,
        launch_deadline: Duration,
    ) -> Result<Claims> {
        let claimant = Claimant { lease: lease.clone(), launch_deadline };
        self.write_node(ClaimDue { claimant, limit, newest: newest.min(limit) }).await
    }
}
