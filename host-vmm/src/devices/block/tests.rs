//! The device with a driver of ours and no VM.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

use vm_memory::{Bytes, GuestAddress};

use super::{Block, Disk};
use crate::{
    devices::{
        DeviceError, VirtioDevice,
        testing::{DriverQueue, Random, memory},
    },
    vm::memory::GuestMemory,
};

const MEMORY: u64 = 4 << 20;
const RINGS: u64 = 0;
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_1000;
const DATA: u64 = 0x10_0000;
const TABLE: u64 = 0x1_2000;

/// Types of requests (virtio 1.2 §5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

/// Answers.
const OK: u8 = 0;
const ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What no answer is.
const NONE: u8 = 0x77;

struct Driver {
    device: Block,
    memory: Arc<GuestMemory>,
    queue: DriverQueue,
    file: File,
}

impl Driver {
    fn new(size: u64) -> Self {
        Self::with(size, false)
    }

    fn with(size: u64, read_only: bool) -> Self {
        let file: File = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        file.set_len(size).unwrap();
        let disk = Disk::new(file.try_clone().unwrap(), read_only, false).unwrap();
        let memory = memory(MEMORY);
        let queue = DriverQueue::new(RINGS, 64);
        let mut device = Block::new(disk);
        device.start_queue(0, queue.device_side(&memory, false));
        Self {
            device,
            memory,
            queue,
            file,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        let at = GuestAddress(HEADER);
        self.memory.write_obj(kind.to_le(), at).unwrap();
        let at = GuestAddress(HEADER + 8);
        self.memory.write_obj(sector.to_le(), at).unwrap();
        self.memory.write_obj(NONE, GuestAddress(STATUS)).unwrap();
    }

    fn run(&mut self) -> Result<(), DeviceError> {
        self.device.kick(0);
        for _ in 0..4 {
            self.device.run()?;
        }
        Ok(())
    }

    /// A request with `data` between header and status; gives status and used length.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend_from_slice(data);
        chain.push((STATUS, 1, true));
        self.queue.add(&self.memory, &chain);
        self.run().unwrap();
        let (_, len) = self.queue.used(&self.memory).unwrap();
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), len)
    }

    /// A request about ranges: sector, sectors, flags.
    fn clear(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            bytes.extend_from_slice(&sector.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        self.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.ask(kind, 0, &[(DATA, len, false)]).0
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(1).fill(&mut bytes);
    bytes
}

#[test]
fn what_is_written_is_read_whatever_its_pieces() {
    let mut driver = Driver::new(1 << 20);
    let data = pattern(4096 + 512);
    driver
        .memory
        .write_slice(&data, GuestAddress(DATA))
        .unwrap();
    let pieces = [
        (DATA, 100, false),
        (DATA + 100, 4000, false),
        (DATA + 4100, 508, false),
    ];
    assert_eq!(driver.ask(OUT, 3, &pieces), (OK, 1));
    let mut found = vec![0; data.len()];
    driver.file.read_exact_at(&mut found, 3 * 512).unwrap();
    assert_eq!(found, data);

    let other = DATA + 0x2_0000;
    let pieces = [
        (other, 4096, true),
        (other + 4096, 511, true),
        (other + 4607, 1, true),
    ];
    assert_eq!(driver.ask(IN, 3, &pieces), (OK, 4609));
    assert_eq!(driver.read(other, data.len()), data);
}

#[test]
fn data_and_status_may_share_a_buffer() {
    let mut driver = Driver::new(1 << 20);
    driver.file.write_all_at(&pattern(512), 0).unwrap();
    driver.header(IN, 0);
    driver
        .memory
        .write_obj(NONE, GuestAddress(DATA + 512))
        .unwrap();
    driver.queue.add_indirect(
        &driver.memory,
        TABLE,
        &[(HEADER, 16, false), (DATA, 513, true)],
    );
    driver.run().unwrap();
    assert_eq!(driver.queue.used(&driver.memory).unwrap().1, 513);
    assert_eq!(driver.read(DATA, 512), pattern(512));
    assert_eq!(driver.read(DATA + 512, 1), [OK]);
}

#[test]
fn what_is_not_on_the_disk_is_an_error_and_nothing_more() {
    let mut driver = Driver::new(8 * 512 + 100);
    for (sector, len) in [
        (8, 512),
        (7, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 0),
    ] {
        let data = [(DATA, len, true)];
        let data = if len == 0 { &data[..0] } else { &data[..] };
        assert_eq!(driver.ask(IN, sector, data).0, ERROR, "{sector} {len}");
    }
    assert_eq!(driver.ask(IN, 7, &[(DATA, 512, true)]).0, OK);
    // The file became shorter meanwhile.
    driver.file.set_len(512).unwrap();
    assert_eq!(driver.ask(IN, 7, &[(DATA, 512, true)]).0, ERROR);
    assert_eq!(driver.ask(IN, 0, &[(DATA, 512, true)]).0, OK);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::with(1 << 20, true);
    driver.file.write_all_at(&pattern(512), 0).unwrap();
    assert_eq!(driver.ask(OUT, 0, &[(DATA, 512, false)]).0, ERROR);
    assert_eq!(driver.clear(DISCARD, &[(0, 8, 0)]), ERROR);
    assert_eq!(driver.clear(ZEROES, &[(0, 8, 1)]), ERROR);
    assert_eq!(driver.ask(FLUSH, 0, &[]).0, OK);
    assert_eq!(driver.ask(IN, 0, &[(DATA, 512, true)]).0, OK);
    assert_eq!(driver.read(DATA, 512), pattern(512));
    let writable = Driver::new(512).device.features();
    assert_eq!(driver.device.features() & 1 << 5, 1 << 5);
    assert_eq!(
        writable & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14),
        1 << 9 | 1 << 13 | 1 << 14
    );
}

#[test]
fn discarded_space_is_given_back_and_reads_as_zeroes() {
    let mut driver = Driver::new(1 << 20);
    driver.file.write_all_at(&pattern(1 << 20), 0).unwrap();
    let before = driver.file.metadata().unwrap().blocks();
    assert_eq!(driver.clear(DISCARD, &[(0, 1024, 0), (1024, 8, 0)]), OK);
    assert!(driver.file.metadata().unwrap().blocks() <= before - 1024);
    assert_eq!(driver.clear(ZEROES, &[(1032, 8, 1)]), OK);
    assert_eq!(driver.clear(ZEROES, &[(1040, 3, 0)]), OK);
    let mut found = vec![0; 1 << 20];
    driver.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found[..1043 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(found[1043 * 512..], pattern(1 << 20)[1043 * 512..]);
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let mut driver = Driver::new(1 << 20);
    for ranges in [
        &[(2047, 2, 0)][..],
        &[(u64::MAX, 1, 0)],
        &[(0, 0, 0)],
        &[(0, u32::MAX, 0)],
        &[],
    ] {
        assert_eq!(driver.clear(DISCARD, ranges), ERROR, "{ranges:?}");
        assert_eq!(driver.clear(ZEROES, ranges), ERROR, "{ranges:?}");
    }
    assert_eq!(driver.clear(DISCARD, &[(0, 8, 1)]), UNSUPPORTED);
    assert_eq!(driver.clear(ZEROES, &[(0, 8, 2)]), UNSUPPORTED);
    assert_eq!(driver.clear(DISCARD, &[(0, 8, 0); 16]), OK);
    assert_eq!(driver.clear(DISCARD, &[(0, 8, 0); 17]), ERROR);
    assert_eq!(driver.clear(ZEROES, &[(0, 8, 0); 2]), ERROR);
    assert_eq!(driver.ask(ZEROES, 0, &[(DATA, 15, false)]).0, ERROR);
}

/// What a driver finds in the configuration space is what requests are held to.
#[test]
fn limits_are_those_that_are_offered() {
    let mut driver = Driver::new(64 << 20);
    let number = |driver: &Driver, at| {
        let mut bytes = [0; 4];
        driver.device.read_config(at, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let [most, ranges] = [36, 40].map(|at| number(&driver, at));
    assert!(u64::from(most) * 512 > 64 << 20 && ranges > 1);
    let [most, ranges] = [48, 52].map(|at| number(&driver, at));
    assert_eq!(driver.clear(ZEROES, &[(0, most, 1)]), OK);
    assert_eq!(driver.clear(ZEROES, &[(0, most + 1, 1)]), ERROR);
    assert_eq!(ranges, 1);
    // As many of the longest pieces as there may be are no more than a request may have.
    let [longest, pieces] = [8, 12].map(|at| number(&driver, at));
    assert_eq!(u64::from(longest) * u64::from(pieces), 254 * (128 << 10));
}

#[test]
fn a_file_that_has_become_shorter_is_read_as_far_as_it_goes_and_not_written() {
    let mut driver = Driver::new(1 << 20);
    driver.file.write_all_at(&pattern(1 << 20), 0).unwrap();
    driver.file.set_len(512 << 10).unwrap();
    let data = [(DATA, 4096, true)];
    assert_eq!(driver.ask(IN, 0, &data).0, OK);
    assert_eq!(driver.ask(IN, 1020, &data).0, ERROR);
    assert_eq!(driver.ask(IN, 2040, &data).0, ERROR);
    let data = [(DATA, 4096, false)];
    for sector in [0, 1020, 2040] {
        assert_eq!(driver.ask(OUT, sector, &data).0, ERROR);
        for kind in [DISCARD, ZEROES] {
            assert_eq!(driver.clear(kind, &[(sector, 8, 0)]), ERROR);
        }
    }
    assert_eq!(driver.file.metadata().unwrap().len(), 512 << 10);
    // It may be there again, as after a copy.
    driver.file.set_len(1 << 20).unwrap();
    assert_eq!(driver.ask(OUT, 2040, &data).0, OK);
}

#[test]
fn the_rest_is_answered_too() {
    let mut driver = Driver::new(1 << 20);
    assert_eq!(driver.ask(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(driver.ask(ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(driver.read(DATA, 4), b"vmm\0");
    assert_eq!(driver.ask(99, 0, &[]).0, UNSUPPORTED);
    let mut capacity = [0; 8];
    driver.device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    driver.device.read_config(u32::MAX, &mut capacity);
    assert_eq!(capacity, [0; 8]);
}

#[test]
fn a_chain_that_is_no_request_ends_the_device() {
    for chain in [
        &[(HEADER, 15, false), (STATUS, 1, true)][..],
        &[(HEADER, 16, false)],
        &[(STATUS, 1, true)],
        &[(HEADER, 16, false), (MEMORY - 1, 2, true)],
    ] {
        let mut driver = Driver::new(1 << 20);
        driver.header(IN, 0);
        driver.queue.add(&driver.memory, chain);
        assert!(driver.run().is_err(), "{chain:?}");
    }
}

/// Whatever is asked, the device answers or ends, and touches nothing outside of the disk.
#[test]
fn random_requests_are_survived() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut driver = Driver::new(64 << 10);
        for _ in 0..20 {
            let kind = random.pick(&[IN, OUT, FLUSH, ID, DISCARD, ZEROES, 2, u32::MAX]);
            let sector = random.pick(&[0, 1, 127, 128, 1 << 40, u64::MAX]);
            driver.header(kind, sector);
            let mut chain = Vec::new();
            for _ in 0..=random.below(4) {
                let address = random.pick(&[HEADER, DATA, DATA + 1, MEMORY - 512, STATUS]);
                let len = random.pick(&[0, 1, 16, 17, 512, 513, 4096]);
                chain.push((address, len, random.below(2) == 0));
            }
            chain.sort_by_key(|(_, _, writable)| *writable);
            driver.queue.add(&driver.memory, &chain);
            if driver.run().is_err() {
                break;
            }
        }
        assert_eq!(driver.file.metadata().unwrap().len(), 64 << 10);
    }
}
