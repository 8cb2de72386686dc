//! Landlock (`landlock(7)`): a process that may execute its program, open nothing by its path, and reach nothing by
//! the network.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Rights over files that each version knows: all that there are up to then.
const FILE_RIGHTS: [u64; 5] = [
    (1 << 13) - 1, // 1: execute, read, write, and make or remove anything
    (1 << 14) - 1, // 2: refer
    (1 << 15) - 1, // 3: truncate
    (1 << 15) - 1, // 4
    (1 << 16) - 1, // 5: ioctl on devices
];

/// Since version 4: to bind and to connect TCP.
const NETWORK_RIGHTS: u64 = 3;

/// Since version 6: no abstract sockets and no signals beyond the domain.
const SCOPES: u64 = 3;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The rights to execute and to read a file. Executing takes both.
const EXECUTE: u64 = 1 << 0 | 1 << 2;

/// A set of rules that forbids all that it knows, but for one file.
pub struct Ruleset {
    fd: OwnedFd,
}

impl Ruleset {
    /// Allows `program` to be executed.
    ///
    /// # Errors
    /// The host's kernel has no Landlock.
    pub fn create(program: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        const VERSION: u32 = 1;
        // SAFETY: with this flag the call takes no attributes and gives a number.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::null::<Attributes>(),
                0_usize,
                VERSION,
            )
        };
        let Some(version) = u32::try_from(version).ok().filter(|version| *version > 0) else {
            return Err(io::Error::last_os_error());
        };
        let known = FILE_RIGHTS.len().min(version as usize);
        let attributes = Attributes {
            files: FILE_RIGHTS[known - 1],
            network: if version >= 4 { NETWORK_RIGHTS } else { 0 },
            scoped: if version >= 6 { SCOPES } else { 0 },
        };
        // Older kernels take a longer structure whose end is zero.
        // SAFETY: the kernel reads the structure, which is as long as it is told.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size_of::<Attributes>(),
                0_u32,
            )
        };
        let Some(fd) = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0) else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let ruleset = Self { fd };
        if let Some(program) = program {
            ruleset.allow(program)?;
        }
        Ok(ruleset)
    }

    fn allow(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        const PATH_BENEATH: u32 = 1;
        let rule = PathBeneath {
            allowed: EXECUTE,
            parent: program.as_raw_fd(),
        };
        // SAFETY: the kernel reads the structure that this type of rule has.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.fd.as_raw_fd(),
                PATH_BENEATH,
                &raw const rule,
                0_u32,
            )
        };
        match added {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Ruleset {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Confines this process to `ruleset` for good. Allocates nothing.
///
/// # Errors
/// Those of `landlock_restrict_self(2)`.
pub fn enter(ruleset: RawFd) -> io::Result<()> {
    // SAFETY: it takes a descriptor and flags.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
