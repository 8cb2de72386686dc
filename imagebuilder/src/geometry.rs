//! Which sizes an ext4 file system of ours may have.

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;

/// Blocks in a block group, and inodes at most: as many as one block of bitmap counts.
const GROUP: u64 = 8 * BLOCK;

/// The smallest file system: the journal may take a quarter of it.
pub(crate) const MIN_SIZE: u64 = 4 * BLOCK * MIN_JOURNAL as u64;

/// The largest file system that is made, in bytes.
pub(crate) const MAX_SIZE: u64 = 1 << 40;

/// The least that Linux takes as a journal (`JBD2_MIN_JOURNAL_BLOCKS`), in blocks.
pub(crate) const MIN_JOURNAL: u32 = 1024;

/// A last group may have to hold a copy of the superblock and of the group descriptors, of which there are 64 blocks
/// in a file system of [`MAX_SIZE`]. The formatter does not look whether they fit.
const SHORTEST_GROUP: u64 = 1024;

/// The smallest size ≥ `size` bytes that the formatter gets right. `size` is at most [`MAX_SIZE`].
pub(crate) fn round_up(size: u64) -> u64 {
    let blocks = size.max(MIN_SIZE).div_ceil(BLOCK);
    let tail = blocks % GROUP;
    let missing = match tail {
        1..SHORTEST_GROUP => SHORTEST_GROUP - tail,
        _ => 0,
    };
    (blocks + missing) * BLOCK
}

/// The smallest size that has room for `inodes`, wherever their files are, in bytes.
pub(crate) fn room_for_inodes(inodes: u32) -> u64 {
    u64::from(inodes).div_ceil(GROUP) * GROUP * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_as_little_as_possible() {
        let group = GROUP * BLOCK;
        let shortest = SHORTEST_GROUP * BLOCK;
        for (size, rounded) in [
            (0, MIN_SIZE),
            (MIN_SIZE, MIN_SIZE),
            (MIN_SIZE + 1, MIN_SIZE + BLOCK),
            (group, group),
            (group + 1, group + shortest),
            (group + shortest, group + shortest),
            (group + shortest + 1, group + shortest + BLOCK),
            (MAX_SIZE, MAX_SIZE),
        ] {
            assert_eq!(round_up(size), rounded, "{size}");
        }
    }
}
