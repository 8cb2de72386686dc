//! Instructions that enter a kernel.

use std::{
    arch::{asm, x86_64::__cpuid},
    ffi::CStr,
};

use nix::libc;

use super::{ELSEWHERE, HERE, Way, own};

/// A path that is to be seen in the guest, if anywhere.
pub const PLACE: &CStr = c"/tmp/vmm-escaped";

/// `getpid` and `mkdir` of 64-bit programs and of 32-bit ones.
const GETPID: u64 = 39;
const MKDIR: u64 = 83;
const GETPID_32: u64 = 20;
const MKDIR_32: u64 = 39;
const KILL_32: u64 = 37;

/// Code of 32-bit programs, and of 64-bit ones.
const CODE_32: u16 = 0x23;
const CODE_64: u16 = 0x33;

pub fn ways() -> Vec<Way> {
    let mut ways: Vec<Way> = vec![
        ("syscall".to_owned(), Box::new(|| own(syscall(GETPID, 0)))),
        ("syscall-mkdir".to_owned(), Box::new(mkdir)),
        (
            "syscall-x32".to_owned(),
            Box::new(|| here(syscall(0x4000_0000 | GETPID, 0))),
        ),
        (
            "int80".to_owned(),
            Box::new(|| here(int80(GETPID_32, 0, 0))),
        ),
        ("int80-mkdir".to_owned(), Box::new(int80_mkdir)),
        (
            "int80-kill".to_owned(),
            Box::new(|| {
                // Everybody's parent, if the guest's numbers meant anything outside.
                int80(KILL_32, 2, 9);
                HERE
            }),
        ),
        ("sysenter".to_owned(), Box::new(sysenter)),
        ("trap-flag".to_owned(), Box::new(trap_flag)),
        ("bases".to_owned(), Box::new(bases)),
    ];
    for selector in [0, 0x10, 0x1b, 0x23, 0x2b, CODE_64, 0x3b, 0x53, 0x7b, 0xffff] {
        ways.push((
            format!("segment-{selector:#x}"),
            Box::new(move || segment(selector)),
        ));
    }
    for (name, at) in [("gettimeofday", 0), ("time", 0x400), ("getcpu", 0x800)] {
        ways.push((
            format!("vsyscall-{name}"),
            Box::new(move || vsyscall(0xffff_ffff_ff60_0000 + at)),
        ));
    }
    for at in [1, 0x3ff, 0x401, 0xc00, 0xfff] {
        ways.push((
            format!("vsyscall-{at:#x}"),
            Box::new(move || vsyscall(0xffff_ffff_ff60_0000 + at)),
        ));
    }
    // After the entry: back to 64 bits by a far jump is not needed, as a trap ends it.
    let entries: [(&str, &[u8]); 3] = [
        ("int80", &[0xcd, 0x80]),
        ("sysenter", &[0x0f, 0x34]),
        ("syscall", &[0x0f, 0x05]),
    ];
    for (name, entry) in entries {
        for call in [GETPID_32, MKDIR_32] {
            let entry = entry.to_vec();
            ways.push((
                format!("far-{name}-{call}"),
                Box::new(move || far(CODE_32, &entry, call)),
            ));
        }
    }
    for selector in [
        0, 0x08, 0x10, 0x18, 0x1b, 0x2b, CODE_64, 0x3b, 0x43, 0x53, 0x7, 0xffff,
    ] {
        ways.push((
            format!("far-selector-{selector:#x}"),
            Box::new(move || far(selector, &[0xcc], GETPID_32)),
        ));
    }
    ways
}

/// An answer to a call that the guest's kernel may not have: no id of another process.
fn here(value: i64) -> i32 {
    match value {
        _ if own(value) == HERE => HERE,
        // Not there, or something else.
        value if value <= 0 => HERE,
        _ => ELSEWHERE,
    }
}

fn syscall(number: u64, first: u64) -> i64 {
    let mut value = number.cast_signed();
    // SAFETY: the calls that are made here write to no memory.
    unsafe {
        asm!("syscall", inout("rax") value, in("rdi") first, in("rsi") 0o755,
             out("rcx") _, out("r11") _);
    }
    value
}

fn mkdir() -> i32 {
    syscall(MKDIR, PLACE.as_ptr().addr() as u64);
    exists(PLACE)
}

/// Whether the guest's kernel knows of it.
fn exists(path: &CStr) -> i32 {
    // SAFETY: the path is a string that ends.
    match unsafe { libc::access(path.as_ptr(), libc::F_OK) } {
        0 => HERE,
        _ => ELSEWHERE,
    }
}

fn int80(number: u64, first: u64, second: u64) -> i64 {
    let mut value = number.cast_signed();
    // SAFETY: the calls that are made here write to no memory.
    unsafe {
        asm!("push rbx", "mov rbx, {first}", "int 0x80", "pop rbx", first = in(reg) first,
             inout("rax") value, in("rcx") second, in("rdx") 0,
             out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    value
}

/// Memory that 32-bit code can name.
fn low_page(protection: i32) -> *mut u8 {
    const PLACE: usize = 0x1000_0000;
    // SAFETY: there is nothing of this program, which is linked below and has its heap and stack far above.
    let page = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let place = std::ptr::without_provenance_mut(PLACE);
        libc::mmap(place, 4096, protection, flags, -1, 0)
    };
    page.cast()
}

fn int80_mkdir() -> i32 {
    let page = low_page(libc::PROT_READ | libc::PROT_WRITE);
    let bytes = c"/tmp/vmm-escaped-32".to_bytes_with_nul();
    // SAFETY: the page is ours, and longer.
    unsafe { page.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    int80(MKDIR_32, page.addr() as u64, 0o755);
    HERE
}

fn sysenter() -> i32 {
    let mut value = GETPID_32.cast_signed();
    // SAFETY: where it is an instruction at all it comes back with a fault or not, and either is an end.
    unsafe {
        asm!("push rbp", "mov rbp, rsp", "sysenter", "pop rbp", inout("rax") value,
             out("rcx") _, out("rdx") _, out("r11") _);
    }
    here(value)
}

/// A step behind the call is the host's to make, if it is not told otherwise.
fn trap_flag() -> i32 {
    let mut value = GETPID.cast_signed();
    // SAFETY: the trap is a signal that ends us, or none.
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "syscall", inout("rax") value,
             out("rcx") _, out("r11") _);
    }
    own(value)
}

/// Loads data segments with a selector, which is a fault or not, and makes a call.
fn segment(selector: u16) -> i32 {
    // SAFETY: in 64-bit mode only the bases of fs and gs count, of which gs is none that the C library uses.
    unsafe {
        asm!("mov ds, {0:x}", "mov es, {0:x}", "mov gs, {0:x}", in(reg) selector);
    }
    own(syscall(GETPID, 0))
}

fn bases() -> i32 {
    // Where programs may set the bases themselves.
    let features = __cpuid(7).ebx;
    if features & 1 != 0 {
        for base in [0, 0x7fff_ffff_f000_u64, 0xffff_8000_0000_0000] {
            // SAFETY: nothing of ours is behind gs.
            unsafe { asm!("wrgsbase {0}", in(reg) base) };
            if own(syscall(GETPID, 0)) != HERE {
                return ELSEWHERE;
            }
        }
    }
    HERE
}

fn vsyscall(address: u64) -> i32 {
    let mut time = [0_i64; 4];
    // SAFETY: the calls that may be there write to the two words at most.
    unsafe {
        asm!("call {0}", in(reg) address, in("rdi") time.as_mut_ptr(), in("rsi") 0, in("rdx") 0,
             out("rax") _, out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    HERE
}

/// Runs `entry` in the code segment `selector`, with the number of a call, and a trap behind it.
fn far(selector: u16, entry: &[u8], number: u64) -> i32 {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let code = low_page(all);
    let path = c"/tmp/vmm-escaped-far".to_bytes_with_nul();
    // mov eax, NUMBER; mov ebx, PATH; the entry; int3. A call would push to a stack that 32-bit code has not.
    let low = |value: u64| u32::try_from(value).unwrap_or(0).to_le_bytes();
    let name = code.addr() as u64 + 256;
    let parts: [&[u8]; 6] = [&[0xb8], &low(number), &[0xbb], &low(name), entry, &[0xcc]];
    let program = parts.concat();
    // SAFETY: the page is ours, and has room for both.
    unsafe {
        code.copy_from_nonoverlapping(program.as_ptr(), program.len());
        code.add(256)
            .copy_from_nonoverlapping(path.as_ptr(), path.len());
    }
    let mut target = [0_u8; 10];
    target[..4].copy_from_slice(&low(code.addr() as u64));
    target[4..6].copy_from_slice(&selector.to_le_bytes());
    // SAFETY: it ends with a trap or a fault.
    unsafe {
        asm!("jmp fword ptr [{0}]", in(reg) target.as_ptr(), options(noreturn));
    }
}
