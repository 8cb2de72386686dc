//! Devices: their registers, and what they are pointed to.

use std::{
    cell::Cell,
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Random,
    io::Console,
    processor::{read, write},
};

/// Memory for devices to look at.
pub const SCRATCH: u64 = 0x200_0000;
pub const SCRATCH_LEN: u64 = 0x100_0000;

/// Registers (virtio 1.2 §4.2.2).
const REGISTERS: [u64; 30] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70,
    0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xb4, 0xb8, 0xfc, 0x100, 0x104, 0x1fc,
];

/// The page of a device's registers.
pub struct Device {
    base: u64,
    accesses: Cell<u64>,
}

/// Of each device that there may be.
static ACCESSES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

impl Device {
    pub fn new(base: u64) -> Self {
        Self {
            base,
            accesses: Cell::new(0),
        }
    }

    fn count(&self) {
        self.accesses.set(self.accesses.get() + 1);
        let place = &ACCESSES[(self.base >> 12 & 15) as usize];
        place.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self, offset: u64, width: u64) -> u64 {
        self.count();
        read(self.base + offset, width)
    }

    fn set(&self, offset: u64, width: u64, value: u64) {
        self.count();
        write(self.base + offset, width, value);
    }

    fn put(&self, offset: u64, value: u64) {
        self.set(offset, 4, value);
    }

    fn kind(&self) -> u64 {
        self.get(8, 4)
    }

    pub fn report(&self) {
        let place = &ACCESSES[(self.base >> 12 & 15) as usize];
        let (base, kind, count) = (self.base, self.kind(), place.load(Ordering::Relaxed));
        let _ = writeln!(Console, "device {base:#x} of kind {kind}: {count} accesses");
    }
}

pub fn reset(device: &Device) {
    device.put(0x70, 0);
}

pub fn kick(device: &Device, queue: u64) {
    device.put(0x50, queue);
}

/// Registers in any order, of any width, with any value.
pub fn registers(device: &Device, random: &mut Random, count: u64) {
    for _ in 0..count {
        let offset = match random.below(8) {
            0 => random.below(0xff8),
            _ => random.one_of(&REGISTERS),
        };
        let width = random.one_of(&[1, 2, 4, 4, 4, 4, 4, 8]);
        match random.below(4) {
            0 => {
                device.get(offset, width);
            }
            // The status, bit by bit, so that it gets somewhere.
            1 => device.put(0x70, random.one_of(&[0, 1, 3, 0xb, 0xf, 0xff])),
            _ => device.set(offset, width, random.value()),
        }
    }
}

/// Queues anywhere, of any size, with anything in them.
pub fn queues(device: &Device, random: &mut Random, count: u64) {
    let until = device.accesses.get() + count;
    while device.accesses.get() < until {
        for _ in 0..64 {
            let at = SCRATCH + (random.below(SCRATCH_LEN - 8) & !7);
            write(at, 8, random.value());
        }
        set_up(device, random, |_, random| {
            let mut part = || match random.below(8) {
                0 => random.value(),
                // Around the end of memory.
                1 => 0x800_0000 - 16 * random.below(512),
                _ => SCRATCH + (random.below(SCRATCH_LEN) & !15),
            };
            ([part(), part(), part()], random_size(random))
        });
        for _ in 0..8 {
            kick(device, random.below(4));
        }
        device.get(0x60, 4);
        device.put(0x64, 3);
    }
}

fn random_size(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.value() & 0xffff_ffff,
        _ => 1 << random.below(9),
    }
}

/// A reset, and all that a driver does then (§3.1.1), with queues where `place` says and of that size. How many there are.
fn set_up(
    device: &Device,
    random: &mut Random,
    mut place: impl FnMut(u64, &mut Random) -> ([u64; 3], u64),
) -> u64 {
    reset(device);
    device.put(0x70, 1);
    device.put(0x70, 3);
    let offered = device.get(0x10, 4);
    let features = match random.below(8) {
        0 => random.next() & 0xffff_ffff,
        1 => offered,
        _ => random.one_of(&[0, 1 << 28, 1 << 29, 3 << 28]),
    };
    for (half, features) in [(0, features), (1, 1)] {
        device.put(0x24, half);
        device.put(0x20, features);
    }
    device.put(0x70, 0xb);
    let mut queue = 0;
    while queue < 8 {
        device.put(0x30, queue);
        let most = device.get(0x34, 4);
        if most == 0 {
            break;
        }
        let (parts, size) = place(queue, random);
        device.put(0x38, size);
        for (part, register) in parts.into_iter().zip([0x80, 0x90, 0xa0]) {
            device.put(register, part & 0xffff_ffff);
            device.put(register + 4, part >> 32);
        }
        device.put(0x44, 1);
        queue += 1;
    }
    device.put(0x70, 0xf);
    queue
}

/// Bytes of a queue's part of [`SCRATCH`], and where its data is.
const QUEUE_LEN: u64 = 0x4000;
const DATA: u64 = SCRATCH + 0x10_0000;
const SIZE: u64 = 32;

/// Queues as they should be, with chains as they should not be, between some that are.
pub fn chains(device: &Device, random: &mut Random, count: u64) {
    let until = device.accesses.get() + count;
    let kind = device.kind();
    // A part of memory for each processor's own would be no harder for a device.
    let base = |queue: u64| SCRATCH + queue * QUEUE_LEN;
    while device.accesses.get() < until {
        for queue in 0..8 {
            write(base(queue) + 0x1000, 4, 0);
            write(base(queue) + 0x2000, 4, 0);
        }
        let queues = set_up(device, random, |queue, _| {
            let at = base(queue);
            ([at, at + 0x1000, at + 0x2000], SIZE)
        });
        for round in 0..16 {
            let queue = random.below(queues.max(1));
            chain(base(queue), kind, random);
            let at = base(queue) + 0x1000;
            write(at + 4 + 2 * (round % SIZE), 2, random.below(SIZE + 1));
            let available = match random.below(16) {
                0 => random.next() & 0xffff,
                _ => round + 1,
            };
            write(at + 2, 2, available);
            kick(device, queue);
        }
        device.get(0x70, 4);
        device.get(0x60, 4);
        device.put(0x64, 3);
    }
}

/// Descriptors from the first on: a request of the device's kind, or whatever, with a mistake or two.
fn chain(table: u64, kind: u64, random: &mut Random) {
    const NEXT: u64 = 1;
    const WRITE: u64 = 2;
    const INDIRECT: u64 = 4;
    header(kind, random);
    let len = random.below(8);
    for index in 0..SIZE {
        let (mut address, mut bytes) = (DATA + 0x1000 * (1 + index), 512 * (1 + random.below(8)));
        if index == 0 {
            (address, bytes) = (DATA, random.one_of(&[16, 44, 32, 4]));
        }
        let mut flags = if index > len / 2 { WRITE } else { 0 };
        if index < len {
            flags |= NEXT;
        }
        let mut next = index + 1;
        match random.below(24) {
            0 => address = random.value(),
            1 => bytes = random.value() & 0xffff_ffff,
            2 => next = random.below(SIZE),
            3 => next = index,
            4 => flags = random.next() & 0xffff,
            5 => flags |= INDIRECT,
            6 => (address, bytes, flags) = (table, 16 * random.below(SIZE + 1), INDIRECT),
            7 => (address, bytes, flags) = (table, random.below(40), INDIRECT | NEXT),
            8 => address = table,
            9 => bytes = 0,
            10 => address = 0x800_0000 - random.below(1024),
            _ => {}
        }
        let at = table + 16 * index;
        write(at, 8, address);
        write(at + 8, 8, bytes & 0xffff_ffff | flags << 32 | next << 48);
    }
}

/// What a device of this kind looks at first.
fn header(kind: u64, random: &mut Random) {
    const VSOCK: u64 = 19;
    const BLOCK: u64 = 2;
    match kind {
        VSOCK => {
            let port = |random: &mut Random| match random.below(3) {
                0 => random.next() & 0xffff_ffff,
                _ => 1023 + random.below(4),
            };
            let ports = port(random) | port(random) << 32;
            let words = [
                random.one_of(&[3, 3, 3, 2, u64::MAX]),
                random.one_of(&[2, 2, 2, 3, 1]),
                ports,
                random.one_of(&[0, 64, 512, 0xffff_ffff])
                    | random.one_of(&[1, 1, 1, 2]) << 32
                    | random.below(10) << 48,
                random.below(4) | random.value() << 32,
                random.value() & 0xffff_ffff,
            ];
            for (index, word) in (0..).zip(words) {
                write(DATA + 8 * index, 8, word);
            }
        }
        BLOCK => {
            let operation = random.one_of(&[0, 1, 4, 8, 11, 13, 2, 0xffff_ffff]);
            write(DATA, 8, operation);
            let sector = match random.below(4) {
                0 => random.value(),
                _ => random.below(64),
            };
            write(DATA + 8, 8, sector);
            write(DATA + 16, 8, random.value());
            write(DATA + 24, 8, random.value());
        }
        // Numbers of pages, for a balloon.
        _ => {
            for index in 0..4 {
                write(DATA + 4 * index, 4, 0x3000 + random.below(64));
            }
        }
    }
}
