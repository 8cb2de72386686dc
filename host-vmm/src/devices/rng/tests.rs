//! The device with a driver of ours and no VM.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::Rng;
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        testing::{DriverQueue, Random, memory},
    },
    vm::memory::GuestMemory,
};

const MEMORY: u64 = 1 << 20;
const DATA: u64 = 0x1_0000;

struct Driver {
    device: Rng,
    memory: Arc<GuestMemory>,
    queue: DriverQueue,
}

impl Driver {
    fn new() -> Self {
        let memory = memory(MEMORY);
        let queue = DriverQueue::new(0, 64);
        let mut device = Rng::new();
        device.start_queue(0, queue.device_side(&memory, true));
        Self {
            device,
            memory,
            queue,
        }
    }

    fn run(&mut self) -> Result<(), DeviceError> {
        self.device.kick(0);
        while self.device.run()? == Progress::More {}
        Ok(())
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

#[test]
fn buffers_are_filled_and_nothing_beside_them() {
    let mut driver = Driver::new();
    driver.queue.want_interrupt(&driver.memory);
    let head = driver
        .queue
        .add(&driver.memory, &[(DATA, 20, true), (DATA + 100, 44, true)]);
    driver.run().unwrap();
    assert_eq!(driver.queue.used(&driver.memory), Some((head, 64)));
    assert_eq!(driver.queue.interrupted(), 1);
    let bytes = driver.read(DATA, 200);
    // One in 2^160, and one in 2^352, that this fails.
    assert_ne!(bytes[..20], [0; 20]);
    assert_ne!(bytes[100..144], [0; 44]);
    assert_eq!(bytes[20..100], [0; 80]);
    assert_eq!(bytes[144..], [0; 56]);
    let head = driver.queue.add(&driver.memory, &[(DATA, 20, true)]);
    driver.run().unwrap();
    assert_eq!(driver.queue.used(&driver.memory), Some((head, 20)));
    assert_ne!(driver.read(DATA, 20), bytes[..20]);
}

#[test]
fn who_wants_much_gets_some() {
    let mut driver = Driver::new();
    let len = u32::try_from(MEMORY - DATA).unwrap();
    for _ in 0..100 {
        driver.queue.add(&driver.memory, &[(DATA, len, true)]);
        driver.run().unwrap();
        let (_, written) = driver.queue.used(&driver.memory).unwrap();
        assert_eq!(written, 256);
    }
    assert_eq!(driver.read(DATA + 256, 4096), [0; 4096]);
}

#[test]
fn a_full_queue_is_served_in_pieces() {
    let mut driver = Driver::new();
    for _ in 0..64 {
        driver.queue.add(&driver.memory, &[(DATA, 8, true)]);
    }
    driver.device.kick(0);
    assert_eq!(driver.device.run().unwrap(), Progress::More);
    assert_eq!(driver.device.run().unwrap(), Progress::More);
    assert_eq!(driver.device.run().unwrap(), Progress::Idle);
    for _ in 0..64 {
        assert!(driver.queue.used(&driver.memory).is_some());
    }
    assert_eq!(driver.queue.used(&driver.memory), None);
    assert_eq!(driver.device.run().unwrap(), Progress::Idle);
}

#[test]
fn a_chain_that_is_no_request_ends_the_device() {
    for chain in [
        &[(DATA, 8, false)][..],
        &[(DATA, 8, false), (DATA, 8, true)],
        &[(DATA, 0, true)],
        &[(MEMORY - 4, 8, true)],
        &[(u64::MAX, 8, true)],
    ] {
        let mut driver = Driver::new();
        driver.queue.add(&driver.memory, chain);
        assert!(driver.run().is_err(), "{chain:?}");
    }
}

/// Whatever is asked for, the device answers or ends.
#[test]
fn random_requests_are_survived() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut driver = Driver::new();
        for _ in 0..20 {
            let mut chain = Vec::new();
            for _ in 0..=random.below(3) {
                let address = random.pick(&[DATA, MEMORY - 16, MEMORY, 0, u64::MAX]);
                let len = random.pick(&[0, 1, 16, 17, 4096, u32::MAX]);
                chain.push((address, len, random.below(4) > 0));
            }
            driver.queue.add(&driver.memory, &chain);
            if driver.run().is_err() {
                break;
            }
        }
    }
}
