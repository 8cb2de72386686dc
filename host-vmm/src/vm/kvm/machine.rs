//! A machine's process: the program started again, confined, with nothing but descriptors. It makes the machine in the order
//! in which [`Machine::build`] reads, and is the machine until that ends.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{
    boot::{self, BootError},
    bus::{Asked, Bus},
    calls,
    description::Description,
    interrupts::{self, Interrupts},
    layout,
    link::Link,
    memory, mptable,
    serial::Console,
    vcpu::{self, Shared},
    worker::{Outcome, Worker},
};
use crate::{
    devices::{
        VirtioDevice,
        balloon::Balloon,
        block::{Block, Disk},
        rng::Rng,
        transport::mmio::{self, Irq, Registers, Slot},
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
enum MachineError {
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

fn exit(status: i32) -> ! {
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
        take_signals(link);
        let count = self.vcpus.len();
        let shared = Arc::new(Shared {
            bus: self.bus,
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

/// A machine's devices while it is made.
struct Parts {
    vm: VmFd,
    memory: Arc<GuestMemory>,
    worker: Worker,
    registers: Vec<Registers>,
    asked: Sender<Asked>,
    wake: Arc<OwnedFd>,
}

impl Parts {
    fn new(vm: VmFd, memory: Arc<GuestMemory>) -> Result<Self, MachineError> {
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
    fn add(&mut self, mut device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
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
    fn lines(&self) -> Range<u32> {
        let devices = u32::try_from(self.registers.len()).unwrap_or(0);
        layout::SERIAL_IRQ..layout::FIRST_IRQ + devices
    }

    /// The command line, with where the devices are.
    fn cmdline(&self, given: &str) -> String {
        let devices = (0..self.registers.len()).map(|index| {
            let (address, irq) = (address(index), layout::FIRST_IRQ as usize + index);
            format!("virtio_mmio.device=4K@{address:#x}:{irq}")
        });
        let mut words: Vec<String> = devices.collect();
        words.push(given.to_owned());
        words.join(" ")
    }

    fn finish(self) -> Result<(Worker, Bus), MachineError> {
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

fn take(descriptor: i32) -> Result<OwnedFd, MachineError> {
    take_inherited(descriptor).map_err(step("take over a descriptor"))
}

fn step(doing: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Host { doing, source }
}

fn kvm_step(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { doing, source }
}

/// The socket to the supervisor, for the handler of a signal.
static LINK: AtomicI32 = AtomicI32::new(-1);

/// Takes the signals that get processors out of the guest, and that come of forbidden system calls.
fn take_signals(link: &Link) {
    LINK.store(link.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: both handlers do only what a handler may: the one writes a byte of memory that stays, the other makes system
    // calls. The sets are empty, and made before they are used.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigemptyset(&raw mut action.sa_mask);
        action.sa_sigaction = vcpu::kicked as *const () as usize;
        libc::sigaction(vcpu::kick_signal(), &raw const action, std::ptr::null_mut());
        action.sa_sigaction = forbidden as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
    }
}

/// A thread asked for a system call that it may not make, and which was not made: says which, and ends the machine.
extern "C" fn forbidden(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// Where `si_syscall` is, behind three integers and a pointer.
    const CALL: usize = 24;
    // SAFETY: the kernel gives every handler such a structure, and for this signal there is a number at that place
    // (`sigaction(2)`). The message is on this stack.
    unsafe {
        let call = info.cast::<u8>().add(CALL).cast::<i32>().read_unaligned();
        let message = Link::forbidden(call);
        libc::write(
            LINK.load(Ordering::Relaxed),
            message.as_ptr().cast(),
            message.len(),
        );
    }
    exit(FORBIDDEN);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use seccompiler::BpfProgram;

    use super::*;
    use crate::vm::kvm::link::{self, Answering, LastWords};

    struct NoPorts;

    impl crate::devices::vsock::HostPorts for NoPorts {
        fn connect(&mut self, _port: u32) -> Option<std::os::unix::net::UnixStream> {
            None
        }
    }

    /// What becomes of a process that enters a thread's filter and asks for a call, and what it says.
    fn attempt(filter: &BpfProgram, call: libc::c_long, arguments: [usize; 3]) -> (i32, LastWords) {
        let (machine, supervisor) = link::pair().unwrap();
        let answering = Answering::spawn(supervisor, Box::new(NoPorts)).unwrap();
        let link = Link::new(machine);
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            take_signals(&link);
            let no_new_privs = rustix::thread::set_no_new_privs(true);
            if no_new_privs.is_err() || filter::enter_plain(filter).is_err() {
                exit(1);
            }
            let [a, b, c] = arguments;
            // SAFETY: none of the calls that are tried reads or writes memory of ours.
            unsafe { libc::syscall(call, a, b, c) };
            exit(0);
        }
        drop(link);
        let mut status = 0;
        // SAFETY: it writes the status to where it is told.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status), "{status:#x}");
        (libc::WEXITSTATUS(status), answering.last_words())
    }

    #[test]
    fn a_thread_that_makes_a_forbidden_call_ends_the_machine_which_says_so() {
        const KVM_CREATE_VM: usize = 0xae01;
        const KVM_RUN: usize = 0xae80;
        let filters = calls::compile().unwrap();
        let no_file = usize::MAX;
        for (filter, call, arguments, name) in [
            (
                &filters.vcpu,
                libc::SYS_openat,
                [no_file; 3],
                Some("openat"),
            ),
            (&filters.vcpu, libc::SYS_execve, [0; 3], Some("execve")),
            (&filters.vcpu, libc::SYS_clone, [0; 3], Some("clone")),
            (
                &filters.vcpu,
                libc::SYS_recvmsg,
                [no_file; 3],
                Some("recvmsg"),
            ),
            (
                &filters.vcpu,
                libc::SYS_ioctl,
                [no_file, KVM_CREATE_VM, 0],
                Some("ioctl"),
            ),
            (&filters.vcpu, libc::SYS_ioctl, [no_file, KVM_RUN, 0], None),
            (&filters.vcpu, libc::SYS_mmap, [0, 4096, 7], Some("mmap")),
            (&filters.vcpu, libc::SYS_sched_yield, [0; 3], None),
            (&filters.worker, libc::SYS_socket, [1, 1, 0], Some("socket")),
            (&filters.worker, libc::SYS_ptrace, [0; 3], Some("ptrace")),
            (
                &filters.worker,
                libc::SYS_ioctl,
                [no_file, KVM_RUN, 0],
                Some("ioctl"),
            ),
            (
                &filters.worker,
                libc::SYS_io_uring_setup,
                [0; 3],
                Some("io_uring_setup"),
            ),
            (
                &filters.worker,
                libc::SYS_mprotect,
                [0, 4096, 5],
                Some("mprotect"),
            ),
            (&filters.worker, libc::SYS_tkill, [1, 9, 0], Some("tkill")),
            (&filters.worker, libc::SYS_close, [no_file; 3], None),
        ] {
            let expected = LastWords {
                failed: None,
                forbidden: name.map(str::to_owned),
            };
            let status = name.map_or(0, |_| FORBIDDEN);
            assert_eq!(attempt(filter, call, arguments), (status, expected));
        }
    }
}
