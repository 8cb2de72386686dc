//! Tables, times and sizes as people read them.

use std::{fmt::Write as _, io::Write as _};

use crate::container::timeline::{Event, Ms, Timeline};

/// Between two columns.
const GAP: usize = 3;

/// Lines up rows under a heading. Nothing follows the last column.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}", width = width + GAP);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Writes to standard error, where nobody may be left to read.
pub fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// How long something took, as Docker says it.
pub fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (seconds, minutes, hours, days) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (_, 0, ..) => format!("{seconds} seconds"),
        (_, 1, ..) => "About a minute".to_owned(),
        (_, _, 0, _) => format!("{minutes} minutes"),
        (_, _, 1, _) => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if days < 14 => format!("{days} days"),
        _ if days < 60 => format!("{} weeks", days / 7),
        _ if days < 730 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// A number of bytes, as Docker says it: powers of a thousand, three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    // Three digits are shown.
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes}B"),
        (_, value) if value < 9.995 => format!("{value:.2}{}", UNITS[unit]),
        (_, value) if value < 99.95 => format!("{value:.1}{}", UNITS[unit]),
        _ => format!("{value:.0}{}", UNITS[unit]),
    }
}

/// What happened when, in milliseconds since the first event.
pub fn timeline_table(timeline: &Timeline) -> String {
    let mut before = 0;
    let rows: Vec<Vec<String>> = timeline
        .since_start()
        .into_iter()
        .map(|(event, ns)| {
            let step = ns - before;
            before = ns;
            let what = format!("{:<20}", event.name());
            vec![what, format!("{:>9}", Ms(ns)), format!("{:>9}", Ms(step))]
        })
        .collect();
    table(&["EVENT", "       MS", "    +MS"], &rows)
}

/// The same for programs.
pub fn timeline_json(timeline: &Timeline) -> String {
    let events: Vec<_> = timeline
        .since_start()
        .into_iter()
        .map(|(event, ns): (Event, u64)| {
            // Microseconds, which a double counts exactly.
            #[allow(clippy::cast_precision_loss)]
            let ms = (ns / 1000) as f64 / 1000.0;
            serde_json::json!({"name": event.name(), "ms": ms})
        })
        .collect();
    format!("{}\n", serde_json::json!({ "events": events }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["a".into(), "b".into()].to_vec(),
            ["longer".into(), String::new()].to_vec(),
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID       NAME\na        b\nlonger\n"
        );
    }

    #[test]
    fn durations_and_sizes_are_dockers() {
        let s = 1_000_000_000;
        for (ns, text) in [
            (s / 2, "Less than a second"),
            (s, "1 second"),
            (59 * s, "59 seconds"),
            (60 * s, "About a minute"),
            (180 * s, "3 minutes"),
            (3600 * s, "About an hour"),
            (47 * 3600 * s, "47 hours"),
            (3 * 86_400 * s, "3 days"),
            (21 * 86_400 * s, "3 weeks"),
            (100 * 86_400 * s, "3 months"),
            (800 * 86_400 * s, "2 years"),
        ] {
            assert_eq!(duration(ns), text);
        }
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1_950_000, "1.95MB"),
            (19_500_000, "19.5MB"),
            (195_000_000, "195MB"),
            (999_600_000, "1.00GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
