//! What a front end that breaks the rules can do: lose its device.

use super::*;
use crate::devices::{
    VirtioDevice,
    event_loop::EventLoop,
    testing::Random,
    transport::vhost_user::{
        backend::Backend,
        message::{Header, Request},
    },
};

#[test]
fn bad_headers_and_bodies_end_the_device() {
    let cases: [(&str, Vec<u8>); 8] = [
        ("unusable flags", message(GET_FEATURES, 0, &[])),
        ("unusable flags", message(GET_FEATURES, 5, &[])),
        ("too long", words(&[SET_MEM_TABLE, 1, 1033])),
        ("too long", words(&[SET_MEM_TABLE, 1, u32::MAX])),
        ("not supported", message(6, 1, &[0; 16])),
        ("not supported", message(u32::MAX, 1, &[])),
        ("body of 0 bytes", message(SET_FEATURES, 1, &[])),
        ("body of 1 bytes", message(GET_FEATURES, 1, &[0])),
    ];
    for (expected, bytes) in cases {
        let front = FrontEnd::new();
        front.send_bytes(&bytes, &[]);
        let failure = front.failure();
        assert!(failure.contains(expected), "{failure}");
    }
}

#[test]
fn an_end_in_the_middle_of_a_message_is_a_failure() {
    let front = FrontEnd::new();
    front.send_bytes(&message(SET_FEATURES, 1, &[0; 8])[..15], &[]);
    let FrontEnd { socket, server, .. } = front;
    drop(socket);
    wait_readable(server.ended());
    assert!(broken(&server).contains("middle of a message"));
}

/// What a test sends: request, body, and how many descriptors.
type Step = (u32, Vec<u8>, usize);

fn addresses(index: u32, offset: u64) -> Vec<u8> {
    let mut body = words(&[index, 0]);
    body.extend(longs(&[USER + offset, USER + offset, USER + offset, 0]));
    body
}

#[test]
fn requests_that_make_no_sense_end_the_device() {
    let region = |guest, size, offset| longs(&[1, guest, size, USER, offset]);
    let size = |size| (SET_RING_SIZE, words(&[0, size]), 0);
    let enable = || (SET_RING_ENABLE, words(&[0, 1]), 0);
    let kick = || (SET_RING_KICK, words(&[0, 0]), 1);
    let cases: Vec<(&str, Vec<Step>)> = vec![
        ("not offered", vec![(SET_FEATURES, longs(&[1 << 26]), 0)]),
        ("not offered", vec![(SET_PROTOCOL_FEATURES, longs(&[2]), 0)]),
        // Memory that is not the guest's.
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, MEMORY + 4096, 0), 1)],
        ),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, 4096, MEMORY), 1)],
        ),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, 4096, 1), 1)],
        ),
        ("unusable memory", vec![(SET_MEM_TABLE, region(0, 0, 0), 1)]),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(u64::MAX - 4095, 4096, 0), 1)],
        ),
        (
            "unusable memory",
            vec![(
                SET_MEM_TABLE,
                longs(&[2, 0, 8192, USER, 0, 4096, 4096, USER, 0]),
                2,
            )],
        ),
        (
            "number of memory regions",
            vec![(SET_MEM_TABLE, longs(&[0]), 0)],
        ),
        // Descriptors that do not belong.
        ("carries 1 descriptors", vec![(SET_OWNER, vec![], 1)]),
        (
            "carries 2 descriptors",
            vec![(SET_MEM_TABLE, region(0, 4096, 0), 2)],
        ),
        (
            "carries 0 descriptors",
            vec![(SET_RING_KICK, words(&[0, 0]), 0)],
        ),
        (
            "carries 1 descriptors",
            vec![(SET_RING_CALL, words(&[0x100, 0]), 1)],
        ),
        ("more than 32 descriptors", vec![(SET_OWNER, vec![], 33)]),
        ("more than 32 descriptors", vec![(SET_OWNER, vec![], 60)]),
        (
            "without a kick descriptor",
            vec![(SET_RING_KICK, words(&[0x100, 0]), 0)],
        ),
        // Rings.
        ("ring 3", vec![(SET_RING_SIZE, words(&[3, 64]), 0)]),
        ("ring 3", vec![(SET_RING_CALL, words(&[3, 0]), 1)]),
        ("ring 255", vec![(SET_RING_KICK, words(&[255, 0]), 1)]),
        (
            "ring 4294967295",
            vec![(GET_RING_BASE, words(&[u32::MAX, 0]), 0)],
        ),
        ("impossible size", vec![size(0)]),
        ("impossible size", vec![size(3)]),
        ("impossible size", vec![size(2048)]),
        ("impossible size", vec![size(0x1_0040)]),
        (
            "impossible base",
            vec![(SET_RING_BASE, words(&[0, 0x1_0000]), 0)],
        ),
        ("without addresses", vec![enable(), kick()]),
        (
            "without a size",
            vec![(SET_RING_ADDRESSES, addresses(0, 0), 0), enable(), kick()],
        ),
        (
            "unusable ring",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 1), 0),
                enable(),
                kick(),
            ],
        ),
        (
            "unusable ring",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, MEMORY - 16), 0),
                enable(),
                kick(),
            ],
        ),
        (
            "impossible address",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, MEMORY), 0),
                kick(),
                enable(),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                (SET_MEM_TABLE, region(0, 4096, 0), 1),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                size(32),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                kick(),
            ],
        ),
    ];
    for (expected, steps) in cases {
        let mut front = FrontEnd::new();
        front.set_up();
        for (request, body, count) in &steps {
            let fds: Vec<OwnedFd> = (0..*count).map(|_| new_eventfd()).collect();
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            front.send(*request, body, &fds);
        }
        let failure = front.failure();
        assert!(failure.contains(expected), "{failure} for {steps:?}");
    }
}

#[test]
fn a_driver_that_breaks_its_queue_is_a_failure_and_can_start_again() {
    let mut front = FrontEnd::new();
    front.set_up();
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [kick, call, err] = [(); 3].map(|()| new_eventfd());
    front.send(SET_RING_ERR, &words(&[1, 0]), &[err.as_fd()]);
    front.set_ring(1, &tx, &kick, &call);
    tx.add(&front.memory, &[(0xb_0000, 1, false)]);
    rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
    wait_readable(err.as_fd());
    // It took the packet with it, and answers as before.
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 1]));
    let failure = broken(&front.server);
    assert!(failure.contains("header"), "{failure}");
    let tx = DriverQueue::new(0x1_8000, 8);
    front.set_ring(1, &tx, &kick, &call);
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 0]));
}

/// Any sequence of well-formed requests leaves the state machine standing.
#[test]
fn random_requests() {
    let shared = SharedMemory::create(MEMORY).unwrap();
    let (mut done, mut refused, mut ran) = (0, 0, 0);
    for seed in 1..=4000 {
        let mut random = Random::new(seed);
        let events = EventLoop::new().unwrap();
        let (mut device, _hosts) = vsock();
        device.attach(events.registry(2)).unwrap();
        let mut backend = Backend::new(device, shared.clone(), events.registry(1));
        for _ in 0..60 {
            let Some((request, fds)) = random_request(&mut random) else {
                continue;
            };
            match backend.handle(request, random.below(2) == 0, fds) {
                Ok(_) => done += 1,
                // The conversation would be over here, but a sound state machine does not depend on it.
                Err(_) => refused += 1,
            }
            for index in 0..3 {
                backend.kick(index);
            }
            if backend.run().1.is_some() {
                ran += 1;
            }
        }
        backend.stop_all();
    }
    assert!(done > 50_000 && refused > 20_000, "{done} {refused} {ran}");
}

fn random_request(random: &mut Random) -> Option<(Request, Vec<OwnedFd>)> {
    let index = random.pick(&[0, 0, 0, 0, 1, 1, 2, 3, u32::MAX]);
    let place = |random: &mut Random| u64::from(random.below(260)) * 4096;
    let (request, body) = match random.below(16) {
        0 => (
            SET_FEATURES,
            longs(&[random.pick(&[0, 1 << 30, 1 << 32, 1 << 29, 1])]),
        ),
        1 => (
            SET_PROTOCOL_FEATURES,
            longs(&[random.pick(&[0, 8, 1 << 5, 1 << 60])]),
        ),
        2 => (GET_RING_BASE, words(&[index, 0])),
        3 => (4, vec![]),
        4 | 5 => {
            let count = 1 + random.below(3);
            let mut body = words(&[count, 0]);
            for _ in 0..count {
                let size = random.pick(&[4096, MEMORY / 2, MEMORY, u64::MAX]);
                let values = [
                    place(random),
                    size,
                    USER,
                    random.pick(&[0, 0, 4096, MEMORY]),
                ];
                body.extend(longs(&values));
            }
            (SET_MEM_TABLE, body)
        }
        6 | 7 => (
            SET_RING_SIZE,
            words(&[index, random.pick(&[8, 64, 256, 1024, 0, 7])]),
        ),
        8 | 9 => {
            let mut body = words(&[index, 0]);
            for _ in 0..3 {
                body.extend(longs(&[USER + place(random) + u64::from(random.below(2))]));
            }
            body.extend([0; 8]);
            (SET_RING_ADDRESSES, body)
        }
        10 => (SET_RING_BASE, words(&[index, random.below(70_000)])),
        11 => (SET_RING_KICK, words(&[index & 0xff, 0])),
        12 => (SET_RING_CALL, words(&[index & 0xff, 0])),
        13 => (GET_CONFIG, {
            let size = random.below(20);
            let mut body = words(&[random.below(300), size, 0]);
            body.extend(vec![0; size as usize]);
            body
        }),
        _ => (SET_RING_ENABLE, words(&[index, random.below(2)])),
    };
    let header = Header {
        request,
        need_reply: false,
        size: body.len(),
    };
    let request = Request::parse(&header, &body).ok()?;
    let (least, _) = request.descriptors();
    Some((request, (0..least).map(|_| new_eventfd()).collect()))
}
