//! What is where in a machine's physical memory.
//!
//! Memory begins at 0 and leaves out the last gibibyte below 4 GiB, where devices and interrupt controllers are; what found
//! no room below goes on at 4 GiB. What the kernel is told lies in its first 64 KiB, which Linux never gives to anybody.

/// Where memory below 4 GiB ends at most.
const LOW_END: u64 = 0xc000_0000;

/// Where the rest of it begins.
const HIGH_START: u64 = 1 << 32;

/// The structure by which a PVH kernel is told everything, and what that points to.
pub const START_INFO: u64 = 0x6000;
/// Where the initfs is.
pub const MODULE: u64 = 0x6100;
/// Which addresses are memory.
pub const MEMORY_MAP: u64 = 0x7000;
/// The command line.
pub const CMDLINE: u64 = 0x8000;

/// Most bytes of the command line, with its end: Linux's `COMMAND_LINE_SIZE`.
pub const CMDLINE_MAX: usize = 2048;

/// Where the kernel writes, when it restarts, whether the next start is a warm one (a word of the BIOS data area).
pub const RESET_FLAG: u64 = 0x472;

/// Ordinary memory ends here, below the first MiB.
pub const BASE_END: u64 = 0x9f000;

/// The table of processors.
pub const MP_TABLE: u64 = BASE_END;
/// The structure that points to it, which is looked for in the last KiB below 640 KiB.
pub const MP_POINTER: u64 = 0x9fc00;

/// Memory goes on here.
pub const KERNEL_START: u64 = 0x10_0000;

/// Three pages that Intel's processors need to run real mode.
pub const TSS: usize = 0xfffb_d000;
/// One more.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

/// The devices' registers, one page after the other.
pub const DEVICES: u64 = 0xd000_0000;

/// The interrupt controller of devices.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Those of processors.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// The serial port's line of the I/O APIC.
pub const SERIAL_IRQ: u32 = 4;
/// The first of devices.
pub const FIRST_IRQ: u32 = 5;
/// How many lines there are at most.
pub const IRQS: u32 = 24;

/// Most devices.
pub const MAX_DEVICES: usize = (IRQS - FIRST_IRQ) as usize;

/// The pieces of so many bytes of memory: first address and length of each.
pub fn pieces(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_END);
    let mut pieces = vec![(0, low)];
    if bytes > low {
        pieces.push((HIGH_START, bytes - low));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_out_and_loses_nothing() {
        let gib = 1 << 30;
        assert_eq!(pieces(gib), [(0, gib)]);
        assert_eq!(pieces(3 * gib), [(0, 3 * gib)]);
        assert_eq!(pieces(5 * gib), [(0, 3 * gib), (4 * gib, 2 * gib)]);
    }
}
