//! The device with a driver of ours and no VM.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::{Link, Net};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Event, EventLoop},
        testing::{DriverQueue, memory},
    },
    vm::memory::GuestMemory,
};

mod hostile;
mod stream;
mod tap;

const MEMORY: u64 = 4 << 20;
/// Where packets lie that are sent, and buffers for those that come.
const OUT: u64 = 0x10_0000;
const IN: u64 = 0x20_0000;
const RX: usize = 0;
const TX: usize = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Features.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MERGEABLE: u64 = 1 << 15;

/// Bytes of a header.
const HEADER: usize = 12;

struct Driver {
    device: Net,
    memory: Arc<GuestMemory>,
    queues: [DriverQueue; 2],
    events: EventLoop,
}

impl Driver {
    fn new(link: impl Link + 'static, features: u64) -> Self {
        let memory = memory(MEMORY);
        let queues = [0, 0x4000].map(|base| DriverQueue::new(base, 256));
        let mut device = Net::new(MAC, None, Box::new(link));
        let events = EventLoop::new().unwrap();
        device.attach(events.registry(0)).unwrap();
        device.set_features(features);
        for (index, queue) in queues.iter().enumerate() {
            device.start_queue(index, queue.device_side(&memory, true));
        }
        Self {
            device,
            memory,
            queues,
            events,
        }
    }

    /// Lets the device work until it rests.
    fn run(&mut self) -> Result<(), DeviceError> {
        for _ in 0..10_000 {
            let mut events = Vec::new();
            self.events.wait(true, &mut events).unwrap();
            for Event {
                token, readiness, ..
            } in &events
            {
                self.device.ready(*token, *readiness);
            }
            if self.device.run()? == Progress::Idle && events.is_empty() {
                return Ok(());
            }
        }
        panic!("the device never rests");
    }

    /// Makes a packet available: header and frame in one buffer.
    fn post(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        self.memory.write_slice(&packet, GuestAddress(OUT)).unwrap();
        let len = u32::try_from(packet.len()).unwrap();
        self.queues[TX].add(&self.memory, &[(OUT, len, false)]);
        self.device.kick(TX);
    }

    /// Sends one, and has the buffer back.
    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        self.post(header, frame);
        self.run().unwrap();
        assert!(self.queues[TX].used(&self.memory).is_some());
    }

    /// Makes buffers of this length available to receive into.
    fn offer(&mut self, count: u16, len: u32) {
        for _ in 0..count {
            let at = IN + u64::from(self.queues[RX].next_head()) * u64::from(len);
            self.queues[RX].add(&self.memory, &[(at, len, true)]);
        }
        self.device.kick(RX);
    }

    /// The next packet that came, into buffers of this length: header and frame.
    fn received(&mut self, len: u32) -> Option<([u8; HEADER], Vec<u8>)> {
        let mut packet = self.received_part(len)?;
        let count = u16::from_le_bytes([packet[10], packet[11]]);
        for _ in 1..count {
            packet.extend(self.received_part(len).expect("all parts at once"));
        }
        let frame = packet.split_off(HEADER);
        Some((packet.try_into().unwrap(), frame))
    }

    fn received_part(&mut self, len: u32) -> Option<Vec<u8>> {
        let (head, written) = self.queues[RX].used(&self.memory)?;
        let mut part = vec![0; written as usize];
        let at = IN + u64::from(head) * u64::from(len);
        self.memory.read_slice(&mut part, GuestAddress(at)).unwrap();
        Some(part)
    }

    fn link_is_up(&self) -> bool {
        let mut status = [0xff; 2];
        self.device.read_config(6, &mut status);
        u16::from_le_bytes(status) == 1
    }
}

/// A frame that can be told from others.
fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + number * 13) % 251).unwrap())
        .collect()
}
