//! The command in the foreground: starts a supervisor, ties the container's streams to its own, passes signals on, and
//! waits for the end.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    channel::{Channel, Ending, FromSupervisor, ToSupervisor},
    directory::Lock,
    failure::FAILED,
    timeline::{Event, Timeline, now_ns},
};
use crate::{
    agent::Which,
    process::{Bond, spawn},
    report::Report,
    terminal,
};

/// Interrupts after which the command goes without waiting for the container: it then ends, too.
const PATIENCE: u32 = 3;

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
    let supervisor = spawn(&mut command, &inherited, Bond::Independent)?;
    tracing::debug!("Spawned its supervisor, process {}", supervisor.id());
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
        let mut pumps = Pumps::default();
        let mut interrupts = 0;
        self.tell_size(foreground);
        loop {
            let mut fds = [
                PollFd::new(&self.channel, PollFlags::IN),
                PollFd::new(&foreground.signals, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            while let Ok(Some(signal)) = foreground.signals.read_signal() {
                let signal = u8::try_from(signal.ssi_signo).unwrap_or(0);
                if i32::from(signal) == libc::SIGWINCH && foreground.terminal {
                    self.tell_size(foreground);
                    continue;
                }
                if [libc::SIGINT, libc::SIGTERM].contains(&i32::from(signal)) {
                    interrupts += 1;
                    if interrupts == PATIENCE {
                        return Ok(given_up(signal));
                    }
                }
                // If the supervisor is gone the next message says so.
                let _ = self.channel.send(&ToSupervisor::Signal(signal), None);
            }
            match self.channel.receive() {
                Ok((FromSupervisor::Stream(which), Some(stream))) => {
                    pumps.start(which, stream)?;
                }
                Ok((FromSupervisor::Console, Some(stream))) => pumps.show_console(stream)?,
                Ok((FromSupervisor::Stream(_) | FromSupervisor::Console, None)) => {}
                Ok((FromSupervisor::Ended(mut ending), _)) => {
                    let delivered = pumps.finish();
                    if let Some(ns) = delivered.first {
                        ending.timeline.note_at(Event::FirstOutput, ns);
                    }
                    if let (Some(lost), None) = (delivered.lost, &ending.error) {
                        ending.exit_code = FAILED;
                        ending.error = Some(Report::of(&lost));
                    }
                    return Ok(ending);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    pumps.finish();
                    return Ok(self.lost());
                }
            }
        }
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

    /// The supervisor is gone without a word.
    fn lost(&mut self) -> Ending {
        let how = match self.supervisor.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Ending {
            exit_code: FAILED,
            oom: false,
            error: Some(
                Report::new(format!(
                    "The container's supervisor is gone ({how}), and the container with it"
                ))
                .advise("vmm --debug run, which shows what it does until then"),
            ),
            warnings: Vec::new(),
            timeline: Timeline::default(),
            lost: true,
        }
    }
}

fn given_up(signal: u8) -> Ending {
    Ending {
        exit_code: 128_u8.saturating_add(signal),
        oom: false,
        error: Some(Report::new(format!(
            "The container was killed after {PATIENCE} interrupts"
        ))),
        warnings: Vec::new(),
        timeline: Timeline::default(),
        lost: false,
    }
}

/// The threads that move bytes between the container's streams and ours. They block, so that the descriptors we share
/// with whoever started us stay as they are.
#[derive(Default)]
struct Pumps {
    output: Vec<JoinHandle<Delivered>>,
    console: Option<JoinHandle<()>>,
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
    fn start(&mut self, which: Which, stream: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false)?;
        let thread = std::thread::Builder::new();
        match which {
            Which::Stdin => {
                let source = own(io::stdin())?;
                // It may wait for input when everything else is over.
                drop(
                    thread
                        .name("stdin".into())
                        .spawn(move || input(source, &stream))?,
                );
            }
            Which::Stdout => {
                let sink = own(io::stdout())?;
                let spawned = thread
                    .name("stdout".into())
                    .spawn(move || output(&stream, sink));
                self.output.push(spawned?);
            }
            Which::Stderr => {
                let sink = own(io::stderr())?;
                let spawned = thread
                    .name("stderr".into())
                    .spawn(move || output(&stream, sink));
                self.output.push(spawned?);
            }
        }
        Ok(())
    }

    /// Shows what the guest's kernel prints on standard error.
    fn show_console(&mut self, stream: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(stream);
        let thread = std::thread::Builder::new().name("console".into());
        let show = move || {
            copy(&mut &stream, &mut terminal::Stderr);
        };
        self.console = Some(thread.spawn(show)?);
        Ok(())
    }

    /// Waits until all output has been written.
    fn finish(&mut self) -> Delivered {
        let mut all = Delivered::default();
        for thread in self.output.drain(..) {
            let one = thread.join().unwrap_or_default();
            all.first = [all.first, one.first].into_iter().flatten().min();
            all.lost = all.lost.or(one.lost);
        }
        if let Some(console) = self.console.take() {
            // It has no way to panic that matters here.
            let _ = console.join();
        }
        all
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
