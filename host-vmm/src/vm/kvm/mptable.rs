//! How a kernel learns of processors and interrupt controllers without ACPI: the tables of Intel's MultiProcessor
//! Specification 1.4 (§4).

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::vm::memory::GuestMemory;

/// Most processors: twice as many as our kernels take, and as many as there is room for in the table.
pub const MAX_CPUS: u32 = 128;

/// Kinds of entries (§4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Versions of APICs that are no chip of their own.
const APIC_VERSION: u8 = 0x14;

/// The one bus.
const ISA: u8 = 0;

/// Kinds of interrupts (table 4-11).
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const FROM_PIC: u8 = 3;

/// All local APICs.
const ALL: u8 = 0xff;

/// Writes the tables for so many processors, at most [`MAX_CPUS`], whose APICs have the numbers from 0 up, and for those
/// lines of the I/O APIC that something is connected to.
///
/// # Errors
/// A defect: the machine has no memory where they belong.
pub fn write(memory: &GuestMemory, cpus: u32, lines: Range<u32>) -> Result<(), GuestMemoryError> {
    let (entries, count) = entries(u8::try_from(cpus).unwrap_or(u8::MAX), lines);
    let mut table = b"PCMP".to_vec();
    let len = u16::try_from(HEADER + entries.len()).unwrap_or(u16::MAX);
    table.extend_from_slice(&len.to_le_bytes());
    // Version 1.4, and the sum that comes last.
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"VMM     VMM         ");
    // No table of the maker's.
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend(entries);
    add_sum(&mut table, 7);
    memory.write_slice(&table, GuestAddress(layout::MP_TABLE))?;

    let mut pointer = b"_MP_".to_vec();
    let address = u32::try_from(layout::MP_TABLE).unwrap_or_default();
    pointer.extend_from_slice(&address.to_le_bytes());
    // In paragraphs; version 1.4; the sum; no default configuration.
    pointer.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    add_sum(&mut pointer, 10);
    memory.write_slice(&pointer, GuestAddress(layout::MP_POINTER))
}

/// Bytes of a table before its entries.
const HEADER: usize = 44;

fn entries(cpus: u8, lines: Range<u32>) -> (Vec<u8>, u16) {
    const ENABLED: u8 = 1;
    const BOOTS: u8 = 2;
    let io_apic = cpus;
    let mut entries = Vec::new();
    let mut count = 0;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for cpu in 0..cpus {
        let flags = if cpu == 0 { ENABLED | BOOTS } else { ENABLED };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, cpu, APIC_VERSION, flags]);
        // Of the family 6, with an APIC and an FPU; CPUID says more.
        entry[4..6].copy_from_slice(&0x600_u16.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201_u32.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    add(&[IO_APIC, io_apic, APIC_VERSION, ENABLED, a, b, c, d]);
    for irq in lines {
        let irq = u8::try_from(irq).unwrap_or_default();
        add(&[IO_INTERRUPT, VECTORED, 0, 0, ISA, irq, io_apic, irq]);
    }
    add(&[LOCAL_INTERRUPT, FROM_PIC, 0, 0, ISA, 0, ALL, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, ALL, 1]);
    (entries, count)
}

/// Sets the byte at `at` so that all of them add up to zero.
fn add_sum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vm::kvm::memory;

    #[test]
    fn tables_add_up_and_find_room() {
        let memory = memory::map(1 << 20).unwrap();
        for cpus in [1, 2, 64, MAX_CPUS] {
            write(&memory, cpus, 0..layout::IRQS).unwrap();
            let mut pointer = [0; 16];
            memory
                .read_slice(&mut pointer, GuestAddress(layout::MP_POINTER))
                .unwrap();
            let mut table = vec![0; HEADER];
            memory
                .read_slice(&mut table, GuestAddress(layout::MP_TABLE))
                .unwrap();
            let len = usize::from(u16::from_le_bytes([table[4], table[5]]));
            table.resize(len, 0);
            memory
                .read_slice(&mut table, GuestAddress(layout::MP_TABLE))
                .unwrap();
            assert_eq!((&pointer[..4], &table[..4]), (&b"_MP_"[..], &b"PCMP"[..]));
            for bytes in [&pointer[..], &table] {
                let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(sum, 0, "{cpus}");
            }
            assert!(
                layout::MP_TABLE + len as u64 <= layout::MP_POINTER,
                "{cpus}"
            );
        }
    }
}
