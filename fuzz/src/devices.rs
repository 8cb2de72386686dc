//! Every device that a machine can have, and a driver's way to one: registers, and rings behind them.

use std::{fs::File, os::unix::net::UnixStream};

use host_vmm::{
    devices::{
        VirtioDevice,
        balloon::Balloon,
        block::{Block, Disk},
        rng::Rng,
        vsock::{HostPorts, Vsock},
    },
    vm::memory::GuestMemory,
};

use crate::{
    guest::{Buffer, MEMORY, Ring, put, scribble},
    input::{Input, MemoryFile},
};

/// How many kinds of devices there are.
pub const KINDS: u8 = 5;

/// Bytes of a disk.
const DISK: usize = 32 << 10;

/// Where tables of indirect descriptors lie, and headers of requests.
const TABLE: u64 = 0x3_0000;
const HEADERS: u64 = 0x3_1000;

/// Most queues of a device.
const QUEUES: usize = 3;

/// Registers of a device (virtio 1.2 §4.2.2).
const REGISTERS: [u64; 24] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70,
    0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xfc, 0x100,
];

/// A device of this kind, and the file behind it.
pub fn device(kind: u8) -> (Box<dyn VirtioDevice>, Option<MemoryFile>) {
    let disk = |read_only| {
        let disk = MemoryFile::new(&[0x5a; DISK]);
        let file: File = disk.file().try_clone().expect("a descriptor");
        let device = Block::new(Disk::new(file, read_only, true).expect("a disk"));
        let device: Box<dyn VirtioDevice> = Box::new(device);
        (device, Some(disk))
    };
    match kind % KINDS {
        0 => (Box::new(Vsock::new(3, Box::new(Deaf::default()))), None),
        1 => disk(false),
        2 => disk(true),
        3 => (Box::new(Rng::new()), None),
        _ => (Box::new(Balloon::new(16)), None),
    }
}

/// Takes every connection to an even port, and reads nothing from it.
#[derive(Default)]
struct Deaf(Vec<UnixStream>);

impl HostPorts for Deaf {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if !port.is_multiple_of(2) {
            return None;
        }
        let (device, host) = UnixStream::pair().ok()?;
        self.0.push(host);
        Some(device)
    }
}

/// An access to a register: where, how wide, and what is written if it is a write.
#[derive(Clone, Debug)]
pub struct Access {
    pub offset: u64,
    pub width: usize,
    pub value: Option<u64>,
}

/// A driver that does what the input says.
pub struct Driver {
    rings: [Ring; QUEUES],
}

impl Driver {
    pub fn new(input: &mut Input<'_>) -> Self {
        let rings = [0, 1, 2].map(|index| Ring::new(index * Ring::LEN, input.u8()));
        Self { rings }
    }

    /// What it does next with its device: nothing or more to its memory, and accesses.
    pub fn step(&mut self, memory: &GuestMemory, input: &mut Input<'_>) -> Vec<Access> {
        match input.u8() % 12 {
            0 => scribble(memory, input),
            // As a driver should, but for what the input has otherwise.
            1 | 2 => return self.set_up(memory, input),
            3 => {
                let ring = &mut self.rings[usize::from(input.u8()) % QUEUES];
                match input.u8() % 2 {
                    0 => ring.offer(memory, u16::from(input.u8())),
                    _ => ring.skip(memory, input.u16()),
                }
            }
            4 | 5 => return self.add(memory, input, false),
            6 | 7 => return self.add(memory, input, true),
            8 => {
                // Whatever, of any width.
                let offset = u64::from(input.u16()) % 0x1000;
                return vec![access(input, offset)];
            }
            _ => {
                let offset = REGISTERS[usize::from(input.u8()) % REGISTERS.len()];
                return vec![access(input, offset)];
            }
        }
        Vec::new()
    }

    /// A reset and what comes after it (§3.1.1), with mistakes where the input has some.
    fn set_up(&mut self, memory: &GuestMemory, input: &mut Input<'_>) -> Vec<Access> {
        let mistake = input.u8();
        let mut accesses = vec![write(0x70, 0), write(0x70, 3)];
        // Indirect descriptors and the indices of events, or none; or anything.
        let features = match mistake & 0x80 {
            0 => u64::from(mistake >> 5 & 3) << 28,
            _ => input.u32().into(),
        };
        for (half, features) in [(0, features), (1, 1)] {
            accesses.extend([write(0x24, half), write(0x20, features)]);
        }
        accesses.push(write(0x70, 0xb));
        for (index, ring) in (0..).zip(&mut self.rings) {
            ring.clear(memory);
            accesses.extend([write(0x30, index), write(0x38, u64::from(ring.size()))]);
            let mut parts = ring.parts();
            if mistake & 0x1f == 4 {
                parts[usize::from(input.u8()) % 3] = input.u64();
            }
            for (part, at) in parts.into_iter().zip([0x80, 0x90, 0xa0]) {
                accesses.extend([write(at, part & 0xffff_ffff), write(at + 4, part >> 32)]);
            }
            if mistake & 0x1f != 8 {
                accesses.push(write(0x44, 1));
            }
        }
        accesses.push(write(0x70, 0xf));
        if mistake & 0x1f == 16 {
            accesses.remove(usize::from(input.u8()) % accesses.len());
        }
        accesses
    }

    /// Makes a chain available and kicks.
    fn add(&mut self, memory: &GuestMemory, input: &mut Input<'_>, request: bool) -> Vec<Access> {
        let how = input.u8();
        let index = usize::from(how) % QUEUES;
        let mut buffers: Vec<Buffer> = (0..input.u8() % 6).map(|_| Buffer::take(input)).collect();
        if how & 0x40 != 0 {
            buffers.sort_by_key(|buffer| buffer.writable);
        }
        if request {
            // A header such as a device takes, which may be another's.
            let len = usize::from(input.u8()) % 64;
            put(memory, HEADERS, input.bytes(len));
            let header = Buffer {
                address: HEADERS,
                len: u32::try_from(len).unwrap_or(0),
                writable: false,
            };
            buffers.insert(0, header);
        }
        let table = (how & 0x80 != 0).then_some(TABLE);
        self.rings[index].add(memory, &buffers, table);
        vec![write(0x50, index as u64)]
    }
}

fn write(offset: u64, value: u64) -> Access {
    Access {
        offset,
        width: 4,
        value: Some(value),
    }
}

fn access(input: &mut Input<'_>, offset: u64) -> Access {
    let how = input.u8();
    // KVM gives parts of 1 to 8 bytes; those of 4 are what a driver should use.
    let width = match how >> 1 {
        width @ 1..=8 => usize::from(width),
        _ => 4,
    };
    let value = match how >> 5 {
        0 => input.u64(),
        1 => u64::from(input.u32()),
        2 => MEMORY - u64::from(input.u8()),
        _ => u64::from(input.u8()),
    };
    Access {
        offset,
        width,
        value: (how & 1 != 0).then_some(value),
    }
}
