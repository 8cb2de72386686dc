//! The one way this project writes a file that matters: beside its final name, synced, then renamed.
//!
//! Whoever reads the final name sees the old file or the new one, whole, whatever happens in between. A crash can leave
//! a temporary file behind; [`is_temporary`] tells its name, and [`sweep`] removes those that nobody writes any more.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// Temporary files are called `.tmp-<pid>-<number>`.
const PREFIX: &str = ".tmp-";

/// How many names are tried before giving up: each one that is taken was left by a process with our pid.
const ATTEMPTS: u32 = 1000;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Replaces the file at `path` by `bytes`, mode 0644 less the umask.
///
/// # Errors
/// Those of the system calls; the file at `path` is as it was, and nothing is left beside it.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut writer = Writer::create(path)?;
    writer.write_all(bytes)?;
    writer.commit()
}

/// As [`write`], unless the file has these bytes already.
///
/// # Errors
/// As [`write`].
pub fn update(path: &Path, bytes: &[u8]) -> io::Result<()> {
    prepare_update(path, bytes)?.map_or(Ok(()), Writer::commit)
}

/// As [`update`], of a program: mode 0755 less the umask.
///
/// # Errors
/// As [`write`].
pub fn update_program(path: &Path, bytes: &[u8]) -> io::Result<()> {
    prepare(path, bytes, 0o755)?.map_or(Ok(()), Writer::commit)
}

/// What [`update`] writes, to be committed later; `None` if the file has these bytes already.
///
/// # Errors
/// Those of writing.
pub fn prepare_update(path: &Path, bytes: &[u8]) -> io::Result<Option<Writer>> {
    prepare(path, bytes, 0o644)
}

fn prepare(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Option<Writer>> {
    // Who owns a program can execute it.
    let fits = |there: &Metadata| there.mode() & 0o100 >= mode & 0o100;
    let same_size = |there: &Metadata| there.len() == bytes.len() as u64;
    let is_there = std::fs::metadata(path).is_ok_and(|there| same_size(&there) && fits(&there))
        && std::fs::read(path).is_ok_and(|there| there == bytes);
    if is_there {
        return Ok(None);
    }
    let mut writer = Writer::create_with_mode(path, mode)?;
    writer.write_all(bytes)?;
    Ok(Some(writer))
}

/// A file being written, which gets its name by [`commit`](Self::commit). Dropped without it, nothing is left.
#[derive(Debug)]
pub struct Writer {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl Writer {
    /// Creates a temporary file in the directory of `path`, readable and writable, mode 0644 less the umask.
    ///
    /// # Errors
    /// Those of `open(2)`, and `InvalidInput` if `path` ends in no file name.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::create_with_mode(path, 0o644)
    }

    /// As [`create`](Self::create), with the permission bits `mode` less the umask.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        if path.file_name().is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path has no file name",
            ));
        }
        let directory = directory_of(path);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let temporary = directory.join(temporary_name());
            match open(&temporary, flags, Mode::from_raw_mode(mode)) {
                Ok(descriptor) => {
                    let writer = Self {
                        file: descriptor.into(),
                        temporary,
                        path: path.to_path_buf(),
                        committed: false,
                    };
                    // Held as long as the file is open: it tells `sweep` that somebody still writes. Where a file
                    // system has no locks, nothing is swept either.
                    let _ = flock(&writer.file, FlockOperation::NonBlockingLockShared);
                    return Ok(writer);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "every temporary name is taken",
        ))
    }

    /// The file, for what `Write` and `Seek` do not offer.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file, gives it its name, and syncs the directory.
    ///
    /// # Errors
    /// Those of `fsync(2)` and `rename(2)`; then the old file is in place and the temporary one removed. An error of
    /// the last step, the directory's sync, says that the rename may not survive a power cut.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename()?;
        sync_directory(directory_of(&self.path))
    }

    /// As [`commit`](Self::commit), with a name that was not known before, in the same file system.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_as(mut self, path: &Path) -> io::Result<()> {
        self.path = path.to_path_buf();
        self.commit()
    }

    /// Gives the file its name, and leaves it to the kernel when it reaches the disk: for what nobody will want after a
    /// power cut.
    ///
    /// # Errors
    /// Those of `rename(2)`; then the old file is in place and the temporary one removed.
    pub fn commit_unsynced(mut self) -> io::Result<()> {
        self.rename()
    }

    fn rename(&mut self) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Writer {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; `sweep` finds the file later.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the names in `directory` safe against a power cut.
///
/// # Errors
/// Those of `open(2)` and `fsync(2)`.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Whether a file of this name is a temporary one of this module.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Removes the temporary files that writers which died have left in `directory`.
///
/// # Errors
/// Those of reading the directory. What cannot be removed is left.
pub fn sweep(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !is_temporary(&entry.file_name()) || !entry.file_type()?.is_file() {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn temporary_name() -> OsString {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", std::process::id()).into()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it() {
        let folder = Folder::new("atomic-replace");
        let path = folder.path().join("state.json");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(folder.names(), ["state.json"]);
    }

    #[test]
    fn a_file_is_updated_only_where_it_differs() {
        use std::os::unix::fs::MetadataExt;

        let folder = Folder::new("atomic-update");
        let path = folder.path().join("file");
        let inode = || std::fs::metadata(&path).unwrap().ino();
        update(&path, b"first").unwrap();
        let first = inode();
        update(&path, b"first").unwrap();
        assert_eq!(inode(), first);
        for (there, wanted) in [("fir", "first"), ("other", "first")] {
            std::fs::write(&path, there).unwrap();
            update(&path, wanted.as_bytes()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), wanted.as_bytes());
        }
        assert_eq!(folder.names(), ["file"]);
    }

    #[test]
    fn a_dropped_writer_leaves_the_old_file_and_nothing_else() {
        let folder = Folder::new("atomic-drop");
        let path = folder.path().join("state.json");
        write(&path, b"old").unwrap();
        let mut writer = Writer::create(&path).unwrap();
        writer.write_all(b"half of the n").unwrap();
        assert_eq!(folder.names().len(), 2);
        drop(writer);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(folder.names(), ["state.json"]);
    }

    #[test]
    fn a_failed_rename_removes_the_temporary_file() {
        let folder = Folder::new("atomic-rename");
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x").is_err());
        assert_eq!(folder.names(), ["taken"]);
    }

    #[test]
    fn the_mode_is_the_one_asked_for() {
        let folder = Folder::new("atomic-mode");
        let path = folder.path().join("secret");
        let writer = Writer::create_with_mode(&path, 0o600).unwrap();
        writer.commit().unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_program_is_one_whatever_was_there() {
        let folder = Folder::new("atomic-program");
        let path = folder.path().join("program");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o100;
        update(&path, b"x").unwrap();
        assert_eq!(mode(), 0);
        update_program(&path, b"x").unwrap();
        assert_eq!(mode(), 0o100);
        let inode = std::fs::metadata(&path).unwrap().ino();
        update_program(&path, b"x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        for path in ["/", "..", ""] {
            let error = write(Path::new(path), b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
    }

    #[test]
    fn sweeping_takes_what_the_dead_left_and_spares_the_living() {
        let folder = Folder::new("atomic-sweep");
        let path = folder.path().join("state.json");
        std::fs::write(folder.path().join(".tmp-1-0"), b"left").unwrap();
        std::fs::write(folder.path().join("other"), b"kept").unwrap();
        let writer = Writer::create(&path).unwrap();
        sweep(folder.path()).unwrap();
        writer.commit().unwrap();
        assert_eq!(folder.names(), ["other", "state.json"]);
    }
}
