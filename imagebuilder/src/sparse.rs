//! Where a file system's bytes go: a sparse file, in which zeroes take no space.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mkext4::RegionSink;

/// Blocks of this many bytes are written or left as holes.
const BLOCK: usize = 4096;

/// A fresh, empty file as the sink of an image.
#[derive(Debug)]
pub(crate) struct SparseFile<'a> {
    file: &'a File,
    length: u64,
}

impl<'a> SparseFile<'a> {
    /// Gives `file`, which must be empty, the `length` of the image: all of it is a hole then.
    pub(crate) fn new(file: &'a File, length: u64) -> io::Result<Self> {
        file.set_len(length)?;
        Ok(Self { file, length })
    }
}

impl RegionSink for SparseFile<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Neighbouring blocks that are not zero go out in one write.
        let mut pending = 0..0;
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            let start = index * BLOCK;
            if is_zero(block) {
                self.write(offset, &bytes[pending.clone()], pending.start)?;
                pending = start + block.len()..start + block.len();
            } else {
                pending.end = start + block.len();
            }
        }
        self.write(offset, &bytes[pending.clone()], pending.start)
    }

    fn zeros(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(io::Error::other("Zeroes past the end of the image")),
        }
    }
}

impl SparseFile<'_> {
    fn write(&self, offset: u64, bytes: &[u8], skipped: usize) -> io::Result<()> {
        match bytes {
            [] => Ok(()),
            _ => self.file.write_all_at(bytes, offset + skipped as u64),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(16);
    let zero = [0; 16];
    words.all(|word| word == zero) && words.remainder().iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zero_blocks_become_holes_and_all_else_is_written() {
        let folder = Folder::new("sparse");
        let path = folder.path().join("image");
        let file = File::create_new(&path).unwrap();
        let length = 40 * BLOCK as u64;
        let mut sink = SparseFile::new(&file, length).unwrap();
        // Blocks 1, 2 and 5 hold something, 5 only in its last byte; the rest is zero, and the end is no whole block.
        let mut bytes = vec![0; 20 * BLOCK + 7];
        bytes[BLOCK..3 * BLOCK].fill(7);
        bytes[6 * BLOCK - 1] = 9;
        bytes[20 * BLOCK + 3] = 5;
        sink.data(4 * BLOCK as u64, &bytes).unwrap();
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), 40 * BLOCK);
        assert_eq!(&read[4 * BLOCK..][..bytes.len()], bytes);
        assert!(read[..4 * BLOCK].iter().all(|&byte| byte == 0));
        let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(allocated <= 5 * BLOCK as u64, "{allocated} bytes allocated");
        assert!(sink.zeros(length - 5, 5).is_ok());
        assert!(sink.zeros(length - 5, 6).is_err());
        assert!(sink.zeros(u64::MAX, 2).is_err());
    }
}
