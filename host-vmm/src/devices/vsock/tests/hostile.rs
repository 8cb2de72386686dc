//! What a guest that breaks the rules can do: lose its connection or its device.

use super::*;
use crate::devices::{
    testing::{Descriptor, INDIRECT, NEXT, Random, WRITE},
    virtqueue::QueueError,
    vsock::packet::shutdown,
};

const PORTS: (u32, u32) = (1025, 80);

#[test]
fn packets_for_and_from_others_are_dropped() {
    let mut guest = Guest::new();
    for (src, dst) in [
        (CID, 3),
        (CID, CID),
        (2, 2),
        (CID + 1, 2),
        (CID | 1 << 32, 2),
    ] {
        let mut header = guest.header(op::REQUEST, PORTS);
        header.src_cid = src;
        header.dst_cid = dst;
        guest.queue_packet(header, &[]);
    }
    assert_eq!(guest.drain(), (vec![], vec![]));
    assert!(guest.hosts.try_recv().is_err());
}

#[test]
fn unknown_types_operations_and_lengths_are_reset() {
    let changes: [fn(&mut Header); 6] = [
        |header| header.kind = 2,
        |header| header.op = 0,
        |header| header.op = 99,
        |header| header.op = op::RESPONSE,
        |header| header.op = op::REQUEST,
        |header| header.len = 11,
    ];
    let mut guest = Guest::new();
    for change in changes {
        let host = guest.connect(PORTS);
        let mut header = guest.header(op::RW, PORTS);
        header.len = 10;
        change(&mut header);
        guest.queue_packet(header, &[7; 10]);
        assert_eq!(guest.drain().0, [(op::RST, 0)], "{header:?}");
        assert_eq!(read_now(&host), (vec![], true), "{header:?}");
    }
    let mut header = guest.header(op::REQUEST, PORTS);
    header.kind = 2;
    guest.queue_packet(header, &[]);
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    assert!(guest.hosts.try_recv().is_err());
}

/// A chain of descriptors from 0 up that the guest offers.
fn offer_to_tx(guest: &mut Guest, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, (address, len, flags, next)) in (0..).zip(descriptors.iter().copied()) {
        let descriptor = Descriptor {
            address,
            len,
            flags,
            next,
        };
        guest.tx.write(&guest.memory, TX_RINGS, index, descriptor);
    }
    guest.tx.offer(&guest.memory, 0);
    guest.device.kick(1);
}

#[test]
fn malformed_chains_stop_the_device() {
    let at = TX_BUFFER;
    let chains: [&[(u64, u32, u16, u16)]; 15] = [
        // Too short, or empty.
        &[(at, 43, 0, 0)],
        &[(at, 0, 0, 0)],
        // Not in memory, in part or at all.
        &[(MEMORY - 43, 44, 0, 0)],
        &[(MEMORY, 44, 0, 0)],
        &[(u64::MAX - 10, 44, 0, 0)],
        &[(at, 44, NEXT, 1), (0, u32::MAX, 0, 0)],
        &[(at, 44, NEXT, 1), (MEMORY - 10, 11, 0, 0)],
        // A loop, and a way out of the table.
        &[(at, 44, NEXT, 0)],
        &[(at, 44, NEXT, 1), (at, 1, NEXT, 0)],
        &[(at, 44, NEXT, 128)],
        // Not for sending.
        &[(at, 44, WRITE, 0)],
        &[(at, 44, NEXT, 1), (at, 10, WRITE, 0)],
        &[(at, 44, NEXT | WRITE, 1), (at, 10, 0, 0)],
        // Indirect tables that are odd, or not in memory.
        &[(at, 17, INDIRECT, 0)],
        &[(MEMORY, 16, INDIRECT, 0)],
    ];
    for chain in chains {
        let mut guest = Guest::new();
        let host = guest.connect(PORTS);
        // A header that would be fine.
        let header = guest.header(op::CREDIT_REQUEST, PORTS);
        guest
            .memory
            .write_slice(&header.to_bytes(), GuestAddress(at))
            .unwrap();
        offer_to_tx(&mut guest, chain);
        let error = guest.run().expect_err("the chain was taken");
        assert!(!error.to_string().is_empty());
        // What the transport does then.
        for index in 0..3 {
            guest.device.stop_queue(index);
        }
        assert_eq!(guest.device.run().unwrap(), Progress::Idle, "{chain:?}");
        assert_eq!(read_now(&host), (vec![], true));
    }
}

#[test]
fn indirect_tables_do_not_make_longer_chains() {
    let mut guest = Guest::new();
    guest.connect(PORTS);
    let header = guest.header(op::CREDIT_REQUEST, PORTS);
    let mut buffers = guest.lay_out(header, &[], &[HEADER_LEN]);
    buffers.extend([(TX_BUFFER, 0, false); 128]);
    let table = TABLE;
    guest.tx.add_indirect(&guest.memory, table, &buffers[..128]);
    guest.device.kick(1);
    guest.run().unwrap();
    guest.tx.add_indirect(&guest.memory, table, &buffers);
    guest.device.kick(1);
    assert!(matches!(
        guest.run(),
        Err(DeviceError::Queue(QueueError::Chain { .. }))
    ));
}

#[test]
fn more_available_than_the_ring_holds_stops_the_device() {
    let mut guest = Guest::new();
    let index = TX_RINGS + 4096 + 2;
    guest
        .memory
        .write_obj(129_u16, GuestAddress(index))
        .unwrap();
    guest.device.kick(1);
    assert!(matches!(
        guest.run(),
        Err(DeviceError::Queue(QueueError::Ring(_)))
    ));
}

#[test]
fn unusable_buffers_to_receive_into_stop_the_device() {
    let chains: [&[(u64, u32, bool)]; 4] = [
        &[(RX_BUFFERS, 44, true)],
        &[(RX_BUFFERS, 10, true), (RX_BUFFERS, 20, true)],
        &[(RX_BUFFERS, 4096, false)],
        &[(RX_BUFFERS, 10, false), (RX_BUFFERS, 4096, true)],
    ];
    for chain in chains {
        let mut guest = Guest::without_buffers(false);
        guest.rx.add(&guest.memory, chain);
        let header = guest.header(op::REQUEST, PORTS);
        guest.queue_packet(header, &[]);
        assert!(matches!(
            guest.run(),
            Err(DeviceError::Queue(QueueError::Buffer { .. }))
        ));
    }
}

#[test]
fn opening_and_resetting_leaves_nothing_behind() {
    let mut guest = Guest::without_buffers(false);
    for _ in 0..5000 {
        guest.send(op::REQUEST, PORTS, 0, &[]);
        guest.send(op::RST, PORTS, 0, &[]);
    }
    assert_eq!(guest.hosts.try_iter().count(), 5000);
    assert_eq!(guest.device.connection_count(), 0);
    assert_eq!(guest.device.turn_count(), 0);
}

/// A header whose fields make some sense more often than not.
fn random_header(random: &mut Random, guest: &Guest) -> Header {
    let ports = (random.below(4), random.pick(&[80, 81, SERVED]));
    let operation = random.pick(&[
        op::REQUEST,
        op::REQUEST,
        op::RESPONSE,
        op::RST,
        op::SHUTDOWN,
        op::RW,
        op::RW,
        op::RW,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        0,
        1000,
    ]);
    let mut header = guest.header(operation, ports);
    header.flags = random.pick(&[
        0,
        shutdown::RECEIVE,
        shutdown::SEND,
        shutdown::BOTH,
        u32::MAX,
    ]);
    header.len = random.pick(&[0, 1, 100, 5000, 65536, 300_000, u32::MAX]);
    header.buf_alloc = random.pick(&[0, 1, 5000, 1 << 20, u32::MAX]);
    header.fwd_cnt = random.pick(&[0, 1, 5000, u32::MAX]);
    if random.below(30) == 0 {
        header.kind = 2;
    }
    if random.below(30) == 0 {
        header.src_cid = random.next();
    }
    header
}

/// A descriptor that is usable more often than not.
fn random_descriptor(random: &mut Random, index: u16, write: bool) -> Descriptor {
    let mut flags = if write { WRITE } else { 0 };
    if random.below(3) == 0 {
        flags |= NEXT;
    }
    if random.below(400) == 0 {
        flags ^= random.pick(&[WRITE, INDIRECT, u16::MAX]);
    }
    let address = match random.below(400) {
        0 => random.next(),
        1 => MEMORY - u64::from(random.below(100)),
        _ => TX_BUFFER + u64::from(random.below(0x1_0000)),
    };
    let next = match random.below(200) {
        0 => index,
        1 => u16::MAX,
        _ => index.wrapping_add(1) % 64,
    };
    Descriptor {
        address,
        len: random.pick(&[44, 44, 44, 45, 100, 4096, 70_000]),
        flags,
        next,
    }
}

/// Whatever the guest does, the device comes to rest or stops with an error.
#[test]
fn random_guests() {
    let (mut steps, mut stopped, mut connected) = (0, 0, 0);
    for seed in 1.. {
        if steps >= 120_000 {
            break;
        }
        let mut random = Random::new(seed);
        let mut guest = Guest::new();
        let mut hosts = Vec::new();
        for _ in 0..400 {
            steps += 1;
            let header = random_header(&mut random, &guest);
            let at = TX_BUFFER + u64::from(random.below(0x1_0000));
            guest
                .memory
                .write_slice(&header.to_bytes(), GuestAddress(at))
                .unwrap();
            match random.below(8) {
                0 => {
                    let index = u16::try_from(random.below(64)).unwrap();
                    let write = random.below(2) == 0;
                    let (queue, rings) = if write {
                        (&mut guest.rx, RX_RINGS)
                    } else {
                        (&mut guest.tx, TX_RINGS)
                    };
                    let descriptor = random_descriptor(&mut random, index, write);
                    queue.write(&guest.memory, rings, index, descriptor);
                    queue.offer(&guest.memory, index);
                }
                1 => {
                    // Whatever is in them.
                    while guest.rx.used(&guest.memory).is_some() {
                        guest.post(1);
                    }
                }
                2 => drop(hosts.pop()),
                3 => {
                    for host in &hosts {
                        let _ = std::io::Write::write(&mut &*host, &[1; 3000]);
                    }
                }
                4 => {
                    for host in &hosts {
                        read_now_quietly(host);
                    }
                }
                _ => {
                    let rest = random.pick(&[0, 1, 100, 5000, 60_000]);
                    let split = random.pick(&[44, 44, 10, 60]);
                    let pieces = [(at, split, false), (at + 44, rest, false)];
                    guest.tx.add(&guest.memory, &pieces);
                }
            }
            guest.device.kick(1);
            while guest.tx.used(&guest.memory).is_some() {}
            let result = guest.run();
            while let Ok(host) = guest.hosts.try_recv() {
                connected += 1;
                hosts.push(host);
            }
            if result.is_err() {
                stopped += 1;
                break;
            }
        }
        for index in 0..3 {
            guest.device.stop_queue(index);
        }
        drop(hosts);
        guest.run().unwrap();
        assert!(guest.device.drained());
        assert_eq!(guest.device.connection_count(), 0);
    }
    assert!(stopped > 50 && connected > 500, "{stopped} {connected}");
}

fn read_now_quietly(host: &UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = Read::read(&mut &*host, &mut buffer) {}
}
