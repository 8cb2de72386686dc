//! What is in a machine's memory when it starts: the kernel, the initfs, and what the kernel is told.
//!
//! The PVH boot protocol, as Xen's `docs/misc/pvh` and `public/arch-x86/hvm/start_info.h` define it. The kernel's file is
//! taken apart by [`crate::vm::kernel`], which looks at it before anything is started, too: there is one parser of it.

use std::{fs::File, io, os::fd::AsFd};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend as _, Permissions};

use super::layout;
use crate::{
    devices::{guest_io, virtqueue::Range},
    vm::{
        kernel::{self, KernelError, Segment},
        memory,
    },
};

/// Why a machine cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is none for us.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A piece of it is not where a machine's memory is.
    #[error(
        "The kernel does not fit: a part of it belongs at {address:#x} ({len} bytes), and the machine has {memory} MiB; \
         give it more with --memory, or another kernel"
    )]
    Outside {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        len: u64,
        /// Of the machine, in MiB.
        memory: u64,
    },
    /// Two pieces of it are in one place.
    #[error("The kernel is damaged: two parts of it belong at {0:#x}")]
    Overlap(u64),
    /// It would be entered where it is not.
    #[error("The kernel is damaged: its entry point {0:#x} is in no part of it")]
    Entry(u64),
    /// The initfs and the kernel together are more than the machine's memory.
    #[error(
        "The initfs of {len} bytes does not fit into the machine's memory of {memory} MiB beside the kernel; give it more with --memory"
    )]
    Initfs {
        /// Its length in bytes.
        len: u64,
        /// Of the machine, in MiB.
        memory: u64,
    },
    /// The command line is longer than a kernel takes.
    #[error(
        "The kernel's command line has {len} bytes, and a kernel takes {max}; shorten --cmdline-append"
    )]
    Cmdline {
        /// Its length in bytes.
        len: usize,
        /// The most.
        max: usize,
    },
    /// A file cannot be read.
    #[error("Cannot read {what}")]
    Read {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A defect: what was checked was not so.
    #[error("Cannot write to the machine's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A piece of memory that is taken: its first address, and its end.
type Taken = (u64, u64);

/// Puts everything into memory, and gives the address at which the kernel is entered.
///
/// # Errors
/// [`BootError`].
pub fn load(
    memory: &memory::GuestMemory,
    kernel: &File,
    initfs: &File,
    cmdline: &str,
) -> Result<u64, BootError> {
    let image = kernel::image(kernel)?;
    let taken = load_kernel(memory, kernel, &image.segments)?;
    if !taken
        .iter()
        .any(|&(start, end)| (start..end).contains(&image.entry))
    {
        return Err(BootError::Entry(image.entry));
    }
    let module = load_initfs(memory, initfs, &taken)?;
    write_cmdline(memory, cmdline)?;
    write_start_info(memory, module)?;
    Ok(image.entry)
}

fn load_kernel(
    memory: &memory::GuestMemory,
    file: &File,
    segments: &[Segment],
) -> Result<Vec<Taken>, BootError> {
    let mut taken: Vec<Taken> = Vec::new();
    for segment in segments.iter().filter(|segment| segment.memory_len > 0) {
        let Segment {
            address,
            memory_len: len,
            ..
        } = *segment;
        let outside = || BootError::Outside {
            address,
            len,
            memory: mib(memory),
        };
        let end = address.checked_add(len).ok_or_else(outside)?;
        let fits = usize::try_from(len).is_ok_and(|len| {
            GuestMemory::check_range(memory, GuestAddress(address), len, Permissions::Write)
        });
        // Nor where it is told what to know.
        if !fits || address < layout::KERNEL_START || segment.file_len > len {
            return Err(outside());
        }
        if taken
            .iter()
            .any(|&(start, stop)| address < stop && start < end)
        {
            return Err(BootError::Overlap(address));
        }
        taken.push((address, end));
        // What is beyond the file's is zero, as all memory is.
        read(
            memory,
            file,
            "the kernel",
            segment.offset,
            address,
            segment.file_len,
        )?;
    }
    Ok(taken)
}

/// Puts the initfs as far up as it may be. Gives where it begins, and its length.
fn load_initfs(
    memory: &memory::GuestMemory,
    file: &File,
    kernel: &[Taken],
) -> Result<(u64, u64), BootError> {
    const PAGE: u64 = 4096;
    let what = "the initfs";
    let metadata = file.metadata();
    let len = metadata
        .map_err(|source| BootError::Read { what, source })?
        .len();
    let no_room = || BootError::Initfs {
        len,
        memory: mib(memory),
    };
    let (_, low) = layout::pieces(bytes(memory))[0];
    let start = low.checked_sub(len).ok_or_else(no_room)? / PAGE * PAGE;
    let is_free = |&(from, to): &Taken| start >= to || start + len <= from;
    if start < layout::KERNEL_START || !kernel.iter().all(is_free) {
        return Err(no_room());
    }
    read(memory, file, what, 0, start, len)?;
    Ok((start, len))
}

/// Reads `len` bytes of a file into memory. The file may be shorter than it was.
fn read(
    memory: &memory::GuestMemory,
    file: &File,
    what: &'static str,
    offset: u64,
    address: u64,
    len: u64,
) -> Result<(), BootError> {
    let failed = |source| BootError::Read { what, source };
    let mut done = 0;
    while done < len {
        // The kernel takes no more than 2 GiB at a time.
        let part = u32::try_from((len - done).min(1 << 30)).unwrap_or(1 << 30);
        let range = Range {
            address: GuestAddress(address + done),
            len: part,
        };
        match guest_io::read_at(
            file.as_fd(),
            memory,
            &[range],
            0,
            part as usize,
            offset + done,
        ) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => done += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn write_cmdline(memory: &memory::GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let max = layout::CMDLINE_MAX - 1;
    if cmdline.len() > max {
        return Err(BootError::Cmdline {
            len: cmdline.len(),
            max,
        });
    }
    // Ends with the zero that is there.
    Ok(memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?)
}

/// `struct hvm_start_info` of version 1, with one module and the map of memory.
fn write_start_info(
    memory: &memory::GuestMemory,
    (module, len): (u64, u64),
) -> Result<(), BootError> {
    const MAGIC: u32 = 0x336e_c578;
    const VERSION: u32 = 1;
    const USABLE: u32 = 1;
    const RESERVED: u32 = 2;
    let mut map = vec![
        (0, layout::BASE_END, USABLE),
        (
            layout::BASE_END,
            layout::KERNEL_START - layout::BASE_END,
            RESERVED,
        ),
    ];
    for (start, len) in layout::pieces(bytes(memory)) {
        let from = start.max(layout::KERNEL_START);
        map.push((from, start + len - from, USABLE));
    }
    let mut entries = Vec::new();
    for (start, len, kind) in &map {
        entries.extend_from_slice(&start.to_le_bytes());
        entries.extend_from_slice(&len.to_le_bytes());
        entries.extend_from_slice(&kind.to_le_bytes());
        entries.extend_from_slice(&0_u32.to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(layout::MEMORY_MAP))?;
    let words =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    memory.write_slice(&words(&[module, len, 0, 0]), GuestAddress(layout::MODULE))?;
    let mut info = Vec::new();
    // Flags are none, and there is one module.
    for word in [MAGIC, VERSION, 0, 1] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    // There are no ACPI tables to point to.
    info.extend(words(&[
        layout::MODULE,
        layout::CMDLINE,
        0,
        layout::MEMORY_MAP,
    ]));
    info.extend((map.len() as u64).to_le_bytes());
    Ok(memory.write_slice(&info, GuestAddress(layout::START_INFO))?)
}

fn bytes(memory: &memory::GuestMemory) -> u64 {
    memory.iter().map(vm_memory::GuestMemoryRegion::len).sum()
}

fn mib(memory: &memory::GuestMemory) -> u64 {
    bytes(memory) >> 20
}
