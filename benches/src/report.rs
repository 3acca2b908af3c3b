//! report.md and figures.jsonl.

use std::{fmt::Write as _, time::Duration};

use anyhow::Context as _;

use crate::{
    judge::Line,
    machine::Machine,
    registry::Kind,
    show::{number, ranged, ratio},
};

/// Limits that moved further than this between the run's begin and end make its ratios doubtful.
const DRIFT: f64 = 0.15;

/// What a run found, for the report.
pub(crate) struct Run<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) lines: &'a [Line],
    pub(crate) sections: &'a [String],
    /// Entries that could not be measured, and why.
    pub(crate) failures: &'a [String],
    /// What was measured, in order, and how long that took.
    pub(crate) took: &'a [(String, Duration)],
    /// Files of charts, beside the report.
    pub(crate) charts: &'a [String],
    /// What moved since another run.
    pub(crate) comparison: Option<&'a str>,
}

/// One JSON object each line.
pub(crate) fn json_lines(lines: &[Line]) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line).context("a line of figures.jsonl")?;
        text.push('\n');
    }
    Ok(text)
}

/// Reads what [`json_lines`] wrote.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Line>> {
    let numbered = text.lines().enumerate();
    numbered
        .map(|(number, line)| serde_json::from_str(line).with_context(|| format!("line {}", number + 1)))
        .collect()
}

/// The whole report, as Markdown.
pub(crate) fn markdown(run: &Run<'_>) -> String {
    let mut text = String::from("# What was measured\n\n");
    text += &verdict(run);
    text += &machine(run.machine);
    text += &noise(run.lines);
    for chart in run.charts {
        text += &format!("![{chart}]({chart}.svg)\n\n");
    }
    text += &judged(run.lines);
    text += &reported(run.lines, Kind::Workload, "Reported, not judged");
    text += &reported(run.lines, Kind::Peer, "Other systems");
    text += &reported(run.lines, Kind::Build, "Builds");
    text += &reported(run.lines, Kind::Limit, "Limits: what the machine does without Dormouse");
    for section in run.sections.iter().map(String::as_str).chain(run.comparison) {
        text += section.trim_end();
        text += "\n\n";
    }
    text += &took(run.took);
    text.trim_end().to_owned() + "\n"
}

fn verdict(run: &Run<'_>) -> String {
    let mut text = String::new();
    if run.machine.quick || run.machine.profile != "release" {
        text += "**This run shows that the program works. Its figures are worth nothing**: the counts are too \
                 small, or the build is not optimised.\n\n";
    }
    let verdicts: Vec<bool> = run.lines.iter().filter_map(|line| Some(line.held.as_ref()?.met)).collect();
    let met = verdicts.iter().filter(|met| **met).count();
    if !verdicts.is_empty() {
        writeln!(text, "{met} of {} targets are met.\n", verdicts.len()).expect("a string takes all");
    }
    for failure in run.failures {
        writeln!(text, "**Not measured**: {failure}\n").expect("a string takes all");
    }
    text
}

fn machine(machine: &Machine) -> String {
    let memory = number(precise(machine.memory_bytes), crate::figure::Unit::Bytes);
    let rows = [
        ("when", machine.at.clone()),
        ("Dormouse", format!("{}, revision {}, {}", machine.version, machine.revision, machine.profile)),
        ("programs", machine.programs.clone()),
        ("machine", format!("{} cores, {}, {memory}", machine.cores, machine.cpu)),
        ("kernel", machine.kernel.clone()),
        ("disk", machine.disk.clone()),
        ("SQLite", machine.sqlite.clone()),
        ("PostgreSQL", machine.postgres.clone().unwrap_or_else(|| "not in this run".to_owned())),
        ("compiler", machine.rustc.clone()),
    ];
    let mut text = String::from("| | |\n|---|---|\n");
    for (name, value) in rows {
        writeln!(text, "| {name} | {value} |").expect("a string takes all");
    }
    text + "\n"
}

/// How long each part of the run took, set-up included: to plan the next one.
fn took(parts: &[(String, Duration)]) -> String {
    let all: Duration = parts.iter().map(|(_, took)| *took).sum();
    let mut text =
        format!("## How long it took\n\n{:.0} s in all.\n\n| | s |\n|---|---|\n", all.as_secs_f64());
    for (part, took) in parts {
        writeln!(text, "| {part} | {:.0} |", took.as_secs_f64()).expect("a string takes all");
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// Whether the machine was the same at the end as at the begin.
fn noise(lines: &[Line]) -> String {
    let drifts = lines.iter().filter_map(|line| Some((line, line.drift?)));
    let (mut count, mut moved) = (0, Vec::new());
    for (line, drift) in drifts {
        count += 1;
        if (drift - 1.0).abs() > DRIFT {
            moved.push(format!("{} {}", name(line), ratio(drift)));
        }
    }
    match (count, moved.is_empty()) {
        (0, _) => String::new(),
        (_, true) => format!(
            "The {count} limits were measured before and after everything else, and moved by at most {} %: a quiet machine.\n\n",
            DRIFT * 100.0
        ),
        (_, false) => format!(
            "**A noisy machine**: {} of {count} limits were not the same after everything else as before (after by before: {}). Ratios to them are doubtful.\n\n",
            moved.len(),
            moved.join(", ")
        ),
    }
}

fn judged(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let Some(held) = &line.held else { continue };
        let limit = held.limit.map_or_else(
            || "–".to_owned(),
            |limit| format!("{} = {}", held.against, number(limit, line.unit)),
        );
        let row = [
            line.id.clone(),
            line.what.clone(),
            store(line),
            figure(line),
            limit,
            held.ratio.map_or_else(|| "–".to_owned(), ratio),
            held.target.clone(),
            if held.met { "met".to_owned() } else { "**missed**".to_owned() },
        ];
        writeln!(text, "| {} |", row.join(" | ")).expect("a string takes all");
    }
    if text.is_empty() {
        return text;
    }
    let head = "## Targets\n\nFigures are the median of the rounds with their range; a latency is a round's p50.\n\n\
                | workload | what | store | figure | limit | ratio | target | |\n|---|---|---|---|---|---|---|---|\n";
    format!("{head}{text}\n")
}

fn reported(lines: &[Line], kind: Kind, title: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.kind == kind && line.held.is_none()) {
        let (p99, max) = line.spread.map_or(("–".to_owned(), "–".to_owned()), |spread| {
            (number(spread.p99, line.unit), number(spread.max, line.unit))
        });
        let row = [line.id.clone(), line.what.clone(), store(line), figure(line), p99, max];
        writeln!(text, "| {} |", row.join(" | ")).expect("a string takes all");
    }
    if text.is_empty() {
        return text;
    }
    format!("## {title}\n\n| | what | store | figure | p99 | max |\n|---|---|---|---|---|---|\n{text}\n")
}

fn figure(line: &Line) -> String {
    let figure = ranged(line.median, line.lowest, line.highest, line.unit);
    match (&line.held, line.spread) {
        (Some(_), Some(spread)) => {
            format!("{figure}; p99 {}, max {}", number(spread.p99, line.unit), number(spread.max, line.unit))
        }
        _ => figure,
    }
}

fn store(line: &Line) -> String {
    line.store.map_or("–", crate::context::Store::name).to_owned()
}

/// `commit.sqlite`, or `echo`.
pub(crate) fn name(line: &Line) -> String {
    line.store.map_or_else(|| line.id.clone(), |store| format!("{}.{}", line.id, store.name()))
}
