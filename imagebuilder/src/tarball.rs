//! Tar archives, read for what is in them: every entry's description, and where in the file its content lies.
//!
//! Read are the formats that image builders write: POSIX ustar and pax (IEEE 1003.1 `pax`), and GNU's long names and
//! binary numbers. Nothing is extracted. An archive is hostile: headers are bounded, and content lies in the archive.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use crate::spool::Window;

/// Bytes in a header, and the unit that content is padded to.
const BLOCK: u64 = HEADER as u64;
const HEADER: usize = 512;

/// The largest extended header or long name that is read, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name for an entry before.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name, as it stands in the archive.
    pub path: Vec<u8>,
    /// What a link points to, as it stands in the archive.
    pub link: Vec<u8>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, in the archive's order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content of a regular file lies in the file of the archive, in bytes.
    pub content: Range<u64>,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("Cannot read the archive")]
    Read(#[from] io::Error),
    /// The archive ends in the middle of an entry.
    #[error("The archive is cut off at byte {at}")]
    Truncated {
        /// Bytes from the archive's start.
        at: u64,
    },
    /// What should be a header is none.
    #[error("No tar header at byte {at}: {reason}")]
    Header {
        /// Bytes from the archive's start.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something that is valid, but not read here.
    #[error("Not supported at byte {at}: {what}")]
    Unsupported {
        /// Bytes from the archive's start.
        at: u64,
        /// What it is.
        what: &'static str,
    },
}

/// Reads the entries of an archive one by one.
#[derive(Debug)]
pub struct Reader<'a> {
    input: BufReader<Window<'a>>,
    range: Range<u64>,
    /// Where the next header is.
    position: u64,
}

/// What the headers before an entry's own say about it.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Reader<'a> {
    /// Reads the archive that lies at `range` of `file`.
    pub fn new(file: &'a File, range: Range<u64>) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, Window::new(file, range.clone())),
            position: range.start,
            range,
        }
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// The archive cannot be read, is damaged, or holds what is not supported. Then there is no next entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            let at = self.at();
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = extensions.size.unwrap_or(header.size);
            match header.kind {
                b'x' => {
                    let records = self.extension(header.size)?;
                    extensions
                        .read_records(&records)
                        .map_err(|reason| Error::Header { at, reason })?;
                }
                b'L' => extensions.path = Some(until_nul(&self.extension(header.size)?)),
                b'K' => extensions.link = Some(until_nul(&self.extension(header.size)?)),
                // Records for all that follows: image builders write comments there, if anything.
                b'g' => drop(self.extension(header.size)?),
                b'S' => {
                    let what = "a GNU sparse file";
                    return Err(Error::Unsupported { at, what });
                }
                kind => {
                    let content = self.skip(size, kind)?;
                    let entry = extensions
                        .complete(header, content)
                        .map_err(|reason| Error::Header { at, reason })?;
                    match entry {
                        Some(entry) => return Ok(Some(entry)),
                        None => {
                            let what = "an entry of unknown type";
                            return Err(Error::Unsupported { at, what });
                        }
                    }
                }
            }
        }
    }

    /// How far into the archive the reader is, in bytes.
    fn at(&self) -> u64 {
        self.position - self.range.start
    }

    /// The next header, or `None` at the end: a block of zeroes, or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let at = self.at();
        let mut block = [0; HEADER];
        match self.range.end - self.position {
            0 => return Ok(None),
            left if left < BLOCK => return Err(Error::Truncated { at }),
            _ => self.input.read_exact(&mut block)?,
        }
        self.position += BLOCK;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        Header::parse(&block)
            .map(Some)
            .map_err(|reason| Error::Header { at, reason })
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let at = self.at();
        if size > MAX_EXTENSION {
            let reason = "it is followed by an extended header of more than 1 MiB";
            return Err(Error::Header { at, reason });
        }
        let range = self.content(size)?;
        let mut content = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(Error::Truncated { at });
        }
        self.go_to(range.end + padding(size), padding(size))?;
        Ok(content)
    }

    /// Goes past the content of an entry, and says where it is. Only regular files have any.
    fn skip(&mut self, size: u64, kind: u8) -> Result<Range<u64>, Error> {
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let range = self.content(size)?;
        self.go_to(range.end + padding(size), size + padding(size))?;
        Ok(range)
    }

    fn content(&self, size: u64) -> Result<Range<u64>, Error> {
        match self.position.checked_add(size) {
            Some(end) if end <= self.range.end => Ok(self.position..end),
            _ => Err(Error::Truncated { at: self.at() }),
        }
    }

    /// The next header is at `position`, which is `distance` bytes from where the input is.
    fn go_to(&mut self, position: u64, distance: u64) -> Result<(), Error> {
        // The last entry's padding may be missing, as may the end marker.
        self.position = position.min(self.range.end);
        let distance = i64::try_from(distance).map_err(io::Error::other)?;
        Ok(self.input.seek_relative(distance)?)
    }
}

/// One header block (IEEE 1003.1, pax, "ustar Interchange Format").
#[derive(Debug)]
struct Header {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: i64,
    device: (u64, u64),
}

impl Header {
    fn parse(block: &[u8; HEADER]) -> Result<Self, &'static str> {
        const CHECKSUM: Range<usize> = 148..156;
        let unsigned = |range: Range<usize>| {
            let number = number(&block[range]).ok_or("a number in it is malformed")?;
            u64::try_from(number).map_err(|_| "a number in it is negative")
        };
        let sum: i64 = block
            .iter()
            .enumerate()
            .map(|(index, &byte)| match CHECKSUM.contains(&index) {
                true => i64::from(b' '),
                false => i64::from(byte),
            })
            .sum();
        if number(&block[CHECKSUM]) != Some(sum) {
            return Err("its checksum is wrong");
        }
        let (posix, gnu) = (
            &block[257..263] == b"ustar\0",
            &block[257..263] == b"ustar ",
        );
        let mut path = until_nul(&block[..100]);
        let prefix = until_nul(&block[345..500]);
        if posix && !prefix.is_empty() {
            path = [prefix.as_slice(), b"/", &path].concat();
        }
        let device = match posix || gnu {
            true => (unsigned(329..337)?, unsigned(337..345)?),
            false => (0, 0),
        };
        Ok(Self {
            kind: block[156],
            path,
            link: until_nul(&block[157..257]),
            mode: unsigned(100..108)?,
            uid: unsigned(108..116)?,
            gid: unsigned(116..124)?,
            size: unsigned(124..136)?,
            mtime: number(&block[136..148]).ok_or("its time is malformed")?,
            device,
        })
    }
}

impl Extensions {
    /// Reads the records of a pax extended header, each `length key=value\n`.
    fn read_records(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "its extended header is malformed";
        while !records.is_empty() {
            let space = records.iter().position(|&byte| byte == b' ');
            let space = space.ok_or(MALFORMED)?;
            let length = decimal(&records[..space]).ok_or(MALFORMED)?;
            let length = usize::try_from(length).map_err(|_| MALFORMED)?;
            if length <= space + 1 || length > records.len() {
                return Err(MALFORMED);
            }
            let (record, rest) = records.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|&byte| byte == b'=');
            let (key, value) = record.split_at(equals.ok_or(MALFORMED)?);
            self.read_record(key, &value[1..])?;
            records = rest;
        }
        Ok(())
    }

    fn read_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const NUMBER: &str = "a number in its extended header is malformed";
        let number = || decimal(value).ok_or(NUMBER).map(Some);
        match key {
            // A record without value takes back what one before it said.
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = Some(time(value).ok_or(NUMBER)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err("it describes a sparse file, which is not supported");
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// What the headers say together; `None` if the type is unknown.
    fn complete(
        &mut self,
        header: Header,
        content: Range<u64>,
    ) -> Result<Option<Entry>, &'static str> {
        let path = self.path.take().unwrap_or(header.path);
        let kind = match header.kind {
            // Archives older than the type of a directory mark it by its name.
            b'\0' | b'0' if path.ends_with(b"/") => Kind::Directory,
            b'\0' | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Ok(None),
        };
        let small = |number: u64| u32::try_from(number).map_err(|_| "an owner in it is too large");
        let device = |number: u64| u32::try_from(number).map_err(|_| "its device is too large");
        Ok(Some(Entry {
            kind,
            path,
            link: self.link.take().unwrap_or(header.link),
            // Twelve bits: no truncation.
            mode: u16::try_from(header.mode & 0o7777).unwrap_or(0),
            uid: small(self.uid.unwrap_or(header.uid))?,
            gid: small(self.gid.unwrap_or(header.gid))?,
            mtime: self.mtime.unwrap_or((header.mtime, 0)),
            device: (device(header.device.0)?, device(header.device.1)?),
            xattrs: std::mem::take(&mut self.xattrs),
            content,
        }))
    }
}

/// How many bytes of padding follow content of `size` bytes.
fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|&byte| byte == 0);
    field[..end.unwrap_or(field.len())].to_vec()
}

/// A header's number: octal text, or binary with the highest bit set (GNU). An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement, big-endian, without the marking bit.
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        let value = rest.iter().try_fold(start, |value, &byte| {
            value.checked_mul(256)?.checked_add(i128::from(byte))
        })?;
        return i64::try_from(value).ok();
    }
    let text = until_nul(field);
    let text = text.trim_ascii();
    text.iter().try_fold(0_i64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A time in a pax record: decimal seconds, perhaps negative, perhaps with a fraction.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = text.split_at(point.unwrap_or(text.len()));
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let digits = fraction.get(1..).unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |value, index| {
        value * 10 + u32::from(digits.get(index).map_or(0, |digit| digit - b'0'))
    });
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
#[path = "tarball_tests.rs"]
mod tests;
