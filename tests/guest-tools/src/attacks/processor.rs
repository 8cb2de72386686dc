//! What a processor can do to its machine besides reaching for devices.

use std::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Random,
    start::{attempt, wait},
};

/// Where nothing is.
const HOLE: u64 = 0xc000_0000;
const HOLE_LEN: u64 = 0x4000_0000;

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nobody wakes it up.
        unsafe { asm!("cli", "hlt") };
    }
}

/// An exception while there is none to handle it.
pub fn triple_fault() {
    let nothing: [u16; 5] = [0; 5];
    // SAFETY: that there is no table is the purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing) };
}

/// Goes on where no memory is.
pub fn execute_nothing() {
    // SAFETY: that there is nothing is the purpose.
    unsafe { asm!("jmp {}", in(reg) HOLE + 0x1000) };
}

/// Reaches for a device by an instruction that KVM does not emulate.
pub fn wide_access() {
    // SAFETY: it is no memory of ours.
    unsafe { asm!("fxsave64 [{}]", in(reg) HOLE + 0x1000) };
}

/// Reads and writes what is no memory, of all widths, across pages and devices' edges.
pub fn memory(random: &mut Random, count: u64) {
    for _ in 0..count {
        let at = match random.below(4) {
            // Devices, and what is beside them.
            0 => 0xd000_0000 + random.below(0x1_0000),
            // The I/O APIC, whose lines nobody waits for.
            1 => 0xfec0_0000 + random.below(0x40),
            2 => 0xd000_0000 + 0x1000 * random.below(10) - random.below(9),
            // But for processors' own controllers, which could stop us.
            _ => HOLE + random.below(HOLE_LEN - 0x120_0000),
        };
        let width = random.one_of(&[1, 2, 4, 8]);
        match random.below(2) {
            0 => {
                read(at, width);
            }
            _ => write(at, width, random.value()),
        }
    }
}

/// Reads 1, 2, 4 or 8 bytes, wherever that is.
pub fn read(at: u64, width: u64) -> u64 {
    let value: u64;
    // SAFETY: what it reads is not used as anything but a number.
    unsafe {
        match width {
            1 => asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at),
            2 => asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at),
            4 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at),
            _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at),
        }
    }
    value
}

/// Writes as many. Not where this program is.
pub fn write(at: u64, width: u64, value: u64) {
    // SAFETY: callers name devices, or memory that is for them.
    unsafe {
        match width {
            1 => asm!("mov byte ptr [{1}], {0}", in(reg_byte) value as u8, in(reg) at),
            2 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at),
            4 => asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at),
            _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at),
        }
    }
}

/// What [`attempt`] is to write.
static VALUE: AtomicU64 = AtomicU64::new(0);

extern "C" fn write_msr(index: u64) {
    let value = VALUE.load(Ordering::Relaxed);
    // SAFETY: those that this program needs are left out.
    unsafe {
        asm!("wrmsr", in("ecx") index as u32, in("eax") value as u32, in("edx") (value >> 32) as u32);
    }
}

extern "C" fn read_msr(index: u64) {
    // SAFETY: reads are of no harm.
    unsafe { asm!("rdmsr", in("ecx") index as u32, out("eax") _, out("edx") _) };
}

/// Registers of the processor that are numbers: what KVM has of its own, what Hyper-V and Xen have, and all others.
pub fn msrs(random: &mut Random, count: u64) {
    // EFER: without it there is nobody left to go on.
    const NEEDED: [u64; 1] = [0xc000_0080];
    for _ in 0..count {
        let index = match random.below(8) {
            0 => random.below(0x2000),
            1 => 0xc000_0000 + random.below(0x2000),
            2 => 0xc001_0000 + random.below(0x2000),
            3 => 0x4000_0000 + random.below(0x200),
            4 => 0x4b56_4d00 + random.below(0x10),
            5 => random.one_of(&[
                0x11, 0x12, 0x1b, 0x10, 0x3b, 0x6e0, 0x277, 0x2ff, 0x1a0, 0x1d9,
            ]),
            6 => 0x800 + random.below(0x100),
            _ => random.next() & 0xffff_ffff,
        };
        if NEEDED.contains(&index) {
            continue;
        }
        attempt(read_msr, index);
        VALUE.store(random.value(), Ordering::Relaxed);
        attempt(write_msr, index);
    }
}

extern "C" fn vmmcall(number: u64) {
    let value = VALUE.load(Ordering::Relaxed);
    // SAFETY: what the host may write for it is in memory that is for that.
    unsafe {
        asm!("xchg rbx, {other}", "vmmcall", "xchg rbx, {other}", other = inout(reg) value => _,
            inout("rax") number => _, in("rcx") value, in("rdx") value, in("rsi") value);
    }
}

extern "C" fn vmcall(number: u64) {
    let value = VALUE.load(Ordering::Relaxed);
    // SAFETY: as above.
    unsafe {
        asm!("vmcall", inout("rax") number => _, in("rcx") value, in("rdx") value, in("rsi") value);
    }
}

/// Calls to the host, known and unknown.
pub fn hypercalls(random: &mut Random, count: u64) {
    for _ in 0..count {
        let number = match random.below(3) {
            0 => random.value(),
            _ => random.below(16),
        };
        VALUE.store(random.value(), Ordering::Relaxed);
        // Either may be an instruction that the processor does not have.
        if !attempt(vmmcall, number) {
            attempt(vmcall, number);
        }
    }
}

/// The local controller's registers, but for what would end us: messages to everybody, of all kinds.
pub fn interrupts(random: &mut Random, count: u64) {
    const LOCAL: u64 = 0xfee0_0000;
    for _ in 0..count {
        let offset = random.below(0x40) << 4;
        // A message: what kind, to whom. Not to ourselves one that starts us anew.
        let value = match offset {
            0x300 => 0xc_0000 | random.next() & 0xcfff,
            _ => random.next() & 0xffff_ffff,
        };
        match random.below(2) {
            0 => {
                read(LOCAL + offset, 4);
            }
            _ => write(LOCAL + offset, 4, value),
        }
    }
}

/// Interrupts without end to all others, and to itself one that it does not take.
pub fn interrupt_storm() {
    super::start_others();
    loop {
        write(0xfee0_0300, 4, 0xc_00f0);
        write(0xfee0_0300, 4, 0x4_00f1);
        wait(100);
    }
}
