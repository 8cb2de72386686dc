//! The few system calls that no crate wraps safely. All of this program's `unsafe` is here.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::devices::Instruction;

/// What [`fork`] returns.
pub enum Forked {
    /// To the child.
    Child,
    /// To the parent: the child and a descriptor that stands for it (`pidfd_open(2)`).
    Parent(Pid, OwnedFd),
}

/// `fork` into new namespaces (`CLONE_NEW*` flags) and into the cgroup whose directory is `cgroup`.
///
/// # Errors
/// Those of `clone3(2)`.
pub fn fork(namespaces: u64, cgroup: BorrowedFd<'_>) -> io::Result<Forked> {
    let descriptor = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let signal = u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?;
    // SAFETY: all fields are integers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut pidfd: libc::c_int = -1;
    arguments.flags = namespaces | CLONE_INTO_CGROUP | CLONE_PIDFD;
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = signal;
    arguments.cgroup = descriptor;
    // SAFETY: without CLONE_VM the child runs on a copy of our memory and stack, as after fork(2). This
    // process has one thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has made it for us, and nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Pid::from_raw(pid)
                .map(|pid| Forked::Parent(pid, pidfd))
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// `clone3(2)`; not in every libc's headers.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
const CLONE_PIDFD: u64 = 1 << 12;

/// Takes hold of a process's mount and IPC namespaces, so that they outlive the process. Gives none before Linux 6.11.
pub fn namespaces(pidfd: &OwnedFd) -> [Option<OwnedFd>; 2] {
    [PIDFD_GET_MNT_NAMESPACE, PIDFD_GET_IPC_NAMESPACE].map(|request| {
        // SAFETY: the requests take a zero, and give a descriptor of our own or an error.
        unsafe {
            let fd = libc::ioctl(pidfd.as_raw_fd(), request, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        }
    })
}

/// `_IO(0xff, N)`: `linux/pidfd.h`.
const PIDFD_GET_IPC_NAMESPACE: libc::Ioctl = 0xff02;
const PIDFD_GET_MNT_NAMESPACE: libc::Ioctl = 0xff03;

/// Makes the cgroup this process is in the root of what it sees of cgroups.
///
/// # Errors
/// Those of `unshare(2)`.
pub fn unshare_cgroup_namespace() -> io::Result<()> {
    // SAFETY: a cgroup namespace has no part in memory or descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(Into::into)
}

/// Marks every descriptor from `first` on to be closed by `execve`.
///
/// # Errors
/// Those of `close_range(2)`.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing is closed now.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
}

/// How long `connect` on a vsock may take; the kernel's own limit is 2 s.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_vsock_connect_timeout(socket: &impl AsFd, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: i64::try_from(timeout.as_secs()).map_err(io::Error::other)?,
        tv_usec: i64::from(timeout.subsec_micros()),
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length are those of a live value, which the kernel only reads.
    check(i64::from(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const value).cast(),
            length,
        )
    }))
}

/// `<linux/vm_sockets.h>`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// Adds `entropy` to the kernel's random number generator, counts all of it, and has every later
/// number depend on it. `random` is an open `/dev/urandom`.
///
/// # Errors
/// Those of `ioctl(2)`, see `random(4)`.
pub fn add_entropy(random: &impl AsFd, entropy: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        bytes: libc::c_int,
        content: [u8; 32],
    }
    let pool = Pool {
        bits: 256,
        bytes: 32,
        content: *entropy,
    };
    let descriptor = random.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a header that announces 32 bytes and those 32 bytes, and writes nothing.
    check(i64::from(unsafe {
        libc::ioctl(descriptor, RNDADDENTROPY, &raw const pool)
    }))?;
    // SAFETY: this request takes no argument.
    check(i64::from(unsafe { libc::ioctl(descriptor, RNDRESEEDCRNG) }))
}

/// `<linux/random.h>`: `_IOW('R', 0x03, int [2])`. The type of a request differs between C libraries.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `<linux/random.h>`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Brings the loopback interface up. `socket` is any socket of the Internet family.
///
/// # Errors
/// Those of `ioctl(2)`, see `netdevice(7)`.
pub fn loopback_up(socket: &impl AsFd) -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: the kernel reads the name, which ends in a zero, and the flags.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), SIOCSIFFLAGS, &raw const request)
    }))
}

/// `<linux/sockios.h>`.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// Sends a signal, real-time signals included.
///
/// # Errors
/// Those of `kill(2)`.
pub fn kill(process: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: has no part in this process's memory.
    check(i64::from(unsafe {
        libc::kill(process.as_raw_pid(), signal)
    }))
}

/// Ends this process without running anything that its parent registered.
pub fn exit_child(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

fn check(result: i64) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the kernel ask `program` about every device that a process of `cgroup` opens or makes.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn attach_device_filter(cgroup: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;

    /// The start of `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used; the kernel takes the rest for zeroes.
    #[repr(C)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    /// The same for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let address = |pointer: *const u8| pointer.addr() as u64;
    let load = Load {
        program_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: address(program.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type: ATTACH_CGROUP_DEVICE,
    };
    // SAFETY: the attributes are of the size that is said, and what they point to lives as long as the call; the kernel
    // only reads it.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    check(descriptor)?;
    let number = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    let program = unsafe { OwnedFd::from_raw_fd(number) };
    let unsigned = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attach = Attach {
        target: unsigned(cgroup.as_fd().as_raw_fd())?,
        program: unsigned(program.as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: as above.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    })
}
