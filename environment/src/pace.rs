//! How many launches are under way at once: as many as the machine carries well, found by measuring.
//!
//! A launch is under way from its claim until its process registers. One alone takes as long as the machine
//! needs; more at a time fill the processors, and beyond that only wait for each other: the time of each grows, and with
//! it the memory that is held and the delay of whatever else runs here. So the room is found as a network's
//! senders find theirs: it grows by one for each round of launches that took at most [`TOLERANCE`] times as long
//! as the quickest of the same image, and shrinks by a fifth after a round that took longer. The quickest is
//! forgotten slowly, so that a machine that became slower is not held against a better past.
//!
//! [`Pace`] decides nothing else: which wakes are claimed is the store's to say, and a node's slots still bound
//! what runs. It keeps no invariant; a wrong measure costs time only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dormouse_core::domain::id::Digest;
use tokio::{sync::Notify, time::Instant};

/// A launch among others may take so many times as long as the quickest: enough to keep the processors and the
/// disk busy while some wait, and no more.
const TOLERANCE: f64 = 6.0;
/// So many launches for each processor are never too many: what a launch takes grows with other work, too (starts,
/// endings, workflows), and fewer launches would not make that less.
const LEAST: usize = 4;
/// The quickest time grows by this part with each launch, so that it is forgotten after some hundred thousand: a
/// burst of thousands must not become what is held for usual.
const FORGET: f64 = 1.0 / 65_536.0;
/// Images whose quickest time is remembered; beyond it all are measured anew.
const IMAGES: usize = 1000;
/// A launch of which nothing was heard for so long is not waited for any more: its registration was not told to
/// us, or it hangs, and the others go on.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// The measure itself: pure, given times.
#[derive(Clone, Debug, PartialEq)]
struct Measure {
    room: usize,
    least: usize,
    most: usize,
    /// Launches since the room last shrank or the round began.
    round: usize,
    slow: usize,
}

impl Measure {
    fn new(least: usize, most: usize) -> Self {
        let most = most.max(1);
        let least = least.clamp(1, most);
        // What is under way waits about as often as it works.
        Self { room: least.saturating_mul(2).min(most), least, most, round: 0, slow: 0 }
    }

    /// A launch took `ratio` times as long as the quickest of its image.
    fn took(&mut self, ratio: f64) {
        self.round += 1;
        self.slow += usize::from(ratio > TOLERANCE);
        if self.round < self.room {
            return;
        }
        // One that was held up by something else is no sign of a busy machine; half of a round is.
        if self.slow * 2 > self.round {
            self.room = (self.room - self.room.div_ceil(5)).max(self.least);
        } else {
            self.room = (self.room + 1).min(self.most);
        }
        (self.round, self.slow) = (0, 0);
    }
}

/// The quickest launch of each image.
#[derive(Debug, Default)]
struct Best(HashMap<Digest, f64>);

impl Best {
    /// How many times as long as the quickest this one took.
    fn ratio(&mut self, image: Digest, took: Duration) -> f64 {
        let took = took.as_secs_f64().max(1e-6);
        if self.0.len() >= IMAGES && !self.0.contains_key(&image) {
            self.0.clear();
        }
        let best = self.0.entry(image).or_insert(took);
        *best = (*best * (1.0 + FORGET)).min(took);
        took / *best
    }
}

/// The launches of a node that are under way. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    measure: Measure,
    best: Best,
    under_way: usize,
}

impl Pace {
    /// For a machine with so many processors, and at most so many launches at once.
    pub fn new(processors: usize, most: usize) -> Self {
        let state = State {
            measure: Measure::new(processors.saturating_mul(LEAST), most),
            best: Best::default(),
            under_way: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), freed: Notify::new() }) }
    }

    /// How many more launches may begin now: none until a quarter of the room is free, so that what waits is
    /// claimed several at a time.
    pub fn room(&self) -> usize {
        let state = self.shared.lock();
        let free = state.measure.room.saturating_sub(state.under_way);
        if free * 4 < state.measure.room { 0 } else { free }
    }

    /// Returns once a launch is no longer under way since the last call.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }

    /// A launch begins.
    pub fn begin(&self) -> UnderWay {
        self.shared.lock().under_way += 1;
        UnderWay { shared: Arc::clone(&self.shared), image: None, since: Instant::now(), took: None }
    }
}

impl Shared {
    /// Numbers only: nothing is left half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A launch that is under way until this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    shared: Arc<Shared>,
    image: Option<Digest>,
    since: Instant,
    took: Option<Duration>,
}

impl UnderWay {
    /// It is one of this image; of one of none nothing is measured.
    #[must_use]
    pub fn of(mut self, image: Digest) -> Self {
        self.image = Some(image);
        self
    }

    /// Its process has registered, or has ended: so long did it take.
    pub fn over(mut self) {
        self.took = Some(self.since.elapsed());
    }

    /// From when on it is not waited for any more; dropped then it measures nothing.
    pub fn until(&self) -> Instant {
        self.since + HEARD_WITHIN
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.under_way -= 1;
        if let (Some(image), Some(took)) = (self.image, self.took) {
            let ratio = state.best.ratio(image, took);
            state.measure.took(ratio);
        }
        drop(state);
        self.shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Digest = Digest([1; 32]);

    /// A machine of two processors: `n` launches of 2 ms of work each take `n` ms.
    fn settle(most: usize, of_one: f64) -> Measure {
        let (mut measure, mut best) = (Measure::new(2, most), Best::default());
        best.ratio(IMAGE, Duration::from_secs_f64(of_one / 1e3));
        for _ in 0..2000 {
            let took = Duration::from_millis(measure.room as u64).max(Duration::from_secs_f64(of_one / 1e3));
            let ratio = best.ratio(IMAGE, took);
            measure.took(ratio);
        }
        measure
    }

    #[test]
    fn the_room_settles_where_launches_wait_for_each_other() {
        let room = settle(1000, 3.0).room;
        assert!((10..=30).contains(&room), "{room}");
    }

    #[test]
    fn a_machine_that_carries_all_gets_all() {
        let mut measure = Measure::new(2, 40);
        (0..2000).for_each(|_| measure.took(1.5));
        assert_eq!(measure.room, 40);
    }

    #[test]
    fn the_room_never_falls_below_the_processors_nor_rises_above_what_there_is() {
        let mut measure = Measure::new(4, 100);
        (0..1000).for_each(|_| measure.took(50.0));
        assert_eq!(measure.room, 4);
        assert_eq!(Measure::new(4, 2).room, 2);
    }

    #[test]
    fn one_slow_launch_among_others_changes_nothing() {
        let mut measure = Measure::new(4, 100);
        (0..8).for_each(|n| measure.took(if n == 3 { 50.0 } else { 1.0 }));
        assert_eq!(measure.room, 9);
    }

    #[test]
    fn each_image_is_held_against_itself_and_the_past_is_forgotten() {
        let mut best = Best::default();
        let (quick, slow) = (Duration::from_millis(2), Duration::from_millis(90));
        assert!(best.ratio(IMAGE, quick) <= 1.0);
        assert!(best.ratio(Digest([2; 32]), slow) <= 1.0);
        assert!(best.ratio(IMAGE, slow) > 40.0);
        (0..400_000).for_each(|_| _ = best.ratio(IMAGE, slow));
        assert!(best.ratio(IMAGE, slow) <= 1.0);
    }

    #[test]
    fn room_is_given_by_the_quarter() {
        let pace = Pace::new(1, 8);
        let mut under_way: Vec<_> = (0..8).map(|_| pace.begin()).collect();
        let mut rooms = Vec::new();
        while under_way.pop().is_some() {
            rooms.push(pace.room());
        }
        assert_eq!(rooms, [0, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_takes_its_place_until_it_is_over() {
        let pace = Pace::new(1, 2);
        let (one, other) = (pace.begin().of(IMAGE), pace.begin().of(IMAGE));
        assert_eq!(pace.room(), 0);
        one.over();
        pace.freed().await;
        assert_eq!(pace.room(), 1);
        drop(other);
        assert_eq!(pace.room(), 2);
    }
}
