//! A throw-away machine for the guest: a few pages of memory and one CPU.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _};

use super::guest::{
    CODE, DATA, DONE, EXCEPTION, EXCEPTIONS, GDT, GDTR, HANDLER_LEN, HANDLERS, IDT, IDTR,
    KERNEL_CODE, KERNEL_DATA, MEMORY, OUTCOME, PD, PDPT, PML4, PORT, PT, STACK_END, STEP, Step,
    TASK, TSS, USER_CODE, USER_DATA, VECTOR, WRONG,
};
use crate::vm::memory::GuestMemory;

/// A CPU enters its guest, and leaves it again, so many times at most. A guest that has its way leaves it once.
const ENTRIES: u32 = 64;

/// How often a call is begun again that a signal has ended.
const RETRIES: u32 = 100;

/// Three pages that Intel's KVM needs for itself, where no memory is.
const TSS_PAGES: usize = 0xfffb_d000;

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It got through.
    Done,
    /// At this step, in this way.
    Failed(Step, How),
    /// It was stopped at this step.
    Stopped(Step),
}

/// What went wrong with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum How {
    /// KVM gave the guest up.
    Unable,
    /// An exception where none belongs.
    Exception(u32),
    /// The CPU shut down, for exceptions that could not be delivered.
    Shutdown,
    /// Something else was done.
    Wrong,
    /// It never ends.
    Endless,
}

/// A call to the host's kernel failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {doing} ({errno})")]
pub struct HostError {
    /// What for, as in "make a machine".
    doing: &'static str,
    errno: Errno,
}

impl HostError {
    /// As the standard library says it.
    pub fn of(doing: &'static str, error: &std::io::Error) -> Self {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        Self { doing, errno }
    }
}

/// What kvm-ioctls says of a failed call.
fn failed(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostError {
    move |error| HostError {
        doing,
        errno: Errno::from_raw_os_error(error.errno()),
    }
}

/// A machine that has not run yet. Ending it takes longer than all else, as the host's kernel waits for its readers.
pub struct Machine {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemory,
}

impl Machine {
    /// Makes one for `code`, or gives up after `stop` was set.
    ///
    /// # Errors
    /// There is no such machine on this host.
    pub fn new(code: &[u8], stop: &AtomicBool) -> Result<Self, HostError> {
        let of_memory = |errno| HostError {
            doing: "have a machine's memory",
            errno,
        };
        let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
        let vm = create(&kvm, stop)?;
        let size = usize::try_from(MEMORY).map_err(|_| of_memory(Errno::NOMEM))?;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), size)])
            .map_err(|_| of_memory(Errno::NOMEM))?;
        write(&memory, code).map_err(|_| of_memory(Errno::FAULT))?;
        vm.set_tss_address(TSS_PAGES)
            .map_err(failed("set up a machine"))?;
        give(&vm, &memory)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("make a CPU"))?;
        let features = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("ask what a CPU can do"))?;
        vcpu.set_cpuid2(&features)
            .map_err(failed("say what a CPU can do"))?;
        enter(&vcpu)?;
        let_signals_in(&vcpu)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            memory,
        })
    }

    /// Runs until the guest ends, or a signal comes after `stop` was set.
    pub fn run(&mut self, stop: &AtomicBool) -> End {
        for _ in 0..ENTRIES {
            let how = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, _)) => match self.outcome() {
                    None => return End::Done,
                    Some(how) => how,
                },
                Ok(VcpuExit::Shutdown) => How::Shutdown,
                Ok(_) => How::Unable,
                Err(error) => match Errno::from_raw_os_error(error.errno()) {
                    Errno::INTR | Errno::AGAIN if stop.load(Ordering::SeqCst) => break,
                    Errno::INTR | Errno::AGAIN => continue,
                    // The host's kernel knows no better.
                    _ => How::Unable,
                },
            };
            return End::Failed(self.step(), how);
        }
        End::Stopped(self.step())
    }

    /// How the guest says that it went; `None` for well.
    fn outcome(&self) -> Option<How> {
        match self.read(OUTCOME) {
            DONE => None,
            EXCEPTION => Some(How::Exception(self.read(VECTOR))),
            WRONG => Some(How::Wrong),
            _ => Some(How::Unable),
        }
    }

    /// Where the guest is.
    fn step(&self) -> Step {
        Step::of_number(self.read(STEP))
    }

    fn read(&self, at: u64) -> u32 {
        self.memory.read_obj(GuestAddress(at)).unwrap_or(0)
    }
}

/// Makes a machine. It takes a while in the kernel, and a signal ends that.
fn create(kvm: &Kvm, stop: &AtomicBool) -> Result<VmFd, HostError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match kvm.create_vm() {
            Err(error)
                if error.errno() == libc::EINTR
                    && tries < RETRIES
                    && !stop.load(Ordering::SeqCst) => {}
            other => return other.map_err(failed("make a machine")),
        }
    }
}

/// Gives the machine its memory, which has to outlive it.
fn give(vm: &VmFd, memory: &GuestMemory) -> Result<(), HostError> {
    let address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|_| HostError {
            doing: "map a machine's memory",
            errno: Errno::FAULT,
        })?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: address.expose_provenance() as u64,
    };
    // SAFETY: the region is all of `memory`, a mapping of its own of as many bytes that nothing in this process has a
    // reference to. It is unmapped when a `Machine` is dropped, after its CPU and with that the guest are gone.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("give a machine memory"))
}

/// Lets signals end `KVM_RUN` that this thread blocks otherwise: they stay pending, and nobody has to handle them.
fn let_signals_in(vcpu: &VcpuFd) -> Result<(), HostError> {
    /// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
    const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;
    /// `struct kvm_signal_mask` with the kernel's set of signals.
    #[repr(C, packed)]
    struct SignalMask {
        len: u32,
        blocked: u64,
    }
    let none = SignalMask { len: 8, blocked: 0 };
    // SAFETY: the call reads `len`, and as many bytes after it; `none` has both and outlives it.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const none) };
    match result {
        0 => Ok(()),
        _ => Err(HostError::of(
            "let signals reach a CPU",
            &std::io::Error::last_os_error(),
        )),
    }
}

/// Writes the code and the tables that it needs.
fn write(memory: &GuestMemory, code: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    // Present, writable, and for everybody.
    const ENTRY: u64 = 0b111;
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    put(PML4, PDPT | ENTRY)?;
    put(PDPT, PD | ENTRY)?;
    put(PD, PT | ENTRY)?;
    for page in 1..MEMORY >> 12 {
        put(PT + page * 8, page << 12 | ENTRY)?;
    }
    let selector = |selector: u16| GDT + u64::from(selector);
    put(selector(KERNEL_CODE), 0x00af_9b00_0000_ffff)?;
    put(selector(KERNEL_DATA), 0x00cf_9300_0000_ffff)?;
    put(selector(USER_DATA), 0x00cf_f300_0000_ffff)?;
    put(selector(USER_CODE), 0x00af_fb00_0000_ffff)?;
    // 104 bytes at TSS, which is below 64 KiB.
    put(selector(TASK), 0x0000_8900_0000_0067 | TSS << 16)?;
    put(TSS + 4, STACK_END)?;
    for vector in 0..EXCEPTIONS {
        let handler = HANDLERS + vector * HANDLER_LEN;
        // An interrupt gate for everybody.
        let gate = 0x0000_ee00_0000_0000 | u64::from(KERNEL_CODE) << 16 | handler;
        put(IDT + vector * 16, gate)?;
    }
    for (at, table, len) in [(GDTR, GDT, 0x40_u16), (IDTR, IDT, 0x200)] {
        memory.write_obj(len - 1, GuestAddress(at))?;
        put(at + 2, table)?;
    }
    memory.write_slice(code, GuestAddress(CODE))
}

/// Has the CPU begin as PVH says: flat segments of 32 bits, no paging.
fn enter(vcpu: &VcpuFd) -> Result<(), HostError> {
    let set_up = || {
        let mut special = vcpu.get_sregs()?;
        flat(&mut special);
        vcpu.set_sregs(&special)?;
        let mut registers = vcpu.get_regs()?;
        registers.rip = CODE;
        registers.rsp = STACK_END;
        registers.rbp = DATA;
        registers.rflags = 2;
        vcpu.set_regs(&registers)
    };
    set_up().map_err(failed("set a CPU's registers"))
}

fn flat(special: &mut kvm_sregs) {
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: KERNEL_DATA,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = kvm_segment {
        selector: KERNEL_CODE,
        type_: 11,
        ..data
    };
    for segment in [
        &mut special.ds,
        &mut special.es,
        &mut special.fs,
        &mut special.gs,
        &mut special.ss,
    ] {
        *segment = data;
    }
    special.tr = kvm_segment {
        limit: 0x67,
        selector: 0,
        type_: 11,
        db: 0,
        s: 0,
        g: 0,
        ..data
    };
    special.gdt.base = GDT;
    special.gdt.limit = 0x3f;
    // An exception before the guest has handlers for it ends it.
    special.idt.base = 0;
    special.idt.limit = 0;
    // PE and ET.
    special.cr0 = 0x11;
    special.cr4 = 0;
    special.efer = 0;
}
