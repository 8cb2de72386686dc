//! Ports.

use std::{arch::asm, fmt};

use super::Random;

const SERIAL: u16 = 0x3f8;
const KEYBOARD: u16 = 0x64;

/// The serial port.
pub struct Console;

impl Console {
    pub fn byte(&mut self, byte: u8) {
        out(SERIAL, 1, byte.into());
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.byte(byte));
        Ok(())
    }
}

/// Has a thread of the machine make the system call `call=`, with `args=`: by ports of the machine's failpoints.
pub fn taken_over(cmdline: &str, thread: u16) {
    const ARGUMENT: u16 = 0x5e00;
    let given = super::word(cmdline, "args").unwrap_or("").split(',');
    let mut arguments = [0_i32; 6];
    for (place, word) in arguments.iter_mut().zip(given) {
        *place = word.parse().unwrap_or(0);
    }
    for argument in arguments {
        out(ARGUMENT, 4, argument.cast_unsigned());
    }
    let call = super::word(cmdline, "call").and_then(|word| word.parse().ok());
    out(thread, 4, call.unwrap_or(u32::MAX));
    // The devices' thread does it when it comes to it.
    super::start::wait(1_000_000_000);
}

/// Ends the machine.
pub fn reset() -> ! {
    out(KEYBOARD, 1, 0xfe);
    super::processor::halt()
}

/// Writes a port, 1, 2 or 4 bytes.
fn out(port: u16, width: u64, value: u32) {
    // SAFETY: a port is no memory.
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}

fn input(port: u16, width: u64) {
    // SAFETY: a port is no memory.
    unsafe {
        match width {
            1 => asm!("in al, dx", in("dx") port, out("al") _),
            2 => asm!("in ax, dx", in("dx") port, out("ax") _),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _),
        }
    }
}

/// Many at once: KVM hands them over together.
fn string(port: u16, count: u64, is_out: bool) {
    let mut bytes = [0_u8; 64];
    let at = bytes.as_mut_ptr();
    // SAFETY: it reads or writes as many bytes as there are.
    unsafe {
        match is_out {
            true => asm!("rep outsb", in("dx") port, inout("rsi") at => _, inout("rcx") count => _),
            false => asm!("rep insb", in("dx") port, inout("rdi") at => _, inout("rcx") count => _),
        }
    }
}

/// All of them in turn, and as many by chance. Those by which a machine is ended are left out, and what the console shows.
pub fn ports(random: &mut Random, count: u64) {
    for index in 0..count {
        let port = match index {
            0..0x1_0000 if random.below(2) == 0 => index as u16,
            _ => random.one_of(&[
                0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0xb2, 0xcf8, 0xcfc,
                0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x400, 0x604,
            ]),
        };
        let width = random.one_of(&[1, 2, 4]);
        match random.below(5) {
            0 | 1 => input(port, width),
            2 if port != SERIAL => string(port, random.below(65), false),
            3 if port != SERIAL && port != KEYBOARD => string(port, random.below(65), true),
            _ if port == SERIAL && index % 256 != 0 => {}
            _ => {
                let value = random.value() as u32;
                let ends = port == KEYBOARD && value & 0xff == 0xfe;
                out(port, width, if ends { 0 } else { value });
            }
        }
    }
    // Its lines may be a loop now, and its data somewhere else.
    for (register, value) in [(4, 0), (3, 3), (1, 0)] {
        out(SERIAL + register, 1, value);
    }
}
