//! The device with a driver of ours and no VM.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rustix::fs::fstat;
use vm_memory::{Bytes, GuestAddress};

use super::Balloon;
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        testing::{DriverQueue, Random},
    },
    vm::memory::{GuestMemory, Placement, SharedMemory},
};

const MEMORY: u64 = 8 << 20;
const PAGE: u64 = 4096;
const LIST: u64 = 0x2_0000;
/// From here on nothing is the driver's own.
const FREE: u64 = 1 << 20;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

struct Driver {
    device: Balloon,
    shared: SharedMemory,
    memory: Arc<GuestMemory>,
    queues: [DriverQueue; 3],
}

impl Driver {
    /// All of memory is in use.
    fn new() -> Self {
        let shared = SharedMemory::create(MEMORY).unwrap();
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: MEMORY,
        };
        let memory = Arc::new(shared.map(&[whole]).unwrap());
        for page in 0..MEMORY / PAGE {
            let at = GuestAddress(page * PAGE + 8);
            memory.write_obj(page + 1, at).unwrap();
        }
        let queues = [0, 0x4000, 0x8000].map(|base| {
            let zeroes = [0; 3 * 4096];
            memory.write_slice(&zeroes, GuestAddress(base)).unwrap();
            DriverQueue::new(base, 32)
        });
        let mut device = Balloon::new(0);
        for (index, queue) in queues.iter().enumerate() {
            device.start_queue(index, queue.device_side(&memory, false));
        }
        Self {
            device,
            shared,
            memory,
            queues,
        }
    }

    fn run(&mut self, index: usize) -> Result<(), DeviceError> {
        self.device.kick(index);
        while self.device.run()? == Progress::More {}
        Ok(())
    }

    /// Sends a chain and has it back.
    fn send(&mut self, index: usize, chain: &[(u64, u32, bool)]) {
        let head = self.queues[index].add(&self.memory, chain);
        self.run(index).unwrap();
        assert_eq!(self.queues[index].used(&self.memory), Some((head, 0)));
    }

    /// Writes numbers of pages; the buffer that they are.
    fn list(&self, pages: &[u32]) -> (u64, u32, bool) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(LIST)).unwrap();
        (LIST, u32::try_from(bytes.len()).unwrap(), false)
    }

    /// KiB of memory that the host has for it.
    fn kib(&self) -> u64 {
        fstat(&self.shared).unwrap().st_blocks.unsigned_abs() / 2
    }

    fn is_there(&self, page: u64) -> bool {
        let at = GuestAddress(page * PAGE + 8);
        self.memory.read_obj::<u64>(at).unwrap() == page + 1
    }
}

#[test]
fn reported_memory_goes_back_to_the_host_and_no_other() {
    let mut driver = Driver::new();
    assert_eq!(driver.kib(), MEMORY >> 10);
    let (a, b) = (FREE, FREE + (3 << 20));
    driver.send(REPORTING, &[(a, 1 << 20, true), (b, 2 << 20, true)]);
    assert_eq!(driver.kib(), 5 << 10);
    for (page, there) in [(255, true), (256, false), (511, false), (512, true)] {
        assert_eq!(driver.is_there(page), there, "{page}");
    }
    // The guest takes it again without a word, by looking at it even: that was two pages.
    driver.memory.write_obj(1_u64, GuestAddress(b)).unwrap();
    assert_eq!(driver.kib(), (5 << 10) + 3 * 4);
    // What is not whole pages stays.
    driver.send(REPORTING, &[(FREE + (6 << 20) + 1, 4096, true)]);
    assert!(driver.is_there(256 + 1536) && driver.is_there(256 + 1537));
}

/// As the specification numbers the queues, too.
#[test]
fn reports_come_by_any_queue_that_has_no_other_purpose() {
    let mut driver = Driver::new();
    assert_eq!(driver.device.queue_sizes().len(), 5);
    for index in 2..5_usize {
        let page = FREE / PAGE + index as u64;
        let mut queue = DriverQueue::new(0xc000, 32);
        let zeroes = [0; 3 * 4096];
        driver
            .memory
            .write_slice(&zeroes, GuestAddress(0xc000))
            .unwrap();
        driver.device.stop_queue(index);
        driver
            .device
            .start_queue(index, queue.device_side(&driver.memory, false));
        queue.add(&driver.memory, &[(page * PAGE, 4096, true)]);
        driver.run(index).unwrap();
        assert!(queue.used(&driver.memory).is_some() && !driver.is_there(page));
    }
}

#[test]
fn pages_in_the_balloon_are_the_hosts_until_they_are_touched() {
    let mut driver = Driver::new();
    let pages: Vec<u32> = (256..512).collect();
    let list = driver.list(&pages);
    driver.send(INFLATE, &[list]);
    assert_eq!(driver.kib(), 7 << 10);
    // In any order, and some twice.
    let list = driver.list(&[700, 600, 601, 602, 700, 599]);
    driver.send(INFLATE, &[list]);
    assert_eq!(driver.kib(), (7 << 10) - 5 * 4);
    driver.send(DEFLATE, &[list]);
    driver.send(INFLATE, &[(LIST, 0, false)]);
    assert_eq!(driver.kib(), (7 << 10) - 5 * 4);
    for (page, there) in [(599, false), (602, false), (603, true), (700, false)] {
        assert_eq!(driver.is_there(page), there, "{page}");
    }
}

#[test]
fn what_the_guest_says_of_the_balloon_is_kept_and_no_more() {
    let mut driver = Driver::new();
    driver.device = Balloon::new(77);
    let read = |device: &Balloon| {
        let mut config = [0xff; 12];
        device.read_config(0, &mut config);
        config
    };
    driver.device.write_config(4, &5_u32.to_le_bytes());
    assert_eq!(driver.device.actual(), 5);
    driver.device.write_config(0, &[0xff; 4]);
    driver.device.write_config(7, &[1, 2, 3]);
    driver.device.write_config(u32::MAX, &[1, 2, 3]);
    assert_eq!(read(&driver.device), [77, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_chain_that_is_no_request_ends_the_device() {
    let list = |driver: &Driver, page| vec![driver.list(&[page])];
    type Make = fn(&Driver) -> Vec<(u64, u32, bool)>;
    let cases: [(usize, Make); 9] = [
        (INFLATE, |_| vec![(LIST, 3, false)]),
        (INFLATE, |_| vec![(LIST, 1028, false)]),
        (INFLATE, |_| vec![(LIST, 4, true)]),
        (INFLATE, |_| vec![(LIST, 4, false), (LIST, 4, true)]),
        (INFLATE, |driver| vec![driver.list(&[2048])]),
        (INFLATE, |driver| vec![driver.list(&[u32::MAX, 0])]),
        (REPORTING, |_| vec![(FREE, 4096, false)]),
        (REPORTING, |_| vec![(MEMORY - 4096, 8192, true)]),
        (REPORTING, |_| vec![(u64::MAX - 4095, 4096, true)]),
    ];
    for (case, (index, chain)) in cases.into_iter().enumerate() {
        let mut driver = Driver::new();
        let chain = chain(&driver);
        driver.queues[index].add(&driver.memory, &chain);
        assert!(driver.run(index).is_err(), "{case}");
    }
    let mut driver = Driver::new();
    let chain = list(&driver, 2047);
    driver.send(INFLATE, &chain);
}

/// Whatever is said, the device answers or ends, and frees no page that was not named.
#[test]
fn random_requests_are_survived() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut driver = Driver::new();
        for _ in 0..20 {
            let index = random.below(3) as usize;
            let mut chain = Vec::new();
            for _ in 0..=random.below(3) {
                let address = random.pick(&[FREE, FREE + 1, MEMORY - 4096, MEMORY, u64::MAX]);
                let len = random.pick(&[0, 1, 4, 1024, 4096, 1 << 20, u32::MAX]);
                chain.push((address, len, random.below(2) == 0));
            }
            chain.sort_by_key(|(_, _, writable)| *writable);
            driver.queues[index].add(&driver.memory, &chain);
            if driver.run(index).is_err() {
                break;
            }
        }
        // Page numbers that are read in free memory are those of its pages, or 0; the rings' own are never among them.
        for page in 1..FREE / PAGE {
            assert!(
                driver.is_there(page) || page < 16 || page == LIST / PAGE,
                "{page}"
            );
        }
    }
}
