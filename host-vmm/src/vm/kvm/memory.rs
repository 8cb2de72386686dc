//! A machine's memory: anonymous and private, committed as the guest touches it.

use std::{fs::File, io, os::fd::AsRawFd, sync::Arc};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionError,
};

use super::layout;
use crate::{devices::transport::mmio::Page, vm::memory::GuestMemory};

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes of memory for which a kernel keeps a byte: Linux's `struct page` has 64 for a page.
const DESCRIBED: usize = 64;

/// Maps so many bytes of memory.
///
/// # Errors
/// Those of `mmap(2)`.
pub fn map(bytes: u64) -> io::Result<GuestMemory> {
    let map = |(start, len): (u64, u64)| {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let region = map_region(len).map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            error => io::Error::other(error),
        })?;
        GuestRegionMmap::new(region, GuestAddress(start))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    };
    let regions: io::Result<Vec<_>> = layout::pieces(bytes).into_iter().map(map).collect();
    GuestMemory::from_regions(regions?).map_err(io::Error::other)
}

/// Maps `len` bytes where a huge page begins, as each of the pieces does for the guest: else none of the host's would be one
/// of the guest's. They stay mapped for as long as the process.
fn map_region(len: usize) -> Result<MmapRegion, MmapRegionError> {
    let too_long = || MmapRegionError::Mmap(io::Error::from_raw_os_error(libc::ENOMEM));
    let reserved = len.checked_add(HUGE).ok_or_else(too_long)?;
    let (rights, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping, wherever the kernel likes, is nobody else's. What is cut off of it and what stays lies within,
    // and nothing has been made of it yet. The rest is never unmapped.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), reserved, rights, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(MmapRegionError::Mmap(io::Error::last_os_error()));
        }
        let before = start.cast::<u8>().align_offset(HUGE);
        let memory = start.cast::<u8>().add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(memory.add(len).cast(), HUGE - before);
        MmapRegion::build_raw(memory, len, rights, flags)
    }
}

/// Has the host use huge pages where the guest uses all of them at once. That is where its kernel keeps a description of each
/// page, at the end of memory: a 64th of it, which it writes as it boots. Elsewhere a huge page would commit 2 MiB for a
/// first byte; of a machine with 1 GiB that has booted 5 MiB more, while these cost nothing and spare 5,000 faults of 8,700.
pub fn advise(memory: &GuestMemory) {
    let Some(region) = memory.iter().last() else {
        return;
    };
    let whole = usize::try_from(region.len()).unwrap_or(0);
    // And what is allocated beside it, before it.
    let len = (usize::try_from(size(memory)).unwrap_or(0) / DESCRIBED + 2 * HUGE).min(whole);
    let start = (whole - len) / HUGE * HUGE;
    // SAFETY: the range lies within the region, whose content this does not change. A host that has no huge pages says so, and
    // all is as it was.
    unsafe {
        let address = region.as_ptr().add(start);
        libc::madvise(address.cast(), whole - start, libc::MADV_HUGEPAGE);
    }
}

/// How much memory there is, in bytes.
pub fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(vm_memory::GuestMemoryRegion::len).sum()
}

/// Size of a page in bytes.
const PAGE: u64 = 4096;

/// Puts the beginning of a piece of a file into memory by mapping it, privately: what is not written is in the host's memory
/// once, however many machines have it. Gives how many bytes that is, whole pages; none where the piece does not begin with
/// one, here and there.
///
/// The file must not change while the machine runs.
///
/// # Errors
/// Those of `mmap(2)`, and addresses that are not in memory.
pub fn map_file(
    memory: &GuestMemory,
    file: &File,
    offset: u64,
    address: u64,
    len: u64,
) -> io::Result<u64> {
    let whole = len / PAGE * PAGE;
    if whole == 0 || !offset.is_multiple_of(PAGE) || !address.is_multiple_of(PAGE) {
        return Ok(0);
    }
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let size = usize::try_from(whole).map_err(|_| outside())?;
    // In one piece, or not at all.
    let slice = memory.get_slice(GuestAddress(address), size);
    let slice = slice.map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| outside())?;
    // SAFETY: the range is one mapping of the guest's memory, of which nothing but addresses is held; it stays one mapping,
    // with other content.
    let mapped = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    match mapped == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(whole),
    }
}

/// Gives a machine its memory.
///
/// # Errors
/// KVM's.
pub fn give(vm: &VmFd, memory: &GuestMemory) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..MEMORY_SLOTS).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is of this length, is private to the guest, and stays for as long as the process: the
        // memory is in every device.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// Slots of KVM's that are for memory; those of pages come behind.
const MEMORY_SLOTS: u32 = 2;

/// Shows a guest the page of the device at `index` at an address, to be read and not to be written.
///
/// # Errors
/// KVM's.
pub fn show(
    vm: &VmFd,
    index: usize,
    address: u64,
    page: &Arc<Page>,
) -> Result<(), kvm_ioctls::Error> {
    let index = u32::try_from(index).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    let region = kvm_userspace_memory_region {
        slot: MEMORY_SLOTS + index,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: address,
        memory_size: size_of::<Page>() as u64,
        userspace_addr: page.as_ptr() as u64,
    };
    // SAFETY: a page is as long as a page and lies as one; it is there for as long as the device's registers, which are for as
    // long as the process. The guest cannot write to it, and who does here uses atomic words.
    unsafe { vm.set_user_memory_region(region) }
}
