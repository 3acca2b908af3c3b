//! The domain over a map: what the store must answer, without any database.

use std::{collections::HashMap, time::Duration};

use dormouse_core::{
    domain::{
        checkpoint::Value,
        id::{Attempt, Name, NodeId},
        instance::{Cancel, CrashPolicy, End, Exit, Life, State, Suspend},
        outcome::Outcome,
        payload::Payload,
        time::Micros,
        wake::WakeReason,
    },
    store::{AfterExit, Error},
};

use super::{By, INSTANCES, Op, TIME_LIMIT, id_of, limits, show, text, writer};
use crate::db::{self, name};

struct Checkpoint {
    name: u8,
    value: Value,
    attempt: Attempt,
}

struct Signal {
    name: u8,
    dedup: u8,
    taken: bool,
}

struct Instance {
    /// The order of starts.
    key: usize,
    life: Life,
    checkpoints: Vec<Checkpoint>,
    signals: Vec<Signal>,
    timeline: Vec<&'static str>,
    reasons: HashMap<Attempt, WakeReason>,
}

impl Instance {
    fn newest_checkpoint(&self) -> Attempt {
        self.checkpoints.last().map_or(Attempt::NONE, |checkpoint| checkpoint.attempt)
    }

    fn is_unread(&self, signal: &Name) -> bool {
        self.signals.iter().any(|s| !s.taken && text('g', s.name) == signal.as_str())
    }

    /// Takes over what the domain answered; an ending tells itself.
    fn write(&mut self, next: Life, kind: Option<&'static str>) {
        let ended = match (self.life.outcome(), next.outcome()) {
            (None, Some(Outcome::Completed)) => Some("completed"),
            (None, Some(Outcome::Failed)) => Some("failed"),
            (None, Some(Outcome::Cancelled)) => Some("cancelled"),
            _ => None,
        };
        self.timeline.extend(kind);
        self.timeline.extend(ended);
        self.life = next;
    }
}

pub(super) struct Model {
    now: Micros,
    instances: [Option<Instance>; INSTANCES],
    started: usize,
    lost: [bool; 2],
}

type Answer = Result<String, Error>;

impl Model {
    pub(super) fn new() -> Self {
        Self { now: db::START, instances: [const { None }; INSTANCES], started: 0, lost: [false; 2] }
    }

    pub(super) fn row(&self, i: usize) -> String {
        self.instances[i].as_ref().map_or("NOT_FOUND".to_owned(), |instance| format!("{:?}", instance.life))
    }

    pub(super) fn timeline(&self, i: usize) -> Vec<&'static str> {
        self.instances[i].as_ref().map_or(Vec::new(), |instance| instance.timeline.clone())
    }

    /// A step that is worth trying now: writers are mostly the ones that may.
    pub(super) fn choose(&self, random: &mut fastrand::Rng) -> Op {
        let (i, node) = (random.usize(..INSTANCES), random.usize(..2));
        let by = self.writer(i, random);
        let attempt = by.writer.attempt;
        let (mark, signal) = (random.u8(..8), random.u8(..2));
        match random.u8(..46) {
            0..4 => Op::Start(i),
            4..11 => Op::Claim { node, limit: random.u32(1..3) },
            11..17 => Op::Register { i, attempt },
            17..21 => Op::Save { by, name: mark },
            21..24 => Op::Take { by, name: mark, signal },
            24 => Op::Feel { by, name: mark },
            25..28 => Op::Suspend { by, waits: self.waits(random) },
            28 => Op::End { by, completed: random.bool() },
            29 => Op::Event { by },
            30..32 => Op::Exited { i, attempt },
            32 => Op::GiveBack { i, attempt },
            33 => Op::Settle { node },
            34 => Op::Lease { node },
            35 => Op::Lose { node },
            36 => Op::TakeOver,
            37..40 => Op::Signal { i, signal, dedup: random.u8(..4) },
            40 => Op::Pause(i),
            41 => Op::Resume(i),
            42 => match random.u8(..4) {
                0 => Op::Stop(i),
                1 => Op::Overdue { node },
                2 => Op::Expire,
                _ => Op::Cancel(i),
            },
            _ => Op::Advance(Duration::from_secs(random.u64(0..40))),
        }
    }

    fn writer(&self, i: usize, random: &mut fastrand::Rng) -> By {
        let (attempt, session) =
            self.instances[i].as_ref().map_or((0, 0), |at| (at.life.attempt.0, at.life.session.0));
        let writer = match random.u8(..10) {
            0 => writer(attempt.saturating_sub(1), session),
            1 => writer(attempt, session.saturating_sub(1)),
            2 => writer(random.u32(..4), random.u32(..3)),
            _ => writer(attempt, session),
        };
        By { i, writer }
    }

    fn waits(&self, random: &mut fastrand::Rng) -> dormouse_core::domain::wake::Waits {
        // Rounded, so that the same waits are asked for again.
        let due = Micros((self.now.0 / 60_000_000 + random.i64(0..3)) * 60_000_000);
        match random.u8(..4) {
            0 => db::sleep_until(due),
            1 => db::for_resume(),
            2 => db::for_signal("g0", None),
            _ => db::for_signal("g1", Some(due)),
        }
    }

    pub(super) fn step(&mut self, op: &Op) -> String {
        let answer = match op {
            Op::Start(i) => Ok(self.start(*i)),
            Op::Claim { node, limit } => self.claim(*node, *limit),
            Op::Settle { node } => self.held(*node).map(|()| self.give_back_rows(&[*node])),
            Op::TakeOver => {
                let lost: Vec<usize> = (0..2).filter(|node| self.lost[*node]).collect();
                Ok(self.give_back_rows(&lost))
            }
            Op::Lease { node } => {
                self.lost[*node] = false;
                Ok("leased".to_owned())
            }
            Op::Lose { node } => Ok(format!("lost {}", !std::mem::replace(&mut self.lost[*node], true))),
            Op::Expire => Ok(self.expire()),
            Op::Overdue { node } => self.held(*node).map(|()| self.overdue(*node)),
            Op::Advance(by) => {
                self.now = self.now + *by;
                Ok("later".to_owned())
            }
            Op::Signal { i, .. } | Op::Cancel(i) | Op::Pause(i) | Op::Resume(i) | Op::Stop(i)
                if self.instances[*i].is_none() =>
            {
                Err(Error::NoInstance { id: id_of(*i) })
            }
            of_one => self.one(of_one),
        };
        show(answer, |text| text)
    }

    /// A step of one instance.
    fn one(&mut self, op: &Op) -> Answer {
        let now = self.now;
        let i = match op {
            Op::Register { i, .. } | Op::Exited { i, .. } | Op::GiveBack { i, .. } | Op::Signal { i, .. } => {
                *i
            }
            Op::Cancel(i) | Op::Pause(i) | Op::Resume(i) | Op::Stop(i) => *i,
            Op::Save { by, .. }
            | Op::Take { by, .. }
            | Op::Feel { by, .. }
            | Op::Suspend { by, .. }
            | Op::End { by, .. }
            | Op::Event { by } => by.i,
            other => unreachable!("{other:?} is of no single instance"),
        };
        let Some(at) = &mut self.instances[i] else { return Ok("not started".to_owned()) };
        match op {
            Op::Register { attempt, .. } => at.register(*attempt, now),
            Op::Save { by, name } => at.save(*by, *name, now),
            Op::Take { by, name, signal } => at.take(*by, *name, *signal, now),
            Op::Feel { by, name } => at.feel(*by, *name, now),
            Op::Suspend { by, waits } => {
                let unread = |signal: &Name| at.is_unread(signal);
                match at.life.suspend(by.writer, waits.clone(), unread, now)? {
                    Suspend::Again => Ok("suspended".to_owned()),
                    Suspend::Continue => Ok("continue".to_owned()),
                    Suspend::Suspended(next) => {
                        at.write(next, Some("suspended"));
                        Ok("suspended".to_owned())
                    }
                }
            }
            Op::End { by, completed } => {
                let asked = if *completed { Outcome::Completed } else { Outcome::Failed };
                if let End::Ended(next) = at.life.end(by.writer, asked, now)? {
                    at.write(next, None);
                }
                Ok(at.life.outcome().expect("it has ended").to_string())
            }
            Op::Event { by } => {
                at.life.admit(by.writer)?;
                at.timeline.push("custom");
                Ok("told".to_owned())
            }
            Op::Exited { attempt, .. } => {
                let exit = Exit::Crashed { newest_checkpoint: at.newest_checkpoint() };
                Ok(at.over(*attempt, exit, "crashed", now))
            }
            Op::GiveBack { attempt, .. } => {
                let exit = Exit::GivenBack { retry_in: Duration::from_secs(3) };
                Ok(at.over(*attempt, exit, "launch_failed", now))
            }
            Op::Signal { signal, dedup, .. } => at.signal(*signal, *dedup, now),
            Op::Cancel(_) => {
                let next = at.life.cancel(now)?;
                let told =
                    (at.life.cancel == Cancel::No && next.outcome().is_none()).then_some("cancel_asked");
                at.write(next, told);
                Ok("done".to_owned())
            }
            Op::Pause(_) => {
                let next = at.life.pause()?;
                at.write(next.clone(), (next != at.life).then_some("paused"));
                Ok("done".to_owned())
            }
            Op::Resume(_) => {
                let next = at.life.resume()?;
                at.write(next.clone(), (next != at.life).then_some("resumed"));
                Ok("done".to_owned())
            }
            Op::Stop(_) => {
                at.write(at.life.stop(now)?, None);
                Ok("done".to_owned())
            }
            other => unreachable!("{other:?} is of no single instance"),
        }
    }

    fn start(&mut self, i: usize) -> String {
        let existed = self.instances[i].is_some();
        if !existed {
            let deadline = (i == INSTANCES - 1).then_some(self.now + TIME_LIMIT);
            self.instances[i] = Some(Instance {
                key: self.started,
                life: Life::start(self.now, deadline),
                checkpoints: Vec::new(),
                signals: Vec::new(),
                timeline: vec!["started"],
                reasons: HashMap::new(),
            });
            self.started += 1;
        }
        format!("existed {existed}")
    }

    fn held(&self, node: usize) -> Result<(), Error> {
        if self.lost[node] { Err(Error::LeaseLost { node: node_id(node) }) } else { Ok(()) }
    }

    fn claim(&mut self, node: usize, limit: u32) -> Answer {
        self.held(node)?;
        let (now, node) = (self.now, node_id(node));
        let mut due: Vec<(usize, &mut Instance)> =
            self.instances.iter_mut().enumerate().filter_map(|(i, at)| Some((i, at.as_mut()?))).collect();
        due.retain(|(_, at)| at.life.is_due(now));
        due.sort_by_key(|(i, at)| (std::cmp::Reverse(*i), at.life.wake_at(), at.key));
        let mut claimed = Vec::new();
        for (i, at) in due.into_iter().take(limit as usize) {
            let reason = at.life.wake_reason(now);
            let next = at.life.claim(&node, now + db::LAUNCH, now).expect("it is due");
            claimed.push(format!("{}.{} {reason:?}", id_of(i), next.attempt));
            at.reasons.insert(next.attempt, reason);
            at.write(next, Some("claimed"));
        }
        let held = self.instances.iter().flatten().filter(|at| !at.life.paused);
        let next = match held.filter_map(|at| at.life.wake_at()).min() {
            None => Duration::MAX,
            Some(at) => at.since(now), // zero if more is due than was taken
        };
        Ok(format!("{claimed:?} next {next:?}"))
    }

    fn give_back_rows(&mut self, nodes: &[usize]) -> String {
        let mut names = Vec::new();
        for (i, at) in self.instances.iter_mut().enumerate() {
            let Some(at) = at else { continue };
            for node in nodes {
                let newest = at.newest_checkpoint();
                if let Some(next) = at.life.settle(&node_id(*node), newest, self.now) {
                    names.push(format!("{i}.{}", next.attempt));
                    at.write(next, Some("returned"));
                }
            }
        }
        names.join(" ")
    }

    fn expire(&mut self) -> String {
        let mut names = Vec::new();
        for (i, at) in self.instances.iter_mut().enumerate() {
            let Some(at) = at else { continue };
            if let Some(next) = at.life.expire(self.now) {
                names.push(format!("{i}.{}", next.attempt));
                at.write(next, None);
            }
        }
        let open = self.instances.iter().flatten().filter(|at| at.life.outcome().is_none());
        let next = open.filter_map(|at| at.life.deadline_at).min();
        format!("{} next {:?}", names.join(" "), next.map_or(Duration::MAX, |at| at.since(self.now)))
    }

    fn overdue(&mut self, node: usize) -> String {
        let mut names = Vec::new();
        for (i, at) in self.instances.iter_mut().enumerate() {
            let Some(at) = at else { continue };
            let of = at.life.attempt;
            let runs_here = matches!(&at.life.state, State::Running { node: n } if *n == node_id(node));
            let next = at.life.cancel_overdue(of, limits().cancel_grace, self.now).filter(|_| runs_here);
            if let Some(next) = next {
                names.push(format!("{i}.{of}"));
                at.write(next, None);
            }
        }
        names.join(" ")
    }
}

impl Instance {
    fn register(&mut self, attempt: Attempt, now: Micros) -> Answer {
        if !self.reasons.contains_key(&attempt) {
            // It was never claimed: nobody has a token of it.
            return Ok("UNAUTHENTICATED".to_owned());
        }
        let next = self.life.register(attempt, now)?;
        let told = (next.session.0 == 1).then_some("registered");
        self.write(next, told);
        let unread: Vec<usize> =
            self.signals.iter().enumerate().filter(|(_, s)| !s.taken).map(|(n, _)| n + 1).collect();
        let by = writer(self.life.attempt.0, self.life.session.0);
        let (saved, reason) = (self.checkpoints.len(), self.reasons[&attempt]);
        Ok(format!("{by:?} {saved} saved, unread {unread:?}, {reason:?}"))
    }

    fn found(&self, name: u8, now: Micros) -> Option<String> {
        let found = self.checkpoints.iter().find(|checkpoint| checkpoint.name == name)?;
        Some(format!("existed {:?} by {} at {now}", found.value, found.attempt))
    }

    fn store(&mut self, name: u8, value: Value, attempt: Attempt, now: Micros) -> Answer {
        if self.checkpoints.len() as u64 >= limits().checkpoints {
            return Err(Error::TooMany { what: "checkpoints", max: limits().checkpoints, remedy: "" });
        }
        let text = format!("stored {value:?} by {attempt} at {now}");
        self.checkpoints.push(Checkpoint { name, value, attempt });
        Ok(text)
    }

    fn save(&mut self, by: By, mark: u8, now: Micros) -> Answer {
        self.life.admit(by.writer)?;
        if let Some(found) = self.found(mark, now) {
            return Ok(found);
        }
        let value = Value::Payload(Payload::json(text('v', mark)));
        self.store(mark, value, by.writer.attempt, now)
    }

    fn take(&mut self, by: By, mark: u8, signal: u8, now: Micros) -> Answer {
        self.life.admit(by.writer)?;
        if let Some(found) = self.found(mark, now) {
            return Ok(found);
        }
        let Some(at) = self.signals.iter().position(|s| !s.taken && s.name == signal) else {
            return Ok(format!("nothing at {now}"));
        };
        let stored = self.store(mark, Value::Payload(Payload::json("\"hello\"")), by.writer.attempt, now)?;
        self.signals[at].taken = true;
        Ok(stored)
    }

    fn feel(&mut self, by: By, mark: u8, now: Micros) -> Answer {
        let next = self.life.feel_cancel(by.writer)?;
        if let Some(found) = self.found(mark, now) {
            return Ok(found);
        }
        if next.cancel == Cancel::No {
            return Ok(format!("nothing at {now}"));
        }
        let stored = self.store(mark, Value::Cancelled, by.writer.attempt, now)?;
        let told = (next != self.life).then_some("cancel_felt");
        self.write(next, told);
        Ok(stored)
    }

    fn signal(&mut self, signal: u8, dedup: u8, now: Micros) -> Answer {
        let same = self.signals.iter().position(|s| dedup != 0 && s.dedup == dedup);
        if let Some(at) = same {
            return Ok(format!("{} existed true", at + 1));
        }
        let next = self.life.signal(&name(&text('g', signal)), now)?;
        if self.signals.iter().filter(|s| !s.taken).count() as u64 >= limits().unread_signals {
            return Err(Error::TooMany { what: "signals", max: limits().unread_signals, remedy: "" });
        }
        self.signals.push(Signal { name: signal, dedup, taken: false });
        self.write(next, Some("signal"));
        Ok(format!("{} existed false", self.signals.len()))
    }

    fn over(&mut self, of: Attempt, exit: Exit, kind: &'static str, now: Micros) -> String {
        let limits = limits();
        let (backoff, backoff_max) = (limits.crash_backoff, limits.crash_backoff_max);
        let policy = CrashPolicy { limit: limits.crashes, backoff, backoff_max, jitter: 0.0 };
        let after = match self.life.exited(of, exit, &policy, now) {
            None => AfterExit::Recorded,
            Some(next) => {
                self.write(next, Some(kind));
                match (self.life.outcome(), self.life.wake_at()) {
                    (Some(outcome), _) => AfterExit::Ended(outcome),
                    (None, wake_at) => AfterExit::Again { wake_at: wake_at.expect("a retry") },
                }
            }
        };
        format!("{after:?}")
    }
}

fn node_id(node: usize) -> NodeId {
    NodeId::parse(&format!("node-{node}")).expect("a node")
}
