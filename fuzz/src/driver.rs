//! A driver of any device, which takes its steps from an input.

use std::sync::Arc;

use host_vmm::{
    devices::{
        Progress, VirtioDevice,
        event_loop::{EventLoop, Registry},
    },
    vm::memory::{GuestMemory, SharedMemory},
};

use crate::{
    guest::{Buffer, Ring, memory, scribble},
    input::Input,
};

/// Runs after which a device rests, whatever it was told there is: an index of 16 bits, one at a time.
const RUNS: usize = 1 << 17;

/// A device, and its queues in guest memory.
pub struct Driver<D> {
    pub device: D,
    pub memory: Arc<GuestMemory>,
    /// The file that the memory is.
    pub shared: SharedMemory,
    rings: Vec<Ring>,
    events: EventLoop,
    event_idx: bool,
}

impl<D: VirtioDevice> Driver<D> {
    /// A device whose driver accepts what `features` has of what it offers.
    pub fn new(mut device: D, features: u64, input: &mut Input<'_>) -> Self {
        let (shared, memory) = memory();
        let events = EventLoop::new().expect("an event loop");
        let registry: Registry = events.registry(0);
        device.attach(registry).expect("a device and its events");
        device.set_features(features & device.features());
        let count = device.queue_sizes().len() as u64;
        let rings = (0..count).map(|index| Ring::new(index * Ring::LEN, input.u8()));
        let mut driver = Self {
            rings: rings.collect(),
            device,
            memory,
            shared,
            events,
            event_idx: input.u8() & 1 != 0,
        };
        for index in 0..driver.rings.len() {
            driver.start(index);
        }
        driver
    }

    /// The first byte of guest memory that no ring is in.
    pub fn free(&self) -> u64 {
        self.rings.len() as u64 * Ring::LEN
    }

    /// Does something of the input's choice.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let index = usize::from(kind >> 4) % self.rings.len();
        match kind % 8 {
            0 => scribble(&self.memory, input),
            1 | 2 => {
                let buffers = buffers(input);
                self.rings[index].add(&self.memory, &buffers, None);
            }
            3 => {
                let buffers = buffers(input);
                let table = self.free();
                self.rings[index].add(&self.memory, &buffers, Some(table));
            }
            4 => self.rings[index].offer(&self.memory, u16::from(input.u8())),
            5 => self.rings[index].skip(&self.memory, input.u16()),
            6 => {
                let (offset, count) = (u32::from(input.u8()), usize::from(input.u8() % 16));
                self.device.write_config(offset, input.bytes(count));
                let mut config = [0; 8];
                self.device.read_config(offset, &mut config);
            }
            _ => self.restart(index),
        }
        self.device.kick(index);
        self.run();
    }

    /// Makes a chain available in a ring, and lets the device work.
    pub fn send(&mut self, index: usize, chain: &[Buffer]) {
        self.rings[index].add(&self.memory, chain, None);
        self.device.kick(index);
        self.run();
    }

    /// The next chain that the device gave back: its head, and the bytes that were written.
    pub fn used(&mut self, index: usize) -> Option<(u32, u32)> {
        self.rings[index].used(&self.memory)
    }

    /// Lets the device work until it rests. A driver that breaks the rules has its queues set up again.
    pub fn run(&mut self) {
        let mut events = Vec::new();
        for _ in 0..RUNS {
            events.clear();
            self.events.wait(true, &mut events).expect("an event loop");
            for event in &events {
                self.device.ready(event.token, event.readiness);
            }
            match self.device.run() {
                Ok(Progress::Idle) if events.is_empty() => return,
                Ok(_) => {}
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    for index in 0..self.rings.len() {
                        self.restart(index);
                    }
                    return;
                }
            }
        }
        panic!("the device never rests");
    }

    /// Sets up a queue again, with nothing in it.
    pub fn restart(&mut self, index: usize) {
        self.device.stop_queue(index);
        self.start(index);
    }

    fn start(&mut self, index: usize) {
        let queue = self.rings[index].start(&self.memory, self.event_idx);
        self.device.start_queue(index, queue);
    }
}

/// Buffers of the input's choice, in the right order as a rule.
pub fn buffers(input: &mut Input<'_>) -> Vec<Buffer> {
    let count = input.u8() % 6;
    let mut buffers: Vec<Buffer> = (0..count).map(|_| Buffer::take(input)).collect();
    if input.u8() & 7 != 0 {
        buffers.sort_by_key(|buffer| buffer.writable);
    }
    buffers
}
