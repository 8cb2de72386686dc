#![allow(clippy::unwrap_used)]

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A root of its own with a user's file beside it, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmm-taken-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn taken(&self) -> TakenFiles {
        TakenFiles::open(&Paths::find(Some(&self.0.join("root")), None).unwrap())
    }

    fn source(&self, content: &str) -> PathBuf {
        let path = self.0.join("source");
        fs::write(&path, content).unwrap();
        path
    }

    /// What is kept of kernels.
    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("root/kernels")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn nobody() -> Option<HashSet<String>> {
    Some(HashSet::new())
}

#[test]
fn a_file_is_copied_under_its_hash_and_not_shared_with_its_owner() {
    let folder = Folder::new();
    let source = folder.source("a kernel");
    let (file, _guard) = folder.taken().take(Kind::Kernel, &source).unwrap();
    assert_eq!(file.sha256, sha256::of("a kernel"));
    let home = folder.0.join("root/kernels").join(&file.sha256);
    assert_eq!(file.path, home.join("vmlinux"));
    assert_eq!(fs::read(&file.path).unwrap(), b"a kernel");
    let metadata = file.path.metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.mode() & 0o7777), (1, 0o555));
    for directory in [&home, &folder.0.join("root/kernels")] {
        let mode = directory.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", directory.display());
    }

    // Its owner changes it, and has another kernel then.
    let changed = folder.source("another");
    let (other, _guard) = folder.taken().take(Kind::Kernel, &changed).unwrap();
    assert_eq!(other.sha256, sha256::of("another"));
    assert_eq!(fs::read(&file.path).unwrap(), b"a kernel");
    // A kernel is no initfs.
    let (initfs, _guard) = folder.taken().take(Kind::Initfs, &changed).unwrap();
    assert_eq!(initfs.sha256, other.sha256);
    assert_ne!(initfs.path, other.path);
    let mode = initfs.path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o400, "there may be secrets in it");
}

#[test]
fn the_same_file_is_kept_once_whoever_takes_it_and_however_many_at_once() {
    let folder = Folder::new();
    let source = folder.source(&"x".repeat(1 << 20));
    let all: Vec<BootFile> = std::thread::scope(|scope| {
        let take = || folder.taken().take(Kind::Kernel, &source).unwrap().0;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect()
    });
    assert!(all.iter().all(|file| *file == all[0]));
    assert_eq!(folder.kept(), [all[0].sha256.clone()]);
    let inode = all[0].path.metadata().unwrap().ino();
    folder.taken().take(Kind::Kernel, &source).unwrap();
    assert_eq!(all[0].path.metadata().unwrap().ino(), inode);
}

#[test]
fn nothing_is_collected_from_under_whoever_takes_it() {
    let folder = Folder::new();
    let source = folder.source("a kernel");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let (file, _guard) = folder.taken().take(Kind::Kernel, &source).unwrap();
                    assert_eq!(fs::read(&file.path).unwrap(), b"a kernel");
                }
            });
            scope.spawn(|| (0..200).for_each(|_| folder.taken().collect(nobody)));
        }
    });
    folder.taken().collect(nobody);
    assert_eq!(folder.kept(), Vec::<String>::new());
}

#[test]
fn what_a_crash_leaves_is_collected() {
    let folder = Folder::new();
    let source = folder.source("a kernel");
    let (file, guard) = folder.taken().take(Kind::Kernel, &source).unwrap();
    let kernels = folder.0.join("root/kernels");
    // A copy that was not finished, and one that had a directory but no name in it yet.
    fs::write(kernels.join(".tmp-1-0"), "a ker").unwrap();
    fs::create_dir(kernels.join(sha256::of("b"))).unwrap();
    folder.taken().collect(nobody);
    assert_eq!(folder.kept().len(), 3);
    drop(guard);
    let needed = || Some(HashSet::from([file.sha256.clone()]));
    folder.taken().collect(needed);
    assert_eq!(folder.kept(), std::slice::from_ref(&file.sha256));
    folder.taken().collect(|| None);
    assert!(file.path.exists());
    folder.taken().collect(nobody);
    assert_eq!(folder.kept(), Vec::<String>::new());
}

#[test]
fn a_copy_that_was_damaged_is_not_booted() {
    let folder = Folder::new();
    let source = folder.source("a kernel");
    let (file, _guard) = folder.taken().take(Kind::Kernel, &source).unwrap();
    fs::set_permissions(&file.path, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&file.path, "a kornel").unwrap();
    let (again, _guard) = folder.taken().take(Kind::Kernel, &source).unwrap();
    assert_eq!(again, file);
    assert_eq!(fs::read(&file.path).unwrap(), b"a kernel");
}

#[test]
fn what_cannot_be_taken_is_named_and_leaves_nothing() {
    let folder = Folder::new();
    let taken = folder.taken();
    let missing = folder.0.join("missing");
    let error = taken.take(Kind::Kernel, &missing).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");

    let large = folder.0.join("large");
    File::create(&large).unwrap().set_len(MAX_SIZE + 1).unwrap();
    let error = taken.take(Kind::Kernel, &large).unwrap_err();
    assert!(matches!(error, TakeError::TooLarge { .. }), "{error}");
    assert_eq!(folder.kept(), Vec::<String>::new());

    let beside = Paths::find(Some(&folder.source("no directory")), None).unwrap();
    let error = TakenFiles::open(&beside).take(Kind::Initfs, &large);
    assert!(matches!(error, Err(TakeError::Store { .. })), "{error:?}");
}
