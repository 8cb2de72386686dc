//! Forged state: frames of signals, bases of segments, restartable sequences.

use std::arch::asm;

use nix::libc;

use super::{HERE, Way, own};

/// Addresses that a forged state goes on at: the kernel's own, the stub's, none, and the vsyscall page.
const ADDRESSES: [u64; 6] = [
    0,
    0x6000_0000,
    0x7fff_ffff_c000,
    0x8000_0000_0000,
    0xffff_ffff_8100_0000,
    0xffff_ffff_ff60_0400,
];

/// Words of a 64-bit frame's registers that hold the instruction pointer, flags and segments: `struct sigcontext`.
const RSP: usize = 15;
const RIP: usize = 16;
const FLAGS: usize = 17;
const SEGMENTS: usize = 18;

pub fn ways() -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    for address in ADDRESSES {
        ways.push((
            format!("frame-at-{address:#x}"),
            Box::new(move || sigreturn(&[(RIP, address)])),
        ));
        ways.push((
            format!("frame-stack-{address:#x}"),
            Box::new(move || sigreturn(&[(RSP, address)])),
        ));
        ways.push((
            format!("base-fs-{address:#x}"),
            Box::new(move || base(0x1002, address)),
        ));
        ways.push((
            format!("base-gs-{address:#x}"),
            Box::new(move || base(0x1001, address)),
        ));
        ways.push((
            format!("rseq-{address:#x}"),
            Box::new(move || rseq(address)),
        ));
    }
    // cs, gs, fs, ss.
    for segments in [
        0,
        0x002b_0000_0000_0023,
        0x0018_0000_0000_0010,
        0x002b_0000_0000_0033,
        u64::MAX,
    ] {
        ways.push((
            format!("frame-segments-{segments:#x}"),
            Box::new(move || sigreturn(&[(SEGMENTS, segments)])),
        ));
    }
    // The trap flag, privileges for input and output, nested task, alignment checks, virtual 8086.
    for flags in [0x100, 0x3000, 0x4000, 0x4_0000, 0x2_0000, u64::MAX] {
        ways.push((
            format!("frame-flags-{flags:#x}"),
            Box::new(move || sigreturn(&[(FLAGS, flags)])),
        ));
    }
    // The number of a call, and values that ask the kernel to make it again.
    for (name, value) in [("restart", -512_i64), ("restart-block", -516)] {
        ways.push((
            format!("frame-{name}"),
            Box::new(move || sigreturn(&[(13, value.cast_unsigned())])),
        ));
    }
    ways.push(("frame-noise".to_owned(), Box::new(noise)));
    ways
}

/// Goes back from a signal's handler with a frame in which these words were changed.
fn sigreturn(words: &[(usize, u64)]) -> i32 {
    CHANGES.set(words.to_vec());
    signalled()
}

thread_local! {
    static CHANGES: std::cell::RefCell<Vec<(usize, u64)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn signalled() -> i32 {
    // SAFETY: the handler has the type that the flag says.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = (handler as *const ()).expose_provenance();
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        libc::raise(libc::SIGUSR1);
        own(i64::from(libc::getpid()))
    }
}

extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // Flags, link, stack: 40 bytes; then the registers.
    let registers = context.cast::<u64>().wrapping_add(5);
    CHANGES.with_borrow(|changes| {
        for &(at, value) in changes {
            // SAFETY: the frame is there, and has as many words.
            unsafe { registers.add(at).write_volatile(value) };
        }
    });
}

/// Many frames of random words, each in a child.
fn noise() -> i32 {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..100 {
        let changes = (0..23)
            .filter_map(|at| {
                let (chance, value) = (next(), next());
                (chance % 3 == 0).then_some((at, value))
            })
            .collect();
        // SAFETY: the child has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::alarm(2);
                CHANGES.set(changes);
                signalled();
                libc::_exit(0);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
        }
    }
    HERE
}

fn base(code: i32, address: u64) -> i32 {
    let mut value = 158_i64;
    let mut id = 39_i64;
    // SAFETY: nothing of ours is used between the first call and the last but registers.
    unsafe {
        asm!("syscall", inout("rax") value, in("rdi") code, in("rsi") address,
             out("rcx") _, out("r11") _);
        asm!("syscall", inout("rax") id, out("rcx") _, out("r11") _);
    }
    // With a base of somebody else's the C library can do nothing any more.
    let here = id > 0 && value > -4096;
    // SAFETY: the end.
    unsafe {
        asm!("syscall", in("rax") 231, in("rdi") u64::from(!here), options(noreturn));
    }
}

/// A restartable sequence around all code, whose end is somewhere else.
fn rseq(address: u64) -> i32 {
    #[repr(C, align(32))]
    struct Area([u64; 8]);
    let sequence = Area([0, 0x1000, 0x7fff_0000_0000, address, 0, 0, 0, 0]);
    let mut area = Area([0; 8]);
    area.0[1] = (&raw const sequence).expose_provenance() as u64;
    // SAFETY: both live until the end of this function, at which the kernel is told.
    unsafe {
        let space = (&raw mut area).expose_provenance();
        libc::syscall(libc::SYS_rseq, space, 32, 0, 0x5305_3053);
        for _ in 0..1000 {
            libc::sched_yield();
        }
        libc::syscall(libc::SYS_rseq, space, 32, 1, 0x5305_3053);
    }
    HERE
}
