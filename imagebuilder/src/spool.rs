//! A nameless file that holds what an image is made of while it is made.
//!
//! Layers are hostile and may be larger than memory: they are unpacked into here, one behind the other, and everything
//! else refers to them by offset. The file has no name, so nothing of it outlives the process.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::atomic::Writer;

/// How much is copied at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// A growing nameless file.
#[derive(Debug)]
pub struct Spool {
    file: File,
    end: u64,
    limit: u64,
}

impl Spool {
    /// Creates an empty one in the file system of `directory`, which takes `limit` bytes at most.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn new(directory: &Path, limit: u64) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match open(directory, flags, Mode::RUSR | Mode::WUSR) {
            Ok(descriptor) => descriptor.into(),
            // A file system that makes no nameless files: name one, and take the name away.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let writer = Writer::create_with_mode(&directory.join("spool"), 0o600)?;
                writer.file().try_clone()?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            file,
            end: 0,
            limit,
        })
    }

    /// Appends all that `source` gives, and shows each piece to `seen`.
    ///
    /// # Errors
    /// Those of reading and writing, and `FileTooLarge` when the limit is reached.
    pub fn append(
        &mut self,
        mut source: impl Read,
        mut seen: impl FnMut(&[u8]),
    ) -> io::Result<Range<u64>> {
        let start = self.end;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => return Ok(start..self.end),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let piece = &buffer[..count];
            let end = self.end + count as u64;
            if end > self.limit {
                let limit = self.limit;
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("It unpacks to more than {limit} bytes"),
                ));
            }
            self.file.write_all_at(piece, self.end)?;
            self.end = end;
            seen(piece);
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads `range` from its start.
    pub fn read(&self, range: Range<u64>) -> Window<'_> {
        Window::new(&self.file, range)
    }
}

/// A part of a file, read from its start to its end, wherever the file's own position is.
#[derive(Debug, Clone)]
pub struct Window<'a> {
    file: &'a File,
    range: Range<u64>,
    position: u64,
}

impl<'a> Window<'a> {
    /// The bytes of `file` in `range`.
    pub fn new(file: &'a File, range: Range<u64>) -> Self {
        let position = range.start;
        Self {
            file,
            range,
            position,
        }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end.saturating_sub(self.position);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Positions count from the start of the window.
impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => self.range.start.checked_add(offset),
            SeekFrom::End(offset) => self.range.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        match target {
            Some(target) if target >= self.range.start => {
                self.position = target;
                Ok(target - self.range.start)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Copies all of `window` to `out`.
///
/// # Errors
/// Those of reading and writing; `UnexpectedEof` if the file ends inside the window.
pub fn copy(mut window: Window<'_>, out: &mut impl Write) -> io::Result<()> {
    let length = window.range.end - window.range.start;
    match io::copy(&mut window, out)? {
        copied if copied == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn what_is_appended_is_read_back_and_no_name_is_seen() {
        let folder = Folder::new("spool");
        let mut spool = Spool::new(folder.path(), 1 << 20).unwrap();
        let mut seen = Vec::new();
        let first = spool
            .append(&b"first"[..], |piece| seen.extend_from_slice(piece))
            .unwrap();
        let second = spool.append(&b"second"[..], |_| ()).unwrap();
        assert_eq!((first.clone(), second.clone()), (0..5, 5..11));
        assert_eq!(seen, b"first");
        let mut text = String::new();
        spool.read(second).read_to_string(&mut text).unwrap();
        assert_eq!(text, "second");
        assert!(folder.names().is_empty());
    }

    #[test]
    fn no_more_than_the_limit_is_taken() {
        let folder = Folder::new("spool-limit");
        let mut spool = Spool::new(folder.path(), 10).unwrap();
        spool.append(&[0; 10][..], |_| ()).unwrap();
        let error = spool.append(&[0][..], |_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_window_shows_nothing_outside_itself() {
        let folder = Folder::new("spool-window");
        let mut spool = Spool::new(folder.path(), 100).unwrap();
        spool.append(&b"0123456789"[..], |_| ()).unwrap();
        let mut window = spool.read(2..5);
        let mut text = String::new();
        window.seek(SeekFrom::Start(1)).unwrap();
        window.read_to_string(&mut text).unwrap();
        assert_eq!(text, "34");
        assert!(window.seek(SeekFrom::Current(-4)).is_err());
        let cut_off = copy(spool.read(8..12), &mut Vec::new()).unwrap_err();
        assert_eq!(cut_off.kind(), io::ErrorKind::UnexpectedEof);
    }
}
