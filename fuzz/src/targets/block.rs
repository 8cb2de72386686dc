//! Requests to the block device, from a driver in guest memory.

use std::os::fd::AsFd;

use host_vmm::devices::{
    Progress, VirtioDevice,
    block::{Block, Disk},
};

use crate::{
    driver::buffers,
    guest::{Buffer, MEMORY, Ring, memory, put, scribble},
    input::{Input, MemoryFile},
};

const DISK: usize = 32 << 10;

/// Where headers and status bytes of well-formed requests lie, and tables.
const HEADERS: u64 = 0x4000;
const TABLE: u64 = 0x5000;

/// Types of requests (virtio 1.2 §5.2.6).
const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 2, u32::MAX];

/// Chains that are made available before the device is run, at most.
const STEPS: usize = 64;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let disk = MemoryFile::new(&[0x5a; DISK]);
    let file = disk.file().try_clone().expect("a descriptor");
    let read_only = flags & 1 != 0;
    let mut device = Block::new(Disk::new(file, read_only, flags & 2 != 0).expect("a disk"));
    let (_shared, memory) = memory();
    let mut ring = Ring::new(0, input.u8());
    let event_idx = flags & 4 != 0;
    device.start_queue(0, ring.start(&memory, event_idx));
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => scribble(&memory, &mut input),
            1 => {
                let buffers = buffers(&mut input);
                ring.add(&memory, &buffers, None);
            }
            2 => {
                let buffers = buffers(&mut input);
                ring.add(&memory, &buffers, Some(TABLE));
            }
            // A request, with data of all kinds.
            3 | 4 => {
                let kind = KINDS[usize::from(input.u8() % 8)];
                let sector = u64::from(input.u8());
                let sector = if sector == 255 { input.u64() } else { sector };
                put(&memory, HEADERS, &kind.to_le_bytes());
                put(&memory, HEADERS + 8, &sector.to_le_bytes());
                let mut chain = vec![buffer(HEADERS, 16, false)];
                chain.extend(buffers(&mut input));
                chain.push(buffer(HEADERS + 16, 1, true));
                ring.add(&memory, &chain, None);
            }
            5 => ring.offer(&memory, u16::from(input.u8())),
            6 => ring.skip(&memory, input.u16()),
            _ => {
                device.stop_queue(0);
                device.start_queue(0, ring.start(&memory, event_idx));
            }
        }
        device.kick(0);
        if !works(&mut device) {
            device.stop_queue(0);
            device.start_queue(0, ring.start(&memory, event_idx));
        }
        let mut config = [0; 8];
        device.read_config(u32::from(input.u8()), &mut config);
    }
    if read_only {
        let mut content = Vec::new();
        let mut file = std::fs::File::open(disk.path()).expect("the disk");
        std::io::Read::read_to_end(&mut file, &mut content).expect("the disk");
        assert!(content == [0x5a; DISK], "a read-only disk was written");
    }
    let size = rustix::fs::fstat(disk.file().as_fd()).expect("the disk");
    assert_eq!(size.st_size.unsigned_abs(), DISK as u64, "the disk's size");
}

/// Runs the device until it rests; whether its driver kept the rules.
fn works(device: &mut Block) -> bool {
    // A ring has 256 descriptors, and a run takes 32 chains; but a driver may have said that there are up to 65535.
    for _ in 0..=65536 / 32 + 1 {
        match device.run() {
            Ok(Progress::Idle) => return true,
            Ok(Progress::More) => {}
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return false;
            }
        }
    }
    panic!("the device never rests");
}

fn buffer(address: u64, len: u32, writable: bool) -> Buffer {
    debug_assert!(address < MEMORY);
    Buffer {
        address,
        len,
        writable,
    }
}
