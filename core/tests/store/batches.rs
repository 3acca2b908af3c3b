//! Batches: what many ask at once is answered and stored as if they had asked one after the other.
//!
//! The differential test drives two databases by one seed: one is asked a batch at once, so that its
//! saves become one statement, the other request by request, by the scalar statements. Answers, rows and
//! timelines are compared. `DORMOUSE_TEST_SEED` repeats a run.

use std::time::Duration;

use dormouse_core::{
    domain::{
        checkpoint::{Kind, NewCheckpoint, NewValue, Operation, StoredCheckpoint},
        id::Key,
        payload::{Encoding, Payload},
    },
    limits::Limits,
    store::{Saved, Session},
};
use futures_util::future::join_all;

use crate::{
    contract::check,
    db::{self, TestDb},
    random,
};

const INSTANCES: usize = 3;
const BATCHES: usize = 40;

fn limits() -> Limits {
    Limits { checkpoints: 25, payload_bytes: 3000, ..Limits::default() }
}

/// One request of a batch, by instance.
#[derive(Clone, Debug)]
enum Op {
    Save(usize, Zombie, NewCheckpoint),
    Event(usize, Zombie),
}

/// Who says so.
#[derive(Clone, Copy, Debug)]
enum Zombie {
    No,
    OldSession,
    OldAttempt,
}

fn choose(random: &mut fastrand::Rng) -> Op {
    let i = random.usize(0..INSTANCES);
    let who = match random.u8(0..20) {
        0 => Zombie::OldSession,
        1 => Zombie::OldAttempt,
        _ => Zombie::No,
    };
    match random.u8(0..12) {
        0 => Op::Event(i, who),
        _ => Op::Save(i, who, save(random)),
    }
}

fn save(random: &mut fastrand::Rng) -> NewCheckpoint {
    let key = random.choice(["", "k", "ключ \"\\\u{1}"]).expect("some");
    let value = match random.u8(0..10) {
        0 => NewValue::TakeSignal(db::name("go")),
        1 => NewValue::FeelCancel,
        2 => NewValue::DueIn(Duration::from_micros(random.u64(..))),
        3 => NewValue::DueAt(dormouse_core::domain::time::Micros(random.i64(0..i64::MAX))),
        _ => {
            // One in ten is too large.
            let bytes = random.choice([0, 1, 7, 100, 1024, 3000, 3001]).expect("some");
            let data: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
            let encoding = random.choice([Encoding::Raw, Encoding::Json]).expect("some");
            let type_name = random.choice(["", "a::Type<\"x\">"]).expect("some").to_owned();
            NewValue::Payload(Payload { data: data.into(), encoding, type_name })
        }
    };
    NewCheckpoint {
        operation: Operation {
            name: db::name(&format!("s{}", random.u8(0..12))),
            key: Key::parse(key).expect("a key"),
            slot: random.u32(0..2),
        },
        kind: match &value {
            NewValue::Payload(_) => random.choice([Kind::Step, Kind::Checkpoint]).expect("some"),
            NewValue::DueIn(_) | NewValue::DueAt(_) => Kind::Due,
            NewValue::TakeSignal(_) => Kind::Signal,
            NewValue::FeelCancel => Kind::Cancelled,
        },
        value,
        note: random.choice(["", "it failed: \"1\"\n"]).expect("some").to_owned(),
    }
}

/// A database with instances that run.
struct Side {
    db: TestDb,
    sessions: Vec<Session>,
}

impl Side {
    async fn new(db: TestDb) -> Self {
        let mut sessions = Vec::new();
        for i in 0..INSTANCES {
            let running = db.running(&format!("i{i}")).await;
            // A second session, so that there was a first one.
            let again = db.store.register_attempt(running.attempt()).await.expect("a registration");
            sessions.push(again.session);
            db.send(running.id(), "go").await;
        }
        db.store.cancel(&db::tenant(), &db::id("i1")).await.expect("it runs");
        Self { db, sessions }
    }

    async fn ask(&self, op: &Op) -> String {
        let store = &self.db.store;
        match op {
            Op::Save(i, who, checkpoint) => {
                let answer = store.save(&self.session(*i, *who), checkpoint.clone()).await;
                random::show(answer, |(saved, now)| match saved {
                    Saved::Stored(stored) => format!("stored {stored:?} at {now}"),
                    Saved::Existed(stored) => format!("existed {stored:?} at {now}"),
                    Saved::Nothing => format!("nothing at {now}"),
                })
            }
            Op::Event(i, who) => {
                let session = self.session(*i, *who);
                let answer = store.event(&session, db::name("e"), Payload::json("1")).await;
                random::show(answer, |()| "told".to_owned())
            }
        }
    }

    fn session(&self, i: usize, who: Zombie) -> Session {
        let mut session = self.sessions[i].clone();
        match who {
            Zombie::No => {}
            Zombie::OldSession => session.writer.session.0 -= 1,
            Zombie::OldAttempt => session.writer.attempt.0 -= 1,
        }
        session
    }

    /// All that is stored of an instance.
    async fn stored(&self, i: usize) -> (Vec<StoredCheckpoint>, String) {
        let id = db::id(&format!("i{i}"));
        let page = self.db.store.checkpoints(&db::tenant(), &id, 0, 1000, false).await.expect("a page");
        let signals = self.db.store.signals(&db::tenant(), &id, 0, 1000).await.expect("signals");
        (page.checkpoints, format!("{signals:?}\n{:?}", self.db.timeline(&id).await))
    }
}

async fn run(together: TestDb, one_by_one: TestDb, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (together, one_by_one) = (Side::new(together).await, Side::new(one_by_one).await);
    for batch in 0..BATCHES {
        let ops: Vec<Op> = (0..random.usize(2..24)).map(|_| choose(&mut random)).collect();
        // Nobody else runs before all are queued: they are one batch.
        let answers = join_all(ops.iter().map(|op| together.ask(op))).await;
        for (op, answer) in ops.iter().zip(&answers) {
            assert_eq!(*answer, one_by_one.ask(op).await, "seed {seed}, batch {batch}: {op:?} of {ops:#?}");
        }
        for side in [&together, &one_by_one] {
            side.db.advance(Duration::from_secs(1));
            // Not in a batch: a signal looks its instance up before it is queued.
            side.db.send(&db::id(&format!("i{}", batch % INSTANCES)), "go").await;
        }
    }
    for i in 0..INSTANCES {
        assert_eq!(together.stored(i).await, one_by_one.stored(i).await, "seed {seed}, instance {i}");
    }
    let violations = check::violations(&together.db, Duration::from_hours(24 * 365)).await;
    assert_eq!(violations, [], "seed {seed}");
}

#[tokio::test]
async fn sqlite_stores_a_batch_as_one_after_the_other() {
    for seed in random::seeds() {
        run(db::sqlite_with(limits()).await, db::sqlite_with(limits()).await, seed).await;
    }
}

#[tokio::test]
async fn postgres_stores_a_batch_as_one_after_the_other() {
    for seed in random::seeds() {
        run(db::postgres_with(limits()).await, db::postgres_with(limits()).await, seed).await;
    }
}
