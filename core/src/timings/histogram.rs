//! A histogram of durations in fixed buckets.
//!
//! Sixteen buckets for each doubling from 4 µs on, a quarter of a microsecond wide below: a figure read from it is off
//! by at most a sixteenth. 3 KiB each, whatever is recorded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The width of the finest bucket, in nanoseconds.
const UNIT_NANOS: u64 = 250;
/// Buckets for each doubling, as a power of two.
const SPLIT: u32 = 4;
/// From so many units on everything falls into the last bucket: 67 s.
const MAX_UNITS: u64 = 1 << 28;
const BUCKETS: usize = bucket(MAX_UNITS) + 1;

/// The bucket of a number of units.
#[expect(clippy::cast_possible_truncation, reason = "at most 24 doublings of 16 buckets")]
const fn bucket(units: u64) -> usize {
    let units = if units < MAX_UNITS { units } else { MAX_UNITS };
    let doublings = (units | 1).ilog2().saturating_sub(SPLIT);
    (doublings << SPLIT) as usize + (units >> doublings) as usize
}

/// Where a bucket begins.
const fn begins(bucket: usize) -> u64 {
    let doublings = (bucket >> SPLIT).saturating_sub(1);
    ((bucket - (doublings << SPLIT)) as u64) << doublings
}

/// Durations, counted by how long they were. Recording never waits.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// Durations from `from` up to `to` (exclusive), and how many there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The shortest.
    pub from: Duration,
    /// Where the next bucket begins; [`Duration::MAX`] in the last.
    pub to: Duration,
    /// How many.
    pub count: u64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], nanos: AtomicU64::new(0) }
    }

    /// Counts one more.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Nothing is read together with these: a look may see one of them without the other.
        self.counts[bucket(nanos / UNIT_NANOS)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All of them together, in nanoseconds.
    pub fn sum_nanos(&self) -> u64 {
        self.nanos.load(Ordering::Relaxed)
    }

    /// The buckets that are not empty, shortest first.
    pub fn buckets(&self) -> Vec<Bucket> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        let filled = counts.filter(|(_, count)| *count > 0);
        filled.map(|(bucket, count)| Bucket { from: at(bucket), to: at(bucket + 1), count }).collect()
    }
}

/// Where a bucket begins, as a duration.
fn at(bucket: usize) -> Duration {
    if bucket < BUCKETS { Duration::from_nanos(begins(bucket) * UNIT_NANOS) } else { Duration::MAX }
}

/// What so large a share of the durations does not exceed, read from buckets: evenly spread inside each.
pub(super) fn quantile(buckets: &[Bucket], share: f64) -> Duration {
    let count: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    let mut left = share * count_of(count);
    for bucket in buckets {
        let here = count_of(bucket.count);
        if left <= here && bucket.to < Duration::MAX {
            return bucket.from
                + bucket.to.saturating_sub(bucket.from).mul_f64((left / here).clamp(0.0, 1.0));
        }
        left -= here;
    }
    // In the bucket without an end, or there are none.
    buckets.last().map_or(Duration::ZERO, |last| last.from)
}

#[expect(clippy::cast_precision_loss, reason = "a share of a count: one in 2^53 makes no difference")]
fn count_of(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn every_duration_falls_into_its_bucket() {
        let around_each_doubling = (0..36).flat_map(|n| [(1 << n) - 1, 1 << n, (1 << n) + 1]);
        for nanos in around_each_doubling.chain((0..200_000).step_by(37)) {
            let histogram = Histogram::new();
            histogram.record(Duration::from_nanos(nanos));
            let [Bucket { from, to, count: 1 }] = histogram.buckets()[..] else { panic!("one bucket") };
            let took = Duration::from_nanos(nanos);
            assert!(from <= took && took < to, "{took:?} in {from:?} to {to:?}");
            let narrow =
                to == Duration::MAX || to.saturating_sub(from) <= (took / 16).max(Duration::from_nanos(250));
            assert!(narrow, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn the_longest_have_a_bucket_too() {
        let histogram = Histogram::new();
        histogram.record(Duration::from_hours(1));
        histogram.record(Duration::MAX);
        let buckets = histogram.buckets();
        assert_eq!(buckets.len(), 1);
        assert_eq!((buckets[0].to, buckets[0].count), (Duration::MAX, 2));
        assert_eq!(quantile(&buckets, 0.5), buckets[0].from);
    }

    #[test]
    fn quantiles_are_off_by_a_sixteenth_at_most() {
        let histogram = Histogram::new();
        (1..=1_000).for_each(|n| histogram.record(micros(n)));
        let buckets = histogram.buckets();
        assert_eq!(histogram.sum_nanos(), 500_500_000);
        for (share, exact) in
            [(0.5, micros(500)), (0.9, micros(900)), (0.99, micros(990)), (1.0, micros(1_000))]
        {
            let read = quantile(&buckets, share);
            assert!(read.abs_diff(exact) <= exact / 16, "{share}: {read:?}");
        }
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn a_histogram_stays_as_large_as_it_is() {
        assert_eq!(size_of::<Histogram>(), (BUCKETS + 1) * size_of::<u64>());
    }
}
