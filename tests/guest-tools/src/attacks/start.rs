//! From the PVH entry to Rust: 64 bits, the first 4 GiB one to one, a stack, and a way back from exceptions.
//!
//! Memory has fixed places: tables from 16 MiB on, stacks behind them, and what devices are shown from 32 MiB on.

use std::{
    arch::global_asm,
    sync::atomic::{AtomicU32, Ordering},
};

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen's `docs/misc/pvh`), which names the place that `build.rs` gives to `.pvh`.
#[repr(C, align(4))]
struct Note {
    name_len: u32,
    content_len: u32,
    kind: u32,
    name: [u8; 4],
    content: u32,
}

#[unsafe(link_section = ".note.Xen")]
#[used]
static NOTE: Note = Note {
    name_len: 4,
    content_len: 4,
    kind: 18,
    name: *b"Xen\0",
    content: 0x80_0000,
};

/// Where the table of exceptions is, and for each processor what [`attempt`] keeps.
const IDT: u64 = 0x101_0000;
const KEPT: u64 = 0x102_0000;

/// Where other processors begin, in real mode.
const TRAMPOLINE: u64 = 0x7_0000;

/// Most processors.
pub const PROCESSORS: u64 = 16;

global_asm!(
    r#"
    .section .pvh, "ax"
    .set at, 0x800000
    .set tables, 0x1000000
    .set kept, 0x1020000
    .set stacks, 0x1100000
    .code32
    .globl evil_pvh
evil_pvh:
pvh:
    cli
    movl %ebx, %esi
    movl $tables, %edi
    xorl %eax, %eax
    movl $0x1c00, %ecx
    rep stosl
    movl $tables + 0x1003, tables
    movl $tables + 0x2003, tables + 0x1000
    movl $tables + 0x3003, tables + 0x1008
    movl $tables + 0x4003, tables + 0x1010
    movl $tables + 0x5003, tables + 0x1018
    movl $tables + 0x2000, %edi
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
common:
    lgdtl at + gdt_pointer - pvh
    movl $tables, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffffb, %eax
    orl $0x80000003, %eax
    movl %eax, %cr0
    ljmpl $0x08, $at + long - pvh
    .code64
long:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movl %ebx, %edx
    shll $16, %ebx
    leal stacks + 0x10000(%rbx), %esp
    movl %esi, %edi
    .weak _DYNAMIC
    .hidden _DYNAMIC
    leaq _DYNAMIC(%rip), %rsi
    call {start}
3:  hlt
    jmp 3b

    .code16
    .globl evil_trampoline
evil_trampoline:
trampoline:
    cli
    xorl %esi, %esi
    lgdtl %cs:trampoline_pointer - trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $at + protected - pvh
trampoline_pointer:
    .word 31
    .long at + gdt - pvh
    .globl evil_trampoline_end
evil_trampoline_end:
    .code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    jmp common
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
gdt_pointer:
    .word 31
    .long at + gdt - pvh

    .code64
    .text
    .globl evil_attempt
evil_attempt:
    movq %rbx, 0(%rdx)
    movq %rbp, 8(%rdx)
    movq %r12, 16(%rdx)
    movq %r13, 24(%rdx)
    movq %r14, 32(%rdx)
    movq %r15, 40(%rdx)
    movq %rsp, 48(%rdx)
    movq $1, 56(%rdx)
    pushq %rdx
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    popq %rdx
    movq $0, 56(%rdx)
    xorl %eax, %eax
    ret
    .globl evil_exception
evil_exception:
    cli
    cld
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    shll $6, %ebx
    leal kept(%rbx), %edx
    cmpq $0, 56(%rdx)
    je 4f
    movq $0, 56(%rdx)
    movq 0(%rdx), %rbx
    movq 8(%rdx), %rbp
    movq 16(%rdx), %r12
    movq 24(%rdx), %r13
    movq 32(%rdx), %r14
    movq 40(%rdx), %r15
    movq 48(%rdx), %rsp
    movl $1, %eax
    ret
    // Nobody expects one.
4:  movb $0xfe, %al
    outb %al, $0x64
    hlt
    jmp 4b
    "#,
    start = sym evil_start,
    options(att_syntax)
);

unsafe extern "C" {
    fn evil_attempt(what: extern "C" fn(u64), with: u64, kept: u64) -> u64;
    fn evil_exception();
    static evil_trampoline: u8;
    static evil_trampoline_end: u8;
}

/// Processors that have come as far as here.
static HERE: AtomicU32 = AtomicU32::new(0);

/// The first thing in Rust, on each processor: the first has a pointer to what the machine says of itself.
extern "C" fn evil_start(info: u64, dynamic: *const [u64; 2], processor: u32) -> ! {
    if info != 0 {
        // SAFETY: it is this program's own, as the linker has left it, and nobody else is here yet.
        unsafe { relocate(dynamic) };
        set_exceptions();
    }
    load_exceptions();
    HERE.fetch_add(1, Ordering::AcqRel);
    if info == 0 {
        super::other(processor);
    }
    // SAFETY: by the boot protocol (`hvm_start_info`), the command line's address is its fourth word.
    let cmdline = unsafe { (info as *const u64).add(3).read() };
    // SAFETY: it ends with a zero, and stays where it is.
    let cmdline = unsafe { std::ffi::CStr::from_ptr(cmdline as *const std::ffi::c_char) };
    super::first(cmdline.to_str().unwrap_or(""))
}

/// Addresses in tables are what they are linked for, but the linker has left it to somebody else to write them.
unsafe fn relocate(mut dynamic: *const [u64; 2]) {
    const TABLE: u64 = 7;
    const SIZE: u64 = 8;
    const RELATIVE: u64 = 8;
    let (mut table, mut size) = (0, 0);
    // SAFETY: the list ends with a zero, and its table has as many bytes as it says, of addresses in this program.
    unsafe {
        while (*dynamic)[0] != 0 {
            match *dynamic {
                [TABLE, value] => table = value,
                [SIZE, value] => size = value,
                _ => {}
            }
            dynamic = dynamic.add(1);
        }
        for at in (0..size).step_by(24) {
            let [place, kind, value] = ((table + at) as *const [u64; 3]).read();
            if kind == RELATIVE {
                (place as *mut u64).write_unaligned(value);
            }
        }
    }
}

fn set_exceptions() {
    let handler = evil_exception as *const () as u64;
    let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    for vector in 0..256 {
        // SAFETY: the table's place is memory that nothing else is in.
        unsafe { ((IDT + 16 * vector) as *mut [u64; 2]).write([low, handler >> 32]) };
    }
}

fn load_exceptions() {
    let pointer: [u16; 5] = [0xfff, 0, (IDT >> 16) as u16, 0, 0];
    // SAFETY: the table is there, and stays.
    unsafe { std::arch::asm!("lidt [{}]", in(reg) &raw const pointer) };
}

/// Which processor this is.
fn own_number() -> u64 {
    u64::from(std::arch::x86_64::__cpuid(1).ebx >> 24)
}

/// Does something that may be an exception; whether it was none.
pub fn attempt(what: extern "C" fn(u64), with: u64) -> bool {
    let kept = KEPT + 64 * (own_number() % PROCESSORS);
    // SAFETY: what is kept belongs to this processor alone; after an exception it goes on as if the call had returned.
    unsafe { evil_attempt(what, with, kept) == 0 }
}

/// Starts all other processors, and says how many there are once no more have come for a while.
pub fn start_others() -> u32 {
    const COMMAND: u64 = 0xfee0_0300;
    const ALL_OTHERS: u32 = 0xc_4000;
    let from = &raw const evil_trampoline;
    // SAFETY: both are in this program; the place is memory below 640 KiB that nothing is in.
    unsafe {
        let len = (&raw const evil_trampoline_end).offset_from_unsigned(from);
        std::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len);
        for message in [0x500, 0x600 | 0x70, 0x600 | 0x70] {
            (COMMAND as *mut u32).write_volatile(ALL_OTHERS | message);
            wait(10_000_000);
        }
    }
    loop {
        let before = HERE.load(Ordering::Acquire);
        wait(100_000_000);
        if HERE.load(Ordering::Acquire) == before {
            return before - 1;
        }
    }
}

/// Lets so many cycles go by.
pub fn wait(cycles: u64) {
    // SAFETY: every processor has it.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let start = now();
    while now().wrapping_sub(start) < cycles {
        std::hint::spin_loop();
    }
}
