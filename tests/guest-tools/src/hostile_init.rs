//! `hostile-init`: what a VM has for PID 1 if somebody means its host ill.
//!
//! The kernel gives PID 1 a word of its command line as a variable, and `hostile=NAME` chooses what it does. Whatever
//! that leads to, the host ends it: most of them stay alive until then.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    time::Duration,
};

use agent_protocol::{
    CONTROL_PORT, Decoder, ExitStatus, Exited, GuestFrame, Hello, HostFrame, Level, STREAM_PORT,
    Stage, StartError, Started, Stdio, Token, VERSION, encode,
};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};
use vsock::{VMADDR_CID_HOST, VsockStream};

/// What it exits with, if it says so itself: no other part of the way has this code.
const CODE: u8 = 42;

fn main() {
    let word = std::env::var("hostile").unwrap_or_default();
    if let Err(error) = act(&word) {
        // Where the host has hung up all is as it should be.
        eprintln!("{word}: {error}");
        stay();
    }
}

fn act(word: &str) -> io::Result<()> {
    match word {
        // Never says hello.
        "no-dial" => stay(),
        "no-word" => hold(dial(CONTROL_PORT)?),
        "half-frame" => raw(&[100, 0, 0, 0, 1, 2, 3]),
        "exit" => Ok(()),
        "reboot" => reboot(RebootMode::RB_AUTOBOOT)
            .map(|never| match never {})
            .map_err(io::Error::from),
        "hang-up" => {
            drop(dial(CONTROL_PORT)?);
            stay()
        }

        "no-start" => hold(Host::greet()?),

        // Says what is none.
        "4-gib-frame" => raw(&u32::MAX.to_le_bytes()),
        "noise" => raw(&noise(1 << 20)),
        "other-version" => raw(&frame(&hello(VERSION + 76))?),
        "no-hello" => raw(&frame(&exited(0))?),
        "two-hellos" => raw(&[frame(&hello(VERSION))?, frame(&hello(VERSION))?].concat()),
        "noise-later" => Host::greet()?.end_with(&noise(1 << 20)),
        "odd-clock" => odd_clock(),

        // Says too much.
        "exited-not-started" => Host::greet()?.end(),
        "long-error" => long_error(),
        "exited-signal-255" => exited_signal(),
        "logs" => logs(200_000),
        "logs-for-ever" => logs(u32::MAX),
        "long-logs" => long_logs(),
        "started-often" => started(20_000),
        "started-for-ever" => started(u32::MAX),

        // Connections.
        "connections" => connections(),
        "no-token" => no_token(),
        "tokens-twice" => tokens_twice(),
        "tokens-swapped" => tokens_swapped(),
        "hang-up-started" => hang_up_started(),

        // Streams.
        "deaf" => deaf(),
        "flood" => flood(),
        "exited-early" => exited_early(),
        "console" => console(1200 << 10).and_then(|()| Host::greet()?.end()),
        "console-for-ever" => console(usize::MAX),
        // The kernel says more when this process ends.
        "console-then-panic" => console(1200 << 10),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

/// Keeps connections open.
fn hold<T>(_held: T) -> ! {
    stay()
}

fn dial(port: u32) -> io::Result<VsockStream> {
    VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)
}

/// Sends `bytes` as the first there are.
fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stream = dial(CONTROL_PORT)?;
    stream.write_all(bytes)?;
    hold(stream)
}

fn frame(message: &GuestFrame) -> io::Result<Vec<u8>> {
    encode(message).map_err(io::Error::other)
}

fn hello(version: u32) -> GuestFrame {
    GuestFrame::Hello(Hello {
        version,
        kernel_release: "\x1b[31mhostile\x1b]0;title\x07".to_owned(),
        now_ns: 1,
        init_ns: 1,
    })
}

fn started_frame() -> GuestFrame {
    GuestFrame::Started(Started {
        mounted_ns: 2,
        executed_ns: 3,
    })
}

fn exited(code: u8) -> GuestFrame {
    GuestFrame::Exited(Exited {
        status: ExitStatus::Code(code),
        oom: false,
        exited_ns: 4,
        synced_ns: 5,
    })
}

fn log(level: Level, text: impl Into<String>) -> GuestFrame {
    GuestFrame::Log {
        level,
        text: text.into(),
    }
}

/// The host, which has had its hello and has answered.
struct Host {
    stream: VsockStream,
    stdio: Stdio,
}

impl Host {
    fn greet() -> io::Result<Self> {
        let mut stream = dial(CONTROL_PORT)?;
        stream.write_all(&frame(&hello(VERSION))?)?;
        let mut decoder = Decoder::new();
        let mut buffer = [0; 4096];
        loop {
            let message = decoder.next_message().map_err(io::Error::other)?;
            if let Some(HostFrame::Boot(boot)) = message {
                let stdio = boot.process.stdio;
                return Ok(Self { stream, stdio });
            }
            match stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => decoder.feed(&buffer[..count]),
            }
        }
    }

    fn say(&mut self, message: &GuestFrame) -> io::Result<()> {
        self.stream.write_all(&frame(message)?)
    }

    fn end_with(mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        hold(self)
    }

    /// Says that the container has exited with [`CODE`].
    fn end(mut self) -> io::Result<()> {
        self.say(&exited(CODE))?;
        hold(self)
    }

    /// Tokens of standard input, if there is one, output and error.
    fn tokens(&self) -> (Option<Token>, Token, Token) {
        match self.stdio.clone() {
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            } => (stdin, stdout, stderr),
            Stdio::Terminal { stdin, stdout, .. } => (stdin, stdout.clone(), stdout),
        }
    }
}

fn open(token: &Token) -> io::Result<VsockStream> {
    let mut stream = dial(STREAM_PORT)?;
    stream.write_all(token.as_bytes())?;
    Ok(stream)
}

fn odd_clock() -> io::Result<()> {
    let mut host = Host::greet()?;
    host.say(&GuestFrame::Started(Started {
        mounted_ns: u64::MAX,
        executed_ns: 0,
    }))?;
    host.say(&GuestFrame::Exited(Exited {
        status: ExitStatus::Code(CODE),
        oom: true,
        exited_ns: 1 << 63,
        synced_ns: u64::MAX,
    }))?;
    hold(host)
}

fn long_error() -> io::Result<()> {
    let mut host = Host::greet()?;
    host.say(&GuestFrame::Error(StartError {
        stage: Stage::Execute,
        errno: i32::MIN,
        text: "\x1b[2J\x1b]0;owned\x07\u{9b}31m\n\r\u{202e}".repeat(150_000),
    }))?;
    hold(host)
}

fn exited_signal() -> io::Result<()> {
    let mut host = Host::greet()?;
    host.say(&GuestFrame::Exited(Exited {
        status: ExitStatus::Signal(255),
        oom: false,
        exited_ns: 0,
        synced_ns: 0,
    }))?;
    hold(host)
}

/// So many frames that nobody asked for, as fast as they can be sent.
fn repeat(host: &mut Host, message: &GuestFrame, count: u32) -> io::Result<()> {
    let bytes = frame(message)?;
    let each = 4096 / bytes.len() + 1;
    let batch = bytes.repeat(each);
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    while left > 0 {
        host.stream.write_all(&batch)?;
        left = left.saturating_sub(each);
    }
    Ok(())
}

fn logs(count: u32) -> io::Result<()> {
    let mut host = Host::greet()?;
    repeat(&mut host, &log(Level::Warn, ""), count)?;
    host.end()
}

fn long_logs() -> io::Result<()> {
    let mut host = Host::greet()?;
    let long = frame(&log(Level::Warn, "\x1b[31m\u{202e}x".repeat(350_000)))?;
    for _ in 0..20 {
        host.stream.write_all(&long)?;
    }
    host.end()
}

fn started(count: u32) -> io::Result<()> {
    let mut host = Host::greet()?;
    repeat(&mut host, &started_frame(), count)?;
    host.end()
}

fn connections() -> io::Result<()> {
    let mut host = Host::greet()?;
    let mut held = Vec::new();
    for _ in 0..5000 {
        for port in [CONTROL_PORT, STREAM_PORT] {
            held.extend(dial(port).ok());
        }
    }
    let count = held.len();
    host.say(&log(Level::Warn, format!("{count} connections")))?;
    host.say(&exited(u8::try_from(count).unwrap_or(255)))?;
    hold((host, held))
}

fn no_token() -> io::Result<()> {
    let mut host = Host::greet()?;
    let held = [dial(STREAM_PORT)?, dial(STREAM_PORT)?];
    host.say(&started_frame())?;
    host.say(&exited(CODE))?;
    hold((host, held))
}

fn tokens_twice() -> io::Result<()> {
    let mut host = Host::greet()?;
    let (_, out, _) = host.tokens();
    let mut first = open(&out)?;
    let mut second = open(&out)?;
    host.say(&started_frame())?;
    let _ = first.write_all(b"first\n");
    std::thread::sleep(Duration::from_millis(200));
    let _ = second.write_all(b"second\n");
    drop((first, second));
    std::thread::sleep(Duration::from_millis(200));
    host.say(&exited(CODE))?;
    hold(host)
}

fn tokens_swapped() -> io::Result<()> {
    let mut host = Host::greet()?;
    let (_, out, err) = host.tokens();
    let mut stderr = open(&err)?;
    let mut stdout = open(&out)?;
    host.say(&started_frame())?;
    stderr.write_all(b"to stderr\n")?;
    stdout.write_all(b"to stdout\n")?;
    drop((stderr, stdout));
    std::thread::sleep(Duration::from_millis(200));
    host.end()
}

fn hang_up_started() -> io::Result<()> {
    let mut host = Host::greet()?;
    host.say(&started_frame())?;
    drop(host);
    stay()
}

/// Takes all of the container's streams and reads nothing, nor what the host says.
fn deaf() -> io::Result<()> {
    let mut host = Host::greet()?;
    let (input, out, err) = host.tokens();
    let input = input.map(|token| open(&token)).transpose()?;
    let mut stdout = open(&out)?;
    let stderr = open(&err)?;
    host.say(&started_frame())?;
    stdout.write_all(b"deaf\n")?;
    hold((host, input, stdout, stderr))
}

fn flood() -> io::Result<()> {
    let mut host = Host::greet()?;
    let (_, out, err) = host.tokens();
    let mut stdout = open(&out)?;
    let _stderr = open(&err)?;
    host.say(&started_frame())?;
    let block = [b'x'; 64 << 10];
    loop {
        stdout.write_all(&block)?;
    }
}

/// Says that it is over while nobody has read its output.
fn exited_early() -> io::Result<()> {
    let mut host = Host::greet()?;
    let (_, out, err) = host.tokens();
    let mut stdout = open(&out)?;
    let stderr = open(&err)?;
    host.say(&started_frame())?;
    stdout.write_all(&[b'x'; 200_000])?;
    host.say(&exited(CODE))?;
    hold((host, stdout, stderr))
}

/// Prints so many bytes to the serial port; or, where there is none, by the kernel, which says them on its console.
fn console(bytes: usize) -> io::Result<()> {
    let none: Option<&str> = None;
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc")] {
        std::fs::create_dir_all(place)?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)?;
    }
    let line = "\x1b[31m\u{202e}console\x1b[0m\n";
    let serial = Path::new("/dev/ttyS0");
    let (path, text) = match serial.exists() {
        true => (serial, line.repeat(200)),
        false => {
            std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n")?;
            // As something critical, in a record that is not too long.
            (Path::new("/dev/kmsg"), format!("<2>{}", line.repeat(40)))
        }
    };
    let mut out: File = OpenOptions::new().write(true).open(path)?;
    let mut written = 0;
    while written < bytes {
        out.write_all(text.as_bytes())?;
        written += text.len();
    }
    Ok(())
}

/// `len` bytes that look random and are always the same (xorshift64*).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.take(len / 8).flatten().collect()
}
