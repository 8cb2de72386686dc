//! A terminal that a test sits at.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::OFlags,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::transcript::Transcript;

/// A pseudo-terminal: what is typed at it, what it shows, and its size.
pub struct Terminal {
    /// The test's side.
    keyboard: File,
    /// The side of programs. Held open, so that its modes can be read when no program has it open.
    device: OwnedFd,
    transcript: Transcript,
}

impl Terminal {
    /// A new one of `rows` lines of `columns` characters.
    ///
    /// # Panics
    /// If there is none to be had.
    #[must_use]
    pub fn new(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a pseudo-terminal");
        grantpt(&master).expect("access to a pseudo-terminal");
        unlockpt(&master).expect("a pseudo-terminal that may be opened");
        let device =
            ioctl_tiocgptpeer(&master, flags).expect("the other side of a pseudo-terminal");
        let keyboard = File::from(master);
        let screen = keyboard.try_clone().expect("another descriptor");
        let terminal = Self {
            keyboard,
            device,
            transcript: Transcript::of(screen),
        };
        terminal.resize(rows, columns);
        terminal
    }

    /// Types `keys`.
    ///
    /// # Panics
    /// If they cannot be typed.
    pub fn type_keys(&self, keys: &str) {
        (&self.keyboard)
            .write_all(keys.as_bytes())
            .expect("a terminal to type at");
    }

    /// Gives it another size, as a window manager does.
    ///
    /// # Panics
    /// If it takes none.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keyboard, size).expect("a terminal with a size");
    }

    /// Its modes now.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn modes(&self) -> Modes {
        Modes(tcgetattr(&self.device).expect("a terminal with modes"))
    }

    /// Whether its descriptor, which programs share, is still one that blocks.
    ///
    /// # Panics
    /// If it is no descriptor.
    #[must_use]
    pub fn blocks(&self) -> bool {
        let flags = rustix::fs::fcntl_getfl(&self.device).expect("a descriptor's flags");
        !flags.contains(OFlags::NONBLOCK)
    }

    /// Everything it has shown.
    pub(crate) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// The side of programs, for one.
    pub(crate) fn device(&self) -> File {
        let device = self.device.as_fd().try_clone_to_owned();
        device.expect("another descriptor").into()
    }
}

/// How a terminal treats what is typed and shown.
#[derive(Debug, Clone)]
pub struct Modes(Termios);

impl Modes {
    /// Whether every key goes to the program as it is, and is not shown by the terminal itself.
    #[must_use]
    pub fn are_raw(&self) -> bool {
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        !self.0.local_modes.intersects(cooked)
    }
}

impl PartialEq for Modes {
    fn eq(&self, other: &Self) -> bool {
        // It has no comparison of its own, and prints all that it consists of.
        format!("{:?}", self.0) == format!("{:?}", other.0)
    }
}
