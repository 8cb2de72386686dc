//! What came of all cases, for people.

use std::{fmt, time::Duration};

use super::{Blow, Case, Phase, Victim};

/// How long what belongs to a container may be there after its end, on a machine with nothing else to do.
const SOON: Duration = Duration::from_secs(1);

/// The rounds of each case.
#[derive(Debug, Default)]
pub struct Table {
    rounds: Vec<(Case, Option<Duration>, bool)>,
}

impl Table {
    /// Adds a round: whether all went well, and how long it took until nothing was left, if that says something.
    pub fn add(&mut self, case: Case, passed: bool, gone_after: Option<Duration>) {
        self.rounds.push((case, gone_after, passed));
    }

    /// Rounds that did not go well.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.rounds.iter().filter(|(_, _, passed)| !passed).count()
    }

    /// Rounds that went well, and all, of one kind; nothing if there was none.
    fn cell(&self, case: Case) -> String {
        let rounds = || self.rounds.iter().filter(|(other, ..)| *other == case);
        match (
            rounds().filter(|(_, _, passed)| *passed).count(),
            rounds().count(),
        ) {
            (_, 0) => String::new(),
            (passed, all) => format!("{passed}/{all}"),
        }
    }

    /// The longest time until nothing was left, in the rounds that are `wanted`.
    fn slowest(&self, wanted: impl Fn(&Case) -> bool) -> Option<Duration> {
        let rounds = self.rounds.iter().filter(|(case, ..)| wanted(case));
        rounds.filter_map(|(_, gone_after, _)| *gone_after).max()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| phase | process |")?;
        for blow in Blow::ALL {
            write!(f, " {} |", blow.name())?;
        }
        writeln!(f, " nothing left after |")?;
        writeln!(f, "|---|---|{}---|", "---|".repeat(Blow::ALL.len()))?;
        for phase in Phase::ALL {
            for victim in Victim::ALL {
                let is_this = |case: &Case| case.phase == phase && case.victim == victim;
                if !self.rounds.iter().any(|(case, ..)| is_this(case)) {
                    continue;
                }
                write!(f, "| {} | {} |", phase.name(), victim.name())?;
                for blow in Blow::ALL {
                    let case = Case {
                        phase,
                        victim,
                        blow,
                    };
                    write!(f, " {} |", self.cell(case))?;
                }
                let slowest = self.slowest(is_this).unwrap_or_default();
                writeln!(f, " {:.2} s |", slowest.as_secs_f64())?;
            }
        }
        let timed = || {
            self.rounds
                .iter()
                .filter_map(|(_, gone_after, _)| *gone_after)
        };
        let late = timed().filter(|time| *time > SOON).count();
        writeln!(
            f,
            "\n{} rounds, {} failed; {} of the {} that were timed took more than {} s until nothing was left",
            self.rounds.len(),
            self.failed(),
            late,
            timed().count(),
            SOON.as_secs()
        )
    }
}
