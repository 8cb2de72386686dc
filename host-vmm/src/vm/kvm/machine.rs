//! A machine's process: the program started again, confined, with nothing but descriptors. It makes the machine in the order
//! in which [`Machine::build`] reads, and is the machine until that ends.

use std::{
    ffi::OsStr,
    io,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU32},
    },
    thread::JoinHandle,
};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::{
    boot::{self, BootError},
    bus::Bus,
    calls,
    description::Description,
    interrupts, layout,
    link::Link,
    memory, mptable,
    parts::Parts,
    signals,
    vcpu::{self, Shared},
    worker::{Outcome, Worker},
};
use crate::{
    devices::{
        balloon::Balloon,
        block::{Block, Disk},
        rng::Rng,
        vsock::Vsock,
    },
    failpoint,
    process::take_inherited,
    report::Report,
    sandbox::filter,
    vm::memory::GuestMemory,
};

/// Exit statuses by which a machine tells how it ended; 0 is the guest's restart.
pub const PANICKED: i32 = 3;
pub const NO_ROOM: i32 = 4;
pub const FAILED: i32 = 5;
pub const FORBIDDEN: i32 = 6;

/// Bytes of a processor's thread's stack. There may be many, and what they do is little.
const STACK: usize = 256 << 10;

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("Cannot {doing}")]
    Kvm {
        doing: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("Cannot {doing}")]
    Host {
        doing: &'static str,
        source: io::Error,
    },
    #[error("Cannot map {0} MiB of memory for the machine; give it less with --memory")]
    Memory(u64, #[source] io::Error),
    #[error("The host's KVM lacks {0}; a newer kernel on the host has it")]
    Lacks(&'static str),
    #[error(
        "The machine cannot have {asked} CPUs: the host's KVM gives it {most} at most; ask for fewer with --cpus"
    )]
    Cpus { asked: u32, most: usize },
    #[error("The machine cannot have {0} devices: there are lines for {max}", max = layout::MAX_DEVICES)]
    Devices(usize),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("Cannot compile the filters of system calls")]
    Filter(#[from] seccompiler::Error),
}

/// Runs the machine that `argument` describes, and ends the process with it.
pub fn run(argument: &OsStr) -> ! {
    // Nobody else of this user may look into it.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let Ok(description) = Description::from_argument(argument) else {
        exit(FAILED);
    };
    let Ok(link) = take_inherited(description.link).map(Link::new) else {
        exit(FAILED);
    };
    failpoint::misbehave("machine", libc::SYS_socket);
    let machine = Machine::build(&description, &link);
    let outcome = machine.and_then(|machine| machine.run(&link));
    match outcome {
        Ok((Outcome::Reset, false)) => exit(0),
        Ok((Outcome::Reset, true)) => exit(PANICKED),
        Ok((Outcome::NoRoom, _)) => exit(NO_ROOM),
        Ok((Outcome::Failed(why), _)) => {
            link.failed(&why);
            exit(FAILED);
        }
        Err(error) => {
            link.failed(&Report::of(&error).causes.join(": "));
            exit(FAILED);
        }
    }
}

pub fn exit(status: i32) -> ! {
    // SAFETY: ends all threads, and runs nothing of ours any more.
    unsafe { libc::_exit(status) }
}

/// A machine that is ready to run.
struct Machine {
    memory: Arc<GuestMemory>,
    worker: Worker,
    bus: Bus,
    vcpus: Vec<VcpuFd>,
}

impl Machine {
    fn build(description: &Description, link: &Link) -> Result<Self, MachineError> {
        let kvm = open(description.kvm)?;
        check(&kvm, description.cpus)?;
        let vm = create(&kvm)?;
        let memory = Arc::new(give_memory(&vm, description.memory)?);
        interrupts::split(&vm).map_err(kvm_step("make the machine's interrupt controllers"))?;
        let mut parts = Parts::new(vm, Arc::clone(&memory))?;
        for disk in &description.disks {
            let file = take(disk.file)?;
            let disk = Disk::new(file.into(), disk.read_only, disk.ephemeral)
                .map_err(step("open a disk"))?;
            parts.add(Box::new(Block::new(disk)))?;
        }
        parts.add(Box::new(Vsock::new(
            description.cid,
            Box::new(link.clone()),
        )))?;
        parts.add(Box::new(Balloon::new(0)))?;
        parts.add(Box::new(Rng::new()))?;
        let cmdline = parts.cmdline(&description.cmdline);
        let [kernel, initfs] = [description.kernel, description.initfs].map(take);
        let entry = boot::load(&memory, &kernel?.into(), &initfs?.into(), &cmdline)?;
        mptable::write(&memory, description.cpus, parts.lines()).map_err(BootError::Memory)?;
        let vcpus = make_vcpus(&kvm, &parts.vm, description.cpus, entry)?;
        let (worker, bus) = parts.finish()?;
        Ok(Self {
            memory,
            worker,
            bus,
            vcpus,
        })
    }

    /// Runs it to its end, and says whether that was a panic.
    fn run(self, link: &Link) -> Result<(Outcome, bool), MachineError> {
        let filters = calls::compile()?;
        signals::take(link);
        let count = self.vcpus.len();
        let shared = Arc::new(Shared {
            bus: self.bus,
            start: Barrier::new(count + 1),
            stop: AtomicBool::new(false),
            stopped: AtomicU32::new(0),
        });
        let vcpu_filter = Arc::new(filters.vcpu);
        let mut threads: Vec<JoinHandle<()>> = Vec::with_capacity(count);
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            let (shared, calls) = (Arc::clone(&shared), Arc::clone(&vcpu_filter));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu {index}"))
                .stack_size(STACK)
                .spawn(move || vcpu::run(vcpu, &shared, &calls))
                .map_err(step("start a processor's thread"))?;
            threads.push(thread);
        }
        filter::enter_plain(&filters.worker).map_err(step("enter the filter of system calls"))?;
        failpoint::misbehave("devices", libc::SYS_ptrace);
        shared.start.wait();
        let outcome = self.worker.work(&shared, &threads);
        Ok((outcome, panicked(&self.memory)))
    }
}

/// Whether the kernel that restarts says that it panicked: its command line has it say so.
fn panicked(memory: &GuestMemory) -> bool {
    const WARM: u16 = 0x1234;
    let flag = memory.read_obj::<u16>(GuestAddress(layout::RESET_FLAG));
    flag.is_ok_and(|flag| u16::from_le(flag) == WARM)
}

fn open(descriptor: i32) -> Result<Kvm, MachineError> {
    let device = take(descriptor)?;
    // SAFETY: it is a descriptor of `/dev/kvm`, which the supervisor has opened for us, and nobody else's here.
    Ok(unsafe { Kvm::from_raw_fd(device.into_raw_fd()) })
}

/// Whether the host's KVM can do what a machine needs.
fn check(kvm: &Kvm, cpus: u32) -> Result<(), MachineError> {
    let needed = [
        (
            Cap::SplitIrqchip,
            "local APICs alone (KVM_CAP_SPLIT_IRQCHIP)",
        ),
        (
            Cap::IrqRouting,
            "routes for interrupts (KVM_CAP_IRQ_ROUTING)",
        ),
        (
            Cap::ReadonlyMem,
            "memory that is only read (KVM_CAP_READONLY_MEM)",
        ),
        (Cap::UserMemory, "memory (KVM_CAP_USER_MEMORY)"),
        (Cap::Ioeventfd, "events for writes (KVM_CAP_IOEVENTFD)"),
        (Cap::Irqfd, "events for interrupts (KVM_CAP_IRQFD)"),
        (
            Cap::ImmediateExit,
            "a way to stop processors (KVM_CAP_IMMEDIATE_EXIT)",
        ),
        (
            Cap::SetTssAddr,
            "a place for task state (KVM_CAP_SET_TSS_ADDR)",
        ),
        (Cap::ExtCpuid, "a list of features (KVM_CAP_EXT_CPUID)"),
    ];
    if let Some((_, what)) = needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(MachineError::Lacks(what));
    }
    let most = kvm.get_max_vcpus().min(mptable::MAX_CPUS as usize);
    if cpus == 0 || cpus as usize > most {
        return Err(MachineError::Cpus { asked: cpus, most });
    }
    Ok(())
}

fn create(kvm: &Kvm) -> Result<VmFd, MachineError> {
    let vm = loop {
        match kvm.create_vm() {
            // A signal came while the kernel looked after memory for it.
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(kvm_step("make a machine"))?,
        }
    };
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .and_then(|()| vm.set_tss_address(layout::TSS))
        .map_err(kvm_step("place a machine's task state"))?;
    Ok(vm)
}

fn give_memory(vm: &VmFd, bytes: u64) -> Result<GuestMemory, MachineError> {
    let memory = memory::map(bytes).map_err(|error| MachineError::Memory(bytes >> 20, error))?;
    memory::advise(&memory);
    memory::give(vm, &memory).map_err(kvm_step("give the machine its memory"))?;
    Ok(memory)
}

fn make_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u32, entry: u64) -> Result<Vec<VcpuFd>, MachineError> {
    let supported: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_step("learn what a machine's processors can do"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let make = |cpu: u32| {
        let vcpu = vm.create_vcpu(cpu.into())?;
        vcpu::prepare(&vcpu, &supported, (cpu, cpus), deadline, entry)?;
        Ok(vcpu)
    };
    let vcpus: Result<_, _> = (0..cpus).map(make).collect();
    vcpus.map_err(kvm_step("make a machine's processors"))
}

fn take(descriptor: i32) -> Result<OwnedFd, MachineError> {
    take_inherited(descriptor).map_err(step("take over a descriptor"))
}

pub fn step(doing: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Host { doing, source }
}

pub fn kvm_step(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { doing, source }
}
