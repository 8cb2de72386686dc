//! Drivers that break the rules.

use std::{io::Write, os::unix::net::UnixStream};

use super::{CSUM, Driver, IN, MEMORY, MERGEABLE, OUT, RX, TX, frame};
use crate::devices::{VirtioDevice, net::Stream, testing::Random};

fn driver(features: u64) -> (Driver, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Driver::new(Stream::new(ours), features), theirs)
}

#[test]
fn a_chain_that_is_no_packet_ends_the_device() {
    for chain in [
        &[(OUT, 60, true)][..],
        &[(OUT, 60, false), (OUT, 60, true)],
        &[(OUT, 11, false)],
        &[(OUT, 0, false)],
        &[(OUT, 65_563, false)],
        &[(OUT, 65_000, false), (OUT, 65_000, false)],
        &[(MEMORY - 30, 60, false)],
        &[(u64::MAX, 60, false)],
    ] {
        let (mut driver, _peer) = driver(0);
        driver.queues[TX].add(&driver.memory, chain);
        driver.device.kick(TX);
        assert!(driver.run().is_err(), "{chain:?}");
    }
}

#[test]
fn a_chain_that_takes_no_packet_ends_the_device() {
    for chain in [
        &[(IN, 60, false)][..],
        &[(IN, 60, false), (IN, 60, true)],
        &[(IN, 11, true)],
        &[(IN, 0, true)],
        &[(MEMORY - 30, 60, true)],
    ] {
        let (mut driver, mut peer) = driver(MERGEABLE);
        let bytes = [&[0, 0, 0, 100][..], &frame(1, 100)].concat();
        peer.write_all(&bytes).unwrap();
        driver.queues[RX].add(&driver.memory, chain);
        driver.device.kick(RX);
        assert!(driver.run().is_err(), "{chain:?}");
    }
}

#[test]
fn what_was_not_offered_is_not_asked_for() {
    let (mut driver, _peer) = driver(MERGEABLE);
    assert_eq!(driver.device.features() & CSUM, 0);
    driver.post([1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0], &frame(1, 60));
    assert!(driver.run().is_err());
}

/// Buffers so small that no ring of them takes a packet: it is lost, and the device rests.
#[test]
fn buffers_of_a_byte_do_not_hold_up_the_device() {
    let (mut driver, mut peer) = driver(MERGEABLE);
    let bytes = [&[0, 0, 4, 0][..], &frame(1, 1024)].concat();
    peer.write_all(&bytes).unwrap();
    driver.queues[RX].add(&driver.memory, &[(IN, 12, true)]);
    for _ in 0..255 {
        driver.queues[RX].add(&driver.memory, &[(IN, 1, true)]);
    }
    driver.device.kick(RX);
    driver.run().unwrap();
    assert_eq!(driver.queues[RX].used(&driver.memory), None);
    // One that fits takes the next packet.
    let bytes = [&[0, 0, 0, 100][..], &frame(2, 100)].concat();
    peer.write_all(&bytes).unwrap();
    driver.run().unwrap();
    assert!(driver.queues[RX].used(&driver.memory).is_some());
}

/// Whatever the driver does, the device works, or ends.
#[test]
fn random_drivers_are_survived() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let features = random.pick(&[0, MERGEABLE]);
        let (mut driver, mut peer) = driver(features);
        peer.set_nonblocking(true).unwrap();
        for _ in 0..40 {
            let index = random.below(2) as usize;
            let mut chain = Vec::new();
            for _ in 0..=random.below(3) {
                let address = random.pick(&[OUT, IN, MEMORY - 16, 0x5000, u64::MAX]);
                let len = random.pick(&[0, 1, 12, 60, 1514, 4096, 70_000]);
                let right = random.below(8) > 0;
                chain.push((address, len, right == (index == RX)));
            }
            chain.sort_by_key(|(_, _, writable)| *writable);
            driver.queues[index].add(&driver.memory, &chain);
            driver.device.kick(index);
            let mut bytes = vec![0; random.below(300) as usize];
            random.fill(&mut bytes);
            if random.below(4) > 0 && bytes.len() > 3 {
                bytes[..3].fill(0);
            }
            let _ = peer.write(&bytes);
            if driver.run().is_err() {
                break;
            }
        }
    }
}
