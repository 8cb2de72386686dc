//! A supervisor's loop: from the machine's start to the container's end.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use agent_protocol::{GuestFrame, HostFrame, WindowSize};
use nix::sys::signalfd::SignalFd;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::statvfs,
    io::Errno,
    process::geteuid,
};

use super::{Record, console::Console, end::End, guest_log::GuestLog, socket::ControlSocket};
use crate::{
    agent::{Control, ControlError, Dialed, Listener, Streams, Which},
    container::{
        boot::{DiskNames, boot_frame},
        channel::{Channel, Ending, FromSupervisor, ToSupervisor},
        state::Status,
        timeline::{Event, Timeline, wall_clock_ns},
    },
    failpoint,
    report::Report,
    vm::Vm,
};

/// How long a machine may go on whose init has hung up. As a rule it is restarting, and gone at once.
const SILENCE: Duration = Duration::from_secs(5);

/// The same, if it has a reason to be stopped.
const SILENCE_OF_THE_STOPPED: Duration = Duration::from_secs(1);

/// Frames taken before others have their turn: a guest may never stop.
const FRAMES: usize = 64;

/// The size of a terminal whose size nobody knows.
const DEFAULT_SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// Most connections of other commands at a time.
const MAX_ATTACHED: usize = 16;

/// A disk is full if it has no more than this, in bytes: files grow in pieces.
const FULL: u64 = 1 << 20;

/// What the loop is given.
pub struct Parts {
    pub vm: Box<dyn Vm>,
    pub console: Console,
    pub listener: Listener,
    pub socket: ControlSocket,
    pub signals: SignalFd,
    pub disks: DiskNames,
    pub timeline: Timeline,
    /// What the machine may take until the container's program is executed.
    pub start_timeout: Duration,
    /// Where the console's log is to be kept if the machine fails and the container does not stay.
    pub aside: Option<PathBuf>,
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
    /// Those that the command which started the container gets once it runs.
    opened: Vec<(Which, UnixStream)>,
    phase: Phase,
    start_timeout: Duration,
    /// When the start is given up.
    start_until: Instant,
    guest_log: GuestLog,
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
    pub(super) vm: Box<dyn Vm>,
    pub(super) console: Console,
    pub(super) aside: Option<PathBuf>,
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
pub enum Phase {
    /// Until the guest's init says hello.
    Booting,
    /// Until the program is executed.
    Starting,
    /// Until it ends.
    Running,
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
                aside: parts.aside,
                listener: parts.listener,
                control: None,
            },
            signals: parts.signals,
            socket: parts.socket,
            attached: Vec::new(),
            disks: Some(parts.disks),
            streams: Streams::default(),
            opened: Vec::new(),
            phase: Phase::Booting,
            start_timeout: parts.start_timeout,
            start_until: Instant::now() + parts.start_timeout,
            guest_log: GuestLog::new(),
            size: DEFAULT_SIZE,
            timeline: parts.timeline,
            console_open: true,
            frames_left: false,
            silent_until: None,
        }
    }

    /// Adds the command that started the container: without it, the container ends. It may want to see the guest's console.
    pub fn attach(mut self, channel: Channel, show_console: bool) -> Self {
        if show_console && let Err(error) = self.machine.console.show_on(&channel) {
            tracing::debug!("Cannot show the guest's console: {error}");
        }
        self.attached.insert(0, channel);
        self
    }

    /// Looks after the container until it is over.
    pub fn run(mut self, record: &mut Record) -> Over {
        let end = loop {
            match self.turn(record) {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => break End::Broken(failed("wait for the container")(error)),
            }
        };
        let verdict = self.machine.conclude(end, self.phase);
        self.timeline.settle();
        let Self {
            machine,
            attached,
            timeline,
            guest_log,
            ..
        } = self;
        Over {
            ending: Ending {
                exit_code: verdict.exit_code,
                oom: verdict.oom,
                error: verdict.error,
                warnings: guest_log.finish(),
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
        Ok(self.overdue(record))
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
        let start = (self.phase != Phase::Running).then_some(self.start_until);
        [start, self.silent_until].into_iter().flatten().min()
    }

    /// Why the guest is given up, if it has had its time.
    fn overdue(&self, record: &Record) -> Option<End> {
        self.deadline()
            .filter(|deadline| Instant::now() >= *deadline)?;
        if self
            .silent_until
            .is_some_and(|until| Instant::now() >= until)
        {
            return Some(End::Broken(match is_full(record.directory.path()) {
                true => Report::new(format!(
                    "The machine was stopped: the disk of {} is full, and what the container writes finds no room",
                    record.directory.path().display()
                ))
                .advise("make room on that disk, or name a directory on another with --root"),
                false => Report::new(
                    "The guest's init hung up, and its machine goes on without it",
                )
                .advise("--debug-console, which shows what the guest does"),
            }));
        }
        let what = match self.phase {
            Phase::Booting => "The guest's init did not come up",
            Phase::Starting => "The guest did not start the container's process",
            Phase::Running => return None,
        };
        let seconds = self.start_timeout.as_secs();
        let report = Report::new(format!("{what} within {seconds} s (--start-timeout)"));
        Some(End::Broken(report.advise(
            "--debug-console, which shows how far it comes; if that is far, a longer --start-timeout",
        )))
    }

    fn take_connections(&mut self) {
        while let Some(dialed) = self.machine.listener.next() {
            match dialed {
                Dialed::Control(stream) => {
                    self.machine.control = Some(Control::new(stream));
                    failpoint::reach("connect");
                }
                Dialed::Stream(stream) => self.streams.add(stream),
            }
        }
    }

    /// Hands the streams whose tokens have been shown to the command that started the container.
    fn pass_streams(&mut self) {
        self.opened.extend(self.streams.opened());
        // Whoever sees what a container says finds it in the list of those that run.
        if self.phase != Phase::Running {
            return;
        }
        for (which, stream) in self.opened.drain(..) {
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
                    self.lose_control(record);
                    return None;
                }
                Err(error) => return Some(End::Broken(Report::of(&error))),
            };
            let end = self.take_frame(frame, record);
            if end.is_some() {
                return end;
            }
        }
        self.frames_left = true;
        None
    }

    /// The guest is gone or on its way: how, the machine will say.
    fn lose_control(&mut self, record: &Record) {
        self.machine.control = None;
        // QEMU stops a machine whose writes find no room, and its devices with it: it will not come back.
        let patience = match is_full(record.directory.path()) {
            true => SILENCE_OF_THE_STOPPED,
            false => SILENCE,
        };
        self.silent_until = Some(Instant::now() + patience);
    }

    fn take_frame(&mut self, frame: GuestFrame, record: &mut Record) -> Option<End> {
        match frame {
            GuestFrame::Hello(hello) => {
                self.timeline.note_hello(&hello);
                // The command that started the container says first of all how large its terminal is.
                let end = self.take_messages(0);
                end.or_else(|| self.boot(record).err().map(End::Broken))
            }
            GuestFrame::Started(_) if self.phase != Phase::Starting => {
                Some(End::Broken(Report::of(&ControlError::OutOfTurn)))
            }
            GuestFrame::Started(started) => {
                self.timeline.note_started(&started);
                failpoint::reach("start");
                self.phase = Phase::Running;
                record.state.status = Status::Running;
                record.state.started_ns = Some(wall_clock_ns());
                let written = record.write();
                self.pass_streams();
                written.err().map(|error| End::Broken(Report::of(&error)))
            }
            GuestFrame::Exited(exited) => {
                self.timeline.note_exited(&exited);
                failpoint::reach("exit");
                Some(End::Exited(exited))
            }
            GuestFrame::Error(error) => Some(End::Refused(error)),
            GuestFrame::Log { level, text } => {
                self.guest_log.take(level, &text);
                None
            }
        }
    }

    /// Answers the guest's hello.
    fn boot(&mut self, record: &Record) -> Result<(), Report> {
        // There is one hello, so there is one boot.
        let (Some(disks), Some(control)) = (self.disks.take(), &mut self.machine.control) else {
            return Ok(());
        };
        let process = &record.spec.process;
        let size = process.terminal.then_some(self.size);
        let random = || failed("get random numbers");
        let stdio = self
            .streams
            .for_process(process.stdin, size)
            .map_err(random())?;
        let expected = u32::try_from(self.streams.expected()).unwrap_or(0);
        self.machine.listener.expect_streams(expected);
        let boot = boot_frame(&record.spec, disks, stdio).map_err(random())?;
        self.phase = Phase::Starting;
        match control.send(&HostFrame::Boot(Box::new(boot))) {
            Ok(()) => {}
            Err(ControlError::Io(_)) => {
                self.lose_control(record);
                return Ok(());
            }
            Err(error) => return Err(Report::of(&error)),
        }
        self.timeline.note(Event::BootSent);
        failpoint::reach("boot");
        tracing::debug!("Boot: told the guest what to run");
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
        let why = Report::new(format!(
            "The container's supervisor was ended by signal {signal}, and the container with it"
        ));
        Some(End::Killed {
            signal: 9,
            why: Some(why),
        })
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
        let ends = ENDING.contains(&i32::from(signal));
        if ends && self.machine.vm.is_stopped() {
            let why = Some(Report::new(
                "The container's machine had been stopped, and was killed",
            ));
            return Some(End::Killed { signal, why });
        }
        if self.phase == Phase::Booting {
            return ends.then_some(End::Killed { signal, why: None });
        }
        self.tell(&HostFrame::Signal { signal });
        None
    }

    /// Says something to the guest, if there is one to hear it.
    fn tell(&mut self, frame: &HostFrame) {
        if self.phase == Phase::Booting {
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
}

fn killed() -> End {
    End::Killed {
        signal: 9,
        why: Some(Report::new("The container was killed, by vmm rm -f")),
    }
}

/// Makes an error of the system a report.
fn failed(doing: &str) -> impl FnOnce(io::Error) -> Report + use<> {
    let what = format!("Cannot {doing}");
    move |error| Report {
        causes: vec![what, error.to_string()],
        ..Report::default()
    }
}

/// Whether the file system of `path` has no room.
fn is_full(path: &Path) -> bool {
    let Ok(space) = statvfs(path) else {
        return false;
    };
    // What is kept for root is room for root.
    let blocks = match geteuid().is_root() {
        true => space.f_bfree,
        false => space.f_bavail,
    };
    blocks.saturating_mul(space.f_frsize) < FULL
}
