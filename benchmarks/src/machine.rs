//! A container's machine without the container: the same accelerator, kernel, disks, devices, memory and processor, with
//! another PID 1 in its initfs, and nothing of `vmm` around it but the function that starts it.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use end_to_end::Root;
use host_vmm::{
    container::{spec::ContainerSpec, state, supervisor::vm_config},
    devices::vsock::HostPorts,
    vm::{self, Accelerator, Hypervisor, Vm, VsockConfig, qemu::Qemu},
};
use imagebuilder::writable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Kernel;

/// The emulator's program.
const QEMU: &str = "qemu-system-x86_64";

/// How long a machine is let be before it is started: the emulator's driver wants some time between two looks at the time
/// stamp counter, which passes by itself when a command is on its way to its machine.
const PAUSE: Duration = Duration::from_millis(10);

/// A machine that can be run again and again.
pub struct Machine {
    spec: ContainerSpec,
    folder: PathBuf,
    /// Where the emulator is that counts instructions.
    counting: Option<OsString>,
}

impl Machine {
    /// The machine of a container that runs with `flags`, with the PID 1 that is in `initfs`.
    ///
    /// # Errors
    /// No such container runs.
    pub fn of_container(
        root: &Root,
        kernel: &Kernel,
        accelerator: Accelerator,
        flags: &[&str],
        initfs: PathBuf,
    ) -> Result<Self> {
        let run = kernel.run(root, accelerator).args(flags);
        let run = run.args(["busybox", "true"]).finish();
        ensure!(run.succeeded(), "{}", run.description());
        let mut spec = only_spec(root)?;
        root.vmm(["rm", &spec.id]).finish().code(0);
        spec.auto_remove = true;
        spec.machine.initfs.path = initfs;
        // Its copy has gone with the container.
        if let Some(kernel) = kernel.path(accelerator) {
            spec.machine.kernel.path = kernel;
        }
        Ok(Self {
            spec,
            folder: root.files(),
            counting: None,
        })
    }

    /// Lets each of the guest's instructions take one tick of its time stamp counter, and 1 ns of its timers; while it waits
    /// for one it is as if no time passed.
    ///
    /// # Errors
    /// The emulator is not there.
    pub fn counting_instructions(mut self) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let qemu = std::env::split_paths(&path)
            .map(|folder| folder.join(QEMU))
            .find(|program| program.is_file())
            .with_context(|| format!("There is no {QEMU} in the PATH"))?;
        let folder = self.folder.join("counting");
        fs::create_dir_all(&folder)?;
        let script = folder.join(QEMU);
        let text = format!(
            "#!/bin/sh\nexec '{}' \"$@\" -icount shift=0,sleep=off\n",
            qemu.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.counting = Some(folder.into());
        Ok(self)
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn with_words(mut self, words: &str) -> Self {
        self.spec.machine.cmdline = format!("{} {words}", self.spec.machine.cmdline);
        self
    }

    /// Runs it until it restarts, with a host that nobody can dial. Gives the time from its start to its end, and what it
    /// printed.
    ///
    /// # Errors
    /// It could not be started, or did not end by itself.
    pub fn run(&self) -> Result<(Duration, String)> {
        self.run_with(Box::new(NoPorts))
    }

    /// The same, with somebody who answers.
    ///
    /// # Errors
    /// It could not be started, or did not end by itself.
    pub fn run_with(&self, ports: Box<dyn HostPorts>) -> Result<(Duration, String)> {
        let (layer, console) = (self.folder.join("layer"), self.folder.join("console"));
        writable::create(&layer, writable::DEFAULT_SIZE, self.spec.auto_remove)?;
        let vsock = VsockConfig { cid: 3, ports };
        let config = vm_config(&self.spec, layer.clone(), File::create(&console)?, vsock);
        let hypervisor: Box<dyn Hypervisor> = match &self.counting {
            Some(path) => Box::new(Qemu::from_directories(path)),
            None => vm::open(self.spec.machine.accelerator)?,
        };
        std::thread::sleep(PAUSE);
        let begin = Instant::now();
        let mut vm = hypervisor.start(config)?;
        wait_until_gone(vm.as_ref())?;
        let failure = vm.wait()?;
        let time = begin.elapsed();
        let printed = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
        if let Some(failed) = failure {
            bail!("{}\n{printed}", failed.what);
        }
        fs::remove_file(layer)?;
        Ok((time, printed))
    }
}

/// What the one container is, as `vmm` has written it down.
fn only_spec(root: &Root) -> Result<ContainerSpec> {
    let containers = root.state().join("containers");
    let container = fs::read_dir(&containers)?
        .flatten()
        .map(|entry| entry.path().join("config.json"))
        .find(|path| path.exists())
        .context("The container has left no record")?;
    state::read(&container)?.context("The container's record has gone")
}

fn wait_until_gone(vm: &dyn Vm) -> Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(vm.gone(), PollFlags::IN)];
    let deadline = Timespec::try_from(end_to_end::DEADLINE)?;
    ensure!(
        poll(&mut fds, Some(&deadline))? == 1,
        "The machine does not restart"
    );
    Ok(())
}

/// A host that nobody can dial.
struct NoPorts;

impl HostPorts for NoPorts {
    fn connect(&mut self, _port: u32) -> Option<UnixStream> {
        None
    }
}
