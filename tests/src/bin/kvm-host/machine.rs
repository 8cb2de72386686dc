//! The machine that is the host.

use std::{
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use end_to_end::{Signal, artifact};
use rustix::process::set_parent_process_death_signal;

use crate::clock;

/// What the kernel is told:
///
/// - a restart ends the machine, and so does a panic;
/// - an interrupt that cannot be masked is a panic, which tells of all tasks: that is how a host is cut off;
/// - time is the counter's, whose frequency is known, and nothing is measured that need not be;
/// - `cmpxchg16b` (CPUID's bit 141) is not used, neither by this kernel nor by those of its virtual machines, to which it is
///   not offered then: QEMU 7.2 leaves garbage in the flags after it;
/// - nor is `xsave`: QEMU 7.2 does not tell KVM that a guest executes `xsetbv`, so that what it set is another's when its
///   thread comes to another CPU.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t panic_print=1 \
                       sysctl.kernel.panic_on_unrecovered_nmi=1 unknown_nmi_panic no_timer_check tsc=reliable \
                       lpj=10000000 clearcpuid=141 noxsave";

/// The processor: everything that QEMU emulates, SVM above all, but
///
/// - string instructions that it emulates byte by byte where they are said to be fast;
/// - page tables of five levels, which a guest would be offered although the host has four.
const CPU: &str = "max,-erms,-fsrm,-la57";

/// How long the kernel has to say where it was when it was cut off.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How often it is looked whether the machine is still there.
const TICK: Duration = Duration::from_millis(20);

/// A host that has not been started yet.
pub struct Machine<'a> {
    /// Its CPUs.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// The folder with what is to be run, in which the host leaves what came of it.
    pub job: &'a Path,
    /// The archive to make, with the host's init.
    pub initfs: &'a Path,
    /// The file for what its kernel says.
    pub log: &'a Path,
}

/// How a host came to its end.
pub enum End {
    /// It restarted, panicked, or QEMU failed.
    ByItself(ExitStatus),
    /// It took too long.
    Cut,
}

impl Machine<'_> {
    /// Boots it, and copies the output of its command to our own until it has come to its end.
    pub fn run(&self, timeout: Duration) -> io::Result<End> {
        let init = artifact("test/guest-tools/kvm-host-init", "make test-kvm");
        imagebuilder::initfs::build(&init, self.initfs).map_err(io::Error::other)?;
        let (mut output, its_output) = UnixStream::pair()?;
        let (monitor, its_monitor) = UnixStream::pair()?;
        let mut command = Command::new("qemu-system-x86_64");
        self.arguments(&mut command)?;
        command
            .stdin(OwnedFd::from(its_output))
            .stdout(OwnedFd::from(its_monitor));
        // SAFETY: the closure makes one system call.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("Starting qemu-system-x86_64: {error}"),
            )
        })?;
        // QEMU's ends of the sockets go with it.
        drop(command);
        let copied = std::thread::spawn(move || io::copy(&mut output, &mut io::stdout()));
        let end = wait(child, monitor, timeout)?;
        match copied.join() {
            Ok(copied) => copied?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(end)
    }

    fn arguments(&self, command: &mut Command) -> io::Result<()> {
        let kernel = artifact("kernels/kvm-host/vmlinux", "make kernel VARIANT=kvm-host");
        let mut add = |name: &str, value: String| {
            command.arg(name).arg(value);
        };
        add("-machine", "microvm,x-option-roms=off,acpi=off".into());
        add("-accel", "tcg".into());
        add("-cpu", CPU.into());
        add("-smp", self.cpus.to_string());
        add("-m", self.memory_mib.to_string());
        add("-global", "virtio-mmio.force-legacy=off".into());
        add("-kernel", kernel.display().to_string());
        add("-initrd", self.initfs.display().to_string());
        let khz = clock::khz();
        add("-append", format!("{CMDLINE} tsc_early_khz={khz}"));
        let log = escaped(&std::path::absolute(self.log)?);
        add("-chardev", format!("file,id=log,path={log}"));
        add("-serial", "chardev:log".into());
        add("-chardev", "socket,id=monitor,fd=1".into());
        add("-monitor", "chardev:monitor".into());
        add("-chardev", "socket,id=output,fd=0".into());
        add("-device", "virtio-serial-device".into());
        add("-device", "virtserialport,chardev=output".into());
        for (tag, path, mode) in [
            ("machine", Path::new("/"), ",readonly=on"),
            ("job", self.job, ""),
        ] {
            let path = escaped(path);
            // Files of several disks may have the same number, which the remapping tells apart.
            add(
                "-fsdev",
                format!("local,id={tag},path={path},security_model=none,multidevs=remap{mode}"),
            );
            add(
                "-device",
                format!("virtio-9p-device,fsdev={tag},mount_tag={tag}"),
            );
        }
        add("-display", "none".into());
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        Ok(())
    }
}

/// A path as part of a list: a comma would end it.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn wait(mut child: Child, mut monitor: UnixStream, timeout: Duration) -> io::Result<End> {
    if let Some(status) = wait_for(&mut child, timeout)? {
        return Ok(End::ByItself(status));
    }
    // It panics at that, if it can.
    let _ = monitor.write_all(b"nmi\n");
    if wait_for(&mut child, LAST_WORDS)?.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(End::Cut)
}

fn wait_for(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() > end => return Ok(None),
            None => std::thread::sleep(TICK),
        }
    }
}
