//! What a guest that keeps the rules can rely on.

use std::{io::Write, net::Shutdown};

use super::*;
use crate::devices::vsock::{
    connection::BUF_ALLOC, connections::MAX_CONNECTIONS, packet::shutdown,
};

const PORTS: (u32, u32) = (1025, 80);
/// More rounds of reading than any stream here takes.
const ROUNDS: usize = 1000;

#[test]
fn config_space_holds_the_identifier() {
    let guest = Guest::new();
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config[..8], CID.to_le_bytes());
    assert_eq!(config[8..], [0; 4]);
    guest.device.read_config(u32::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn data_reaches_the_host_in_every_layout() {
    let data = pattern(1000);
    let layouts: [&[usize]; 8] = [
        &[1044],
        &[44, 1000],
        &[44, 1, 998, 1],
        &[20, 24, 1000],
        &[1, 43, 500, 500],
        &[43, 1001],
        &[45, 999],
        &[44, 0, 300, 0, 700],
    ];
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    for pieces in layouts {
        let mut header = guest.header(op::RW, PORTS);
        header.len = 1000;
        guest.queue_pieces(header, &data, pieces);
        guest.run().unwrap();
        assert_eq!(read_now(&host), (data.clone(), false), "{pieces:?}");
        let buffers = guest.lay_out(header, &data, pieces);
        guest.tx.add_indirect(&guest.memory, TABLE, &buffers);
        guest.device.kick(1);
        guest.run().unwrap();
        assert_eq!(
            read_now(&host),
            (data.clone(), false),
            "indirect {pieces:?}"
        );
    }
    let used = std::iter::from_fn(|| guest.tx.used(&guest.memory)).count();
    assert_eq!(used, 2 * layouts.len());
}

#[test]
fn more_pieces_than_one_system_call_takes() {
    let data = pattern(4000);
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let mut header = guest.header(op::RW, PORTS);
    header.len = 4000;
    let mut pieces = vec![44];
    pieces.extend([40; 100]);
    guest.queue_pieces(header, &data, &pieces);
    guest.run().unwrap();
    assert_eq!(read_now(&host), (data, false));
}

#[test]
fn data_reaches_the_guest_in_every_layout() {
    for pieces in [
        &[4096][..],
        &[44, 4052],
        &[10, 34, 1, 1000],
        &[43, 1, 100],
        &[45],
    ] {
        let mut guest = Guest::without_buffers(false);
        guest.post(1);
        let mut host = guest.connect(PORTS);
        let data = pattern(3000);
        host.write_all(&data).unwrap();
        let room: u32 = pieces.iter().sum::<u32>() - 44;
        guest.post_one(pieces);
        guest.run().unwrap();
        // The buffer that took the response was offered again, so it gets what follows.
        let first = guest.receive_one().unwrap();
        assert_eq!(first.1, data[..first.1.len()]);
        let second = guest.receive_one();
        let sent = first.1.len() + second.as_ref().map_or(0, |packet| packet.1.len());
        assert_eq!(sent, data.len().min(4052 + room as usize), "{pieces:?}");
    }
}

#[test]
fn a_refused_port_answers_with_reset() {
    let mut guest = Guest::new();
    guest.send(op::REQUEST, (7, SERVED), 0, &[]);
    let (operations, _) = guest.drain();
    assert_eq!(operations, [(op::RST, 0)]);
    // Nor is there anything to send to.
    guest.send(op::RW, (7, SERVED), 0, b"hello");
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    // A reset is never answered.
    guest.send(op::RST, (7, SERVED), 0, &[]);
    assert_eq!(guest.drain().0, []);
}

#[test]
fn the_guest_never_gets_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    guest.buf_alloc = 1000;
    let mut host = guest.connect(PORTS);
    let data = pattern(5000);
    host.write_all(&data).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    for _ in 0..5 {
        guest.run().unwrap();
        let packets = guest.receive();
        let got: Vec<u8> = packets.into_iter().flat_map(|packet| packet.1).collect();
        assert_eq!(got.len(), 1000);
        received.extend(got);
        // Nothing until the guest says that it has passed something on.
        guest.run().unwrap();
        assert!(guest.receive().is_empty());
        guest.fwd_cnt += 1000;
        guest.send(op::CREDIT_UPDATE, PORTS, 0, &[]);
    }
    assert_eq!(received, data);
    assert_eq!(guest.drain().0, [(op::SHUTDOWN, shutdown::SEND)]);
}

#[test]
fn nonsense_credit_is_no_credit() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    guest.fwd_cnt = 1;
    guest.send(op::CREDIT_UPDATE, PORTS, 0, &[]);
    host.write_all(b"x").unwrap();
    guest.run().unwrap();
    assert!(guest.receive().is_empty());
}

/// Sends until the guest may send no more; returns how much that was.
fn fill_up(guest: &mut Guest, ports: (u32, u32)) -> Vec<u8> {
    let (mut sent, mut forwarded) = (Vec::new(), 0_usize);
    loop {
        guest.send(op::CREDIT_REQUEST, ports, 0, &[]);
        for (header, _) in guest.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            assert_eq!(header.buf_alloc, BUF_ALLOC);
            forwarded = header.fwd_cnt as usize;
        }
        let room = BUF_ALLOC as usize - (sent.len() - forwarded);
        if room == 0 {
            return sent;
        }
        let data = pattern(room.min(10_007));
        guest.send(op::RW, ports, 0, &data);
        sent.extend(data);
    }
}

/// What the host's end gets until it ends, while the device works.
fn read_to_end(guest: &mut Guest, host: &UnixStream) -> Vec<u8> {
    let mut received = Vec::new();
    for _ in 0..ROUNDS {
        let (bytes, ended) = read_now(host);
        received.extend(bytes);
        if ended {
            return received;
        }
        guest.run().unwrap();
    }
    panic!("the stream does not end");
}

#[test]
fn a_reader_that_stops_holds_up_its_own_connection_only() {
    let mut guest = Guest::new();
    let stuck = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    assert!(sent.len() > BUF_ALLOC as usize, "the socket took some too");
    let other = guest.connect((1026, 81));
    guest.send(op::RW, (1026, 81), 0, b"still here");
    assert_eq!(read_now(&other).0, b"still here");
    // The reader goes on: it gets everything, and the guest learns of its new room by itself.
    let mut received = Vec::new();
    let (mut told, mut times) = (0, 0);
    for _ in 0..ROUNDS {
        if received.len() == sent.len() {
            break;
        }
        received.extend(read_now(&stuck).0);
        guest.run().unwrap();
        for (header, _) in guest.receive() {
            assert_eq!((header.op, header.dst_port), (op::CREDIT_UPDATE, PORTS.0));
            told = header.fwd_cnt as usize;
            times += 1;
        }
    }
    assert_eq!(received, sent);
    // Small steps are not worth a packet.
    for _ in 0..10 {
        guest.send(op::RW, PORTS, 0, b"x");
    }
    times += guest.receive().len();
    assert!((1..=5).contains(&times), "{times}");
    assert!(sent.len() - told <= BUF_ALLOC as usize / 4);
}

#[test]
fn more_than_the_room_is_a_violation_and_what_was_accepted_arrives() {
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    guest.send(op::RW, PORTS, 0, b"x");
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    assert_eq!(read_to_end(&mut guest, &host), sent);
    // The name is free again.
    guest.connect(PORTS);
}

#[test]
fn the_host_closes_its_half() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    let data = pattern(100_000);
    host.write_all(&data).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let (operations, received) = guest.drain();
    assert_eq!(received, data);
    assert_eq!(operations, [(op::SHUTDOWN, shutdown::SEND)]);
    guest.send(op::RW, PORTS, 0, b"the other half is open");
    assert_eq!(read_now(&host), (b"the other half is open".to_vec(), false));
    guest.send(op::SHUTDOWN, PORTS, shutdown::BOTH, &[]);
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    assert_eq!(read_now(&host), (vec![], true));
}

#[test]
fn the_guest_closes_its_half() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    guest.send(op::SHUTDOWN, PORTS, shutdown::SEND, &[]);
    assert_eq!(read_to_end(&mut guest, &host), sent);
    host.write_all(b"the other half is open").unwrap();
    let (operations, received) = guest.drain();
    assert_eq!(received, b"the other half is open");
    assert!(
        operations
            .iter()
            .all(|(operation, _)| *operation == op::CREDIT_UPDATE)
    );
    // Data after the end of data is against the rules.
    guest.send(op::RW, PORTS, 0, b"x");
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
}

#[test]
fn reset_answers_shutdown_only_after_the_last_byte_is_delivered() {
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    guest.send(op::SHUTDOWN, PORTS, shutdown::BOTH, &[]);
    let mut received = Vec::new();
    let mut done = false;
    for _ in 0..ROUNDS {
        let (operations, _) = guest.drain();
        done = operations.contains(&(op::RST, 0));
        let (bytes, ended) = read_now(&host);
        received.extend(bytes);
        if done {
            // Everything was in the socket by then.
            assert!(ended);
            break;
        }
        assert!(!ended);
    }
    assert!(done);
    assert_eq!(received, sent);
}

#[test]
fn a_guest_that_resets_still_has_its_bytes_delivered() {
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    guest.send(op::RST, PORTS, 0, &[]);
    assert_eq!(guest.drain().0, []);
    assert!(!guest.device.drained());
    // The name can be used again meanwhile.
    let second = guest.connect(PORTS);
    assert_eq!(read_to_end(&mut guest, &host), sent);
    assert!(guest.device.drained());
    guest.send(op::RW, PORTS, 0, b"second");
    assert_eq!(read_now(&second), (b"second".to_vec(), false));
}

#[test]
fn stopping_the_queues_delivers_what_was_accepted() {
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let idle = guest.connect((1026, 81));
    let sent = fill_up(&mut guest, PORTS);
    assert!(guest.device.stop_queue(0).is_some());
    assert!(guest.device.stop_queue(1).is_some());
    assert!(guest.device.stop_queue(1).is_none());
    assert_eq!(read_now(&idle), (vec![], true));
    assert!(!guest.device.drained());
    assert_eq!(read_to_end(&mut guest, &host), sent);
    assert!(guest.device.drained());
}

#[test]
fn a_host_that_is_gone_is_a_broken_pipe() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    host.write_all(b"last words").unwrap();
    drop(host);
    let (operations, received) = guest.drain();
    assert_eq!(received, b"last words");
    assert_eq!(operations.last(), Some(&(op::SHUTDOWN, shutdown::BOTH)));
    // What is under way already is thrown away, and counts as passed on.
    guest.send(op::RW, PORTS, 0, b"too late");
    guest.send(op::CREDIT_REQUEST, PORTS, 0, &[]);
    let packets = guest.receive();
    assert_eq!(packets[0].0.fwd_cnt, 8);
    guest.send(op::RST, PORTS, 0, &[]);
    assert_eq!(guest.device.connection_count(), 0);
}

#[test]
fn a_host_that_is_gone_with_bytes_unread_is_a_broken_pipe_too() {
    let mut guest = Guest::new();
    let host = guest.connect(PORTS);
    let sent = fill_up(&mut guest, PORTS);
    drop(host);
    let (operations, _) = guest.drain();
    assert_eq!(operations.last(), Some(&(op::SHUTDOWN, shutdown::BOTH)));
    assert!(guest.device.drained());
    // What was thrown away takes no room.
    guest.send(op::CREDIT_REQUEST, PORTS, 0, &[]);
    assert_eq!(guest.receive()[0].0.fwd_cnt as usize, sent.len());
}

#[test]
fn a_host_that_only_stops_reading_can_still_write() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(op::RW, PORTS, 0, b"nobody listens");
    assert_eq!(guest.drain().0, [(op::SHUTDOWN, shutdown::RECEIVE)]);
    host.write_all(b"hello").unwrap();
    assert_eq!(guest.drain().1, b"hello");
    drop(host);
    assert_eq!(guest.drain().0, [(op::SHUTDOWN, shutdown::BOTH)]);
}

#[test]
fn a_guest_that_stops_receiving_is_a_broken_pipe_for_the_host() {
    let mut guest = Guest::new();
    let mut host = guest.connect(PORTS);
    guest.send(op::SHUTDOWN, PORTS, shutdown::RECEIVE, &[]);
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(op::RW, PORTS, 0, b"still sending");
    assert_eq!(read_now(&host), (b"still sending".to_vec(), false));
    assert_eq!(guest.drain().0, []);
}

#[test]
fn as_many_connections_as_promised_and_no_more() {
    let mut guest = Guest::new();
    let most = u32::try_from(MAX_CONNECTIONS).unwrap();
    let mut hosts: Vec<_> = (0..most).map(|port| guest.connect((port, 80))).collect();
    guest.send(op::REQUEST, (most, 80), 0, &[]);
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    for (port, host) in (0..).zip(&mut hosts) {
        guest.send(op::RW, (port, 80), 0, &port.to_le_bytes());
        assert_eq!(read_now(host), (port.to_le_bytes().to_vec(), false));
        host.write_all(&port.to_be_bytes()).unwrap();
    }
    let mut seen = vec![false; hosts.len()];
    for _ in 0..most {
        guest.run().unwrap();
        for (header, data) in guest.receive() {
            assert_eq!(data, header.dst_port.to_be_bytes());
            assert!(!std::mem::replace(
                &mut seen[header.dst_port as usize],
                true
            ));
        }
    }
    assert!(seen.into_iter().all(|seen| seen));
    guest.send(op::SHUTDOWN, (3, 80), shutdown::BOTH, &[]);
    assert_eq!(guest.drain().0, [(op::RST, 0)]);
    guest.connect((most, 80));
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::without_buffers(false);
    guest.post(2);
    let mut first = guest.connect((1, 80));
    let mut second = guest.connect((2, 80));
    first.write_all(&pattern(150_000)).unwrap();
    second.write_all(&pattern(150_000)).unwrap();
    let mut shares = [0_i64; 2];
    for _ in 0..60 {
        guest.run().unwrap();
        for (header, data) in guest.receive() {
            let share = &mut shares[header.dst_port as usize - 1];
            *share += i64::try_from(data.len()).unwrap();
        }
        assert!((shares[0] - shares[1]).abs() <= 16 * 4096, "{shares:?}");
    }
    assert!(shares[0] > 100_000 && shares[1] > 100_000, "{shares:?}");
}

#[test]
fn refusals_without_room_hold_the_guest_up_instead_of_piling_up() {
    let mut guest = Guest::without_buffers(false);
    let mut accepted = 0;
    for round in 0..20 {
        for port in 0..100 {
            guest.queue_packet(guest.header(op::REQUEST, (round * 100 + port, SERVED)), &[]);
        }
        guest.run().unwrap();
        while guest.tx.used(&guest.memory).is_some() {
            accepted += 1;
        }
        if accepted < (round + 1) * 100 {
            break;
        }
    }
    assert_eq!(accepted, 256);
    guest.post(64);
    let (operations, _) = guest.drain();
    assert_eq!(operations, vec![(op::RST, 0); 300]);
}

#[test]
fn a_batch_costs_one_interrupt() {
    let mut guest = Guest::new();
    let _host = guest.connect(PORTS);
    let (rx, tx) = (guest.rx.interrupted(), guest.tx.interrupted());
    for _ in 0..50 {
        guest.queue_packet(guest.header(op::CREDIT_REQUEST, PORTS), &[]);
    }
    for port in 0..10 {
        guest.queue_packet(guest.header(op::REQUEST, (port, SERVED)), &[]);
    }
    guest.run().unwrap();
    assert_eq!(guest.tx.interrupted() - tx, 1);
    assert_eq!(guest.rx.interrupted() - rx, 1);
    assert_eq!(guest.receive().len(), 11);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut guest = Guest::without_buffers(true);
    guest.post(8);
    guest.tx.want_interrupt(&guest.memory);
    let _host = guest.connect(PORTS);
    assert_eq!(guest.tx.interrupted(), 1);
    guest.send(op::CREDIT_REQUEST, PORTS, 0, &[]);
    assert_eq!(guest.tx.interrupted(), 1);
    guest.tx.want_interrupt(&guest.memory);
    guest.send(op::CREDIT_REQUEST, PORTS, 0, &[]);
    assert_eq!(guest.tx.interrupted(), 2);
}
