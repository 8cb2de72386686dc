//! The system calls of a kernel that runs as a process. What is not in the table kills it.
//!
//! The processes that run guest code have a filter of their own besides, which the kernel puts on them and which leaves
//! them two calls.

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS, CLONE_PARENT, CLONE_PTRACE, CLONE_UNTRACED,
};

use crate::sandbox::filter::{Allowed, Argument, Program, compile};

/// What `clone(2)` may not do: enter namespaces of any kind, make siblings that outlive us, or trace for somebody else.
const FORBIDDEN_CLONES: u64 = (CLONE_NEWCGROUP
    | CLONE_NEWIPC
    | CLONE_NEWNET
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWUSER
    | CLONE_NEWUTS
    | CLONE_PARENT
    | CLONE_PTRACE
    | CLONE_UNTRACED) as u64;

/// `asm-generic/ioctls.h`; C libraries disagree about its type.
const TCGETS: libc::c_int = 0x5401;

/// Of `fcntl.h`, and not in the C library's bindings.
const F_SETSIG: libc::c_int = 10;

/// Of user-mode Linux, which the C library has not.
const PTRACE_SYSEMU: u64 = 31;
const PTRACE_SYSEMU_SINGLESTEP: u64 = 32;

const fn allowed(call: libc::c_long, why: &'static str) -> Allowed {
    Allowed {
        call,
        why,
        only: &[],
    }
}

/// Every call that it makes, and why.
const TABLE: &[Allowed] = &[
    Allowed {
        call: libc::SYS_mmap,
        why: "guest memory, and the kernel's own",
        only: &[&[Argument::PRIVATE_MEMORY], &[Argument::MEMORY_OF_FILE]],
    },
    allowed(libc::SYS_munmap, "the same"),
    allowed(libc::SYS_mprotect, "the same"),
    allowed(libc::SYS_brk, "the C library's heap"),
    allowed(libc::SYS_readlink, "the C library looks for its own path"),
    allowed(libc::SYS_read, "events and signals, by descriptor"),
    allowed(libc::SYS_write, "the console, and events"),
    allowed(libc::SYS_pread64, "the initfs"),
    allowed(libc::SYS_close, "descriptors that are of no more use"),
    Allowed {
        call: libc::SYS_fcntl,
        why: "which signal a descriptor raises: SIGIO, and no other that somebody else might get",
        only: &[
            &[is(1, libc::F_GETFD)],
            &[is(1, libc::F_SETFD)],
            &[is(1, libc::F_GETFL)],
            &[is(1, libc::F_SETFL)],
            &[is(1, libc::F_DUPFD_CLOEXEC)],
            &[is(1, libc::F_ADD_SEALS)],
            &[is(1, libc::F_SETOWN)],
            &[is(1, F_SETSIG), is(2, libc::SIGIO)],
        ],
    },
    Allowed {
        call: libc::SYS_ioctl,
        why: "whether a descriptor is a terminal, which none is",
        only: &[&[is(1, TCGETS)]],
    },
    allowed(
        libc::SYS_newfstatat,
        "the size of memory and initfs; no path leads anywhere",
    ),
    allowed(libc::SYS_setsid, "a session of its own"),
    allowed(libc::SYS_signalfd4, "signals, by descriptor"),
    allowed(libc::SYS_lseek, "the same"),
    allowed(libc::SYS_dup, "descriptors for device sockets"),
    allowed(libc::SYS_dup2, "the same"),
    allowed(libc::SYS_pipe2, "wake-ups between threads"),
    Allowed {
        call: libc::SYS_socketpair,
        why: "the same; those that send to an address of their choice are none",
        only: &[&[
            is(0, libc::AF_UNIX),
            Argument {
                index: 1,
                mask: 0xf,
                value: libc::SOCK_STREAM.unsigned_abs() as u64,
            },
        ]],
    },
    allowed(libc::SYS_eventfd2, "kicks and calls of rings"),
    allowed(libc::SYS_epoll_create, "descriptors that raise interrupts"),
    allowed(libc::SYS_epoll_ctl, "the same"),
    allowed(libc::SYS_epoll_wait, "the same"),
    allowed(libc::SYS_epoll_pwait, "the same"),
    allowed(libc::SYS_poll, "the same"),
    allowed(libc::SYS_ppoll, "the same"),
    allowed(libc::SYS_sendmsg, "vhost-user's messages"),
    allowed(libc::SYS_recvmsg, "the same"),
    allowed(libc::SYS_sendto, "the same"),
    allowed(libc::SYS_recvfrom, "the same"),
    allowed(
        libc::SYS_rt_sigaction,
        "signals are the kernel's interrupts",
    ),
    allowed(libc::SYS_rt_sigprocmask, "the same"),
    allowed(libc::SYS_rt_sigreturn, "the same"),
    allowed(libc::SYS_rt_sigsuspend, "the same"),
    allowed(libc::SYS_rt_sigtimedwait, "the same"),
    allowed(libc::SYS_sigaltstack, "the same"),
    allowed(libc::SYS_timer_create, "the timer"),
    allowed(libc::SYS_timer_settime, "the same"),
    allowed(libc::SYS_timer_gettime, "the same"),
    allowed(libc::SYS_timer_delete, "the same"),
    allowed(libc::SYS_clock_gettime, "the clock"),
    allowed(libc::SYS_clock_nanosleep, "idling"),
    allowed(libc::SYS_gettimeofday, "the clock"),
    allowed(
        libc::SYS_restart_syscall,
        "waiting, once somebody has stopped it and let it go on",
    ),
    allowed(libc::SYS_getrandom, "the first entropy"),
    allowed(libc::SYS_futex, "threads"),
    allowed(libc::SYS_sched_yield, "the same"),
    allowed(libc::SYS_sched_getaffinity, "how many processors there are"),
    allowed(libc::SYS_set_robust_list, "threads"),
    allowed(libc::SYS_set_tid_address, "the same"),
    allowed(libc::SYS_rseq, "the same"),
    allowed(libc::SYS_arch_prctl, "the same"),
    allowed(libc::SYS_gettid, "the same"),
    allowed(libc::SYS_getpid, "who is to be signalled"),
    allowed(libc::SYS_getppid, "whether the one that traces still lives"),
    Allowed {
        call: libc::SYS_prlimit64,
        why: "the C library's stack",
        only: &[&[is(0, 0)]],
    },
    Allowed {
        call: libc::SYS_ptrace,
        why: "guest processes, which ask for it: nobody can be seized",
        only: &[
            &[request(libc::PTRACE_TRACEME as u64)],
            &[request(libc::PTRACE_PEEKUSER as u64)],
            &[request(libc::PTRACE_POKEUSER as u64)],
            &[request(libc::PTRACE_CONT as u64)],
            &[request(libc::PTRACE_KILL as u64)],
            &[request(libc::PTRACE_SYSCALL as u64)],
            &[request(libc::PTRACE_GETREGS as u64)],
            &[request(libc::PTRACE_SETREGS as u64)],
            &[request(libc::PTRACE_GETREGSET as u64)],
            &[request(libc::PTRACE_SETREGSET as u64)],
            &[request(libc::PTRACE_SETOPTIONS as u64)],
            &[request(libc::PTRACE_GETSIGINFO as u64)],
            &[request(PTRACE_SYSEMU)],
            &[request(PTRACE_SYSEMU_SINGLESTEP)],
        ],
    },
    allowed(libc::SYS_wait4, "the same"),
    Allowed {
        call: libc::SYS_kill,
        why: "the same, one at a time; nobody else is in sight where there are namespaces",
        only: &[&[Argument {
            index: 0,
            mask: 1 << 31,
            value: 0,
        }]],
    },
    allowed(libc::SYS_tkill, "the same"),
    allowed(libc::SYS_tgkill, "the same"),
    Allowed {
        call: libc::SYS_clone,
        why: "guest processes, in no namespace of their own",
        only: &[&[Argument {
            index: 0,
            mask: FORBIDDEN_CLONES,
            value: 0,
        }]],
    },
    Allowed {
        call: libc::SYS_execveat,
        why: "the program that runs guest code, from memory",
        only: &[&[is(4, libc::AT_EMPTY_PATH)]],
    },
    allowed(libc::SYS_memfd_create, "the same"),
    allowed(libc::SYS_ftruncate, "the same"),
    allowed(
        libc::SYS_close_range,
        "what guest processes are not to have",
    ),
    Allowed {
        call: libc::SYS_prctl,
        why: "that guest processes die with the kernel, and names of threads",
        only: &[
            // It would outlive us without.
            &[is(0, libc::PR_SET_PDEATHSIG), is(1, libc::SIGKILL)],
            &[is(0, libc::PR_SET_NAME)],
            &[is(0, libc::PR_SET_NO_NEW_PRIVS)],
            &[is(0, libc::PR_SET_DUMPABLE)],
        ],
    },
    Allowed {
        call: libc::SYS_seccomp,
        why: "the filter of guest processes, on top of this one",
        only: &[&[request(libc::SECCOMP_SET_MODE_FILTER as u64)]],
    },
    allowed(libc::SYS_exit, "the end"),
    allowed(libc::SYS_exit_group, "the same"),
];

/// An argument is this.
const fn is(index: u8, value: libc::c_int) -> Argument {
    Argument {
        index,
        mask: u32::MAX as u64,
        value: value.unsigned_abs() as u64,
    }
}

/// The first argument is this request. The C libraries do not agree on the type of requests.
const fn request(value: u64) -> Argument {
    Argument {
        index: 0,
        mask: u32::MAX as u64,
        value,
    }
}

/// The table as a filter.
///
/// # Errors
/// It cannot be one.
pub fn filter() -> Result<Program, seccompiler::Error> {
    compile(TABLE)
}
