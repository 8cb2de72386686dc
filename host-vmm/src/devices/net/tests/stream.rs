//! A peer that speaks as `passt` does.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use super::{CSUM, Driver, HEADER, MAC, MERGEABLE, RX, TX, frame};
use crate::devices::{VirtioDevice, net::Stream};

fn driver(features: u64) -> (Driver, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Driver::new(Stream::new(ours), features), theirs)
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).unwrap();
    [&len.to_be_bytes(), frame].concat()
}

fn next_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn a_frame_of_the_guests_comes_behind_its_length() {
    let (mut driver, mut peer) = driver(0);
    for (number, len) in [(1, 14), (2, 60), (3, 1514), (4, 65_550)] {
        // What a header says that was not accepted is nothing to the peer.
        let header = [0; HEADER];
        driver.send(header, &frame(number, len));
        assert_eq!(next_frame(&mut peer), frame(number, len));
    }
}

#[test]
fn what_is_offered_is_what_a_peer_without_headers_can_keep() {
    let (driver, _peer) = driver(0);
    assert_eq!(driver.device.features() & CSUM, 0);
    assert_eq!(driver.device.features() & 0b1_1111 << 7, 0);
    let mut mac = [0; 6];
    driver.device.read_config(0, &mut mac);
    assert_eq!(mac, MAC);
    assert!(driver.link_is_up());
}

#[test]
fn frames_come_whatever_pieces_they_arrive_in() {
    let (mut driver, mut peer) = driver(0);
    driver.offer(8, 2048);
    let mut bytes = Vec::new();
    for number in 0..4 {
        bytes.extend(with_length(&frame(number, 60 + number * 400)));
    }
    for piece in bytes.chunks(97) {
        peer.write_all(piece).unwrap();
        driver.run().unwrap();
    }
    for number in 0..4 {
        let (header, found) = driver.received(2048).unwrap();
        assert_eq!(found, frame(number, 60 + number * 400));
        // One buffer, and nothing left to do.
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
    assert_eq!(driver.received(2048), None);
}

/// A driver without `EVENT_IDX` would be told of nothing at every run.
#[test]
fn a_driver_is_interrupted_for_what_has_come_and_for_nothing_else() {
    let (mut driver, mut peer) = driver(0);
    let side = driver.queues[RX].device_side(&driver.memory, false);
    driver.device.start_queue(RX, side);
    driver.offer(8, 2048);
    driver.run().unwrap();
    driver.send([0; HEADER], &frame(1, 60));
    assert_eq!(driver.queues[RX].interrupted(), 0);
    peer.write_all(&with_length(&frame(2, 60))).unwrap();
    driver.run().unwrap();
    assert_eq!(driver.queues[RX].interrupted(), 1);
}

#[test]
fn a_large_frame_takes_several_buffers_if_that_was_accepted() {
    let (mut driver, mut peer) = driver(MERGEABLE);
    driver.offer(100, 1500);
    let len = 65_550;
    peer.write_all(&with_length(&frame(1, len))).unwrap();
    peer.write_all(&with_length(&frame(2, 100))).unwrap();
    driver.run().unwrap();
    let (header, found) = driver.received(1500).unwrap();
    assert_eq!(usize::from(header[10]), (HEADER + len).div_ceil(1500));
    assert_eq!(found, frame(1, len));
    assert_eq!(driver.received(1500).unwrap().1, frame(2, 100));
}

#[test]
fn a_frame_that_no_buffer_takes_is_lost_and_the_next_is_not() {
    let (mut driver, mut peer) = driver(0);
    driver.offer(2, 1526);
    for (number, len) in [(1, 1515), (2, 1514), (3, 9), (4, 60)] {
        peer.write_all(&with_length(&frame(number, len))).unwrap();
    }
    driver.run().unwrap();
    assert_eq!(driver.received(1526).unwrap().1, frame(2, 1514));
    assert_eq!(driver.received(1526).unwrap().1, frame(4, 60));
}

#[test]
fn frames_wait_for_buffers_and_the_peer_with_them() {
    for features in [0, MERGEABLE] {
        let (mut driver, mut peer) = driver(features);
        peer.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let mut rest = Vec::new();
        // Until nobody takes any more.
        'full: loop {
            if rest.is_empty() {
                rest = with_length(&frame(sent, 1000));
                sent += 1;
            }
            for idle in 0.. {
                match peer.write(&rest) {
                    Ok(count) => {
                        rest.drain(..count);
                        break;
                    }
                    Err(_) if idle == 2 => break 'full,
                    Err(_) => driver.run().unwrap(),
                }
            }
        }
        assert!(sent < 4000, "{sent}");
        let mut received = 0;
        while received < sent {
            driver.offer(100, 1100);
            driver.run().unwrap();
            let _ = peer.write(&rest).map(|count| rest.drain(..count));
            while let Some((_, found)) = driver.received(1100) {
                assert_eq!(found, frame(received, 1000));
                received += 1;
            }
        }
    }
}

#[test]
fn a_peer_that_does_not_read_holds_up_the_guest_and_loses_nothing() {
    let (mut driver, mut peer) = driver(0);
    let mut posted = 0;
    let mut taken = 0;
    // Until the device takes no more; a buffer is used again when it has come back.
    while posted - taken < 100 {
        driver.post([0; HEADER], &frame(7, 30_000));
        posted += 1;
        driver.run().unwrap();
        while driver.queues[TX].used(&driver.memory).is_some() {
            taken += 1;
        }
        assert!(posted < 2000);
    }
    for _ in 0..posted {
        // There is room again, which no kick says.
        driver.run().unwrap();
        assert_eq!(next_frame(&mut peer), frame(7, 30_000));
    }
    driver.run().unwrap();
    while driver.queues[TX].used(&driver.memory).is_some() {
        taken += 1;
    }
    assert_eq!(taken, posted);
}

#[test]
fn a_peer_that_is_gone_is_a_link_that_is_down() {
    let (mut driver, peer) = driver(0);
    driver.offer(2, 2048);
    driver.run().unwrap();
    assert!(driver.link_is_up() && !driver.device.config_changed());
    drop(peer);
    driver.run().unwrap();
    assert!(!driver.link_is_up());
    // Told once.
    assert!(driver.device.config_changed());
    assert!(!driver.device.config_changed());
    // The guest's packets go nowhere, and it goes on.
    for number in 0..300 {
        driver.send([0; HEADER], &frame(number, 60));
    }
    assert_eq!(driver.received(2048), None);
}

#[test]
fn a_peer_that_goes_while_the_guest_sends_is_found_out_by_that() {
    let (mut driver, peer) = driver(0);
    drop(peer);
    // Without a look at events.
    driver.post([0; HEADER], &frame(1, 60));
    driver.device.run().unwrap();
    assert!(!driver.link_is_up());
    assert!(driver.queues[TX].used(&driver.memory).is_some());
}

#[test]
fn a_frame_longer_than_any_ends_the_link() {
    for length in [65_551, u32::MAX] {
        let (mut driver, mut peer) = driver(0);
        driver.offer(2, 2048);
        peer.write_all(&length.to_be_bytes()).unwrap();
        driver.run().unwrap();
        assert!(!driver.link_is_up(), "{length}");
    }
}

/// A driver that is started anew after a frame was sent in part meets a peer that still understands it.
#[test]
fn a_frame_that_has_begun_ends_whatever_the_driver_does() {
    let (mut driver, mut peer) = driver(0);
    for _ in 0..100 {
        driver.post([0; HEADER], &frame(7, 30_000));
    }
    driver.run().unwrap();
    for index in [0, 1] {
        driver.device.stop_queue(index).unwrap();
    }
    peer.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..100 {
        let _ = peer.read_to_end(&mut bytes);
        let queue = &driver.queues[TX];
        let side = queue.device_side(&driver.memory, false);
        driver.device.start_queue(TX, side);
        driver.device.kick(TX);
        driver.run().unwrap();
        driver.device.stop_queue(TX);
    }
    assert_eq!(bytes.len() % 30_004, 0);
    assert!(
        bytes
            .chunks(30_004)
            .all(|sent| sent == with_length(&frame(7, 30_000)))
    );
}
