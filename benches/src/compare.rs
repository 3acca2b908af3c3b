//! What moved since another run: figures whose ranges over the rounds do not overlap.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use crate::{
    judge::Line,
    report::{self, name},
    show::{ranged, ratio},
};

/// Reads the lines of another run.
pub(crate) fn load(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("--compare {}: it cannot be read", path.display()))?;
    report::parse(&text)
        .with_context(|| format!("--compare {}: it is no figures.jsonl of this program", path.display()))
}

/// A section of the report.
pub(crate) fn section(old: &[Line], new: &[Line]) -> String {
    let mut text = String::from("## Since the run before\n\n");
    if let Some(machine) = old.first().map(|line| &line.machine) {
        writeln!(text, "Held against the run of {}, revision {}.", machine.at, machine.revision)
            .expect("a string takes all");
    }
    let (mut still, mut rows) = (0, String::new());
    for line in new {
        let before = old.iter().find(|other| (&other.id, other.store) == (&line.id, line.store));
        match before {
            None => {
                row(&mut rows, &[name(line), "–".to_owned(), shown(line), "new".to_owned(), String::new()])
            }
            Some(before) if !moved(before, line) => still += 1,
            Some(before) => {
                let times = format!("{}, {}", ratio(line.median / before.median), direction(before, line));
                row(&mut rows, &[name(line), shown(before), shown(line), times, ratios(before, line)]);
            }
        }
    }
    for gone in
        old.iter().filter(|old| !new.iter().any(|line| (&line.id, line.store) == (&old.id, old.store)))
    {
        row(&mut rows, &[name(gone), shown(gone), "–".to_owned(), "not measured".to_owned(), String::new()]);
    }
    writeln!(text, "{still} figures did not move beyond the range of their rounds.\n")
        .expect("a string takes all");
    if !rows.is_empty() {
        text += "| figure | before | now | | ratio to the limit |\n|---|---|---|---|---|\n";
        text += &rows;
    }
    text
}

fn row(rows: &mut String, cells: &[String]) {
    writeln!(rows, "| {} |", cells.join(" | ")).expect("a string takes all");
}

/// Beyond noise: no round of the one lies within the range of the other.
fn moved(before: &Line, now: &Line) -> bool {
    now.lowest > before.highest || now.highest < before.lowest
}

fn direction(before: &Line, now: &Line) -> &'static str {
    match (now.median > before.median, now.unit.more_is_better()) {
        (true, true) | (false, false) => "better",
        (true, false) | (false, true) => "worse",
    }
}

/// The machine may have changed as well: then the ratios tell more.
fn ratios(before: &Line, now: &Line) -> String {
    let of = |line: &Line| Some(ratio(line.held.as_ref()?.ratio?));
    match (of(before), of(now)) {
        (Some(before), Some(now)) => format!("{before} → {now}"),
        _ => String::new(),
    }
}

fn shown(line: &Line) -> String {
    ranged(line.median, line.lowest, line.highest, line.unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figure::{Figure, Unit},
        judge::{Measured, judge},
        machine::Machine,
        registry::Kind,
    };

    fn lines(figures: &[(&str, Unit, [f64; 3])]) -> Vec<Line> {
        let measured: Vec<_> = figures
            .iter()
            .map(|(id, unit, rounds)| Measured {
                entry: "x",
                kind: Kind::Workload,
                before: 3,
                figure: Figure::of(*unit, *id, "", rounds.to_vec()),
            })
            .collect();
        judge(&measured, &Machine::default()).expect("nothing is held against anything")
    }

    #[test]
    fn only_ranges_that_do_not_overlap_moved() {
        let old = lines(&[
            ("same", Unit::Seconds, [1.0, 2.0, 3.0]),
            ("slower", Unit::Seconds, [1.0, 2.0, 3.0]),
            ("more", Unit::PerSecond, [1.0, 2.0, 3.0]),
            ("gone", Unit::Count, [1.0, 2.0, 3.0]),
        ]);
        let new = lines(&[
            ("same", Unit::Seconds, [3.0, 4.0, 5.0]),
            ("slower", Unit::Seconds, [3.5, 4.0, 5.0]),
            ("more", Unit::PerSecond, [4.0, 4.0, 5.0]),
            ("fresh", Unit::Count, [1.0, 2.0, 3.0]),
        ]);
        let text = section(&old, &new);
        assert!(text.contains("1 figures did not move"), "{text}");
        assert!(text.contains("| slower | 2 s (1 s – 3 s) | 4 s (3.5 s – 5 s) | 2 ×, worse |"), "{text}");
        assert!(text.contains("| more | 2/s (1/s – 3/s) | 4/s (4/s – 5/s) | 2 ×, better |"), "{text}");
        assert!(text.contains("| gone |") && text.contains("| fresh |"), "{text}");
        assert!(!text.contains("| same |"), "{text}");
    }

    #[test]
    fn what_was_written_is_read() {
        let lines = lines(&[("one", Unit::Bytes, [1.0, 2.0, 3.0])]);
        let text = report::json_lines(&lines).expect("it is written");
        assert_eq!(report::parse(&text).expect("it is read"), lines);
    }
}
