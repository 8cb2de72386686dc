//! A machine's memory: anonymous and private, committed as the guest touches it.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap, MmapRegion,
};

use super::layout;
use crate::vm::memory::GuestMemory;

/// Maps so many bytes of memory.
///
/// # Errors
/// Those of `mmap(2)`.
pub fn map(bytes: u64) -> io::Result<GuestMemory> {
    let map = |(start, len): (u64, u64)| {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mapping = MmapRegion::build(
            None,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        )
        .map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => error,
            error => io::Error::other(error),
        })?;
        GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    };
    let regions: io::Result<Vec<_>> = layout::pieces(bytes).into_iter().map(map).collect();
    GuestMemory::from_regions(regions?).map_err(io::Error::other)
}

/// Gives a machine its memory.
///
/// # Errors
/// KVM's.
pub fn give(vm: &VmFd, memory: &GuestMemory) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
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
