//! What the guest's kernel prints: a log, and whoever looks on. The guest can print without end, so what is kept of it is
//! bounded: the beginning of the log is thrown away for its end.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::failed_logs;
use crate::{
    container::channel::{Channel, FromSupervisor},
    terminal::{changes_terminal, printable},
};

/// Size in bytes at which the log is moved aside and begun anew: twice this is kept at most.
const MAX_LOG: u64 = 512 << 10;

/// Bytes at the end that are kept for an error message.
const TAIL: usize = 8 << 10;

/// Characters of a line that are shown.
const MAX_LINE: usize = 200;

/// Reads before others have their turn.
const READS: usize = 16;

/// Lines of them that are shown.
const SHOWN: usize = 12;

/// Receives the guest's console.
#[derive(Debug)]
pub struct Console {
    pipe: File,
    path: PathBuf,
    /// `None` once it could not be written: the container is worth more than its log.
    log: Option<File>,
    len: u64,
    tail: Vec<u8>,
    viewer: Option<Viewer>,
}

/// Somebody who sees what is printed as it comes.
#[derive(Debug)]
struct Viewer {
    socket: UnixStream,
    /// Bytes that found no room in the socket.
    left_out: usize,
}

impl Console {
    /// A console that is written to the file `path`, and the descriptor that a guest prints to.
    ///
    /// # Errors
    /// The file cannot be made, or the host is out of descriptors.
    pub fn open(path: &Path) -> io::Result<(Self, File)> {
        let (pipe, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let console = Self {
            pipe: pipe.into(),
            log: Some(create(path)?),
            path: path.to_owned(),
            len: 0,
            tail: Vec::new(),
            viewer: None,
        };
        Ok((console, writer.into()))
    }

    /// Shows what comes from here on to the command at the other end of `channel`, as far as it reads it in time.
    ///
    /// # Errors
    /// The host is out of descriptors, or the command is gone.
    pub fn show_on(&mut self, channel: &Channel) -> io::Result<()> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        channel.send(&FromSupervisor::Console, Some(theirs.as_fd()))?;
        self.viewer = Some(Viewer {
            socket,
            left_out: 0,
        });
        Ok(())
    }

    /// Takes what has been printed. Says whether more may come.
    pub fn take(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        for _ in 0..READS {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.add(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn add(&mut self, bytes: &[u8]) {
        if let Some(viewer) = &mut self.viewer {
            viewer.show(bytes);
        }
        self.tail.extend_from_slice(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        self.len += bytes.len() as u64;
        if self.len > MAX_LOG {
            let _ = std::fs::rename(&self.path, older(&self.path));
            self.log = create(&self.path).ok();
            self.len = bytes.len() as u64;
        }
        if let Some(log) = &mut self.log
            && log.write_all(bytes).is_err()
        {
            self.log = None;
        }
    }

    /// Keeps the log: where it is, or under the name `aside` if it would go with its container. Says where it is then;
    /// `None` if nothing was printed, or it cannot be kept.
    #[must_use]
    pub fn keep(&mut self, aside: Option<&Path>) -> Option<PathBuf> {
        if self.len == 0 || self.log.is_none() {
            return None;
        }
        if let Some(aside) = aside {
            failed_logs::make_room(aside).ok()?;
            std::fs::rename(&self.path, aside).ok()?;
            // There is one only if much was printed.
            let _ = std::fs::rename(older(&self.path), older(aside));
            self.path = aside.to_owned();
        }
        Some(self.path.clone())
    }

    /// The line with which the kernel panicked, if it did.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        let lines = self.lines();
        let at = lines.iter().rposition(|line| line.contains(PANIC))?;
        Some(lines[at][lines[at].find(PANIC)?..].trim().to_owned())
    }

    /// The last lines.
    #[must_use]
    pub fn last_lines(&self) -> Vec<String> {
        let lines = self.lines();
        lines[lines.len().saturating_sub(SHOWN)..].to_vec()
    }

    /// What is kept, without what could change a terminal.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.tail);
        text.lines()
            .map(|line| printable(line.trim_end(), MAX_LINE))
            .filter(|line| !line.trim().is_empty())
            .collect()
    }
}

impl Viewer {
    fn show(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let mut text: String = text
            .chars()
            .filter(|c| matches!(c, '\n' | '\t') || !changes_terminal(*c))
            .collect();
        if self.left_out > 0 {
            text = format!("[{} bytes were not read in time]\n{text}", self.left_out);
        }
        match (&self.socket).write(text.as_bytes()) {
            Ok(written) => self.left_out = text.len() - written,
            Err(_) => self.left_out += bytes.len(),
        }
    }
}

/// Where the part of a log is that is older than what `log` has.
fn older(log: &Path) -> PathBuf {
    log.with_extension("log.old")
}

/// How the kernel's last words begin.
const PANIC: &str = "Kernel panic - not syncing:";

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_its_end() {
        let directory = std::env::temp_dir().join(format!("vmm-console-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("console.log");
        let (mut console, mut writer) = Console::open(&path).unwrap();
        for number in 0..100_000 {
            writer
                .write_all(format!("line {number}\n").as_bytes())
                .unwrap();
            assert!(console.take());
        }
        let text = "[ 1.0] Kernel panic - not syncing: \x1b[1mno init\r\n[ 1.1] CPU: 0\n";
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        assert!(!console.take());
        assert_eq!(
            console.panic().unwrap(),
            "Kernel panic - not syncing: \u{fffd}[1mno init"
        );
        assert_eq!(console.last_lines().last().unwrap(), "[ 1.1] CPU: 0");
        let mut kept = 0;
        for entry in std::fs::read_dir(&directory).unwrap() {
            kept += entry.unwrap().metadata().unwrap().len();
        }
        assert!(kept <= 2 * MAX_LOG, "{kept}");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
