//! The I/O APIC (Intel's 82093AA), as far as lines that are raised by an edge need one: a table of what each line is to become.
//!
//! Only the processors' local APICs are in the host's kernel. So there is no 8259 for a guest to find, and a kernel that finds
//! none leaves half of what it would do to the I/O APIC; each line goes to a processor as a message, which KVM delivers
//! without a detour by a thread of its own; and there is less in the host's kernel for a guest to attack.

/// Bytes of address space.
pub const SIZE: u64 = 0x1000;

/// Registers: which of the others is meant, and that.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

/// The others.
const ID: u32 = 0;
const VERSION: u32 = 1;
const TABLE: u32 = 0x10;

const VERSION_11: u32 = 0x11;

/// Bits of an entry of the table.
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Those that tell what has become of an interrupt, and are not written: of an edge nothing is known.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// An I/O APIC with so many lines, 1 to 240.
#[derive(Debug)]
pub struct IoApic {
    id: u32,
    select: u32,
    table: Vec<u64>,
}

/// A message to a local APIC: an address, and what is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which processors, and how they are named.
    pub address: u32,
    /// The vector, and what kind of interrupt it is.
    pub data: u32,
}

impl IoApic {
    /// All lines are masked.
    pub fn new(lines: u8) -> Self {
        Self {
            id: 0,
            select: 0,
            table: vec![MASKED; lines.into()],
        }
    }

    /// The guest reads 32 bits at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (SELECT, select) => select,
            (WINDOW, ID) => self.id,
            (WINDOW, VERSION) => {
                let last = u32::try_from(self.table.len()).unwrap_or(1) - 1;
                VERSION_11 | last << 16
            }
            (WINDOW, _) => {
                let (entry, shift) = self.selected();
                let entry = entry.and_then(|entry| self.table.get(entry));
                let half = entry.copied().unwrap_or(0) >> shift & u64::from(u32::MAX);
                u32::try_from(half).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// The guest writes 32 bits at `offset`. Says whether that changes where lines go.
    #[must_use]
    pub fn write(&mut self, offset: u64, value: u32) -> bool {
        match (offset, self.select) {
            (SELECT, _) => self.select = value & 0xff,
            (WINDOW, ID) => self.id = value & 0xf00_0000,
            (WINDOW, _) => {
                let (entry, shift) = self.selected();
                let Some(entry) = entry.and_then(|entry| self.table.get_mut(entry)) else {
                    return false;
                };
                let before = *entry;
                let kept = *entry & !(u64::from(u32::MAX) << shift);
                *entry = (kept | u64::from(value) << shift) & !READ_ONLY;
                // Of a line that is masked nobody needs to know where it would go.
                return before != *entry && (before & *entry & MASKED == 0);
            }
            _ => {}
        }
        false
    }

    /// Which entry is selected, and by how many bits it is shifted.
    fn selected(&self) -> (Option<usize>, u32) {
        let at = self.select.checked_sub(TABLE);
        let entry = at.and_then(|at| usize::try_from(at / 2).ok());
        (entry, at.map_or(0, |at| at % 2 * 32))
    }

    /// What each line that is not masked becomes, with its number.
    pub fn messages(&self) -> impl Iterator<Item = (u32, Message)> {
        let lines = (0..).zip(&self.table);
        let unmasked = lines.filter(|(_, entry)| **entry & MASKED == 0);
        unmasked.map(|(line, &entry)| (line, Message::of(entry)))
    }
}

impl Message {
    /// What an entry makes of an edge (Intel's manual, volume 3, §11.11).
    fn of(entry: u64) -> Self {
        let byte = |shift: u32| u32::try_from(entry >> shift & 0xff).unwrap_or(0);
        let mode = if entry & LOGICAL == 0 { 0 } else { 1 << 2 };
        Self {
            address: super::layout::LOCAL_APIC | byte(56) << 12 | mode,
            data: byte(0) | (byte(8) & 7) << 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(apic: &mut IoApic, register: u32, value: u32) -> bool {
        assert!(!apic.write(SELECT, register));
        apic.write(WINDOW, value)
    }

    fn get(apic: &mut IoApic, register: u32) -> u32 {
        assert!(!apic.write(SELECT, register));
        apic.read(WINDOW)
    }

    #[test]
    fn lines_go_where_the_table_says() {
        let mut apic = IoApic::new(8);
        assert_eq!(get(&mut apic, VERSION), 0x7_0011);
        assert!(put(&mut apic, ID, 0x500_0000) | (get(&mut apic, ID) == 0x500_0000));
        assert_eq!(apic.messages().count(), 0);
        // Masked, nobody has to know.
        assert!(!put(&mut apic, 0x1b, 3 << 24));
        assert!(!put(&mut apic, 0x1a, 0x1_0831));
        assert!(put(&mut apic, 0x1a, 0x831));
        let message = Message {
            address: 0xfee0_3004,
            data: 0x31,
        };
        assert_eq!(apic.messages().collect::<Vec<_>>(), [(5, message)]);
        assert!(!put(&mut apic, 0x1a, 0x831));
        assert!(put(&mut apic, 0x1b, 0));
        assert!(put(&mut apic, 0x1a, 0x1_0831));
        assert_eq!(apic.messages().count(), 0);
    }

    #[test]
    fn registers_that_do_not_exist_do_nothing() {
        let mut apic = IoApic::new(8);
        for register in [2, 0xf, 0x20, 0x21, 0xff] {
            assert!(!put(&mut apic, register, u32::MAX));
            assert_eq!(get(&mut apic, register), 0);
        }
        // Of the select register eight bits are there.
        assert_eq!(get(&mut apic, 0x101), get(&mut apic, 1));
        for offset in [4, 0x14, 0x40, u64::MAX] {
            assert!(!apic.write(offset, u32::MAX));
            assert_eq!(apic.read(offset), 0);
        }
        assert!(put(&mut apic, 0x10, !0x1_0000));
        assert_eq!(get(&mut apic, 0x10), !0x1_5000);
    }
}
