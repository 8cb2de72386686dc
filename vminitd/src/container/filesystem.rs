//! What the container sees as its file systems, made by the container's child.
//!
//! The child enters the image's root first and mounts afterwards: from then on every path, whatever links the
//! image has put in its way, leads to something of the container's own.

use std::os::fd::OwnedFd;

use agent_protocol::{Boot, Mount, Stage};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, open, symlinkat, unlinkat},
    io::{self, Errno},
    mount::{
        MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, mount_remount,
        move_mount, open_tree, unmount,
    },
    process::{chdir, pivot_root},
};

use crate::{
    failure::{During, Failure, shown},
    root::{FILES, ROOT},
    system::TERMINALS,
};

/// A file system of its own in every container.
struct Own {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
}

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const READ_ONLY: MountFlags = QUIET.union(MountFlags::RDONLY);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::STRICTATIME);

/// Docker's, in this order.
const OWN: [Own; 6] = [
    Own {
        kind: "proc",
        target: "/proc",
        flags: QUIET,
        data: None,
    },
    Own {
        kind: "sysfs",
        target: "/sys",
        flags: READ_ONLY,
        data: None,
    },
    Own {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: READ_ONLY,
        data: None,
    },
    Own {
        kind: "tmpfs",
        target: "/dev",
        flags: DEVICES,
        data: Some(c"mode=0755,size=65536k"),
    },
    Own {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: QUIET,
        data: None,
    },
    Own {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: QUIET,
        data: Some(c"mode=1777,size=65536k"),
    },
];

/// Character devices in `/dev`: name, major and minor number.
const NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links in `/dev`: name and target.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What tells about or acts on the machine as a whole, and is hidden as in Docker's containers.
const HIDDEN: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What may be read but not written.
const PROTECTED: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Makes [`ROOT`] this process's root, with everything in it that a container expects. `terminal` is the number
/// of the pseudo-terminal that is to be `/dev/console`.
///
/// # Errors
/// What could not be mounted or made.
pub fn enter(boot: &Boot, terminal: Option<u32>) -> Result<(), Failure> {
    let terminals = detached(TERMINALS).during(Stage::Mount, "/dev/pts")?;
    let files = FILES.map(|path| detached(path).during(Stage::Mount, path));
    enter_root().during(Stage::Mount, "the container's root on /")?;

    for own in &OWN {
        mount_own(own)?;
        if own.target == "/dev" {
            populate_dev(&terminals, terminal)?;
        }
    }
    for mount in &boot.mounts {
        mount_wanted(mount)?;
    }
    for (path, file) in FILES.into_iter().zip(files) {
        attach_file(path, &file?, boot.root.read_only).during(Stage::Mount, path)?;
    }
    for path in HIDDEN {
        hide(path).during(Stage::Mount, path)?;
    }
    for path in PROTECTED {
        protect(path).during(Stage::Mount, path)?;
    }
    if boot.root.read_only {
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "").during(Stage::Mount, "/")?;
    }
    Ok(())
}

/// A mount of PID 1's tree, or a file in it, as something that can be mounted elsewhere.
fn detached(path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags)
}

/// Mounts what [`detached`] gave.
fn attach(tree: &OwnedFd, target: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(tree, "", CWD, target, flags)
}

/// Leaves PID 1's tree. It is mounted over the new root for a moment, and then gone from this namespace.
fn enter_root() -> io::Result<()> {
    chdir(ROOT)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

fn mount_own(own: &Own) -> Result<(), Failure> {
    with_directory(own.target.as_bytes(), || {
        mount(own.kind, own.target, own.kind, own.flags, own.data)
    })
    .during(Stage::Mount, format_args!("{} on {}", own.kind, own.target))
}

fn mount_wanted(wanted: &Mount) -> Result<(), Failure> {
    let Mount::Tmpfs {
        target,
        flags,
        data,
    } = wanted;
    let mounted = || {
        let flags = u32::try_from(*flags).map_err(|_| Errno::INVAL)?;
        let data = std::ffi::CString::new(data.as_slice()).map_err(|_| Errno::INVAL)?;
        if !target.starts_with(b"/") {
            return Err(Errno::INVAL);
        }
        with_directory(target, || {
            let flags = MountFlags::from_bits_retain(flags);
            mount("tmpfs", target, "tmpfs", flags, data.as_c_str())
        })
    };
    mounted().during(Stage::Mount, format_args!("tmpfs on {}", shown(target)))
}

/// Fills the container's new `/dev`.
fn populate_dev(terminals: &OwnedFd, terminal: Option<u32>) -> Result<(), Failure> {
    let mode = Mode::from_raw_mode(0o666);
    for (path, major, minor) in NODES {
        mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        )
        .during(Stage::Mount, path)?;
    }
    for (path, target) in LINKS {
        symlinkat(target, CWD, path).during(Stage::Mount, path)?;
    }
    with_directory(b"/dev/pts", || attach(terminals, "/dev/pts"))
        .during(Stage::Mount, "devpts on /dev/pts")?;
    if let Some(number) = terminal {
        make_file("/dev/console")
            .and_then(|()| mount_bind(format!("/dev/pts/{number}"), "/dev/console"))
            .during(Stage::Mount, "/dev/console")?;
    }
    Ok(())
}

/// Mounts one of the host's files over the image's.
fn attach_file(path: &str, file: &OwnedFd, read_only: bool) -> io::Result<()> {
    match attach(file, path) {
        Err(Errno::NOENT) => {
            // There is nothing, or a link that leads nowhere: the file takes its place.
            match unlinkat(CWD, path, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            make_directories(directory.as_bytes())?;
            make_file(path)?;
            attach(file, path)?;
        }
        other => other?,
    }
    if read_only {
        mount_remount(path, MountFlags::BIND | READ_ONLY, "")?;
    }
    Ok(())
}

/// Puts something empty in the place of a file or directory.
fn hide(path: &str) -> io::Result<()> {
    match rustix::fs::stat(path) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::Directory => {
            mount("tmpfs", path, "tmpfs", READ_ONLY, c"nr_inodes=1")
        }
        Ok(_) => mount_bind("/dev/null", path),
    }
}

fn protect(path: &str) -> io::Result<()> {
    match mount_bind(path, path) {
        Err(Errno::NOENT) => Ok(()),
        Ok(()) => mount_remount(path, MountFlags::BIND | READ_ONLY, ""),
        Err(error) => Err(error),
    }
}

/// Does `action`; if something is missing, makes the directory and does it again.
fn with_directory(path: &[u8], action: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match action() {
        Err(Errno::NOENT) => {
            make_directories(path)?;
            action()
        }
        other => other,
    }
}

/// Makes a directory and those above it, as far as they are missing.
///
/// # Errors
/// Those of `mkdir(2)`; something that is no directory in the way shows at the next use of the path.
pub fn make_directories(path: &[u8]) -> io::Result<()> {
    let ends = (1..path.len()).filter(|&index| path[index] == b'/');
    for end in ends.chain([path.len()]) {
        match mkdirat(CWD, &path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // An empty path, or a root that is there already.
            Err(Errno::NOENT) if end <= 1 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn make_file(path: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    open(path, flags, Mode::from_raw_mode(0o644)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_made() {
        let base = std::env::temp_dir().join(format!("vminitd-directories-{}", std::process::id()));
        let path = base.join("a//b/c/");
        let bytes = path.as_os_str().as_encoded_bytes();
        make_directories(bytes).unwrap();
        assert!(path.is_dir());
        make_directories(bytes).unwrap();
        std::fs::write(base.join("file"), "").unwrap();
        let below = base.join("file/x");
        assert_eq!(
            make_directories(below.as_os_str().as_encoded_bytes()),
            Err(Errno::NOTDIR)
        );
        make_directories(b"/").unwrap();
        make_directories(b"").unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
