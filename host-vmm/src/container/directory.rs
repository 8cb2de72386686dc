//! One container's directory, and the lock that says who runs it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    spec::ContainerSpec,
    state::{self, Durability},
    store::StoreError,
};

/// How long a supervisor that was told to end its container may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// One container's directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// The right to run a container, or to remove it. Whoever inherits the descriptor has it, too.
#[derive(Debug)]
pub struct Lock(File);

impl Directory {
    /// The directory `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The [`ContainerSpec`].
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The [`State`].
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// What the container has written.
    #[must_use]
    pub fn writable_layer(&self) -> PathBuf {
        self.path.join("rw.ext4")
    }

    /// What the guest's kernel has said.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// Removes all of it, as far as that is possible: the rest is swept up later.
    pub fn delete(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// Takes the lock, unless somebody has it.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn lock(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.path.join("lock");
        let lock = || {
            let file = open_lock(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(Lock(file))),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(errno) => Err(errno.into()),
            }
        };
        lock().map_err(StoreError::disk("lock", &path))
    }

    /// Takes the lock as soon as nobody has it any more.
    ///
    /// # Errors
    /// `TimedOut` if somebody keeps it.
    pub fn wait_for_lock(&self) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                return Err(StoreError::disk("lock", &self.path)(
                    io::ErrorKind::TimedOut.into(),
                ));
            }
            // A lock cannot be waited for with a deadline.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes over the lock that whoever started this process had, and passed on as `fd`.
    ///
    /// # Errors
    /// `InvalidInput` if it is anything else, and what taking it gives: `WouldBlock` if somebody else has it.
    pub fn inherit_lock(&self, fd: OwnedFd) -> io::Result<Lock> {
        let inherited = File::from(fd);
        let (is, ought) = (inherited.metadata()?, self.path.join("lock").metadata()?);
        if (is.dev(), is.ino()) != (ought.dev(), ought.ino()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Taking what one has changes nothing.
        flock(&inherited, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Lock(inherited))
    }

    /// Whether somebody has the lock.
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.path.join("lock")) else {
            return false;
        };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Whether it is a container that stays after its end.
    pub fn is_kept(&self) -> bool {
        let hidden = self
            .path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden
            // What cannot be read may be what somebody wants back.
            && !matches!(
                state::read::<ContainerSpec>(&self.config()),
                Ok(Some(spec)) if spec.auto_remove
            )
    }

    /// Makes the directory and takes its lock.
    ///
    /// # Errors
    /// The disk refuses; what has been made is left.
    pub fn create(&self) -> Result<Lock, StoreError> {
        DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .map_err(StoreError::disk("create", &self.path))?;
        self.lock()?
            .ok_or_else(|| StoreError::disk("lock", &self.path)(io::ErrorKind::WouldBlock.into()))
    }

    /// Writes down what the container is.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn describe(&self, spec: &ContainerSpec) -> Result<(), StoreError> {
        state::write(&self.config(), spec, durability(spec))
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens a file to be locked, which nobody else may read.
///
/// # Errors
/// Those of `open(2)`.
pub fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// What becomes of a container's files in a power cut.
#[must_use]
pub fn durability(spec: &ContainerSpec) -> Durability {
    match spec.auto_remove {
        true => Durability::Fleeting,
        false => Durability::Synced,
    }
}
