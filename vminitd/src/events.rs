//! The one thread's loop: from the container's start to its end.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use agent_protocol::{ExitStatus, Exited, GuestFrame, HostFrame, Started};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, wait},
};

use crate::{
    cgroup::Cgroup,
    clock,
    container::{Child, Outcome},
    control::{Control, Lost},
    relay::{Progress, Relay},
    root::MountedRoot,
    signal::{self, Delivery},
    stdio::Terminal,
};

/// Events taken at once.
const EVENTS: usize = 16;

/// What an event is about: the number that epoll gives back. Relays follow from [`FIRST_RELAY`] on.
const CONTROL: u64 = 0;
const CHILD_SIGNAL: u64 = 1;
const REPORT: u64 = 2;
const FIRST_RELAY: u64 = 3;

/// Most signals kept until there is a program to send them to.
const MAX_EARLY_SIGNALS: usize = 64;

/// For what is used until it would block.
const EDGES: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// What the loop looks after.
pub struct Container {
    /// The process, on its way to its program.
    pub child: Child,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its root file system.
    pub root: MountedRoot,
    /// Its standard input, if the host gives it one.
    pub input: Option<Relay>,
    /// Its standard output and error.
    pub output: Vec<Relay>,
    /// Its terminal, if it has one.
    pub terminal: Option<Terminal>,
}

/// The loop.
pub struct Loop {
    epoll: OwnedFd,
    signals: SignalFd,
    control: Control,
    container: Parts,
    phase: Phase,
}

/// What does not change with the phase.
struct Parts {
    cgroup: Cgroup,
    root: MountedRoot,
    relays: Vec<Watched>,
    terminal: Option<Terminal>,
    /// Kept for as long as the VM lives: see [`Child::namespaces`].
    namespaces: [Option<OwnedFd>; 2],
    /// Signals that came before the program was executed.
    early_signals: Vec<u8>,
}

/// How far the container is.
enum Phase {
    /// Its process is setting itself up.
    Starting(Child),
    /// Its program runs.
    Running {
        main: Pid,
        /// The signal for which we killed it.
        killed_for: Option<u8>,
    },
    /// Its main process has ended; its output may still be on its way.
    Ended {
        status: ExitStatus,
        oom: bool,
        exited_ns: u64,
    },
}

/// A relay and whether it has something to do.
struct Watched {
    /// What epoll calls it. Relays come and go, so its place in a list says nothing.
    about: u64,
    relay: Relay,
    is_input: bool,
    busy: bool,
}

impl Loop {
    /// Watches a container. `signals` announces the end of child processes.
    ///
    /// # Errors
    /// If the kernel has no room for what is to be watched.
    pub fn new(control: Control, signals: SignalFd, container: Container) -> io::Result<Self> {
        let Container {
            child,
            cgroup,
            root,
            input,
            output,
            terminal,
        } = container;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, about, flags| {
            epoll::add(&epoll, fd, EventData::new_u64(about), flags)
        };
        add(control.as_fd(), CONTROL, EDGES)?;
        add(signals.as_fd(), CHILD_SIGNAL, EventFlags::IN)?;
        add(child.as_fd(), REPORT, EventFlags::IN)?;
        let inputs = input.into_iter().map(|relay| (relay, true));
        let outputs = output.into_iter().map(|relay| (relay, false));
        let mut relays = Vec::new();
        for (about, (relay, is_input)) in (FIRST_RELAY..).zip(inputs.chain(outputs)) {
            for fd in relay.watched().into_iter().flatten() {
                add(fd, about, EDGES)?;
            }
            relays.push(Watched {
                about,
                relay,
                is_input,
                busy: true,
            });
        }
        Ok(Self {
            epoll,
            signals,
            control,
            container: Parts {
                cgroup,
                root,
                relays,
                terminal,
                namespaces: [None, None],
                early_signals: Vec::new(),
            },
            phase: Phase::Starting(child),
        })
    }

    /// Looks after the container until it has ended and the host knows how.
    ///
    /// # Errors
    /// If the host is gone or talks nonsense: nobody wants this VM any more.
    pub fn run(mut self) -> Result<(), Lost> {
        let end = loop {
            if let Some(end) = self.turn()? {
                break end;
            }
        };
        self.control.say_farewell(&end)
    }

    /// Waits for events and handles them. Gives the last frame once the container has ended.
    fn turn(&mut self) -> Result<Option<GuestFrame>, Lost> {
        for about in self.wait()? {
            let end = match about {
                CONTROL => self.take_frames()?,
                CHILD_SIGNAL => self.reap()?,
                REPORT => self.take_report()?,
                _ => {
                    for watched in &mut self.container.relays {
                        watched.busy |= watched.about == about;
                    }
                    None
                }
            };
            if end.is_some() {
                return Ok(end);
            }
        }
        for watched in &mut self.container.relays {
            if watched.busy {
                watched.busy = watched.relay.pump() == Progress::More;
            }
        }
        self.finish()
    }

    /// What there are events about.
    fn wait(&self) -> Result<Vec<u64>, Lost> {
        let busy = self.container.relays.iter().any(|watched| watched.busy);
        let at_once = Timespec::default();
        let mut events = Vec::<Event>::with_capacity(EVENTS);
        loop {
            match epoll::wait(
                &self.epoll,
                spare_capacity(&mut events),
                busy.then_some(&at_once),
            ) {
                Ok(_) => return Ok(events.iter().map(|event| event.data.u64()).collect()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Lost::Io("wait for", error.into())),
            }
        }
    }

    /// Does what the host says.
    fn take_frames(&mut self) -> Result<Option<GuestFrame>, Lost> {
        self.control.flush()?;
        while let Some(frame) = self.control.receive()? {
            match frame {
                HostFrame::Signal { signal } => self.take_signal(signal),
                HostFrame::Resize(size) => {
                    if let Some(terminal) = &self.container.terminal {
                        // Fails only if nobody has the terminal open any more.
                        let _ = terminal.resize(size);
                    }
                }
                HostFrame::Boot(_) => {
                    return Err(Lost::Protocol("a second Boot".into()));
                }
            }
        }
        Ok(None)
    }

    fn take_signal(&mut self, signal: u8) {
        match &mut self.phase {
            // More than there are signals would only be repetitions.
            Phase::Starting(_) if self.container.early_signals.len() < MAX_EARLY_SIGNALS => {
                self.container.early_signals.push(signal);
            }
            Phase::Starting(_) => {}
            Phase::Running { main, killed_for } => {
                // A process that has ended already needs none.
                if let Ok(Delivery::Killed) = signal::deliver(*main, signal) {
                    killed_for.get_or_insert(signal);
                }
            }
            // Whoever insists does not want to wait for a reader that does not read.
            Phase::Ended { .. } if i32::from(signal) == libc::SIGKILL => {
                self.container.relays.clear();
            }
            Phase::Ended { .. } => {}
        }
    }

    /// The child has said something, or is executing its program.
    fn take_report(&mut self) -> Result<Option<GuestFrame>, Lost> {
        let Phase::Starting(child) = &mut self.phase else {
            return Ok(None);
        };
        let mounted_ns = match child.outcome() {
            None => return Ok(None),
            Some(Outcome::Failed(error)) => return Ok(Some(GuestFrame::Error(error))),
            Some(Outcome::Executed { mounted_ns }) => mounted_ns,
        };
        let main = child.pid;
        self.container.namespaces = std::mem::take(&mut child.namespaces);
        self.phase = Phase::Running {
            main,
            killed_for: None,
        };
        self.control.send(&GuestFrame::Started(Started {
            mounted_ns,
            executed_ns: clock::monotonic_ns(),
        }))?;
        for signal in std::mem::take(&mut self.container.early_signals) {
            self.take_signal(signal);
        }
        Ok(None)
    }

    /// Takes leave of every process that has ended: PID 1 is the parent of all that have lost theirs.
    fn reap(&mut self) -> Result<Option<GuestFrame>, Lost> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((process, status))) => {
                    let end = self.take_end(process, status)?;
                    if end.is_some() {
                        return Ok(end);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    fn take_end(&mut self, process: Pid, status: WaitStatus) -> Result<Option<GuestFrame>, Lost> {
        if matches!(&self.phase, Phase::Starting(child) if child.pid == process) {
            // It may have executed its program before.
            let end = self.take_report()?;
            if end.is_some() {
                return Ok(end);
            }
        }
        let Phase::Running { main, killed_for } = self.phase else {
            return Ok(None);
        };
        if main != process {
            return Ok(None);
        }
        self.phase = Phase::Ended {
            status: exit_status(status, killed_for),
            oom: self.container.cgroup.had_oom_kill(),
            // After the time of its execution, of which we may have heard only now.
            exited_ns: clock::monotonic_ns(),
        };
        // The kernel has ended its PID namespace with it; this is for whatever got out of that.
        if let Err(error) = self.container.cgroup.kill() {
            let text = format!("Cannot kill what is left of the container: {error}");
            self.control.warn(text)?;
        }
        for watched in &mut self.container.relays {
            watched.busy = true;
        }
        self.container.relays.retain(|watched| !watched.is_input);
        Ok(None)
    }

    /// The last frame, once the main process has ended and the host has all its output.
    fn finish(&mut self) -> Result<Option<GuestFrame>, Lost> {
        let Phase::Ended {
            status,
            oom,
            exited_ns,
        } = self.phase
        else {
            return Ok(None);
        };
        let relays = &mut self.container.relays;
        if relays.iter().any(|watched| !watched.relay.is_done()) {
            return Ok(None);
        }
        if let Err(error) = self.container.root.sync() {
            let text = format!("Cannot write the container's files to its disk: {error}");
            self.control.warn(text)?;
        }
        Ok(Some(GuestFrame::Exited(Exited {
            status,
            oom,
            exited_ns,
            synced_ns: clock::monotonic_ns(),
        })))
    }
}

/// How the main process ended, as the host is told. `killed_for` is the signal for which we killed it.
fn exit_status(status: WaitStatus, killed_for: Option<u8>) -> ExitStatus {
    let number = |value: i32| u8::try_from(value & 0xff).unwrap_or(0);
    match (status.terminating_signal(), killed_for) {
        (Some(libc::SIGKILL), Some(signal)) => ExitStatus::Signal(signal),
        (Some(signal), _) => ExitStatus::Signal(number(signal)),
        (None, _) => ExitStatus::Code(number(status.exit_status().unwrap_or(0))),
    }
}

/// Blocks every signal, and gives a descriptor on which the end of child processes shows.
///
/// # Errors
/// Those of `signalfd(2)`.
pub fn take_over_signals() -> io::Result<SignalFd> {
    SigSet::all().thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), flags)?)
}
