//! One measured number: its rounds, what it is held against, and how that is judged.
//!
//! A figure says by an expression over other figures of the same run what it is held against; the ratio is
//! taken at the end, when all of them are known. A limit is a figure too: one that is held against nothing.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;

use crate::context::Store;

/// The latencies of one round, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new(3).expect("three digits are allowed"))
    }

    /// Counts one. In an open-loop run it begins when the operation was due, not when it was sent.
    pub(crate) fn add(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanoseconds).expect("it grows by itself");
    }

    /// Takes over what another task has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("it grows by itself");
    }

    /// In seconds.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        Duration::from_nanos(self.0.value_at_quantile(quantile)).as_secs_f64()
    }

    /// In seconds.
    pub(crate) fn mean(&self) -> f64 {
        self.0.mean() / 1e9
    }

    /// In seconds.
    pub(crate) fn max(&self) -> f64 {
        Duration::from_nanos(self.0.max()).as_secs_f64()
    }
}

impl Extend<Duration> for Latencies {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, latencies: T) {
        latencies.into_iter().for_each(|latency| self.add(latency));
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<T: IntoIterator<Item = Duration>>(latencies: T) -> Self {
        let mut all = Self::new();
        all.extend(latencies);
        all
    }
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Seconds,
    PerSecond,
    Bytes,
    /// Of one core, 1 is all of it.
    Core,
    Count,
}

impl Unit {
    pub(crate) const fn more_is_better(self) -> bool {
        matches!(self, Self::PerSecond)
    }
}

/// What the ratio to the limit, or the figure itself, must be.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::enum_variant_names, reason = "read as words: at most, at least")]
pub(crate) enum Target {
    /// Of the limit, at most so many times.
    AtMostTimes(f64),
    /// Of the limit, at least so many times.
    AtLeastTimes(f64),
    /// The limit and so much more, in the figure's unit.
    AtMostMore(f64),
    /// The figure alone.
    AtMost(f64),
}

/// An expression over other figures: their sum, each so many times, or for rates what is left when each
/// operation needs so many of each.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// `2 echo + commit`, of figures with one unit.
    Sum(&'static [(f64, &'static str)]),
    /// `1 / (4/batch + 2/echo.64)`, of rates.
    Rate(&'static [(f64, &'static str)]),
    /// There is none: the target is absolute.
    None,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |terms: &[(f64, &str)], each: fn((f64, &str)) -> String| {
            terms.iter().map(|term| each(*term)).collect::<Vec<_>>().join(" + ")
        };
        match self {
            #[expect(clippy::float_cmp, reason = "a literal")]
            Self::Sum(terms) => {
                let term = |(times, id): (f64, &str)| {
                    if times == 1.0 { id.to_owned() } else { format!("{times} {id}") }
                };
                f.write_str(&joined(terms, term))
            }
            #[expect(clippy::float_cmp, reason = "a literal")]
            Self::Rate([(times, id)]) if *times == 1.0 => f.write_str(id),
            Self::Rate([(times, id)]) => write!(f, "{id} / {times}"),
            Self::Rate(terms) => write!(f, "1 / ({})", joined(terms, |(times, id)| format!("{times}/{id}"))),
            Self::None => f.write_str("–"),
        }
    }
}

/// Percentiles of all rounds together, in seconds. Reported, not judged: on noisy cores they are coin tosses.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Spread {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// One number of the report.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// What others name it by, such as `echo.64` or `W3b.16`; unique on its store.
    pub(crate) id: String,
    /// In a few words, with counts and warm-up.
    pub(crate) what: String,
    /// None for what has nothing to do with a database.
    pub(crate) store: Option<Store>,
    pub(crate) unit: Unit,
    /// One number each: of latencies the p50.
    pub(crate) rounds: Vec<f64>,
    /// Of all rounds together.
    pub(crate) latencies: Option<Latencies>,
    pub(crate) held: Option<(Limit, Target)>,
}

impl Figure {
    /// Latencies, a histogram each round; what counts is the median of the rounds' p50.
    pub(crate) fn latency(id: impl Into<String>, what: impl Into<String>, rounds: &[Latencies]) -> Self {
        let mut all = Latencies::new();
        for round in rounds {
            all.merge(round);
        }
        let rounds = rounds.iter().map(|round| round.quantile(0.5)).collect();
        Self { latencies: Some(all), ..Self::of(Unit::Seconds, id, what, rounds) }
    }

    /// Numbers of any unit, one each round.
    pub(crate) fn of(unit: Unit, id: impl Into<String>, what: impl Into<String>, rounds: Vec<f64>) -> Self {
        Self { id: id.into(), what: what.into(), store: None, unit, rounds, latencies: None, held: None }
    }

    /// Operations per second, one number each round.
    pub(crate) fn rate(id: impl Into<String>, what: impl Into<String>, rounds: Vec<f64>) -> Self {
        Self::of(Unit::PerSecond, id, what, rounds)
    }

    /// Judged: this ratio to this limit.
    pub(crate) fn held(mut self, limit: Limit, target: Target) -> Self {
        self.held = Some((limit, target));
        self
    }

    /// Takes over the rounds of the same figure, measured later.
    pub(crate) fn append(&mut self, later: &Self) {
        self.rounds.extend_from_slice(&later.rounds);
        if let (Some(all), Some(more)) = (&mut self.latencies, &later.latencies) {
            all.merge(more);
        }
    }

    pub(crate) fn spread(&self) -> Option<Spread> {
        let all = self.latencies.as_ref()?;
        Some(Spread { p50: all.quantile(0.5), p99: all.quantile(0.99), max: all.max() })
    }

    /// The middle one of the rounds, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        median(&self.rounds)
    }

    pub(crate) fn lowest(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn highest(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Not of an empty slice.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}
