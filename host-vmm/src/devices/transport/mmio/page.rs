//! What a driver reads, where it can be read without asking anybody: a page of memory.
//!
//! A machine may show it to its guest as it is, read-only. Then reading a register costs nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{CONFIGURATION, NEEDS_RESET};
use crate::devices::VirtioDevice;

/// 32-bit words of a page.
const WORDS: usize = 1024;

/// Registers that both halves of a device may change, by their offsets (virtio 1.2 §4.2.2).
const INTERRUPTS: u64 = 0x60;
const STATUS: u64 = 0x70;

/// `ConfigGeneration`, and the configuration space, with how much of it there is.
const GENERATION: u64 = 0xfc;
pub(super) const CONFIG: u64 = 0x100;
pub(super) const CONFIG_LEN: usize = 256;

/// A device's registers as they are read, in the order of bytes in which they are (§4.2.2: little-endian).
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Page([AtomicU32; WORDS]);

impl Page {
    /// All zeroes.
    pub(super) fn new() -> Self {
        Self([const { AtomicU32::new(0) }; WORDS])
    }

    /// Where it lies in this process. It is 4 KiB long, aligned, and stays there for as long as it exists.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }

    /// Reads `data.len()` bytes at `offset`, each at a time of its own; beyond the end there are zeroes.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (0..).zip(data) {
            let at = offset.saturating_add(at);
            let bytes = self.get(at & !3).to_le_bytes();
            *byte = bytes[usize::try_from(at & 3).unwrap_or(0)];
        }
    }

    /// The word at a multiple of 4.
    pub(super) fn get(&self, offset: u64) -> u32 {
        let word = usize::try_from(offset / 4).ok();
        let word = word.and_then(|word| self.0.get(word));
        word.map_or(0, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    /// Sets the word at a multiple of 4, which is in the page.
    pub(super) fn set(&self, offset: u64, value: u32) {
        self.word(offset).store(value.to_le(), Ordering::Release);
    }

    /// Shows a device's configuration space. Who reads it meanwhile sees that by its generation, before and after
    /// (§2.5.1).
    pub(super) fn show_config(&self, device: &dyn VirtioDevice) {
        let mut config = [0; CONFIG_LEN];
        device.read_config(0, &mut config);
        let generation = self.get(GENERATION);
        self.set(GENERATION, generation.wrapping_add(1));
        for (offset, word) in (CONFIG..).step_by(4).zip(config.as_chunks::<4>().0) {
            self.set(offset, u32::from_le_bytes(*word));
        }
        self.set(GENERATION, generation.wrapping_add(2));
    }

    /// The driver is to look at the configuration space.
    pub(super) fn config_changed(&self, device: &dyn VirtioDevice) {
        self.show_config(device);
        self.add_interrupt(CONFIGURATION);
    }

    pub(super) fn add_interrupt(&self, bit: u32) {
        self.word(INTERRUPTS)
            .fetch_or(bit.to_le(), Ordering::AcqRel);
    }

    pub(super) fn remove_interrupts(&self, bits: u32) {
        self.word(INTERRUPTS)
            .fetch_and(!bits.to_le(), Ordering::AcqRel);
    }

    pub(super) fn status(&self) -> u32 {
        self.get(STATUS)
    }

    pub(super) fn add_status(&self, bits: u32) {
        self.word(STATUS).fetch_or(bits.to_le(), Ordering::AcqRel);
    }

    /// The driver has to reset the device: it broke the rules.
    pub(super) fn break_down(&self) {
        self.add_status(NEEDS_RESET);
        self.add_interrupt(CONFIGURATION);
    }

    /// As it was before any driver.
    pub(super) fn reset(&self) {
        self.set(STATUS, 0);
        self.set(INTERRUPTS, 0);
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        &self.0[usize::try_from(offset / 4).unwrap_or(0) % WORDS]
    }
}
