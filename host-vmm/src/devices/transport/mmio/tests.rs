//! A driver of ours at the registers, with no VM: one that follows the rules, and those that do not.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use vm_memory::{Bytes, GuestAddress};

use super::{Irq, Registers, Request, Slot};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        balloon::Balloon,
        block::{Block, Disk},
        event_loop::{Readiness, Registry},
        testing::{DriverQueue, Random},
        virtqueue::Virtqueue,
    },
    vm::memory::{GuestMemory, Placement, SharedMemory},
};

const MEMORY: u64 = 4 << 20;
const RINGS: u64 = 0x1000;
const HEADER: u64 = 0x1_0000;
const STATUS_BYTE: u64 = 0x1_1000;
const DATA: u64 = 0x2_0000;

/// Registers (virtio 1.2 §4.2.2).
const OFFERED: u64 = 0x10;
const OFFERED_HALF: u64 = 0x14;
const ACCEPTED: u64 = 0x20;
const ACCEPTED_HALF: u64 = 0x24;
const SELECT: u64 = 0x30;
const MAX: u64 = 0x34;
const SIZE: u64 = 0x38;
const READY: u64 = 0x44;
const NOTIFY: u64 = 0x50;
const INTERRUPTS: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const STATUS: u64 = 0x70;

struct Count(AtomicUsize);

impl Irq for Count {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A disk of 1 MiB with something in its second sector.
fn disk() -> Disk {
    let file: File = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC)
        .unwrap()
        .into();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"on the disk", 512).unwrap();
    Disk::new(file, false, false).unwrap()
}

struct Machine {
    slot: Slot,
    registers: Registers,
    memory: Arc<GuestMemory>,
    irq: Arc<Count>,
    queue: DriverQueue,
}

impl Machine {
    fn new() -> Self {
        Self::with(Box::new(Block::new(disk())))
    }

    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: MEMORY,
        };
        let shared = SharedMemory::create(MEMORY).unwrap();
        let memory = Arc::new(shared.map(&[whole]).unwrap());
        let irq = Arc::new(Count(AtomicUsize::new(0)));
        let line: Arc<dyn Irq> = Arc::clone(&irq) as _;
        let (slot, registers) = Slot::new(device, Arc::clone(&memory), line);
        Self {
            slot,
            registers,
            memory,
            irq,
            queue: DriverQueue::new(RINGS, 64),
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        let request = self.registers.write(offset, &value.to_le_bytes());
        if let Some(request) = request {
            self.slot.handle(request);
        }
        self.slot.run().unwrap();
    }

    fn offered(&mut self) -> u64 {
        self.write(OFFERED_HALF, 0);
        let low = self.read(OFFERED);
        self.write(OFFERED_HALF, 1);
        u64::from(self.read(OFFERED)) << 32 | u64::from(low)
    }

    fn accept(&mut self, features: u64) {
        for (half, value) in [(0, features & u64::from(u32::MAX)), (1, features >> 32)] {
            self.write(ACCEPTED_HALF, half);
            self.write(ACCEPTED, u32::try_from(value).unwrap());
        }
    }

    fn set_up(&mut self, size: u32, rings: [u64; 3]) {
        self.write(SELECT, 0);
        self.write(SIZE, size);
        for (at, ring) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(at, u32::try_from(ring & u64::from(u32::MAX)).unwrap());
            self.write(at + 4, u32::try_from(ring >> 32).unwrap());
        }
        self.write(READY, 1);
    }

    /// As Linux does it.
    fn start(&mut self) {
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        let offered = self.offered();
        // Without event indices, so that each request interrupts.
        self.accept(offered & !(1 << 29));
        self.write(STATUS, 11);
        assert_eq!(self.read(STATUS), 11);
        self.set_up(64, self.queue.addresses());
        self.write(STATUS, 15);
    }

    fn ask_for_sector_1(&mut self) {
        self.memory.write_obj(0_u32, GuestAddress(HEADER)).unwrap();
        self.memory
            .write_obj(1_u64, GuestAddress(HEADER + 8))
            .unwrap();
        self.memory
            .write_obj(0x77_u8, GuestAddress(STATUS_BYTE))
            .unwrap();
        let chain = [
            (HEADER, 16, false),
            (DATA, 512, true),
            (STATUS_BYTE, 1, true),
        ];
        self.queue.add(&self.memory, &chain);
        self.write(NOTIFY, 0);
    }

    fn answered(&self) -> bool {
        self.memory
            .read_obj::<u8>(GuestAddress(STATUS_BYTE))
            .unwrap()
            == 0
    }

    fn interrupted(&self) -> usize {
        self.irq.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_driver_that_follows_the_rules_is_served() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!(
        [machine.read(4), machine.read(8), machine.read(MAX)],
        [2, 2, 256]
    );
    machine.start();
    assert_eq!((machine.read(STATUS), machine.read(READY)), (15, 1));
    machine.ask_for_sector_1();
    assert!(machine.answered());
    let mut found = [0; 11];
    machine
        .memory
        .read_slice(&mut found, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&found, b"on the disk");
    assert_eq!((machine.interrupted(), machine.read(INTERRUPTS)), (1, 1));
    machine.write(ACKNOWLEDGE, 1);
    assert_eq!(machine.read(INTERRUPTS), 0);
    // The capacity in sectors, in pieces of any size.
    let mut bytes = [0; 2];
    machine.registers.read(0x101, &mut bytes);
    assert_eq!((machine.read(0x100), bytes), (2048, [8, 0]));
    machine.registers.read(0x1ff, &mut bytes);
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn a_device_can_be_reset_and_used_again() {
    let mut machine = Machine::new();
    machine.start();
    machine.ask_for_sector_1();
    machine.write(STATUS, 0);
    assert_eq!(
        [
            machine.read(STATUS),
            machine.read(READY),
            machine.read(INTERRUPTS)
        ],
        [0; 3]
    );
    // Nobody looks at the rings any more.
    machine.ask_for_sector_1();
    assert!(!machine.answered());
    machine.queue = DriverQueue::new(RINGS, 64);
    machine
        .memory
        .write_slice(&[0; 0x3000], GuestAddress(RINGS))
        .unwrap();
    machine.start();
    machine.ask_for_sector_1();
    assert!(machine.answered());
}

#[test]
fn features_are_those_that_were_offered() {
    let mut machine = Machine::new();
    let offered = machine.offered();
    for wrong in [0, offered & !(1 << 32), offered | 1 << 40, u64::MAX] {
        machine.write(STATUS, 0);
        machine.write(STATUS, 3);
        machine.accept(wrong);
        machine.write(STATUS, 11);
        assert_eq!(machine.read(STATUS) & 8, 0, "{wrong:#x}");
        // Nor can it go on without.
        machine.write(STATUS, 15);
        assert_eq!(machine.read(STATUS) & 12, 0, "{wrong:#x}");
    }
    machine.start();
    // It is too late for another opinion.
    machine.accept(0);
    machine.ask_for_sector_1();
    assert!(machine.answered());
}

#[test]
fn rings_that_cannot_be_break_the_device_until_it_is_reset() {
    let good = DriverQueue::new(RINGS, 64).addresses();
    let cases = [
        (0, good),
        (63, good),
        (512, good),
        (u32::MAX, good),
        (64, [MEMORY, good[1], good[2]]),
        (64, [u64::MAX - 15, good[1], good[2]]),
        (64, [good[0] + 1, good[1], good[2]]),
        (64, [good[0], good[1] + 1, good[2]]),
        (64, [good[0], good[1], MEMORY - 4]),
        (64, [good[0], u64::MAX - 1, good[2]]),
    ];
    for (size, rings) in cases {
        let mut machine = Machine::new();
        machine.write(STATUS, 3);
        let offered = machine.offered();
        machine.accept(offered);
        machine.write(STATUS, 11);
        machine.set_up(size, rings);
        machine.write(STATUS, 15);
        assert_eq!(machine.read(STATUS) & 64, 64, "{size} {rings:x?}");
        assert_eq!((machine.read(INTERRUPTS), machine.interrupted()), (2, 1));
        machine.write(NOTIFY, 0);
        machine.start();
        assert_eq!(machine.read(STATUS), 15);
        machine.ask_for_sector_1();
        assert!(machine.answered());
    }
}

#[test]
fn a_chain_that_breaks_the_rules_breaks_the_device() {
    let mut machine = Machine::new();
    machine.start();
    machine.queue.add(
        &machine.memory,
        &[(MEMORY - 8, 16, false), (STATUS_BYTE, 1, true)],
    );
    machine.write(NOTIFY, 0);
    assert_eq!(machine.read(STATUS), 15 | 64);
    assert_eq!(
        (machine.read(INTERRUPTS) & 2, machine.interrupted()),
        (2, 1)
    );
    // Whatever the driver writes but a reset.
    machine.write(STATUS, 15);
    machine.ask_for_sector_1();
    assert!(!machine.answered());
}

#[test]
fn what_runs_cannot_be_set_up_anew() {
    let mut machine = Machine::new();
    machine.start();
    let before = machine.queue.addresses();
    machine.set_up(128, [0, 0, 0]);
    machine.ask_for_sector_1();
    assert!(machine.answered());
    assert_eq!(before, machine.queue.addresses());
    // Taken away, it rests.
    machine.write(READY, 0);
    assert_eq!(machine.read(READY), 0);
    machine.ask_for_sector_1();
    assert!(!machine.answered());
}

#[test]
fn accesses_of_other_sizes_and_places_do_nothing() {
    let mut machine = Machine::new();
    machine.start();
    for len in [0, 1, 2, 3, 5, 8, 16] {
        let data = vec![0xff; len];
        assert_eq!(machine.registers.write(STATUS, &data), None);
    }
    for offset in [0xffc, u64::MAX, u64::MAX - 3, 1 << 32, 0x1fd, 0x200] {
        assert_eq!(machine.read(offset), 0, "{offset:#x}");
        assert_eq!(
            machine.registers.write(offset, &[0; 4]),
            None,
            "{offset:#x}"
        );
    }
    for select in [1, 2, 1 << 16, u32::MAX] {
        machine.write(SELECT, select);
        assert_eq!((machine.read(MAX), machine.read(READY)), (0, 0));
        machine.write(READY, 0);
        machine.write(NOTIFY, select);
    }
    assert_eq!(machine.read(STATUS), 15);
    machine.ask_for_sector_1();
    assert!(machine.answered());
}

/// Whatever is written wherever in whatever order, nothing panics, and a reset makes it whole.
#[test]
fn random_drivers_are_survived() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut machine = Machine::new();
        if random.below(2) == 0 {
            machine.start();
        }
        for _ in 0..300 {
            let offset = random.pick(&[
                OFFERED_HALF,
                ACCEPTED,
                ACCEPTED_HALF,
                SELECT,
                SIZE,
                READY,
                NOTIFY,
                ACKNOWLEDGE,
                STATUS,
                STATUS,
                0x80,
                0x84,
                0x90,
                0x94,
                0xa0,
                0xa4,
                0x100,
                0x1fc,
                0x0,
                0x60,
            ]);
            let value = random.pick(&[
                0,
                1,
                2,
                3,
                4,
                8,
                11,
                15,
                64,
                128,
                256,
                0x1000,
                0x2000,
                0x3000,
                0xffff_ffff,
                0x8000_0000,
            ]);
            machine.write(offset, value);
            let _ = machine.read(u64::from(random.below(0x1100)));
            let mut rings = [0; 64];
            random.fill(&mut rings);
            let at = RINGS + u64::from(random.below(0x2fc0));
            machine
                .memory
                .write_slice(&rings, GuestAddress(at))
                .unwrap();
        }
        machine
            .memory
            .write_slice(&[0; 0x3000], GuestAddress(RINGS))
            .unwrap();
        machine.queue = DriverQueue::new(RINGS, 64);
        machine.start();
        assert_eq!(machine.read(STATUS), 15, "{seed}");
        machine.ask_for_sector_1();
        assert!(machine.answered(), "{seed}");
    }
}

#[test]
fn what_is_asked_of_the_device_is_what_was_written() {
    let mut machine = Machine::new();
    assert_eq!(machine.registers.write(0x100, &[1; 4]), None);
    machine.start();
    let configure = machine.registers.write(0x104, &[1, 2]);
    let expected = Request::Configure {
        offset: 4,
        data: vec![1, 2],
    };
    assert_eq!(configure, Some(expected));
}

#[test]
fn what_a_driver_configures_is_read_again_with_another_generation() {
    const GENERATION: u64 = 0xfc;
    const ACTUAL: u64 = 0x104;
    let mut machine = Machine::with(Box::new(Balloon::new(3)));
    machine.start();
    assert_eq!([machine.read(0x100), machine.read(ACTUAL)], [3, 0]);
    let before = machine.read(GENERATION);
    machine.write(ACTUAL, 2);
    assert_eq!([machine.read(0x100), machine.read(ACTUAL)], [3, 2]);
    assert_ne!(machine.read(GENERATION), before);
    // The driver was told of nothing that it did itself.
    assert_eq!(machine.read(INTERRUPTS), 0);
}

#[test]
fn what_changes_by_itself_is_told() {
    let mut machine = Machine::with(Box::new(Changing::default()));
    machine.write(STATUS, 3);
    assert_eq!(machine.read(0x100), 1);
    assert_eq!((machine.read(INTERRUPTS), machine.interrupted()), (2, 1));
    machine.write(ACKNOWLEDGE, 2);
    assert_eq!((machine.read(0x100), machine.read(INTERRUPTS)), (1, 0));
}

/// A device whose configuration space changes once.
#[derive(Default)]
struct Changing(u8);

impl VirtioDevice for Changing {
    fn device_type(&self) -> u32 {
        0
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[]
    }

    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data[0] = self.0;
    }

    fn config_changed(&mut self) -> bool {
        std::mem::replace(&mut self.0, 1) == 0
    }

    fn attach(&mut self, _registry: Registry) -> std::io::Result<()> {
        Ok(())
    }

    fn start_queue(&mut self, _index: usize, _queue: Virtqueue) {}

    fn stop_queue(&mut self, _index: usize) -> Option<Virtqueue> {
        None
    }

    fn queue(&mut self, _index: usize) -> Option<&mut Virtqueue> {
        None
    }

    fn kick(&mut self, _index: usize) {}

    fn ready(&mut self, _token: u32, _readiness: Readiness) {}

    fn run(&mut self) -> Result<Progress, DeviceError> {
        Ok(Progress::Idle)
    }
}
