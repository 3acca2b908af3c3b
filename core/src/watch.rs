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
    /// The last look, if it was answered.
    last: Option<Look>,
    longest_gap: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    asked: Instant,
    answered: Instant,
}

#[derive(Debug)]
struct Seen<S> {
    sign: S,
    /// The end of the look that saw it first.
    since: Instant,
}

impl<K: Eq + Hash, S: PartialEq> Watch<K, S> {
    /// Looks that are farther apart than this do not count as watching: the watcher itself stood
    /// still, and does not know what the database did meanwhile.
    pub fn with_longest_gap(longest_gap: Duration) -> Self {
        Self { seen: HashMap::new(), last: None, longest_gap }
    }

    /// The database answered at `answered` a look that was begun at `asked`: these are all there are,
    /// each with the sign of life that it shows.
    pub fn saw(&mut self, asked: Instant, answered: Instant, all: impl IntoIterator<Item = (K, S)>) {
        let is_near = |before: Look| answered.duration_since(before.answered) <= self.longest_gap;
        let watched = self.last.is_some_and(is_near);
        self.last = Some(Look { asked, answered });
        let mut before = std::mem::take(&mut self.seen);
        for (who, sign) in all {
            let since = match before.remove(&who) {
                Some(seen) if watched && seen.sign == sign => seen.since,
                _ => answered,
            };
            self.seen.insert(who, Seen { sign, since });
        }
    }

    /// The database did not answer a look: nobody could have shown a sign of life meanwhile, as far
    /// as this watcher knows.
    pub fn missed(&mut self) {
        self.last = None;
    }

    /// For how long it has surely shown no new sign of life: from the end of the look that saw the
    /// last one first to the begin of the last look, which saw the same.
    pub fn silence(&self, who: &K) -> Duration {
        match (self.seen.get(who), self.last) {
            (Some(seen), Some(last)) => last.asked.saturating_duration_since(seen.since),
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
            watch.saw(now, now, [("dead", 7), ("alive", look / 5)]);
            now += LOOK;
        }
        assert_eq!(watch.silence(&"dead"), LEASE);
        assert_eq!(watch.silence(&"alive"), Duration::ZERO);
        watch.saw(now, now, [("dead", 8)]);
        assert_eq!((watch.silence(&"dead"), watch.silence(&"alive")), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_look_without_an_answer_begins_the_watch_anew() {
        let mut watch = Watch::with_longest_gap(LOOK * 5);
        let mut now = Instant::now();
        for _ in 0..10 {
            watch.saw(now, now, [("a", 1)]);
            now += LOOK;
        }
        watch.missed();
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
        watch.saw(now, now, [("a", 1)]);
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
        watch.saw(now + LOOK, now + LOOK, [("a", 1)]);
        assert_eq!(watch.silence(&"a"), LOOK);
    }

    #[test]
    fn a_watcher_that_stood_still_has_not_watched() {
        let mut watch = Watch::with_longest_gap(LOOK * 5);
        let now = Instant::now();
        watch.saw(now, now, [("a", 1)]);
        watch.saw(now + Duration::from_hours(1), now + Duration::from_hours(1), [("a", 1)]);
        assert_eq!(watch.silence(&"a"), Duration::ZERO);
    }

    #[test]
    fn what_a_look_takes_is_not_counted() {
        let mut watch = Watch::with_longest_gap(LOOK * 50);
        let now = Instant::now();
        // The sign may have come while the first look was on its way, and the last answer may be as
        // old as its question.
        watch.saw(now, now + LOOK * 3, [("a", 1)]);
        watch.saw(now + LOOK * 10, now + LOOK * 14, [("a", 1)]);
        assert_eq!(watch.silence(&"a"), LOOK * 7);
    }
}
