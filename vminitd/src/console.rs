//! The kernel's log, where a line reaches the host when nothing else works.

use std::{
    os::fd::{AsRawFd, IntoRawFd, OwnedFd},
    sync::OnceLock,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open},
    io,
};

static LOG: OnceLock<OwnedFd> = OnceLock::new();

/// Makes sure that descriptors 0 to 2 are taken, so that none of ours is mistaken for a standard stream,
/// and opens the log. Needs nothing but a writable root directory: there is no `/dev` yet.
pub fn open_early() {
    while let Ok(descriptor) = open_device("/null", 3) {
        if descriptor.as_raw_fd() > 2 {
            break;
        }
        // It stays open for good.
        let _ = descriptor.into_raw_fd();
    }
    if let Ok(descriptor) = open_device("/kmsg", 11) {
        let _ = LOG.set(descriptor);
    }
}

/// Prints one line, at the level that is shown even on a quiet console.
pub fn say(line: &str) {
    let text = format!("<3>vminitd: {}\n", line.replace('\n', " "));
    match LOG.get() {
        Some(log) => drop(io::write(log, text.as_bytes())),
        None => eprint!("{}", text.get(3..).unwrap_or_default()),
    }
}

/// Opens the memory device with this minor number through a node of our own.
fn open_device(path: &str, minor: u32) -> io::Result<OwnedFd> {
    const MEMORY_DEVICES: u32 = 1;
    match mknodat(
        CWD,
        path,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        makedev(MEMORY_DEVICES, minor),
    ) {
        Ok(()) | Err(io::Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}
