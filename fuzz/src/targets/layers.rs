//! The layers of an image: tar archives, the tree that they make, and the file system that it becomes.

use imagebuilder::{
    ext4,
    progress::Progress,
    spool::Spool,
    tree::{Limits, Tree},
};

use crate::input::{Input, MemoryFile};

/// Small, so that they are met.
const LIMITS: Limits = Limits {
    entries: 200,
    metadata: 64 << 10,
    steps: 20_000,
};

/// The first byte says where the second layer begins, in blocks of 512 bytes. Checksums are put right.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let border = usize::from(input.u8()) * 512;
    let mut archives = input.rest().to_vec();
    for block in archives.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            put_checksum(block);
        }
    }
    let border = border.min(archives.len());
    let mut spool = Spool::new(&std::env::temp_dir(), 1 << 20).expect("a spool");
    let mut tree = Tree::new(LIMITS);
    for layer in [&archives[..border], &archives[border..]] {
        let range = spool.append(layer, |_| ()).expect("room in the spool");
        if let Err(error) = tree.apply(spool.file(), range) {
            return assert!(!error.to_string().is_empty());
        }
    }
    assert!(ext4::content_size(&tree) <= (archives.len() * LIMITS.entries as usize) as u64);
    let image = MemoryFile::new(&[]);
    let step = Progress::silent().bytes("fuzz", 0);
    if let Err(error) = ext4::write(&tree, &spool, "fuzz", image.file(), &step) {
        assert!(!error.to_string().is_empty());
    }
}

/// As POSIX has it: the sum of all bytes of the header, with spaces in the place of the sum.
pub fn put_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
