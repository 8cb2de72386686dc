//! The containers on this host, as directories.
//!
//! `containers/<id>/` holds one container: `config.json` (its [`ContainerSpec`]), `state.json` (its [`State`]), `rw.ext4`
//! (what it has written), `console.log`, and `lock`, which is held as long as anybody runs it. `containers/names/<name>`
//! is a link to an id. Whoever creates a container holds `containers/lock` for two moments: until its directory has a
//! lock of its own, and while it gets its name. Whoever is stopped just then (Ctrl-Z can do that) keeps others from
//! creating one, but no container from ending, and the others say so.
//!
//! A directory whose name begins with a dot is being made or removed; with nobody holding its lock it is what a crash
//! has left, and so is a container that should have been removed at its end: [`Containers::sweep`] removes both.

use std::{
    cmp::Reverse,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    directory::{Directory, Lock, open_lock},
    names,
    spec::ContainerSpec,
    state::{self, State, Status},
};
use crate::{
    boot_files::TakenFiles,
    failpoint,
    paths::Paths,
    root::{self, RootError},
};

/// Random names tried before one gets a number.
const ATTEMPTS: u32 = 16;

/// How long a new container waits for others that are being made. Each takes a millisecond or less.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a lock is looked at that somebody has: `flock(2)` waits for ever or not at all.
const RETRY: Duration = Duration::from_millis(1);

pub(super) const NEW: &str = ".new-";
pub(super) const REMOVED: &str = ".removed-";

/// All containers below one root.
#[derive(Clone, Debug)]
pub struct Containers {
    root: PathBuf,
    pub(super) directory: PathBuf,
    /// Where their sockets are.
    pub(super) run: PathBuf,
    /// What users have brought for them to boot from.
    pub(super) taken: TakenFiles,
}

/// A container as it is found on the disk.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where.
    pub directory: Directory,
    /// What it is.
    pub spec: ContainerSpec,
    /// How it fares.
    pub state: State,
    /// Somebody runs it.
    pub alive: bool,
}

/// Why the containers cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A file or directory.
    #[error("Cannot {action} {}", .path.display())]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file does not hold what we write.
    #[error("{} is damaged; remove the directory that it is in, and the container with it", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Somebody else has held the lock for too long.
    #[error(
        "Another vmm has held {} for {seconds} s; it may have been stopped: let it go on, or kill it",
        .path.display()
    )]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A name that is none.
    #[error(
        "{0:?} cannot be a container's name: it takes letters, digits and any of _.- after the first, 2 to 128 of them"
    )]
    BadName(String),
    /// The name is taken.
    #[error(
        "The name {name} is in use by container {id}; remove that one first (vmm rm {name}), or choose another name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// There is no such container.
    #[error("There is no container {0} (vmm ps -a lists all)")]
    NotFound(String),
    /// The start of an ID fits several.
    #[error(
        "{0} is the start of several container IDs; give more of it (vmm ps -a --no-trunc lists all)"
    )]
    Ambiguous(String),
    /// A container that runs is not removed.
    #[error("Container {0} is running; end it first, or kill and remove it with vmm rm -f {0}")]
    Running(String),
}

impl StoreError {
    /// Makes an error of a system call on `path` one of ours.
    pub(crate) fn disk(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk {
            action,
            path,
            source,
        }
    }
}

impl Containers {
    /// The containers at these places. Nothing is created yet.
    #[must_use]
    pub fn open(paths: &Paths) -> Self {
        Self {
            root: paths.root().to_owned(),
            directory: paths.containers(),
            run: paths.run().to_owned(),
            taken: TakenFiles::open(paths),
        }
    }

    /// Creates a container. `build` is told its id and its name, which is `name` or a random one. The lock is that of the
    /// new container.
    ///
    /// # Errors
    /// The name is bad or taken, the disk refuses, or `build` does. Nothing is left then.
    pub fn create<E: From<StoreError>>(
        &self,
        name: Option<&str>,
        build: impl FnOnce(String, String) -> Result<ContainerSpec, E>,
    ) -> Result<(ContainerSpec, Directory, Lock), E> {
        if let Some(name) = name {
            names::check(name)?;
        }
        self.prepare()?;
        let id = random_id().map_err(StoreError::disk("make an ID for", &self.directory))?;
        let spec = build(id.clone(), self.free_name(name)?)?;
        let temporary = Directory::new(self.directory.join(format!("{NEW}{id}")));
        let create = || {
            // Until it is locked it looks like what a crash has left.
            let guard = self.lock(PATIENCE)?;
            let lock = temporary.create()?;
            drop(guard);
            let (spec, directory) = self.publish(&temporary, spec, name.is_some())?;
            Ok::<_, StoreError>((spec, directory, lock))
        };
        let (spec, directory, lock) = create().inspect_err(|_| temporary.delete())?;
        Ok((spec, directory, lock))
    }

    /// Fills a new container's directory and shows it to everybody, under its name: that which it has, or another if
    /// nobody `asked` for that and it has been taken meanwhile.
    fn publish(
        &self,
        temporary: &Directory,
        mut spec: ContainerSpec,
        asked: bool,
    ) -> Result<(ContainerSpec, Directory), StoreError> {
        temporary.describe(&spec)?;
        failpoint::reach("prepare");
        let _guard = self.lock(PATIENCE)?;
        let name = self.free_name(asked.then_some(&spec.name))?;
        if name != spec.name {
            spec.name = name;
            temporary.describe(&spec)?;
        }
        self.clear(&spec.name)?;
        let directory = self.at(&spec.id);
        // The name leads nowhere for a moment. In the other order a crash could leave a container without one.
        let link = self.link(&spec.name);
        std::os::unix::fs::symlink(&spec.id, &link)
            .and_then(|()| fs::rename(temporary.path(), directory.path()))
            .map_err(StoreError::disk("create", directory.path()))?;
        Ok((spec, directory))
    }

    /// The container that `reference` means: a name, an id, or the start of one.
    ///
    /// # Errors
    /// There is none, several fit, or it cannot be read.
    pub fn find(&self, reference: &str) -> Result<Found, StoreError> {
        let not_found = || StoreError::NotFound(reference.to_owned());
        let id = match self.owner_of(reference) {
            Some(id) => id,
            None => {
                let mut ids = self.ids()?;
                ids.retain(|id| !reference.is_empty() && id.starts_with(reference));
                match ids.len() {
                    0 | 1 => ids.pop().ok_or_else(not_found)?,
                    _ => return Err(StoreError::Ambiguous(reference.to_owned())),
                }
            }
        };
        self.read(&id)?.ok_or_else(not_found)
    }

    /// All containers, the newest first. One that cannot be read is left out, with a warning: it must not keep the others
    /// from being seen.
    ///
    /// # Errors
    /// The directory of containers cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for id in self.ids()? {
            match self.read(&id) {
                Ok(one) => found.extend(one),
                Err(error) => tracing::warn!("Left a container out: {error}"),
            }
        }
        found.sort_by_key(|found| Reverse(found.spec.created_ns));
        Ok(found)
    }

    /// Takes a container's name away and hides its directory, at once. What is left to do is
    /// [`Directory::delete`] on what this gives. The caller has the container's lock.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn hide(&self, spec: &ContainerSpec) -> Result<Directory, StoreError> {
        let hidden = Directory::new(self.directory.join(format!("{REMOVED}{}", spec.id)));
        let path = self.directory.join(&spec.id);
        // In this order, nobody else changes the name meanwhile: it is this container's as long as that is there.
        if fs::read_link(self.link(&spec.name)).is_ok_and(|owner| owner == Path::new(&spec.id)) {
            // At worst a link that leads nowhere stays, and counts as free.
            let _ = fs::remove_file(self.link(&spec.name));
        }
        fs::rename(&path, hidden.path()).map_err(StoreError::disk("remove", &path))?;
        Ok(hidden)
    }

    /// The directory of the container with this id.
    #[must_use]
    pub fn at(&self, id: &str) -> Directory {
        Directory::new(self.directory.join(id))
    }

    fn read(&self, id: &str) -> Result<Option<Found>, StoreError> {
        let directory = self.at(id);
        let alive = directory.is_locked();
        let Some(spec) = state::read::<ContainerSpec>(&directory.config())? else {
            return Ok(None);
        };
        if spec.id != id {
            return Err(StoreError::Damaged {
                path: directory.config(),
                source: serde::de::Error::custom("it is another container's"),
            });
        }
        // It only says how the container fares: without it, the container can still be removed.
        let mut state: State = state::read(&directory.state())
            .unwrap_or_else(|error| {
                tracing::warn!("{error}");
                Some(State {
                    status: Status::Exited,
                    error: Some(error.to_string()),
                    ..State::default()
                })
            })
            .unwrap_or_default();
        if !alive && state.status == Status::Running {
            // Its supervisor had no time to say so.
            state.status = Status::Exited;
            state.exit_code = Some(137);
            state
                .error
                .get_or_insert("its supervisor was killed".into());
        }
        Ok(Some(Found {
            directory,
            spec,
            state,
            alive,
        }))
    }

    /// Makes the directories.
    fn prepare(&self) -> Result<(), StoreError> {
        let names = self.directory.join("names");
        // It is made last.
        if names.is_dir() {
            return Ok(());
        }
        // First: there must be nothing that does not say how it is to be read.
        root::claim(&self.root)?;
        // A container's files are its owner's alone.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&names)
            .map_err(StoreError::disk("create", &names))
    }

    /// The lock of all containers, once nobody has it.
    pub(super) fn lock(&self, patience: Duration) -> Result<File, StoreError> {
        let path = self.directory.join("lock");
        let failed = StoreError::disk("lock", &path);
        let deadline = Instant::now() + patience;
        let file = match open_lock(&path) {
            Ok(file) => file,
            Err(error) => return Err(failed(error)),
        };
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
            if Instant::now() > deadline {
                return Err(StoreError::Busy {
                    path,
                    seconds: patience.as_secs(),
                });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// `name` if no container has it, or a random one that none has.
    fn free_name(&self, name: Option<&str>) -> Result<String, StoreError> {
        if let Some(name) = name {
            return match self.owner_of(name) {
                Some(id) => Err(StoreError::NameTaken {
                    name: name.to_owned(),
                    id: super::spec::short_id(&id).to_owned(),
                }),
                None => Ok(name.to_owned()),
            };
        }
        let random = || names::random().map_err(StoreError::disk("name", &self.directory));
        for _ in 0..ATTEMPTS {
            let name = random()?;
            if self.owner_of(&name).is_none() {
                return Ok(name);
            }
        }
        for number in 1_u32.. {
            let name = format!("{}{number}", random()?);
            if self.owner_of(&name).is_none() {
                return Ok(name);
            }
        }
        Err(StoreError::NotFound("name".into()))
    }

    /// Removes a link that leads nowhere.
    fn clear(&self, name: &str) -> Result<(), StoreError> {
        let link = self.link(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::disk("remove", &link)(error))
            }
            _ => Ok(()),
        }
    }

    /// The container with this name.
    pub(super) fn owner_of(&self, name: &str) -> Option<String> {
        if names::check(name).is_err() {
            return None;
        }
        let id = fs::read_link(self.link(name)).ok()?.into_os_string();
        let id = id.into_string().ok().filter(|id| is_id(id))?;
        self.directory.join(&id).is_dir().then_some(id)
    }

    fn link(&self, name: &str) -> PathBuf {
        self.directory.join("names").join(name)
    }

    pub(super) fn ids(&self) -> Result<Vec<String>, StoreError> {
        let failed = || StoreError::disk("list", &self.directory);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed()(source)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name();
            ids.extend(name.into_string().ok().filter(|name| is_id(name)));
        }
        Ok(ids)
    }
}

/// Whether `name` is a container's id: 64 hexadecimal digits.
#[must_use]
pub fn is_id(name: &str) -> bool {
    name.len() == 64 && is_hex(name)
}

pub(super) fn is_short_id(name: &str) -> bool {
    name.len() == 12 && is_hex(name)
}

fn is_hex(name: &str) -> bool {
    name.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
