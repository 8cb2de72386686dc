//! What is to come of a blow.

use rustix::process::Signal;

use super::{Blow, Case, Phase, Victim};
use crate::accelerator;

/// How the command is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As if nothing had happened: with the output and the exit code of the container.
    Complete,
    /// By this signal, without a word.
    By(Signal),
    /// With this exit code and nothing to say about it.
    Code(i32),
    /// With this exit code and an error that has this in it.
    Error(i32, &'static str),
}

impl Case {
    /// How the command is to end.
    #[must_use]
    pub fn end(self) -> End {
        match self.victim {
            _ if self.blow == Blow::Pause => End::Complete,
            Victim::Both => End::By(Signal::KILL),
            Victim::Command => self.end_of_command(),
            Victim::Supervisor => self.end_by_supervisor(),
            Victim::Machine => self.end_by_machine(),
        }
    }

    fn end_of_command(self) -> End {
        let (signal, code) = match self.blow {
            Blow::Kill => return End::By(Signal::KILL),
            Blow::Term => (Signal::TERM, 143),
            _ => (Signal::INT, 130),
        };
        match self.phase {
            // There is nothing to clear up.
            Phase::Resolve => End::By(signal),
            Phase::Exit | Phase::Teardown => End::Complete,
            // It is the container's, as is everything that the command is sent.
            _ => End::Code(code),
        }
    }

    fn end_by_supervisor(self) -> End {
        if self.phase == Phase::Teardown {
            return End::Complete;
        }
        match (self.blow, self.phase) {
            (Blow::StopAndInterrupt, _) => End::Error(130, "Its supervisor had been stopped"),
            (Blow::Kill, _) => End::Error(125, "supervisor is gone (signal: 9"),
            (_, Phase::Exit) => End::Complete,
            (Blow::Term, _) => End::Error(137, "supervisor was ended by signal 15"),
            (_, _) => End::Error(137, "supervisor was ended by signal 2"),
        }
    }

    fn end_by_machine(self) -> End {
        match self.blow {
            // The container has ended before.
            _ if self.phase >= Phase::Exit => End::Complete,
            Blow::StopAndInterrupt => End::Error(130, "machine had been stopped"),
            Blow::Kill => End::Error(125, "signal 9"),
            // A kernel that is a process is the first in its namespace, which nothing else ends.
            _ if accelerator() == "um" => End::Complete,
            Blow::Term => End::Error(125, "signal 15"),
            _ => End::Error(125, "signal 2"),
        }
    }

    /// Whether somebody is left who removes the container's files, without another command.
    #[must_use]
    pub fn somebody_clears_up(self) -> bool {
        let ends_everybody = match self.victim {
            Victim::Both => true,
            Victim::Command => self.phase < Phase::Supervise && self.end() == End::By(Signal::KILL),
            // The command has done its part.
            Victim::Supervisor => self.phase == Phase::Teardown && self.blow == Blow::Kill,
            Victim::Machine => false,
        };
        !ends_everybody
    }

    /// Whether the run goes on for as long as nobody gives its process input.
    #[must_use]
    pub fn goes_on(self) -> bool {
        self.end() == End::Complete && self.phase < Phase::Exit
    }
}
