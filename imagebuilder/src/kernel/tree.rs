//! Unpacked sources: each is 1.7 GB, and every change of a patch makes another one. Those that were used last are kept.

use std::fs::{File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How many there are when a new one has come: those of the kernels that are built in turn, and one from before a change.
const KEPT: usize = 4;

/// The file of a tree that is locked by whoever uses it, and was written to when it was last used.
const USED: &str = ".used";

/// An unpacked source. Nobody removes it as long as this is there.
#[derive(Debug)]
pub(super) struct Tree {
    directory: PathBuf,
    _used: File,
}

impl Tree {
    /// The tree in `directory`; `None` if it is not there. Waits for whoever removes it just now.
    pub(super) fn open(directory: &Path) -> io::Result<Option<Self>> {
        let Some(used) = open_used(directory)? else {
            return Ok(None);
        };
        lock(&used, FlockOperation::LockShared)?;
        // It may have been removed while we waited.
        if !directory.exists() {
            return Ok(None);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "only for the order in which trees go"
        )]
        let now = SystemTime::now();
        let _ = used.set_times(FileTimes::new().set_modified(now));
        Ok(Some(Self {
            directory: directory.to_path_buf(),
            _used: used,
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Removes those that lie beside this one and have not been used for longest, unless somebody uses them. What goes is moved to
    /// `away` first. Nobody else may remove any at the same time.
    pub(super) fn remove_others(&self, away: &Path) -> io::Result<()> {
        let Some(sources) = self.directory.parent() else {
            return Ok(());
        };
        let mut others = Vec::new();
        for entry in sources.read_dir()? {
            let path = entry?.path();
            if path.is_dir() && path != self.directory && path != away {
                let used = path.join(USED).metadata().or_else(|_| path.metadata());
                others.push((used?.modified()?, path));
            }
        }
        others.sort();
        let too_many = (others.len() + 1).saturating_sub(KEPT);
        for (_, path) in others.into_iter().take(too_many) {
            let Some(used) = open_used(&path)? else {
                continue;
            };
            match lock(&used, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    std::fs::rename(&path, away)?;
                    std::fs::remove_dir_all(away)?;
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// `None` if there is no such tree.
fn open_used(directory: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    match options.open(directory.join(USED)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock(file: &File, how: FlockOperation) -> Result<(), Errno> {
    loop {
        match flock(file, how) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use std::time::Duration;

    #[test]
    fn those_go_that_nobody_uses_and_that_were_used_before_the_others() {
        let folder = Folder::new("kernel-trees");
        let tree = |name: &str| folder.path().join(name);
        for (age, name) in ["new", "b", "c", "d", "used", "a"].iter().enumerate() {
            std::fs::create_dir(tree(name)).unwrap();
            let used = open_used(&tree(name)).unwrap().unwrap();
            let then = SystemTime::UNIX_EPOCH - Duration::from_secs(60 * age as u64);
            used.set_times(FileTimes::new().set_modified(then)).unwrap();
        }
        let by_another = open_used(&tree("used")).unwrap().unwrap();
        lock(&by_another, FlockOperation::LockShared).unwrap();
        std::fs::write(tree("lock"), "").unwrap();

        let new = Tree::open(&tree("new")).unwrap().unwrap();
        new.remove_others(&tree("away")).unwrap();
        let left = |name: &&str| tree(name).exists();
        let names = ["new", "b", "c", "d", "used", "a", "lock", "away"];
        let left: Vec<_> = names.into_iter().filter(left).collect();
        assert_eq!(left, ["new", "b", "c", "d", "used", "lock"]);
    }

    #[test]
    fn one_that_is_not_there_is_none() {
        let folder = Folder::new("kernel-no-tree");
        assert!(Tree::open(&folder.path().join("x")).unwrap().is_none());
    }
}
