//! A virtio device behind its page of registers: what a driver writes there in any order and of any width, over memory in
//! which there is anything.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use host_vmm::devices::{
    DeviceError, Progress,
    event_loop::EventLoop,
    transport::mmio::{Irq, Registers, SIZE, Slot},
};

use crate::{
    devices::{Access, Driver, device},
    guest::{MEMORY, MachineMemory},
    input::Input,
};

/// Bits of the status (virtio 1.2 §2.1).
const NEEDS_RESET: u32 = 64;

const STEPS: usize = 256;

#[derive(Default)]
struct Count(AtomicU32);

impl Irq for Count {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut device, disk) = device(input.u8());
    let content = disk
        .as_ref()
        .map(|disk| disk.file().metadata().expect("a disk").len());
    let events = EventLoop::new().expect("an event loop");
    device
        .attach(events.registry(1))
        .expect("a device and its events");
    let mapped = MachineMemory::new(MEMORY);
    let memory = Arc::clone(mapped.get());
    let irq = Arc::new(Count::default());
    let (slot, registers) = Slot::new(
        device,
        Arc::clone(&memory),
        Arc::clone(&irq) as Arc<dyn Irq>,
    );
    let mut machine = Machine {
        slot,
        registers,
        events,
    };
    let mut driver = Driver::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        for access in driver.step(&memory, &mut input) {
            machine.access(&access);
        }
        machine.rests();
    }
    let raised = irq.0.load(Ordering::Relaxed);
    let broken = machine.status() & NEEDS_RESET != 0;
    assert!(
        !broken || raised > 0,
        "a driver was not told that its device is broken"
    );
    if let Err(error) = machine.slot.finish() {
        assert!(!error.to_string().is_empty());
    }
    // After a reset everything is as it was.
    machine.access(&Access {
        offset: 0x70,
        width: 4,
        value: Some(0),
    });
    assert_eq!(machine.status(), 0);
    let now = disk
        .as_ref()
        .map(|disk| disk.file().metadata().expect("a disk").len());
    assert_eq!(content, now, "the disk's size");
}

struct Machine {
    slot: Slot,
    registers: Registers,
    events: EventLoop,
}

impl Machine {
    fn access(&mut self, access: &Access) {
        assert!(access.offset < SIZE);
        match access.value {
            Some(value) => {
                let bytes = value.to_le_bytes();
                let request = self.registers.write(access.offset, &bytes[..access.width]);
                if let Some(request) = request {
                    self.slot.handle(request);
                }
            }
            None => self
                .registers
                .read(access.offset, &mut [0xff; 8][..access.width]),
        }
    }

    fn status(&self) -> u32 {
        let mut status = [0xff; 4];
        self.registers.read(0x70, &mut status);
        u32::from_le_bytes(status)
    }

    /// Lets the device work until it rests.
    fn rests(&mut self) {
        let mut events = Vec::new();
        // A driver may have said that 65535 chains are there, and a run takes some of them.
        for _ in 0..=65536 / 8 + 1 {
            events.clear();
            self.events.wait(true, &mut events).expect("an event loop");
            for event in &events {
                self.slot.ready(event.token, event.readiness);
            }
            match self.slot.run() {
                Ok(Progress::Idle) if events.is_empty() => return,
                Ok(_) => {}
                Err(error @ DeviceError::NoRoom) => panic!("{error}"),
                Err(error) => panic!("not the transport's to pass on: {error}"),
            }
        }
        panic!("the device never rests");
    }
}
