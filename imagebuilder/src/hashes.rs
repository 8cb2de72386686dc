//! The hashes of files that seldom change, remembered by what changes when a file does.
//!
//! A directory holds one small file for each that was hashed: its path, device, inode, size, and times of change, and
//! the hash. As long as all of these are as they were, the hash is, too, and telling that takes a `stat(2)`. Anything
//! that writes to a file moves its time of status change, which nobody can set: restoring size and modification time
//! does not deceive. What a broken disk does to a file moves nothing; only [`Hashes::compute`] sees it.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{atomic, sha256};

/// How old a file's last change must be for its hash to be remembered: one more change in the same tick of the file
/// system's clock would not be seen. Most tick in milliseconds, the slowest in two seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// A directory of remembered hashes. Nothing is lost with it but time.
#[derive(Debug, Clone)]
pub struct Hashes {
    directory: PathBuf,
}

impl Hashes {
    /// Those in `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The SHA-256 of the file at `path`, in hexadecimal digits: what is remembered, or else computed.
    ///
    /// # Errors
    /// The file cannot be read, or changes meanwhile.
    pub fn get(&self, path: &Path) -> io::Result<String> {
        match self.remembered(path)? {
            Some(hash) => Ok(hash),
            None => self.compute(path),
        }
    }

    /// The hash, if the file is as it was when that was computed.
    ///
    /// # Errors
    /// The file is not there.
    pub fn remembered(&self, path: &Path) -> io::Result<Option<String>> {
        let identity = identity(path, &fs::metadata(path)?);
        let known = fs::read(self.entry(path)).ok();
        let hash =
            known.and_then(|known| known.strip_prefix(identity.as_slice()).map(<[u8]>::to_vec));
        let hash = hash.and_then(|hash| String::from_utf8(hash).ok());
        Ok(hash.filter(|hash| sha256::is_hash(hash)))
    }

    /// Reads the file, whatever is remembered of it, and remembers that instead.
    ///
    /// # Errors
    /// The file cannot be read, or changes meanwhile. That nothing can be remembered is no error.
    pub fn compute(&self, path: &Path) -> io::Result<String> {
        let file = File::open(path)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "held against a file's times, which are those of the same clock"
        )]
        let now = SystemTime::now();
        let before = file.metadata()?;
        let hash = sha256::of_reader(&file)?;
        if identity(path, &before) != identity(path, &file.metadata()?) {
            return Err(io::Error::other("it was written to while it was read"));
        }
        if is_settled(&before, now) {
            let _ = self.remember(path, &before, &hash);
        }
        Ok(hash)
    }

    fn remember(&self, path: &Path, metadata: &Metadata, hash: &str) -> io::Result<()> {
        // Whatever the umask: who can write here chooses what is believed.
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)?;
        let text = [identity(path, metadata).as_slice(), hash.as_bytes()].concat();
        // It is made again if it is lost.
        let mut writer = atomic::Writer::create(&self.entry(path))?;
        io::Write::write_all(&mut writer, &text)?;
        writer.commit_unsynced()?;
        self.forget_what_is_gone()
    }

    /// Something is new here once in a long while: time to remove entries whose files are no more.
    fn forget_what_is_gone(&self) -> io::Result<()> {
        atomic::sweep(&self.directory)?;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            if atomic::is_temporary(&entry.file_name()) {
                continue;
            }
            let known = fs::read(entry.path())?;
            let path = known.split(|&byte| byte == b'\0').next().unwrap_or(&known);
            let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
            if matches!(path.try_exists(), Ok(false)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn entry(&self, path: &Path) -> PathBuf {
        self.directory
            .join(&sha256::of(path.as_os_str().as_bytes())[..16])
    }
}

/// What changes when the file does.
fn identity(path: &Path, metadata: &Metadata) -> Vec<u8> {
    let mut identity = path.as_os_str().as_bytes().to_vec();
    let text = format!(
        "\0{} {} {} {}.{} {}.{} ",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    identity.extend(text.bytes());
    identity
}

/// Whether the last change of the file was well before `now`.
fn is_settled(metadata: &Metadata, now: SystemTime) -> bool {
    let (Ok(seconds), Ok(nanoseconds)) = (
        u64::try_from(metadata.ctime()),
        u32::try_from(metadata.ctime_nsec()),
    ) else {
        return false;
    };
    let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    // A change in the future, by a clock that was set back, is none to rely on.
    now.duration_since(changed).is_ok_and(|age| age > SETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    /// A file that was last changed long ago, as far as this test can wait for that.
    fn settled(path: &Path, content: &str) {
        fs::write(path, content).unwrap();
        std::thread::sleep(SETTLED + Duration::from_millis(50));
    }

    /// Makes what is remembered of the only file a lie, by which it is known where a hash comes from.
    fn falsify(hashes: &Hashes) -> String {
        let lie = sha256::of("lie");
        let entry = fs::read_dir(&hashes.directory).unwrap().next().unwrap();
        let entry = entry.unwrap().path();
        let mut text = fs::read(&entry).unwrap();
        text.truncate(text.len() - lie.len());
        text.extend(lie.bytes());
        fs::write(entry, text).unwrap();
        lie
    }

    #[test]
    fn a_hash_is_remembered_until_the_file_changes_or_somebody_wants_to_be_sure() {
        let folder = Folder::new("hashes");
        let file = folder.path().join("file");
        let hashes = Hashes::new(folder.path().join("hashes"));
        settled(&file, "first");
        assert_eq!(hashes.remembered(&file).unwrap(), None);
        assert_eq!(hashes.get(&file).unwrap(), sha256::of("first"));
        let lie = falsify(&hashes);
        assert_eq!(hashes.get(&file).unwrap(), lie);
        assert_eq!(hashes.compute(&file).unwrap(), sha256::of("first"));
        assert_eq!(hashes.get(&file).unwrap(), sha256::of("first"));

        // Of the same size, and as old as it says.
        let modified = file.metadata().unwrap().modified().unwrap();
        fs::write(&file, "other").unwrap();
        let opened = File::options().write(true).open(&file).unwrap();
        opened.set_modified(modified).unwrap();
        assert_eq!(hashes.remembered(&file).unwrap(), None);
        assert_eq!(hashes.get(&file).unwrap(), sha256::of("other"));
    }

    #[test]
    fn what_has_just_changed_is_not_remembered() {
        let folder = Folder::new("hashes-new");
        let file = folder.path().join("file");
        let hashes = Hashes::new(folder.path().join("hashes"));
        fs::write(&file, "new").unwrap();
        assert_eq!(hashes.get(&file).unwrap(), sha256::of("new"));
        assert_eq!(hashes.remembered(&file).unwrap(), None);
    }

    #[test]
    fn files_that_are_gone_are_forgotten() {
        let folder = Folder::new("hashes-gone");
        let path = |name: &str| folder.path().join(name);
        let hashes = Hashes::new(path("hashes"));
        fs::write(path("a"), "a").unwrap();
        settled(&path("b"), "b");
        hashes.get(&path("a")).unwrap();
        fs::remove_file(path("a")).unwrap();
        assert!(hashes.get(&path("a")).is_err());
        hashes.get(&path("b")).unwrap();
        assert_eq!(fs::read_dir(path("hashes")).unwrap().count(), 1);
        assert!(hashes.remembered(&path("b")).unwrap().is_some());
    }

    #[test]
    fn a_place_that_cannot_be_written_costs_nothing_but_time() {
        let folder = Folder::new("hashes-nowhere");
        let file = folder.path().join("file");
        settled(&file, "content");
        let hashes = Hashes::new(file.join("no directory"));
        for _ in 0..2 {
            assert_eq!(hashes.get(&file).unwrap(), sha256::of("content"));
        }
    }
}
