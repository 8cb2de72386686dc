//! A machine's devices while it is made: each has a page of registers, a line, and queues with an event each.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
};

use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::eventfd::EventFd;

use super::{
    bus::{Asked, Bus},
    interrupts::{self, Interrupts},
    layout,
    machine::{MachineError, kvm_step, step},
    memory,
    serial::Console,
    worker::Worker,
};
use crate::{
    devices::{
        VirtioDevice,
        transport::mmio::{self, Irq, Registers, Slot},
    },
    vm::memory::GuestMemory,
};

/// A machine's devices while it is made.
pub struct Parts {
    pub vm: VmFd,
    memory: Arc<GuestMemory>,
    worker: Worker,
    registers: Vec<Registers>,
    asked: Sender<Asked>,
    wake: Arc<OwnedFd>,
}

impl Parts {
    pub fn new(vm: VmFd, memory: Arc<GuestMemory>) -> Result<Self, MachineError> {
        let (asked, requests) = channel();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|errno| step("make an event")(errno.into()))?;
        let wake = Arc::new(wake);
        let worker = Worker::new(requests, Arc::clone(&wake)).map_err(step("watch events"))?;
        Ok(Self {
            vm,
            memory,
            worker,
            registers: Vec::new(),
            asked,
            wake,
        })
    }

    /// Adds a device, at the next address and interrupt.
    pub fn add(&mut self, mut device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let failed = "connect a device";
        let index = self.registers.len();
        if index >= layout::MAX_DEVICES {
            return Err(MachineError::Devices(index + 1));
        }
        self.worker.attach(&mut *device).map_err(step(failed))?;
        let irq = self.interrupt(layout::FIRST_IRQ + u32::try_from(index).unwrap_or(0))?;
        let memory = Arc::clone(&self.memory);
        let (slot, registers) = Slot::new(device, memory, Arc::new(Line(irq)));
        let at = address(index);
        memory::show(&self.vm, index, at, registers.page()).map_err(kvm_step(failed))?;
        self.spare_acknowledgements(at)?;
        let mut kicks = Vec::new();
        for queue in 0..u32::try_from(slot.queue_count()).unwrap_or(0) {
            let kick = event().map_err(step(failed))?;
            let at = IoEventAddress::Mmio(at + mmio::QUEUE_NOTIFY);
            self.vm
                .register_ioevent(&kick, &at, queue)
                .map_err(kvm_step(failed))?;
            // SAFETY: it gives up its descriptor.
            kicks.push(unsafe { OwnedFd::from_raw_fd(kick.into_raw_fd()) });
        }
        self.worker.add(slot, kicks).map_err(step(failed))?;
        self.registers.push(registers);
        Ok(())
    }

    /// Leaves a driver's word that it has taken an interrupt for used buffers to KVM, which does nothing about it: that an
    /// edge has been taken nobody needs to know, and the driver looks for used buffers at the next one either way.
    fn spare_acknowledgements(&self, device: u64) -> Result<(), MachineError> {
        let failed = "connect a device";
        let nobody = event().map_err(step(failed))?;
        let at = IoEventAddress::Mmio(device + mmio::INTERRUPT_ACK);
        let registered = self.vm.register_ioevent(&nobody, &at, mmio::USED_BUFFER);
        registered.map_err(kvm_step(failed))
    }

    fn interrupt(&self, line: u32) -> Result<EventFd, MachineError> {
        let irq = event().map_err(step("make an interrupt"))?;
        self.vm
            .register_irqfd(&irq, line)
            .map_err(kvm_step("connect an interrupt"))?;
        Ok(irq)
    }

    /// The lines that something is connected to: the serial port's is the first.
    pub fn lines(&self) -> Range<u32> {
        let devices = u32::try_from(self.registers.len()).unwrap_or(0);
        layout::SERIAL_IRQ..layout::FIRST_IRQ + devices
    }

    /// The command line, with where the devices are.
    pub fn cmdline(&self, given: &str) -> String {
        let devices = (0..self.registers.len()).map(|index| {
            let (address, irq) = (address(index), layout::FIRST_IRQ as usize + index);
            format!("virtio_mmio.device=4K@{address:#x}:{irq}")
        });
        let mut words: Vec<String> = devices.collect();
        words.push(given.to_owned());
        words.join(" ")
    }

    pub fn finish(self) -> Result<(Worker, Bus), MachineError> {
        let output = io::stdout().as_fd().try_clone_to_owned();
        let output = File::from(output.map_err(step("open the console"))?);
        let console = Console::new(output, self.interrupt(layout::SERIAL_IRQ)?);
        let lines = self.lines().end;
        let interrupts = Interrupts::new(lines, interrupts::kvm(self.vm));
        let bus = Bus::new(console, interrupts, self.registers, self.asked, self.wake);
        Ok((self.worker, bus))
    }
}

/// A device's interrupt.
struct Line(EventFd);

impl Irq for Line {
    fn raise(&self) {
        let _ = self.0.write(1);
    }
}

fn address(index: usize) -> u64 {
    layout::DEVICES + index as u64 * mmio::SIZE
}

fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
