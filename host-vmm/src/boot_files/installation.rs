//! What came with the program: its manifest, and where the files are that it names.

use std::path::{Path, PathBuf};

use imagebuilder::manifest::{self, Artifact, Manifest};

use super::{BootFile, Kind};
use crate::{paths::Paths, vm::kernel::Entry};

/// Whether a kernel was installed that is entered like `entry`, as far as can be told without reading anything: its folder
/// is there. If the file is not, that is an error, and no reason to do without.
#[must_use]
pub fn has_kernel(paths: &Paths, entry: Entry) -> bool {
    paths
        .installed_kernel(variant(entry))
        .and_then(|path| path.parent().map(Path::exists))
        .unwrap_or(false)
}

/// The variant of the kernel that containers get which ask for no other, by how it is entered.
#[must_use]
pub const fn variant(entry: Entry) -> &'static str {
    match entry {
        Entry::Pvh => "default",
        Entry::Program => "um",
    }
}

/// The installation that the program is part of.
#[derive(Debug)]
pub struct Installation {
    /// The directory that has `bin` and `share` in it.
    prefix: PathBuf,
    manifest: Manifest,
}

/// Why it is not known what belongs to the installation.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The program lies about alone.
    #[error("Nothing is installed beside this program (make image builds it)")]
    None,
    /// A kernel that was not built.
    #[error("The kernel {0} was not built (make image builds it, and says what it lacks for that)")]
    Kernel(&'static str),
    /// The manifest is missing, or of no use.
    #[error("Cannot tell what was installed (make image, or installing again, puts it right)")]
    Manifest(#[from] manifest::Error),
}

impl Installation {
    /// Reads the manifest of the installation.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn open(paths: &Paths) -> Result<Self, InstallationError> {
        let share = paths.share().ok_or(InstallationError::None)?;
        let prefix = share.parent().and_then(Path::parent);
        let prefix = prefix.ok_or(InstallationError::None)?;
        Ok(Self {
            prefix: prefix.to_owned(),
            manifest: Manifest::read(&share.join(manifest::FILE))?,
        })
    }

    /// Every file of it, and where that is.
    pub fn artifacts(&self) -> impl Iterator<Item = (PathBuf, &Artifact)> {
        let artifacts = self.manifest.artifacts.iter();
        artifacts.map(|artifact| (self.prefix.join(&artifact.path), artifact))
    }

    /// What is booted where nothing else is asked for, as it should be.
    ///
    /// # Errors
    /// It does not have it.
    pub fn boot_file(&self, kind: Kind, entry: Entry) -> Result<BootFile, InstallationError> {
        let is_it = |artifact: &Artifact| match (kind, artifact.kind) {
            (Kind::Kernel, manifest::Kind::Kernel) => artifact.origin.name == variant(entry),
            (Kind::Initfs, manifest::Kind::Initfs) => true,
            _ => false,
        };
        let found = self.artifacts().find(|(_, artifact)| is_it(artifact));
        let (path, artifact) = found.ok_or(match kind {
            Kind::Kernel => InstallationError::Kernel(variant(entry)),
            Kind::Initfs => InstallationError::None,
        })?;
        let sha256 = artifact.origin.sha256.clone();
        Ok(BootFile { path, sha256 })
    }
}
