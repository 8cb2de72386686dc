//! How a container's machine ended, as the user is told.

use agent_protocol::{Exited, StartError};

use super::events::{Machine, Phase};
use crate::{container::failure, report::Report};

/// Why the supervisor's loop ends.
pub enum End {
    /// The container did.
    Exited(Exited),
    /// The guest cannot start it.
    Refused(StartError),
    /// The machine is gone.
    Gone,
    /// Something is wrong with the guest: the machine is ended.
    Broken(Report),
    /// Somebody wants it to end now, and this is the signal that stands for it.
    Killed {
        /// The signal's number.
        signal: u8,
        /// What to tell, if there is something.
        why: Option<Report>,
    },
    /// Nobody waits for it any more.
    Abandoned,
}

/// What comes of it.
pub struct Verdict {
    /// What `run` exits with.
    pub exit_code: u8,
    /// Memory had run out.
    pub oom: bool,
    /// What went wrong.
    pub error: Option<Report>,
}

impl Machine {
    /// Ends the machine if it has not ended, and says what that comes to. `phase` is how far the container was.
    pub fn conclude(&mut self, end: End, phase: Phase) -> Verdict {
        let failed = |error| Verdict {
            exit_code: failure::FAILED,
            oom: false,
            error: Some(error),
        };
        match end {
            // The machine is taken down later: nobody waits for that.
            End::Exited(exited) => Verdict {
                exit_code: exited.status.exit_code(),
                oom: exited.oom,
                error: None,
            },
            End::Refused(error) => Verdict {
                exit_code: failure::exit_code(&error),
                oom: false,
                error: Some(failure::explain(&error)),
            },
            End::Gone => {
                let report = self.explain_end(phase);
                failed(self.with_console(report))
            }
            End::Broken(report) => {
                self.vm.kill();
                self.console.take();
                failed(self.with_console(report))
            }
            End::Killed { signal, why } => {
                self.vm.kill();
                Verdict {
                    exit_code: 128_u8.saturating_add(signal),
                    oom: false,
                    error: why,
                }
            }
            End::Abandoned => {
                self.vm.kill();
                Verdict {
                    exit_code: 137,
                    oom: false,
                    error: Some(Report::new(
                        "The command that it was attached to was killed",
                    )),
                }
            }
        }
    }

    /// Why a machine is gone whose container had not ended.
    fn explain_end(&mut self, phase: Phase) -> Report {
        // Its output is complete then, too.
        let how = self.vm.wait();
        self.console.take();
        if let Some(panic) = self.console.panic() {
            return Report::new(format!("The guest's kernel died: {panic}"));
        }
        let mut report = Report::new(match phase {
            Phase::Booting => "The machine ended before the guest's init came up",
            Phase::Starting => "The machine ended before the container's process was started",
            Phase::Running => "The machine ended under the container",
        });
        match how {
            Ok(how) => {
                if let Some(how) = how {
                    report.causes.push(how.what);
                    report.advice = how.advice;
                }
            }
            Err(error) => report.causes.push(error.to_string()),
        }
        if self.console.last_lines().is_empty() && report.advice.is_none() {
            report = report.advise("--debug-console, which shows what the guest's kernel does");
        }
        report
    }

    /// Adds what the guest's kernel said, and keeps all of it.
    fn with_console(&mut self, mut report: Report) -> Report {
        report.console = self.console.last_lines();
        let log = self.console.keep(self.aside.as_deref());
        report.log = log.map(|path| path.display().to_string());
        report
    }
}
