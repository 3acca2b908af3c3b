//! A waterfall: parts that follow each other, as text for the report and as a chart.

use std::fmt::Write as _;

use crate::{charts, figure::Unit, show};

/// Characters of the longest bar.
const COLUMNS: usize = 48;

/// One part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
}

/// A whole and its parts, in order. Medians of parts need not add up to the median of the whole, and parts that
/// overlap add up to more: a part below zero is drawn as none.
#[derive(Debug)]
pub(crate) struct Waterfall {
    whole: f64,
    rows: Vec<Row>,
}

/// Where a part is drawn, as shares of the whole width.
struct Place {
    from: f64,
    length: f64,
}

impl Waterfall {
    pub(crate) fn new(whole: f64, rows: Vec<Row>) -> Self {
        Self { whole, rows }
    }

    fn places(&self) -> Vec<Place> {
        let width = self.rows.iter().map(|row| row.seconds.max(0.0)).sum::<f64>().max(self.whole).max(1e-9);
        let mut from = 0.0;
        let place = |row: &Row| {
            let length = row.seconds.max(0.0) / width;
            let place = Place { from, length };
            from += length;
            place
        };
        self.rows.iter().map(place).collect()
    }

    /// A code block of Markdown: name, time, share, and a bar where it begins.
    pub(crate) fn text(&self) -> String {
        let names = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let mut text = String::from("```\n");
        let mut line = |name: &str, seconds: f64, bar: &str| {
            let share = 100.0 * seconds / self.whole.max(1e-9);
            let took = show::number(seconds, Unit::Seconds);
            let line = format!("{name:<names$}  {took:>9}  {share:>5.1} %  {bar}");
            writeln!(text, "{}", line.trim_end()).expect("a string takes all");
        };
        for (row, place) in self.rows.iter().zip(self.places()) {
            let from = columns(place.from);
            // Every part is seen, but for those below zero.
            let least = usize::from(row.seconds > 0.0);
            let length = columns(place.from + place.length).saturating_sub(from).max(least);
            line(row.name, row.seconds, &format!("{}{}", " ".repeat(from), "█".repeat(length)));
        }
        line("all of it", self.whole, "");
        text + "```\n"
    }

    /// The same as a chart.
    pub(crate) fn svg(&self, title: &str) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .zip(self.places())
            .map(|(row, place)| {
                (row.name, place.from, place.length, show::number(row.seconds, Unit::Seconds))
            })
            .collect();
        let whole = show::number(self.whole, Unit::Seconds);
        charts::waterfall(&format!("{title}: {whole}"), &rows)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a line"
)]
fn columns(share: f64) -> usize {
    (share.clamp(0.0, 1.0) * COLUMNS as f64).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let row = |name, seconds| Row { name, seconds };
        let waterfall =
            Waterfall::new(4e-3, vec![row("one", 1e-3), row("two and more", 3e-3), row("none", -1e-3)]);
        let text = waterfall.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("one                1 ms   25.0 %  {}", "█".repeat(12)));
        assert_eq!(
            lines[2],
            format!("two and more       3 ms   75.0 %  {}{}", " ".repeat(12), "█".repeat(36))
        );
        assert!(lines[4].starts_with("all of it          4 ms  100.0 %"), "{text}");
        let svg = waterfall.svg("A launch");
        assert!(svg.contains("A launch: 4 ms") && svg.contains("two and more"), "{svg}");
    }
}
