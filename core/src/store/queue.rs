//! What waits for a writer, or for the readers: bounded, and fair between instances.
//!
//! Room is for so many requests and so many bytes; who finds none waits, and with it the stream of
//! its connection. A batch takes one request of each instance in turn, then the next of each: an
//! instance that writes without end, or in the largest pieces, delays nobody else by more than one
//! batch. Within an instance the order of arrival stays. It judges nothing and touches no database.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    commit::{LockOrder, Queued, Request, Work},
    error::{Error, Result},
};
use crate::{domain::id::InstanceKey, timings};

/// Requests that wait for one writer, or for the readers; beyond it callers wait to queue.
const QUEUE: usize = 1024;
/// Their bytes: many instances with the largest payloads do not fill the memory.
const QUEUE_BYTES: usize = 64 << 20;

/// What a batch takes at most; one request it takes however large.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) requests: usize,
    pub(super) bytes: usize,
}

/// The end of a queue that callers hold.
#[derive(Clone)]
pub(super) struct Lane {
    sender: mpsc::UnboundedSender<Box<dyn Work>>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request's room in a queue, given back when it is answered.
#[derive(Debug)]
pub(super) struct Room {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Lane {
    /// A queue and its receiving end.
    pub(super) fn new() -> (Self, Queue) {
        let (sender, arriving) = mpsc::unbounded_channel();
        let of = |room| Arc::new(Semaphore::new(room));
        let lane = Self { sender, requests: of(QUEUE), bytes: of(QUEUE_BYTES) };
        (lane, Queue { arriving, waiting: Waiting::default() })
    }

    /// Queues a request and waits for its outcome. Waits while there is no room. Dropping
    /// the future before it is queued takes the request back; after that it is done anyway.
    pub(super) async fn call<R: Request>(&self, request: R) -> Result<R::Answer> {
        let (caller, told) = oneshot::channel();
        let (timed, queued) = (request.timed(), Instant::now());
        let room = self.room(request.bytes()).await;
        let work = Box::new(Queued::new(request, caller, room));
        self.sender.send(work).map_err(|_| Error::Closed)?;
        let (outcome, committed) = told.await.unwrap_or((Err(Error::Closed), None));
        if let (Some(timed), Some(committed)) = (timed, committed) {
            timings::committed(timed, queued, committed);
        }
        outcome
    }

    async fn room(&self, bytes: usize) -> Room {
        const OPEN: &str = "nobody closes this semaphore";
        let bytes = u32::try_from(bytes.min(QUEUE_BYTES)).expect("the room is smaller than 4 GiB");
        let of = |room: &Arc<Semaphore>, permits| Arc::clone(room).acquire_many_owned(permits);
        Room {
            _request: of(&self.requests, 1).await.expect(OPEN),
            _bytes: of(&self.bytes, bytes).await.expect(OPEN),
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (requests, bytes) = (self.requests.available_permits(), self.bytes.available_permits());
        write!(f, "Lane(room for {requests} requests and {bytes} bytes)")
    }
}

/// The end of a queue that a writer, or the readers together, hold.
pub(super) struct Queue {
    /// Holds no more than there is room.
    arriving: mpsc::UnboundedReceiver<Box<dyn Work>>,
    waiting: Waiting,
}

impl Queue {
    /// Waits for work and takes a batch of it; false once the queue is closed and empty. May be dropped at any
    /// moment. From `closing` on it takes nothing new.
    pub(super) async fn take(
        &mut self,
        batch: &mut Vec<Box<dyn Work>>,
        limits: BatchLimits,
        closing: &CancellationToken,
    ) -> bool {
        loop {
            if closing.is_cancelled() {
                self.arriving.close();
            }
            while let Ok(work) = self.arriving.try_recv() {
                self.waiting.push(work);
            }
            if self.waiting.take(batch, limits) {
                return true;
            }
            tokio::select! {
                biased;
                () = closing.cancelled(), if !self.arriving.is_closed() => {}
                arrived = self.arriving.recv() => match arrived {
                    Some(work) => self.waiting.push(work),
                    None => return false,
                },
            }
        }
    }
}

/// What is queued, in turns.
#[derive(Default)]
struct Waiting {
    turns: VecDeque<Turn>,
    /// What instances with a turn wait with; never empty.
    of: HashMap<InstanceKey, VecDeque<Box<dyn Work>>>,
}

/// Whose turn it is.
enum Turn {
    Instance(InstanceKey),
    /// A request of no instance has a turn of its own.
    Other(Box<dyn Work>),
}

impl Waiting {
    fn push(&mut self, work: Box<dyn Work>) {
        let LockOrder::Instance(instance) = work.order() else {
            return self.turns.push_back(Turn::Other(work));
        };
        let queued = self.of.entry(instance).or_default();
        if queued.is_empty() {
            self.turns.push_back(Turn::Instance(instance));
        }
        queued.push_back(work);
    }

    /// Moves the next batch into `batch`; false: nothing waits.
    fn take(&mut self, batch: &mut Vec<Box<dyn Work>>, limits: BatchLimits) -> bool {
        let mut bytes = 0usize;
        while batch.len() < limits.requests
            && let Some(turn) = self.turns.front()
        {
            let next = match turn {
                Turn::Instance(instance) => self.of.get(instance).and_then(VecDeque::front),
                Turn::Other(work) => Some(work),
            };
            bytes = bytes.saturating_add(next.map_or(0, |work| work.bytes()));
            if bytes > limits.bytes && !batch.is_empty() {
                // Its turn stays the next one.
                break;
            }
            batch.extend(self.pop());
        }
        !batch.is_empty()
    }

    /// The first request of whoever's turn it is, who then is the last in line.
    fn pop(&mut self) -> Option<Box<dyn Work>> {
        let instance = match self.turns.pop_front()? {
            Turn::Other(work) => return Some(work),
            Turn::Instance(instance) => instance,
        };
        let queued = self.of.get_mut(&instance)?;
        let work = queued.pop_front();
        if queued.is_empty() {
            self.of.remove(&instance);
        } else {
            self.turns.push_back(Turn::Instance(instance));
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::Tx;

    /// A request of an instance that says its name.
    struct Named {
        order: LockOrder,
        bytes: usize,
    }

    impl Request for Named {
        type Answer = ();

        fn order(&self) -> LockOrder {
            self.order.clone()
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        async fn run(&self, _tx: &mut Tx<'_>) -> Result<()> {
            unreachable!("nobody runs it")
        }
    }

    const LIMITS: BatchLimits = BatchLimits { requests: 256, bytes: 1 << 20 };

    async fn queued(lane: &Lane, order: LockOrder, bytes: usize) -> Box<dyn Work> {
        let (caller, _) = oneshot::channel();
        Box::new(Queued::new(Named { order, bytes }, caller, lane.room(0).await))
    }

    fn instance(key: i64) -> LockOrder {
        LockOrder::Instance(InstanceKey(key))
    }

    /// Who is in which batch.
    fn batches(waiting: &mut Waiting) -> Vec<Vec<LockOrder>> {
        let mut batches = Vec::new();
        let mut batch = Vec::new();
        while waiting.take(&mut batch, LIMITS) {
            batches.push(batch.drain(..).map(|work| work.order()).collect());
        }
        batches
    }

    #[tokio::test]
    async fn an_instance_without_end_delays_others_by_no_batch() {
        let (lane, _queue) = Lane::new();
        let mut waiting = Waiting::default();
        for _ in 0..700 {
            waiting.push(queued(&lane, instance(1), 1024).await);
        }
        waiting.push(queued(&lane, instance(2), 1024).await);
        waiting.push(queued(&lane, LockOrder::Last, 0).await);
        let batches = batches(&mut waiting);
        assert_eq!(batches.len(), 3);
        assert_eq!(batches[0][..3], [instance(1), instance(2), LockOrder::Last]);
        assert_eq!(batches[1..].concat(), vec![instance(1); 446]);
    }

    #[tokio::test]
    async fn the_largest_payloads_delay_others_by_one_batch() {
        let (lane, _queue) = Lane::new();
        let mut waiting = Waiting::default();
        for _ in 0..8 {
            waiting.push(queued(&lane, instance(1), 4 << 20).await);
        }
        for key in 2..60 {
            waiting.push(queued(&lane, instance(key), 1024).await);
        }
        let batches = batches(&mut waiting);
        assert_eq!(batches[0], [instance(1)], "it was there first, and fills a batch");
        assert_eq!(batches[1], (2..60).map(instance).collect::<Vec<_>>());
        assert_eq!(batches[2..].concat(), vec![instance(1); 7]);
    }

    #[tokio::test]
    async fn a_full_queue_makes_callers_wait() {
        let (lane, mut queue) = Lane::new();
        let large = || Named { order: instance(1), bytes: QUEUE_BYTES / 2 };
        let mut calls = [lane.call(large()), lane.call(large()), lane.call(large())].map(Box::pin);
        for call in &mut calls {
            assert!(futures_util::poll!(call).is_pending());
        }
        let (mut batch, closing) = (Vec::new(), CancellationToken::new());
        assert!(queue.take(&mut batch, LIMITS, &closing).await);
        assert!(queue.take(&mut batch, BatchLimits { requests: 2, ..LIMITS }, &closing).await);
        assert_eq!(batch.len(), 1, "takes nothing into a batch that is full of bytes");
    }
}
