//! Directories of the cache that one build at a time may change.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Error;
use crate::progress::Progress;

/// Creates `directory` and locks it, by the empty file `lock` in it, for as long as the file that is returned, or a
/// copy of it in another process, is open. Waits for whoever has the lock, and says so.
pub(super) fn lock(directory: &Path, progress: &Progress) -> Result<File, Error> {
    let path = directory.join("lock");
    std::fs::create_dir_all(directory).map_err(|source| Error::write(directory, source))?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(|source| Error::write(&path, source))?;
    let mut waiting = None;
    let mut how = FlockOperation::NonBlockingLockExclusive;
    loop {
        match flock(&file, how) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => {
                let what = format!("Waiting for another build in {}", directory.display());
                waiting.get_or_insert_with(|| progress.step(what));
                how = FlockOperation::LockExclusive;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::write(&path, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn the_second_waits_for_the_first() {
        let folder = Folder::new("kernel-lock");
        let directory = folder.path().join("build/it");
        let first = lock(&directory, &Progress::silent()).unwrap();
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lock(&directory, &Progress::silent()).unwrap();
                assert!(released.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(50));
            released.store(true, Ordering::SeqCst);
            drop(first);
        });
    }
}
