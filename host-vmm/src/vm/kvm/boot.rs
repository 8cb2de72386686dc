//! What is in a machine's memory when it starts: the kernel, the initfs, and what the kernel is told.
//!
//! The PVH boot protocol, as Xen's `docs/misc/pvh` and `public/arch-x86/hvm/start_info.h` define it. The kernel's file is
//! taken apart by [`crate::vm::kernel`], which looks at it before anything is started, too: there is one parser of it.

use std::{fs::File, io, os::fd::AsFd};

use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::{layout, memory};
use crate::{
    devices::{guest_io, virtqueue::Range},
    vm::{
        kernel::{self, KernelError, Segment},
        memory::GuestMemory,
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
    memory: &GuestMemory,
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
    memory: &GuestMemory,
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
        let fits = usize::try_from(len)
            .is_ok_and(|len| memory.check_range(GuestAddress(address), len, Permissions::Write));
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
        // What is beyond the file's is zero, as all memory is. Kernels are kept as files that do not change
        // (`boot_files`).
        let (offset, file_len) = (segment.offset, segment.file_len);
        let what = "the kernel";
        let mapped = memory::map_file(memory, file, offset, address, file_len)
            .map_err(|source| BootError::Read { what, source })?;
        let rest = (offset + mapped, address + mapped, file_len - mapped);
        read(memory, file, what, rest.0, rest.1, rest.2)?;
    }
    Ok(taken)
}

/// Puts the initfs as far up as it may be. Gives where it begins, and its length.
fn load_initfs(
    memory: &GuestMemory,
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
    let (_, low) = layout::pieces(memory::size(memory))[0];
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
    memory: &GuestMemory,
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

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
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
fn write_start_info(memory: &GuestMemory, (module, len): (u64, u64)) -> Result<(), BootError> {
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
    for (start, len) in layout::pieces(memory::size(memory)) {
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

fn mib(memory: &GuestMemory) -> u64 {
    memory::size(memory) >> 20
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(bytes: &[u8]) -> File {
        let file: File = memfd_create("file", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// A kernel with these segments (address, file's bytes, memory's), whose content is its own offset, page by page.
    fn kernel(entry: u32, segments: &[(u64, u64, u64)]) -> File {
        let mut image = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(18, &62_u16.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(
            56,
            &u16::try_from(segments.len() + 1).unwrap().to_le_bytes(),
        );
        put(
            0x800,
            &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0],
        );
        put(0x810, &entry.to_le_bytes());
        let mut offset = 0x1000;
        let mut header = |index: usize, kind: u32, words: [u64; 4]| {
            let [offset, address, file_len, memory_len] = words.map(u64::to_le_bytes);
            let at = 64 + 56 * index;
            put(at, &kind.to_le_bytes());
            for (place, word) in [(8, offset), (24, address), (32, file_len), (40, memory_len)] {
                put(at + place, &word);
            }
        };
        header(0, 4, [0x800, 0, 0x14, 0x14]);
        let mut content = Vec::new();
        for (index, (address, file_len, memory_len)) in segments.iter().enumerate() {
            header(index + 1, 1, [offset, *address, *file_len, *memory_len]);
            let start = content.len();
            content.resize(start + usize::try_from(*file_len).unwrap(), 0);
            for (at, byte) in content[start..].iter_mut().enumerate() {
                *byte = 1 + u8::try_from(at >> 12 & 0x7f).unwrap();
            }
            content.resize(content.len().next_multiple_of(0x1000), 0xff);
            offset = 0x1000 + content.len() as u64;
        }
        image.extend(content);
        file(&image)
    }

    fn boot(kernel: &File, initfs: &[u8], cmdline: &str) -> Result<GuestMemory, BootError> {
        let memory = memory::map(8 * MIB).unwrap();
        let entry = load(&memory, kernel, &file(initfs), cmdline)?;
        assert_eq!(entry, 2 * MIB);
        Ok(memory)
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn everything_is_where_the_kernel_is_told() {
        // One that can be mapped but for its end, and one that cannot.
        let segments = [(2 * MIB, 0x1801, 0x3000), (3 * MIB + 8, 0x1000, 0x1000)];
        let kernel = kernel(0x20_0000, &segments);
        let memory = boot(&kernel, b"initfs", "console=ttyS0").unwrap();
        let places = [0, 0xfff, 0x1000, 0x1800, 0x1801, 0x2fff].map(|at| 2 * MIB + at);
        assert_eq!(places.map(|at| byte(&memory, at)), [1, 1, 2, 2, 0, 0]);
        let places = [7, 8, 0x1007, 0x1008].map(|at| 3 * MIB + at);
        assert_eq!(places.map(|at| byte(&memory, at)), [0, 1, 1, 0]);
        // What the guest writes stays its own.
        memory.write_obj(0x55_u8, GuestAddress(2 * MIB)).unwrap();
        let mut found = [0];
        kernel.read_exact_at(&mut found, 0x1000).unwrap();
        assert_eq!(found, [1]);
        let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let module = word(layout::START_INFO + 16);
        assert_eq!([word(module), word(module + 8)], [8 * MIB - 4096, 6]);
        assert_eq!(byte(&memory, word(module)), b'i');
        let cmdline = word(layout::START_INFO + 24);
        assert_eq!(
            [byte(&memory, cmdline), byte(&memory, cmdline + 13)],
            [b'c', 0]
        );
        let map = word(layout::START_INFO + 40);
        assert_eq!([word(map + 48), word(map + 56)], [MIB, 7 * MIB]);
    }

    #[test]
    fn a_kernel_that_does_not_fit_together_is_refused() {
        let (at, len) = (2 * MIB, 0x1000);
        let entry = 0x20_0000;
        for (segments, expected) in [
            (&[(at, len, len), (8 * MIB, len, len)][..], "does not fit"),
            (&[(8 * MIB - 0x1000, len, 2 * len)], "does not fit"),
            (&[(u64::MAX - 0xfff, len, 2 * len)], "does not fit"),
            (&[(at, len, u64::MAX)], "does not fit"),
            (&[(0x6000, len, len)], "does not fit"),
            (&[(at, 2 * len, len)], "does not fit"),
            (&[(at, len, 2 * len), (at + len, len, len)], "two parts"),
            (&[(at + len, len, len)], "entry point"),
            (&[], "entry point"),
        ] {
            let error = boot(&kernel(entry, segments), b"", "")
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{segments:x?}: {error}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let kernel = kernel(0x20_0000, &[(2 * MIB, 0x1000, 0x1000)]);
        for len in [6 * MIB, 8 * MIB, 9 * MIB] {
            let initfs = vec![0; usize::try_from(len).unwrap()];
            let error = boot(&kernel, &initfs, "").unwrap_err();
            assert!(matches!(error, BootError::Initfs { .. }), "{error}");
        }
        let error = boot(&kernel, b"", &"x".repeat(layout::CMDLINE_MAX)).unwrap_err();
        assert!(matches!(
            error,
            BootError::Cmdline {
                len: 2048,
                max: 2047
            }
        ));
        boot(&kernel, b"", &"x".repeat(layout::CMDLINE_MAX - 1)).unwrap();
    }
}
