//! The driver's half: what each register is, and what writing it comes to (virtio 1.2 §4.2.2 and §3.1).

use std::sync::{Arc, atomic::Ordering};

use super::{Lines, NEEDS_RESET};
use crate::devices::{VirtioDevice, transport::RING_FEATURES};

/// Bytes of address space that a device takes.
pub const SIZE: u64 = 0x1000;

/// Offset of the register that is written to kick a queue, whose number is the value.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Offset of the configuration space, and how much of it there is.
const CONFIG: u64 = 0x100;
const CONFIG_LEN: usize = 256;

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
    kind: u32,
    offered: u64,
    config: [u8; CONFIG_LEN],
    lines: Arc<Lines>,
    status: u32,
    accepted: u64,
    /// Which half of the features is read or written.
    offered_half: u32,
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
    pub(super) fn new(device: &dyn VirtioDevice, lines: Arc<Lines>) -> Self {
        let mut config = [0; CONFIG_LEN];
        device.read_config(0, &mut config);
        let queues = device.queue_sizes().iter().map(|&max| Queue {
            max,
            ..Queue::default()
        });
        Self {
            kind: device.device_type(),
            offered: device.features() | RING_FEATURES,
            config,
            lines,
            status: 0,
            accepted: 0,
            offered_half: 0,
            accepted_half: 0,
            selected: 0,
            queues: queues.collect(),
        }
    }

    /// The driver reads `data.len()` bytes at `offset`. What cannot be read so is zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = usize::try_from(at)
                .ok()
                .and_then(|at| self.config.get(at..));
            for (to, from) in data.iter_mut().zip(config.unwrap_or_default()) {
                *to = *from;
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.kind,
            0x0c => VENDOR,
            0x10 => half(self.offered, self.offered_half),
            0x34 => self.queue().map_or(0, |queue| queue.max.into()),
            0x44 => self.queue().map_or(0, |queue| queue.ready.into()),
            0x60 => self.lines.interrupts.load(Ordering::Acquire),
            0x70 => self.status(),
            // `ConfigGeneration` (§4.2.2.2): what is shown does not change while it is read. Of shared memory there is
            // none (§4.2.2: a length of all ones).
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    /// The driver writes `data` at `offset`: gives what that asks of the device. What cannot be written so is not.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let within = usize::try_from(at).is_ok_and(|at| at + data.len() <= CONFIG_LEN);
            return (within && self.status & DRIVER_OK != 0).then(|| Request::Configure {
                offset: u32::try_from(at).unwrap_or(u32::MAX),
                data: data.to_vec(),
            });
        }
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match offset {
            0x14 => self.offered_half = value,
            0x20 if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.accepted_half, value);
            }
            0x24 => self.accepted_half = value,
            0x30 => self.selected = value,
            0x44 => return self.set_ready(value),
            QUEUE_NOTIFY => {
                let index = usize::try_from(value).ok()?;
                return (index < self.queues.len()).then_some(Request::Kick(index));
            }
            0x64 => {
                self.lines.interrupts.fetch_and(!value, Ordering::AcqRel);
            }
            0x70 => return self.set_status(value),
            _ => self.set_up(offset, value),
        }
        None
    }

    fn status(&self) -> u32 {
        self.status | self.lines.broken.load(Ordering::Acquire)
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    /// The selected queue, if it may be changed: before it is ready, and before the driver is.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        let may = self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
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
        if value != 0 {
            if let Some(queue) = self.queue_to_set_up() {
                queue.ready = true;
            }
            return None;
        }
        let index = usize::try_from(self.selected).ok()?;
        let queue = self.queues.get_mut(index)?;
        let was = std::mem::take(&mut queue.ready);
        (was && self.status & DRIVER_OK != 0).then_some(Request::Stop(index))
    }

    fn set_status(&mut self, value: u32) -> Option<Request> {
        if value == 0 {
            self.reset();
            return Some(Request::Reset);
        }
        // A driver adds bits and takes none away (§2.1.1). This one is the device's.
        let added = value & !self.status & !NEEDS_RESET;
        if added & FEATURES_OK != 0 {
            let known = self.accepted & !self.offered == 0;
            if !known || self.accepted & VERSION_1 == 0 {
                // Not set: the driver looks whether it is (§3.1.1).
                self.status |= added & !(FEATURES_OK | DRIVER_OK);
                return None;
            }
        }
        if added & DRIVER_OK != 0 && (self.status | added) & FEATURES_OK == 0 {
            self.status |= added & !DRIVER_OK;
            return None;
        }
        self.status |= added;
        (added & DRIVER_OK != 0 && self.status & FAILED == 0).then(|| Request::Start {
            features: self.accepted,
            queues: self.queues.clone(),
        })
    }

    fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.offered_half = 0;
        self.accepted_half = 0;
        self.selected = 0;
        for queue in &mut self.queues {
            *queue = Queue {
                max: queue.max,
                ..Queue::default()
            };
        }
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
