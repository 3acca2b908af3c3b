//! Numbers as people read them.

use crate::figure::{Target, Unit};

/// With three digits and a unit that fits.
pub(crate) fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds => {
            let (factor, name) = match value {
                small if small < 1e-3 => (1e6, "µs"),
                small if small < 1.0 => (1e3, "ms"),
                _ => (1.0, "s"),
            };
            format!("{} {name}", digits(value * factor))
        }
        Unit::PerSecond => format!("{}/s", digits(value)),
        Unit::Bytes => {
            let (factor, name) = match value {
                small if small < 1024.0 * 1024.0 => (1024.0, "KiB"),
                _ => (1024.0 * 1024.0, "MiB"),
            };
            format!("{} {name}", digits(value / factor))
        }
        Unit::Core => format!("{} %", digits(value * 100.0)),
        Unit::Count => digits(value),
    }
}

/// The median, with the range of the rounds.
pub(crate) fn ranged(median: f64, lowest: f64, highest: f64, unit: Unit) -> String {
    let all = number(median, unit);
    if lowest.total_cmp(&highest).is_eq() {
        return all;
    }
    // The unit once: a range in the median's unit reads best.
    format!("{all} ({} – {})", number(lowest, unit), number(highest, unit))
}

pub(crate) fn target(target: Target, unit: Unit) -> String {
    match target {
        Target::AtMostTimes(times) => format!("≤ {} ×", digits(times)),
        Target::AtLeastTimes(times) => format!("≥ {} ×", digits(times)),
        Target::AtMostMore(more) => format!("≤ + {}", number(more, unit)),
        Target::AtMost(most) => format!("≤ {}", number(most, unit)),
    }
}

pub(crate) fn ratio(ratio: f64) -> String {
    format!("{} ×", digits(ratio))
}

/// Three digits that matter, thousands apart.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.1 || small == 0.0 => 2,
        tiny if tiny >= 0.01 => 3,
        _ => 4,
    };
    let text = format!("{value:.places$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), ""), |(whole, fraction)| (whole, fraction));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && digit != '-' && (whole.len() - index) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit_that_fits() {
        for (value, unit, shown) in [
            (0.000_037_4, Unit::Seconds, "37.4 µs"),
            (0.001_82, Unit::Seconds, "1.82 ms"),
            (12.0, Unit::Seconds, "12 s"),
            (1_234_567.8, Unit::PerSecond, "1,234,568/s"),
            (412.0, Unit::PerSecond, "412/s"),
            (235_520.0, Unit::Bytes, "230 KiB"),
            (0.000_57, Unit::Core, "0.057 %"),
            (1.0, Unit::Count, "1"),
            (0.0, Unit::Bytes, "0 KiB"),
        ] {
            assert_eq!(number(value, unit), shown);
        }
        assert_eq!(ranged(1.0, 1.0, 1.0, Unit::Seconds), "1 s");
        assert_eq!(target(Target::AtMostMore(163_840.0), Unit::Bytes), "≤ + 160 KiB");
    }
}
