//! Several instances that write at once, each as fast as it is answered, so that core has batches of many to
//! store. The test itself speaks for them, and knows of every request whether it was acknowledged.
//!
//! Each has one request in flight, so what is stored of it is what was acknowledged, in that order, and at most
//! the request in flight behind it.

use std::{
    cell::{Ref, RefCell},
    future::Future,
    rc::Rc,
    time::{Duration, SystemTime},
};

use dormouse_management_sdk::{Code, Payload, Status};
use dormouse_proto::instance::{self as wire, client_frame::Operation, server_frame::Outcome};
use futures_util::future::{join_all, select};

use crate::{
    controller::Controller,
    probe::Probe,
    raw::{self, RawClient, Stored},
    wait,
};

/// The signal that each of them may take, and how many wait for each.
const SIGNAL: &str = "go";
const SIGNALS: usize = 10;

/// What they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Checkpoints alone: a batch of them is one statement.
    Saves,
    /// Events, checkpoints, and checkpoints that take a signal: a transaction of several statements.
    Mixed,
}

/// What became of the requests that were in flight when core went away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Wholly there.
    pub stored: usize,
    /// Wholly absent.
    pub absent: usize,
}

/// An acknowledged request.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The name of its checkpoint or event. No other contains it.
    pub name: String,
    /// The port that was answered.
    pub port: u16,
    /// When the answer had been read, in seconds since 1970.
    pub at: f64,
}

/// Instances for which the test speaks.
#[derive(Debug)]
pub struct Writers {
    all: Vec<Writer>,
}

impl Writers {
    /// Starts so many, each with signals to take. They are to be registered.
    pub async fn start(controller: &Controller, count: usize) -> Self {
        Probe::push(controller).await;
        let started = (0..count).map(|number| Writer::start(controller, number));
        Self { all: join_all(started).await }
    }

    /// Registers all, one after the other, and repeats what each had in flight.
    pub async fn register(&self, controller: &Controller) {
        for writer in &self.all {
            writer.register(controller).await;
        }
    }

    /// All write at once, until `over` has happened and the answers that were on their way have been read, or core
    /// serves none of them any more. What is in flight then was not acknowledged. A refusal fails the test, but for an
    /// outage.
    pub async fn write_until(&self, work: Work, over: impl Future<Output = ()>) {
        let writing = join_all(self.all.iter().map(|writer| writer.write(work)));
        let over = async {
            over.await;
            // Datagrams that a killed process has sent are in our sockets: the runtime looks at them every few turns.
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
        };
        select(std::pin::pin!(writing), std::pin::pin!(over)).await;
        for writer in &self.all {
            writer.client.take();
        }
    }

    /// Waits until so many more requests have been acknowledged.
    pub async fn until_acknowledged(&self, more: usize) {
        let wanted = self.acknowledged() + more;
        wait::until(&format!("{wanted} requests are acknowledged"), async || match self.acknowledged() {
            enough if enough >= wanted => Ok(()),
            so_far => Err(so_far),
        })
        .await;
    }

    /// Checks that of each exactly the acknowledged requests are stored, in order and once, and the one in
    /// flight wholly or not at all. While core is away, or cannot store anything.
    pub async fn check(&self, controller: &Controller) -> InFlight {
        let mut in_flight = InFlight::default();
        for writer in &self.all {
            match writer.check(controller).await {
                Some(true) => in_flight.stored += 1,
                Some(false) => in_flight.absent += 1,
                None => {}
            }
        }
        in_flight
    }

    /// Ends each in order. They must be registered.
    pub async fn complete(&self, controller: &Controller) {
        for writer in &self.all {
            writer.client().ask(raw::complete(b"done")).await.expect("accepted");
            controller.until_ended(&writer.probe.id, Status::Completed).await;
            assert_eq!(controller.attempts(&writer.probe.id).await, 1, "a fault of core cost an attempt");
        }
    }

    /// How many requests were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.all.iter().map(|writer| writer.state.borrow().acknowledged.len()).sum()
    }

    /// Every acknowledged request but those that were repeated.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.all.iter().flat_map(|writer| writer.state.borrow().receipts.clone()).collect()
    }

    /// The answers that spoke of an outage.
    pub fn refusals(&self) -> Vec<wire::Error> {
        self.all.iter().filter_map(|writer| writer.state.borrow().refused.clone()).collect()
    }
}

/// A request of a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    /// A checkpoint of this name, which is its payload too.
    Save(String),
    /// An event of this name.
    Event(String),
    /// A checkpoint of this name, which takes the n-th signal.
    Take(String, usize),
}

impl Asked {
    fn operation(&self) -> Operation {
        match self {
            Self::Save(name) => raw::save(name, name.as_bytes()),
            Self::Event(name) => raw::custom(name),
            Self::Take(name, _) => raw::take(name, SIGNAL),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Save(name) | Self::Event(name) | Self::Take(name, _) => name,
        }
    }

    /// Name and payload of its checkpoint.
    fn checkpoint(&self) -> Option<(String, String)> {
        match self {
            Self::Save(name) => Some((name.clone(), name.clone())),
            Self::Take(name, number) => Some((name.clone(), text(&signal(*number).data))),
            Self::Event(_) => None,
        }
    }

    /// The name of its event.
    fn event(&self) -> Option<String> {
        match self {
            Self::Event(name) => Some(name.clone()),
            Self::Save(_) | Self::Take(..) => None,
        }
    }

    /// Checks what it was answered. A repeated one may hear what stands.
    fn check(&self, answer: Outcome, repeated: bool) {
        match self {
            Self::Event(_) => assert!(matches!(answer, Outcome::Event(_)), "{self:?}: {answer:?}"),
            Self::Save(name) => match raw::stored(answer) {
                Stored::Sent => {}
                Stored::Bytes(stands) if repeated => assert_eq!(stands, name.as_bytes(), "{self:?}"),
                other => panic!("{self:?} was answered {other:?}"),
            },
            Self::Take(_, number) => {
                assert_eq!(raw::stored(answer), Stored::Bytes(signal(*number).data), "{self:?}");
            }
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

fn signal(number: usize) -> Payload {
    Payload::json(&number).expect("JSON")
}

#[derive(Debug)]
struct Writer {
    number: usize,
    probe: Probe,
    client: RefCell<Option<Rc<RawClient>>>,
    state: RefCell<State>,
}

/// What it knows. Never borrowed across a wait.
#[derive(Debug, Default)]
struct State {
    acknowledged: Vec<Asked>,
    receipts: Vec<Receipt>,
    refused: Option<wire::Error>,
    in_flight: Option<Asked>,
    /// Requests and signals that it has used.
    asked: usize,
    taken: usize,
}

impl Writer {
    async fn start(controller: &Controller, number: usize) -> Self {
        let probe = Probe::start_pushed(controller, &format!("w{number:03}"), |start| start).await;
        for number in 0..SIGNALS {
            controller
                .client()
                .signal(&probe.id, SIGNAL, Some(signal(number)))
                .await
                .expect("it has not ended");
        }
        Self { number, probe, client: RefCell::default(), state: RefCell::default() }
    }

    async fn register(&self, controller: &Controller) {
        let client = Rc::new(self.probe.register(1).await.0);
        self.client.replace(Some(Rc::clone(&client)));
        let Some(asked) = self.in_flight().clone() else { return };
        let is_stored = match &asked {
            // A second one would be another event: it is looked for.
            Asked::Event(name) => self.events(controller).await.contains(name),
            Asked::Save(_) | Asked::Take(..) => {
                let answer = client.ask(asked.operation()).await;
                asked.check(answer.unwrap_or_else(|refusal| panic!("{asked:?}: {refusal:?}")), true);
                true
            }
        };
        let mut state = self.state.borrow_mut();
        state.in_flight = None;
        state.acknowledged.extend(Some(asked).filter(|_| is_stored));
    }

    fn client(&self) -> Rc<RawClient> {
        self.client.borrow().clone().expect("it is registered")
    }

    fn in_flight(&self) -> Ref<'_, Option<Asked>> {
        Ref::map(self.state.borrow(), |state| &state.in_flight)
    }

    /// Until its connection is lost, or core says that it cannot store anything now.
    async fn write(&self, work: Work) {
        let client = self.client();
        loop {
            let asked = self.next(work);
            let answer = client.ask(asked.operation()).await;
            let mut state = self.state.borrow_mut();
            match answer {
                Ok(answer) => {
                    let receipt = Receipt { name: asked.name().to_owned(), port: client.port(), at: now() };
                    state.receipts.push(receipt);
                    asked.check(answer, false);
                }
                Err(lost) if lost.code == raw::LOST => return,
                Err(refusal) if refusal.code == Code::Unavailable.as_str() => {
                    state.refused = Some(refusal);
                    return;
                }
                Err(refusal) => panic!("{asked:?} of {} was refused: {refusal:?}", self.probe.id),
            }
            state.in_flight = None;
            state.acknowledged.push(asked);
        }
    }

    /// What it asks next; in flight from now on.
    fn next(&self, work: Work) -> Asked {
        let mut state = self.state.borrow_mut();
        state.asked += 1;
        let name = format!("{}-{:06}", self.probe.id, state.asked);
        // Neighbours do different things, and each does all of them.
        let asked = match (work, (self.number + state.asked) % 3) {
            (Work::Mixed, 0) => Asked::Event(name),
            (Work::Mixed, 1) if state.taken < SIGNALS => {
                state.taken += 1;
                Asked::Take(name, state.taken - 1)
            }
            _ => Asked::Save(name),
        };
        state.in_flight = Some(asked.clone());
        asked
    }

    /// Whether what is in flight is stored; none: nothing is.
    async fn check(&self, controller: &Controller) -> Option<bool> {
        let id = &self.probe.id;
        let checkpoints = controller.checkpoints(id).await.into_iter();
        let checkpoints: Vec<_> =
            checkpoints.map(|c| (c.name, text(&c.payload.expect("a small one").data))).collect();
        let events = self.events(controller).await;
        let unread = usize::try_from(controller.get(id).await.unread_signals).expect("few");

        let state = self.state.borrow();
        let acknowledged = state.acknowledged.iter();
        let mut expected: (Vec<_>, Vec<_>) = (
            acknowledged.clone().filter_map(Asked::checkpoint).collect(),
            acknowledged.filter_map(Asked::event).collect(),
        );
        let is_stored = (&checkpoints, &events) != (&expected.0, &expected.1);
        if is_stored {
            // Then it can only be what is in flight.
            expected.0.extend(state.in_flight.as_ref().and_then(Asked::checkpoint));
            expected.1.extend(state.in_flight.as_ref().and_then(Asked::event));
        }
        let words = "more or less is stored than was acknowledged";
        assert_eq!((checkpoints, events), expected, "{id}, in flight {:?}: {words}", state.in_flight);

        let takes_signal = matches!(state.in_flight, Some(Asked::Take(..)));
        let taken = state.taken - usize::from(takes_signal && !is_stored);
        assert_eq!(unread, SIGNALS - taken, "{id}: a signal is consumed with its checkpoint, or not at all");
        state.in_flight.as_ref().map(|_| is_stored)
    }

    /// The names of its events.
    async fn events(&self, controller: &Controller) -> Vec<String> {
        let events = controller.events(&self.probe.id).await.into_iter();
        events.filter(|event| event.kind == "custom").map(|event| event.message).collect()
    }
}
