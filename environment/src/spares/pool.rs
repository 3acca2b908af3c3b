//! How many processes stand ready: what is wished, what is there, and what is done about the difference.
//!
//! The wishes stand in the database; a notice says that they changed, and a slow poll stands beneath. A process is
//! started only where a slot is free, and gives way when an attempt needs it: a claim never waits for a spare to go.
//! Of an image whose processes do not come to stand by, another one is tried after a pause that doubles, and not for
//! ever.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dormouse_core::{
    domain::id::{Digest, Tenant},
    store::{self, Kept as Wish, NodeLease, Notice, Notices, Store},
};
use dormouse_proto::standby::{SPARE_KEY_BYTES, SpareKey};
use tokio::{
    sync::{Notify, OnceCell, mpsc},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info, warn};

use super::kept::{Handed, Kept, READY_SOON, READY_WITHIN, Stay};
use crate::{
    attempts::Attempts,
    condition::Condition,
    images::cluster::Fetches,
    launcher::{Launch, Launcher},
    limits::{SPARES_AT_ONCE, SPARES_OF_NODE},
    node::Slots,
    supervisor::{Process, chain},
};

/// Between two looks at the wishes, should a notice be lost.
const POLL: Duration = Duration::from_secs(30);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);
/// A process that has served an instance and is not among the spares that are wished waits so
/// long for another one.
const WARM: Duration = Duration::from_secs(30);
/// More processes than slots are seen for a moment while a spare becomes an attempt's process;
/// only what lasts is too much.
const GIVE_WAY_AFTER: Duration = Duration::from_millis(50);
/// From a process that did not come to stand by to the next try: from, doubling up to.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// So many in a row, and no more are tried until somebody changes the image.
const GIVE_UP: u32 = 10;
/// Processes that wait to be added to the pool; whoever has one more waits.
const QUEUE: usize = 64;

/// Whose processes are alike: the bytes and the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Of {
    tenant: Tenant,
    image: Digest,
}

impl Of {
    pub(super) fn wish(wish: &Wish) -> Self {
        Self { tenant: wish.tenant.clone(), image: wish.digest }
    }
}

/// What the pool and those who use it share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) launcher: Launcher,
    pub(super) attempts: Attempts,
    pub(super) fetches: Fetches,
    pub(super) slots: Slots,
    pub(super) lease: NodeLease,
    /// Nobody is to stand by any more.
    pub(super) closing: CancellationToken,
    store: Store,
    key: OnceCell<SpareKey>,
    last_number: AtomicU64,
    state: Mutex<State>,
    /// Something was taken: it is to be replaced.
    taken: Notify,
    back: mpsc::Sender<Kept>,
    /// Processes on their way out.
    endings: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    wishes: HashMap<Of, Wish>,
    ready: HashMap<Of, Vec<Ready>>,
}

#[derive(Debug)]
struct Ready {
    kept: Kept,
    since: Instant,
    watch: AbortHandle,
}

impl State {
    fn count(&self, of: &Of) -> usize {
        self.ready.get(of).map_or(0, Vec::len)
    }
}

/// Uses the pool. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// A process for this attempt: one that stands ready, or, where processes are used again, one
    /// that is begun now. `None`: launch one as any.
    pub(crate) async fn take(&self, launch: &Launch) -> Option<Handed> {
        let of = Of { tenant: launch.id.tenant.clone(), image: launch.image };
        let (wish, ready) = {
            let mut state = self.shared.lock();
            let wish = state.wishes.get(&of)?.clone();
            (wish, state.ready.get_mut(&of).and_then(Vec::pop))
        };
        let kept = match ready {
            Some(ready) => {
                ready.watch.abort();
                self.shared.taken.notify_one();
                // Its end may not have been seen yet.
                (!ready.kept.process.has_ended()).then_some(ready.kept)
            }
            // Should it not come to stand by: whatever is wrong shows at the launch that follows.
            None if wish.reuse > 1 => Kept::begin(&self.shared, &wish, None, READY_SOON).await.ok(),
            None => None,
        };
        match kept?.hand_over(&self.shared, launch.clone(), wish.reuse).await {
            Ok(handed) => Some(handed),
            Err(error) => {
                info!(error = %chain(&error), "a process is launched instead");
                None
            }
        }
    }

    /// The process's instance has ended in order. `Err`: it is not used again, and leaves.
    pub(crate) async fn again(&self, process: Process, stay: Stay) -> Result<Again, Process> {
        let wish = self.shared.lock().wishes.get(stay.of()).cloned();
        match wish {
            Some(wish) if !self.shared.closing.is_cancelled() && stay.may_serve_more(wish.reuse) => {
                let kept = Kept::again(&self.shared, process, stay, &wish).await?;
                Ok(Again { shared: Arc::clone(&self.shared), kept })
            }
            _ => Err(process),
        }
    }
}

/// A process that is ready for another instance, once the store has agreed.
#[derive(Debug)]
pub(crate) struct Again {
    shared: Arc<Shared>,
    kept: Kept,
}

impl Again {
    /// The row says that its last instance is over.
    pub(crate) async fn keep(self) {
        if let Err(mpsc::error::SendError(kept)) = self.shared.back.send(self.kept).await {
            self.shared.end(kept).await;
        }
    }

    /// The row says otherwise.
    pub(crate) async fn end(self) {
        self.shared.end(self.kept).await;
    }
}

impl Shared {
    /// Nothing is half done under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Made and made known with the first spare: who wants none writes nothing.
    pub(super) async fn key(&self) -> store::Result<SpareKey> {
        let make = || async {
            let mut bytes = [0; SPARE_KEY_BYTES];
            getrandom::fill(&mut bytes).expect("the kernel gave random bytes for tokens, too");
            let key = SpareKey(bytes);
            self.store.give_spare_key(&self.lease, key).await?;
            Ok(key)
        };
        self.key.get_or_try_init(make).await.copied()
    }

    fn end_soon(self: &Arc<Self>, ready: Ready) {
        ready.watch.abort();
        let shared = Arc::clone(self);
        self.endings.spawn(async move { shared.end(ready.kept).await }.in_current_span());
    }
}

/// Keeps processes ready, for one node under one lease.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    condition: Condition,
    back: mpsc::Receiver<Kept>,
    starts: JoinSet<(Of, Result<Kept, String>)>,
    starting: HashMap<Of, usize>,
    failing: HashMap<Of, Failing>,
    watches: JoinSet<(Of, u64)>,
    too_many_since: Option<Instant>,
}

/// Of an image whose processes do not come to stand by.
#[derive(Debug)]
struct Failing {
    times: u32,
    not_before: Instant,
}

impl Pool {
    pub(crate) fn new(
        store: Store,
        launcher: Launcher,
        attempts: Attempts,
        lease: NodeLease,
        slots: Slots,
        condition: Condition,
    ) -> (Self, Handle) {
        let (sender, back) = mpsc::channel(QUEUE);
        let fetches = Fetches::new(store.clone(), launcher.images().clone());
        let shared = Arc::new(Shared {
            launcher,
            attempts,
            fetches,
            slots,
            lease,
            closing: CancellationToken::new(),
            store,
            key: OnceCell::new(),
            last_number: AtomicU64::new(0),
            state: Mutex::default(),
            taken: Notify::new(),
            back: sender,
            endings: TaskTracker::new(),
        });
        let handle = Handle { shared: Arc::clone(&shared) };
        let (starts, watches) = (JoinSet::new(), JoinSet::new());
        let (starting, failing) = (HashMap::new(), HashMap::new());
        let pool = Self { shared, condition, back, starts, starting, failing, watches, too_many_since: None };
        (pool, handle)
    }

    /// Until `shutdown`; then every process that waits for an instance is ended. A panic of a task
    /// is the only error.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let mut notices = self.shared.store.notices();
        let mut changes = self.condition.subscribe();
        let mut look_at = Instant::now();
        loop {
            changes.mark_unchanged();
            if Instant::now() >= look_at {
                look_at = Instant::now() + self.look().await;
            }
            let next_at = self.pass().map_or(look_at, |at| at.min(look_at));
            let wanted = !self.shared.lock().wishes.is_empty();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // It lives as long as we do.
                _ = changes.changed() => {}
                Some(done) = self.starts.join_next(), if !self.starts.is_empty() => {
                    let (of, begun) = done?;
                    self.begun(&of, begun);
                }
                Some(kept) = self.back.recv() => self.add(kept),
                Some(done) = self.watches.join_next(), if !self.watches.is_empty() => match done {
                    Ok((of, number)) => self.died(&of, number),
                    // It was taken.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(error),
                },
                open = told(&mut notices) => {
                    if !open { break }
                    look_at = Instant::now();
                }
                () = self.shared.taken.notified(), if wanted => {}
                () = self.shared.slots.changed(), if wanted => {}
                () = sleep_until(next_at) => {}
            }
        }
        self.close().await
    }

    /// Reads the wishes; answers when to read them again.
    async fn look(&mut self) -> Duration {
        let found = match self.shared.store.kept_images().await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %chain(&error), "which spares are wanted is not known now");
                return RETRY;
            }
        };
        let mut wishes: HashMap<Of, Wish> = HashMap::new();
        for wish in found {
            // Two versions of the same bytes.
            let known = wishes.entry(Of::wish(&wish)).or_insert_with(|| wish.clone());
            known.spares = known.spares.max(wish.spares);
            known.reuse = known.reuse.max(wish.reuse);
        }
        let mut state = self.shared.lock();
        // Who changes an image gives it another chance.
        self.failing.retain(|of, _| wishes.get(of).is_some_and(|wish| state.wishes.get(of) == Some(wish)));
        state.wishes = wishes;
        POLL
    }

    /// Ends what is too much and begins what is missing; answers when to look again.
    fn pass(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let claims = self.condition.now().claims();
        let unwanted = self.unwanted(claims, now);
        for ready in unwanted {
            self.shared.end_soon(ready);
        }
        let give_way_at = self.give_way(now);
        let retry_at = if claims { self.fill(now) } else { None };
        let mut state = self.shared.lock();
        let oldest = state.ready.values_mut().flatten().filter(|ready| ready.kept.served > 0);
        let cold_at = oldest.map(|ready| ready.since + WARM).min();
        [give_way_at, retry_at, cold_at.filter(|at| *at > now)].into_iter().flatten().min()
    }

    /// What nobody wishes (any more).
    fn unwanted(&self, claims: bool, now: Instant) -> Vec<Ready> {
        let mut state = self.shared.lock();
        let State { wishes, ready } = &mut *state;
        let mut unwanted = Vec::new();
        for (of, ready) in ready.iter_mut() {
            let Some(wish) = wishes.get(of).filter(|_| claims) else {
                unwanted.append(ready);
                continue;
            };
            let mut surplus = ready.len().saturating_sub(wish.spares as usize);
            let mut at = 0;
            // The oldest come first.
            while surplus > 0 && at < ready.len() {
                let one = &ready[at];
                let warm = one.kept.served > 0 && one.kept.served < wish.reuse && now < one.since + WARM;
                if warm {
                    at += 1;
                } else {
                    unwanted.push(ready.remove(at));
                    surplus -= 1;
                }
            }
        }
        ready.retain(|_, ready| !ready.is_empty());
        unwanted
    }

    /// Ends spares whose slots attempts have taken; answers when to look whether that lasts.
    fn give_way(&mut self, now: Instant) -> Option<Instant> {
        let room = self.shared.slots.room_for_spares();
        if room >= 0 {
            self.too_many_since = None;
            return None;
        }
        let until = *self.too_many_since.get_or_insert(now) + GIVE_WAY_AFTER;
        if now < until {
            return Some(until);
        }
        self.too_many_since = None;
        for _ in room..0 {
            let mut state = self.shared.lock();
            let largest = state.ready.iter_mut().max_by_key(|(_, ready)| ready.len());
            let Some(one) = largest.and_then(|(_, ready)| ready.pop()) else { break };
            drop(state);
            self.shared.end_soon(one);
        }
        None
    }

    /// Begins what is missing, of the image that has the fewest first; answers when one that
    /// failed may be tried again.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        let mut retry_at = None;
        loop {
            let room = self.shared.slots.room_for_spares();
            if room <= 0 || self.starts.len() >= SPARES_AT_ONCE {
                return retry_at;
            }
            let Some(wish) = self.missing(now, &mut retry_at) else { return retry_at };
            let of = Of::wish(&wish);
            *self.starting.entry(of.clone()).or_default() += 1;
            let (shared, place) = (Arc::clone(&self.shared), self.shared.slots.take_spare());
            let begin = async move { (of, Kept::begin(&shared, &wish, Some(place), READY_WITHIN).await) };
            self.starts.spawn(begin.in_current_span());
        }
    }

    fn missing(&self, now: Instant, retry_at: &mut Option<Instant>) -> Option<Wish> {
        let state = self.shared.lock();
        if state.ready.values().map(Vec::len).sum::<usize>() + self.starts.len() >= SPARES_OF_NODE {
            return None;
        }
        let mut fewest: Option<(usize, &Wish)> = None;
        for (of, wish) in &state.wishes {
            let have = state.count(of) + self.starting.get(of).copied().unwrap_or(0);
            if have >= wish.spares as usize {
                continue;
            }
            if let Some(failing) = self.failing.get(of) {
                if failing.times >= GIVE_UP || self.starting.contains_key(of) {
                    continue;
                }
                if failing.not_before > now {
                    *retry_at = Some(retry_at.map_or(failing.not_before, |at| at.min(failing.not_before)));
                    continue;
                }
            }
            if fewest.is_none_or(|(least, _)| have < least) {
                fewest = Some((have, wish));
            }
        }
        fewest.map(|(_, wish)| wish.clone())
    }

    fn begun(&mut self, of: &Of, begun: Result<Kept, String>) {
        if let Some(starting) = self.starting.get_mut(of) {
            *starting -= 1;
            if *starting == 0 {
                self.starting.remove(of);
            }
        }
        match begun {
            Ok(kept) => {
                self.failing.remove(of);
                self.add(kept);
            }
            Err(reason) => self.failed(of, &reason),
        }
    }

    /// It stands ready.
    fn add(&mut self, kept: Kept) {
        let (of, number) = (kept.of.clone(), kept.number);
        let watch = match kept.process.watch_end() {
            Ok(end) => {
                let of = of.clone();
                self.watches.spawn(async move {
                    end.await;
                    (of, number)
                })
            }
            Err(error) => {
                warn!(%error, "a spare cannot be watched, and is ended");
                let shared = Arc::clone(&self.shared);
                self.shared.endings.spawn(async move { shared.end(kept).await });
                return;
            }
        };
        let ready = Ready { kept, since: Instant::now(), watch };
        self.shared.lock().ready.entry(of).or_default().push(ready);
    }

    /// One that stood ready has ended by itself. It costs a replacement.
    fn died(&mut self, of: &Of, number: u64) {
        let dead = {
            let mut state = self.shared.lock();
            let Some(ready) = state.ready.get_mut(of) else { return };
            let Some(at) = ready.iter().position(|ready| ready.kept.number == number) else { return };
            ready.remove(at)
        };
        self.shared.end_soon(dead);
        self.failed(of, "it ended while it stood by");
    }

    /// Said once in a row, and once more when nothing more is tried.
    fn failed(&mut self, of: &Of, reason: &str) {
        let name = match self.shared.lock().wishes.get(of) {
            Some(wish) => format!("{}:{}", wish.image, wish.version),
            // Deleted meanwhile.
            None => return,
        };
        let first = Failing { times: 0, not_before: Instant::now() };
        let failing = self.failing.entry(of.clone()).or_insert(first);
        let pause = PAUSE.0.saturating_mul(1 << failing.times.min(16)).min(PAUSE.1);
        failing.times += 1;
        failing.not_before = Instant::now() + pause;
        match failing.times {
            1 => warn!(image = name, tenant = %of.tenant, reason, "a spare does not stand by; trying again"),
            GIVE_UP => warn!(
                image = name, tenant = %of.tenant, reason,
                "{GIVE_UP} spares in a row did not stand by: none is tried until `dormouse image set` changes \
                 the image or this service starts anew; its instances are launched without"
            ),
            _ => {}
        }
    }

    async fn close(mut self) -> Result<(), JoinError> {
        self.shared.closing.cancel();
        self.shared.fetches.stop().await;
        self.back.close();
        while let Some(done) = self.starts.join_next().await {
            if let (_, Ok(kept)) = done? {
                self.shared.end(kept).await;
            }
        }
        while let Some(kept) = self.back.recv().await {
            self.shared.end(kept).await;
        }
        let ready: Vec<Ready> = {
            let mut state = self.shared.lock();
            state.wishes.clear();
            state.ready.drain().flat_map(|(_, ready)| ready).collect()
        };
        for one in ready {
            self.shared.end_soon(one);
        }
        self.shared.endings.close();
        self.shared.endings.wait().await;
        Ok(())
    }
}

/// Returns when the wishes may have changed. False: the store is closed.
async fn told(notices: &mut Notices) -> bool {
    loop {
        match notices.next().await {
            Some(Notice::Images | Notice::Everything) => return true,
            Some(Notice::Instance(_) | Notice::Ended(_) | Notice::Wakes | Notice::Tokens) => {}
            None => return false,
        }
    }
}
