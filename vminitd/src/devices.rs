//! Which devices the container may open, as Docker has it: the nodes that every program expects, and none of the
//! machine's own, whatever nodes the container makes for itself.
//!
//! The kernel asks a program on the container's cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::io;

use crate::{cgroup::Cgroup, sys};

/// An instruction of eBPF: operation, registers (destination in the low half), jump, operand.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Instruction {
    operation: u8,
    registers: u8,
    jump: i16,
    operand: i32,
}

const fn instruction(operation: u8, registers: u8, jump: i16, operand: i32) -> Instruction {
    Instruction {
        operation,
        registers,
        jump,
        operand,
    }
}

/// `r[to] = *(u32 *)(r1 + offset)`: a member of the context.
const fn load(to: u8, offset: i16) -> Instruction {
    instruction(0x61, 1 << 4 | to, offset, 0)
}

/// `r[to] = *(u16 *)(r1 + offset)`: half of a member.
const fn load_half(to: u8, offset: i16) -> Instruction {
    instruction(0x69, 1 << 4 | to, offset, 0)
}

/// Skips `jump` instructions if `r[register] == value`.
const fn skip_if(register: u8, value: i32, jump: i16) -> Instruction {
    instruction(0x15, register, jump, value)
}

/// Skips `jump` instructions if `r[register] != value`.
const fn skip_unless(register: u8, value: i32, jump: i16) -> Instruction {
    instruction(0x55, register, jump, value)
}

/// Returns whether the access is allowed.
const fn answer(allowed: bool) -> [Instruction; 2] {
    [
        instruction(0xb7, 0, 0, allowed as i32),
        instruction(0x95, 0, 0, 0),
    ]
}

const ALLOW: [Instruction; 2] = answer(true);
const DENY: [Instruction; 2] = answer(false);

/// `access_type` of the context: what is wanted in the upper half, the kind of device in the lower.
const MAKE_NODE: i32 = 1;
const CHARACTER: i32 = 2;

/// Memory devices: null, zero, full, random, urandom. Terminals: tty, console, ptmx. Pseudo-terminals.
const MEMORY: i32 = 1;
const TTY: i32 = 5;
const PTS: i32 = 136;

/// Nothing but loads and comparisons: whatever else it did, the kernel's verifier would have to reason about, once in
/// each start of a container.
static PROGRAM: [Instruction; 21] = [
    load_half(2, 0),
    load_half(3, 2),
    load(4, 4),
    load(5, 8),
    // Making a node is no access to what it stands for.
    skip_if(3, MAKE_NODE, 14),
    skip_unless(2, CHARACTER, 11),
    skip_if(4, PTS, 12),
    skip_unless(4, TTY, 3),
    skip_if(5, 0, 10),
    skip_if(5, 1, 9),
    skip_if(5, 2, 8),
    skip_unless(4, MEMORY, 5),
    skip_if(5, 3, 6),
    skip_if(5, 5, 5),
    skip_if(5, 7, 4),
    skip_if(5, 8, 3),
    skip_if(5, 9, 2),
    DENY[0],
    DENY[1],
    ALLOW[0],
    ALLOW[1],
];

/// Keeps the processes of `cgroup` from all other devices.
///
/// # Errors
/// Those of `bpf(2)`: a kernel may be built without it.
pub fn restrict(cgroup: &Cgroup) -> io::Result<()> {
    sys::attach_device_filter(cgroup, &PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allows(access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 6];
        let mut at = 0;
        loop {
            let Instruction {
                operation,
                registers: names,
                jump,
                operand,
            } = PROGRAM[at];
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let operand = i64::from(operand);
            let mut jumps = false;
            match operation {
                0x61 | 0x69 => {
                    assert_eq!(from, 1);
                    let offset = usize::try_from(jump).unwrap();
                    let member = context[offset / 4] >> (offset % 4 * 8);
                    registers[to] = match operation {
                        0x61 => member.into(),
                        _ => (member & 0xffff).into(),
                    };
                }
                0x15 => jumps = registers[to] == operand,
                0x55 => jumps = registers[to] != operand,
                0xb7 => registers[to] = operand,
                0x95 => return registers[0] == 1,
                other => unreachable!("{other:#x}"),
            }
            at += 1;
            if jumps {
                at += usize::try_from(jump).unwrap();
            }
        }
    }

    #[test]
    fn the_usual_devices_are_allowed_and_no_others() {
        const READ: u32 = 2;
        const WRITE: u32 = 4;
        for (major, minor) in [
            (1, 3),
            (1, 5),
            (1, 7),
            (1, 8),
            (1, 9),
            (5, 0),
            (5, 1),
            (5, 2),
            (136, 0),
            (136, 77),
        ] {
            for access in [READ, WRITE, READ | WRITE] {
                assert!(allows(access, 2, major, minor), "{major}:{minor}");
                assert!(!allows(access, 1, major, minor), "{major}:{minor}");
            }
        }
        for (major, minor) in [
            (1, 1),
            (1, 2),
            (1, 4),
            (1, 6),
            (1, 10),
            (1, 11),
            (4, 0),
            (4, 64),
            (5, 3),
            (10, 232),
            (254, 0),
            (0, 3),
            (0, 0),
        ] {
            for kind in [1, 2] {
                assert!(!allows(READ, kind, major, minor), "{major}:{minor}");
                assert!(!allows(READ | 1, kind, major, minor), "{major}:{minor}");
                assert!(allows(1, kind, major, minor), "{major}:{minor}");
            }
        }
    }
}
