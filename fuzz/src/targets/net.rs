//! Packets from a driver in guest memory, and what a peer sends on a socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use host_vmm::devices::{
    VirtioDevice,
    net::{Net, Stream},
};

use crate::{
    driver::Driver,
    guest::{Buffer, put},
    input::Input,
};

const STEPS: usize = 64;

const RX: usize = 0;
const TX: usize = 1;

/// Features of frames that are too long for one buffer, of which there is one driver in two.
const MERGEABLE: u64 = 1 << 15;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (ours, mut peer) = UnixStream::pair().expect("a socket");
    peer.set_nonblocking(true).expect("a socket");
    let features = if input.u8() & 1 != 0 { MERGEABLE } else { 0 };
    let net = Net::new([2, 0, 0, 0, 0, 1], Some(9000), Box::new(Stream::new(ours)));
    let mut driver = Driver::new(net, features, &mut input);
    // What the peer has received and not taken apart yet.
    let mut heard = Vec::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            // A packet as it should be, or nearly.
            0 => {
                let at = driver.free() + 0x1000;
                let count = usize::from(input.u8());
                put(&driver.memory, at, input.bytes(count));
                if input.u8() & 7 != 0 {
                    put(&driver.memory, at, &[0; 12]);
                }
                let packet = buffer(at, u32::from(input.u16()), false);
                driver.send(TX, &[packet]);
            }
            1 => {
                let at = driver.free() + 0x1000 + u64::from(input.u8()) * 64;
                let room = buffer(at, u32::from(input.u16() % 4096), true);
                driver.send(RX, &[room]);
            }
            // A frame of the peer's, whole, and then bytes.
            2 => {
                let count = usize::from(input.u16() % 4096);
                let mut frame = vec![0; count];
                let begin = input.bytes(64.min(count));
                frame[..begin.len()].copy_from_slice(begin);
                let len = u32::try_from(count).unwrap_or(0).to_be_bytes();
                let _ = peer.write(&[&len[..], &frame].concat());
                driver.run();
            }
            3 => {
                let count = usize::from(input.u8());
                let _ = peer.write(input.bytes(count));
                driver.run();
            }
            4 => {
                let _ = peer.read_to_end(&mut heard);
                driver.run();
            }
            5 if input.u8() > 250 => {
                let _ = peer.shutdown(std::net::Shutdown::Both);
                driver.run();
            }
            _ => driver.step(&mut input),
        }
        driver.device.config_changed();
    }
    for _ in 0..4 {
        let _ = peer.read_to_end(&mut heard);
        driver.run();
    }
    are_frames(&heard);
}

/// Whatever the guest does, its peer hears whole frames.
fn are_frames(mut heard: &[u8]) {
    while let Some((length, rest)) = heard.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*length) as usize;
        assert!((14..=65_550).contains(&len), "a frame of {len} bytes");
        // The last may be on its way.
        heard = rest.get(len..).unwrap_or_default();
    }
}

fn buffer(address: u64, len: u32, writable: bool) -> Buffer {
    Buffer {
        address,
        len,
        writable,
    }
}
