//! Watching who is alive, without comparing times of different machines.
//!
//! Whoever is watched raises a number in its row with each sign of life. It is silent once a watcher
//! saw the same number for a whole lease, by the watcher's own monotonic clock, and the database
//! answered every look in that time: so neither a wrong clock nor an outage of the database, which
//! keeps everybody from renewing, makes anybody look dead (invariant 10).
//!
//! Pure: it is told what was seen and when.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// What was seen of each, since when without a change.
#[derive(Debug)]
pub struct Watch<K, S> {
    seen: HashMap<K, Seen<S>>,
    looked_at: Option<Instant>,
    longest_gap: Duration,
}

#[derive(Debug)]
struct Seen<S> {
    sign: S,
    since: Instant,
}

impl<K: Eq + Hash, S: PartialEq> Watch<K, S> {
    /// Looks that are farther apart than this do not count as watching: the watcher itself stood
    /// still, and does not know what the database did meanwhile.
    pub fn with_longest_gap(longest_gap: Duration) -> Self {
        Self { seen: HashMap::new(), looked_at: None, longest_gap }
    }

    /// The database answered a look that was begun at `now`: these are all there are, each with the
    /// sign of life that it shows.
    pub fn saw(&mut self, now: Instant, all: impl IntoIterator<Item = (K, S)>) {
        let watched = self.looked_at.is_some_and(|before| now.duration_since(before) <= self.longest_gap);
        self.looked_at = Some(now);
        let mut before = std::mem::take(&mut self.seen);
        for (who, sign) in all {
            let since = match before.remove(&who) {
                Some(seen) if watched && seen.sign == sign => seen.since,
                _ => now,
            };
            self.seen.insert(who, Seen { sign, since });
        }
    }

    /// The database did not answer a look: nobody could have shown a sign of life meanwhile, as far
    /// as this watcher knows.
    pub fn missed(&mut self) {
        self.looked_at = None;
    }

    /// For how long it has been seen without a new sign of life, up to the last look.
    pub fn silence(&self, who: &K) -> Duration {
        match (self.seen.get(who), self.looked_at) {
            (Some(seen), Some(looked_at)) => looked_at.duration_since(seen.since),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const LOOK: Duration = Duration::from_secs(1);

    #[test]
    fn who_shows_no_sign_for_a_whole_lease_is_silent_and_who_does_is_not() {
        let mut watch = Watch::with_longest_gap(LOOK * 5);
        let mut now = Instant::now();
        for look in 0..=15_u64 {
            assert!(watch.silence(&"dead") < LEASE);
            watch.saw(now, [("dead", 7), ("alive", look / 5)]);
            now += LOOK;
        }
        assert_eq!(watch.silence(&"dead"), LEASE);
        assert_eq!(watch.silence(&"alive"), Duration::ZERO);
        watch.saw(now, [("dead", 8)]);
        assert_eq!((watch.silence(&"dead"), watch.silence(&"alive")), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_look_without_an_answer_begins_the_watch_anew() {
        let mut watch = Watch::with_longest_gap(LOOK * 5);
        let mut now = Instant::now();
        for _ in 0..10 {
            watch.saw(now, [("a", 1)]);
            now += LOOK;
        }
        watch.missed();
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
        watch.saw(now, [("a", 1)]);
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
        watch.saw(now + LOOK, [("a", 1)]);
        assert_eq!(watch.silence(&"a"), LOOK);
    }

    #[test]
    fn a_watcher_that_stood_still_has_not_watched() {
        let mut watch = Watch::with_longest_gap(LOOK * 5);
        let now = Instant::now();
        watch.saw(now, [("a", 1)]);
        watch.saw(now + Duration::from_hours(1), [("a", 1)]);
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
    }
}
