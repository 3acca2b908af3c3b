//! The figures as text: in the exposition format of Prometheus, and as JSON for programs that want them finer.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::histogram::quantile;
use super::{Bucket, Histogram, Launch, Request, Stage, TIMINGS, Timings};

/// How the figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text that Prometheus reads: a bucket for each doubling, from 1 µs to 67 s.
    Prometheus,
    /// One object, with quantiles and all buckets that are not empty.
    Json,
}

impl Format {
    /// Reads its word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "prometheus" => Some(Self::Prometheus),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// A family of histograms.
struct Family {
    name: &'static str,
    help: &'static str,
}

const REQUESTS: Family = Family {
    name: "dormouse_request_seconds",
    help: "How long the stages of requests took, from their last byte to their answer.",
};
const LAUNCHES: Family = Family {
    name: "dormouse_launch_seconds",
    help: "How long the stages of launches took, from the look for due wakes to the told exit.",
};

/// One series: its labels and its figures.
struct Series<'a> {
    labels: Vec<(&'static str, &'static str)>,
    histogram: &'a Histogram,
}

/// All figures of this process.
pub fn render(format: Format) -> String {
    match format {
        Format::Prometheus => prometheus(&TIMINGS),
        Format::Json => json(&TIMINGS),
    }
}

fn families(timings: &Timings) -> [(Family, Vec<Series<'_>>); 2] {
    let requests = Request::ALL.iter().flat_map(|request| {
        Stage::ALL.iter().map(|stage| Series {
            labels: vec![("request", request.as_str()), ("stage", stage.as_str())],
            histogram: timings.request(*request, *stage),
        })
    });
    let launches = Launch::ALL
        .iter()
        .map(|stage| Series { labels: vec![("stage", stage.as_str())], histogram: timings.launch(*stage) });
    [(REQUESTS, requests.collect()), (LAUNCHES, launches.collect())]
}

/// Series without a figure are left out: most services have no use for most of them.
fn prometheus(timings: &Timings) -> String {
    let mut text = String::new();
    for (Family { name, help }, series) in families(timings) {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for Series { labels, histogram } in series {
            let labels: Vec<_> = labels.iter().map(|(label, word)| format!("{label}=\"{word}\"")).collect();
            write_series(&mut text, name, &labels.join(","), histogram);
        }
    }
    text
}

fn write_series(text: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let buckets = histogram.buckets();
    // The sum of the buckets, not a counter beside them: so what is written is never at odds with itself.
    let count: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    if count == 0 {
        return;
    }
    for doubling in 0..=26 {
        let limit = Duration::from_micros(1 << doubling);
        let below: u64 = buckets.iter().filter(|bucket| bucket.to <= limit).map(|bucket| bucket.count).sum();
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{}\"}} {below}", limit.as_secs_f64());
    }
    let sum = Duration::from_nanos(histogram.sum_nanos()).as_secs_f64();
    let _ = write!(
        text,
        "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}\n"
    );
}

fn json(timings: &Timings) -> String {
    let mut all = Vec::new();
    for (Family { name, .. }, series) in families(timings) {
        for Series { labels, histogram } in series {
            let buckets = histogram.buckets();
            if buckets.is_empty() {
                continue;
            }
            let labels: serde_json::Map<_, _> =
                labels.into_iter().map(|(label, word)| (label.to_owned(), word.into())).collect();
            let at = |share| quantile(&buckets, share).as_secs_f64();
            all.push(json!({
                "name": name,
                "labels": labels,
                "count": buckets.iter().map(|bucket| bucket.count).sum::<u64>(),
                "sum_nanos": histogram.sum_nanos(),
                "p50_seconds": at(0.5),
                "p90_seconds": at(0.9),
                "p99_seconds": at(0.99),
                "max_seconds": at(1.0),
                "buckets": buckets.iter().map(fine).collect::<Vec<_>>(),
            }));
        }
    }
    json!({ "histograms": all }).to_string()
}

/// `[from, to, count]` in seconds; `to` is null in the bucket without an end.
fn fine(bucket: &Bucket) -> serde_json::Value {
    let to = (bucket.to < Duration::MAX).then_some(bucket.to.as_secs_f64());
    json!([bucket.from.as_secs_f64(), to, bucket.count])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Box<Timings> {
        let timings = Box::new(Timings::new());
        let commit = timings.request(Request::Checkpoint, Stage::Commit);
        for micros in [80, 90, 300] {
            commit.record(Duration::from_micros(micros));
        }
        timings.launch(Launch::HandOver).record(Duration::from_secs(100));
        timings
    }

    #[test]
    fn prometheus_reads_growing_buckets_sums_and_counts() {
        let text = prometheus(&recorded());
        let checkpoint = "request=\"checkpoint\",stage=\"commit\"";
        for line in [
            "# TYPE dormouse_request_seconds histogram".to_owned(),
            format!("dormouse_request_seconds_bucket{{{checkpoint},le=\"0.000064\"}} 0"),
            format!("dormouse_request_seconds_bucket{{{checkpoint},le=\"0.000128\"}} 2"),
            format!("dormouse_request_seconds_bucket{{{checkpoint},le=\"0.000512\"}} 3"),
            format!("dormouse_request_seconds_bucket{{{checkpoint},le=\"+Inf\"}} 3"),
            format!("dormouse_request_seconds_sum{{{checkpoint}}} 0.00047"),
            format!("dormouse_request_seconds_count{{{checkpoint}}} 3"),
            "dormouse_launch_seconds_bucket{stage=\"hand_over\",le=\"67.108864\"} 0".to_owned(),
            "dormouse_launch_seconds_bucket{stage=\"hand_over\",le=\"+Inf\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|written| written == line), "{line} in\n{text}");
        }
        assert!(!text.contains("register"), "a series that nobody recorded:\n{text}");
    }

    #[test]
    fn programs_read_exact_sums_and_fine_buckets() {
        let text = json(&recorded());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let checkpoint = &value["histograms"][0];
        assert_eq!(checkpoint["labels"]["request"], "checkpoint");
        assert_eq!((&checkpoint["count"], &checkpoint["sum_nanos"]), (&json!(3), &json!(470_000)));
        let p50 = checkpoint["p50_seconds"].as_f64().expect("a number");
        assert!((85e-6..=96e-6).contains(&p50), "{p50}");
        let launch = &value["histograms"][1];
        assert_eq!(launch["buckets"][0][1], json!(null), "the last bucket has no end");
    }

    #[test]
    fn what_is_written_is_bounded() {
        let timings = Box::new(Timings::new());
        for (_, series) in families(&timings) {
            for Series { histogram, .. } in series {
                (0..36).for_each(|n| histogram.record(Duration::from_nanos(1 << n)));
            }
        }
        let (n_prometheus, n_json) = (prometheus(&timings).len(), json(&timings).len());
        assert!(n_prometheus < 256 << 10 && n_json < 1 << 20, "{n_prometheus} and {n_json} bytes");
    }
}
