//! The first serial port, a 16550: where the kernel's messages go. Nothing is to be read from it.

use std::{fs::File, io, io::Write as _};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// Its first I/O port.
pub const PORT: u16 = 0x3f8;
/// How many there are.
pub const PORTS: u16 = 8;

/// Bytes that are written at once at most. A line's end is written at once, too.
const PIECE: usize = 128;

/// The port.
pub struct Console(Serial<Line, NoEvents, Lines>);

/// Its interrupt.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where bytes go, a line at a time: each write wakes somebody up.
struct Lines {
    output: File,
    pending: Vec<u8>,
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE || self.pending.ends_with(b"\n") {
            self.flush_pending();
        }
        Ok(bytes.len())
    }

    /// Comes after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn flush_pending(&mut self) {
        // A log that nobody keeps any more is no reason to hold up a guest.
        let _ = self.output.write_all(&self.pending);
        self.pending.clear();
    }
}

impl Console {
    /// A port that writes to `output`, and has an interrupt.
    pub fn new(output: File, interrupt: EventFd) -> Self {
        let lines = Lines {
            output,
            pending: Vec::with_capacity(PIECE),
        };
        Self(Serial::new(Line(interrupt), lines))
    }

    /// The guest writes a byte to a port, counted from the first.
    pub fn write(&mut self, port: u8, byte: u8) {
        // An interrupt that cannot be raised, or a loop that is full, is the guest's loss.
        let _ = self.0.write(port, byte);
    }

    /// The guest reads a port, counted from the first.
    pub fn read(&mut self, port: u8) -> u8 {
        self.0.read(port)
    }

    /// Writes what has been held back.
    pub fn flush(&mut self) {
        self.0.writer_mut().flush_pending();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn lines_come_out_whole_and_the_rest_when_it_is_wanted() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file: File = rustix::fs::memfd_create("console", flags).unwrap().into();
        let interrupt = EventFd::new(0).unwrap();
        let mut console = Console::new(file.try_clone().unwrap(), interrupt);
        let mut said = |text: &str, flush: bool, console: &mut Console| {
            for byte in text.bytes() {
                assert_eq!(console.read(5) & 0x20, 0x20);
                console.write(0, byte);
            }
            if flush {
                console.flush();
            }
            let mut found = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut found).unwrap();
            found
        };
        assert_eq!(said("one\ntw", false, &mut console), "one\n");
        assert_eq!(said("o", true, &mut console), "one\ntwo");
        let long = "x".repeat(PIECE);
        assert_eq!(said(&long, false, &mut console), format!("one\ntwo{long}"));
        // Nothing comes in, and registers that do not exist are of no harm.
        assert_eq!(console.read(0), 0);
        for port in 0..=u8::MAX {
            console.write(port, 0xff);
            console.read(port);
        }
    }
}
