//! One printed seed drives SQLite, PostgreSQL and the domain over a map; all answer alike.
//!
//! The writers of a run are mostly right and sometimes an older attempt, an older session or
//! one that never was. After each step the answers and every row are compared; at the end the
//! timelines. `DORMOUSE_TEST_SEED` repeats a run.

mod model;

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::{Attempt, InstanceKey, Session as Number},
        instance::Writer,
        outcome::{Ending, Failure},
        payload::Payload,
        wake::Waits,
    },
    limits::Limits,
    store::{AttemptRef, Error, NodeLease, Saved, Session, StartRequest, Suspension},
};
use dormouse_proto::code::Coded as _;
use model::Model;

use crate::{
    contract::check,
    db::{self, TestDb},
};

/// Instances of a run; the number is also its priority, and the last has a time limit.
pub(crate) const INSTANCES: usize = 4;
/// The last instance's time limit.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(700);
const STEPS: usize = 400;

/// Who writes: instance, attempt, session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By {
    pub(crate) i: usize,
    pub(crate) writer: Writer,
}

/// What a step does. Numbers stand for names, so that a failure reads well.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Start(usize),
    Claim { node: usize, limit: u32 },
    Register { i: usize, attempt: Attempt },
    Save { by: By, name: u8 },
    Take { by: By, name: u8, signal: u8 },
    Feel { by: By, name: u8 },
    Suspend { by: By, waits: Waits },
    End { by: By, completed: bool },
    Event { by: By },
    Exited { i: usize, attempt: Attempt },
    GiveBack { i: usize, attempt: Attempt },
    Settle { node: usize },
    Lease { node: usize },
    Lose { node: usize },
    TakeOver,
    Signal { i: usize, signal: u8, dedup: u8 },
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    Stop(usize),
    Expire,
    Overdue { node: usize },
    Advance(Duration),
}

pub(crate) fn limits() -> Limits {
    Limits { crashes: 2, checkpoints: 6, unread_signals: 4, ..Limits::default() }
}

pub(crate) fn id_of(i: usize) -> String {
    format!("i{i}")
}

/// A name like "s3"; one letter for what it names.
pub(crate) fn text(letter: char, number: u8) -> String {
    format!("{letter}{number}")
}

/// An answer as text, the same for store and model: what was answered, or the code.
pub(crate) fn show<T>(answer: Result<T, Error>, ok: impl FnOnce(T) -> String) -> String {
    match answer {
        Ok(answer) => ok(answer),
        Err(error) => error.code().to_string(),
    }
}

/// A database under the run, with what a caller remembers.
struct Driver {
    db: TestDb,
    keys: [Option<InstanceKey>; INSTANCES],
    leases: Vec<NodeLease>,
}

impl Driver {
    async fn new(db: TestDb) -> Self {
        let leases = vec![db.node("node-0").await, db.node("node-1").await];
        Self { db, keys: [None; INSTANCES], leases }
    }

    fn session(&self, by: By) -> Option<Session> {
        let (id, tenant) = (db::id(&id_of(by.i)), db::tenant());
        Some(Session { instance: self.keys[by.i]?, tenant, id, writer: by.writer })
    }

    fn of(&self, i: usize, attempt: Attempt) -> Option<AttemptRef> {
        Some(AttemptRef { instance: self.keys[i]?, attempt })
    }

    /// An attempt in words that do not depend on the database's keys.
    fn name(&self, of: AttemptRef) -> String {
        let i = self.keys.iter().position(|key| *key == Some(of.instance)).expect("one of ours");
        format!("{i}.{}", of.attempt)
    }

    fn names(&self, all: &[AttemptRef]) -> String {
        let mut names: Vec<String> = all.iter().map(|of| self.name(*of)).collect();
        names.sort();
        names.join(" ")
    }

    async fn step(&mut self, op: &Op) -> String {
        let answer = match op {
            Op::Save { .. } | Op::Take { .. } | Op::Feel { .. } => self.save(op).await,
            Op::Suspend { .. } | Op::End { .. } | Op::Event { .. } | Op::Register { .. } => {
                self.process(op).await
            }
            Op::Start(_) | Op::Signal { .. } | Op::Cancel(_) | Op::Pause(_) | Op::Resume(_) | Op::Stop(_) => {
                self.control(op).await
            }
            _ => self.node(op).await,
        };
        answer.unwrap_or_else(|| "not started".to_owned())
    }

    async fn save(&self, op: &Op) -> Option<String> {
        let (by, checkpoint) = match op {
            Op::Save { by, name } => (by, db::step(&text('s', *name), &text('v', *name))),
            Op::Take { by, name, signal } => (by, db::take(&text('s', *name), &text('g', *signal))),
            Op::Feel { by, name } => (by, db::feel(&text('s', *name))),
            other => unreachable!("{other:?} saves nothing"),
        };
        let answer = self.db.store.save(&self.session(*by)?, checkpoint).await;
        Some(show(answer, |(saved, now)| match saved {
            Saved::Stored(stored) => format!("stored {:?} by {} at {now}", stored.value, stored.attempt),
            Saved::Existed(stored) => format!("existed {:?} by {} at {now}", stored.value, stored.attempt),
            Saved::Nothing => format!("nothing at {now}"),
        }))
    }

    async fn process(&self, op: &Op) -> Option<String> {
        let store = &self.db.store;
        Some(match op {
            Op::Register { i, attempt } => {
                let answer = store.register_attempt(self.of(*i, *attempt)?).await;
                show(answer, |r| {
                    let unread: Vec<u64> = r.inbox.unread.iter().map(|signal| signal.number).collect();
                    let saved = r.page.checkpoints.len();
                    format!("{:?} {saved} saved, unread {unread:?}, {:?}", r.session.writer, r.wake_reason)
                })
            }
            Op::Suspend { by, waits } => {
                show(store.suspend(&self.session(*by)?, waits.clone()).await, |(answer, _)| match answer {
                    Suspension::Suspended => "suspended".to_owned(),
                    Suspension::Continue(_) => "continue".to_owned(),
                })
            }
            Op::End { by, completed } => {
                let ending = if *completed { db::completed() } else { failed() };
                show(store.end(&self.session(*by)?, ending).await, |outcome| outcome.to_string())
            }
            Op::Event { by } => {
                let answer = store.event(&self.session(*by)?, db::name("e"), Payload::json("1")).await;
                show(answer, |()| "told".to_owned())
            }
            other => unreachable!("{other:?} is no process's"),
        })
    }

    async fn control(&mut self, op: &Op) -> Option<String> {
        let (store, tenant) = (&self.db.store, db::tenant());
        let done = |()| "done".to_owned();
        Some(match op {
            Op::Start(i) => {
                let limit = (*i == INSTANCES - 1).then_some(TIME_LIMIT);
                let priority = u8::try_from(*i).expect("few");
                let start = StartRequest { limit, priority, ..db::request(&id_of(*i)) };
                let answer = store.start(start).await;
                if let Ok(started) = &answer {
                    self.keys[*i] = Some(started.instance);
                }
                show(answer, |started| format!("existed {}", started.existed))
            }
            Op::Signal { i, signal, dedup } => {
                let dedup = if *dedup == 0 { String::new() } else { text('d', *dedup) };
                let signal = db::new_signal(&text('g', *signal), &dedup);
                let answer = store.signal(&tenant, &db::id(&id_of(*i)), signal).await;
                show(answer, |sent| format!("{} existed {}", sent.number, sent.existed))
            }
            Op::Cancel(i) => show(store.cancel(&tenant, &db::id(&id_of(*i))).await, done),
            Op::Pause(i) => show(store.pause(&tenant, &db::id(&id_of(*i))).await, done),
            Op::Resume(i) => show(store.resume(&tenant, &db::id(&id_of(*i))).await, done),
            Op::Stop(i) => show(store.stop(&tenant, &db::id(&id_of(*i))).await, done),
            other => unreachable!("{other:?} is no controller's"),
        })
    }

    async fn node(&mut self, op: &Op) -> Option<String> {
        let store = &self.db.store;
        Some(match op {
            Op::Claim { node, limit } => {
                show(store.claim_due(&self.leases[*node], *limit, db::LAUNCH).await, |claims| {
                    let claimed = claims.claims.iter();
                    let claimed: Vec<String> = claimed
                        .map(|claim| format!("{}.{} {:?}", claim.id, claim.attempt, claim.reason))
                        .collect();
                    format!("{claimed:?} next {:?}", claims.next_due_in)
                })
            }
            Op::Exited { i, attempt } => {
                let answer = store.exited(self.of(*i, *attempt)?, db::exit()).await;
                show(answer, |after| format!("{after:?}"))
            }
            Op::GiveBack { i, attempt } => {
                let (of, retry_in) = (self.of(*i, *attempt)?, Duration::from_secs(3));
                show(store.give_back(of, retry_in, "no image".to_owned()).await, |after| format!("{after:?}"))
            }
            Op::Settle { node } => {
                show(store.settle(&self.leases[*node], &[]).await, |returned| self.names(&returned))
            }
            Op::Lease { node } => {
                self.leases[*node] = self.db.node(&format!("node-{node}")).await;
                "leased".to_owned()
            }
            Op::Lose { node } => {
                show(store.lose_lease(&self.leases[*node], 0).await, |lost| format!("lost {lost}"))
            }
            Op::TakeOver => show(store.take_over().await, |returned| self.names(&returned)),
            Op::Expire => show(store.expire().await, |expired| {
                format!("{} next {:?}", self.names(&expired.ended), expired.next_in)
            }),
            Op::Overdue { node } => {
                show(store.cancel_overdue(&self.leases[*node]).await, |expired| self.names(&expired.ended))
            }
            Op::Advance(by) => {
                self.db.advance(*by);
                "later".to_owned()
            }
            other => unreachable!("{other:?} is no node's"),
        })
    }

    /// What an instance is, in words.
    async fn row(&self, i: usize) -> String {
        match self.db.store.instance(&db::tenant(), &db::id(&id_of(i))).await {
            Ok(instance) => format!("{:?}", instance.life),
            Err(error) => error.code().to_string(),
        }
    }

    async fn timeline(&self, i: usize) -> Vec<&'static str> {
        if self.keys[i].is_none() {
            return Vec::new();
        }
        self.db.timeline(&db::id(&id_of(i))).await
    }
}

fn failed() -> Ending {
    Ending::Failed(Failure {
        code: "F".to_owned(),
        message: "m".to_owned(),
        retryable: false,
        details: vec![],
    })
}

/// Runs a seed on a database beside the model.
async fn run(db: TestDb, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut driver, mut model) = (Driver::new(db).await, Model::new());
    let mut trace = Vec::new();
    for step in 0..STEPS {
        let op = model.choose(&mut random);
        let (stored, expected) = (driver.step(&op).await, model.step(&op));
        trace.push(format!("{step}: {op:?} -> {stored}"));
        let last = || trace[trace.len().saturating_sub(15)..].join("\n");
        assert_eq!(stored, expected, "seed {seed}, the answer to step\n{}", last());
        for i in 0..INSTANCES {
            assert_eq!(driver.row(i).await, model.row(i), "seed {seed}, row {i} after step\n{}", last());
        }
    }
    for i in 0..INSTANCES {
        assert_eq!(driver.timeline(i).await, model.timeline(i), "seed {seed}, timeline of {i}");
    }
    // Time leaps in a run, so nothing has lasted too long.
    let violations = check::violations(&driver.db, Duration::from_hours(24 * 365 * 100)).await;
    assert_eq!(violations, [], "seed {seed}");
}

/// The seed that was asked for, or others each time.
#[expect(clippy::disallowed_methods, reason = "repeats a run of this test")]
pub(crate) fn seeds() -> Vec<u64> {
    let asked = std::env::var("DORMOUSE_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = asked
        .map_or_else(|| (0..2).map(|_| getrandom::u64().expect("random bytes")).collect(), |seed| vec![seed]);
    println!("seeds {seeds:?}; repeat one with DORMOUSE_TEST_SEED");
    seeds
}

#[tokio::test]
async fn sqlite_answers_as_the_model() {
    for seed in seeds() {
        run(db::sqlite_with(limits()).await, seed).await;
    }
}

#[tokio::test]
async fn postgres_answers_as_the_model() {
    for seed in seeds() {
        run(db::postgres_with(limits()).await, seed).await;
    }
}

/// A writer's number, for the model's choice of zombies.
pub(crate) fn writer(attempt: u32, session: u32) -> Writer {
    Writer { attempt: Attempt(attempt), session: Number(session) }
}
