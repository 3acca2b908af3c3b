//! Long polls are woken by the store's notices, each only by those of its own instance; whoever
//! remembers tokens by those of tokens. A notice may get lost, so every waiter also looks from
//! time to time.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dormouse_core::{
    domain::id::InstanceKey,
    store::{Notice, Store},
};
use tokio::{
    sync::{Notify, watch},
    time::{Duration, timeout},
};

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Any change.
    Change,
    /// That it ends, or is deleted: not every step on its way there.
    Ending,
}

/// Who waits for which instance, and for what.
type Waiting = HashMap<InstanceKey, Vec<(News, Arc<Notify>)>>;

/// Wakes those who wait for instances.
#[derive(Default)]
pub(super) struct Watchers {
    waiting: Mutex<Waiting>,
    /// How often tokens changed, as far as it was told.
    pub(super) tokens: watch::Sender<u64>,
}

impl Watchers {
    /// Passes notices on; to be dropped when nobody waits any more.
    pub(super) async fn run(&self, store: &Store) -> Infallible {
        let mut notices = store.notices();
        while let Some(notice) = notices.next().await {
            match notice {
                Notice::Instance(key) => self.wake(key, News::Change),
                Notice::Ended(key) => self.wake(key, News::Ending),
                Notice::Tokens => self.tokens.send_modify(|changes| *changes += 1),
                Notice::Everything => {
                    self.wake_all();
                    self.tokens.send_modify(|changes| *changes += 1);
                }
                Notice::Wakes | Notice::Images => {}
            }
        }
        // The store is closed; whoever waits hears so at its next look.
        std::future::pending().await
    }

    /// Watches an instance until the answer is dropped. Look at the instance after this.
    pub(super) fn watch(&self, key: InstanceKey, news: News) -> Watcher<'_> {
        let changed = Arc::new(Notify::new());
        self.lock().entry(key).or_default().push((news, Arc::clone(&changed)));
        Watcher { watchers: self, key, changed }
    }

    /// Each ending is a change too, and told as one.
    fn wake(&self, key: InstanceKey, news: News) {
        let waiting = self.lock();
        for (_, waiter) in waiting.get(&key).into_iter().flatten().filter(|(wanted, _)| *wanted == news) {
            // Keeps one permit for a waiter that is just looking.
            waiter.notify_one();
        }
    }

    fn wake_all(&self) {
        for (_, waiter) in self.lock().values().flatten() {
            waiter.notify_one();
        }
    }

    /// Nothing is left half done under this lock.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One waiter.
pub(super) struct Watcher<'a> {
    watchers: &'a Watchers,
    key: InstanceKey,
    changed: Arc<Notify>,
}

impl Watcher<'_> {
    /// Waits for news since the last call, at most `patience`. A change that is none is
    /// harmless: look again.
    pub(super) async fn changed(&self, patience: Duration) {
        // Either way the caller looks again.
        let _ = timeout(patience, self.changed.notified()).await;
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut waiting = self.watchers.lock();
        if let Some(waiters) = waiting.get_mut(&self.key) {
            waiters.retain(|(_, waiter)| !Arc::ptr_eq(waiter, &self.changed));
            if waiters.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_its_own_instance_wakes_a_waiter_and_nothing_is_left_behind() {
        let watchers = Watchers::default();
        let started = tokio::time::Instant::now();
        {
            let patience = Duration::from_secs(5);
            let (any, end) =
                (watchers.watch(InstanceKey(1), News::Change), watchers.watch(InstanceKey(1), News::Ending));
            watchers.wake(InstanceKey(2), News::Change);
            any.changed(patience).await;
            assert_eq!(started.elapsed(), patience, "another instance's change woke it");
            watchers.wake(InstanceKey(1), News::Change);
            any.changed(patience).await;
            assert_eq!(started.elapsed(), patience, "its own change did not wake it");
            end.changed(patience).await;
            assert_eq!(started.elapsed(), 2 * patience, "a change woke who waits for the end");
            watchers.wake(InstanceKey(1), News::Ending);
            end.changed(patience).await;
            assert_eq!(started.elapsed(), 2 * patience, "the end did not wake it");
        }
        assert!(watchers.lock().is_empty());
    }
}
