//! One run that has bad luck.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Blow, Case, Phase, Victim, expected::End};
use crate::{Failpoint, Finished, Input, Process, Root, Running, Terminal, wait_until};

/// What the container with bad luck does.
const SCRIPT: &str = "echo ready; read word; echo got $word; exit 7";

/// The code that it ends with.
const CODE: i32 = 7;

/// What it puts out, one line after the other.
const LINES: [&str; 2] = ["ready", "got luck"];

/// What it is given to read.
const INPUT: &str = "luck\n";

/// How long whoever is stopped stays so.
const PAUSE: Duration = Duration::from_secs(3);

/// How long after a stop comes the interrupt.
const MOMENT: Duration = Duration::from_millis(200);

/// How long it may take until nothing is left. It takes a small part of that; the rest is for a machine that has better
/// to do. How long it did take is what [`Measured`] tells.
const GONE: Duration = Duration::from_secs(15);

/// A root with a container that runs all along.
pub struct Matrix {
    root: Root,
    neighbour: Running,
    /// The neighbour's processes.
    known: BTreeSet<i32>,
    /// What the paths of its files have in them.
    names: [String; 2],
}

/// What there is to measure in a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// The time from the blow until nothing was left, where the blow ends the run.
    pub gone_after: Option<Duration>,
}

/// The run that is hit.
struct Hit {
    run: Running,
    terminal: Option<Terminal>,
}

impl Matrix {
    /// Starts the container that runs all along.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn new() -> Self {
        let root = Root::alone();
        let script = "while read word; do echo pong $word; done";
        let neighbour = root.run(["--rm", "-i", "-m", "128m", "busybox", "sh", "-c", script]);
        let mut neighbour = neighbour.input(Input::Later).start();
        neighbour.send("0\n");
        neighbour.expect("pong 0\n");
        let known = root.processes();
        let containers = root.containers();
        let text = |field: &str| containers[0][field].as_str().unwrap_or_default();
        Self {
            names: [text("ID")[..12].to_owned(), format!("/{}", text("Names"))],
            known: known
                .iter()
                .map(|process| process.pid.as_raw_pid())
                .collect(),
            neighbour,
            root,
        }
    }

    /// Whether the machine under test has a process of its own.
    #[must_use]
    pub fn machine_is_a_process(&self) -> bool {
        let processes = self.root.processes();
        processes.iter().any(|process| !process.is_vmm())
    }

    /// Lets the case happen once. In every second round the container is one that stays.
    ///
    /// # Panics
    /// If anything comes of it that should not.
    pub fn round(&mut self, case: Case, number: u32) -> Measured {
        let kept = number % 2 == 1;
        let failpoint = case.failpoint().map(|name| self.root.hold(name));
        let mut hit = self.start(case, kept);
        let struck = self.strike(case, &mut hit, failpoint);
        if case.goes_on() {
            hit.give_input();
        }
        let Hit { run, terminal } = hit;
        let run = run.finish();
        expect_end(case, &run, terminal.is_some());
        let gone_after = self.expect_gone(case, struck);
        self.expect_no_files(case, kept);
        let next = self.root.sh("echo next").finish();
        next.code(0).stdout("next\n").stderr("");
        // Its machine is taken down behind it.
        self.expect_gone(case, Instant::now());
        self.neighbour.send(format!("{number}\n"));
        self.neighbour.expect(&format!("pong {number}\n"));
        Measured {
            gone_after: (case.blow != Blow::Pause).then_some(gone_after),
        }
    }

    /// Says more about a round that failed, and ends what it has left.
    pub fn clear_up(&self) {
        // Of the run that was hit, and of the next.
        eprint!("{}", self.root.newest_boot_logs(2));
        for process in self.others() {
            // First of all it must hear the other.
            let _ = kill_process(process.pid, Signal::CONT);
            process.kill();
        }
        let _ = self.root.processes_after(Duration::from_secs(1));
        let _ = self.root.vmm(["rm", "-f", "hit"]).finish();
    }

    /// Ends the container that ran all along, and checks that nothing at all is left.
    ///
    /// # Panics
    /// If something is.
    pub fn finish(mut self) {
        self.neighbour.end_input();
        self.neighbour.finish().code(0).stderr("");
        self.root.expect_nothing_left();
    }

    /// Starts the run. Somebody sits at a terminal if Ctrl-C is to be pressed.
    fn start(&self, case: Case, kept: bool) -> Hit {
        let keep = if kept { "--name=hit" } else { "--rm" };
        let arguments = [keep, "-i", "-m", "128m", "busybox", "sh", "-c", SCRIPT];
        let run = self.root.run_to_failpoints(arguments);
        let at_terminal = case.blow == Blow::StopAndInterrupt
            || case.blow == Blow::Interrupt && case.victim == Victim::Command;
        match at_terminal {
            true => {
                let terminal = Terminal::new(24, 80);
                Hit {
                    run: run.start_in(&terminal),
                    terminal: Some(terminal),
                }
            }
            false => Hit {
                run: run.input(Input::Later).start(),
                terminal: None,
            },
        }
    }

    /// Waits for the phase and hits the victim in it. Gives the time of the blow, or of the last of them.
    fn strike(&self, case: Case, hit: &mut Hit, failpoint: Option<Failpoint>) -> Instant {
        if case.phase >= Phase::Running {
            hit.run.expect("ready");
        }
        if case.phase >= Phase::Exit {
            hit.give_input();
        }
        let held = failpoint.map(|failpoint| hit.run.reach(failpoint));
        let victims = self.victims(case, hit);
        let signal = |signal| {
            for victim in &victims {
                // It may have ended at the one before.
                let _ = kill_process(*victim, signal);
            }
        };
        match case.blow {
            Blow::Kill => signal(Signal::KILL),
            Blow::Term => signal(Signal::TERM),
            Blow::Interrupt => match &hit.terminal {
                Some(_) => hit.interrupt(),
                None => signal(Signal::INT),
            },
            Blow::Pause => {
                signal(Signal::STOP);
                // The others go on meanwhile.
                drop(held);
                std::thread::sleep(PAUSE);
                signal(Signal::CONT);
                return Instant::now();
            }
            Blow::StopAndInterrupt => {
                signal(Signal::STOP);
                victims.iter().for_each(expect_stopped);
                drop(held);
                std::thread::sleep(MOMENT);
                let struck = Instant::now();
                hit.interrupt();
                if case.victim == Victim::Command || case.end() == End::Complete {
                    // Nobody is there who could do anything about it.
                    std::thread::sleep(MOMENT);
                    signal(Signal::CONT);
                    return Instant::now();
                }
                return struck;
            }
        }
        Instant::now()
    }

    /// The processes of the victim.
    fn victims(&self, case: Case, hit: &Hit) -> Vec<Pid> {
        let command = hit.run.pid();
        let others = self.others();
        let find = |is_vmm| {
            let mut found = others.iter().filter(|process| process.pid != command);
            let found = found.find(|process| process.is_vmm() == is_vmm);
            found.map(|process| process.pid)
        };
        let victims = match case.victim {
            Victim::Command => vec![Some(command)],
            Victim::Supervisor => vec![find(true)],
            Victim::Machine => vec![find(false)],
            Victim::Both => vec![Some(command), find(true)],
        };
        let victims: Vec<Pid> = victims.iter().flatten().copied().collect();
        assert!(!victims.is_empty(), "expected a victim, got {others:?}");
        victims
    }

    /// All processes but the neighbour's.
    fn others(&self) -> Vec<Process> {
        let mut processes = self.root.processes();
        processes.retain(|process| !self.known.contains(&process.pid.as_raw_pid()));
        processes
    }

    /// Waits until no process is left, and says how long after the blow that was.
    fn expect_gone(&self, case: Case, struck: Instant) -> Duration {
        let mut left = Vec::new();
        let gone = wait_until(GONE, || {
            left = self.others();
            left.is_empty().then(|| struck.elapsed())
        });
        gone.unwrap_or_else(|| panic!("{case:?}: expected no process to be left, got {left:#?}"))
    }

    /// Checks that no file is left, or none after the next command if nobody was there to remove them.
    fn expect_no_files(&self, case: Case, kept: bool) {
        if kept {
            self.expect_kept(case);
        } else if !case.somebody_clears_up() {
            self.root.vmm(["ps", "-a"]).finish().code(0);
        }
        let left = self.files();
        assert!(left.is_empty(), "{case:?}: expected no file, got {left:#?}");
    }

    /// Checks that a container that stays is there, or not yet, and can be removed; and removes it.
    fn expect_kept(&self, case: Case) {
        let containers = self.root.containers();
        let hit = containers
            .iter()
            .find(|container| container["Names"] == "hit");
        // Where the command was hit before there was one.
        let may_be_missing = case.phase <= Phase::Prepare && case.victim == Victim::Command;
        match hit {
            Some(hit) => {
                assert_ne!(hit["State"], "running", "{case:?}: {hit}");
                self.root.vmm(["rm", "hit"]).finish().code(0).stderr("");
            }
            None => assert!(may_be_missing, "{case:?}: the container is missing"),
        }
    }

    /// Files and sockets that are not the neighbour's.
    fn files(&self) -> Vec<String> {
        let mut left = self.root.files_and_sockets();
        left.retain(|line| !self.names.iter().any(|name| line.contains(name)));
        left
    }
}

impl Default for Matrix {
    fn default() -> Self {
        Self::new()
    }
}

impl Hit {
    /// Presses Ctrl-C, and waits until the terminal shows it: that is when it has sent the signal.
    fn interrupt(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.type_keys("\x03");
            self.run.expect("^C");
        }
    }

    /// What the container's process waits for.
    fn give_input(&mut self) {
        match &self.terminal {
            Some(terminal) => terminal.type_keys(INPUT),
            None => self.run.send(INPUT),
        }
    }
}

/// Waits until all threads of a process have stopped: each does so only when it is its turn.
fn expect_stopped(process: &Pid) {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let is_stopped = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status"));
        status.is_ok_and(|status| status.contains("State:\tT"))
    };
    let stopped = wait_until(GONE, || {
        let mut tasks = std::fs::read_dir(&tasks).ok()?.flatten();
        tasks.all(is_stopped).then_some(())
    });
    assert!(stopped.is_some(), "expected process {process} to stop");
}

/// Checks how the command ended, and what it said.
fn expect_end(case: Case, run: &Finished, at_terminal: bool) {
    let about = format!("{case:?}: {:?}", case.end());
    let has = |text: &str| run.text().contains(text) || run.error_text().contains(text);
    let errors = run.text() + &run.error_text();
    let errors = errors.lines().filter(|line| line.contains("vmm: ")).count();
    match case.end() {
        End::Complete if at_terminal => {
            run.code(CODE);
            let all = LINES.iter().all(|line| has(line));
            run.check(all && errors == 0, &about);
        }
        End::Complete => {
            let output: String = LINES.iter().map(|line| format!("{line}\n")).collect();
            run.code(CODE).stdout(output).stderr("");
        }
        End::By(signal) => {
            run.check(run.signal() == Some(signal.as_raw()) && errors == 0, &about);
        }
        End::Code(code) => {
            run.code(code).check(errors == 0, &about);
        }
        End::Error(code, text) => {
            run.code(code).check(errors == 1 && has(text), &about);
        }
    }
}
