//! Namespaces: a process that is the first of its own, with nothing of the host's in sight.

use std::{
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
};

use rustix::{
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount,
        unmount,
    },
    pipe::{PipeFlags, pipe_with},
    process::{Pid, chdir, pivot_root},
};

use super::EMPTY;

/// Whether a process has namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Of users, processes, mounts, network, IPC, host name and cgroups.
    Own,
    /// None: the host does not permit it.
    Shared,
}

const OWN: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Who the process is in its user namespace: nobody there, so that executing a program gives it nothing.
const INSIDE: u32 = 65_534;

/// Who it is outside where we are root: nobody there, too.
const OUTSIDE_OF_ROOT: u32 = 65_534;

/// A directory that every Linux has, to mount the new root on for a moment.
const PLACE: &str = "/proc";

/// Forks a process that runs `child` and ends with what that gives as exit status. `child` is told what kind of
/// namespaces it is in, and must not allocate memory: other threads may have held the allocator's lock.
///
/// # Errors
/// There is no process to be had.
pub fn fork(child: impl FnOnce(Namespaces, bool) -> i32) -> io::Result<(Pid, OwnedFd, Namespaces)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let wait = |namespaces| {
        // Until we have said who it is there. The end of the pipe is no answer.
        let mut answer = [0];
        let told = rustix::io::read(&reader, &mut answer) == Ok(1) && answer == [1];
        (namespaces, told)
    };
    let (forked, namespaces) = match clone(OWN) {
        Ok(forked) => (forked, Namespaces::Own),
        // Forbidden, switched off, or used up.
        Err(_) => (clone(0)?, Namespaces::Shared),
    };
    let Some((pid, pidfd)) = forked else {
        let (namespaces, told) = wait(namespaces);
        let status = child(namespaces, told);
        // SAFETY: ends this process and runs nothing of ours any more.
        unsafe { libc::_exit(status) }
    };
    let ready = match namespaces {
        Namespaces::Own => map_ids(pid).is_ok(),
        Namespaces::Shared => true,
    };
    let _ = rustix::io::write(&writer, &[u8::from(ready)]);
    Ok((pid, pidfd, namespaces))
}

/// `clone3(2)` without sharing anything: the child has a copy of our memory and one thread. `None` is the child.
fn clone(flags: libc::c_int) -> io::Result<Option<(Pid, OwnedFd)>> {
    // SAFETY: all fields are integers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut pidfd: libc::c_int = -1;
    arguments.flags = u64::from(flags.unsigned_abs()) | u64::from(libc::CLONE_PIDFD.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: without CLONE_VM the child runs on a copy of our stack. Whoever calls makes sure that it needs no lock
    // which a thread of ours may hold.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some((pid, pidfd)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says who `pid` is in its user namespace and outside of it.
fn map_ids(pid: Pid) -> io::Result<()> {
    let own = [
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    ];
    let outside = own.map(|id| if own[0] == 0 { OUTSIDE_OF_ROOT } else { id });
    let proc = format!("/proc/{}", pid.as_raw_pid());
    // Without it, an ordinary user may not map groups.
    fs::write(format!("{proc}/setgroups"), "deny")?;
    for (file, id) in ["uid_map", "gid_map"].into_iter().zip(outside) {
        fs::write(format!("{proc}/{file}"), format!("{INSIDE} {id} 1"))?;
    }
    Ok(())
}

/// Makes this process who [`fork`] said that it is. Allocates nothing.
///
/// # Errors
/// Those of the system calls.
pub fn become_nobody() -> io::Result<()> {
    let (uid, gid) = (
        rustix::process::Uid::from_raw(INSIDE),
        rustix::process::Gid::from_raw(INSIDE),
    );
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Leaves the host's files for an empty, read-only root. Allocates nothing.
///
/// # Errors
/// Those of the system calls.
pub fn enter_empty_root() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let steps = || -> Result<(), Errno> {
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        mount(
            "tmpfs",
            PLACE,
            "tmpfs",
            flags,
            c"size=4k,nr_inodes=2,mode=0555",
        )?;
        chdir(PLACE)?;
        // The old root comes to lie on the new one, from where it goes.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        mount_remount("/", flags | MountFlags::RDONLY, EMPTY)
    };
    Ok(steps()?)
}
