//! How many processes stand ready: what is wished, what is there, and what is done about the difference.
//!
//! The wishes stand in the database; a notice says that they changed, and a slow poll stands beneath. A process is
//! started only where a slot is free, and gives way when an attempt needs it: a claim never waits for a spare to go.
//! Of an image whose processes do not come to stand by, another one is tried after a pause that doubles, and people are
//! told ([`WithoutSpares`]).

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
use tracing::{Instrument as _, debug, info, warn};

use super::kept::{Files, Handed, Idle, Kept, NotReady, READY_SOON, READY_WITHIN, Stay};
use crate::{
    attempts::{AttemptId, Attempts},
    condition::{Condition, WithoutSpares},
    images::cluster::Fetches,
    launcher::{Launch, Launcher},
    limits::{SPARES_AT_ONCE, SPARES_OF_NODE},
    node::{Slot, Slots},
    supervisor::{Process, chain},
};

/// Between two looks at the wishes, should a notice be lost.
const POLL: Duration = Duration::from_secs(30);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);
/// A process that has served an instance and is not among the spares that are wished waits so
/// long for another one.
const WARM: Duration = Duration::from_secs(30);
/// More processes than slots are seen for a moment while a spare becomes an attempt's process: only one that has
/// stood by for so long is too much.
const GIVE_WAY_AFTER: Duration = Duration::from_millis(50);
/// From something that changed to the look at what is to be done. Changes come together; and what was just handed
/// over is most likely past its start by then: a replacement costs the processors as much as several hand-overs.
const SETTLE: Duration = Duration::from_millis(10);
/// From a process that did not come to stand by to the next try: from, doubling up to.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// One that stands by for so long is well, whatever became of those before.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// So many in a row are told as a problem.
const PROBLEM_AFTER: u32 = 3;

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
    /// Something was taken, and is to be replaced, or came back.
    changed: Notify,
    /// Whose process has ended while it stood by.
    died: mpsc::UnboundedSender<(Of, u64)>,
    /// Processes on their way out, and who watches those that stand by.
    endings: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    wishes: HashMap<Of, Wish>,
    ready: HashMap<Of, Vec<Standing>>,
    /// Until one was handed over, or has stood by for [`WELL_AFTER`].
    failing: HashMap<Of, Failing>,
}

#[derive(Debug)]
struct Standing {
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
        let wish = self.shared.wish(&of)?;
        let kept = match self.shared.pop(&of) {
            Some(kept) => Some(kept),
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
        let wish = self.shared.wish(stay.of());
        if wish.is_none_or(|wish| !stay.may_serve_more(wish.reuse)) || self.shared.closing.is_cancelled() {
            return Err(process);
        }
        let idle = Idle::look_at(process, stay).await?;
        Ok(Again { shared: Arc::clone(&self.shared), idle })
    }
}

/// A process that may serve another instance, once the store has agreed.
#[derive(Debug)]
pub(crate) struct Again {
    shared: Arc<Shared>,
    idle: Idle,
}

impl Again {
    /// The row says that its last instance is over: it leaves that one's files.
    pub(crate) async fn move_out(self, id: &AttemptId) -> Result<(Ready, Files), ()> {
        let (kept, files) = self.idle.move_out(&self.shared, id).await?;
        Ok((Ready { shared: self.shared, kept }, files))
    }

    /// The row says otherwise.
    pub(crate) async fn end(self) {
        self.idle.end().await;
    }
}

/// A process that is ready for another instance.
#[derive(Debug)]
pub(crate) struct Ready {
    shared: Arc<Shared>,
    kept: Kept,
}

impl Ready {
    /// From now on any attempt may have it, in place of its last one, whose `slot` this is.
    pub(crate) fn stand_by(self, slot: Slot) {
        let Self { shared, mut kept } = self;
        kept.place = Some(shared.slots.take_spare());
        shared.add(kept);
        // After it is there: whoever gets the slot finds it.
        drop(slot);
    }
}

impl Shared {
    /// Nothing is half done under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wished of the processes that are alike.
    pub(super) fn wish(&self, of: &Of) -> Option<Wish> {
        self.lock().wishes.get(of).cloned()
    }

    /// It stands ready.
    fn add(self: &Arc<Self>, kept: Kept) {
        let end = match kept.process.watch_end() {
            Ok(end) => end,
            Err(error) => {
                warn!(%error, "a spare cannot be watched, and is ended");
                return self.end_later(kept);
            }
        };
        let mut state = self.lock();
        if self.closing.is_cancelled() {
            drop(state);
            return self.end_later(kept);
        }
        let (of, number, died) = (kept.of.clone(), kept.number, self.died.clone());
        let watch = self.endings.spawn(async move {
            end.await;
            // Nobody listens any more: the pool is closed, and ends it.
            let _ = died.send((of, number));
        });
        let standing = Standing { since: Instant::now(), watch: watch.abort_handle(), kept };
        state.ready.entry(standing.kept.of.clone()).or_default().push(standing);
        drop(state);
        self.changed.notify_one();
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

    /// One that stands ready, and lives as far as anybody can know.
    fn pop(self: &Arc<Self>, of: &Of) -> Option<Kept> {
        loop {
            let ready = self.lock().ready.get_mut(of)?.pop()?;
            self.changed.notify_one();
            if ready.kept.process.has_ended() {
                // Not seen yet by who watches it.
                self.end_soon(ready);
                continue;
            }
            ready.watch.abort();
            self.lock().failing.remove(of);
            return Some(ready.kept);
        }
    }

    fn end_soon(self: &Arc<Self>, ready: Standing) {
        ready.watch.abort();
        self.end_later(ready.kept);
    }

    fn end_later(self: &Arc<Self>, kept: Kept) {
        let shared = Arc::clone(self);
        self.endings.spawn(async move { drop(shared.end(kept).await) }.in_current_span());
    }
}

/// Keeps processes ready, for one node under one lease.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    condition: Condition,
    died: mpsc::UnboundedReceiver<(Of, u64)>,
    starts: JoinSet<(Of, Result<Kept, NotReady>)>,
    starting: HashMap<Of, usize>,
    /// What people were told of images that fail.
    told: Vec<WithoutSpares>,
}

/// Of an image whose processes do not come to stand by.
#[derive(Debug)]
struct Failing {
    times: u32,
    not_before: Instant,
    /// The image, for people, and the last reason.
    name: String,
    reason: String,
}

impl Failing {
    fn first(name: String) -> Self {
        Self { times: 0, not_before: Instant::now(), name, reason: String::new() }
    }

    fn again(&mut self, why: &NotReady) {
        let pause = if why.killed { PAUSE.0 } else { PAUSE.0.saturating_mul(1 << self.times.min(16)) };
        self.not_before = Instant::now() + pause.min(PAUSE.1);
        self.times += u32::from(!why.killed);
        self.reason.clone_from(&why.reason);
    }

    fn told(&self, of: &Of) -> WithoutSpares {
        WithoutSpares { tenant: of.tenant.clone(), image: self.name.clone(), reason: self.reason.clone() }
    }
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
        let (sender, died) = mpsc::unbounded_channel();
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
            changed: Notify::new(),
            died: sender,
            endings: TaskTracker::new(),
        });
        let handle = Handle { shared: Arc::clone(&shared) };
        let (starts, starting, told) = (JoinSet::new(), HashMap::new(), Vec::new());
        let pool = Self { shared, condition, died, starts, starting, told };
        (pool, handle)
    }

    /// Until `shutdown`; then every process that waits for an instance is ended. A panic of a task
    /// is the only error.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let mut notices = self.shared.store.notices();
        let mut changes = self.condition.subscribe();
        let mut look_at = Instant::now();
        // When to look at what is to be done, and whether that is since something changed.
        let (mut pass_at, mut settling) = (look_at, false);
        loop {
            changes.mark_unchanged();
            if Instant::now() >= look_at {
                look_at = Instant::now() + self.look().await;
                pass_at = Instant::now();
            }
            if Instant::now() >= pass_at {
                pass_at = self.pass().map_or(look_at, |at| at.min(look_at));
                settling = false;
            }
            let listens = !settling && !self.shared.lock().wishes.is_empty();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // It lives as long as we do.
                _ = changes.changed() => pass_at = Instant::now(),
                Some(done) = self.starts.join_next(), if !self.starts.is_empty() => {
                    let (of, begun) = done?;
                    self.begun(&of, begun);
                    pass_at = Instant::now();
                }
                // The pool holds the other end.
                Some((of, number)) = self.died.recv() => {
                    self.died(&of, number).await;
                    pass_at = Instant::now();
                }
                open = told(&mut notices) => {
                    if !open { break }
                    look_at = Instant::now();
                }
                () = self.shared.changed.notified(), if listens => settling = true,
                () = self.shared.slots.changed(), if listens => settling = true,
                () = sleep_until(pass_at) => {}
            }
            if settling {
                pass_at = pass_at.min(Instant::now() + SETTLE);
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
        let State { wishes: known, failing, .. } = &mut *state;
        // Who changes an image gives it another chance.
        failing.retain(|of, _| wishes.get(of).is_some_and(|wish| known.get(of) == Some(wish)));
        *known = wishes;
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
        let well_at = self.forgive(now);
        let retry_at = if claims { self.fill(now) } else { None };
        let mut state = self.shared.lock();
        let oldest = state.ready.values_mut().flatten().filter(|ready| ready.kept.served > 0);
        let cold_at = oldest.map(|ready| ready.since + WARM).min();
        [give_way_at, retry_at, well_at, cold_at.filter(|at| *at > now)].into_iter().flatten().min()
    }

    /// What nobody wishes (any more).
    fn unwanted(&self, claims: bool, now: Instant) -> Vec<Standing> {
        let mut state = self.shared.lock();
        let State { wishes, ready, .. } = &mut *state;
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

    /// Ends spares whose slots attempts have taken; answers when to look whether more have to go.
    fn give_way(&self, now: Instant) -> Option<Instant> {
        for _ in self.shared.slots.room_for_spares()..0 {
            let mut state = self.shared.lock();
            // Where most stand; the oldest come first.
            let largest = state.ready.values_mut().max_by_key(|ready| ready.len());
            let ready = largest.filter(|ready| !ready.is_empty())?;
            let until = ready[0].since + GIVE_WAY_AFTER;
            if until > now {
                return Some(until);
            }
            let one = ready.remove(0);
            drop(state);
            debug!(number = one.kept.number, "a spare gives way");
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
            if let Some(failing) = state.failing.get(of) {
                if self.starting.contains_key(of) {
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

    fn begun(&mut self, of: &Of, begun: Result<Kept, NotReady>) {
        if let Some(starting) = self.starting.get_mut(of) {
            *starting -= 1;
            if *starting == 0 {
                self.starting.remove(of);
            }
        }
        match begun {
            Ok(kept) => self.shared.add(kept),
            Err(why) => self.failed(of, &why),
        }
    }

    /// One that stood ready has ended.
    async fn died(&mut self, of: &Of, number: u64) {
        let dead = {
            let mut state = self.shared.lock();
            let Some(ready) = state.ready.get_mut(of) else { return };
            let Some(at) = ready.iter().position(|ready| ready.kept.number == number) else { return };
            ready.remove(at)
        };
        let report = self.shared.end(dead.kept).await;
        self.failed(of, &NotReady::ended("it ended while it stood by", report.as_ref()));
    }

    /// Said once in a row; several in a row are a problem of this node. One that somebody killed is replaced after a
    /// moment, however often that happens.
    fn failed(&mut self, of: &Of, why: &NotReady) {
        let mut state = self.shared.lock();
        let State { wishes, failing, .. } = &mut *state;
        // Deleted meanwhile.
        let Some(wish) = wishes.get(of) else { return };
        let name = format!("{}:{}", wish.image, wish.version);
        let failing = failing.entry(of.clone()).or_insert_with(|| Failing::first(name.clone()));
        failing.again(why);
        let reason = &why.reason;
        match failing.times {
            _ if why.killed => info!(image = name, tenant = %of.tenant, "a spare was killed"),
            1 => warn!(image = name, tenant = %of.tenant, reason, "a spare does not stand by; trying again"),
            PROBLEM_AFTER => warn!(
                image = name, tenant = %of.tenant, reason,
                "{PROBLEM_AFTER} spares in a row did not stand by: they are tried more and more rarely, and the \
                 image's instances are launched without"
            ),
            _ => {}
        }
    }

    /// Forgets the failures of images of which one stands by for long enough, and tells people of the others;
    /// answers when to look again.
    fn forgive(&mut self, now: Instant) -> Option<Instant> {
        let mut state = self.shared.lock();
        let State { ready, failing, .. } = &mut *state;
        let oldest = |of: &Of| ready.get(of).and_then(|ready| ready.first()).map(|ready| ready.since);
        failing.retain(|of, _| oldest(of).is_none_or(|since| now < since + WELL_AFTER));
        let well_at = failing.keys().filter_map(oldest).map(|since| since + WELL_AFTER).min();
        let failing = failing.iter().filter(|(_, failing)| failing.times >= PROBLEM_AFTER);
        let mut images: Vec<WithoutSpares> = failing.map(|(of, failing)| failing.told(of)).collect();
        drop(state);
        images.sort_unstable();
        if images != self.told {
            self.condition.change(|facts| facts.without_spares = images.as_slice().into());
            self.told = images;
        }
        well_at
    }

    async fn close(mut self) -> Result<(), JoinError> {
        self.shared.closing.cancel();
        self.shared.fetches.stop().await;
        while let Some(done) = self.starts.join_next().await {
            if let (_, Ok(kept)) = done? {
                self.shared.end(kept).await;
            }
        }
        let ready: Vec<Standing> = {
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
