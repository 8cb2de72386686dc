//! What is tried: instructions that every kernel for x86-64 uses while it boots, and a check of what each has done.
//!
//! The guest is entered as PVH has it, in protected mode without paging, and finds its own way to 64-bit mode, to its
//! exceptions, to a user's mode and back. Before each attempt it writes down which it is, and at the end how it went, to be
//! read by whoever ran it.

use std::arch::global_asm;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Where everything is in the guest, one page each. The tables are made by the host.
pub const PML4: u64 = 0x1000;
pub const PDPT: u64 = 0x2000;
pub const PD: u64 = 0x3000;
pub const PT: u64 = 0x4000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const CODE: u64 = 0x7000;
pub const DATA: u64 = 0x8000;
const STACK: u64 = 0x9000;
pub const STACK_END: u64 = STACK + PAGE;
/// The state of the FPU.
const FPU: u64 = 0xa000;
/// Bytes of memory.
pub const MEMORY: u64 = 0xb000;

/// A page that is not there, but has a place in the page table.
const ABSENT: u64 = 0x10_0000;
const ABSENT_ENTRY: u64 = PT + ABSENT / PAGE * 8;

/// In [`DATA`]: which attempt it is, and how all went.
pub const STEP: u64 = DATA;
pub const OUTCOME: u64 = DATA + 4;
/// The exception that nobody expected, if that is the outcome.
pub const VECTOR: u64 = DATA + 8;
/// The exception that is expected next, where to go on after it, and what came with the last.
const EXPECTED: u64 = DATA + 16;
const RESUME: u64 = DATA + 24;
const FOUND_RIP: u64 = DATA + 32;
const FOUND_ERROR: u64 = DATA + 40;
const FOUND_CR2: u64 = DATA + 48;
/// What the CPU can: the second word of its features, and the parts of its state that XSAVE knows.
const FEATURES: u64 = DATA + 56;
const STATE: u64 = DATA + 60;
/// Sixteen bytes to work on.
const WORK: u64 = DATA + 64;
/// Operands of LGDT and LIDT.
pub const GDTR: u64 = DATA + 96;
pub const IDTR: u64 = DATA + 112;

/// Segments in [`GDT`], in the order that SYSCALL and SYSRET want.
pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_DATA: u16 = 0x20;
pub const USER_CODE: u16 = 0x28;
pub const TASK: u16 = 0x30;
/// Where [`TASK`] lies.
pub const TSS: u64 = GDT + 0x100;

/// Bytes from one handler of an exception to the next; they come first in the code's second half.
pub const HANDLER_LEN: u64 = 16;
pub const HANDLERS: u64 = CODE + 0x800;
/// Exceptions that there are.
pub const EXCEPTIONS: u64 = 32;

/// What the guest writes to when it is done.
pub const PORT: u16 = 0x10;

/// How it went, in [`OUTCOME`].
pub const DONE: u32 = 0x600d;
pub const WRONG: u32 = 1;
pub const EXCEPTION: u32 = 2;

/// What is tried, in this order. Numbers are the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum Step {
    /// Protected mode, without paging.
    Entry = 0,
    /// Paging, and with it 64-bit mode.
    LongMode,
    /// The tables of segments and exceptions.
    Tables,
    /// A breakpoint, by which kernels patch themselves.
    Int3,
    /// An instruction that is none, by which kernels warn.
    Ud2,
    /// A fault of the kernel's own.
    PageFault,
    /// What there is in this CPU.
    Cpuid,
    /// How the kernel's allocator changes its lists.
    Cmpxchg16b,
    /// Other locked operations.
    Locked,
    /// Registers that have no names of their own.
    Msr,
    /// The way between a program's `GS` and the kernel's.
    Swapgs,
    /// Copying and clearing.
    Strings,
    /// Pages that move.
    Invlpg,
    /// The old way to keep a program's FPU.
    Fxrstor,
    /// Which parts of it are kept.
    Xsetbv,
    /// The same, read.
    Xgetbv,
    /// The way to keep it.
    Xrstor,
    /// The newest way.
    Xrstors,
    /// The clock.
    Rdtsc,
    /// Going to a program, and its faults.
    User,
    /// A program's calls.
    Syscall,
}

impl Step {
    const ALL: [Self; 21] = [
        Self::Entry,
        Self::LongMode,
        Self::Tables,
        Self::Int3,
        Self::Ud2,
        Self::PageFault,
        Self::Cpuid,
        Self::Cmpxchg16b,
        Self::Locked,
        Self::Msr,
        Self::Swapgs,
        Self::Strings,
        Self::Invlpg,
        Self::Fxrstor,
        Self::Xsetbv,
        Self::Xgetbv,
        Self::Xrstor,
        Self::Xrstors,
        Self::Rdtsc,
        Self::User,
        Self::Syscall,
    ];

    /// The step of this number; a number that is none is that of a guest which never began.
    pub fn of_number(number: u32) -> Self {
        let index = usize::try_from(number).unwrap_or(0);
        Self::ALL.get(index).copied().unwrap_or(Self::Entry)
    }

    /// What a kernel would call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entry => "protected mode",
            Self::LongMode => "64-bit mode",
            Self::Tables => "lgdt, lidt, ltr",
            Self::Int3 => "int3",
            Self::Ud2 => "ud2",
            Self::PageFault => "a page fault",
            Self::Cpuid => "cpuid",
            Self::Cmpxchg16b => "lock cmpxchg16b",
            Self::Locked => "lock xadd, lock bts",
            Self::Msr => "rdmsr, wrmsr",
            Self::Swapgs => "swapgs",
            Self::Strings => "rep stos, rep movs",
            Self::Invlpg => "invlpg",
            Self::Fxrstor => "fxsave, fxrstor",
            Self::Xsetbv => "xsetbv",
            Self::Xgetbv => "xgetbv",
            Self::Xrstor => "xsave, xrstor",
            Self::Xrstors => "xsaves, xrstors",
            Self::Rdtsc => "rdtsc",
            Self::User => "a fault in user mode",
            Self::Syscall => "syscall, sysret",
        }
    }
}

/// The guest's code, to lie at [`CODE`].
pub fn code() -> &'static [u8] {
    unsafe extern "C" {
        static vmm_probe_start: u8;
        static vmm_probe_end: u8;
    }
    let (start, end) = (&raw const vmm_probe_start, &raw const vmm_probe_end);
    // SAFETY: both are labels in the section below, which is read-only and never goes away; what lies between them is
    // initialized, and the assembler has checked that it is one page.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

global_asm!(
    ".pushsection .rodata.vmm_probe, \"a\"",
    ".balign 16",
    "vmm_probe_start:",
    ".code32",
    // PAE, PGE, OSFXSR, OSXMMEXCPT
    "movl ${LONG_MODE}, {STEP}",
    "movl %cr4, %eax",
    "orl $0x6a0, %eax",
    "movl %eax, %cr4",
    "movl ${PML4}, %eax",
    "movl %eax, %cr3",
    // EFER: SCE, LME, NXE
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x901, %eax",
    "wrmsr",
    // PG, AM, WP, NE, ET, MP, PE
    "movl $0x80050033, %eax",
    "movl %eax, %cr0",
    "pushl ${KERNEL_CODE}",
    "pushl $({CODE} + .Lvmm_long - vmm_probe_start)",
    "lretl",
    ".code64",
    ".Lvmm_long:",
    //
    "movl ${TABLES}, {STEP}",
    "lgdt {GDTR}",
    "lidt {IDTR}",
    "movl ${KERNEL_DATA}, %eax",
    "movl %eax, %ss",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl ${TASK}, %eax",
    "ltr %ax",
    "str %ecx",
    "cmpl %eax, %ecx",
    "jne .Lvmm_wrong",
    //
    "movl ${INT3}, {STEP}",
    "movq $3, {EXPECTED}",
    "movq $({CODE} + .Lvmm_after_int3 - vmm_probe_start), {RESUME}",
    "int3",
    ".Lvmm_after_int3:",
    "cmpq $({CODE} + .Lvmm_after_int3 - vmm_probe_start), {FOUND_RIP}",
    "jne .Lvmm_wrong",
    //
    "movl ${UD2}, {STEP}",
    "movq $6, {EXPECTED}",
    "movq $({CODE} + .Lvmm_after_ud2 - vmm_probe_start), {RESUME}",
    ".Lvmm_ud2:",
    "ud2",
    ".Lvmm_after_ud2:",
    "cmpq $({CODE} + .Lvmm_ud2 - vmm_probe_start), {FOUND_RIP}",
    "jne .Lvmm_wrong",
    //
    "movl ${PAGE_FAULT}, {STEP}",
    "movq $14, {EXPECTED}",
    "movq $({CODE} + .Lvmm_after_fault - vmm_probe_start), {RESUME}",
    ".Lvmm_fault:",
    "movb %al, {ABSENT} + 5",
    ".Lvmm_after_fault:",
    "cmpq $({CODE} + .Lvmm_fault - vmm_probe_start), {FOUND_RIP}",
    "jne .Lvmm_wrong",
    "cmpq $({ABSENT} + 5), {FOUND_CR2}",
    "jne .Lvmm_wrong",
    // The kernel has written, and nothing is there.
    "cmpq $2, {FOUND_ERROR}",
    "jne .Lvmm_wrong",
    //
    "movl ${CPUID}, {STEP}",
    "movl $1, %eax",
    "cpuid",
    // Every CPU of 64 bits has MSR, PAE, CX8, CMOV, FXSR and SSE2.
    "andl $0x05008160, %edx",
    "cmpl $0x05008160, %edx",
    "jne .Lvmm_wrong",
    "movl %ecx, {FEATURES}",
    // x87 and SSE, and AVX where it is
    "movl $3, {STATE}",
    "btl $28, %ecx",
    "jnc .Lvmm_no_avx",
    "movl $7, {STATE}",
    ".Lvmm_no_avx:",
    //
    "btl $13, {FEATURES}",
    "jnc .Lvmm_no_cx16",
    "movl ${CMPXCHG16B}, {STEP}",
    "movq $1, {WORK}",
    "movq $2, {WORK} + 8",
    "movl $1, %eax",
    "movl $2, %edx",
    "movl $3, %ebx",
    "movl $4, %ecx",
    "lock cmpxchg16b {WORK}",
    "jne .Lvmm_wrong",
    "cmpq $3, {WORK}",
    "jne .Lvmm_wrong",
    "cmpq $4, {WORK} + 8",
    "jne .Lvmm_wrong",
    "lock cmpxchg16b {WORK}",
    "je .Lvmm_wrong",
    "cmpq $3, %rax",
    "jne .Lvmm_wrong",
    "cmpq $4, %rdx",
    "jne .Lvmm_wrong",
    ".Lvmm_no_cx16:",
    //
    "movl ${LOCKED}, {STEP}",
    "movq $40, {WORK}",
    "movl $2, %eax",
    "lock xaddq %rax, {WORK}",
    "cmpq $40, %rax",
    "jne .Lvmm_wrong",
    "lock btsq $0, {WORK}",
    "jc .Lvmm_wrong",
    "cmpq $43, {WORK}",
    "jne .Lvmm_wrong",
    // GS_BASE, and what it is exchanged with
    "movl ${MSR}, {STEP}",
    "xorl %edx, %edx",
    "movl $0xc0000102, %ecx",
    "movl ${STACK}, %eax",
    "wrmsr",
    "movl $0xc0000101, %ecx",
    "movl ${DATA}, %eax",
    "wrmsr",
    "cmpq $43, %gs:({WORK} - {DATA})",
    "jne .Lvmm_wrong",
    //
    "movl ${SWAPGS}, {STEP}",
    "swapgs",
    "rdmsr",
    "cmpl ${STACK}, %eax",
    "jne .Lvmm_wrong",
    "swapgs",
    "cmpq $43, %gs:({WORK} - {DATA})",
    "jne .Lvmm_wrong",
    //
    "movl ${STRINGS}, {STEP}",
    "cld",
    "movabsq $0x0123456789abcdef, %rax",
    "movl ${STACK}, %edi",
    "movl $64, %ecx",
    "rep stosq",
    "movl ${STACK}, %esi",
    "movl $512, %ecx",
    "rep movsb",
    "cmpq %rax, {STACK} + 1016",
    "jne .Lvmm_wrong",
    "testl %ecx, %ecx",
    "jne .Lvmm_wrong",
    //
    "movl ${INVLPG}, {STEP}",
    "movq $({DATA} + 3), {ABSENT_ENTRY}",
    "cmpq $43, {ABSENT} + ({WORK} - {DATA})",
    "jne .Lvmm_wrong",
    "movq $({STACK} + 3), {ABSENT_ENTRY}",
    "invlpg {ABSENT}",
    "cmpq %rax, {ABSENT} + 1016",
    "jne .Lvmm_wrong",
    "movq $0, {ABSENT_ENTRY}",
    "movq %cr3, %rcx",
    "movq %rcx, %cr3",
    //
    "movl ${FXRSTOR}, {STEP}",
    "fninit",
    "movq %rax, %xmm0",
    "movq %rax, %rsi",
    "fxsave64 {FPU}",
    "pxor %xmm0, %xmm0",
    "fxrstor64 {FPU}",
    "movq %xmm0, %rdi",
    "cmpq %rsi, %rdi",
    "jne .Lvmm_wrong",
    //
    "btl $26, {FEATURES}",
    "jnc .Lvmm_no_xsave",
    "movl ${XSETBV}, {STEP}",
    "movq %cr4, %rax",
    "orl $0x40000, %eax",
    "movq %rax, %cr4",
    "xorl %ecx, %ecx",
    "xorl %edx, %edx",
    "movl {STATE}, %eax",
    "xsetbv",
    "movl ${XGETBV}, {STEP}",
    "xgetbv",
    "cmpl %eax, {STATE}",
    "jne .Lvmm_wrong",
    "testl %edx, %edx",
    "jne .Lvmm_wrong",
    //
    "movl ${XRSTOR}, {STEP}",
    "xsave64 {FPU}",
    "pxor %xmm0, %xmm0",
    "xrstor64 {FPU}",
    "movq %xmm0, %rdi",
    "cmpq %rsi, %rdi",
    "jne .Lvmm_wrong",
    //
    "movl $0xd, %eax",
    "movl $1, %ecx",
    "cpuid",
    "btl $3, %eax",
    "jnc .Lvmm_no_xsave",
    "movl ${XRSTORS}, {STEP}",
    "xorl %edx, %edx",
    "movl {STATE}, %eax",
    "xsaves64 {FPU}",
    "pxor %xmm0, %xmm0",
    "xrstors64 {FPU}",
    "movq %xmm0, %rdi",
    "cmpq %rsi, %rdi",
    "jne .Lvmm_wrong",
    ".Lvmm_no_xsave:",
    //
    "movl ${RDTSC}, {STEP}",
    "rdtsc",
    "shlq $32, %rdx",
    "leaq (%rdx, %rax), %rbx",
    "lfence",
    "rdtsc",
    "shlq $32, %rdx",
    "addq %rdx, %rax",
    "cmpq %rbx, %rax",
    "jb .Lvmm_wrong",
    // STAR, LSTAR and FMASK
    "movl ${USER}, {STEP}",
    "movl $0xc0000081, %ecx",
    "xorl %eax, %eax",
    "movl $(({USER_DATA} - 8 + 3) * 0x10000 + {KERNEL_CODE}), %edx",
    "wrmsr",
    "movl $0xc0000082, %ecx",
    "movl $({CODE} + .Lvmm_called - vmm_probe_start), %eax",
    "xorl %edx, %edx",
    "wrmsr",
    "movl $0xc0000084, %ecx",
    "movl $0x700, %eax",
    "wrmsr",
    "pushq $({USER_DATA} + 3)",
    "pushq $({STACK} + 0x800)",
    "pushq $2",
    "pushq $({USER_CODE} + 3)",
    "pushq $({CODE} + .Lvmm_user - vmm_probe_start)",
    "iretq",
    // A program
    ".Lvmm_user:",
    "movl %cs, %eax",
    "cmpl $({USER_CODE} + 3), %eax",
    "jne .Lvmm_user_wrong",
    "movq $6, {EXPECTED}",
    "movq $({CODE} + .Lvmm_user_after - vmm_probe_start), {RESUME}",
    ".Lvmm_user_ud2:",
    "ud2",
    ".Lvmm_user_after:",
    "cmpq $({CODE} + .Lvmm_user_ud2 - vmm_probe_start), {FOUND_RIP}",
    "jne .Lvmm_user_wrong",
    "movl ${SYSCALL}, {STEP}",
    "movl $1, %eax",
    "syscall",
    ".Lvmm_user_called:",
    "cmpl $17, %eax",
    "jne .Lvmm_user_wrong",
    "movl $2, %eax",
    "syscall",
    ".Lvmm_user_wrong:",
    "movl $3, %eax",
    "syscall",
    "ud2",
    // What it calls
    ".Lvmm_called:",
    "cmpl $1, %eax",
    "jne .Lvmm_not_first",
    "cmpq $({CODE} + .Lvmm_user_called - vmm_probe_start), %rcx",
    "jne .Lvmm_wrong",
    "movl $17, %eax",
    "sysretq",
    ".Lvmm_not_first:",
    "cmpl $2, %eax",
    "jne .Lvmm_wrong",
    "movl %cs, %eax",
    "cmpl ${KERNEL_CODE}, %eax",
    "jne .Lvmm_wrong",
    "movl ${DONE}, {OUTCOME}",
    "jmp .Lvmm_end",
    //
    ".Lvmm_wrong:",
    "movl ${WRONG}, {OUTCOME}",
    ".Lvmm_end:",
    "outb %al, ${PORT}",
    "jmp .Lvmm_end",
    // An exception: its number lies on the stack, then what the CPU has put there.
    ".Lvmm_exception:",
    "pushq %rax",
    "movq 8(%rsp), %rax",
    "cmpq {EXPECTED}, %rax",
    "jne .Lvmm_unexpected",
    "movq $-1, {EXPECTED}",
    // Only that of a page comes with an error's code, of those that are expected.
    "cmpl $14, %eax",
    "jne .Lvmm_no_code",
    "movq 16(%rsp), %rax",
    "movq %rax, {FOUND_ERROR}",
    "popq %rax",
    "addq $8, %rsp",
    "pushq %rax",
    ".Lvmm_no_code:",
    "movq %cr2, %rax",
    "movq %rax, {FOUND_CR2}",
    "movq 16(%rsp), %rax",
    "movq %rax, {FOUND_RIP}",
    "movq {RESUME}, %rax",
    "movq %rax, 16(%rsp)",
    "popq %rax",
    "addq $8, %rsp",
    "iretq",
    ".Lvmm_unexpected:",
    "movl %eax, {VECTOR}",
    "movl ${EXCEPTION}, {OUTCOME}",
    "jmp .Lvmm_end",
    // Where each enters
    ".org vmm_probe_start + {HANDLERS} - {CODE}, 0xcc",
    ".set .Lvmm_number, 0",
    ".rept {EXCEPTIONS}",
    ".balign {HANDLER_LEN}, 0xcc",
    "pushq $.Lvmm_number",
    "jmp .Lvmm_exception",
    ".set .Lvmm_number, .Lvmm_number + 1",
    ".endr",
    ".org vmm_probe_start + {PAGE}, 0xcc",
    "vmm_probe_end:",
    ".popsection",
    PAGE = const PAGE,
    PML4 = const PML4,
    CODE = const CODE,
    DATA = const DATA,
    STACK = const STACK,
    FPU = const FPU,
    ABSENT = const ABSENT,
    ABSENT_ENTRY = const ABSENT_ENTRY,
    STEP = const STEP,
    OUTCOME = const OUTCOME,
    VECTOR = const VECTOR,
    EXPECTED = const EXPECTED,
    RESUME = const RESUME,
    FOUND_RIP = const FOUND_RIP,
    FOUND_ERROR = const FOUND_ERROR,
    FOUND_CR2 = const FOUND_CR2,
    FEATURES = const FEATURES,
    STATE = const STATE,
    WORK = const WORK,
    GDTR = const GDTR,
    IDTR = const IDTR,
    KERNEL_CODE = const KERNEL_CODE,
    KERNEL_DATA = const KERNEL_DATA,
    USER_CODE = const USER_CODE,
    USER_DATA = const USER_DATA,
    TASK = const TASK,
    HANDLERS = const HANDLERS,
    HANDLER_LEN = const HANDLER_LEN,
    EXCEPTIONS = const EXCEPTIONS,
    PORT = const PORT,
    DONE = const DONE,
    WRONG = const WRONG,
    EXCEPTION = const EXCEPTION,
    LONG_MODE = const Step::LongMode as u32,
    TABLES = const Step::Tables as u32,
    INT3 = const Step::Int3 as u32,
    UD2 = const Step::Ud2 as u32,
    PAGE_FAULT = const Step::PageFault as u32,
    CPUID = const Step::Cpuid as u32,
    CMPXCHG16B = const Step::Cmpxchg16b as u32,
    LOCKED = const Step::Locked as u32,
    MSR = const Step::Msr as u32,
    SWAPGS = const Step::Swapgs as u32,
    STRINGS = const Step::Strings as u32,
    INVLPG = const Step::Invlpg as u32,
    FXRSTOR = const Step::Fxrstor as u32,
    XSETBV = const Step::Xsetbv as u32,
    XGETBV = const Step::Xgetbv as u32,
    XRSTOR = const Step::Xrstor as u32,
    XRSTORS = const Step::Xrstors as u32,
    RDTSC = const Step::Rdtsc as u32,
    USER = const Step::User as u32,
    SYSCALL = const Step::Syscall as u32,
    options(att_syntax)
);
