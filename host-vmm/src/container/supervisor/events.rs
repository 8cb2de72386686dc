//! A supervisor's loop: from the machine's start to the container's end.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use agent_protocol::{Exited, GuestFrame, HostFrame, Level, StartError, WindowSize};
use nix::sys::signalfd::SignalFd;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Record, chain, console::Console, socket::ControlSocket};
use crate::{
    agent::{Control, ControlError, Dialed, Listener, Streams},
    container::{
        boot::{DiskNames, boot_frame},
        channel::{Channel, Ending, FromSupervisor, ToSupervisor},
        failure,
        state::Status,
        timeline::{Event, Timeline, wall_clock_ns},
    },
    terminal::printable,
    vm::Vm,
};

/// How long a guest may take to say hello, and then to execute the program. Software emulation on a busy machine with
/// many starts at once is slow; a guest that hangs is to be found out all the same.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a machine may go on whose init has hung up. As a rule it is restarting, and gone at once.
const SILENCE: Duration = Duration::from_secs(5);

/// Frames taken before others have their turn: a guest may never stop.
const FRAMES: usize = 64;

/// Characters of a guest's line that reach the log.
const MAX_LOG_LINE: usize = 400;

/// The size of a terminal whose size nobody knows.
const DEFAULT_SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// Most connections of other commands at a time.
const MAX_ATTACHED: usize = 16;

/// What the loop is given.
pub struct Parts {
    pub vm: Box<dyn Vm>,
    pub console: Console,
    pub listener: Listener,
    pub socket: ControlSocket,
    pub signals: SignalFd,
    pub disks: DiskNames,
    pub timeline: Timeline,
}

/// A container whose machine runs.
pub struct Running {
    machine: Machine,
    signals: SignalFd,
    socket: ControlSocket,
    /// The command that started the container is the first.
    attached: Vec<Channel>,
    disks: Option<DiskNames>,
    streams: Streams,
    phase: Phase,
    size: WindowSize,
    timeline: Timeline,
    console_open: bool,
    /// There may be frames that have arrived and not been looked at.
    frames_left: bool,
    /// The guest's init has hung up: its machine may go on so long.
    silent_until: Option<Instant>,
}

/// What is still there when the container is over.
pub struct Machine {
    vm: Box<dyn Vm>,
    console: Console,
    listener: Listener,
    control: Option<Control>,
}

/// A container that has ended, and what is to be taken down.
pub struct Over {
    pub ending: Ending,
    pub attached: Vec<Channel>,
    pub machine: Machine,
}

/// How far the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the guest's init says hello.
    Booting { deadline: Instant },
    /// Until the program is executed.
    Starting { deadline: Instant },
    /// Until it ends.
    Running,
}

/// Why the loop ends.
enum End {
    Exited(Exited),
    Refused(StartError),
    /// The machine is gone.
    Gone,
    /// Something is wrong with the guest: the machine is ended.
    Broken(Vec<String>),
    /// Somebody wants it to end now, and this is the signal that stands for it.
    Killed {
        signal: u8,
        why: Option<String>,
    },
    /// Nobody waits for it any more.
    Abandoned,
}

/// What a descriptor is.
#[derive(Clone, Copy)]
enum Source {
    Gone,
    Console,
    Listener,
    Control,
    Streams,
    Socket,
    Signals,
    Attached(usize),
}

impl Running {
    pub fn new(parts: Parts) -> Self {
        Self {
            machine: Machine {
                vm: parts.vm,
                console: parts.console,
                listener: parts.listener,
                control: None,
            },
            signals: parts.signals,
            socket: parts.socket,
            attached: Vec::new(),
            disks: Some(parts.disks),
            streams: Streams::default(),
            phase: Phase::Booting {
                deadline: Instant::now() + START_TIMEOUT,
            },
            size: DEFAULT_SIZE,
            timeline: parts.timeline,
            console_open: true,
            frames_left: false,
            silent_until: None,
        }
    }

    /// Adds the command that started the container: without it, the container ends.
    pub fn attach(mut self, channel: Channel) -> Self {
        self.attached.insert(0, channel);
        self
    }

    /// Looks after the container until it is over.
    pub fn run(mut self, record: &mut Record) -> Over {
        let end = loop {
            match self.turn(record) {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => {
                    break End::Broken(vec![format!("Cannot wait for the container: {error}")]);
                }
            }
        };
        let (exit_code, oom, error) = self.conclude(end);
        self.timeline.settle();
        let Self {
            machine,
            attached,
            timeline,
            ..
        } = self;
        Over {
            ending: Ending {
                exit_code,
                oom,
                error,
                timeline,
                lost: false,
            },
            attached,
            machine,
        }
    }

    /// Waits for something to happen and deals with it.
    fn turn(&mut self, record: &mut Record) -> io::Result<Option<End>> {
        let ready = self.wait()?;
        let mut gone = false;
        for source in ready {
            let end = match source {
                Source::Gone => {
                    // What it said last may still be on its way.
                    gone = true;
                    None
                }
                Source::Console => {
                    self.console_open = self.machine.console.take();
                    None
                }
                Source::Listener => {
                    self.take_connections();
                    None
                }
                Source::Control => self.take_frames(record),
                Source::Streams => {
                    self.pass_streams();
                    None
                }
                Source::Socket => {
                    self.take_attached();
                    None
                }
                Source::Signals => self.take_signal(),
                Source::Attached(index) => self.take_messages(index),
            };
            if end.is_some() {
                return Ok(end);
            }
        }
        if gone {
            return Ok(Some(self.last_words(record)));
        }
        Ok(self.overdue())
    }

    /// What is ready; nothing if the deadline has passed.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let machine = &self.machine;
        let gone = machine.vm.gone();
        // Those who may end the container come before the guest, which can keep us busy.
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Socket, self.socket.as_fd(), PollFlags::IN),
        ];
        for (index, channel) in self.attached.iter().enumerate() {
            sources.push((Source::Attached(index), channel.as_fd(), PollFlags::IN));
        }
        sources.push((Source::Gone, gone, PollFlags::IN));
        sources.push((Source::Listener, machine.listener.as_fd(), PollFlags::IN));
        if self.console_open {
            sources.push((Source::Console, machine.console.as_fd(), PollFlags::IN));
        }
        if let Some(control) = &machine.control {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, control.is_behind());
            sources.push((Source::Control, control.as_fd(), flags));
        }
        let pending = self.streams.pending();
        sources.extend(pending.map(|fd| (Source::Streams, fd, PollFlags::IN)));
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        loop {
            let left = self
                .deadline()
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = if self.frames_left {
                Some(Duration::ZERO)
            } else {
                left
            };
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let is_left = |source: &Source| self.frames_left && matches!(source, Source::Control);
        Ok(sources
            .iter()
            .zip(ready)
            .filter_map(|((source, _, _), ready)| (ready || is_left(source)).then_some(*source))
            .collect())
    }

    fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Booting { deadline } | Phase::Starting { deadline } => Some(deadline),
            Phase::Running => None,
        };
        [phase, self.silent_until].into_iter().flatten().min()
    }

    /// Why the guest is given up, if it has had its time.
    fn overdue(&self) -> Option<End> {
        self.deadline()
            .filter(|deadline| Instant::now() >= *deadline)?;
        if self
            .silent_until
            .is_some_and(|until| Instant::now() >= until)
        {
            let what = "The guest's init hung up, and its machine goes on without it";
            return Some(End::Broken(vec![what.to_owned()]));
        }
        let seconds = START_TIMEOUT.as_secs();
        let what = match self.phase {
            Phase::Booting { .. } => "The guest's init did not come up",
            Phase::Starting { .. } => "The guest did not start the container's process",
            Phase::Running => return None,
        };
        Some(End::Broken(vec![format!("{what} within {seconds} s")]))
    }

    fn take_connections(&mut self) {
        while let Some(dialed) = self.machine.listener.next() {
            match dialed {
                Dialed::Control(stream) => self.machine.control = Some(Control::new(stream)),
                Dialed::Stream(stream) => self.streams.add(stream),
            }
        }
    }

    /// Hands the streams whose tokens have been shown to the command that started the container.
    fn pass_streams(&mut self) {
        for (which, stream) in self.streams.opened() {
            if let Some(channel) = self.attached.first()
                && let Err(error) =
                    channel.send(&FromSupervisor::Stream(which), Some(stream.as_fd()))
            {
                tracing::debug!("Cannot pass {which:?} on: {error}");
            }
        }
    }

    /// Deals with some of what the guest says.
    fn take_frames(&mut self, record: &mut Record) -> Option<End> {
        self.frames_left = false;
        for _ in 0..FRAMES {
            let control = self.machine.control.as_mut()?;
            let frame = match control.flush().and_then(|()| control.receive()) {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(ControlError::Io(_)) => {
                    // The guest is gone or on its way: how, the machine will say.
                    self.machine.control = None;
                    self.silent_until = Some(Instant::now() + SILENCE);
                    return None;
                }
                Err(error) => return Some(End::Broken(chain(&error))),
            };
            let end = self.take_frame(frame, record);
            if end.is_some() {
                return end;
            }
        }
        self.frames_left = true;
        None
    }

    fn take_frame(&mut self, frame: GuestFrame, record: &mut Record) -> Option<End> {
        match frame {
            GuestFrame::Hello(hello) => {
                self.timeline.note_hello(&hello);
                tracing::debug!(kernel = hello.kernel_release, "The guest's init is up");
                // The command that started the container says first of all how large its terminal is.
                let end = self.take_messages(0);
                end.or_else(|| self.boot(record).err().map(End::Broken))
            }
            GuestFrame::Started(_) if !matches!(self.phase, Phase::Starting { .. }) => {
                Some(End::Broken(chain(&ControlError::OutOfTurn)))
            }
            GuestFrame::Started(started) => {
                self.timeline.note_started(&started);
                self.phase = Phase::Running;
                record.state.status = Status::Running;
                record.state.started_ns = Some(wall_clock_ns());
                record.write().err().map(|error| End::Broken(chain(&error)))
            }
            GuestFrame::Exited(exited) => {
                self.timeline.note_exited(&exited);
                Some(End::Exited(exited))
            }
            GuestFrame::Error(error) => Some(End::Refused(error)),
            GuestFrame::Log { level, text } => {
                let text = printable(&text, MAX_LOG_LINE);
                match level {
                    Level::Warn => tracing::warn!("Guest: {text}"),
                    Level::Debug => tracing::debug!("Guest: {text}"),
                }
                None
            }
        }
    }

    /// Answers the guest's hello.
    fn boot(&mut self, record: &Record) -> Result<(), Vec<String>> {
        // There is one hello, so there is one boot.
        let (Some(disks), Some(control)) = (self.disks.take(), &mut self.machine.control) else {
            return Ok(());
        };
        let process = &record.spec.process;
        let size = process.terminal.then_some(self.size);
        let random = |error: io::Error| vec![format!("Cannot get random numbers: {error}")];
        let stdio = self
            .streams
            .for_process(process.stdin, size)
            .map_err(random)?;
        let expected = u32::try_from(self.streams.expected()).unwrap_or(0);
        self.machine.listener.expect_streams(expected);
        let boot = boot_frame(&record.spec, disks, stdio).map_err(random)?;
        control
            .send(&HostFrame::Boot(Box::new(boot)))
            .map_err(|error| chain(&error))?;
        self.timeline.note(Event::BootSent);
        self.phase = Phase::Starting {
            deadline: Instant::now() + START_TIMEOUT,
        };
        Ok(())
    }

    fn take_attached(&mut self) {
        while let Some(channel) = self.socket.accept() {
            if self.attached.len() < MAX_ATTACHED {
                self.attached.push(channel);
            }
        }
    }

    /// Does what an attached command says.
    fn take_messages(&mut self, index: usize) -> Option<End> {
        loop {
            // Another's end may have moved them; then poll says so again.
            let message = self.attached.get(index)?.receive::<ToSupervisor>();
            match message {
                Ok((ToSupervisor::Signal(signal), _)) => {
                    let end = self.signal(signal);
                    if end.is_some() {
                        return end;
                    }
                }
                Ok((ToSupervisor::Resize { rows, columns }, _)) => {
                    self.size = WindowSize { rows, columns };
                    self.tell(&HostFrame::Resize(self.size));
                }
                Ok((ToSupervisor::Kill, _)) => return Some(killed()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) if index == 0 => return Some(End::Abandoned),
                Err(_) => {
                    self.attached.remove(index);
                    return None;
                }
            }
        }
    }

    fn take_signal(&mut self) -> Option<End> {
        let signal = self.signals.read_signal().ok()??;
        let signal = u8::try_from(signal.ssi_signo).unwrap_or(15);
        let why = Some(format!("Its supervisor was ended by signal {signal}"));
        Some(End::Killed { signal: 9, why })
    }

    /// Sends a signal to the container, or what it means before there is one.
    fn signal(&mut self, signal: u8) -> Option<End> {
        const ENDING: [i32; 5] = [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGKILL,
            libc::SIGTERM,
        ];
        if matches!(self.phase, Phase::Booting { .. }) {
            let ends = ENDING.contains(&i32::from(signal));
            return ends.then_some(End::Killed { signal, why: None });
        }
        self.tell(&HostFrame::Signal { signal });
        None
    }

    /// Says something to the guest, if there is one to hear it.
    fn tell(&mut self, frame: &HostFrame) {
        if matches!(self.phase, Phase::Booting { .. }) {
            return;
        }
        if let Some(control) = &mut self.machine.control
            && let Err(error) = control.send(frame)
        {
            tracing::debug!("Cannot tell the guest: {error}");
        }
    }

    /// The machine is gone: what it said before that counts.
    fn last_words(&mut self, record: &mut Record) -> End {
        self.take_connections();
        let mut end = self.take_frames(record);
        // Nothing is added to it any more.
        while end.is_none() && self.frames_left {
            end = self.take_frames(record);
        }
        self.pass_streams();
        end.unwrap_or(End::Gone)
    }

    /// Ends the machine if it has not ended, and says what `run` exits with, whether memory had run out, and what went
    /// wrong.
    fn conclude(&mut self, end: End) -> (u8, bool, Vec<String>) {
        let failed = |error| (failure::FAILED, false, error);
        match end {
            // The machine is taken down later: nobody waits for that.
            End::Exited(exited) => (exited.status.exit_code(), exited.oom, Vec::new()),
            End::Refused(error) => (failure::exit_code(&error), false, failure::explain(&error)),
            End::Gone => {
                let error = self.explain_end();
                failed(error)
            }
            End::Broken(mut error) => {
                self.machine.vm.kill();
                self.machine.console.take();
                if self.phase != Phase::Running {
                    error.extend(self.machine.console_says());
                }
                failed(error)
            }
            End::Killed { signal, why } => {
                self.machine.vm.kill();
                (
                    128_u8.saturating_add(signal),
                    false,
                    why.into_iter().collect(),
                )
            }
            End::Abandoned => {
                self.machine.vm.kill();
                let why = "The command that it was attached to was killed";
                (137, false, vec![why.to_owned()])
            }
        }
    }

    /// Why a machine is gone whose container had not ended.
    fn explain_end(&mut self) -> Vec<String> {
        let machine = &mut self.machine;
        // Its output is complete then, too.
        let how = machine.vm.wait();
        machine.console.take();
        if let Some(panic) = machine.console.panic() {
            let mut lines = vec![format!("The guest's kernel died: {panic}")];
            lines.extend(machine.console_says());
            return lines;
        }
        let what = match self.phase {
            Phase::Booting { .. } => "The machine ended before the guest's init came up",
            Phase::Starting { .. } => {
                "The machine ended before the container's process was started"
            }
            Phase::Running => "The machine ended under the container",
        };
        let mut lines = vec![what.to_owned()];
        match how {
            Ok(how) => lines.extend(how),
            Err(error) => lines.push(error.to_string()),
        }
        lines.extend(machine.console_says());
        lines
    }
}

impl Machine {
    /// The end of the console's log, for an error.
    fn console_says(&self) -> Vec<String> {
        let lines = self.console.last_lines();
        match lines.is_empty() {
            true => Vec::new(),
            false => vec![format!("the console's last lines:\n{}", lines.join("\n"))],
        }
    }
}

fn killed() -> End {
    End::Killed {
        signal: 9,
        why: Some("It was killed".to_owned()),
    }
}
