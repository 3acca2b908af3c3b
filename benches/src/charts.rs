//! Charts as SVG, for light and dark pages: how far each figure is from its target, and the latencies with
//! their tails.

use std::fmt::Write as _;

use crate::{figure::Unit, judge::Line, report::name, show};

const WIDTH: f64 = 760.0;
/// Where the bars begin, and how long they may be.
const LEFT: f64 = 170.0;
const LENGTH: f64 = 420.0;
const ROW: f64 = 22.0;
const TOP: f64 = 56.0;

/// Names of files without ending, and their texts. None where there is nothing to draw.
pub(crate) fn draw(lines: &[Line]) -> Vec<(String, String)> {
    let targets = targets(lines).map(|svg| ("targets".to_owned(), svg));
    let latencies = latencies(lines).map(|svg| ("latencies".to_owned(), svg));
    targets.into_iter().chain(latencies).collect()
}

/// A bar for each judged figure: what it uses of what its target allows. The line is the target.
fn targets(lines: &[Line]) -> Option<String> {
    const MOST: f64 = 2.0;
    let judged: Vec<_> = lines.iter().filter_map(|line| Some((line, line.held.as_ref()?))).collect();
    if judged.is_empty() {
        return None;
    }
    let mut body = String::new();
    for (row, (line, held)) in judged.iter().enumerate() {
        let y = top(row);
        let length = held.used.min(MOST) / MOST * LENGTH;
        let class = if held.met { "met" } else { "missed" };
        body += &label(y, &name(line));
        body += &format!(
            r#"<rect class="{class}" x="{LEFT}" y="{:.0}" width="{length:.1}" height="12" rx="2"/>"#,
            y + 5.0
        );
        let told = match held.ratio {
            Some(ratio) => format!("{} of {}", show::ratio(ratio), held.target),
            None => format!("{} of {}", show::number(line.median, line.unit), held.target),
        };
        body += &text(LEFT + length + 6.0, y + 15.0, &told);
    }
    let x = LEFT + LENGTH / MOST;
    body += &vertical(x, judged.len());
    body += &format!(r#"<text x="{x:.1}" y="48" text-anchor="middle">target</text>"#);
    Some(svg("How much of each target is used (shorter is better)", judged.len(), &body))
}

/// From p50 by p99 to the slowest, on a logarithmic scale.
fn latencies(lines: &[Line]) -> Option<String> {
    let spreads: Vec<_> = lines.iter().filter_map(|line| Some((line, line.spread?))).collect();
    let lowest = spreads.iter().map(|(_, spread)| spread.p50).reduce(f64::min)?;
    let highest = spreads.iter().map(|(_, spread)| spread.max).reduce(f64::max)?;
    let (from, to) = (lowest.max(1e-9).log10().floor(), highest.max(1e-9).log10().ceil());
    let decades = (to - from).max(1.0);
    let x = |seconds: f64| LEFT + (seconds.max(1e-9).log10() - from) / decades * LENGTH;
    let mut body = String::new();
    let mut decade = from;
    while decade <= to {
        let seconds = 10f64.powf(decade);
        body += &vertical(x(seconds), spreads.len());
        let told = show::number(seconds, Unit::Seconds);
        body += &format!(r#"<text x="{:.1}" y="48" text-anchor="middle">{told}</text>"#, x(seconds));
        decade += 1.0;
    }
    for (row, (line, spread)) in spreads.iter().enumerate() {
        let y = top(row);
        body += &label(y, &name(line));
        let (p50, p99, max) = (x(spread.p50), x(spread.p99), x(spread.max));
        body += &format!(r#"<path class="tail" d="M{p50:.1} {0:.0}H{max:.1}"/>"#, y + 11.0);
        body += &format!(r#"<path class="most" d="M{p50:.1} {0:.0}H{p99:.1}"/>"#, y + 11.0);
        body += &format!(r#"<circle class="p50" cx="{p50:.1}" cy="{:.0}" r="4"/>"#, y + 11.0);
        body += &text(max + 8.0, y + 15.0, &show::number(spread.p50, Unit::Seconds));
    }
    Some(svg("Latencies: p50 (dot), to p99 (thick), to the slowest (thin)", spreads.len(), &body))
}

/// Bars that follow each other: name, where it begins and how long it is as shares of the whole, and what is
/// written beside it.
pub(crate) fn waterfall(title: &str, rows: &[(&str, f64, f64, String)]) -> String {
    let mut body = String::new();
    for (row, (name, from, length, told)) in rows.iter().enumerate() {
        let (y, x, length) = (top(row) - 16.0, LEFT + from * LENGTH, (length * LENGTH).max(1.0));
        body += &label(y, name);
        body +=
            &format!(r#"<rect class="met" x="{x:.1}" y="{:.0}" width="{length:.1}" height="12"/>"#, y + 5.0);
        body += &text(x + length + 6.0, y + 15.0, told);
    }
    svg(title, rows.len(), &body)
}

#[expect(clippy::cast_precision_loss, reason = "there are a hundred rows at most")]
fn top(row: usize) -> f64 {
    TOP + row as f64 * ROW
}

fn label(y: f64, label: &str) -> String {
    format!(r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{label}</text>"#, LEFT - 8.0, y + 15.0)
}

fn text(x: f64, y: f64, text: &str) -> String {
    format!(r#"<text class="note" x="{x:.1}" y="{y:.0}">{text}</text>"#)
}

fn vertical(x: f64, rows: usize) -> String {
    format!(r#"<path class="axis" d="M{x:.1} {TOP:.0}V{:.0}"/>"#, top(rows))
}

/// Our own words only: nothing to escape.
fn svg(title: &str, rows: usize, body: &str) -> String {
    let height = top(rows) + 12.0;
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{title}">"#
    )
    .expect("a string takes all");
    svg += "<style>\
        text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:14px}.note{fill:#57606a}\
        .axis{stroke:#8c959f;stroke-width:1}.met,.p50{fill:#2da44e}.missed{fill:#cf222e}\
        .most{stroke:#2da44e;stroke-width:5}.tail{stroke:#8c959f;stroke-width:1.5}\
        .page{fill:#fff}\
        @media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.page{fill:#0d1117}\
        .axis,.tail{stroke:#656c76}.met,.p50{fill:#3fb950}.most{stroke:#3fb950}.missed{fill:#f85149}}\
        </style>";
    writeln!(
        svg,
        r#"<rect class="page" width="100%" height="100%"/><text class="title" x="12" y="24">{title}</text>"#
    )
    .expect("a string takes all");
    svg + &body.replace("/><", "/>\n<").replace("</text><", "</text>\n<") + "\n</svg>\n"
}
