//! Where each microsecond of one launch and of one checkpoint goes: the stages that the services and the process
//! have recorded of it, against what the caller and the workflow have waited in all.
//!
//! A launch is read off alone: what the histograms' exact sums have grown by between its start and its ending.
//! What belongs to no stage is a row too: frames on their way, and tasks and processes that wait for a processor.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use anyhow::Context as _;
use dormouse_workload::{Checkpoints, Saved};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::Instant,
};

use crate::{
    context::{Context, Store},
    figure::{Figure, Latencies, Unit, median},
    registry::{Entry, Findings, Kind, Measured, Run},
    services::Services,
    waterfall::{Row, Waterfall},
};

/// The stages of a request, in order.
const STAGES: [&str; 5] = ["decode", "queue", "commit", "answer", "reply"];
/// Bytes of a traced checkpoint.
const BYTES: usize = 1024;

pub(super) fn entries() -> [Entry; 1] {
    [Entry { name: "trace", kind: Kind::Workload, needs: &[], run: Run::OnEach(trace) }]
}

fn trace(context: &Context, store: Store) -> Measured<'_> {
    Box::pin(async move {
        let services = Services::start(context, store, &[]).await?;
        let launch = launches(context, &services).await?;
        let checkpoint = checkpoints(context, &services).await?;
        services.stop(context).await?;
        let mut findings = Findings::default();
        for (name, what, course) in [
            ("launch", "One launch, from the caller's start to the ending that it sees", launch),
            (
                "checkpoint",
                "One checkpoint of 1 KiB, from the workflow's call to its acknowledgement",
                checkpoint,
            ),
        ] {
            let waterfall = course.waterfall();
            let title = format!("{what} ({})", store.name());
            findings.sections.push(format!("## {title}\n\n{}", waterfall.text()));
            findings.charts.push((format!("trace-{name}-{}", store.name()), waterfall.svg(&title)));
            findings.figures.extend(course.figures(name, what));
        }
        Ok(findings)
    })
}

/// What was found of one kind of course: its parts in order, each with a median for each round.
struct Course {
    whole: Vec<Latencies>,
    parts: Vec<(&'static str, Vec<f64>)>,
}

impl Course {
    fn new() -> Self {
        Self { whole: Vec::new(), parts: Vec::new() }
    }

    /// Takes over a round: medians, in the order of the first one.
    fn add(&mut self, whole: Latencies, parts: impl IntoIterator<Item = (&'static str, f64)>) {
        self.whole.push(whole);
        for (name, seconds) in parts {
            match self.parts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, rounds)) => rounds.push(seconds),
                None => self.parts.push((name, vec![seconds])),
            }
        }
    }

    fn waterfall(&self) -> Waterfall {
        let whole = median(&self.whole.iter().map(|round| round.quantile(0.5)).collect::<Vec<_>>());
        let rows = self.parts.iter().map(|(name, rounds)| Row { name, seconds: median(rounds) });
        Waterfall::new(whole, rows.collect())
    }

    fn figures(&self, id: &str, what: &str) -> Vec<Figure> {
        let part = |(name, rounds): &(&str, Vec<f64>)| {
            let id = format!("trace.{id}.{}", name.replace(": ", ".").replace(' ', "_"));
            Figure::of(Unit::Seconds, id, format!("of that: {name}"), rounds.clone())
        };
        let mut figures = vec![Figure::latency(format!("trace.{id}"), what, &self.whole)];
        figures.extend(self.parts.iter().map(part));
        figures
    }
}

async fn launches(context: &Context, services: &Services) -> anyhow::Result<Course> {
    let (count, warm_up) = (context.count(50, 3), context.count(10, 1));
    let mut course = Course::new();
    for _ in 0..context.rounds() {
        for _ in 0..warm_up {
            one_launch(services).await?;
        }
        let (mut whole, mut each) = (Latencies::new(), Vec::new());
        for _ in 0..count {
            let (took, parts) = one_launch(services).await?;
            whole.add(took);
            each.push(parts);
        }
        course.add(whole, medians(&each));
    }
    Ok(course)
}

/// The median of each part.
fn medians(each: &[Vec<(&'static str, f64)>]) -> Vec<(&'static str, f64)> {
    let names = each.first().into_iter().flatten().map(|(name, _)| *name).enumerate();
    names
        .map(|(at, name)| (name, median(&each.iter().map(|parts| parts[at].1).collect::<Vec<_>>())))
        .collect()
}

/// How long the caller has waited in all, and its parts in order.
async fn one_launch(services: &Services) -> anyhow::Result<(Duration, Vec<(&'static str, f64)>)> {
    let before = Recorded::read(services).await?;
    let begun = Instant::now();
    let id = services.begin("trivial", &()).await?;
    let asked = begun.elapsed();
    services.completed(&id).await?;
    let took = begun.elapsed();
    let grown = Recorded::after(services, &before, &["ending.reply", "launch.exit"]).await?.since(&before);

    let stages = |of: &'static [(&'static str, &'static str)]| {
        of.iter().map(|(key, name)| (*name, grown.seconds(key))).collect::<Vec<_>>()
    };
    let sum = |parts: &[(&str, f64)]| parts.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let start = stages(&[
        ("start.queue", "start: queue"),
        ("start.commit", "start: commit"),
        ("start.answer", "start: answer"),
    ]);
    let register = stages(&[
        ("register.decode", "register: decode"),
        ("register.queue", "register: queue"),
        ("register.commit", "register: commit"),
        ("register.answer", "register: answer"),
        ("register.reply", "register: reply"),
    ]);
    let there_and_back = ("register: there and back", grown.seconds("launch.register") - sum(&register));
    let mut parts = vec![("start: there and back", asked.as_secs_f64() - sum(&start))];
    parts.extend(start);
    parts.extend(stages(&[
        ("launch.claim", "claim"),
        ("launch.queue", "queue of launches"),
        ("launch.verify", "verify the image"),
        ("launch.files", "make its files"),
        ("launch.exec", "exec"),
        ("launch.hand_over", "hand over the document"),
        ("launch.start", "process: start"),
        ("launch.endpoint", "process: endpoint"),
        ("launch.handshake", "handshake"),
    ]));
    parts.extend(register);
    parts.push(there_and_back);
    parts.extend(stages(&[
        ("launch.first_step", "process: to its ending"),
        ("ending.decode", "ending: decode"),
        ("ending.queue", "ending: queue"),
        ("ending.commit", "ending: commit"),
        ("ending.answer", "ending: answer"),
        ("ending.reply", "ending: reply"),
    ]));
    let elsewhere = took.as_secs_f64() - sum(&parts);
    parts.push(("between stages", elsewhere));
    Ok((took, parts))
}

async fn checkpoints(context: &Context, services: &Services) -> anyhow::Result<Course> {
    let input = Checkpoints { warm_up: 0, count: context.count(1000, 20), bytes: BYTES, gate: None };
    let mut course = Course::new();
    for round in 0..=context.rounds() {
        let before = Recorded::read(services).await?;
        let id = services.begin("checkpoints", &input).await?;
        let saved: Saved = services.output(&id).await?;
        // The first one warms up.
        if round == 0 {
            continue;
        }
        let grown = Recorded::after(services, &before, &["ending.reply"]).await?.since(&before);
        let whole: Latencies = saved.nanos.into_iter().map(Duration::from_nanos).collect();
        let mut parts: Vec<_> =
            STAGES.iter().map(|stage| (*stage, grown.median(&format!("checkpoint.{stage}")))).collect();
        let known: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
        parts.push(("there and back", whole.quantile(0.5) - known));
        course.add(whole, parts);
    }
    Ok(course)
}

/// What the services have recorded: `checkpoint.commit`, `launch.exec`.
#[derive(Clone, Debug, Default)]
struct Recorded(HashMap<String, Series>);

#[derive(Clone, Debug, Default)]
struct Series {
    count: u64,
    nanos: u64,
    /// From, to and count; seconds.
    buckets: Vec<(f64, f64, u64)>,
}

/// As `/metrics.json` has it.
#[derive(Deserialize)]
struct Written {
    histograms: Vec<WrittenSeries>,
}

#[derive(Deserialize)]
struct WrittenSeries {
    labels: HashMap<String, String>,
    count: u64,
    sum_nanos: u64,
    buckets: Vec<(f64, Option<f64>, u64)>,
}

impl Recorded {
    /// Of both services: where they are one process, its figures are both's.
    async fn read(services: &Services) -> anyhow::Result<Self> {
        let core =
            read_core(services.data_dir().join("core.metrics")).await.context("the figures of core")?;
        let environment = services.client().metrics_json().await?;
        let mut all = HashMap::new();
        for text in [environment, core] {
            let written: Written = serde_json::from_str(&text).context("the services' figures")?;
            for WrittenSeries { mut labels, count, sum_nanos, buckets } in written.histograms {
                let of = labels.remove("request").unwrap_or_else(|| "launch".to_owned());
                let key = format!("{of}.{}", labels.remove("stage").unwrap_or_default());
                let buckets = buckets.into_iter().map(|(from, to, count)| (from, to.unwrap_or(from), count));
                all.insert(key, Series { count, nanos: sum_nanos, buckets: buckets.collect() });
            }
        }
        Ok(Self(all))
    }

    /// As soon as each of these has grown: the last stages of a course are recorded when its caller goes on already.
    async fn after(services: &Services, before: &Self, last: &[&str]) -> anyhow::Result<Self> {
        const PAUSE: Duration = Duration::from_millis(2);
        let recorded = async {
            loop {
                let now = Self::read(services).await?;
                if last.iter().all(|key| now.count(key) > before.count(key)) {
                    return anyhow::Ok(now);
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        super::in_time("the services have recorded it", recorded).await?
    }

    /// What was recorded in between.
    fn since(&self, before: &Self) -> Self {
        let grown = |(key, now): (&String, &Series)| {
            let before = before.0.get(key).cloned().unwrap_or_default();
            let counted = |from: f64| before.buckets.iter().find(|bucket| bucket.0.total_cmp(&from).is_eq());
            let buckets = now.buckets.iter().map(|(from, to, count)| {
                (*from, *to, count - counted(*from).map_or(0, |(_, _, count)| *count))
            });
            let (count, nanos) = (now.count - before.count, now.nanos - before.nanos);
            (key.clone(), Series { count, nanos, buckets: buckets.collect() })
        };
        Self(self.0.iter().map(grown).collect())
    }

    fn count(&self, key: &str) -> u64 {
        self.0.get(key).map_or(0, |series| series.count)
    }

    /// All of it.
    fn seconds(&self, key: &str) -> f64 {
        self.0.get(key).map_or(0.0, |series| Duration::from_nanos(series.nanos).as_secs_f64())
    }

    /// The middle one, to a sixteenth: evenly spread inside its bucket.
    fn median(&self, key: &str) -> f64 {
        let Some(series) = self.0.get(key) else { return 0.0 };
        let mut before = 0;
        for (from, to, count) in &series.buckets {
            if 2 * (before + count) >= series.count && *count > 0 {
                #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
                let share = (series.count as f64 / 2.0 - before as f64) / *count as f64;
                return from + (to - from) * share;
            }
            before += count;
        }
        0.0
    }
}

/// As `curl --unix-socket` does it.
async fn read_core(socket: PathBuf) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(&socket).await.with_context(|| socket.display().to_string())?;
    stream.write_all(b"GET /metrics.json HTTP/1.1\r\nHost: dormouse\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (_, body) = text.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(buckets: &[(f64, f64, u64)]) -> Recorded {
        let count = buckets.iter().map(|bucket| bucket.2).sum();
        Recorded(HashMap::from([(
            "a.b".to_owned(),
            Series { count, nanos: count * 10, buckets: buckets.to_vec() },
        )]))
    }

    #[test]
    fn only_what_was_recorded_in_between_counts() {
        let before = series(&[(1.0, 2.0, 100)]);
        let grown = series(&[(1.0, 2.0, 101), (4.0, 5.0, 4), (8.0, 9.0, 1)]).since(&before);
        assert_eq!((grown.count("a.b"), grown.seconds("a.b")), (6, 60e-9));
        assert!((grown.median("a.b") - 4.5).abs() < 1e-9, "{}", grown.median("a.b"));
        assert!(grown.median("other").abs() < 1e-9);
    }

    #[test]
    fn medians_are_of_each_part() {
        let each = [vec![("x", 1.0), ("y", 9.0)], vec![("x", 3.0), ("y", 7.0)], vec![("x", 2.0), ("y", 8.0)]];
        assert_eq!(medians(&each), [("x", 2.0), ("y", 8.0)]);
    }
}
