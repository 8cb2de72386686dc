//! Everything that a machine's processors reach outside of memory, as their threads do: ports, registers of devices of any
//! width, the serial port; while the thread that has the devices is at work.

use std::{
    fs::File,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU32},
        mpsc::channel,
    },
    time::{Duration, Instant},
};

use host_vmm::{
    devices::transport::mmio::{Irq, Slot},
    vm::kvm::{
        bus::{Bus, End},
        interrupts::Interrupts,
        ioapic::Message,
        layout,
        serial::Console,
        vcpu::Shared,
        worker::{Outcome, Worker},
    },
};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    devices::{Access, Driver, KINDS, device},
    guest::{MEMORY, MachineMemory},
    input::Input,
};

const STEPS: usize = 256;

/// What a device's thread may take to see the end, on a host that has much to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lines of the I/O APIC.
const LINES: u32 = 10;

struct Nobody;

impl Irq for Nobody {
    fn raise(&self) {}
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mapped = MachineMemory::new(MEMORY);
    let memory = Arc::clone(mapped.get());
    let (asked, requests) = channel();
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = Arc::new(eventfd(0, flags).expect("an event"));
    let mut worker = Worker::new(requests, Arc::clone(&wake)).expect("a thread's events");
    let mut slots = Vec::new();
    let mut kicks = Vec::new();
    let mut disks = Vec::new();
    for kind in 0..KINDS {
        let (mut device, disk) = device(kind);
        disks.push(disk);
        worker
            .attach(&mut *device)
            .expect("a device and its events");
        let (slot, registers) = Slot::new(device, Arc::clone(&memory), Arc::new(Nobody));
        let queues: Vec<EventFd> = (0..slot.queue_count()).map(|_| event()).collect();
        let theirs = queues
            .iter()
            .map(|kick| kick.try_clone().expect("a descriptor"));
        // SAFETY: it gives up its descriptor.
        let theirs = theirs.map(|kick| unsafe { OwnedFd::from_raw_fd(kick.into_raw_fd()) });
        worker
            .add(slot, theirs.collect())
            .expect("a device and its kicks");
        kicks.push(queues);
        slots.push(registers);
    }
    let nowhere = File::options()
        .write(true)
        .open("/dev/null")
        .expect("a console");
    let interrupts = Interrupts::new(LINES, Box::new(routed));
    let bus = Bus::new(
        Console::new(nowhere, event()),
        interrupts,
        slots,
        asked,
        wake,
    );
    let shared = Arc::new(Shared {
        bus,
        start: Barrier::new(1),
        stop: AtomicBool::new(false),
        stopped: AtomicU32::new(0),
    });
    let work = {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || worker.work(&shared, &[]))
    };
    let mut driver = Driver::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() || shared.bus.end().is_some() {
            break;
        }
        step(&shared.bus, &mut driver, &memory, &kicks, &mut input);
    }
    let began = Instant::now();
    shared.bus.finish(End::Reset);
    let outcome = work.join().expect("a thread that does not panic");
    assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
    assert!(
        began.elapsed() < PATIENCE,
        "the end took {:?}",
        began.elapsed()
    );
}

/// Where lines go: those that there are, each once, to local APICs.
fn routed(lines: &[(u32, Message)]) -> Result<(), kvm_ioctls::Error> {
    assert!(lines.is_sorted_by(|(a, _), (b, _)| a < b));
    for (line, message) in lines {
        assert!(*line < LINES);
        assert_eq!(message.address & 0xfff0_0000, layout::LOCAL_APIC);
        assert_eq!(message.data & !0x7ff, 0);
    }
    Ok(())
}

fn step(
    bus: &Bus,
    driver: &mut Driver,
    memory: &host_vmm::vm::memory::GuestMemory,
    kicks: &[Vec<EventFd>],
    input: &mut Input<'_>,
) {
    let kind = input.u8();
    let mut bytes = [0; 32];
    match kind % 8 {
        0 => {
            let port = port(input);
            let width = usize::from(input.u8()) % bytes.len();
            bytes[..8].copy_from_slice(&input.array::<8>());
            bus.write_port(port, &bytes[..width]);
        }
        1 => {
            let port = port(input);
            bus.read_port(port, &mut bytes[..usize::from(input.u8()) % 32]);
        }
        // Beside devices, and all over.
        2 => {
            let address = match input.u8() % 6 {
                0 => input.u64(),
                4 => u64::from(layout::IO_APIC) + u64::from(input.u16() % 0x1010),
                // Which register, and that.
                5 => u64::from(layout::IO_APIC) + u64::from(input.u8() & 0x10),
                1 => layout::DEVICES - u64::from(input.u8()),
                _ => layout::DEVICES + u64::from(input.u16()),
            };
            let width = usize::from(input.u8()) % 9;
            bytes[..8].copy_from_slice(&input.array::<8>());
            match input.u8() & 1 {
                0 => bus.read_memory(address, &mut bytes[..width]),
                _ => bus.write_memory(address, &bytes[..width]),
            }
        }
        _ => {
            let device = usize::from(kind >> 3) % kicks.len();
            let base = layout::DEVICES + 0x1000 * device as u64;
            for access in driver.step(memory, input) {
                reach(bus, base, &access, &kicks[device]);
            }
        }
    }
}

fn reach(bus: &Bus, base: u64, access: &Access, kicks: &[EventFd]) {
    let Access {
        offset,
        width,
        value,
    } = *access;
    let Some(value) = value else {
        return bus.read_memory(base + offset, &mut [0; 8][..width]);
    };
    // What KVM takes out of the way.
    let kick = kicks.get(usize::try_from(value).unwrap_or(usize::MAX));
    match kick.filter(|_| offset == 0x50 && width == 4) {
        Some(kick) => kick.write(1).expect("a kick"),
        None => bus.write_memory(base + offset, &value.to_le_bytes()[..width]),
    }
}

/// Most often one that there is; and not the one that ends everything.
fn port(input: &mut Input<'_>) -> u16 {
    let port = input.u16();
    match port % 4 {
        0 => port,
        1 => 0x70 + (port >> 2) % 4,
        _ => 0x3f8 + (port >> 2) % 9,
    }
}

fn event() -> EventFd {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    EventFd::new(flags.bits().cast_signed()).expect("an event")
}
