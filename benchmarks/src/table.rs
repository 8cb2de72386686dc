//! The one table: target beside figure.

use crate::sample::Sample;

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// This or more.
    AtLeast(f64),
    /// It is told for its own sake.
    None,
}

/// What a figure is of, and so how it is shown.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// One thing over another.
    Ratio,
    /// Seconds, shown as they are or in thousandths.
    Seconds,
    Milliseconds,
    Microseconds,
    /// Instructions of the guest, shown in millions or as they are.
    MegaInstructions,
    Instructions,
    /// Bytes in a second, shown in MB/s.
    Rate,
    /// Bytes, shown in MiB or in MB.
    Mebibytes,
    Megabytes,
    /// So many of something.
    Count,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    target: Target,
    unit: Unit,
    /// `None` if it could not be measured here.
    sample: Option<Sample>,
}

impl Row {
    /// Many measurements of one thing: the figure is their median.
    pub fn new(what: impl Into<String>, target: Target, unit: Unit, sample: Sample) -> Self {
        Self {
            what: what.into(),
            target,
            unit,
            sample: Some(sample),
        }
    }

    /// What cannot be measured here, as this machine lacks what it takes.
    pub fn skipped(what: &str, reason: &str) -> Self {
        Self {
            what: format!("{what}: skipped, {reason}"),
            target: Target::None,
            unit: Unit::Count,
            sample: None,
        }
    }

    /// What is the same whenever one looks.
    pub fn once(what: impl Into<String>, target: Target, unit: Unit, value: f64) -> Self {
        Self::new(what, target, unit, Sample::of(vec![value]))
    }

    fn cells(&self) -> [String; 6] {
        let Some(sample) = &self.sample else {
            let mut cells = [(); 6].map(|()| String::new());
            cells[0].clone_from(&self.what);
            return cells;
        };
        let figure = sample.median();
        let shown = |value| self.unit.shown(value);
        let (target, met) = match self.target {
            Target::AtMost(most) => (format!("≤ {}", shown(most)), figure <= most),
            Target::Below(limit) => (format!("< {}", shown(limit)), figure < limit),
            Target::AtLeast(least) => (format!("≥ {}", shown(least)), figure >= least),
            Target::None => (String::new(), true),
        };
        let met = match (self.target, met) {
            (Target::None, _) => "",
            (_, true) => "yes",
            (_, false) => "NO",
        };
        let (spread, of) = match sample.len() {
            1 => (String::new(), String::new()),
            count => {
                let (low, high) = sample.middle_half();
                (
                    format!("{} – {}", shown(low), shown(high)),
                    count.to_string(),
                )
            }
        };
        [
            self.what.clone(),
            target,
            shown(figure),
            met.to_owned(),
            spread,
            of,
        ]
    }
}

impl Unit {
    fn shown(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.2}"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{:.1} ms", value * 1e3),
            Self::Microseconds => format!("{:.2} µs", value * 1e6),
            Self::MegaInstructions => format!("{:.1} M", value / 1e6),
            Self::Instructions => format!("{value:.0}"),
            Self::Rate => format!("{:.0} MB/s", value / 1e6),
            Self::Mebibytes => format!("{:.2} MiB", value / f64::from(1 << 20)),
            Self::Megabytes => format!("{:.1} MB", value / 1e6),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// The table as text.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let head = ["", "TARGET", "FIGURE", "MET", "MIDDLE HALF", "OF"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head)
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: [usize; 6] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for line in &lines {
        let cells =
            line.iter()
                .zip(widths)
                .enumerate()
                .map(|(column, (cell, width))| match column {
                    0 | 3 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                });
        let cells: Vec<String> = cells.collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_or_not() {
        let row = |target, value| Row::once("x", target, Unit::Ratio, value).cells()[3].clone();
        assert_eq!(row(Target::AtMost(1.0), 1.0), "yes");
        assert_eq!(row(Target::AtMost(1.0), 1.001), "NO");
        assert_eq!(row(Target::Below(1.0), 1.0), "NO");
        assert_eq!(row(Target::AtLeast(1.0), 0.999), "NO");
        assert_eq!(row(Target::None, 5.0), "");
        let skipped = Row::skipped("x", "there is none").cells();
        assert_eq!(skipped.concat(), "x: skipped, there is none");
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            Row::once("short", Target::AtMost(1.4), Unit::Ratio, 1.25),
            Row::new(
                "much longer",
                Target::None,
                Unit::Seconds,
                Sample::of(vec![1.0, 2.0, 3.0]),
            ),
        ];
        let text = table(&rows);
        assert_eq!(
            text,
            "             TARGET  FIGURE  MET      MIDDLE HALF  OF\n\
             short        ≤ 1.40    1.25  yes\n\
             much longer          2.00 s       1.00 s – 3.00 s   3\n"
        );
    }
}
