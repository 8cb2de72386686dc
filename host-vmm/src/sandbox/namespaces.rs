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
    process::{Gid, Pid, Uid, WaitOptions, chdir, pivot_root, waitpid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    EMPTY,
    guard::{self, Guard},
    layers::is_forbidden,
};

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

/// Everybody's idea of nobody.
const NOBODY: u32 = 65_534;

/// The first of the users that nobody else is, on any system: from here on `systemd` gives none away, and every process
/// id counts one up.
const UNUSED: u32 = 0x7000_0000;

/// A directory that every Linux has, to mount the new root on for a moment.
const PLACE: &str = "/proc";

/// A new process.
pub struct Forked {
    /// Its id.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Why it has no namespaces of its own, if it has none.
    pub refused: Option<io::Error>,
    /// Who takes care that nothing of it outlives it, where its namespaces do not.
    pub guard: Option<Guard>,
}

/// Forks a process that runs `child` and ends with what that gives as exit status. `child` is told what kind of
/// namespaces it is in, and must not allocate memory: other threads may have held the allocator's lock.
///
/// # Errors
/// There is no process to be had.
pub fn fork(child: impl Fn(Namespaces) -> i32) -> io::Result<Forked> {
    let refused = match fork_apart(&child) {
        Ok((pid, pidfd)) => {
            return Ok(Forked {
                pid,
                pidfd,
                refused: None,
                guard: None,
            });
        }
        Err(error) if is_refusal(&error) => error,
        Err(error) => return Err(error),
    };
    let (pid, pidfd, guard) = guard::fork(|| child(Namespaces::Shared))?;
    Ok(Forked {
        pid,
        pidfd,
        refused: Some(refused),
        guard: Some(guard),
    })
}

/// Whether there are no namespaces to be had here: they are forbidden, switched off, or used up, or nobody may say who is
/// who there, as without `/proc` or with one that is read-only. Anything else is no reason to do without.
fn is_refusal(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    is_forbidden(error) || matches!(errno, Some(Errno::NOENT | Errno::ROFS))
}

/// The same in namespaces of its own.
fn fork_apart(child: impl Fn(Namespaces) -> i32) -> io::Result<(Pid, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some((pid, pidfd)) = clone(OWN | libc::CLONE_PIDFD)? else {
        // Until we have said who it is there. The end of the pipe is no answer.
        drop(writer);
        let mut answer = [0];
        let told = rustix::io::read(&reader, &mut answer) == Ok(1);
        exit(if told { child(Namespaces::Own) } else { 1 })
    };
    let pidfd = pidfd.ok_or(io::ErrorKind::InvalidData)?;
    match map_ids(pid) {
        Ok(()) => {
            let _ = rustix::io::write(&writer, &[1]);
            Ok((pid, pidfd))
        }
        Err(error) => {
            drop(writer);
            while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
            Err(error)
        }
    }
}

/// `clone(2)` without sharing anything: the child has a copy of our memory and one thread. `None` is the child. There is
/// a descriptor if the flags ask for one.
///
/// The old call, as filters cannot look at the new one's flags, and so forbid it.
pub(super) fn clone(flags: libc::c_int) -> io::Result<Option<(Pid, Option<OwnedFd>)>> {
    let mut pidfd: libc::c_int = -1;
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM the child runs on a copy of our stack. Whoever calls makes sure that it needs no lock
    // which a thread of ours may hold.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags | libc::SIGCHLD),
            null,
            &raw mut pidfd,
            null,
            null,
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made it for us.
            let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some((pid, pidfd)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a forked process.
pub(super) fn exit(status: i32) -> ! {
    // SAFETY: ends this process and runs nothing of ours any more.
    unsafe { libc::_exit(status) }
}

/// Whom a process of root's may be, the best first: somebody of its own, so that machines are nothing to each other.
fn strangers(pid: Pid) -> [u32; 2] {
    [UNUSED + pid.as_raw_pid().unsigned_abs(), NOBODY]
}

/// Says who `pid` is in its user namespace and outside of it: somebody else, if we are root and may say so.
fn map_ids(pid: Pid) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let proc = format!("/proc/{}", pid.as_raw_pid());
    let map = |file: &str, id: u32| fs::write(format!("{proc}/{file}"), format!("{INSIDE} {id} 1"));
    let strangers = strangers(pid).map(|id| (uid.is_root(), id));
    let as_stranger = |file| {
        let mut ids = strangers.iter().filter(|(is_root, _)| *is_root);
        ids.any(|(_, id)| map(file, *id).is_ok())
    };
    if !as_stranger("uid_map") {
        map("uid_map", uid.as_raw())?;
    }
    if !as_stranger("gid_map") {
        // Without it, an ordinary user may not map groups.
        fs::write(format!("{proc}/setgroups"), "deny")?;
        map("gid_map", gid.as_raw())?;
    }
    Ok(())
}

/// Makes this process who [`fork`] said that it is. Allocates nothing.
///
/// # Errors
/// Those of the system calls.
pub fn become_nobody() -> io::Result<()> {
    // Refused to who was in no position to give any away.
    let _ = set_thread_groups(&[]);
    become_user(INSIDE, INSIDE)
}

/// Makes this process, which is root and has no namespaces of its own, somebody who owns nothing. Allocates nothing.
///
/// # Errors
/// Root may be nobody else here.
pub fn leave_root() -> io::Result<()> {
    set_thread_groups(&[])?;
    let mut result = Ok(());
    for id in strangers(rustix::process::getpid()) {
        result = become_user(id, id);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
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
