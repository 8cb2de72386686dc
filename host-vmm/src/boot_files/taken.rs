//! Kernels and initfs that users bring, as files of our own.
//!
//! An emulator maps what it boots: a file that is written to meanwhile changes under the machine. So what a user names is
//! copied, once, and only the copy is booted:
//!
//! ```text
//! ROOT/kernels/<sha256>/vmlinux
//! ROOT/initfs/<sha256>/initfs.cpio
//! ```
//!
//! A copy appears under its hash whole or not at all, and goes when no container refers to it any more: with the next
//! command that sweeps. Whoever takes a file holds `lock` in the directory, shared, until a container refers to the
//! copy; whoever collects holds it alone. What a crash leaves has a temporary name or an unused hash, and is collected.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io::{self, Read, Seek},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use imagebuilder::{atomic, hashes::Hashes, sha256};
use rustix::fs::{FlockOperation, flock};

use super::{BootFile, Kind};
use crate::{container::directory::open_lock, paths::Paths};

/// The largest file that is taken, in bytes: some four times a kernel with all that a debugger wants.
const MAX_SIZE: u64 = 2 << 30;

/// How long the lock is waited for. Whoever collects holds it for as long as it takes to remove a few files.
const PATIENCE: Duration = Duration::from_secs(10);

/// All that were taken below one root.
#[derive(Clone, Debug)]
pub struct TakenFiles {
    root: PathBuf,
    hashes: Hashes,
}

/// Keeps a file that was taken from being collected before a container refers to it.
#[derive(Debug)]
pub struct Guard {
    _lock: File,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It cannot be read.
    #[error("Cannot read the {} {}", .kind.name(), .path.display())]
    Read {
        /// What it is.
        kind: Kind,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is larger than anything that boots.
    #[error("The {} {} has more than {} GiB, and none is as large as that; name another file", .kind.name(), .path.display(), MAX_SIZE >> 30)]
    TooLarge {
        /// What it is.
        kind: Kind,
        /// Where.
        path: PathBuf,
    },
    /// It cannot be copied.
    #[error("Cannot copy the {} {} into {}", .kind.name(), .path.display(), .directory.display())]
    Copy {
        /// What it is.
        kind: Kind,
        /// Where.
        path: PathBuf,
        /// Where it would be kept.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The place for it cannot be used.
    #[error("Cannot keep a {} in {}", .kind.name(), .directory.display())]
    Store {
        /// What it would be.
        kind: Kind,
        /// Where.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl TakeError {
    /// Whether it is what is kept that is the matter, not the user's file.
    #[must_use]
    pub fn is_about_root(&self) -> bool {
        matches!(self, Self::Copy { .. } | Self::Store { .. })
    }
}

impl TakenFiles {
    /// Those below the root of `paths`. Nothing is created yet.
    #[must_use]
    pub fn open(paths: &Paths) -> Self {
        Self {
            root: paths.root().to_owned(),
            hashes: Hashes::new(paths.hashes()),
        }
    }

    /// Takes the file at `source`, unless the same is here. It stays as long as the guard is held, or a container refers
    /// to it.
    ///
    /// # Errors
    /// [`TakeError`]. Nothing is left then but what the next [`collect`](Self::collect) removes.
    pub fn take(&self, kind: Kind, source: &Path) -> Result<(BootFile, Guard), TakeError> {
        let unreadable = |error| TakeError::Read {
            kind,
            path: source.to_owned(),
            source: error,
        };
        let guard = self.guard(kind)?;
        let mut file = File::open(source).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.len() > MAX_SIZE {
            let path = source.to_owned();
            return Err(TakeError::TooLarge { kind, path });
        }
        let mut sha256 = sha256::of_reader((&file).take(MAX_SIZE)).map_err(unreadable)?;
        if !self.has(kind, &sha256) {
            file.rewind().map_err(unreadable)?;
            // If it has just been written to, it is the copy that counts.
            sha256 = self.copy(kind, &file).map_err(|error| TakeError::Copy {
                kind,
                path: source.to_owned(),
                directory: self.directory(kind),
                source: error,
            })?;
        }
        let path = self.path(kind, &sha256);
        Ok((BootFile { path, sha256 }, guard))
    }

    /// Removes what no container refers to. `needed` gives the hashes that containers refer to, or `None` where that
    /// cannot be told. Whatever goes wrong is left for the next time.
    pub fn collect(&self, needed: impl Fn() -> Option<HashSet<String>>) {
        for kind in Kind::ALL {
            let directory = self.directory(kind);
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let names: Vec<_> = entries
                .map(|entry| entry.file_name())
                .filter(|name| name != "lock")
                .collect();
            if names.is_empty() {
                continue;
            }
            // Whoever has it is about to make a container, or collects.
            let Ok(lock) = open_lock(&directory.join("lock")) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let Some(needed) = needed() else {
                return;
            };
            for name in names {
                let unused = name
                    .to_str()
                    .is_some_and(|name| sha256::is_hash(name) && !needed.contains(name));
                if unused {
                    let _ = fs::remove_dir_all(directory.join(name));
                }
            }
            let _ = atomic::sweep(&directory);
        }
    }

    /// Every file that is here, with the hash that it should have.
    #[must_use]
    pub fn list(&self, kind: Kind) -> Vec<BootFile> {
        let entries = fs::read_dir(self.directory(kind)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut hashes: Vec<String> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| sha256::is_hash(name))
            .collect();
        hashes.sort();
        let file = |sha256: String| BootFile {
            path: self.path(kind, &sha256),
            sha256,
        };
        hashes.into_iter().map(file).collect()
    }

    /// Whether a file of this hash is here, and still has it.
    fn has(&self, kind: Kind, sha256: &str) -> bool {
        let path = self.path(kind, sha256);
        match self.hashes.get(&path) {
            Ok(found) if found == sha256 => true,
            Ok(_) => {
                tracing::warn!("{} was damaged, and is made anew", path.display());
                false
            }
            Err(_) => false,
        }
    }

    fn copy(&self, kind: Kind, file: &File) -> io::Result<String> {
        let directory = self.directory(kind);
        let name = file_name(kind);
        let mode = match kind {
            // It may be a program, which is run as nobody. The directories keep everybody else out.
            Kind::Kernel => 0o555,
            // There may be secrets in it.
            Kind::Initfs => 0o400,
        };
        let mut writer = atomic::Writer::create_with_mode(&directory.join(name), mode)?;
        let sha256 = sha256::copy(file.take(MAX_SIZE), &mut writer)?;
        let home = directory.join(&sha256);
        match DirBuilder::new().mode(0o700).create(&home) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        writer.commit_as(&home.join(name))?;
        atomic::sync_directory(&directory)?;
        Ok(sha256)
    }

    fn guard(&self, kind: Kind) -> Result<Guard, TakeError> {
        let directory = self.directory(kind);
        let lock = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&self.root)?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)?;
            let file = open_lock(&directory.join("lock"))?;
            let deadline = Instant::now() + PATIENCE;
            loop {
                match flock(&file, FlockOperation::NonBlockingLockShared) {
                    Ok(()) => return Ok(Guard { _lock: file }),
                    Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                        // A lock cannot be waited for with a deadline.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "another command has had its lock for too long; try again",
                        ));
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        lock().map_err(|source| TakeError::Store {
            kind,
            directory: self.directory(kind),
            source,
        })
    }

    fn path(&self, kind: Kind, sha256: &str) -> PathBuf {
        self.directory(kind).join(sha256).join(file_name(kind))
    }

    fn directory(&self, kind: Kind) -> PathBuf {
        self.root.join(match kind {
            Kind::Kernel => "kernels",
            Kind::Initfs => "initfs",
        })
    }
}

const fn file_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Kernel => "vmlinux",
        Kind::Initfs => "initfs.cpio",
    }
}

#[cfg(test)]
#[path = "taken_tests.rs"]
mod tests;
