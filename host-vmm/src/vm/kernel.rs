//! Whether a file is a kernel that our machines can enter, and how: an x86-64 ELF executable with a PVH entry point, or
//! one that is a program of the host.
//!
//! ELF-64, and the PVH boot protocol (`XEN_ELFNOTE_PHYS32_ENTRY`) as Xen's `docs/misc/pvh` defines it. The file may be
//! anybody's, so that everything read from it is checked.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// By a machine, at its PVH entry point.
    Pvh,
    /// As a program: user-mode Linux.
    Program,
}

/// A kernel for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Physical address of its PVH entry point.
    pub entry: u64,
    /// What of the file is to be in memory.
    pub segments: Vec<Segment>,
}

/// A piece of a kernel's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file, in bytes.
    pub offset: u64,
    /// How much of the file it is, in bytes. It lies within the file.
    pub file_len: u64,
    /// Physical address.
    pub address: u64,
    /// Bytes of memory: what is beyond the file's are zeroes.
    pub memory_len: u64,
}

/// Why a file is not a kernel for us.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error("The kernel cannot be read")]
    Read(#[source] io::Error),
    /// It is compressed.
    #[error(
        "The kernel is a compressed image (bzImage); take the vmlinux out of it, as scripts/extract-vmlinux of the kernel's source does"
    )]
    Compressed,
    /// It is something else.
    #[error(
        "The kernel is no ELF file; give the uncompressed vmlinux that a build of Linux leaves at the top of its tree"
    )]
    NotElf,
    /// It is for another processor.
    #[error(
        "The kernel is not for x86-64, and nothing else is run here; build it with ARCH=x86_64"
    )]
    Architecture,
    /// A part of it is missing.
    #[error("The kernel is incomplete: its file ends before it should; copy or build it again")]
    Truncated,
    /// It cannot be entered.
    #[error("The kernel has no PVH entry point; build it with CONFIG_PVH=y")]
    NoPvh,
    /// It is a program, but expects another host than us.
    #[error(
        "The kernel is a program (ARCH=um) that does not run under vmm as it is; make kernel VARIANT=um builds one that does"
    )]
    ForeignProgram,
}

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// Most program headers, and most bytes of notes, that are looked at: kernels have five of the ones and some hundred of the
/// others.
const MAX_SEGMENTS: u64 = 64;
const MAX_NOTES: u64 = 64 << 10;

const MACHINE_X86_64: u16 = 62;
const TYPE_LOAD: u32 = 1;
const TYPE_INTERPRETER: u32 = 3;
const TYPE_NOTE: u32 = 4;
const NOTE_PVH: u32 = 18;
/// `LINUX_ELFNOTE_BUILD_SALT` of Linux's `include/linux/build-salt.h`, by which a kernel's configuration names its build.
const NOTE_BUILD_SALT: u32 = 0x100;

/// The name of builds that are driven as we drive programs, with the interface's version.
const PROGRAM_SALT: &[u8] = b"vmm-um-1\0";

/// Where the addresses of programs end. A kernel for a machine is linked beyond.
const PROGRAM_END: u64 = 1 << 47;

/// Looks at a file's headers.
///
/// # Errors
/// [`KernelError`].
pub fn check(path: &Path) -> Result<Entry, KernelError> {
    let file = File::open(path).map_err(KernelError::Read)?;
    let size = file.metadata().map_err(KernelError::Read)?.len();
    check_image(&file, size)
}

/// Takes a machine's kernel apart, of a file that is as long as it is now.
///
/// # Errors
/// [`KernelError`].
pub fn image(file: &File) -> Result<Image, KernelError> {
    let size = file.metadata().map_err(KernelError::Read)?.len();
    parse(file, size)?.image.ok_or(KernelError::NoPvh)
}

fn check_image(file: &File, size: u64) -> Result<Entry, KernelError> {
    let parsed = parse(file, size)?;
    match parsed.salt {
        _ if parsed.image.is_some() => Ok(Entry::Pvh),
        Some(salt) if parsed.program && salt == PROGRAM_SALT => Ok(Entry::Program),
        Some(_) if parsed.program => Err(KernelError::ForeignProgram),
        _ => Err(KernelError::NoPvh),
    }
}

/// What a file's headers say.
struct Parsed {
    /// If it has a PVH entry point.
    image: Option<Image>,
    /// By which its configuration names its build.
    salt: Option<Vec<u8>>,
    /// It looks like a program that needs no other file.
    program: bool,
}

fn parse(file: &File, size: u64) -> Result<Parsed, KernelError> {
    let mut start = vec![0; 0x206.min(usize::try_from(size).unwrap_or(usize::MAX))];
    read(file, 0, &mut start)?;
    if !start.starts_with(b"\x7fELF") {
        return Err(match start.get(0x202..0x206) {
            Some(b"HdrS") => KernelError::Compressed,
            _ => KernelError::NotElf,
        });
    }
    let header = start.get(..HEADER).ok_or(KernelError::Truncated)?;
    // 64 bits, little-endian.
    if header[4..6] != [2, 1] || u16_at(header, 18) != MACHINE_X86_64 {
        return Err(KernelError::Architecture);
    }
    let (offset, each, count) = (
        u64_at(header, 32),
        u64::from(u16_at(header, 54)),
        u64::from(u16_at(header, 56)),
    );
    if each != PROGRAM_HEADER as u64 || count > MAX_SEGMENTS {
        return Err(KernelError::NotElf);
    }
    let (mut pvh, mut salt) = (None, None);
    let mut segments = Vec::new();
    // What a program that needs no other file looks like.
    let mut program = (1..PROGRAM_END).contains(&u64_at(header, 24));
    for index in 0..count {
        let at = offset
            .checked_add(index * each)
            .ok_or(KernelError::Truncated)?;
        let mut segment = [0; PROGRAM_HEADER];
        read(file, at, &mut segment)?;
        let (kind, at, len) = (
            u32_at(&segment, 0),
            u64_at(&segment, 8),
            u64_at(&segment, 32),
        );
        program &= kind != TYPE_INTERPRETER;
        if !matches!(kind, TYPE_LOAD | TYPE_NOTE) {
            continue;
        }
        program &= u64_at(&segment, 16) < PROGRAM_END;
        if at.checked_add(len).is_none_or(|end| end > size) {
            return Err(KernelError::Truncated);
        }
        if kind == TYPE_LOAD {
            segments.push(Segment {
                offset: at,
                file_len: len,
                address: u64_at(&segment, 24),
                memory_len: u64_at(&segment, 40),
            });
        } else {
            let mut notes = vec![0; usize::try_from(len.min(MAX_NOTES)).unwrap_or(0)];
            read(file, at, &mut notes)?;
            pvh = pvh.or_else(|| note(&notes, b"Xen\0", NOTE_PVH).and_then(address));
            salt = salt.or_else(|| note(&notes, b"Linux\0", NOTE_BUILD_SALT).map(<[u8]>::to_vec));
        }
    }
    Ok(Parsed {
        image: pvh.map(|entry| Image { entry, segments }),
        salt,
        program,
    })
}

/// What a note of 4 or 8 bytes says.
fn address(content: &[u8]) -> Option<u64> {
    match *content {
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        _ => Some(u64::from_le_bytes(content.try_into().ok()?)),
    }
}

/// What the note of this owner and kind says, if there is one.
fn note<'a>(mut notes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    while let Some((head, rest)) = notes.split_at_checked(12) {
        let (name, content) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
        let begin = name.next_multiple_of(4);
        let end = begin.checked_add(content)?;
        if u32_at(head, 8) == kind && rest.get(..name) == Some(owner) {
            return rest.get(begin..end);
        }
        notes = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn read(file: &File, at: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
    file.read_exact_at(bytes, at)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => KernelError::Truncated,
            _ => KernelError::Read(error),
        })
}

// Callers index within what they have read.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn verdict(image: &[u8]) -> Result<Entry, KernelError> {
        let file: File = memfd_create("kernel", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(image, 0).unwrap();
        check_image(&file, image.len() as u64)
    }

    /// One loaded segment, and one of notes.
    fn kernel(note: u32) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(18, &MACHINE_X86_64.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        for (at, kind, offset, len) in [
            (64, TYPE_LOAD, 0x200_u64, 0x200_u64),
            (120, TYPE_NOTE, 0x100, 40),
        ] {
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 32, &len.to_le_bytes());
        }
        put(0x124, &0x100_0000_u32.to_le_bytes());
        for (at, name, content, kind) in [(0x100, 4_u32, 1_u32, 3_u32), (0x114, 4, 4, note)] {
            put(at, &name.to_le_bytes());
            put(at + 4, &content.to_le_bytes());
            put(at + 8, &kind.to_le_bytes());
            put(at + 12, b"Xen\0");
        }
        image
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        assert_eq!(verdict(&kernel(NOTE_PVH)).unwrap(), Entry::Pvh);
        assert!(matches!(verdict(&kernel(17)), Err(KernelError::NoPvh)));
        assert!(matches!(verdict(b""), Err(KernelError::NotElf)));
        assert!(matches!(verdict(b"#!/bin/sh\n"), Err(KernelError::NotElf)));
        assert!(matches!(verdict(b"\x7fELF"), Err(KernelError::Truncated)));
        let mut packed = vec![0; 0x300];
        packed[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(verdict(&packed), Err(KernelError::Compressed)));
        let mut arm = kernel(NOTE_PVH);
        arm[18] = 183;
        assert!(matches!(verdict(&arm), Err(KernelError::Architecture)));
    }

    #[test]
    fn a_machines_kernel_says_what_goes_where() {
        let mut image = kernel(NOTE_PVH);
        image[64 + 24..64 + 32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        image[64 + 40..64 + 48].copy_from_slice(&0x1000_u64.to_le_bytes());
        let file: File = memfd_create("kernel", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(&image, 0).unwrap();
        let segment = Segment {
            offset: 0x200,
            file_len: 0x200,
            address: 0x20_0000,
            memory_len: 0x1000,
        };
        let expected = Image {
            entry: 0x100_0000,
            segments: vec![segment],
        };
        assert_eq!(super::image(&file).unwrap(), expected);
    }

    #[test]
    fn a_program_is_told_from_a_machines_kernel() {
        let mut image = kernel(17);
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(24, &0x6000_0000_u64.to_le_bytes());
        put(120 + 32, &52_u64.to_le_bytes());
        put(0x114, &[6, 0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0]);
        put(0x120, b"Linux\0");
        put(0x128, PROGRAM_SALT);
        assert_eq!(verdict(&image).unwrap(), Entry::Program);
        let mut foreign = image.clone();
        foreign[0x128] = b'w';
        assert!(matches!(
            verdict(&foreign),
            Err(KernelError::ForeignProgram)
        ));
        let mut linked_high = image.clone();
        linked_high[64 + 16..64 + 24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(verdict(&linked_high), Err(KernelError::NoPvh)));
        image[64] = 3;
        assert!(matches!(verdict(&image), Err(KernelError::NoPvh)));
    }

    #[test]
    fn a_kernel_cut_anywhere_is_refused_and_none_panics() {
        let image = kernel(NOTE_PVH);
        for len in 0..image.len() {
            assert!(verdict(&image[..len]).is_err(), "{len}");
        }
        for at in 0..0x140 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut image = image.clone();
                image[at] = value;
                let _ = verdict(&image);
            }
        }
    }
}
