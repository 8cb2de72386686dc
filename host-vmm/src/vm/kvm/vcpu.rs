//! A virtual processor: what it starts with, and the thread that runs it.

use std::{
    cell::Cell,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_MP_STATE_RUNNABLE,
    Msrs, kvm_enable_cap, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run, kvm_segment,
};
use kvm_ioctls::{Error, VcpuExit, VcpuFd};
use seccompiler::BpfProgram;

use super::{
    bus::{Bus, End},
    cpuid, layout,
};
use crate::{failpoint, sandbox::filter};

/// `IA32_MISC_ENABLE`, whose bit 0 says that string instructions are fast.
const MISC_ENABLE: u32 = 0x1a0;

/// `IA32_MTRR_DEF_TYPE`: memory types are on, and the default is write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// Gives a processor its place among `cpus`, what it says of itself, and its registers; the first is to begin at `entry`.
///
/// # Errors
/// KVM's.
pub fn prepare(
    vcpu: &VcpuFd,
    supported: &CpuId,
    (cpu, cpus): (u32, u32),
    deadline: bool,
    entry: u64,
) -> Result<(), Error> {
    hide_what_is_not_listed(vcpu)?;
    let leaves = cpuid::of(supported, cpu, cpus, deadline);
    let leaves = CpuId::from_entries(&leaves).map_err(|_| Error::new(libc::E2BIG))?;
    vcpu.set_cpuid2(&leaves)?;
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = [msr(MISC_ENABLE, 1), msr(MTRR_DEF_TYPE, 1 << 11 | 6)];
    let msrs = Msrs::from_entries(&msrs).map_err(|_| Error::new(libc::E2BIG))?;
    vcpu.set_msrs(&msrs)?;
    if cpu == 0 {
        enter_kernel(vcpu, entry)?;
    }
    Ok(())
}

/// What KVM has for guests beyond a processor's, its own and Hyper-V's, is there for those that are told of it only. A host from
/// before Linux 5.10 or 5.18 does not know that.
fn hide_what_is_not_listed(vcpu: &VcpuFd) -> Result<(), Error> {
    for cap in [
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        KVM_CAP_HYPERV_ENFORCE_CPUID,
    ] {
        let enforced = kvm_enable_cap {
            cap,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        match vcpu.enable_cap(&enforced) {
            Err(error) if error.errno() == libc::EINVAL => {}
            other => other?,
        }
    }
    Ok(())
}

/// The state in which a PVH kernel begins (Xen's `docs/misc/pvh`): 32 bits, no paging, flat segments.
fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    const PROTECTED: u64 = 1;
    const NUMERIC: u64 = 1 << 4;
    let mut sregs = vcpu.get_sregs()?;
    // Execute and read; read and write; a task that is busy.
    sregs.cs = segment(1, 0xb);
    let data = segment(2, 0x3);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        db: 0,
        g: 0,
        s: 0,
        ..segment(3, 0xb)
    };
    sregs.cr0 = PROTECTED | NUMERIC;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        // Of the flags one is always set.
        rflags: 2,
        rip: entry,
        rbx: layout::START_INFO,
        ..Default::default()
    })?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
}

fn segment(index: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index << 3,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

/// What the threads of all processors share.
pub struct Shared {
    /// What they reach outside of memory.
    pub bus: Bus,
    /// Where all threads meet once each is in its filter: no instruction of the guest's comes before.
    pub start: Barrier,
    /// They are to stop.
    pub stop: AtomicBool,
    /// How many have.
    pub stopped: AtomicU32,
}

/// Runs a processor until the machine ends, on a thread that can do nothing else then. Never returns.
pub fn run(mut vcpu: VcpuFd, shared: &Arc<Shared>, calls: &BpfProgram) -> ! {
    KICKED.set(vcpu.get_kvm_run());
    if let Err(error) = filter::enter_plain(calls) {
        let what = format!("Cannot enter the filter of a processor's system calls: {error}");
        shared.bus.finish(End::Failed(what));
    }
    failpoint::misbehave("vcpu", libc::SYS_openat);
    shared.start.wait();
    while !shared.stop.load(Ordering::Acquire) && shared.bus.end().is_none() {
        if let Some(end) = step(&mut vcpu, &shared.bus) {
            shared.bus.finish(end);
            break;
        }
    }
    shared.stopped.fetch_add(1, Ordering::AcqRel);
    shared.bus.wake();
    loop {
        std::thread::park();
    }
}

/// Runs the processor until it needs something, and does that. Says if the machine is over.
fn step(vcpu: &mut VcpuFd, bus: &Bus) -> Option<End> {
    let failed = |what: String| Some(End::Failed(what));
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => bus.write_port(port, data),
        Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
        // An end of an interrupt is of no use to a line that was raised by an edge.
        Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IoapicEoi(_)) => {}
        Ok(VcpuExit::Shutdown) => {
            return failed("The guest's kernel broke down (a triple fault)".to_owned());
        }
        Ok(VcpuExit::FailEntry(reason, _)) => {
            return failed(format!(
                "The host's processor does not enter the guest (reason {reason:#x})"
            ));
        }
        Ok(VcpuExit::InternalError) => {
            return failed(
                "The host's KVM cannot execute an instruction of the guest's".to_owned(),
            );
        }
        Ok(VcpuExit::MemoryFault { gpa, .. }) => {
            return failed(format!(
                "The host has no memory for the guest's at {gpa:#x}"
            ));
        }
        Ok(other) => return failed(format!("The host's KVM stopped the guest: {other:?}")),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => vcpu.set_kvm_immediate_exit(0),
            _ => return failed(format!("The host's KVM cannot run the guest: {error}")),
        },
    }
    // It may have been the end.
    bus.end().cloned()
}

/// The signal that gets a thread out of the guest.
pub fn kick_signal() -> libc::c_int {
    libc::SIGUSR1
}

thread_local! {
    /// What KVM shares with this thread, for the signal's handler.
    static KICKED: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Has the next `KVM_RUN` return at once, be it that this one has not begun.
pub extern "C" fn kicked(_signal: libc::c_int) {
    let run = KICKED.get();
    if !run.is_null() {
        // SAFETY: it is the mapping that the thread's own processor has, which is never dropped: [`run`] does not return.
        // The field is a byte that KVM reads.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}
