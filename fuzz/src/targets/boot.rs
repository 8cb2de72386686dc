//! What is put into a machine's memory before it starts: any kernel, initfs and command line, and any size of memory.

use std::fs::File;

use host_vmm::vm::kvm::{boot, layout};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    guest::MachineMemory,
    input::{Input, MemoryFile},
};

const MIB: u64 = 1 << 20;

/// Sizes of memory in MiB: small ones, and around the hole below 4 GiB.
const SIZES: [u64; 8] = [1, 2, 3, 8, 64, 3071, 3072, 3073];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let bytes = SIZES[usize::from(how) % SIZES.len()] * MIB;
    let mapped = MachineMemory::new(bytes);
    let memory = mapped.get();
    let initfs = MemoryFile::new(b"");
    let len = match how >> 3 & 3 {
        0 => u64::from(input.u16()),
        1 => u64::from(input.u8()) << 16,
        2 => bytes - u64::from(input.u16()).min(bytes),
        _ => bytes.saturating_mul(2),
    };
    // No more than can be read in a moment; what is larger must be refused, and so is not read.
    let len = if len < bytes { len.min(4 * MIB) } else { len };
    initfs.file().set_len(len).expect("a file of holes");
    let cmdline = "x".repeat(match how >> 5 {
        0 => usize::from(input.u16()),
        1 => layout::CMDLINE_MAX - usize::from(input.u8() % 3),
        few => usize::from(few),
    });
    let kernel = MemoryFile::new(&kernel(&mut input));
    match boot::load(memory, kernel.file(), initfs.file(), &cmdline) {
        Ok(entry) => check(memory, bytes, entry, len, &cmdline),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    unchanged(kernel.file());
}

/// A file as it comes, or one that has everything a kernel must have, with segments of the input's choice.
fn kernel(input: &mut Input<'_>) -> Vec<u8> {
    let count = match input.u8() {
        0 => return input.rest().to_vec(),
        how => usize::from(how % 8),
    };
    let mut image = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01");
    put(18, &62_u16.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &u16::try_from(count + 1).unwrap_or(1).to_le_bytes());
    put(0x800, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(0x80c, b"Xen\0");
    put(0x810, &(u32::from(input.u16()) << 12).to_le_bytes());
    let note = [0x800, 0, 0x14, 0x14];
    let segments = (0..count).map(|_| [number(input), number(input), number(input), number(input)]);
    let segments: Vec<_> = [note].into_iter().chain(segments).collect();
    for (index, [offset, address, file_len, memory_len]) in segments.into_iter().enumerate() {
        let at = 64 + 56 * index;
        let kind: u32 = if index == 0 { 4 } else { 1 };
        put(at, &kind.to_le_bytes());
        for (place, word) in [(8, offset), (24, address), (32, file_len), (40, memory_len)] {
            put(at + place, &word.to_le_bytes());
        }
    }
    image.resize(0x4000, 0x77);
    image
}

/// Most often a few pages or MiB.
fn number(input: &mut Input<'_>) -> u64 {
    let value = u64::from(input.u16());
    match value & 3 {
        0 => value << 12,
        1 => value,
        2 => (value >> 2) << 20,
        _ => u64::MAX - value,
    }
}

/// What the kernel is told is so.
fn check(
    memory: &host_vmm::vm::memory::GuestMemory,
    bytes: u64,
    entry: u64,
    initfs: u64,
    cmdline: &str,
) {
    let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).expect("memory");
    let info = layout::START_INFO;
    assert_eq!(word(info) & 0xffff_ffff, 0x336e_c578);
    let module = word(info + 16);
    let (start, len) = (word(module), word(module + 8));
    assert_eq!(len, initfs);
    let inside = |at: u64| {
        layout::pieces(bytes)
            .iter()
            .any(|(start, len)| (*start..start + len).contains(&at))
    };
    assert!(inside(entry), "entered at {entry:#x}");
    assert!(
        len == 0 || (start >= layout::KERNEL_START && inside(start) && inside(start + len - 1))
    );
    assert!(
        len == 0 || !(start..start + len).contains(&entry),
        "the initfs is entered"
    );
    let text = word(info + 24);
    let mut found = vec![0xff; cmdline.len() + 1];
    memory
        .read_slice(&mut found, GuestAddress(text))
        .expect("memory");
    assert!(found.starts_with(cmdline.as_bytes()) && found.ends_with(&[0]));
    // What the map calls memory is, and all of it above 1 MiB is in the map.
    let (map, count) = (word(info + 40), word(info + 48) & 0xffff_ffff);
    let mut usable = 0;
    for index in 0..count {
        let entry = map + 24 * index;
        let (start, len) = (word(entry), word(entry + 8));
        if word(entry + 16) & 0xffff_ffff == 1 && len > 0 {
            assert!(
                inside(start) && inside(start + len - 1),
                "{start:#x} {len:#x}"
            );
            usable += if start >= layout::KERNEL_START {
                len
            } else {
                0
            };
        }
    }
    assert_eq!(usable, bytes - layout::KERNEL_START);
}

/// What the machine's memory shows of a file does not get back into it.
fn unchanged(kernel: &File) {
    assert!(kernel.metadata().expect("a kernel").len() <= 0x10_0000);
}
