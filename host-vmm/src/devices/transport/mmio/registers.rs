//! The driver's half: what each register is, and what writing it comes to (virtio 1.2 §4.2.2 and §3.1).

use std::sync::Arc;

use super::{
    NEEDS_RESET, Page,
    page::{CONFIG, CONFIG_LEN},
};
use crate::devices::{VirtioDevice, transport::RING_FEATURES};

/// Bytes of address space that a device takes.
pub const SIZE: u64 = 0x1000;

/// Offset of the register that is written to kick a queue, whose number is the value.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Offset of the register that is written to say that interrupts were taken.
pub const INTERRUPT_ACK: u64 = 0x64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"vmm\0");

/// Bits of the status (§2.1).
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const FAILED: u32 = 128;

/// `VIRTIO_F_VERSION_1`, without which there is no way to talk to this version.
const VERSION_1: u64 = 1 << 32;

/// A device's registers.
#[derive(Debug)]
pub struct Registers {
    page: Arc<Page>,
    offered: u64,
    accepted: u64,
    /// Which half of what was accepted is written.
    accepted_half: u32,
    selected: u32,
    queues: Vec<Queue>,
}

/// What the driver says of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The largest that the device takes.
    pub max: u16,
    /// Its length in descriptors, as it was written.
    pub size: u32,
    /// The driver has set it up.
    pub ready: bool,
    /// Guest-physical addresses: the table of descriptors, the available ring, the used ring.
    pub rings: [u64; 3],
}

/// What a write to a register asks of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The driver is ready: those queues run that it has set up.
    Start {
        /// What it accepted of the features.
        features: u64,
        /// All queues.
        queues: Vec<Queue>,
    },
    /// A queue runs no more.
    Stop(usize),
    /// As if nobody had touched it.
    Reset,
    /// The driver writes to the configuration space.
    Configure {
        /// Where, in bytes.
        offset: u32,
        /// What.
        data: Vec<u8>,
    },
    /// A queue has something to do.
    Kick(usize),
}

impl Registers {
    pub(super) fn new(device: &dyn VirtioDevice) -> Self {
        let page = Page::new();
        page.set(0x00, MAGIC);
        page.set(0x04, VERSION);
        page.set(0x08, device.device_type());
        page.set(0x0c, VENDOR);
        // There is no shared memory, which is said by a length of all ones (§4.2.2).
        for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
            page.set(offset, u32::MAX);
        }
        page.show_config(device);
        let queues = device.queue_sizes().iter().map(|&max| Queue {
            max,
            ..Queue::default()
        });
        let mut registers = Self {
            page: Arc::new(page),
            offered: device.features() | RING_FEATURES,
            accepted: 0,
            accepted_half: 0,
            selected: 0,
            queues: queues.collect(),
        };
        registers.clear();
        registers
    }

    /// What the driver reads.
    #[must_use]
    pub fn page(&self) -> &Arc<Page> {
        &self.page
    }

    /// The driver reads `data.len()` bytes at `offset`. What is not there is zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.page.read(offset, data);
    }

    /// The driver writes `data` at `offset`: gives what that asks of the device. What cannot be written so is not.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let within = usize::try_from(at).is_ok_and(|at| at + data.len() <= CONFIG_LEN);
            return (within && self.page.status() & DRIVER_OK != 0).then(|| Request::Configure {
                offset: u32::try_from(at).unwrap_or(u32::MAX),
                data: data.to_vec(),
            });
        }
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match offset {
            0x14 => self.page.set(0x10, half(self.offered, value)),
            0x20 if self.page.status() & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.accepted_half, value);
            }
            0x24 => self.accepted_half = value,
            0x30 => {
                self.selected = value;
                self.show_queue();
            }
            0x44 => return self.set_ready(value),
            QUEUE_NOTIFY => {
                let index = usize::try_from(value).ok()?;
                return (index < self.queues.len()).then_some(Request::Kick(index));
            }
            INTERRUPT_ACK => self.page.remove_interrupts(value),
            0x70 => return self.set_status(value),
            _ => self.set_up(offset, value),
        }
        None
    }

    /// Shows what there is to read of the selected queue.
    fn show_queue(&self) {
        let (max, ready) = self
            .queue()
            .map_or((0, false), |queue| (queue.max, queue.ready));
        self.page.set(0x34, max.into());
        self.page.set(0x44, ready.into());
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    /// The selected queue, if it may be changed: before it is ready, and before the driver is.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        let may = self.page.status() & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let index = usize::try_from(self.selected).ok()?;
        self.queues
            .get_mut(index)
            .filter(|queue| may && !queue.ready)
    }

    fn set_up(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queue_to_set_up() else {
            return;
        };
        match offset {
            0x38 => queue.size = value,
            0x80 => set_half(&mut queue.rings[0], 0, value),
            0x84 => set_half(&mut queue.rings[0], 1, value),
            0x90 => set_half(&mut queue.rings[1], 0, value),
            0x94 => set_half(&mut queue.rings[1], 1, value),
            0xa0 => set_half(&mut queue.rings[2], 0, value),
            0xa4 => set_half(&mut queue.rings[2], 1, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, value: u32) -> Option<Request> {
        let mut request = None;
        if value != 0 {
            if let Some(queue) = self.queue_to_set_up() {
                queue.ready = true;
            }
        } else {
            let running = self.page.status() & DRIVER_OK != 0;
            let index = usize::try_from(self.selected).ok()?;
            let queue = self.queues.get_mut(index)?;
            let was = std::mem::take(&mut queue.ready);
            request = (was && running).then_some(Request::Stop(index));
        }
        self.show_queue();
        request
    }

    fn set_status(&mut self, value: u32) -> Option<Request> {
        if value == 0 {
            self.clear();
            return Some(Request::Reset);
        }
        // A driver adds bits and takes none away (§2.1.1). One is the device's.
        let status = self.page.status();
        let mut added = value & !status & !NEEDS_RESET;
        let known = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        if added & FEATURES_OK != 0 && !known {
            // Not set: the driver looks whether it is (§3.1.1).
            added &= !FEATURES_OK;
        }
        if (status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.page.add_status(added);
        let starts = added & DRIVER_OK != 0 && (status | added) & FAILED == 0;
        starts.then(|| Request::Start {
            features: self.accepted,
            queues: self.queues.clone(),
        })
    }

    /// As it was before any driver.
    fn clear(&mut self) {
        self.accepted = 0;
        self.accepted_half = 0;
        self.selected = 0;
        for queue in &mut self.queues {
            *queue = Queue {
                max: queue.max,
                ..Queue::default()
            };
        }
        self.page.reset();
        self.page.set(0x10, half(self.offered, 0));
        self.show_queue();
    }
}

/// 32 bits of 64: the lower or, for 1, the upper; of more there are none.
fn half(value: u64, which: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match which {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, to: u32) {
    *value = match which {
        0 => *value & !u64::from(u32::MAX) | u64::from(to),
        1 => *value & u64::from(u32::MAX) | u64::from(to) << 32,
        _ => *value,
    };
}
