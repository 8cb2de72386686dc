//! QEMU's command line.

use std::{ffi::OsString, os::fd::RawFd, path::Path};

use super::escaped;
use crate::vm::{Disk, Mitigations};

/// What the arguments say.
pub struct Machine<'a> {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// The file that is the guest's memory.
    pub memory_fd: RawFd,
    /// `vmlinux`.
    pub kernel: &'a Path,
    /// The initfs.
    pub initfs: &'a Path,
    /// What the kernel does against what its CPU leaks.
    pub mitigations: Option<Mitigations>,
    /// Kernel command line beyond what this machine needs.
    pub cmdline: &'a str,
    /// The kernel says all it does.
    pub verbose: bool,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: Option<u64>,
    /// Disks in the guest's order.
    pub disks: &'a [Disk],
    /// The front end's end of the socket to our vsock device.
    pub vsock_fd: RawFd,
    /// Takes what the guest prints on its serial port.
    pub console_fd: RawFd,
}

/// What every kernel needs on this machine; `docs/kernel.md` has what each word saves:
///
/// - a panic, and a restart, end the VM: there is neither ACPI nor a keyboard controller to ask for one;
/// - the timer is not checked, the time stamp counter not watched, and delays not calibrated;
/// - lock prefixes are not patched out;
/// - `cmpxchg16b` (CPUID's bit 141) is not used: QEMU 7.2 leaves garbage in the flags after it, and an interrupt that comes
///   before the next comparison would bring that back as the direction flag and the like.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t no_timer_check tsc=reliable lpj=10000000 noreplace-smp \
                       clearcpuid=141";

/// What is translated loses what guards it: a kernel would only say on the serial port what it lacks.
const MITIGATIONS: Mitigations = Mitigations::Off;

/// The serial port shows errors and a panic, and nothing else: each byte costs an exit.
const CMDLINE_QUIET: &str = "quiet";

/// It shows everything, what PID 1 says too, however much that is.
const CMDLINE_VERBOSE: &str = "printk.devkmsg=on";

/// For a machine of one CPU: its timer need not be measured. With more it would be the only one of use.
const CMDLINE_ONE_CPU: &str = "nolapic_timer";

impl Machine<'_> {
    /// The arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add(
            "-machine",
            "microvm,x-option-roms=off,acpi=off,memory-backend=memory".into(),
        );
        add("-accel", "tcg".into());
        // String instructions are emulated byte by byte where the CPU says that they are fast.
        add("-cpu", "max,-erms,-fsrm".into());
        add("-smp", self.processors().into());
        add("-m", format!("{}k", self.memory_bytes >> 10).into());
        add("-object", self.memory().into());
        // Virtio 1.0, which our device speaks.
        add("-global", "virtio-mmio.force-legacy=off".into());
        add("-kernel", self.kernel.into());
        add("-initrd", self.initfs.into());
        add("-append", self.kernel_cmdline().into());
        for (index, disk) in self.disks.iter().enumerate() {
            add("-blockdev", drive(index, disk));
            // A write that finds no room on the host stops the machine: the guest cannot be told so, and whatever else
            // it is told, it may go on with what it has lost.
            let device = format!("virtio-blk-device,drive=disk{index},werror=enospc");
            add("-device", device.into());
        }
        add(
            "-chardev",
            format!("socket,id=vsock,fd={}", self.vsock_fd).into(),
        );
        add("-device", "vhost-user-vsock-device,chardev=vsock".into());
        // What the guest has freed goes back to the host.
        add(
            "-device",
            "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on".into(),
        );
        add("-add-fd", format!("fd={},set=1", self.console_fd).into());
        add(
            "-chardev",
            "file,id=console,path=/dev/fdset/1,append=on".into(),
        );
        add("-serial", "chardev:console".into());
        add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        );
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            arguments.push(flag.into());
        }
        arguments.extend(["-display".into(), "none".into()]);
        arguments
    }

    fn kernel_cmdline(&self) -> String {
        let mut words = vec![CMDLINE.to_owned()];
        words.push(
            match self.verbose {
                true => CMDLINE_VERBOSE,
                false => CMDLINE_QUIET,
            }
            .to_owned(),
        );
        if self.cpus == 1 {
            words.push(CMDLINE_ONE_CPU.to_owned());
        }
        words.extend(self.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        let mitigations = self.mitigations.unwrap_or(MITIGATIONS);
        words.push(format!("mitigations={}", mitigations.name()));
        if !self.cmdline.is_empty() {
            words.push(self.cmdline.to_owned());
        }
        words.join(" ")
    }

    /// Where there is but one CPU and will never be another, QEMU leaves the guest's memory barriers out. But our device
    /// runs beside the guest whatever its CPUs are: without barriers each may miss the other's word that there is
    /// something to do.
    fn processors(&self) -> String {
        format!("{},maxcpus={}", self.cpus, self.cpus.max(2))
    }

    fn memory(&self) -> String {
        let (size, fd) = (self.memory_bytes, self.memory_fd);
        format!("memory-backend-file,id=memory,size={size},mem-path=/proc/self/fd/{fd},share=on")
    }
}

/// A raw file as a block device's other side.
fn drive(index: usize, disk: &Disk) -> OsString {
    let mut drive = OsString::from(format!(
        "driver=raw,node-name=disk{index},read-only={},discard=unmap,cache.no-flush={},file.driver=file,\
         file.locking=off,file.filename=",
        switch(disk.read_only),
        switch(disk.ephemeral),
    ));
    drive.push(escaped(&disk.path));
    drive
}

fn switch(on: bool) -> &'static str {
    match on {
        true => "on",
        false => "off",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let disk = Disk {
            path: PathBuf::from("/a,readonly=off/b"),
            read_only: true,
            ephemeral: false,
        };
        let drive = drive(0, &disk);
        assert!(
            drive
                .to_string_lossy()
                .ends_with("file.filename=/a,,readonly=off/b")
        );
    }
}
