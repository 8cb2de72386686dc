//! The file behind a disk.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::{
    fs::{FallocateFlags, fallocate, fdatasync, fstat},
    io::Errno,
};

use crate::{
    devices::{guest_io, virtqueue::Range},
    vm::memory::GuestMemory,
};

/// Bytes of what virtio calls a sector, whatever the disk's blocks are.
pub const SECTOR: u64 = 512;

/// A raw image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// In bytes, whole sectors. The file may become shorter under us: then what is gone cannot be read, and nothing is
    /// written any more, as that would make the file long again with zeroes where there was something else.
    size: u64,
    read_only: bool,
    ephemeral: bool,
}

impl Disk {
    /// A disk that is `file`, as long as that is now. What is `ephemeral` is thrown away with the VM: flushes need not
    /// reach the host's disk.
    ///
    /// # Errors
    /// The file's length cannot be had.
    pub fn new(file: File, read_only: bool, ephemeral: bool) -> io::Result<Self> {
        let size = file.metadata()?.len() / SECTOR * SECTOR;
        Ok(Self {
            file,
            size,
            read_only,
            ephemeral,
        })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it refuses to be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads `len` bytes from `offset` on into `ranges`.
    ///
    /// # Errors
    /// `InvalidInput` for what is not on the disk; those of `preadv(2)`.
    pub fn read(
        &self,
        memory: &GuestMemory,
        ranges: &[Range],
        len: usize,
        offset: u64,
    ) -> io::Result<()> {
        self.check(offset, len as u64)?;
        all(len, io::ErrorKind::UnexpectedEof, |done, at| {
            guest_io::read_at(&self.file, memory, ranges, done, len - done, offset + at)
        })
    }

    /// Writes `len` bytes of `ranges`, after their first `skip`, from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` for what is not on the disk, `UnexpectedEof` if the file has become shorter; those of `pwritev(2)`.
    pub fn write(
        &self,
        memory: &GuestMemory,
        ranges: &[Range],
        skip: usize,
        len: usize,
        offset: u64,
    ) -> io::Result<()> {
        self.check_writable(offset, len as u64)?;
        all(len, io::ErrorKind::WriteZero, |done, at| {
            guest_io::write_at(
                &self.file,
                memory,
                ranges,
                skip + done,
                len - done,
                offset + at,
            )
        })
    }

    /// Makes what was written safe.
    ///
    /// # Errors
    /// Those of `fdatasync(2)`.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only || self.ephemeral {
            return Ok(());
        }
        Ok(fdatasync(&self.file)?)
    }

    /// Gives the host back the space of a range, which reads as zeroes then.
    ///
    /// # Errors
    /// As of [`Disk::write`]. A host that cannot do it keeps the space and the content.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable(offset, len)?;
        match self.punch(offset, len) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Fills a range with zeroes; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As of [`Disk::write`].
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_writable(offset, len)?;
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let done = match unmap {
            true => self.punch(offset, len),
            false => fallocate(&self.file, flags, offset, len),
        };
        match done {
            Err(Errno::OPNOTSUPP) => self.zero(offset, len),
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, offset, len)
    }

    /// The plain way.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let count =
                usize::try_from(len - done).map_or(zeroes.len(), |left| left.min(zeroes.len()));
            self.file.write_all_at(&zeroes[..count], offset + done)?;
            done += count as u64;
        }
        Ok(())
    }

    fn check_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check(offset, len)?;
        match fstat(&self.file)?.st_size.unsigned_abs() < self.size {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// Whole sectors, at least one, within the disk.
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        if end.is_none()
            || len == 0
            || !offset.is_multiple_of(SECTOR)
            || !len.is_multiple_of(SECTOR)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

/// Repeats `step`, which is told what has been done and gives how much it did, until `len` is done. One that does
/// nothing is the error `short`.
fn all(
    len: usize,
    short: io::ErrorKind,
    mut step: impl FnMut(usize, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match step(done, done as u64) {
            Ok(0) => return Err(short.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
