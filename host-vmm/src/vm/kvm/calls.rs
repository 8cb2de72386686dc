//! The system calls of a machine's process. What is not in a table is not made, and ends the machine.
//!
//! There are three tables: what the whole process may do from its first instruction on, while it makes the machine; and what
//! is left of that for each kind of thread before the guest executes its first: a processor's, and that of the devices.

use seccompiler::BpfProgram;

use crate::sandbox::filter::{
    Allowed, Argument, Program, compile as compile_table, compile_trapping,
};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;

/// `_IOW(KVMIO, 0x6a, struct kvm_irq_routing)`.
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;

/// The type of KVM's requests, which is their second byte.
const KVM_REQUESTS: Argument = Argument {
    index: 1,
    mask: 0xff00,
    value: 0xae00,
};

const fn allowed(call: libc::c_long, why: &'static str) -> Allowed {
    Allowed {
        call,
        why,
        only: &[],
    }
}

const fn is(index: u8, value: libc::c_int) -> Argument {
    Argument {
        index,
        mask: u32::MAX as u64,
        value: value.unsigned_abs() as u64,
    }
}

/// The second argument is this request.
const fn kvm(request: u64) -> Argument {
    Argument {
        index: 1,
        mask: u32::MAX as u64,
        value: request,
    }
}

/// Memory that could be executed is not to be had.
const NOT_EXECUTABLE: Argument = Argument {
    index: 2,
    mask: libc::PROT_EXEC.unsigned_abs() as u64,
    value: 0,
};

/// From the first instruction to the guest's.
const PROCESS: &[Allowed] = &[
    Allowed {
        call: libc::SYS_execveat,
        why: "the program itself, once; it finds no other",
        only: &[&[is(4, libc::AT_EMPTY_PATH)]],
    },
    Allowed {
        call: libc::SYS_ioctl,
        why: "making the machine, running it, and that descriptors are closed on execution",
        only: &[&[KVM_REQUESTS], &[is(1, FIOCLEX)]],
    },
    allowed(libc::SYS_arch_prctl, "the C library's threads"),
    allowed(libc::SYS_set_tid_address, "the same"),
    allowed(libc::SYS_set_robust_list, "the same"),
    allowed(libc::SYS_rseq, "the same"),
    allowed(libc::SYS_gettid, "the same"),
    allowed(libc::SYS_sched_getaffinity, "how large a thread's stack is"),
    Allowed {
        call: libc::SYS_prlimit64,
        why: "the same; of this process only",
        only: &[&[is(0, 0)]],
    },
    Allowed {
        call: libc::SYS_mmap,
        why: "the guest's memory, KVM's, stacks, and the allocator's",
        only: &[
            &[NOT_EXECUTABLE, Argument::PRIVATE_MEMORY],
            &[NOT_EXECUTABLE, Argument::MEMORY_OF_FILE],
        ],
    },
    Allowed {
        call: libc::SYS_mprotect,
        why: "relocations, and guard pages of stacks",
        only: &[&[NOT_EXECUTABLE]],
    },
    allowed(libc::SYS_munmap, "the allocator"),
    allowed(libc::SYS_mremap, "the same"),
    allowed(libc::SYS_brk, "the same"),
    allowed(libc::SYS_madvise, "the same, and huge pages"),
    Allowed {
        call: libc::SYS_clone,
        why: "threads, and no processes",
        only: &[&[Argument {
            index: 0,
            mask: libc::CLONE_THREAD.unsigned_abs() as u64,
            value: libc::CLONE_THREAD.unsigned_abs() as u64,
        }]],
    },
    Allowed {
        call: libc::SYS_prctl,
        why: "names of threads, and that nobody looks into the process",
        only: &[&[is(0, libc::PR_SET_NAME)], &[is(0, libc::PR_SET_DUMPABLE)]],
    },
    Allowed {
        call: libc::SYS_seccomp,
        why: "the filters of threads, on top of this one",
        only: &[&[is(0, libc::SECCOMP_SET_MODE_FILTER.cast_signed())]],
    },
    allowed(libc::SYS_rt_sigaction, "who takes which signal"),
    allowed(libc::SYS_rt_sigprocmask, "threads begin without signals"),
    allowed(libc::SYS_rt_sigreturn, "the end of a handler"),
    allowed(
        libc::SYS_sigaltstack,
        "a stack that has overflowed is told of",
    ),
    allowed(
        libc::SYS_poll,
        "whether standard descriptors are open, and answers",
    ),
    allowed(libc::SYS_fstat, "sizes of files"),
    allowed(libc::SYS_statx, "the same"),
    allowed(libc::SYS_newfstatat, "the same; no path leads anywhere"),
    Allowed {
        call: libc::SYS_fcntl,
        why: "copies of descriptors, which are closed on execution",
        only: &[
            &[is(1, libc::F_GETFD)],
            &[is(1, libc::F_SETFD)],
            &[is(1, libc::F_GETFL)],
            &[is(1, libc::F_DUPFD_CLOEXEC)],
        ],
    },
    allowed(libc::SYS_eventfd2, "kicks and interrupts"),
    allowed(libc::SYS_epoll_create1, "waiting for all devices at once"),
    allowed(libc::SYS_epoll_ctl, "the same"),
    allowed(libc::SYS_epoll_wait, "the same"),
    allowed(libc::SYS_epoll_pwait, "the same"),
    allowed(libc::SYS_ppoll, "the same"),
    allowed(libc::SYS_read, "events"),
    allowed(libc::SYS_write, "events, and the console"),
    allowed(libc::SYS_preadv, "kernel, initfs and disks"),
    allowed(libc::SYS_pread64, "the kernel's headers"),
    allowed(libc::SYS_pwritev, "disks"),
    allowed(libc::SYS_pwrite64, "the same"),
    allowed(libc::SYS_fallocate, "space that a disk gives back"),
    allowed(libc::SYS_fdatasync, "what has to be safe on a disk"),
    allowed(libc::SYS_sendmsg, "vsock's streams"),
    allowed(libc::SYS_recvmsg, "the same, and answers of the supervisor"),
    allowed(libc::SYS_sendto, "requests to the supervisor"),
    allowed(libc::SYS_shutdown, "ends of vsock's streams"),
    allowed(libc::SYS_close, "descriptors that are of no more use"),
    allowed(libc::SYS_futex, "threads wait for each other"),
    allowed(libc::SYS_sched_yield, "the same"),
    allowed(libc::SYS_clock_gettime, "deadlines"),
    allowed(libc::SYS_getrandom, "hash tables"),
    allowed(
        libc::SYS_restart_syscall,
        "waiting, once somebody has stopped the process and let it go on",
    ),
    Allowed {
        call: libc::SYS_tkill,
        why: "processors that are to stop",
        only: &[&[is(1, libc::SIGUSR1)]],
    },
    allowed(libc::SYS_getpid, "the C library's way to signal a thread"),
    allowed(libc::SYS_exit, "the end"),
    allowed(libc::SYS_exit_group, "the same"),
];

/// A processor's thread, when the guest runs.
const VCPU: &[Allowed] = &[
    Allowed {
        call: libc::SYS_ioctl,
        why: "running the guest, and where its interrupts go",
        only: &[&[kvm(KVM_RUN)], &[kvm(KVM_SET_GSI_ROUTING)]],
    },
    allowed(
        libc::SYS_write,
        "the console, interrupts, and waking the devices' thread",
    ),
    allowed(libc::SYS_futex, "waiting for what was asked of a device"),
    allowed(libc::SYS_sched_yield, "the same"),
    Allowed {
        call: libc::SYS_mmap,
        why: "the allocator",
        only: &[&[NOT_EXECUTABLE, Argument::PRIVATE_MEMORY]],
    },
    allowed(libc::SYS_munmap, "the same"),
    allowed(libc::SYS_mremap, "the same"),
    allowed(libc::SYS_madvise, "the same"),
    allowed(libc::SYS_brk, "the same"),
    allowed(libc::SYS_rt_sigreturn, "having been told to stop"),
    allowed(
        libc::SYS_restart_syscall,
        "waiting, once somebody has stopped the process and let it go on",
    ),
    allowed(libc::SYS_exit_group, "the end of who made a forbidden call"),
];

/// The devices' thread, when the guest runs.
const WORKER: &[Allowed] = &[
    allowed(libc::SYS_epoll_wait, "waiting for all devices at once"),
    allowed(libc::SYS_epoll_pwait, "the same"),
    allowed(libc::SYS_epoll_ctl, "streams that come and go"),
    allowed(libc::SYS_poll, "answers of the supervisor, and the end"),
    allowed(libc::SYS_ppoll, "the same"),
    allowed(libc::SYS_read, "events"),
    allowed(libc::SYS_write, "interrupts, and the console's last words"),
    allowed(libc::SYS_preadv, "disks"),
    allowed(libc::SYS_pwritev, "the same"),
    allowed(libc::SYS_pwrite64, "zeroes on disks"),
    allowed(libc::SYS_fallocate, "space that a disk gives back"),
    allowed(libc::SYS_fdatasync, "what has to be safe on a disk"),
    allowed(libc::SYS_fstat, "whether somebody has cut a disk"),
    allowed(libc::SYS_sendmsg, "vsock's streams"),
    allowed(libc::SYS_recvmsg, "the same, and answers of the supervisor"),
    allowed(libc::SYS_sendto, "requests to the supervisor"),
    allowed(libc::SYS_shutdown, "ends of vsock's streams"),
    allowed(libc::SYS_close, "streams that are over"),
    Allowed {
        call: libc::SYS_fcntl,
        why: "whether a descriptor that is closed was open",
        only: &[&[is(1, libc::F_GETFD)]],
    },
    allowed(libc::SYS_futex, "telling processors that it is done"),
    allowed(libc::SYS_sched_yield, "the same"),
    Allowed {
        call: libc::SYS_mmap,
        why: "the allocator",
        only: &[&[NOT_EXECUTABLE, Argument::PRIVATE_MEMORY]],
    },
    allowed(libc::SYS_munmap, "the same"),
    allowed(libc::SYS_mremap, "the same"),
    allowed(libc::SYS_madvise, "the same"),
    allowed(libc::SYS_brk, "the same"),
    allowed(libc::SYS_clock_gettime, "deadlines"),
    allowed(libc::SYS_getrandom, "hash tables"),
    Allowed {
        call: libc::SYS_tkill,
        why: "processors that are to stop",
        only: &[&[is(1, libc::SIGUSR1)]],
    },
    allowed(
        libc::SYS_rt_sigprocmask,
        "the C library's way to signal a thread",
    ),
    allowed(
        libc::SYS_restart_syscall,
        "waiting, once somebody has stopped the process and let it go on",
    ),
    allowed(libc::SYS_exit_group, "the end"),
];

/// Of `asm-generic/ioctls.h`; C libraries disagree about its type.
const FIOCLEX: libc::c_int = 0x5451;

/// The filters of threads.
pub struct Filters {
    pub vcpu: BpfProgram,
    pub worker: BpfProgram,
}

/// The filter of the process.
///
/// # Errors
/// The table cannot be one.
pub fn process() -> Result<Program, seccompiler::Error> {
    compile_table(PROCESS)
}

/// The filters of threads.
///
/// # Errors
/// The tables cannot be any.
pub fn compile() -> Result<Filters, seccompiler::Error> {
    Ok(Filters {
        vcpu: compile_trapping(VCPU)?,
        worker: compile_trapping(WORKER)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_do_nothing_that_its_process_may_not() {
        let may = |table: &[Allowed], call| table.iter().any(|allowed| allowed.call == call);
        for table in [VCPU, WORKER] {
            for allowed in table {
                assert!(may(PROCESS, allowed.call), "{}", allowed.call);
                assert!(!allowed.why.is_empty());
            }
        }
        for call in [
            libc::SYS_execve,
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_ptrace,
        ] {
            assert!(!may(PROCESS, call));
        }
        for call in [
            libc::SYS_clone,
            libc::SYS_execveat,
            libc::SYS_seccomp,
            libc::SYS_prctl,
        ] {
            assert!(!may(VCPU, call) && !may(WORKER, call));
        }
        process().unwrap();
        compile().unwrap();
    }
}
