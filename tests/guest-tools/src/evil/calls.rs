//! System calls that nobody has given it.

use nix::libc;

use super::{call, descriptor};

/// A path that every host has.
const PASSWD: &[u8] = b"/etc/passwd\0";
const SHELL: &[u8] = b"/bin/sh\0";
const EMPTY: &[u8] = b"\0";
const PLACE: &[u8] = b"/tmp/vmm-escaped\0";

/// Makes the call `name`, if it is one.
pub fn run(name: &str, words: &[&str]) -> Option<i64> {
    let path = PASSWD.as_ptr().addr();
    let place = PLACE.as_ptr().addr();
    let none = [0; 6];
    let mut buffer = [0_u8; 4096];
    let space = buffer.as_mut_ptr().expose_provenance();
    Some(match name {
        "nothing" => 0,

        // Paths.
        "open" => call(libc::SYS_open, [path, 0, 0, 0, 0, 0]),
        "openat" => call(libc::SYS_openat, [at_cwd(), path, 0, 0, 0, 0]),
        "openat2" => call(libc::SYS_openat2, [at_cwd(), path, space, 24, 0, 0]),
        "creat" => call(libc::SYS_creat, [place, 0o644, 0, 0, 0, 0]),
        "mkdir" => call(libc::SYS_mkdir, [place, 0o755, 0, 0, 0, 0]),
        "unlink" => call(libc::SYS_unlink, [place, 0, 0, 0, 0, 0]),
        "rename" => call(libc::SYS_rename, [path, place, 0, 0, 0, 0]),
        "chmod" => call(libc::SYS_chmod, [path, 0o777, 0, 0, 0, 0]),
        "mknod" => call(libc::SYS_mknod, [place, 0o60_0666, 0x800, 0, 0, 0]),
        "chdir" => call(libc::SYS_chdir, [path, 0, 0, 0, 0, 0]),
        "chroot" => call(libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        "mount" => call(libc::SYS_mount, [path, place, path, 0, 0, 0]),
        "umount2" => call(libc::SYS_umount2, [place, 0, 0, 0, 0, 0]),
        "pivot_root" => call(libc::SYS_pivot_root, [place, place, 0, 0, 0, 0]),
        "open_tree" => call(libc::SYS_open_tree, [at_cwd(), path, 1, 0, 0, 0]),
        "fsopen" => call(libc::SYS_fsopen, [path, 0, 0, 0, 0, 0]),
        "inotify_init1" => call(libc::SYS_inotify_init1, none),
        "open_by_handle_at" => call(libc::SYS_open_by_handle_at, [at_cwd(), space, 0, 0, 0, 0]),
        "statx" => call(libc::SYS_statx, [at_cwd(), path, 0, 0xfff, space, 0]),
        "newfstatat" => call(libc::SYS_newfstatat, [at_cwd(), path, space, 0, 0, 0]),
        "readlink" => call(libc::SYS_readlink, [path, space, 100, 0, 0, 0]),

        // Sockets.
        "socket" => call(libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        "socket-unix" => call(libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
        "socket-vsock" => call(libc::SYS_socket, [40, 1, 0, 0, 0, 0]),
        "socket-netlink" => call(libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        "socket-packet" => call(libc::SYS_socket, [17, 3, 0, 0, 0, 0]),
        "socketpair-inet" => call(libc::SYS_socketpair, [2, 1, 0, space, 0, 0]),
        "socketpair-datagram" => call(libc::SYS_socketpair, [1, 2, 0, space, 0, 0]),
        "connect" => call(libc::SYS_connect, [0, space, 16, 0, 0, 0]),
        "bind" => call(libc::SYS_bind, [0, space, 16, 0, 0, 0]),
        "listen" => call(libc::SYS_listen, [0, 1, 0, 0, 0, 0]),
        "accept4" => call(libc::SYS_accept4, [0, 0, 0, 0, 0, 0]),

        // Other processes.
        "execve" => call(libc::SYS_execve, [SHELL.as_ptr().addr(), 0, 0, 0, 0, 0]),
        "execveat-path" => {
            let shell = SHELL.as_ptr().addr();
            call(libc::SYS_execveat, [at_cwd(), shell, 0, 0, 0, 0])
        }
        "execveat-shell" => {
            let (shell, flag) = (SHELL.as_ptr().addr(), libc::AT_EMPTY_PATH.cast_unsigned());
            let flag = usize::try_from(flag).unwrap_or(0);
            call(libc::SYS_execveat, [at_cwd(), shell, 0, 0, flag, 0])
        }
        "execveat-initfs" => execute(descriptor(words, "initrd=")?),
        "execveat-memory" => execute(descriptor(words, "mem=")?),
        "fork" => call(libc::SYS_fork, none),
        "vfork" => call(libc::SYS_vfork, none),
        "clone3" => call(libc::SYS_clone3, [space, 88, 0, 0, 0, 0]),
        "clone-namespace" => call(libc::SYS_clone, [0x1000_0000, 0, 0, 0, 0, 0]),
        "clone-parent" => call(libc::SYS_clone, [0x8000 | 17, 0, 0, 0, 0, 0]),
        "unshare" => call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]),
        "setns" => call(libc::SYS_setns, [0, 0, 0, 0, 0, 0]),
        "kill-all" => call(libc::SYS_kill, [usize::MAX, 9, 0, 0, 0, 0]),
        "kill-group" => call(libc::SYS_kill, [usize::MAX - 1, 9, 0, 0, 0, 0]),
        "kill-others" => kill_others(),
        "ptrace-attach" => call(libc::SYS_ptrace, [16, 2, 0, 0, 0, 0]),
        "ptrace-seize" => call(libc::SYS_ptrace, [0x4206, 2, 0, 0, 0, 0]),
        "process_vm_readv" => call(libc::SYS_process_vm_readv, [1, space, 1, space, 1, 0]),
        "pidfd_open" => call(libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        "pidfd_getfd" => call(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]),
        "setuid" => call(libc::SYS_setuid, none),
        "capset" => call(libc::SYS_capset, [space, space, 0, 0, 0, 0]),
        "prctl-outlive" => call(libc::SYS_prctl, [1, 0, 0, 0, 0, 0]),
        "prctl-seccomp" => call(libc::SYS_prctl, [22, 1, 0, 0, 0, 0]),
        "fcntl-signal" => call(libc::SYS_fcntl, [0, 10, 9, 0, 0, 0]),
        "setpriority" => call(libc::SYS_setpriority, none),
        "sched_setaffinity" => call(libc::SYS_sched_setaffinity, [0, 8, space, 0, 0, 0]),

        // Parts of the host's kernel that have had holes.
        "io_uring_setup" => call(libc::SYS_io_uring_setup, [8, space, 0, 0, 0, 0]),
        "bpf" => call(libc::SYS_bpf, [0, space, 64, 0, 0, 0]),
        "perf_event_open" => call(libc::SYS_perf_event_open, [space, 0, 0, 0, 0, 0]),
        "userfaultfd" => call(libc::SYS_userfaultfd, none),
        "keyctl" => call(libc::SYS_keyctl, none),
        "add_key" => call(libc::SYS_add_key, [space, space, space, 0, 0, 0]),
        "modify_ldt" => call(libc::SYS_modify_ldt, [1, space, 16, 0, 0, 0]),
        "iopl" => call(libc::SYS_iopl, [3, 0, 0, 0, 0, 0]),
        "ioperm" => call(libc::SYS_ioperm, [0, 1, 1, 0, 0, 0]),
        "shmget" => call(libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]),
        "msgget" => call(libc::SYS_msgget, [0, 0o1600, 0, 0, 0, 0]),
        "mq_open" => call(libc::SYS_mq_open, [path, 0, 0, 0, 0, 0]),
        "splice" => call(libc::SYS_splice, none),
        "vmsplice" => call(libc::SYS_vmsplice, none),
        // Memory that counts against no limit.
        "mmap-shared" => call(libc::SYS_mmap, [0, 1 << 30, 3, 0x21, usize::MAX, 0]),
        "mremap" => call(libc::SYS_mremap, [space, 4096, 8192, 1, 0, 0]),
        "madvise" => call(libc::SYS_madvise, [space, 4096, 4, 0, 0, 0]),
        "mlockall" => call(libc::SYS_mlockall, [3, 0, 0, 0, 0, 0]),
        "personality" => call(libc::SYS_personality, none),
        "uname" => call(libc::SYS_uname, [space, 0, 0, 0, 0, 0]),
        "sysinfo" => call(libc::SYS_sysinfo, [space, 0, 0, 0, 0, 0]),
        "syslog" => call(libc::SYS_syslog, [3, space, 4096, 0, 0, 0]),
        "reboot" => call(libc::SYS_reboot, none),
        "sethostname" => call(libc::SYS_sethostname, [path, 4, 0, 0, 0, 0]),
        "settimeofday" => call(libc::SYS_settimeofday, [space, 0, 0, 0, 0, 0]),
        "init_module" => call(libc::SYS_init_module, [space, 0, path, 0, 0, 0]),
        "kexec_load" => call(libc::SYS_kexec_load, none),
        "swapon" => call(libc::SYS_swapon, [path, 0, 0, 0, 0, 0]),
        "ioctl-terminal" => call(libc::SYS_ioctl, [0, 0x5412, space, 0, 0, 0]),

        // Other ways into the kernel.
        "int80-open" => int80(5),
        "int80-socket" => int80(359),
        "int80-allowed" => int80(20),
        "x32" => call(0x4000_0000 | libc::SYS_getpid, none),
        "x32-openat" => call(0x4000_0000 | libc::SYS_openat, [at_cwd(), path, 0, 0, 0, 0]),
        "no-such-call" => call(9999, none),
        _ => return None,
    })
}

fn at_cwd() -> usize {
    usize::try_from(u32::MAX - 99).unwrap_or(0)
}

/// Executes the file that a descriptor stands for.
fn execute(fd: i32) -> i64 {
    let flag = usize::try_from(libc::AT_EMPTY_PATH).unwrap_or(0);
    let fd = usize::try_from(fd).unwrap_or(0);
    let words = [EMPTY.as_ptr().addr(), 0];
    let path = EMPTY.as_ptr().addr();
    let words = words.as_ptr().addr();
    call(libc::SYS_execveat, [fd, path, words, 0, flag, 0])
}

/// Kills everybody but itself, one after the other, and says how many there were.
fn kill_others() -> i64 {
    let own = call(libc::SYS_getpid, [0; 6]);
    let others = (1..100_000).filter(|&id| id != own);
    let killed = others.filter(|&id| {
        let id = usize::try_from(id).unwrap_or(0);
        call(libc::SYS_kill, [id, 9, 0, 0, 0, 0]) == 0
    });
    i64::try_from(killed.count()).unwrap_or(i64::MAX)
}

/// A system call of 32-bit programs.
fn int80(number: usize) -> i64 {
    let mut value = number;
    // SAFETY: what it does is what is tried here; it has no pointer to our memory.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "xor ebx, ebx",
            "int 0x80",
            "pop rbx",
            inout("rax") value,
            in("rcx") 0,
            in("rdx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    value.cast_signed() as i64
}
