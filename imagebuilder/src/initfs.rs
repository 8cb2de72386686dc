//! The initfs: the archive with PID 1 that the kernel unpacks into its first root file system.
//!
//! A newc archive (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`), uncompressed, of `/init`, the
//! directories it mounts on, and `/dev/console`, which the kernel opens for PID 1 before anything is mounted.
//! Owners, times, inode numbers and order are fixed: the same `/init` gives the same bytes.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::manifest::Origin;
use crate::{atomic, sha256};

/// The largest `/init` that is taken, in bytes. Ours is a hundredth of it.
const MAX_INIT: u32 = 64 << 20;

/// The directories beside `/init`.
const DIRECTORIES: [&str; 4] = ["dev", "mnt", "proc", "sys"];

/// Why no initfs could be made, or one cannot be booted with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program for `/init` cannot be read.
    #[error("Cannot read {}", .path.display())]
    Read {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no program that can be PID 1 of the VM.
    #[error("{} cannot be /init: {reason}", .path.display())]
    Unfit {
        /// The program.
        path: PathBuf,
        /// What it would have to be.
        reason: &'static str,
    },
    /// It is something else.
    #[error(
        "It is no cpio archive in the newc format, or is cut off; imagebuilder initfs makes one"
    )]
    NotNewc,
    /// There is nothing in it to run.
    #[error("There is no /init in it, which would be PID 1; imagebuilder initfs makes one")]
    NoInit,
    /// The archive cannot be written.
    #[error("Cannot write {}", .path.display())]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes the initfs with `vminitd` as its `/init` to `out`, unless it is there. Gives what it was made of.
///
/// # Errors
/// `vminitd` cannot be read or is no static x86-64 program; `out` cannot be written.
pub fn build(vminitd: &Path, out: &Path) -> Result<Origin, Error> {
    let init = read_init(vminitd)?;
    if let Err(reason) = check_static(&init) {
        return Err(Error::Unfit {
            path: vminitd.to_path_buf(),
            reason,
        });
    }
    let write = || {
        let bytes = archive(&init)?;
        atomic::update(out, &bytes)?;
        Ok(sha256::of(bytes))
    };
    let sha256 = write().map_err(|source| Error::Write {
        path: out.to_path_buf(),
        source,
    })?;
    Ok(Origin {
        name: "initfs".to_owned(),
        sha256,
        inputs: vec![Origin {
            name: "vminitd".to_owned(),
            sha256: sha256::of(&init),
            ..Origin::default()
        }],
        ..Origin::default()
    })
}

fn read_init(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut init = Vec::new();
    File::open(path)
        .and_then(|file| file.take(u64::from(MAX_INIT) + 1).read_to_end(&mut init))
        .map_err(failed)?;
    Ok(init)
}

fn archive(init: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(init.len() + 4096);
    // Inode numbers tell files with several links apart; here every entry is its own.
    let mut inode = 1;
    let mut add = |entry: Builder, kind: ModeFileType, mode: u32, content: &[u8]| {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let entry = entry.ino(inode).mode(mode).set_mode_file_type(kind);
        inode += 1;
        let mut writer = entry.write(&mut bytes, size);
        writer.write_all(content)?;
        writer.finish().map(|_| ())
    };
    for name in DIRECTORIES {
        let entry = Builder::new(name).nlink(2);
        add(entry, ModeFileType::Directory, 0o755, &[])?;
    }
    let console = Builder::new("dev/console").rdev_major(5).rdev_minor(1);
    add(console, ModeFileType::Char, 0o600, &[])?;
    add(Builder::new("init"), ModeFileType::Regular, 0o755, init)?;
    trailer(&mut bytes)?;
    Ok(bytes)
}

/// Checks the headers of `program` (ELF-64, System V ABI AMD64): Linux would have to load nothing else to run it.
fn check_static(program: &[u8]) -> Result<(), &'static str> {
    const NOT_ELF: &str = "It is not an ELF program";
    const TRUNCATED: &str = "Its ELF headers are cut off";
    const PT_INTERP: u32 = 3;
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;

    if program.len() > MAX_INIT as usize {
        return Err("It is larger than 64 MiB");
    }
    let header = program.get(..HEADER).ok_or(NOT_ELF)?;
    if !header.starts_with(b"\x7fELF") {
        return Err(NOT_ELF);
    }
    let half = |offset: usize| u16::from_le_bytes([header[offset], header[offset + 1]]);
    let (class_64, little_endian, x86_64) = (2, 1, 62);
    if header[4] != class_64 || header[5] != little_endian || half(18) != x86_64 {
        return Err("It is not an x86-64 program");
    }
    let (executable, shared) = (2, 3);
    if ![executable, shared].contains(&half(16)) {
        return Err("It is an object file, not a program");
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let offset = usize::try_from(u64::from_le_bytes(offset)).map_err(|_| TRUNCATED)?;
    let count = usize::from(half(56));
    if usize::from(half(54)) != PROGRAM_HEADER || count == 0 {
        return Err("It has no program headers");
    }
    let end = offset
        .checked_add(count * PROGRAM_HEADER)
        .ok_or(TRUNCATED)?;
    let table = program.get(offset..end).ok_or(TRUNCATED)?;
    let needs_interpreter = table
        .chunks_exact(PROGRAM_HEADER)
        .any(|entry| entry[..4] == PT_INTERP.to_le_bytes());
    if needs_interpreter {
        return Err("It is dynamically linked; link it statically");
    }
    Ok(())
}

/// Entries of an initfs that are looked at: ours has a handful.
const MAX_ENTRIES: usize = 4096;

/// How gzip, zstd and xz files begin. Whether a kernel can unpack them, only the kernel knows.
const COMPRESSED: [&[u8]; 3] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"];

/// Checks that a file is an archive with an `init` in it, as far as that can be told.
///
/// # Errors
/// It cannot be read, is none, or has none.
pub fn check(initfs: &Path) -> Result<(), Error> {
    let path = || initfs.to_path_buf();
    let mut file = io::BufReader::new(File::open(initfs).map_err(|source| Error::Read {
        path: path(),
        source,
    })?);
    let start = file.fill_buf().map_err(|source| Error::Read {
        path: path(),
        source,
    })?;
    if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
        return Ok(());
    }
    for _ in 0..MAX_ENTRIES {
        let Ok(entry) = cpio::newc::Reader::new(file) else {
            return Err(Error::NotNewc);
        };
        if entry.entry().is_trailer() {
            break;
        }
        if matches!(entry.entry().name(), "init" | "/init" | "./init") {
            return Ok(());
        }
        file = entry.skip().map_err(|_| Error::NotNewc)?;
    }
    Err(Error::NoInit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use cpio::newc::Reader;

    /// The smallest static program by its headers.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 100];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        elf
    }

    #[test]
    fn the_archive_holds_init_its_directories_and_a_console() {
        let folder = Folder::new("initfs");
        let (init, out) = (folder.path().join("vminitd"), folder.path().join("initfs"));
        std::fs::write(&init, elf()).unwrap();
        build(&init, &out).unwrap();

        let mut rest = std::fs::read(&out).unwrap();
        let mut entries = Vec::new();
        loop {
            let mut reader = Reader::new(rest.as_slice()).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            assert_eq!((entry.mtime(), entry.uid(), entry.gid()), (0, 0, 0));
            entries.push((entry.name().to_owned(), entry.mode(), content.len()));
            if entry.name() == "dev/console" {
                assert_eq!((entry.rdev_major(), entry.rdev_minor()), (5, 1));
            }
            if entry.name() == "init" {
                assert_eq!(content, elf());
            }
            rest = reader.finish().unwrap().to_vec();
        }
        let expected = [
            ("dev", 0o040_755, 0),
            ("mnt", 0o040_755, 0),
            ("proc", 0o040_755, 0),
            ("sys", 0o040_755, 0),
            ("dev/console", 0o020_600, 0),
            ("init", 0o100_755, elf().len()),
        ];
        assert_eq!(
            entries,
            expected.map(|(name, mode, len)| (name.to_owned(), mode, len))
        );
    }

    #[test]
    fn the_same_init_gives_the_same_bytes() {
        let folder = Folder::new("initfs-same");
        let bytes = ["a", "b"].map(|name| {
            let init = folder.path().join(name);
            std::fs::write(&init, elf()).unwrap();
            let out = folder.path().join(format!("{name}.out"));
            build(&init, &out).unwrap();
            std::fs::read(out).unwrap()
        });
        assert_eq!(bytes[0], bytes[1]);
    }

    #[test]
    fn what_cannot_be_init_is_refused_with_the_reason() {
        let change = |offset: usize, value: u8| {
            let mut elf = elf();
            elf[offset] = value;
            elf
        };
        let rows = [
            (b"#!/bin/sh\nexec sleep 1\n".to_vec(), "not an ELF program"),
            (Vec::new(), "not an ELF program"),
            (elf()[..80].to_vec(), "cut off"),
            (change(39, 255), "cut off"),
            (change(4, 1), "not an x86-64"),
            (change(18, 183), "not an x86-64"),
            (change(16, 1), "object file"),
            (change(56, 0), "no program headers"),
            (change(64, 3), "dynamically linked"),
        ];
        let folder = Folder::new("initfs-unfit");
        for (program, reason) in rows {
            let (init, out) = (folder.path().join("init"), folder.path().join("out"));
            std::fs::write(&init, program).unwrap();
            let error = build(&init, &out).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
            assert!(!out.exists());
        }
    }

    #[test]
    fn the_systems_own_shell_is_refused_as_dynamic() {
        let folder = Folder::new("initfs-sh");
        let error = build(Path::new("/bin/sh"), &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("dynamically linked"), "{error}");
    }

    #[test]
    fn what_cannot_be_booted_with_is_told() {
        let folder = Folder::new("initfs-check");
        let path = |name: &str| folder.path().join(name);
        let put = |name: &str, bytes: &[u8]| {
            std::fs::write(path(name), bytes).unwrap();
            check(&path(name))
        };
        let mut good = Vec::new();
        let mut entry = Builder::new("init").mode(0o100_755).write(Vec::new(), 4);
        entry.write_all(b"\x7fELF").unwrap();
        good.extend(entry.finish().unwrap());
        let good = trailer(good).unwrap();
        assert!(put("good", &good).is_ok());
        assert!(matches!(put("text", b"root:x:0:0"), Err(Error::NotNewc)));
        assert!(matches!(put("empty", b""), Err(Error::NotNewc)));
        let empty = trailer(Vec::new()).unwrap();
        assert!(matches!(put("no-init", &empty), Err(Error::NoInit)));
        assert!(put("packed", b"\x1f\x8b\x08").is_ok());
        for len in 1..good.len() {
            // Whatever is cut off, it ends.
            let _ = put("cut", &good[..len]);
        }
        assert!(check(&path("missing")).is_err());
    }
}
