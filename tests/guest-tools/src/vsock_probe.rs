//! `vsock-probe`: a program in a container that wants more of its VM's host than its standard streams.
//!
//! Each subcommand tries one thing and prints one line about what it got. It exits with 0 whatever that was: the
//! test reads the lines, and the program must go on until it has tried everything.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::fd::{AsRawFd, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use agent_protocol::{
    CONTROL_PORT, ExitStatus, Exited, GuestFrame, Hello, STREAM_PORT, Started, VERSION, encode,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// How long the host may take to say something to a connection. It says nothing to most.
const PATIENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse().unwrap_or(0);
    let random = |seed: &str| Random::new(u64::from(number(seed)));
    match words.as_slice() {
        ["control"] => control(),
        ["stream", count, seed] => stream(number(count), random(seed)),
        ["odd-stream"] => odd_stream(),
        ["hold", count] => hold(number(count)),
        ["scan", count, seed] => scan(number(count), random(seed)),
        ["others"] => others(),
        ["kinds"] => kinds(),
        ["listen"] => listen(),
        _ => {
            eprintln!("vsock-probe: no such attempt: {words:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Pretends to be PID 1 of the VM, and that the container has ended well.
fn control() {
    let hello = GuestFrame::Hello(Hello {
        version: VERSION,
        kernel_release: "forged".to_owned(),
        now_ns: 1,
        init_ns: 1,
    });
    let started = GuestFrame::Started(Started {
        mounted_ns: 2,
        executed_ns: 3,
    });
    let exited = GuestFrame::Exited(Exited {
        status: ExitStatus::Code(0),
        oom: false,
        exited_ns: 4,
        synced_ns: 5,
    });
    // With and without an introduction.
    let attempts = [vec![&hello, &started, &exited], vec![&exited]];
    let mut got = 0;
    for frames in attempts {
        let frames = frames.into_iter().flat_map(|frame| encode(frame).ok());
        let bytes: Vec<u8> = frames.flatten().collect();
        got += answer(CONTROL_PORT, &bytes, false);
    }
    println!("control: {got} bytes");
}

/// Shows tokens that nobody gave it, and writes as if they had been right.
fn stream(count: u32, mut random: Random) {
    let mut got = 0;
    for _ in 0..count {
        let mut bytes = Vec::new();
        bytes.extend(random.next().to_le_bytes());
        bytes.extend(random.next().to_le_bytes());
        bytes.extend(b"forged output\n");
        got += answer(STREAM_PORT, &bytes, false);
    }
    println!("stream: {got} bytes");
}

/// Shows what is no token at all.
fn odd_stream() {
    let mut got = 0;
    for bytes in [&[][..], &[0], &[0; 15], &[0; 16], &[0xff; 16], &[0; 4096]] {
        got += answer(STREAM_PORT, bytes, true);
    }
    println!("odd-stream: {got} bytes");
}

/// Keeps connections open that say nothing, for as long as it lives.
fn hold(count: u32) {
    let streams: Vec<VsockStream> = (0..count)
        .filter_map(|_| VsockStream::connect_with_cid_port(VMADDR_CID_HOST, STREAM_PORT).ok())
        .collect();
    println!("hold: {}", streams.len());
    loop {
        std::thread::park();
    }
}

/// Dials all ports up to 2000 and `count` random ones, but those that the host is known to listen on.
fn scan(count: u32, mut random: Random) {
    let low = 0..=2000;
    let high = (0..count).map(|_| random.port());
    let ports = low.chain(high);
    let ports = ports.filter(|port| ![CONTROL_PORT, STREAM_PORT].contains(port));
    let (mut dialed, mut open) = (0, Vec::new());
    for port in ports {
        dialed += 1;
        if VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port).is_ok() {
            open.push(port);
        }
    }
    println!("scan: {dialed} ports, open: {open:?}");
}

/// Looks for the host, or for PID 1, at other addresses.
fn others() {
    let mut open = Vec::new();
    for cid in [0, 1, 3, 4, 5, VMADDR_CID_ANY] {
        for port in [CONTROL_PORT, STREAM_PORT] {
            if VsockStream::connect_with_cid_port(cid, port).is_ok() {
                open.push((cid, port));
            }
        }
    }
    println!("others: open: {open:?}");
}

/// Dials by other kinds of sockets than streams.
fn kinds() {
    let mut open = Vec::new();
    for (name, kind) in [
        ("seqpacket", SockType::SeqPacket),
        ("datagram", SockType::Datagram),
    ] {
        for port in [CONTROL_PORT, STREAM_PORT] {
            if dial_by(kind, port).is_ok() {
                open.push((name, port));
            }
        }
    }
    println!("kinds: open: {open:?}");
}

fn dial_by(kind: SockType, port: u32) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Vsock, kind, SockFlag::empty(), None)?;
    let address = VsockAddr::new(VMADDR_CID_HOST, port);
    connect(socket.as_raw_fd(), &address).map(|()| socket)
}

/// Waits for the host, or PID 1, to dial.
fn listen() {
    let mut taken = 0;
    for port in [CONTROL_PORT, STREAM_PORT, 5000] {
        let Ok(listener) = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port) else {
            continue;
        };
        if listener.set_nonblocking(true).is_err() {
            continue;
        }
        std::thread::sleep(PATIENCE);
        taken += u32::from(listener.accept().is_ok());
    }
    println!("listen: {taken} connections");
}

/// Sends `bytes` to a port of the host and counts what comes back. Nothing comes from a port that is closed, or on a
/// connection that the host ends.
fn answer(port: u32, bytes: &[u8], end: bool) -> usize {
    let Ok(mut stream) = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port) else {
        return 0;
    };
    // The host may have hung up already.
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut got = 0;
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer)
        && count > 0
    {
        got += count;
    }
    got
}

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn port(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or(0)
    }
}
