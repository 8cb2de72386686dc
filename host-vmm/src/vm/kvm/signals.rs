//! The signals that a machine's threads take: the one that gets a processor out of its guest, and the one that comes of a
//! forbidden system call.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{AtomicI32, Ordering},
};

use super::{
    link::Link,
    machine::{FORBIDDEN, exit},
    vcpu,
};

/// The socket to the supervisor, for the handler of a signal.
static LINK: AtomicI32 = AtomicI32::new(-1);

/// Takes the signals that get processors out of the guest, and that come of forbidden system calls.
pub fn take(link: &Link) {
    LINK.store(link.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: both handlers do only what a handler may: the one writes a byte of memory that stays, the other makes system
    // calls. The sets are empty, and made before they are used.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigemptyset(&raw mut action.sa_mask);
        action.sa_sigaction = vcpu::kicked as *const () as usize;
        libc::sigaction(vcpu::kick_signal(), &raw const action, std::ptr::null_mut());
        action.sa_sigaction = forbidden as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
    }
}

/// A thread asked for a system call that it may not make, and which was not made: says which, and ends the machine.
extern "C" fn forbidden(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// Where `si_syscall` is, behind three integers and a pointer.
    const CALL: usize = 24;
    // SAFETY: the kernel gives every handler such a structure, and for this signal there is a number at that place
    // (`sigaction(2)`). The message is on this stack.
    unsafe {
        let call = info.cast::<u8>().add(CALL).cast::<i32>().read_unaligned();
        let message = Link::forbidden(call);
        libc::write(
            LINK.load(Ordering::Relaxed),
            message.as_ptr().cast(),
            message.len(),
        );
    }
    exit(FORBIDDEN);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use seccompiler::BpfProgram;

    use super::*;
    use crate::{
        sandbox::filter,
        vm::kvm::{
            calls,
            link::{self, Answering, LastWords},
        },
    };

    struct NoPorts;

    impl crate::devices::vsock::HostPorts for NoPorts {
        fn connect(&mut self, _port: u32) -> Option<std::os::unix::net::UnixStream> {
            None
        }
    }

    /// What becomes of a process that enters a thread's filter and asks for a call, and what it says.
    fn attempt(filter: &BpfProgram, call: libc::c_long, arguments: [usize; 4]) -> (i32, LastWords) {
        let (machine, supervisor) = link::pair().unwrap();
        let answering = Answering::spawn(supervisor, Box::new(NoPorts)).unwrap();
        let link = Link::new(machine);
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            take(&link);
            let no_new_privs = rustix::thread::set_no_new_privs(true);
            if no_new_privs.is_err() || filter::enter_plain(filter).is_err() {
                exit(1);
            }
            let [a, b, c, d] = arguments;
            // SAFETY: none of the calls that are tried reads or writes memory of ours.
            unsafe { libc::syscall(call, a, b, c, d) };
            exit(0);
        }
        drop(link);
        let mut status = 0;
        // SAFETY: it writes the status to where it is told.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status), "{status:#x}");
        (libc::WEXITSTATUS(status), answering.last_words())
    }

    #[test]
    fn a_thread_that_makes_a_forbidden_call_ends_the_machine_which_says_so() {
        const KVM_CREATE_VM: usize = 0xae01;
        const KVM_RUN: usize = 0xae80;
        const PRIVATE: usize = 0x22;
        const SHARED: usize = 0x21;
        let filters = calls::compile().unwrap();
        let no_file = usize::MAX;
        for (filter, call, arguments, name) in [
            (
                &filters.vcpu,
                libc::SYS_openat,
                [no_file; 4],
                Some("openat"),
            ),
            (&filters.vcpu, libc::SYS_execve, [0; 4], Some("execve")),
            (&filters.vcpu, libc::SYS_clone, [0; 4], Some("clone")),
            (
                &filters.vcpu,
                libc::SYS_recvmsg,
                [no_file; 4],
                Some("recvmsg"),
            ),
            (
                &filters.vcpu,
                libc::SYS_ioctl,
                [no_file, KVM_CREATE_VM, 0, 0],
                Some("ioctl"),
            ),
            (
                &filters.vcpu,
                libc::SYS_ioctl,
                [no_file, KVM_RUN, 0, 0],
                None,
            ),
            (
                &filters.vcpu,
                libc::SYS_mmap,
                [0, 4096, 7, PRIVATE],
                Some("mmap"),
            ),
            // Shared memory is not counted.
            (
                &filters.vcpu,
                libc::SYS_mmap,
                [0, 4096, 3, SHARED],
                Some("mmap"),
            ),
            (
                &filters.worker,
                libc::SYS_mmap,
                [0, 4096, 3, SHARED],
                Some("mmap"),
            ),
            (&filters.worker, libc::SYS_mmap, [0, 4096, 3, PRIVATE], None),
            (&filters.vcpu, libc::SYS_sched_yield, [0; 4], None),
            (
                &filters.worker,
                libc::SYS_socket,
                [1, 1, 0, 0],
                Some("socket"),
            ),
            (&filters.worker, libc::SYS_ptrace, [0; 4], Some("ptrace")),
            (
                &filters.worker,
                libc::SYS_ioctl,
                [no_file, KVM_RUN, 0, 0],
                Some("ioctl"),
            ),
            (
                &filters.worker,
                libc::SYS_io_uring_setup,
                [0; 4],
                Some("io_uring_setup"),
            ),
            (
                &filters.worker,
                libc::SYS_mprotect,
                [0, 4096, 5, 0],
                Some("mprotect"),
            ),
            (
                &filters.worker,
                libc::SYS_tkill,
                [1, 9, 0, 0],
                Some("tkill"),
            ),
            (&filters.worker, libc::SYS_close, [no_file; 4], None),
        ] {
            let expected = LastWords {
                failed: None,
                forbidden: name.map(str::to_owned),
            };
            let status = name.map_or(0, |_| FORBIDDEN);
            assert_eq!(attempt(filter, call, arguments), (status, expected));
        }
    }
}
