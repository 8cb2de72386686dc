//! What a machine's processors reach outside of its memory: registers of devices, the serial port, and a few ports that a PC
//! has. Shared by the processors' threads; what waits for a lock here is configuration, and the console.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Sender, SyncSender, sync_channel},
    },
};

use super::{
    interrupts::Interrupts,
    ioapic, layout,
    serial::{self, Console},
};
use crate::devices::transport::mmio::{self, Registers, Request};

/// The keyboard controller's command port, by which a PC is reset, and the command for that.
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;

/// The battery-backed clock's ports: there is none, and reads as zero. All ones would look like a clock that is just being
/// set, for which kernels wait.
const CLOCK: [u16; 2] = [0x70, 0x71];

/// How a machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest restarted, which is how it ends.
    Reset,
    /// It cannot go on.
    Failed(String),
}

/// A request of a driver, for the thread that has the devices.
pub struct Asked {
    /// Of which device.
    pub slot: usize,
    /// What.
    pub request: Request,
    /// Told when it is done.
    pub done: SyncSender<()>,
}

/// Everything outside of memory.
pub struct Bus {
    console: Mutex<Console>,
    interrupts: Interrupts,
    slots: Vec<Mutex<Registers>>,
    asked: Sender<Asked>,
    /// Wakes the thread that has the devices.
    wake: Arc<OwnedFd>,
    end: OnceLock<End>,
}

impl Bus {
    /// A bus with these devices. What is asked of them goes by `asked`, after which `wake` is written to.
    pub fn new(
        console: Console,
        interrupts: Interrupts,
        slots: Vec<Registers>,
        asked: Sender<Asked>,
        wake: Arc<OwnedFd>,
    ) -> Self {
        Self {
            console: Mutex::new(console),
            interrupts,
            slots: slots.into_iter().map(Mutex::new).collect(),
            asked,
            wake,
            end: OnceLock::new(),
        }
    }

    /// How the machine ends, if it does.
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Ends the machine. The first reason counts.
    pub fn finish(&self, end: End) {
        let _ = self.end.set(end);
        self.wake();
    }

    /// Wakes the thread that has the devices.
    pub fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    /// Writes what the console has held back.
    pub fn flush(&self) {
        lock(&self.console).flush();
    }

    /// The guest writes to an I/O port.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        let Some(&byte) = data.first() else {
            return;
        };
        #[cfg(feature = "failpoints")]
        if crate::failpoint::taken_over::port(port, data) {
            self.wake();
        }
        match port {
            KEYBOARD if byte == RESET => self.finish(End::Reset),
            _ => {
                if let Some(port) = serial_port(port) {
                    lock(&self.console).write(port, byte);
                }
            }
        }
    }

    /// The guest reads an I/O port.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            KEYBOARD => 0,
            _ if CLOCK.contains(&port) => 0,
            _ => u8::MAX,
        });
        if let (Some(port), Some(byte)) = (serial_port(port), data.first_mut()) {
            *byte = lock(&self.console).read(port);
        }
    }

    /// The guest writes to memory that is none.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = io_apic(address) {
            // All of its registers have 32 bits.
            if let Ok(value) = data.try_into().map(u32::from_le_bytes)
                && let Err(error) = self.interrupts.write(offset, value)
            {
                self.finish(End::Failed(format!(
                    "The host's KVM cannot route interrupts: {error}"
                )));
            }
            return;
        }
        let Some((slot, offset)) = self.slot(address) else {
            return;
        };
        // Until it is done: what is asked of a device comes in the order in which it was written.
        let mut registers = lock(&self.slots[slot]);
        let Some(request) = registers.write(offset, data) else {
            return;
        };
        let (done, answer) = sync_channel(1);
        let asked = Asked {
            slot,
            request,
            done,
        };
        if self.asked.send(asked).is_ok() {
            self.wake();
            // An error is the machine's end.
            let _ = answer.recv();
        }
    }

    /// The guest reads memory that is none.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if let Some((slot, offset)) = self.slot(address) {
            return lock(&self.slots[slot]).read(offset, data);
        }
        data.fill(u8::MAX);
        if let (Some(offset), 4) = (io_apic(address), data.len()) {
            data.copy_from_slice(&self.interrupts.read(offset).to_le_bytes());
        }
    }

    /// The device at an address, and the offset in its registers.
    fn slot(&self, address: u64) -> Option<(usize, u64)> {
        let offset = address.checked_sub(layout::DEVICES)?;
        let slot = usize::try_from(offset / mmio::SIZE).ok()?;
        (slot < self.slots.len()).then_some((slot, offset % mmio::SIZE))
    }
}

/// The offset in the I/O APIC's registers.
fn io_apic(address: u64) -> Option<u64> {
    let offset = address.checked_sub(layout::IO_APIC.into())?;
    (offset < ioapic::SIZE).then_some(offset)
}

/// Which of the serial port's it is.
fn serial_port(port: u16) -> Option<u8> {
    let at = port.checked_sub(serial::PORT)?;
    (at < serial::PORTS).then(|| u8::try_from(at).ok())?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
