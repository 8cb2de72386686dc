//! The device's half: the model, and its queues while they run.

use std::sync::Arc;

use virtio_queue::{Queue as Rings, QueueT};
use vm_memory::GuestAddress;

use super::{Irq, Page, QueueInterrupt, Registers, Request, registers::Queue};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::Readiness,
        transport::EVENT_IDX,
        virtqueue::{QueueError, Virtqueue},
    },
    vm::memory::GuestMemory,
};

/// Runs of a device that may finish what a driver left behind: more than its rings can hold.
const LAST_RUNS: usize = 64;

/// A device and what its driver has set up.
pub struct Slot {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    irq: Arc<dyn Irq>,
    page: Arc<Page>,
    running: Vec<bool>,
}

impl Slot {
    /// A device that no driver has touched, and its registers.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        irq: Arc<dyn Irq>,
    ) -> (Self, Registers) {
        let registers = Registers::new(&*device);
        let page = Arc::clone(registers.page());
        let running = device.queue_sizes().iter().map(|_| false).collect();
        let slot = Self {
            device,
            memory,
            irq,
            page,
            running,
        };
        (slot, registers)
    }

    /// How many queues the device has.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.running.len()
    }

    /// Whether everything that the device took from the guest has been delivered.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.device.drained()
    }

    /// Does what the driver's half passed on.
    pub fn handle(&mut self, request: Request) {
        match request {
            Request::Start { features, queues } => self.start(features, &queues),
            Request::Stop(index) => self.stop(index),
            Request::Reset => {
                self.stop_all();
                self.device.set_features(0);
                // Again: it may have broken down meanwhile.
                self.page.reset();
            }
            Request::Configure { offset, data } => {
                self.device.write_config(offset, &data);
                self.page.show_config(&*self.device);
            }
            Request::Kick(index) => self.kick(index),
        }
    }

    /// The driver made buffers available in queue `index`.
    pub fn kick(&mut self, index: usize) {
        if self.running.get(index).copied().unwrap_or(false) {
            self.device.kick(index);
        }
    }

    /// A descriptor of the device's own became ready.
    pub fn ready(&mut self, token: u32, readiness: Readiness) {
        self.device.ready(token, readiness);
    }

    /// Lets the device work. A driver that breaks the rules of a queue stops them all, until it resets the device.
    ///
    /// # Errors
    /// What is wrong with the host, and not with the driver.
    pub fn run(&mut self) -> Result<Progress, DeviceError> {
        let progress = match self.device.run() {
            Err(DeviceError::Queue(error)) => {
                self.give_up(&error);
                Progress::Idle
            }
            other => other?,
        };
        if self.device.config_changed() {
            self.page.config_changed(&*self.device);
            self.irq.raise();
        }
        Ok(progress)
    }

    /// Takes what the driver had made available before it went: at most the rings' length of it.
    ///
    /// # Errors
    /// As [`Slot::run`].
    pub fn finish(&mut self) -> Result<(), DeviceError> {
        for index in 0..self.running.len() {
            self.kick(index);
        }
        for _ in 0..LAST_RUNS {
            if self.run()? == Progress::Idle {
                break;
            }
        }
        self.stop_all();
        Ok(())
    }

    fn start(&mut self, features: u64, queues: &[Queue]) {
        self.device.set_features(features);
        let set_up = queues.iter().enumerate().filter(|(_, queue)| queue.ready);
        for (index, queue) in set_up {
            match self.virtqueue(queue, features & EVENT_IDX != 0) {
                Ok(queue) => {
                    self.running[index] = true;
                    self.device.start_queue(index, queue);
                    // The driver may have kicked before it was ready, which it need not repeat.
                    self.device.kick(index);
                }
                Err(error) => return self.give_up(&error),
            }
        }
    }

    fn virtqueue(&self, queue: &Queue, event_idx: bool) -> Result<Virtqueue, QueueError> {
        let invalid = || QueueError::from(virtio_queue::Error::InvalidSize);
        let size = u16::try_from(queue.size).map_err(|_| invalid())?;
        if !size.is_power_of_two() || size > queue.max {
            return Err(invalid());
        }
        let [descriptors, available, used] = queue.rings.map(GuestAddress);
        let mut rings = Rings::new(queue.max)?;
        rings.try_set_size(size)?;
        rings.try_set_desc_table_address(descriptors)?;
        rings.try_set_avail_ring_address(available)?;
        rings.try_set_used_ring_address(used)?;
        rings.set_event_idx(event_idx);
        let interrupt = Box::new(QueueInterrupt {
            page: Arc::clone(&self.page),
            irq: Arc::clone(&self.irq),
        });
        Virtqueue::new(rings, Arc::clone(&self.memory), interrupt)
    }

    fn give_up(&mut self, error: &QueueError) {
        tracing::warn!("Stopped a device: {error}");
        self.stop_all();
        self.page.break_down();
        self.irq.raise();
    }

    fn stop(&mut self, index: usize) {
        if let Some(running) = self.running.get_mut(index)
            && std::mem::take(running)
        {
            self.device.stop_queue(index);
        }
    }

    fn stop_all(&mut self) {
        for index in 0..self.running.len() {
            self.stop(index);
        }
    }
}
