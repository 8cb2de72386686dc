//! What machines boot from: kernels, initfs and root images, and how it is known that one is what it should be.
//!
//! Every file has a hash that it should have: those of the installation by its manifest, what users bring by the name
//! under which it is kept, and a root image by the record beside it. Before a file is booted, its device, inode, size and
//! times are compared with those it had when it was hashed the last time, which is remembered below the root; a file
//! that differs in any is hashed again. So what was only copied, installed anew or touched costs some milliseconds once,
//! and what was changed is refused.

mod installation;
mod taken;
mod verify;

use std::{
    io,
    path::{Path, PathBuf},
};

use imagebuilder::{hashes::Hashes, initfs, store::Image};
use serde::{Deserialize, Serialize};

pub use installation::{Installation, InstallationError, has_kernel, variant};
pub use taken::{Guard, TakeError, TakenFiles};
pub use verify::{Finding, name, verify};

use crate::{
    paths::Paths,
    vm::kernel::{self, Entry, KernelError},
};

/// A file that a machine boots from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Where it is, an absolute path.
    pub path: PathBuf,
    /// The SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
}

/// What a file is to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The uncompressed kernel.
    Kernel,
    /// The archive with PID 1.
    Initfs,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kernel, Self::Initfs];

    /// What people call it, and the flag that names one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initfs => "initfs",
        }
    }
}

/// What one machine boots from. Nothing of it is collected as long as this is there.
#[derive(Debug, Default)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: BootFile,
    /// The archive with PID 1.
    pub initfs: BootFile,
    _guards: Vec<Guard>,
}

/// Why there is nothing to boot from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that begins nowhere.
    #[error("Cannot tell the current directory; give absolute paths")]
    CurrentDirectory(#[source] io::Error),
    /// What the user names is not there.
    #[error("Cannot find the {} {} (give the path of a file)", .kind.name(), .path.display())]
    NotFound {
        /// What it would be.
        kind: Kind,
        /// Where it would be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is a directory, say.
    #[error("The {} {} is no file: give the path of one", .kind.name(), .path.display())]
    NoFile {
        /// What it would be.
        kind: Kind,
        /// Where it is.
        path: PathBuf,
    },
    /// It is no kernel.
    #[error("Cannot boot {}", .path.display())]
    Kernel {
        /// Where it is.
        path: PathBuf,
        /// What it is instead.
        source: KernelError,
    },
    /// It is no initfs.
    #[error("Cannot boot with {}", .path.display())]
    Initfs {
        /// Where it is.
        path: PathBuf,
        /// What it is instead.
        source: initfs::Error,
    },
    /// It cannot be kept.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// There is nothing to boot where the user names nothing.
    #[error("There is no {} (name one with --{})", .kind.name(), .kind.name())]
    Installation {
        /// What there is not.
        kind: Kind,
        /// Why not.
        source: InstallationError,
    },
    /// A file is something else than it should be.
    #[error(
        "The {what} {} was changed: its SHA-256 is {found} and should be {expected} ({remedy}; vmm system verify looks at everything)",
        .path.display()
    )]
    Changed {
        /// What it is.
        what: String,
        /// Where it is.
        path: PathBuf,
        /// The hash that it has.
        found: String,
        /// The hash that it should have.
        expected: String,
        /// What makes it what it should be.
        remedy: &'static str,
    },
    /// A file that should be there cannot be read.
    #[error("Cannot read the {what} {} ({remedy}; vmm system verify looks at everything)", .path.display())]
    Unreadable {
        /// What it is.
        what: String,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
        /// What makes it what it should be.
        remedy: &'static str,
    },
}

/// What puts a file of the installation right.
const INSTALL: &str = "make image, or installing again, puts it right";

impl BootFiles {
    /// The files that the user names, taken, and for the rest those of the installation: of its kernels the one that is
    /// entered like `entry`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn choose(
        paths: &Paths,
        kernel: Option<&Path>,
        initfs: Option<&Path>,
        entry: Entry,
    ) -> Result<Self, Error> {
        let mut guards = Vec::new();
        // Read once, and only if it is needed.
        let mut installation = None;
        let mut file = |kind, own| match own {
            Some(own) => {
                let (file, guard) = take(paths, kind, own)?;
                guards.push(guard);
                Ok(file)
            }
            None => {
                let known = match &installation {
                    Some(known) => known,
                    None => installation.insert(
                        Installation::open(paths)
                            .map_err(|source| Error::Installation { kind, source })?,
                    ),
                };
                installed(paths, known, kind, entry)
            }
        };
        Ok(Self {
            kernel: file(Kind::Kernel, kernel)?,
            initfs: file(Kind::Initfs, initfs)?,
            _guards: guards,
        })
    }
}

/// How the kernel is entered that the user names.
///
/// # Errors
/// It is none.
pub fn entry(path: &Path) -> Result<Entry, Error> {
    let path = std::path::absolute(path).map_err(Error::CurrentDirectory)?;
    look(Kind::Kernel, &path)?;
    kernel::check(&path).map_err(|source| Error::Kernel { path, source })
}

/// Looks at a file that the user names, and takes it.
fn take(paths: &Paths, kind: Kind, path: &Path) -> Result<(BootFile, Guard), Error> {
    let path = std::path::absolute(path).map_err(Error::CurrentDirectory)?;
    look(kind, &path)?;
    // Before it is copied: most files that do not boot are none that could.
    match kind {
        Kind::Kernel => kernel::check(&path)
            .map(drop)
            .map_err(|source| Error::Kernel {
                path: path.clone(),
                source,
            })?,
        Kind::Initfs => initfs::check(&path).map_err(|source| Error::Initfs {
            path: path.clone(),
            source,
        })?,
    }
    Ok(TakenFiles::open(paths).take(kind, &path)?)
}

/// Whether a file is there.
fn look(kind: Kind, path: &Path) -> Result<(), Error> {
    let path = path.to_owned();
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::NoFile { kind, path }),
        Err(source) => Err(Error::NotFound { kind, path, source }),
    }
}

/// The installation's own, if it is what the manifest says.
fn installed(
    paths: &Paths,
    installation: &Installation,
    kind: Kind,
    entry: Entry,
) -> Result<BootFile, Error> {
    let file = installation
        .boot_file(kind, entry)
        .map_err(|source| Error::Installation { kind, source })?;
    check(
        paths,
        kind.name().to_owned(),
        &file.path,
        &file.sha256,
        INSTALL,
    )?;
    Ok(file)
}

/// Whether a root image is what was made.
///
/// # Errors
/// It is something else, or not there.
pub fn check_image(paths: &Paths, image: &Image) -> Result<(), Error> {
    let remedy = match image.removable {
        true => "loading the image again puts it right",
        false => INSTALL,
    };
    let name = image.names.first().unwrap_or(&image.digest);
    let what = format!("root image of {name}");
    check(paths, what, &image.rootfs, &image.sha256, remedy)
}

fn check(
    paths: &Paths,
    what: String,
    path: &Path,
    expected: &str,
    remedy: &'static str,
) -> Result<(), Error> {
    match Hashes::new(paths.hashes()).get(path) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(Error::Changed {
            what,
            path: path.to_owned(),
            found,
            expected: expected.to_owned(),
            remedy,
        }),
        Err(source) => Err(Error::Unreadable {
            what,
            path: path.to_owned(),
            source,
            remedy,
        }),
    }
}
