//! What a front end that keeps the rules can rely on.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::net::{Net, Stream};

#[test]
fn a_whole_session() {
    let mut front = FrontEnd::new();
    front.set_up();
    let mut config = words(&[0, 8, 0]);
    config.extend([0xee; 8]);
    let reply = front.ask(GET_CONFIG, &config);
    assert_eq!(reply[..12], config[..12]);
    assert_eq!(reply[12..], 3_u64.to_le_bytes());

    let (backend, kept) = UnixStream::pair().unwrap();
    front.send(SET_BACKEND_FD, &[], &[backend.as_fd()]);
    drop(backend);

    let mut rx = DriverQueue::new(0x1_0000, 8);
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [rx_kick, rx_call, tx_kick, tx_call] = [(); 4].map(|()| new_eventfd());
    front.set_ring(0, &rx, &rx_kick, &rx_call);
    front.set_ring(1, &tx, &tx_kick, &tx_call);

    // A request for a connection, in the upper region.
    rx.add(&front.memory, &[(0xa_0000, 4096, true)]);
    let mut header = [0; 44];
    header[0] = 3;
    header[8] = 2;
    header[16] = 99;
    header[20] = 80;
    header[28] = 1;
    header[30] = 1;
    header[38] = 1;
    front
        .memory
        .write_slice(&header, GuestAddress(0xb_0000))
        .unwrap();
    tx.add(&front.memory, &[(0xb_0000, 44, false)]);
    rustix::io::write(&tx_kick, &1_u64.to_ne_bytes()).unwrap();
    wait_readable(rx_call.as_fd());
    wait_readable(tx_call.as_fd());
    assert_eq!(rx.used(&front.memory), Some((0, 44)));
    assert_eq!(tx.used(&front.memory), Some((0, 0)));
    let operation: u16 = front.memory.read_obj(GuestAddress(0xa_0000 + 30)).unwrap();
    assert_eq!(operation, 2);
    let mut host = front.hosts.recv().unwrap();

    // The socket for our requests stays open.
    let mut fds = [PollFd::new(&kept, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0));

    // The driver did not ask for another interrupt (EVENT_IDX), so it gets none.
    rustix::io::read(&tx_call, &mut [0; 8]).unwrap();
    header[30] = 6;
    front
        .memory
        .write_slice(&header, GuestAddress(0xb_0000))
        .unwrap();
    let mut send = |front: &mut FrontEnd, tx_kick: &OwnedFd| {
        tx.add(&front.memory, &[(0xb_0000, 44, false)]);
        rustix::io::write(tx_kick, &1_u64.to_ne_bytes()).unwrap();
        // A message later than the kick is handled later, or else the next one is.
        (0..100_000)
            .find_map(|_| {
                front.ask(GET_QUEUE_NUM, &[]);
                tx.used(&front.memory)
            })
            .expect("the packet is not taken")
    };
    assert_eq!(send(&mut front, &tx_kick), (1, 0));
    let mut fds = [PollFd::new(&tx_call, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0));
    // A new descriptor for interrupts is told once, in case one was lost.
    let tx_call = new_eventfd();
    front.send(SET_RING_CALL, &words(&[1, 0]), &[tx_call.as_fd()]);
    wait_readable(tx_call.as_fd());

    // Stopped rings say where they stopped, and the connection is over.
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 2]));
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    // They go on from there.
    let same_place = DriverQueue::new(0x1_4000, 8);
    front.set_ring_from(2, 1, &same_place, &tx_kick, &tx_call);
    assert_eq!(send(&mut front, &tx_kick), (2, 0));
    assert_eq!(front.ask(GET_RING_BASE, &words(&[0, 0])), words(&[0, 1]));

    // The front end goes, the server ends without complaint.
    let FrontEnd { socket, server, .. } = front;
    drop(socket);
    wait_readable(server.ended());
    assert_eq!(server.failure(), None);
}

#[test]
fn a_change_of_configuration_is_told_once_to_a_front_end_that_listens() {
    let (link, peer) = UnixStream::pair().unwrap();
    let net = Net::new([2, 0, 0, 0, 0, 1], None, Box::new(Stream::new(link)));
    let (_, hosts) = mpsc::channel();
    let mut front = FrontEnd::of(Box::new(net), hosts);
    let features = front.ask_u64(GET_FEATURES);
    front.accept(features, 2);
    let (backend, mut ours) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    front.send(SET_BACKEND_FD, &[], &[backend.as_fd()]);
    drop(backend);
    let rx = DriverQueue::new(0x1_0000, 8);
    let [kick, call] = [(); 2].map(|()| new_eventfd());
    front.set_ring(0, &rx, &kick, &call);
    let status = |front: &mut FrontEnd| {
        let reply = front.ask(GET_CONFIG, &words(&[6, 2, 0, 0])[..14]);
        reply[12..].to_vec()
    };
    assert_eq!(status(&mut front), [1, 0]);
    drop(peer);
    let mut told = [0; 12];
    ours.read_exact(&mut told).unwrap();
    assert_eq!(told.to_vec(), words(&[2, 1, 0]));
    assert_eq!(status(&mut front), [0, 0]);
    drop(front);
    assert_eq!(ours.read(&mut told).unwrap(), 0);
}

/// Bytes in a packet.
const DATA: usize = 200_000;

#[test]
fn what_the_guest_sent_before_it_ended_is_delivered() {
    let mut front = FrontEnd::new();
    front.set_up();
    let rx = DriverQueue::new(0x1_0000, 8);
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [rx_kick, rx_call, tx_kick, tx_call] = [(); 4].map(|()| new_eventfd());
    front.set_ring(0, &rx, &rx_kick, &rx_call);
    front.set_ring(1, &tx, &tx_kick, &tx_call);
    // The rings have been looked at by the time of the second answer.
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 3);
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 3);
    // A request and data, and no kick: the guest dies before it comes to that. It is more than a socket holds.
    let mut packet = vec![0x5a; 44 + DATA];
    packet[..44].fill(0);
    packet[0] = 3;
    packet[8] = 2;
    packet[20] = 80;
    packet[28] = 1;
    packet[30] = 1;
    let write = |at, bytes: &[u8]| front.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    write(0xb_0000, &packet[..44]);
    packet[24..28].copy_from_slice(&200_000_u32.to_le_bytes());
    packet[30] = 5;
    write(0x2_0000, &packet);
    tx.add(&front.memory, &[(0xb_0000, 44, false)]);
    tx.add(&front.memory, &[(0x2_0000, 44 + 200_000, false)]);
    tx.add(&front.memory, &[(0x2_0000, 44 + 200_000, false)]);
    drop(front.socket);
    let mut host = front.hosts.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received, [0x5a; 2 * DATA]);
    wait_readable(front.server.ended());
    assert_eq!(front.server.failure(), None);
}

#[test]
fn dropping_the_server_ends_it() {
    let mut front = FrontEnd::new();
    front.set_up();
    let FrontEnd {
        mut socket, server, ..
    } = front;
    drop(server);
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn messages_may_come_in_pieces() {
    let mut front = FrontEnd::new();
    for byte in message(GET_FEATURES, 1, &[]) {
        front.socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(front.reply(GET_FEATURES).len(), 8);
    // Several at once, too, more than are handled in one go.
    let many = message(GET_FEATURES, 1, &[]).repeat(50);
    front.socket.write_all(&many).unwrap();
    for _ in 0..50 {
        assert_eq!(front.reply(GET_FEATURES).len(), 8);
    }
}
