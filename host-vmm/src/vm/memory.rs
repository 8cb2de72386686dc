//! Guest memory that more than one process maps.

use std::{fs::File, io, os::fd::AsFd, os::fd::BorrowedFd, sync::Arc};

use rustix::{
    fs::{
        FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
    },
    mm::{Advice, madvise},
};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion,
};

/// The memory of one guest, as the device models see it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Mapping granularity in bytes.
const PAGE: u64 = 4096;

/// A file that is the guest's memory.
///
/// We create it, seal its size, and hand it to whoever runs the guest; our own mappings come from our
/// own descriptor. So no peer can shrink the file under us (which would be SIGBUS here), nor make us
/// map a file of its choice.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    file: Arc<File>,
    size: u64,
}

/// A piece of the file, and where the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Guest-physical address in bytes, a multiple of the page size.
    pub guest: u64,
    /// Offset in the file in bytes, a multiple of the page size.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why guest memory cannot be laid out as asked.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A piece is empty, misaligned, or outside the file.
    #[error(
        "Memory region at guest address {guest:#x} ({len:#x} bytes at offset {offset:#x}) does not lie within the guest's memory"
    )]
    OutOfBounds {
        /// Guest-physical address.
        guest: u64,
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two pieces overlap in the guest's address space, or there is none.
    #[error("Memory regions do not form an address space")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// The host refused.
    #[error("Cannot map guest memory")]
    Map(#[source] vm_memory::mmap::FromRangesError),
}

impl SharedMemory {
    /// Creates `bytes` of zeroed memory. The host commits a page when it is first touched.
    ///
    /// # Errors
    /// What the host says when it has no room for such a file.
    pub fn create(bytes: u64) -> io::Result<Self> {
        let file = memfd_create(
            "guest-memory",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&file, bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self {
            file: Arc::new(file.into()),
            size: bytes,
        })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps pieces of the file as a guest's address space.
    ///
    /// # Errors
    /// [`MemoryError`] for a piece that is not within the file, pieces that overlap in the guest, or a
    /// host that cannot map them.
    pub fn map(&self, placements: &[Placement]) -> Result<GuestMemory, MemoryError> {
        let mut placements = placements.to_vec();
        placements.sort_by_key(|placement| placement.guest);
        let regions = placements
            .iter()
            .map(|placement| self.map_one(placement))
            .collect::<Result<Vec<_>, _>>()?;
        GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
    }

    fn map_one(&self, placement: &Placement) -> Result<GuestRegionMmap<()>, MemoryError> {
        let Placement { guest, offset, len } = *placement;
        let outside = || MemoryError::OutOfBounds { guest, offset, len };
        let within = offset.checked_add(len).is_some_and(|end| end <= self.size)
            && guest.checked_add(len).is_some();
        if !within || len == 0 || guest % PAGE != 0 || offset % PAGE != 0 {
            return Err(outside());
        }
        let size = usize::try_from(len).map_err(|_| outside())?;
        let mapping = MmapRegion::build(
            Some(FileOffset::from_arc(Arc::clone(&self.file), offset)),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|source| MemoryError::Map(source.into()))?;
        GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or_else(outside)
    }
}

/// Gives whole pages within `len` bytes from `address` on back to the host. Their content is lost: they read as zeroes, and
/// cost nothing until somebody touches them.
///
/// Memory that is a file is freed in it, and with that for all who map it; other memory is the guest's alone, and freed where
/// it is mapped.
///
/// # Errors
/// `InvalidInput` for what is not the guest's memory; those of `fallocate(2)` and `madvise(2)`.
pub fn give_back(memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = address.0.checked_add(len).ok_or_else(outside)? / PAGE * PAGE;
    let mut at = address
        .0
        .checked_next_multiple_of(PAGE)
        .ok_or_else(outside)?;
    while at < end {
        let region = memory.find_region(GuestAddress(at)).ok_or_else(outside)?;
        let offset = at - region.start_addr().0;
        let count = (region.len() - offset).min(end - at);
        match region.file_offset() {
            Some(file) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file.file(), flags, file.start() + offset, count)?;
            }
            None => {
                let count = usize::try_from(count).map_err(|_| outside())?;
                let slice = memory
                    .get_slice(GuestAddress(at), count)
                    .map_err(|_| outside())?;
                // SAFETY: the slice is guest memory, mapped for as long as `memory` is borrowed, and of whole pages. Nothing
                // in this process refers to it but by such slices, whose content may change at any time anyway.
                unsafe {
                    madvise(
                        slice.ptr_guard_mut().as_ptr().cast(),
                        count,
                        Advice::LinuxDontNeed,
                    )
                }?;
            }
        }
        at += count;
    }
    Ok(())
}

impl AsFd for SharedMemory {
    /// The descriptor to hand to the process that runs the guest.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(guest: u64, offset: u64, len: u64) -> Placement {
        Placement { guest, offset, len }
    }

    #[test]
    fn size_is_sealed() {
        let memory = SharedMemory::create(MIB).unwrap();
        assert!(ftruncate(&memory, 0).is_err());
        assert!(ftruncate(&memory, 2 * MIB).is_err());
        assert!(fcntl_add_seals(&memory, SealFlags::WRITE).is_err());
    }

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let memory = SharedMemory::create(MIB).unwrap();
        let whole = memory.map(&[at(0, 0, MIB)]).unwrap();
        let parts = memory
            .map(&[at(1 << 32, MIB / 2, MIB / 2), at(0, 0, MIB / 2)])
            .unwrap();
        whole
            .write_obj(0x1234_5678_u32, GuestAddress(MIB / 2 + 8))
            .unwrap();
        let seen: u32 = parts.read_obj(GuestAddress((1 << 32) + 8)).unwrap();
        assert_eq!(seen, 0x1234_5678);
    }

    /// Writes to every page, gives some bytes back, and says which pages are still there.
    fn pages_left(memory: &GuestMemory, pages: u64, address: u64, len: u64) -> Vec<u64> {
        for page in 0..pages {
            memory.write_obj(1_u8, GuestAddress(page * PAGE)).unwrap();
        }
        give_back(memory, GuestAddress(address), len).unwrap();
        (0..pages)
            .filter(|page| memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap() == 1)
            .collect()
    }

    #[test]
    fn whole_pages_are_given_back_of_any_memory() {
        let shared = SharedMemory::create(8 * PAGE).unwrap();
        // In the file the halves lie the other way round.
        let parts = [at(0, 4 * PAGE, 4 * PAGE), at(4 * PAGE, 0, 4 * PAGE)];
        let regions = [
            (GuestAddress(0), 4 * 4096),
            (GuestAddress(4 * PAGE), 4 * 4096),
        ];
        for memory in [
            shared.map(&parts).unwrap(),
            GuestMemory::from_ranges(&regions).unwrap(),
        ] {
            assert_eq!(pages_left(&memory, 8, 0, 2 * PAGE), [2, 3, 4, 5, 6, 7]);
            assert_eq!(
                pages_left(&memory, 8, 3 * PAGE, 2 * PAGE),
                [0, 1, 2, 5, 6, 7]
            );
            assert_eq!(pages_left(&memory, 8, 1, 2 * PAGE), [0, 2, 3, 4, 5, 6, 7]);
            assert_eq!(pages_left(&memory, 8, 5 * PAGE, PAGE - 1).len(), 8);
            assert!(pages_left(&memory, 8, 0, 8 * PAGE).is_empty());
            for (address, len) in [(8 * PAGE, PAGE), (7 * PAGE, 2 * PAGE), (1, u64::MAX)] {
                let error = give_back(&memory, GuestAddress(address), len).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
        }
        let blocks = || rustix::fs::fstat(&shared).unwrap().st_blocks;
        let memory = shared.map(&parts).unwrap();
        assert_eq!(pages_left(&memory, 8, 0, 0).len(), 8);
        assert_eq!(blocks(), 8 * 8);
        give_back(&memory, GuestAddress(0), 6 * PAGE).unwrap();
        assert_eq!(blocks(), 2 * 8);
    }

    #[test]
    fn refuses_what_is_not_within_the_file() {
        let memory = SharedMemory::create(MIB).unwrap();
        for bad in [
            at(0, 0, 0),
            at(0, 0, MIB + 1),
            at(0, MIB, PAGE),
            at(0, u64::MAX - PAGE + 1, PAGE),
            at(u64::MAX - PAGE + 1, 0, 2 * PAGE),
            at(0, 1, PAGE),
            at(1, 0, PAGE),
        ] {
            assert!(
                matches!(memory.map(&[bad]), Err(MemoryError::OutOfBounds { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(memory.map(&[]), Err(MemoryError::Layout(_))));
        let overlap = [at(0, 0, 2 * PAGE), at(PAGE, 4 * PAGE, PAGE)];
        assert!(matches!(memory.map(&overlap), Err(MemoryError::Layout(_))));
    }
}
