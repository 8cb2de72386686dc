//! Kernels that Linux people would not call so.

use crate::accelerator;

/// Where it is loaded and entered, in bytes from the start of guest memory.
const ADDRESS: u32 = 1 << 20;

/// An x86-64 ELF executable that the accelerator under test enters at `code`: in 32-bit mode at a PVH entry point
/// (`XEN_ELFNOTE_PHYS32_ENTRY`), or as a program.
#[must_use]
pub fn kernel_file(code: &[u8]) -> Vec<u8> {
    const NOTE: usize = 0x200;
    const CODE: usize = 0x1000;
    let mut file = vec![0; CODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let entry = ADDRESS.to_le_bytes();
    put(0, b"\x7fELF\x02\x01\x01");
    // An executable for x86-64, of version 1.
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &entry);
    // Two program headers of 56 bytes at 64, behind a header of 64.
    put(32, &[64]);
    put(52, &[64, 0, 56, 0, 2]);
    let size = u64::try_from(code.len()).unwrap_or(0).to_le_bytes();
    let load = (1_u32, CODE, entry, size);
    let note = (4_u32, NOTE, [0; 4], 32_u64.to_le_bytes());
    for (at, (kind, offset, address, size)) in [(64, load), (120, note)] {
        put(at, &kind.to_le_bytes());
        put(at + 4, &[5]);
        put(at + 8, &u32::try_from(offset).unwrap_or(0).to_le_bytes());
        put(at + 16, &address);
        put(at + 24, &address);
        put(at + 32, &size);
        put(at + 40, &size);
        put(at + 48, &[4]);
    }
    match accelerator().as_str() {
        "um" => {
            put(NOTE, &[6, 0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0]);
            put(NOTE + 12, b"Linux\0");
            put(NOTE + 20, b"vmm-um-1\0");
        }
        _ => {
            put(NOTE, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
            put(NOTE + 12, b"Xen\0");
            put(NOTE + 16, &entry);
        }
    }
    file.extend_from_slice(code);
    file
}
