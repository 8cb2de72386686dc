//! The guest's own system: its mounts, clock, entropy and loopback.

use agent_protocol::{Boot, Stage};
use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, open},
    io::{self, Errno},
    mount::{MountFlags, mount, mount_move},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{chdir, chroot},
};

use crate::{
    clock,
    failure::{During, Failure},
    sys,
};

/// Devices as the kernel knows them.
pub const DEV: &str = "/dev";
/// Processes of the whole VM.
const PROC: &str = "/proc";
/// All cgroups.
pub const CGROUPS: &str = "/cgroups";
/// The pseudo-terminals that the container sees as `/dev/pts`.
pub const TERMINALS: &str = "/terminals";

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// Leaves the initial ramfs for a tmpfs: `pivot_root(2)`, which the container's child needs, refuses to leave the
/// initial ramfs itself.
///
/// # Errors
/// If there is no tmpfs.
pub fn leave_initramfs() -> Result<(), Failure> {
    // Room for directories and the container's few files in /etc.
    let limits = c"mode=0755,size=8m,nr_inodes=64";
    make_directory("/root")
        .and_then(|()| mount("tmpfs", "/root", "tmpfs", QUIET, limits))
        .and_then(|()| chdir("/root"))
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .during(Stage::System, "a root directory for init")
}

/// Mounts all that does not depend on the container. The mounts are private, as nobody has shared any.
///
/// # Errors
/// Which mount failed.
pub fn mount_own() -> Result<(), Failure> {
    let terminals = c"newinstance,gid=5,mode=0620,ptmxmode=0666";
    for (kind, target, flags, data) in [
        ("devtmpfs", DEV, DEVICES, None),
        ("proc", PROC, QUIET, None),
        ("cgroup2", CGROUPS, QUIET, None),
        ("devpts", TERMINALS, DEVICES, Some(terminals)),
    ] {
        make_directory(target)
            .and_then(|()| mount(kind, target, kind, flags, data))
            .during(Stage::System, format_args!("{kind} on {target}"))?;
    }
    Ok(())
}

/// Sets what the host says about the world outside, and what programs expect of a machine.
///
/// # Errors
/// What could not be set.
pub fn set_up(boot: &Boot) -> Result<(), Failure> {
    clock::set_realtime(boot.realtime_ns).during(Stage::System, "the clock")?;
    open(
        "/dev/urandom",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Into::into)
    .and_then(|random| sys::add_entropy(&random, &boot.entropy))
    .during(Stage::System, "the random number generator")?;
    socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Into::into)
    .and_then(|socket| sys::loopback_up(&socket))
    .during(Stage::System, "the loopback interface")?;
    // As in Docker's containers: no privilege needed for ping and for ports below 1024.
    for (name, value) in [
        ("ipv4/ping_group_range", "0 2147483647"),
        ("ipv4/ip_unprivileged_port_start", "0"),
    ] {
        let path = format!("/proc/sys/net/{name}");
        write(&path, value).during(Stage::System, path)?;
    }
    Ok(())
}

/// `mkdir` that takes an existing directory too.
///
/// # Errors
/// Those of `mkdir(2)`.
pub fn make_directory(path: &str) -> io::Result<()> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Writes `value` into an existing file of the kernel's, in one call.
///
/// # Errors
/// Those of `open(2)` and `write(2)`.
pub fn write(path: &str, value: &str) -> io::Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::write(file, value.as_bytes()).map(drop)
}
