//! Holds each figure against its limit, when all of a run are known.

use anyhow::{Context as _, bail};

use crate::{
    context::Store,
    figure::{Figure, Limit, Spread, Target, Unit, median},
    machine::Machine,
    registry::Kind,
    show,
};

/// A figure, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The entry that found it.
    pub(crate) entry: &'static str,
    pub(crate) kind: Kind,
    pub(crate) figure: Figure,
    /// A limit is measured again when everything else is done: how many of the rounds were before.
    pub(crate) before: usize,
}

/// One line of figures.jsonl, and one row of the report. Numbers are in the unit that it names.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Line {
    pub(crate) entry: String,
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) what: String,
    pub(crate) store: Option<Store>,
    pub(crate) unit: Unit,
    /// Of each round: of latencies the p50.
    pub(crate) rounds: Vec<f64>,
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    pub(crate) spread: Option<Spread>,
    /// Of a limit: the median after everything else, by that before it.
    pub(crate) drift: Option<f64>,
    /// What it is held against; none for what is only reported.
    pub(crate) held: Option<Held>,
    pub(crate) machine: Machine,
}

/// The verdict on one figure.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Held {
    /// The expression, such as `echo + commit`.
    pub(crate) against: String,
    /// Its value in this run, in the figure's unit; none where the target is absolute.
    pub(crate) limit: Option<f64>,
    /// The figure by the limit.
    pub(crate) ratio: Option<f64>,
    /// In words, such as `≤ 1.4 ×`.
    pub(crate) target: String,
    /// How much of what the target allows is used up: 1 is just met.
    pub(crate) used: f64,
    pub(crate) met: bool,
}

/// All lines of a run, in the order in which they were measured; or which figure cannot be held against what
/// it should be.
pub(crate) fn judge(measured: &[Measured], machine: &Machine) -> Result<Vec<Line>, (usize, anyhow::Error)> {
    let lines = measured.iter().enumerate();
    lines.map(|(index, one)| line(one, measured, machine).map_err(|error| (index, error))).collect()
}

fn line(one: &Measured, all: &[Measured], machine: &Machine) -> anyhow::Result<Line> {
    let Measured { entry, kind, figure, before } = one;
    let held = match &figure.held {
        Some((limit, target)) => {
            Some(hold(figure, *limit, *target, all).with_context(|| format!("the figure {}", figure.id))?)
        }
        None => None,
    };
    let (first, last) = figure.rounds.split_at(*before);
    let drift = (!first.is_empty() && !last.is_empty()).then(|| median(last) / median(first));
    Ok(Line {
        entry: (*entry).to_owned(),
        kind: *kind,
        id: figure.id.clone(),
        what: figure.what.clone(),
        store: figure.store,
        unit: figure.unit,
        rounds: figure.rounds.clone(),
        median: figure.median(),
        lowest: figure.lowest(),
        highest: figure.highest(),
        spread: figure.spread(),
        drift,
        held,
        machine: machine.clone(),
    })
}

fn hold(figure: &Figure, limit: Limit, target: Target, all: &[Measured]) -> anyhow::Result<Held> {
    let value = match limit {
        Limit::Sum(terms) => {
            let mut sum = 0.0;
            for (times, id) in terms {
                sum += times * of(id, figure, figure.unit, all)?;
            }
            Some(sum)
        }
        Limit::Rate(terms) => {
            let mut seconds = 0.0;
            for (times, id) in terms {
                seconds += times / of(id, figure, Unit::PerSecond, all)?;
            }
            Some(1.0 / seconds)
        }
        Limit::None => None,
    };
    let median = figure.median();
    let used = used(median, value, target).context("a target that is relative needs a limit")?;
    Ok(Held {
        against: limit.to_string(),
        limit: value,
        ratio: value.map(|value| median / value),
        target: show::target(target, figure.unit),
        used,
        met: used <= 1.0,
    })
}

/// None if there is no limit and the target is relative to one.
fn used(median: f64, limit: Option<f64>, target: Target) -> Option<f64> {
    Some(match target {
        Target::AtMostTimes(times) => median / (limit? * times),
        Target::AtLeastTimes(times) => limit? * times / median,
        Target::AtMostMore(more) => (median - limit?).max(0.0) / more,
        Target::AtMost(most) => median / most,
    })
}

/// The median of another figure: on the same store, or of what has none.
fn of(id: &str, figure: &Figure, unit: Unit, all: &[Measured]) -> anyhow::Result<f64> {
    let find = |store: Option<Store>| {
        all.iter().map(|one| &one.figure).find(|other| other.id == id && other.store == store)
    };
    let Some(found) = find(figure.store).or_else(|| find(None)) else {
        bail!("is held against {id}, which was not measured; see what failed before");
    };
    if found.unit != unit {
        bail!("counts {unit:?}, {id} counts {:?}: they cannot be held against each other", found.unit);
    }
    Ok(found.median())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(figure: Figure) -> Measured {
        Measured { entry: "x", kind: Kind::Workload, before: figure.rounds.len(), figure }
    }

    fn seconds(id: &str, store: Option<Store>, rounds: &[f64]) -> Figure {
        Figure { store, ..Figure::of(Unit::Seconds, id, "", rounds.to_vec()) }
    }

    fn held(figure: Figure, others: Vec<Figure>) -> anyhow::Result<Held> {
        let all: Vec<_> = others.into_iter().chain([figure]).map(measured).collect();
        let lines = judge(&all, &Machine::default()).map_err(|(_, error)| error)?;
        Ok(lines.last().and_then(|line| line.held.clone()).expect("it is held against something"))
    }

    #[test]
    fn a_sum_takes_the_median_of_the_same_store_and_else_of_none() {
        let figure = seconds("W", Some(Store::Sqlite), &[9.0, 12.0, 15.0])
            .held(Limit::Sum(&[(2.0, "echo"), (1.0, "commit")]), Target::AtMostTimes(1.4));
        let others = vec![
            seconds("commit", Some(Store::Postgres), &[100.0]),
            seconds("commit", Some(Store::Sqlite), &[1.0, 2.0, 3.0]),
            seconds("echo", None, &[4.0]),
        ];
        let held = held(figure, others).expect("all is measured");
        assert_eq!((held.limit, held.ratio, held.met), (Some(10.0), Some(1.2), true));
        assert_eq!((held.against.as_str(), held.target.as_str()), ("2 echo + commit", "≤ 1.4 ×"));
    }

    #[test]
    fn a_rate_is_what_is_left_when_each_operation_needs_so_many_of_each() {
        let figure = Figure::rate("W", "", vec![10.0])
            .held(Limit::Rate(&[(4.0, "batch"), (2.0, "echo.64")]), Target::AtLeastTimes(0.5));
        let others = vec![Figure::rate("batch", "", vec![200.0]), Figure::rate("echo.64", "", vec![100.0])];
        let held = held(figure, others).expect("all is measured");
        assert!((held.limit.expect("a limit") - 25.0).abs() < 1e-9);
        assert!(!held.met && (held.used - 1.25).abs() < 1e-9);
        assert_eq!(held.against, "1 / (4/batch + 2/echo.64)");
    }

    #[test]
    fn targets_that_add_and_targets_without_a_limit() {
        let more = seconds("W", None, &[1.2]).held(Limit::Sum(&[(1.0, "bare")]), Target::AtMostMore(0.1));
        assert!(!held(more, vec![seconds("bare", None, &[1.0])]).expect("measured").met);
        let absolute = seconds("W", None, &[1.2]).held(Limit::None, Target::AtMost(1.5));
        assert!(held(absolute, Vec::new()).expect("measured").met);
    }

    #[test]
    fn what_is_missing_or_of_another_unit_is_said() {
        let figure =
            || seconds("W", None, &[1.0]).held(Limit::Sum(&[(1.0, "echo")]), Target::AtMostTimes(1.0));
        let missing = held(figure(), Vec::new()).expect_err("it is missing");
        assert!(format!("{missing:#}").contains("echo, which was not measured"), "{missing:#}");
        let other = held(figure(), vec![Figure::rate("echo", "", vec![1.0])]).expect_err("another unit");
        assert!(format!("{other:#}").contains("cannot be held against each other"), "{other:#}");
    }

    #[test]
    fn a_limit_that_was_measured_again_says_how_far_it_moved() {
        let limit =
            Measured { before: 3, ..measured(seconds("echo", None, &[1.0, 2.0, 3.0, 2.0, 3.0, 4.0])) };
        let lines = judge(&[limit], &Machine::default()).expect("nothing is held against anything");
        assert_eq!((lines[0].drift, lines[0].median), (Some(1.5), 2.5));
    }
}
