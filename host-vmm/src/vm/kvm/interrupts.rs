//! Where interrupts go: the guest's table of lines, and KVM's.

use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{Error, VmFd};

use super::{ioapic::IoApic, layout};

/// Has KVM make local APICs only. Before there is any processor.
///
/// # Errors
/// KVM's.
pub fn split(vm: &VmFd) -> Result<(), Error> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = layout::IRQS.into();
    vm.enable_cap(&cap)
}

/// A machine's lines. Kept for as long as the machine, it keeps that, too.
pub struct Interrupts {
    vm: VmFd,
    apic: Mutex<IoApic>,
}

impl Interrupts {
    /// So many lines, which all are masked. A kernel looks at each of them.
    pub fn new(vm: VmFd, lines: u32) -> Self {
        let lines = u8::try_from(lines).unwrap_or(u8::MAX);
        Self {
            vm,
            apic: Mutex::new(IoApic::new(lines)),
        }
    }

    /// The guest reads one of the I/O APIC's registers.
    pub fn read(&self, offset: u64) -> u32 {
        self.apic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset)
    }

    /// The guest writes one.
    ///
    /// # Errors
    /// KVM's, which has no memory for it.
    pub fn write(&self, offset: u64, value: u32) -> Result<(), Error> {
        let mut apic = self.apic.lock().unwrap_or_else(PoisonError::into_inner);
        match apic.write(offset, value) {
            true => self.route(&apic),
            false => Ok(()),
        }
    }

    fn route(&self, apic: &IoApic) -> Result<(), Error> {
        let entries = apic.messages().map(|(line, message)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: line,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: message.address,
                data: message.data,
                ..Default::default()
            };
            entry
        });
        let entries: Vec<_> = entries.collect();
        let routing = KvmIrqRouting::from_entries(&entries);
        self.vm
            .set_gsi_routing(&routing.map_err(|_| Error::new(libc::E2BIG))?)
    }
}
