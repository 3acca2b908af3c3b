//! Both orders of each pair of writers on one instance's row.
//!
//! Two requests that run at once answer, and leave the row, as if one had come after the other:
//! what they may answer is found by asking fresh instances in each order. The two go through
//! two stores, so that on either database they are two connections' transactions.

use std::time::Duration;

use dormouse_core::{
    domain::{
        id::{Attempt, Session as Number},
        instance::Writer,
        wake::Waits,
    },
    limits::Limits,
    store::{AttemptRef, Error, Expired, Kind, NodeLease, Saved, Session, StartRequest, Store, Suspension},
};

use crate::{
    db::{self, TestDb, tenant},
    random::show,
};

contract! {
    limits: super::limits();
    while_running,
    while_running_with_an_unread_signal,
    while_running_and_paused,
    while_open,
    while_suspended,
    while_being_cancelled,
}

/// No grace: a cancellation that is asked for is overdue.
fn limits() -> Limits {
    Limits { cancel_grace: Duration::ZERO, ..Limits::default() }
}

async fn while_running(db: TestDb) {
    Pairs::new(db, Start::Running).await.check().await;
}

async fn while_running_with_an_unread_signal(db: TestDb) {
    Pairs::new(db, Start::Unread).await.check().await;
}

async fn while_running_and_paused(db: TestDb) {
    Pairs::new(db, Start::Paused).await.check().await;
}

async fn while_open(db: TestDb) {
    Pairs::new(db, Start::Open).await.check().await;
}

async fn while_suspended(db: TestDb) {
    Pairs::new(db, Start::Suspended).await.check().await;
}

async fn while_being_cancelled(db: TestDb) {
    Pairs::new(db, Start::CancelAsked).await.check().await;
}

/// What the instance is when both come. Its time limit has passed, so that it can expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Running,
    /// Running; the signal that it will wait for is unread.
    Unread,
    /// Running; it will wait for its resume.
    Paused,
    /// Claimed; its launch deadline has passed, so that it can be claimed again.
    Open,
    /// Waits for a signal.
    Suspended,
    /// Running; the cancel is not felt.
    CancelAsked,
}

/// A writer's request, always the same for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Register,
    Save,
    Take,
    Feel,
    Suspend,
    End,
    Exited,
    Settle,
    HandBack,
    Claim,
    Signal,
    Cancel,
    Pause,
    Resume,
    Stop,
    Expire,
    Overdue,
}

impl Start {
    /// Whose requests can change each other's answers there. While it is open, `Save` stands for
    /// all that a process may not ask before it has registered.
    fn writers(self) -> &'static [Op] {
        use Op::*;
        match self {
            Start::Running => &[
                Register, Save, Feel, Suspend, End, Exited, Settle, HandBack, Signal, Cancel, Pause, Stop,
                Expire,
            ],
            Start::Unread => &[Register, Save, Take, Suspend, End, Settle, Signal, Cancel],
            Start::Paused => &[Suspend, End, Exited, Settle, Cancel, Resume, Stop],
            Start::Open => {
                &[Register, Save, Exited, Settle, HandBack, Claim, Signal, Cancel, Pause, Stop, Expire]
            }
            Start::Suspended => &[Suspend, Exited, Claim, Signal, Cancel, Pause, Resume, Stop, Expire],
            Start::CancelAsked => {
                &[Register, Feel, Suspend, End, Exited, Settle, Cancel, Stop, Expire, Overdue]
            }
        }
    }
}

impl Op {
    /// What it answers where it passes over a row that somebody holds, if it does that.
    fn passing_over(self) -> Option<&'static str> {
        match self {
            Op::Claim => Some("0 claimed"),
            Op::Expire => Some("0 ended"),
            _ => None,
        }
    }
}

/// Which of the two comes first in a run, and by how many turns of the runtime.
const RUNS: [(usize, usize); 3] = [(0, 0), (1, 0), (0, 8)];
/// The signal that is sent and waited for.
const SIGNAL: &str = "go";
/// All instances are launched by it; only one at a time has not ended.
const NODE: &str = "n";

/// A fresh instance in its start state.
struct Subject {
    lease: NodeLease,
    attempt: AttemptRef,
    /// What its first registration opened, or will open.
    session: Session,
    waits: Waits,
}

/// What both answered and what is left, in words without the instance's name.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answers: [String; 2],
    left: String,
}

struct Pairs {
    db: TestDb,
    stores: [Store; 2],
    start: Start,
    lease: NodeLease,
    started: u32,
}

impl Pairs {
    async fn new(db: TestDb, start: Start) -> Self {
        let stores = [db.store.clone(), db.another().await];
        let lease = db.node(NODE).await;
        Self { db, stores, start, lease, started: 0 }
    }

    async fn check(&mut self) {
        let writers = self.start.writers();
        for (i, a) in writers.iter().enumerate() {
            for b in &writers[i..] {
                self.check_pair([*a, *b]).await;
            }
        }
    }

    async fn check_pair(&mut self, ops: [Op; 2]) {
        // Each order is asked for when it is needed first.
        let (mut allowed, mut orders) = (Vec::new(), self.orders(ops).into_iter());
        for (first, turns) in RUNS {
            let both = self.at_once(ops, first, turns).await;
            while !allowed.contains(&both) {
                let Some(order) = orders.next() else {
                    panic!("{:?}, {ops:?} at once: {both:#?}\nbut in order: {allowed:#?}", self.start);
                };
                allowed.push(self.in_order(ops, order).await);
            }
        }
    }

    /// The orders that two requests may take, as which comes when.
    fn orders(&self, [a, b]: [Op; 2]) -> Vec<&'static [usize]> {
        let mut orders: Vec<&[usize]> = vec![&[0, 1], &[1, 0]];
        // A registration reads its answer after its commit: the second time is that look.
        orders.extend((a == Op::Register).then_some(&[0, 1, 0][..]));
        orders.extend((b == Op::Register).then_some(&[1, 0, 1][..]));
        // Only PostgreSQL has rows that somebody holds; whoever is left out passed them over.
        if self.db.store.kind() == Kind::Postgres {
            let (skips_a, skips_b) = (a.passing_over().is_some(), b.passing_over().is_some());
            orders.extend(skips_a.then_some(&[1][..]));
            orders.extend(skips_b.then_some(&[0][..]));
            orders.extend((skips_a && skips_b).then_some(&[][..]));
        }
        orders
    }

    async fn in_order(&mut self, ops: [Op; 2], order: &[usize]) -> Outcome {
        let subject = self.subject().await;
        let mut answers = ops.map(|op| op.passing_over().unwrap_or("never asked").to_owned());
        let mut sessions = [None, None];
        for &i in order {
            let store = &self.stores[i];
            match sessions[i].take() {
                None => (answers[i], sessions[i]) = ask(store, ops[i], &subject).await,
                Some(session) => {
                    if let Err(error) = store.inbox(&session).await {
                        answers[i] = refusal(error);
                    }
                }
            }
        }
        Outcome { answers, left: self.leave(&subject).await }
    }

    async fn at_once(&mut self, ops: [Op; 2], first: usize, turns: usize) -> Outcome {
        let (subject, second) = (self.subject().await, 1 - first);
        let late = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            ask(&self.stores[second], ops[second], &subject).await
        };
        let ((one, _), (two, _)) = tokio::join!(ask(&self.stores[first], ops[first], &subject), late);
        let answers = if first == 0 { [one, two] } else { [two, one] };
        Outcome { answers, left: self.leave(&subject).await }
    }

    async fn subject(&mut self) -> Subject {
        let (store, tenant) = (&self.db.store, tenant());
        self.started += 1;
        let id = format!("i{}", self.started);
        let start = StartRequest { limit: Some(Duration::ZERO), ..db::request(&id) };
        store.start(start).await.expect("a start");
        let launch = if self.start == Start::Open { Duration::ZERO } else { db::LAUNCH };
        let claims = store.claim_due(&self.lease, 10, launch).await.expect("a claim").claims;
        assert_eq!(claims.len(), 1, "only this instance has not ended");
        let waits = if self.start == Start::Paused { db::for_resume() } else { db::for_signal(SIGNAL, None) };
        let writer = Writer { attempt: Attempt(1), session: Number(1) };
        let attempt = claims[0].attempt_ref();
        let session = Session { instance: attempt.instance, tenant: tenant.clone(), id: db::id(&id), writer };
        if self.start != Start::Open {
            store.register_attempt(attempt).await.expect("a registration");
        }
        match self.start {
            Start::Running | Start::Open => {}
            Start::Unread => {
                store.signal(&tenant, &session.id, db::new_signal(SIGNAL, "")).await.expect("a signal");
            }
            Start::Paused => store.pause(&tenant, &session.id).await.expect("a pause"),
            Start::Suspended => {
                store.suspend(&session, waits.clone()).await.expect("a suspension");
            }
            Start::CancelAsked => store.cancel(&tenant, &session.id).await.expect("a cancel"),
        }
        Subject { lease: self.lease.clone(), attempt, session, waits }
    }

    /// What both left behind. Ends it, so that nothing of it is due any more.
    async fn leave(&self, subject: &Subject) -> String {
        let id = &subject.session.id;
        let tenant = tenant();
        let (detail, timeline) =
            tokio::join!(self.db.store.instance_detail(&tenant, id), self.db.timeline(id));
        let detail = detail.expect("it exists");
        let life = &detail.instance.life;
        if life.outcome().is_none() {
            self.db.store.stop(&tenant, id).await.expect("a stop");
        }
        let (saved, unread) = (detail.checkpoints, detail.unread_signals);
        format!("{life:?}, {saved} checkpoints, {unread} unread signals, {timeline:?}")
    }
}

/// The answer in words; with it the session that a registration opened.
async fn ask(store: &Store, op: Op, subject: &Subject) -> (String, Option<Session>) {
    let Subject { lease, attempt, session, waits } = subject;
    let (tenant, id) = (&session.tenant, &session.id);
    let done = |()| "done".to_owned();
    let save = async |checkpoint| {
        show(store.save(session, checkpoint).await, |(saved, _)| match saved {
            Saved::Stored(_) => "stored".to_owned(),
            Saved::Existed(_) => "existed".to_owned(),
            Saved::Nothing => "nothing".to_owned(),
        })
    };
    let ended = |expired: Expired| format!("{} ended", expired.ended.len());
    let answer = match op {
        Op::Register => return register(store, *attempt).await,
        Op::Save => save(db::step("step", "1")).await,
        Op::Take => save(db::take("take", SIGNAL)).await,
        Op::Feel => save(db::feel("feel")).await,
        Op::Suspend => show(store.suspend(session, waits.clone()).await, |(answer, _)| match answer {
            Suspension::Suspended => "suspended".to_owned(),
            Suspension::Continue(_) => "continue".to_owned(),
        }),
        Op::End => show(store.end(session, db::completed()).await, |outcome| outcome.to_string()),
        Op::Exited => show(store.exited(*attempt, db::exit()).await, |after| format!("{after:?}")),
        Op::Settle => show(store.settle(lease, &[]).await, |returned| format!("{} returned", returned.len())),
        Op::HandBack => {
            show(store.hand_back(lease, *attempt, "it drains".to_owned()).await, |done| format!("{done}"))
        }
        Op::Claim => {
            let answer = store.claim_due(lease, 10, db::LAUNCH).await;
            show(answer, |claims| format!("{} claimed", claims.claims.len()))
        }
        Op::Signal => {
            let answer = store.signal(tenant, id, db::new_signal(SIGNAL, "")).await;
            show(answer, |sent| format!("signal {}", sent.number))
        }
        Op::Cancel => show(store.cancel(tenant, id).await, done),
        Op::Pause => show(store.pause(tenant, id).await, done),
        Op::Resume => show(store.resume(tenant, id).await, done),
        Op::Stop => show(store.stop(tenant, id).await, done),
        Op::Expire => show(store.expire().await, ended),
        Op::Overdue => show(store.cancel_overdue(lease).await, ended),
    };
    (answer, None)
}

async fn register(store: &Store, attempt: AttemptRef) -> (String, Option<Session>) {
    match store.register_attempt(attempt).await {
        Ok(registration) => {
            let session = registration.session;
            (format!("session {}", session.writer.session.0), Some(session))
        }
        Err(error) => (refusal(error), None),
    }
}

fn refusal(error: Error) -> String {
    show(Err(error), |()| String::new())
}
