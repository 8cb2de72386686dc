//! The command in the foreground: starts a supervisor, ties the container's streams to its own, passes signals on, and
//! waits for the end.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{
    channel::{Channel, Ending, FromSupervisor, ToSupervisor},
    directory::Lock,
    failure::FAILED,
    timeline::{Event, Timeline, now_ns},
};
use crate::{
    agent::Which,
    process::{self, Bond, spawn},
    report::Report,
    terminal,
};

/// Interrupts after which the container is killed, whatever it or its supervisor is doing.
const PATIENCE: u32 = 3;

/// How long a supervisor may take to end that has hung up.
const FAREWELL: Duration = Duration::from_secs(2);

/// A container's supervisor, started and attached to.
#[derive(Debug)]
pub struct Attached {
    channel: Channel,
    supervisor: Child,
}

/// What the command ties to the container.
pub struct Foreground {
    /// Its terminal's size is the container's.
    pub terminal: bool,
    /// All the signals that it gets, as [`Foreground::take_signals`] gave it.
    pub signals: SignalFd,
}

/// What a supervisor logs.
#[derive(Clone, Debug)]
pub struct Logging {
    /// From this level on, on our standard error; `None`: nothing.
    pub level: Option<String>,
    /// What its times count from, in ns of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
}

/// Starts the supervisor of the container `id`, which takes the container's lock over.
///
/// # Errors
/// The program cannot be started once more.
pub fn start(root: &Path, id: &str, lock: Lock, logging: &Logging) -> io::Result<Attached> {
    let (channel, theirs) = Channel::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--root").arg(root);
    if let Some(level) = &logging.level {
        command.args(["--log-level", level]);
    } else {
        // Whoever waits for the end of what we print must not wait for the supervisor, too.
        command.stderr(Stdio::null());
    }
    command
        .args(["supervise", id])
        .args(["--channel", &theirs.as_fd().as_raw_fd().to_string()])
        .args(["--lock", &lock.as_fd().as_raw_fd().to_string()])
        .args(["--began", &logging.began_ns.to_string()])
        .current_dir("/")
        .stdout(Stdio::null());
    let inherited = [theirs.as_fd(), lock.as_fd()];
    tracing::debug!("Spawning its supervisor");
    let supervisor = spawn(&mut command, &inherited, Bond::Independent)?;
    Ok(Attached {
        channel,
        supervisor,
    })
}

impl Foreground {
    /// Takes every signal over that is to reach the container, before there is any thread.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn take_signals() -> io::Result<SignalFd> {
        let mut signals = SigSet::all();
        for own in [
            // About this process itself.
            Signal::SIGCHLD,
            Signal::SIGPIPE,
            Signal::SIGURG,
            // Job control stops the command, as any other.
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGCONT,
            // Defects.
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGSYS,
        ] {
            signals.remove(own);
        }
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(SignalFd::with_flags(&signals, flags)?)
    }
}

impl Attached {
    /// Waits until the container is over. Its output has been written then.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn wait(mut self, foreground: &Foreground) -> io::Result<Ending> {
        let mut pumps = Pumps::new()?;
        let mut interrupts = 0;
        // What the supervisor has told. What is missing then is output that nobody has read yet.
        let mut told: Option<Ending> = None;
        self.tell_size(foreground);
        loop {
            let next = match &told {
                None => self.channel.as_fd(),
                Some(_) => pumps.finished(),
            };
            let mut fds = [
                PollFd::new(&foreground.signals, PollFlags::IN),
                PollFd::from_borrowed_fd(next, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let is_next = !fds[1].revents().is_empty();
            while let Ok(Some(signal)) = foreground.signals.read_signal() {
                let signal = u8::try_from(signal.ssi_signo).unwrap_or(0);
                if i32::from(signal) == libc::SIGWINCH && foreground.terminal {
                    self.tell_size(foreground);
                    continue;
                }
                if ends(signal)
                    && let Some(ending) = told
                {
                    return Ok(unread(ending, signal));
                }
                interrupts += u32::from(is_interrupt(signal));
                if interrupts == PATIENCE {
                    let why = format!("The container was killed after {PATIENCE} interrupts");
                    return self.given_up(signal, why);
                }
                if ends(signal)
                    && process::is_stopped(rustix::process::Pid::from_child(&self.supervisor))
                {
                    let why = "Its supervisor had been stopped, and was killed";
                    return self.given_up(signal, why.to_owned());
                }
                // If the supervisor is gone the next message says so.
                let _ = self.channel.send(&ToSupervisor::Signal(signal), None);
            }
            match told.take() {
                Some(ending) if is_next => return Ok(pumps.conclude(ending)),
                Some(ending) => told = Some(ending),
                None => told = self.receive(&mut pumps)?,
            }
        }
    }

    /// Does what the supervisor says; gives how it says that the container ended, if it does.
    fn receive(&mut self, pumps: &mut Pumps) -> io::Result<Option<Ending>> {
        let ending = match self.channel.receive() {
            Ok((FromSupervisor::Stream(which), stream)) => {
                if let Some(stream) = stream {
                    pumps.start(which, stream)?;
                }
                return Ok(None);
            }
            Ok((FromSupervisor::Console, stream)) => {
                if let Some(stream) = stream {
                    pumps.show_console(stream)?;
                }
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Ok((FromSupervisor::Ended(ending), _)) => ending,
            Err(_) => {
                let how = self.end_supervisor(FAREWELL)?;
                let what = "The container's supervisor is gone";
                let report = Report::new(format!("{what} ({how}), and the container with it"));
                let advice = "vmm --debug run, which shows what it does until then";
                lost(FAILED, report.advise(advice))
            }
        };
        pumps.all_started();
        Ok(Some(ending))
    }

    /// Says how large the terminal is, if there is one.
    fn tell_size(&self, foreground: &Foreground) {
        if foreground.terminal
            && let Some((rows, columns)) = terminal::size()
        {
            let _ = self
                .channel
                .send(&ToSupervisor::Resize { rows, columns }, None);
        }
    }

    /// Ends the container without its supervisor's help.
    fn given_up(mut self, signal: u8, why: String) -> io::Result<Ending> {
        self.end_supervisor(Duration::ZERO)?;
        Ok(lost(128_u8.saturating_add(signal), Report::new(why)))
    }

    /// Waits for the supervisor's end, and makes it if that takes longer than `patience`. Its machine ends with it.
    fn end_supervisor(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        if !process::ends_within(&self.supervisor, patience)? {
            self.supervisor.kill()?;
        }
        // A process that was killed is gone as soon as its last system call is.
        self.supervisor.wait()
    }
}

/// Whether it is a signal that asks for the container's end.
fn ends(signal: u8) -> bool {
    is_interrupt(signal) || [libc::SIGHUP, libc::SIGQUIT].contains(&i32::from(signal))
}

/// Whether it is a signal by which people and their tools show impatience.
fn is_interrupt(signal: u8) -> bool {
    [libc::SIGINT, libc::SIGTERM].contains(&i32::from(signal))
}

/// The supervisor is gone without a word.
fn lost(exit_code: u8, report: Report) -> Ending {
    Ending {
        exit_code,
        oom: false,
        error: Some(report),
        warnings: Vec::new(),
        timeline: Timeline::default(),
        lost: true,
    }
}

/// The container has ended, and somebody does not want to wait until its output has been read.
fn unread(mut ending: Ending, signal: u8) -> Ending {
    ending.exit_code = 128_u8.saturating_add(signal);
    let why = "The container has ended, but its output has not been read to the end";
    ending.error.get_or_insert_with(|| Report::new(why));
    ending
}

/// The threads that move bytes between the container's streams and ours. They block, so that the descriptors we share
/// with whoever started us stay as they are.
struct Pumps {
    output: Vec<JoinHandle<Delivered>>,
    console: Option<JoinHandle<()>>,
    /// Hangs up when all who write output have finished, and no more are started.
    finished: PipeReader,
    unfinished: Option<PipeWriter>,
}

/// What came of output.
#[derive(Default)]
struct Delivered {
    /// When the first of it was there, in ns of `CLOCK_MONOTONIC`.
    first: Option<u64>,
    /// Not all of it could be written, although there is somebody to read.
    lost: Option<OutputLost>,
}

/// The container's output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write the container's output; the rest of it is lost")]
struct OutputLost(#[source] io::Error);

impl Pumps {
    fn new() -> io::Result<Self> {
        let (finished, unfinished) = io::pipe()?;
        Ok(Self {
            output: Vec::new(),
            console: None,
            finished,
            unfinished: Some(unfinished),
        })
    }

    fn start(&mut self, which: Which, stream: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false)?;
        match which {
            Which::Stdin => {
                let source = own(io::stdin())?;
                // It may wait for input when everything else is over.
                let thread = std::thread::Builder::new().name("stdin".into());
                drop(thread.spawn(move || input(source, &stream))?);
                Ok(())
            }
            Which::Stdout => self.start_output("stdout", stream, own(io::stdout())?),
            Which::Stderr => self.start_output("stderr", stream, own(io::stderr())?),
        }
    }

    fn start_output(&mut self, name: &str, stream: UnixStream, sink: File) -> io::Result<()> {
        let unfinished = self.unfinished()?;
        let thread = std::thread::Builder::new().name(name.into());
        self.output.push(thread.spawn(move || {
            let delivered = output(&stream, sink);
            drop(unfinished);
            delivered
        })?);
        Ok(())
    }

    /// Shows what the guest's kernel prints on standard error.
    fn show_console(&mut self, stream: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(stream);
        let unfinished = self.unfinished()?;
        let thread = std::thread::Builder::new().name("console".into());
        let show = move || {
            copy(&mut &stream, &mut terminal::Stderr);
            drop(unfinished);
        };
        self.console = Some(thread.spawn(show)?);
        Ok(())
    }

    /// What is to be dropped when somebody who writes output has finished.
    fn unfinished(&self) -> io::Result<Option<PipeWriter>> {
        let unfinished = self.unfinished.as_ref();
        unfinished.map(PipeWriter::try_clone).transpose()
    }

    /// No more will be started.
    fn all_started(&mut self) {
        self.unfinished = None;
    }

    /// Readable when all output has been written.
    fn finished(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }

    /// Adds what came of the output. All of it has been written.
    fn conclude(self, mut ending: Ending) -> Ending {
        let mut all = Delivered::default();
        for thread in self.output {
            let one = thread.join().unwrap_or_default();
            all.first = [all.first, one.first].into_iter().flatten().min();
            all.lost = all.lost.or(one.lost);
        }
        if let Some(console) = self.console {
            // It has no way to panic that matters here.
            let _ = console.join();
        }
        if let Some(ns) = all.first {
            ending.timeline.note_at(Event::FirstOutput, ns);
        }
        if let (Some(lost), None) = (all.lost, &ending.error) {
            ending.exit_code = FAILED;
            ending.error = Some(Report::of(&lost));
        }
        ending
    }
}

/// A descriptor of our own for a standard stream; `/dev/null` in the place of one that is closed.
fn own(stream: impl AsFd) -> io::Result<File> {
    match stream.as_fd().try_clone_to_owned() {
        Ok(fd) => Ok(fd.into()),
        Err(_) => File::options().read(true).write(true).open("/dev/null"),
    }
}

/// Passes our input on to its end.
fn input(mut source: File, stream: &UnixStream) {
    // Whatever ends it, there is nothing more to come.
    copy(&mut source, &mut &*stream);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// Writes what the container puts out.
fn output(stream: &UnixStream, mut sink: File) -> Delivered {
    let ready = poll(&mut [PollFd::new(stream, PollFlags::IN)], None).is_ok();
    let first = ready.then(now_ns);
    // If nobody reads what we write, the container's process is told so: the stream is closed.
    let copied = copy(&mut &*stream, &mut sink);
    let lost = copied
        .failed
        .filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
    Delivered {
        first: first.filter(|_| copied.bytes > 0),
        lost: lost.map(OutputLost),
    }
}

/// Bytes moved at once: as much as a pipe holds.
const BUFFER: usize = 64 << 10;

/// How far a copy came.
struct Copied {
    bytes: u64,
    /// Why no more could be written.
    failed: Option<io::Error>,
}

/// Reads and writes until there is no more to read, or no more can be written.
///
/// The standard library's copy would `splice(2)`, which keeps a pipe locked while it waits for the socket: whoever reads
/// from that pipe then waits for our next byte, though the last is there.
fn copy(source: &mut impl Read, sink: &mut impl Write) -> Copied {
    let mut buffer = vec![0; BUFFER];
    let mut copied = Copied {
        bytes: 0,
        failed: None,
    };
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return copied,
            Ok(count) => match sink.write_all(&buffer[..count]) {
                Ok(()) => copied.bytes += count as u64,
                Err(error) => {
                    copied.failed = Some(error);
                    return copied;
                }
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever wrote is gone.
            Err(_) => return copied,
        }
    }
}
