//! What machines boot from: kernels and initfs, and how it is known that one is what it should be.

mod taken;

use std::{
    io,
    path::{Path, PathBuf},
};

use imagebuilder::{hashes::Hashes, initfs};
use serde::{Deserialize, Serialize};

pub use taken::{Guard, TakeError, TakenFiles};

use crate::{
    paths::Paths,
    vm::kernel::{self, KernelError},
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
    #[error("Cannot tell the current directory")]
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
    #[error("The {} {} is no file", .kind.name(), .path.display())]
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
    /// The program lies about alone.
    #[error("There is no {}: nothing is installed beside this program (make image builds it; or name one with --{})", .0.name(), .0.name())]
    NothingInstalled(Kind),
    /// A file of the installation.
    #[error("Cannot read the {} {} (make image builds it; or name one with --{})", .kind.name(), .path.display(), .kind.name())]
    Installed {
        /// What it is.
        kind: Kind,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl BootFiles {
    /// The files that the user names, taken, and for the rest those of the installation.
    ///
    /// # Errors
    /// [`Error`].
    pub fn choose(
        paths: &Paths,
        kernel: Option<&Path>,
        initfs: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut guards = Vec::new();
        let mut file = |kind, own| match own {
            Some(own) => {
                let (file, guard) = take(paths, kind, own)?;
                guards.push(guard);
                Ok(file)
            }
            None => installed(paths, kind),
        };
        Ok(Self {
            kernel: file(Kind::Kernel, kernel)?,
            initfs: file(Kind::Initfs, initfs)?,
            _guards: guards,
        })
    }
}

/// Looks at a file that the user names, and takes it.
fn take(paths: &Paths, kind: Kind, path: &Path) -> Result<(BootFile, Guard), Error> {
    let path = std::path::absolute(path).map_err(Error::CurrentDirectory)?;
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(Error::NoFile { kind, path }),
        Err(source) => return Err(Error::NotFound { kind, path, source }),
    }
    // Before it is copied: most files that do not boot are none that could.
    match kind {
        Kind::Kernel => kernel::check(&path).map_err(|source| Error::Kernel {
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

fn installed(paths: &Paths, kind: Kind) -> Result<BootFile, Error> {
    let path = match kind {
        Kind::Kernel => paths.default_kernel(),
        Kind::Initfs => paths.default_initfs(),
    };
    let path = path.ok_or(Error::NothingInstalled(kind))?;
    match Hashes::new(paths.hashes()).get(&path) {
        Ok(sha256) => Ok(BootFile { path, sha256 }),
        Err(source) => Err(Error::Installed { kind, path, source }),
    }
}
