//! The container's standard streams: pipes or a terminal on its side, streams to the host on the other.

use std::os::fd::{AsFd, OwnedFd};

use agent_protocol::{STREAM_PORT, Stage, Stdio, Token, WindowSize};
use rustix::{
    fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    pty::{ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    container::Streams,
    failure::{During, Failure},
    host,
    relay::{End, Relay},
    system::TERMINALS,
};

/// Connections to the host on their way, made while other things are done.
pub struct Dialed {
    stdin: Option<Stream>,
    stdout: Stream,
    stderr: Option<Stream>,
    size: Option<WindowSize>,
}

/// Both sides, connected.
pub struct Connected {
    /// For the container's process.
    pub streams: Streams,
    /// From the host to the container.
    pub input: Option<Relay>,
    /// From the container to the host.
    pub output: Vec<Relay>,
    /// The master of the terminal, if there is one.
    pub terminal: Option<Terminal>,
}

/// A connection that is not open yet, and what opens it.
struct Stream {
    socket: OwnedFd,
    token: Token,
}

/// The container's terminal, to set its size.
pub struct Terminal(OwnedFd);

impl Dialed {
    /// Begins to connect what `stdio` asks for.
    ///
    /// # Errors
    /// If there are no sockets to be had.
    pub fn dial(stdio: &Stdio) -> Result<Self, Failure> {
        let (stdin, stdout, stderr, size) = match stdio {
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            } => (stdin, stdout, Some(stderr), None),
            Stdio::Terminal {
                stdin,
                stdout,
                size,
            } => (stdin, stdout, None, Some(*size)),
        };
        Ok(Self {
            stdin: stdin.as_ref().map(Stream::dial).transpose()?,
            stdout: Stream::dial(stdout)?,
            stderr: stderr.map(Stream::dial).transpose()?,
            size,
        })
    }

    /// Waits for the connections, shows their tokens and ties them to the container's side.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn connect(self) -> Result<Connected, Failure> {
        let stdin = self.stdin.map(Stream::open).transpose()?;
        let stdout = self.stdout.open()?;
        let stderr = self.stderr.map(Stream::open).transpose()?;
        match self.size {
            Some(size) => connect_terminal(stdin, stdout, size),
            None => connect_pipes(stdin, stdout, stderr),
        }
    }
}

impl Stream {
    fn dial(token: &Token) -> Result<Self, Failure> {
        let socket = host::dial(STREAM_PORT).during(Stage::Stdio, "a stream to the host")?;
        Ok(Self {
            socket,
            token: token.clone(),
        })
    }

    fn open(self) -> Result<OwnedFd, Failure> {
        let what = "a stream to the host";
        host::connected(&self.socket).during(Stage::Stdio, what)?;
        let token = self.token.as_bytes();
        match rustix::io::write(&self.socket, token) {
            Ok(count) if count == token.len() => Ok(self.socket),
            // A fresh socket takes so little at once.
            Ok(_) => Err(Failure::new(Stage::Stdio, what)),
            Err(error) => Err(error).during(Stage::Stdio, what),
        }
    }
}

impl Terminal {
    /// Gives the terminal another size; programs in it get `SIGWINCH`.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    pub fn resize(&self, size: WindowSize) -> Result<(), Errno> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.0, size)
    }
}

fn connect_pipes(
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
) -> Result<Connected, Failure> {
    let (input, process_stdin) = match stdin {
        Some(socket) => {
            let (read, write) = pipe()?;
            let write = not_blocking(write)?;
            let relay = Relay::new(End::Socket(socket), End::Pipe(write));
            (Some(relay), Some(read))
        }
        None => (None, None),
    };
    let mut output = Vec::new();
    let mut from_process = |socket| {
        let (read, write) = pipe()?;
        let read = not_blocking(read)?;
        output.push(Relay::new(End::Pipe(read), End::Socket(socket)));
        Ok(write)
    };
    let process_stdout = from_process(stdout)?;
    let process_stderr = match stderr {
        Some(socket) => from_process(socket)?,
        None => process_stdout.try_clone().during(Stage::Stdio, "a pipe")?,
    };
    Ok(Connected {
        streams: Streams::Pipes {
            stdin: process_stdin,
            stdout: process_stdout,
            stderr: process_stderr,
        },
        input,
        output,
        terminal: None,
    })
}

fn connect_terminal(
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    size: WindowSize,
) -> Result<Connected, Failure> {
    let what = "a pseudo-terminal";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = open(format!("{TERMINALS}/ptmx"), flags, Mode::empty())
        .and_then(|master| unlockpt(&master).map(|()| master))
        .during(Stage::Stdio, what)?;
    let number = ptsname(&master, Vec::new())
        .ok()
        .and_then(|name| name.to_str().ok()?.rsplit('/').next()?.parse().ok())
        .ok_or_else(|| Failure::new(Stage::Stdio, what))?;
    let again = || master.try_clone().during(Stage::Stdio, what);
    let input = match stdin {
        Some(socket) => Some(Relay::new(End::Socket(socket), End::Terminal(again()?))),
        None => None,
    };
    let output = vec![Relay::new(End::Terminal(again()?), End::Socket(stdout))];
    let terminal = Terminal(master);
    terminal.resize(size).during(Stage::Stdio, what)?;
    Ok(Connected {
        streams: Streams::Terminal(number),
        input,
        output,
        terminal: Some(terminal),
    })
}

/// A pipe whose ends block, as programs expect of their standard streams.
fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).during(Stage::Stdio, "a pipe")
}

/// For our end of a pipe: each end has its own flags.
fn not_blocking(end: OwnedFd) -> Result<OwnedFd, Failure> {
    fcntl_getfl(end.as_fd())
        .and_then(|flags| fcntl_setfl(&end, flags | OFlags::NONBLOCK))
        .during(Stage::Stdio, "a pipe")?;
    Ok(end)
}
