//! What changes a store, and what keeps two such changes apart.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;

use super::disk::Names;
use super::{Error, Store, Wanted};
use crate::atomic;
use crate::oci::Digest;
use crate::reference::Reference;

/// How long the lock is waited for. It is held for as long as a few names are changed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked for: `flock(2)` waits for ever or not at all.
const RETRY: Duration = Duration::from_millis(10);

/// The names of directories that are being filled or emptied.
const TRANSIENT: &str = ".work-";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The names that mean nothing any more, in the form people write.
    pub untagged: Vec<String>,
    /// The image that is gone, unless it has other names.
    pub deleted: Option<String>,
}

impl Store {
    /// Takes a name from its image; the image goes with its last name. An image may also be given by its ID, if it has
    /// one name at most. Containers that have it open keep it until they end; whether others need it, the caller knows.
    ///
    /// # Errors
    /// There is no such image, it has several names, it belongs to a store behind this one, or this one cannot be changed.
    pub fn remove(&self, reference: &str) -> Result<Removed, Error> {
        let wanted = Wanted::parse(reference)?;
        let own = match self.writable {
            true => self.find(&wanted)?,
            false => None,
        };
        let Some(image) = own else {
            let elsewhere = self.resolve(reference)?.is_some();
            let name = reference.to_owned();
            return Err(match elsewhere {
                true => Error::ReadOnly { name },
                false => Error::NotFound { name },
            });
        };
        let lock = self.lock()?;
        let mut names = Names::read(&self.names_path())?;
        let digest: Digest = image.digest.parse().map_err(|_| Error::NotFound {
            name: reference.to_owned(),
        })?;
        let by_name = match &wanted {
            Wanted::Name(name) | Wanted::Id(_, Some(name)) => {
                Some(name.to_string()).filter(|name| names.get(name).is_some())
            }
            Wanted::Id(_, None) => None,
        };
        let mut removed = Removed::default();
        let called = names.of(&digest);
        match (by_name, called.as_slice()) {
            (Some(name), _) => {
                names.remove(&name);
                removed
                    .untagged
                    .extend(name.parse::<Reference>().map(|name| name.familiar()));
            }
            (None, []) => {}
            (None, [only]) => {
                names.remove(&only.parse::<Reference>()?.to_string());
                removed.untagged.push(only.clone());
            }
            (None, _) => {
                return Err(Error::SeveralNames {
                    id: reference.to_owned(),
                    names: called,
                });
            }
        }
        if !removed.untagged.is_empty() {
            names.write(&self.names_path())?;
        }
        if names.of(&digest).is_empty() {
            let work = Work::create(&self.images_path())?;
            let from = self.image_path(&digest);
            let to = work.path.join(digest.hex());
            match std::fs::rename(&from, to) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => renamed.map_err(disk("remove", &from))?,
            }
            removed.deleted = Some(digest.to_string());
            // The image's files go with `work`, and need no lock for that.
            drop(lock);
        }
        Ok(removed)
    }

    /// Puts the images that were built in `work` into the store, and makes the names mean them.
    pub(super) fn publish(
        &self,
        work: &Work,
        built: &[Digest],
        named: &[(Reference, Digest)],
    ) -> Result<(), Error> {
        let _lock = self.lock()?;
        // Before anything is seen: what needs room on the disk.
        let mut names = None;
        if !named.is_empty() {
            let mut new = Names::read(&self.names_path())?;
            for (name, digest) in named {
                if !built.contains(digest) && !self.image_path(digest).exists() {
                    let digest = digest.to_string();
                    return Err(Error::Vanished { digest });
                }
                new.set(name, digest);
            }
            names = new.prepare(&self.names_path())?;
        }
        for digest in built {
            let (from, to) = (work.path.join(digest.hex()), self.image_path(digest));
            match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
                // One of another version, a damaged one, or that of somebody who was quicker: it goes with `work`.
                Err(Errno::EXIST) => renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE),
                renamed => renamed,
            }
            .map_err(std::io::Error::from)
            .map_err(disk("create", &to))?;
        }
        let images = self.images_path();
        atomic::sync_directory(&images).map_err(disk("sync", &images))?;
        match names {
            Some(names) => names.commit().map_err(disk("write", &self.names_path())),
            None => Ok(()),
        }
    }

    /// Creates the store if there is none, removes what crashes have left, and makes a directory to work in.
    pub(super) fn work(&self) -> Result<Work, Error> {
        let images = self.images_path();
        if !self.writable {
            let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
            return Err(disk("write to", &images)(source));
        }
        // Whatever the umask: who can write here chooses what others' containers run.
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&images)
            .map_err(disk("create", &images))?;
        let _lock = self.lock()?;
        sweep(&images)?;
        Work::create(&images)
    }

    /// Keeps all others from changing the store as long as the file is open.
    fn lock(&self) -> Result<File, Error> {
        let path = self.images_path().join("lock");
        let failed = |source| Error::Disk {
            action: "lock",
            path: path.clone(),
            source,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = open(&path, flags, Mode::from_raw_mode(0o600));
        let file: File = file.map_err(|error| failed(error.into()))?.into();
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if began.elapsed() >= PATIENCE => {
                    return Err(Error::Busy {
                        path,
                        seconds: PATIENCE.as_secs(),
                    });
                }
                Err(Errno::WOULDBLOCK) => std::thread::sleep(RETRY),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// A directory of a store in which something is being made or done away with. It goes when this is dropped, or, after
/// a crash, when the next one is made.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) path: PathBuf,
    /// The directory, locked: it tells others that somebody is still at work.
    _lock: File,
}

impl Work {
    /// To be called with the store's lock, so that nobody sweeps the directory before it is locked itself.
    fn create(images: &Path) -> Result<Self, Error> {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = images.join(format!("{TRANSIENT}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o755).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                created => created.map_err(disk("create", &path))?,
            }
            let lock = File::open(&path).and_then(|file| {
                flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                Ok(file)
            });
            let lock = lock.map_err(disk("lock", &path))?;
            return Ok(Self { path, _lock: lock });
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What is left is swept by the next change.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes what nobody works on any more. To be called with the store's lock.
fn sweep(images: &Path) -> Result<(), Error> {
    atomic::sweep(images).map_err(disk("read", images))?;
    for entry in std::fs::read_dir(images).map_err(disk("read", images))? {
        let entry = entry.map_err(disk("read", images))?;
        let is_work = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TRANSIENT.as_bytes());
        let Some(directory) = is_work
            .then(|| File::open(entry.path()))
            .and_then(Result::ok)
        else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Disk {
        action,
        path,
        source,
    }
}
