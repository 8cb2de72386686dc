//! What memory a container takes beside its own, emulated: of its machine, for its PID 1, and on the host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use end_to_end::{DEADLINE, Root, artifact, wait_until};
use host_vmm::vm::Accelerator;

use super::stop;
use crate::{
    Kernel,
    host::{memory_file, share, value},
    sample::Sample,
    table::{Row, Target, Unit},
};

const ROUNDS: usize = 3;

const MIB: f64 = 1048576.0;

/// What the observer waits for.
const PROGRAM: &str = "sleep";

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let observed = initfs_with_observer(root)?;
    let mut all: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        let guest = Guest::of_a_run(root, kernel)?;
        let [vmm, machine] = on_the_host(root, kernel)?;
        let init = resident_init(root, kernel, &observed)?;
        let values = [
            init,
            guest.used,
            guest.unavailable,
            guest.withheld,
            vmm,
            machine,
        ];
        all.iter_mut()
            .zip(values)
            .for_each(|(values, value)| values.push(value));
    }
    let [init, used, unavailable, withheld, vmm, machine] = all.map(Sample::of);
    let row = |what, target, sample| Row::new(what, target, Unit::Mebibytes, sample);
    Ok(vec![
        row("vminitd, resident", Target::AtMost(3.0 * MIB), init),
        row(
            "tcg: guest memory in use at process start",
            Target::AtMost(16.0 * MIB),
            used,
        ),
        row(
            "  with what the kernel keeps free",
            Target::None,
            unavailable,
        ),
        row(
            "tcg: guest memory that was never free",
            Target::None,
            withheld,
        ),
        row(
            "tcg: vmm processes beside QEMU, PSS",
            Target::AtMost(8.0 * MIB),
            vmm,
        ),
        row(
            "tcg: guest memory that the host has filled",
            Target::None,
            machine,
        ),
    ])
}

/// The guest's memory as a container's first process sees it, in bytes.
struct Guest {
    /// What would not come back if somebody wanted it: `MemTotal` without `MemFree` and without what holds files
    /// (`Buffers`, `Cached` but for `Shmem`, `SReclaimable`).
    used: f64,
    /// `MemTotal` without `MemAvailable`: beside the above, what the kernel keeps free for its own needs.
    unavailable: f64,
    /// What is no part of `MemTotal`: the kernel itself, and its table of pages.
    withheld: f64,
}

impl Guest {
    fn of_a_run(root: &Root, kernel: &Kernel) -> Result<Self> {
        let run = kernel
            .run(root, Accelerator::Tcg)
            .args(["--rm", "-m", "1g"]);
        let run = run.args(["busybox", "cat", "/proc/meminfo"]).finish();
        ensure!(run.succeeded(), "{}", run.description());
        let text = run.text();
        let field =
            |name| value(&text, name).with_context(|| format!("There is no {name} in: {text}"));
        let files = field("Buffers")? + field("Cached")? - field("Shmem")? + field("SReclaimable")?;
        let total = field("MemTotal")?;
        Ok(Self {
            used: total - field("MemFree")? - files,
            unavailable: total - field("MemAvailable")?,
            withheld: 1024.0 * MIB - total,
        })
    }
}

/// What a container takes on the host, in bytes: the proportional share of memory (PSS) of all processes of `vmm`, and the
/// pages of the guest's memory that the host has filled.
fn on_the_host(root: &Root, kernel: &Kernel) -> Result<[f64; 2]> {
    let script = format!("echo ready; exec {PROGRAM} 1000");
    let run = kernel.run(root, Accelerator::Tcg).arg("--rm");
    let mut run = run.args(["busybox", "sh", "-c", &script]).start();
    run.expect("ready\n");
    let (mut vmm, mut machine) = (share(run.pid())?, 0.0);
    for process in run.helpers() {
        match process.is_vmm() {
            true => vmm += share(process.pid)?,
            false => machine += memory_file(process.pid)?,
        }
    }
    stop(run)?;
    Ok([vmm, machine])
}

/// Resident memory of a container's PID 1, in bytes.
fn resident_init(root: &Root, kernel: &Kernel, initfs: &Path) -> Result<f64> {
    let words = [
        kernel.cmdline_append.as_deref().unwrap_or_default(),
        "rdinit=/observer",
    ]
    .join(" ");
    let kernel = Kernel {
        cmdline_append: Some(words),
        ..kernel.clone()
    };
    let run = kernel.run(root, Accelerator::Tcg);
    let run = run.args(["--rm", "--initfs"]).arg(initfs);
    let run = run.args(["busybox", PROGRAM, "1000"]).start();
    let resident = wait_until(DEADLINE, || value(&console(root)?, "VmRSS"));
    stop(run)?;
    resident.context("The observer does not say what it sees")
}

/// What the one container's console has shown.
fn console(root: &Root) -> Option<String> {
    let containers = fs::read_dir(root.state().join("containers")).ok()?;
    let log = containers
        .flatten()
        .map(|entry| entry.path().join("console.log"))
        .find(|path| path.exists())?;
    Some(String::from_utf8_lossy(&fs::read(log).ok()?).into_owned())
}

/// The initfs that is booted otherwise, and the observer beside its `/init`.
fn initfs_with_observer(root: &Root) -> Result<PathBuf> {
    let observer = fs::read(artifact("bench/observer", "make bench"))?;
    let mut archive = fs::read(end_to_end::initfs())?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    let entry = Builder::new("observer")
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Regular);
    let mut writer = entry.write(&mut archive, u32::try_from(observer.len())?);
    std::io::Write::write_all(&mut writer, &observer)?;
    writer.finish()?;
    trailer(&mut archive)?;
    let path = root.files().join("observed.cpio");
    fs::write(&path, archive)?;
    Ok(path)
}
