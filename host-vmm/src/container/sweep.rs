//! What crashes have left: directories that nobody finished or removed, names and sockets of containers that are no more.

use std::{collections::HashSet, ffi::OsStr, fs, time::Duration};

use super::{
    directory::{Directory, Lock},
    spec::ContainerSpec,
    state,
    store::{Containers, NEW, REMOVED, is_id, is_short_id},
};

/// How long others that are making containers are waited for. Another time will do.
const PATIENCE: Duration = Duration::from_secs(1);

impl Containers {
    /// Removes what crashes have left, and what no container needs. Whatever goes wrong, or is in somebody else's hands, is
    /// left for the next time.
    pub fn sweep(&self) {
        self.sweep_containers();
        self.collect_boot_files();
    }

    fn sweep_containers(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        // Whoever makes a container holds this until the container has its own lock.
        let Ok(guard) = self.lock(PATIENCE) else {
            return;
        };
        let found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| self.abandoned(&entry))
            .collect();
        self.sweep_names();
        self.sweep_sockets();
        drop(guard);
        for (directory, _lock) in found {
            directory.delete();
        }
    }

    /// What a crash has left, out of the way of others, and its lock.
    fn abandoned(&self, entry: &fs::DirEntry) -> Option<(Directory, Lock)> {
        let name = entry.file_name();
        let directory = Directory::new(entry.path());
        let is_ours = name.to_str().is_some_and(|name| {
            [NEW, REMOVED].iter().any(|prefix| name.starts_with(prefix)) || is_id(name)
        });
        if !is_ours || directory.is_kept() {
            return None;
        }
        let lock = directory.lock().ok()??;
        match state::read::<ContainerSpec>(&directory.config()) {
            Ok(Some(spec)) if name == OsStr::new(&spec.id) => Some((self.hide(&spec).ok()?, lock)),
            _ => Some((directory, lock)),
        }
    }

    /// Removes the kernels and initfs that users have brought and no container needs any more.
    pub fn collect_boot_files(&self) {
        self.taken.collect(|| {
            let mut needed = HashSet::new();
            for id in self.ids().ok()? {
                // What cannot be read may be what somebody wants back, with all that it needs.
                let spec: Option<ContainerSpec> = state::read(&self.at(&id).config()).ok()?;
                let machine = spec.map(|spec| spec.machine);
                needed.extend(
                    machine
                        .into_iter()
                        .flat_map(|machine| [machine.kernel.sha256, machine.initfs.sha256]),
                );
            }
            Some(needed)
        });
    }

    /// Removes names whose containers are no more.
    fn sweep_names(&self) {
        let entries = fs::read_dir(self.directory.join("names"));
        for entry in entries.into_iter().flatten().flatten() {
            let owner = entry
                .file_name()
                .into_string()
                .map(|name| self.owner_of(&name));
            if owner == Ok(None) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the sockets of supervisors that are no more.
    fn sweep_sockets(&self) {
        let (Ok(entries), Ok(ids)) = (fs::read_dir(&self.run), self.ids()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(short) = name.to_str().filter(|name| is_short_id(name)) else {
                continue;
            };
            let alive = ids
                .iter()
                .filter(|id| id.starts_with(short))
                .any(|id| self.at(id).is_locked());
            if !alive {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
