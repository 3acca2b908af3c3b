//! One run: limits, workloads, limits again; then the report.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    args::Arguments,
    charts, compare,
    context::{Context, Store},
    figure::Figure,
    judge::{self, Line, Measured},
    machine::Machine,
    registry::{self, Entry, Findings, Kind, Run},
    report,
};

/// Everything that was found so far.
#[derive(Default)]
struct Found {
    measured: Vec<Measured>,
    sections: Vec<String>,
    charts: Vec<(String, String)>,
    /// What could not be measured. The rest still can.
    failures: Vec<String>,
    took: Vec<(String, Duration)>,
}

/// Measures, and says what came out. False if something could not be measured.
pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let entries = registry::chosen(&arguments.names, arguments.quick)?;
    // What cannot be read is better known before an hour of measuring than after.
    let old = arguments.compare.as_deref().map(compare::load).transpose()?;
    let context = Context::prepare(arguments)?;
    let machine = Machine::look(&context).await?;

    let mut found = Found::default();
    for entry in &entries {
        found.measure(&context, entry).await;
    }
    let limits = entries.iter().filter(|entry| entry.kind == Kind::Limit);
    if limits.clone().count() < entries.len() {
        // A quick run shows that it works, which one limit does as well as all.
        for entry in limits.take(if context.is_quick() { 1 } else { usize::MAX }) {
            found.measure_again(&context, entry).await;
        }
    }

    let lines = found.judge(&machine);
    found.charts.extend(charts::draw(&lines));
    let comparison = old.map(|old| compare::section(&old, &lines));
    let names: Vec<String> = found.charts.iter().map(|(name, _)| name.clone()).collect();
    let report = report::markdown(&report::Run {
        machine: &machine,
        lines: &lines,
        sections: &found.sections,
        failures: &found.failures,
        took: &found.took,
        charts: if arguments.out.is_some() { &names } else { &[] },
        comparison: comparison.as_deref(),
    });
    match &arguments.out {
        Some(folder) => {
            write(folder, &report, &lines, &found.charts)
                .with_context(|| format!("--out {}", folder.display()))?;
            print!("{}", comparison.unwrap_or_default());
        }
        None => print!("{report}"),
    }
    Ok(found.failures.is_empty())
}

impl Found {
    /// An entry that fails takes neither the others nor its other store with it.
    async fn measure(&mut self, context: &Context, entry: &Entry) {
        for store in places(context, entry) {
            match self.timed(context, entry, store).await {
                Ok(findings) => {
                    self.sections.extend(findings.sections);
                    self.charts.extend(findings.charts);
                    for figure in findings.figures {
                        let before = figure.rounds.len();
                        self.measured.push(Measured { entry: entry.name, kind: entry.kind, figure, before });
                    }
                }
                Err(error) => self.failed(&place(entry, store), &error),
            }
        }
    }

    /// A limit's rounds of afterwards join those of before.
    async fn measure_again(&mut self, context: &Context, entry: &Entry) {
        for store in places(context, entry) {
            match self.timed(context, entry, store).await {
                Ok(findings) => findings.figures.iter().for_each(|later| self.append(later)),
                Err(error) => self.failed(&place(entry, store), &error),
            }
        }
    }

    async fn timed(
        &mut self,
        context: &Context,
        entry: &Entry,
        store: Option<Store>,
    ) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let findings = measured(context, entry, store).await;
        self.took.push((place(entry, store), begun.elapsed()));
        findings
    }

    /// What failed before is a failure already.
    fn append(&mut self, later: &Figure) {
        let same = |one: &&mut Measured| (&one.figure.id, one.figure.store) == (&later.id, later.store);
        if let Some(before) = self.measured.iter_mut().find(same) {
            before.figure.append(later);
        }
    }

    fn failed(&mut self, what: &str, error: &anyhow::Error) {
        let failure = format!("{what}: {error:#}");
        eprintln!("{failure}");
        self.failures.push(failure);
    }

    /// A figure whose limit is missing is a failure of its own; it is then only reported.
    fn judge(&mut self, machine: &Machine) -> Vec<Line> {
        loop {
            match judge::judge(&self.measured, machine) {
                Ok(lines) => return lines,
                Err((index, error)) => {
                    self.failures.push(format!("{}: {error:#}", self.measured[index].entry));
                    self.measured[index].figure.held = None;
                }
            }
        }
    }
}

/// Where an entry is measured: on each store if it has to do with them.
fn places(context: &Context, entry: &Entry) -> Vec<Option<Store>> {
    match entry.run {
        Run::Once(_) => vec![None],
        Run::OnEach(_) => context.stores().iter().copied().map(Some).collect(),
    }
}

async fn measured(context: &Context, entry: &Entry, store: Option<Store>) -> anyhow::Result<Findings> {
    eprintln!("{}", place(entry, store));
    let mut found = match (entry.run, store) {
        (Run::OnEach(run), Some(store)) => run(context, store).await?,
        (Run::Once(run), _) => run(context).await?,
        (Run::OnEach(_), None) => unreachable!("it has places"),
    };
    for figure in &mut found.figures {
        figure.store = figure.store.or(store);
    }
    Ok(found)
}

fn place(entry: &Entry, store: Option<Store>) -> String {
    store.map_or_else(|| entry.name.to_owned(), |store| format!("{} on {}", entry.name, store.name()))
}

fn write(folder: &Path, report: &str, lines: &[Line], charts: &[(String, String)]) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("report.md"), report)?;
    fs::write(folder.join("figures.jsonl"), report::json_lines(lines)?)?;
    for (name, svg) in charts {
        fs::write(folder.join(format!("{name}.svg")), svg)?;
    }
    Ok(())
}
