//! Bad luck at every phase of a run: who is hit, by what, when; and what is to come of it.
//!
//! A [`Case`] is one phase, one victim and one blow. [`Matrix`] runs cases, one after the other, beside a container that
//! runs all along and must not notice.

mod expected;
mod round;
mod table;

pub use round::{Matrix, Measured};
pub use table::Table;

/// A phase of a run, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The command has found the image. Nothing has been made.
    Resolve,
    /// The container's directory is being filled.
    Prepare,
    /// There is a container, and nobody but the command that knows of it.
    Publish,
    /// The supervisor has begun.
    Supervise,
    /// The machine's process has been started.
    Spawn,
    /// The guest's init has dialed the host.
    Connect,
    /// It has been told what to run.
    Boot,
    /// It has started the container's process.
    Start,
    /// The process has said something, and waits for input.
    Running,
    /// The process's end has been reported to the supervisor.
    Exit,
    /// The command knows, and the machine is being taken down.
    Teardown,
}

/// Whoever is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The command.
    Command,
    /// The container's supervisor.
    Supervisor,
    /// The machine's own process, under accelerators where it is one.
    Machine,
    /// The command and the supervisor.
    Both,
}

/// What hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// `SIGKILL`.
    Kill,
    /// `SIGSTOP`, three seconds, `SIGCONT`.
    Pause,
    /// `SIGTERM`.
    Term,
    /// `SIGINT`; for the command, by Ctrl-C at its terminal.
    Interrupt,
    /// `SIGSTOP`, and then Ctrl-C at the command's terminal. A command that was stopped itself is continued, as a shell
    /// does it.
    StopAndInterrupt,
}

/// One kind of bad luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// When.
    pub phase: Phase,
    /// Who.
    pub victim: Victim,
    /// What.
    pub blow: Blow,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 11] = [
        Self::Resolve,
        Self::Prepare,
        Self::Publish,
        Self::Supervise,
        Self::Spawn,
        Self::Connect,
        Self::Boot,
        Self::Start,
        Self::Running,
        Self::Exit,
        Self::Teardown,
    ];

    /// Its name, which is its failpoint's where it has one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Prepare => "prepare",
            Self::Publish => "publish",
            Self::Supervise => "supervise",
            Self::Spawn => "spawn",
            Self::Connect => "connect",
            Self::Boot => "boot",
            Self::Start => "start",
            Self::Running => "running",
            Self::Exit => "exit",
            Self::Teardown => "teardown",
        }
    }
}

impl Victim {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Command, Self::Supervisor, Self::Machine, Self::Both];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Supervisor => "supervisor",
            Self::Machine => "machine",
            Self::Both => "both",
        }
    }

    /// The first phase in which it is there.
    const fn appears(self) -> Phase {
        match self {
            Self::Command => Phase::Resolve,
            Self::Supervisor | Self::Both => Phase::Supervise,
            Self::Machine => Phase::Spawn,
        }
    }
}

impl Blow {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Kill,
        Self::Pause,
        Self::Term,
        Self::Interrupt,
        Self::StopAndInterrupt,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Pause => "STOP 3 s",
            Self::Term => "TERM",
            Self::Interrupt => "INT",
            Self::StopAndInterrupt => "STOP, INT",
        }
    }
}

impl Case {
    /// All that there are where a machine is a process of its own, or not.
    #[must_use]
    pub fn all(machine_is_a_process: bool) -> Vec<Self> {
        let mut all = Vec::new();
        for phase in Phase::ALL {
            for victim in Victim::ALL {
                for blow in Blow::ALL {
                    all.push(Self {
                        phase,
                        victim,
                        blow,
                    });
                }
            }
        }
        all.retain(|case| case.exists(machine_is_a_process));
        all
    }

    /// The failpoint that holds the run in the phase, unless it waits there by itself.
    fn failpoint(self) -> Option<&'static str> {
        match (self.phase, self.victim) {
            (Phase::Running, _) => None,
            // The supervisor's phase is one in which the command may be gone.
            (Phase::Teardown, Victim::Command) => Some("end"),
            (phase, _) => Some(phase.name()),
        }
    }

    fn exists(self, machine_is_a_process: bool) -> bool {
        let victim = self.victim;
        let both = victim == Victim::Both;
        self.phase >= victim.appears()
            && (victim != Victim::Machine || machine_is_a_process)
            // What else hits both says no more than what hits one. In the teardown the command has nothing to do but end.
            && (!both || self.blow == Blow::Kill && self.phase < Phase::Teardown)
    }
}
