//! A disk with little room.

use std::path::{Path, PathBuf};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    process::geteuid,
    thread::{UnshareFlags, unshare_unsafe},
};

/// A tmpfs that this thread and the commands it starts see, and nobody else. Dropping it takes it away.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one with `options`, such as `size=16k`, on the directory `path`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn mount(path: &Path, options: &str) -> Self {
        // SAFETY: nothing else in this process shares its file system information with this thread afterwards, and
        // nothing relies on that.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace");
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).expect("mounts of our own");
        std::fs::create_dir_all(path).expect("a directory to mount on");
        let options = std::ffi::CString::new(options).expect("options");
        mount(
            "small",
            path,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .expect("a tmpfs");
        Self(path.to_owned())
    }

    /// Makes it so that nobody can write to it.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn make_read_only(&self) {
        let flags = MountFlags::RDONLY;
        rustix::mount::mount_remount(&self.0, flags, "").expect("a read-only mount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still runs on it goes with the namespace.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Whether this process may mount.
///
/// # Errors
/// That it may not, for people.
pub fn can_mount() -> Result<(), String> {
    match geteuid().is_root() {
        true => Ok(()),
        false => Err("mounting a small disk takes root".to_owned()),
    }
}
