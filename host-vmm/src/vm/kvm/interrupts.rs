//! Where interrupts go: the guest's table of lines, and KVM's.

use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{Error, VmFd};

use super::{
    ioapic::{IoApic, Message},
    layout,
};

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

/// Tells whoever delivers interrupts what those lines are to become that are not masked; all others are nothing.
pub type Route = Box<dyn Fn(&[(u32, Message)]) -> Result<(), Error> + Send + Sync>;

/// A machine's lines.
pub struct Interrupts {
    route: Route,
    apic: Mutex<IoApic>,
}

impl Interrupts {
    /// So many lines, which all are masked. A kernel looks at each of them.
    pub fn new(lines: u32, route: Route) -> Self {
        let lines = u8::try_from(lines).unwrap_or(u8::MAX);
        Self {
            route,
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
            true => (self.route)(&apic.messages().collect::<Vec<_>>()),
            false => Ok(()),
        }
    }
}

/// Tells KVM. Kept for as long as the machine, it keeps that, too.
pub fn kvm(vm: VmFd) -> Route {
    Box::new(move |messages| {
        let entries = messages.iter().map(|(line, message)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: *line,
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
        vm.set_gsi_routing(&routing.map_err(|_| Error::new(libc::E2BIG))?)
    })
}
