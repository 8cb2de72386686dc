//! What programs do inside a container, against the host itself: the same script, run by the same busybox.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use end_to_end::{Root, artifact};
use host_vmm::vm::Accelerator;

use super::ROUNDS;
use crate::{
    Kernel,
    processes::wait_for_all,
    sample::Sample,
    table::{Row, Target, Unit},
};

/// What only computes. A line of its output says what comes next, and when the last has ended.
const COMPUTING: &str = "
    head -c 67108864 /dev/zero >zeros
    echo awk; awk 'BEGIN { for (i = 0; i < 3000000; i++) sum += i % 7 * i; print sum }' >result
    echo md5sum; md5sum zeros >result
    echo end";

/// What asks the kernel for much. Its standard input is a program that does so too.
const ASKING: &str = "
    cat >calls; chmod 755 calls
    echo fork; i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i + 1)); done
    echo write; mkdir small; i=0; while [ $i -lt 2000 ]; do echo $i >small/$i; i=$((i + 1)); done
    echo prepare; mkdir tree; i=0; while [ $i -lt 5000 ]; do echo $i >tree/$i; i=$((i + 1)); done; tar cf tree.tar tree
    echo unpack; mkdir unpacked; tar xf tree.tar -C unpacked
    echo end; ./calls";

/// The lines of the table that come of it: what was done, the step of the script, and how it is shown.
const ASKED: [(&str, &str, Unit); 5] = [
    ("200 fork and exec", "fork", Unit::Milliseconds),
    ("2,000 small files", "write", Unit::Milliseconds),
    ("tar x of 5,000 files", "unpack", Unit::Milliseconds),
    ("clock_gettime", "clock_gettime", Unit::Microseconds),
    ("system call", "getppid", Unit::Microseconds),
];

/// An emulated machine takes several seconds for it.
const ASKING_ROUNDS: usize = 5;

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let host = Host::new(root)?;
    let mut rows = computing(root, kernel, &host)?;
    rows.extend(asking(root, kernel, &host)?);
    Ok(rows)
}

fn computing(root: &Root, kernel: &Kernel, host: &Host) -> Result<Vec<Row>> {
    let (mut awk, mut md5sum) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let inside = Steps::of(container(root, kernel, Accelerator::Um, COMPUTING), None)?;
        let native = Steps::of(host.command(COMPUTING)?, None)?;
        awk.push(native.seconds("awk")? / inside.seconds("awk")?);
        md5sum.push(native.seconds("md5sum")? / inside.seconds("md5sum")?);
    }
    let row = |what, sample| Row::new(what, Target::AtLeast(0.9), Unit::Ratio, Sample::of(sample));
    Ok(vec![
        row("um: speed of awk, of the host's", awk),
        row("um: speed of md5sum, of the host's", md5sum),
    ])
}

fn asking(root: &Root, kernel: &Kernel, host: &Host) -> Result<Vec<Row>> {
    let tool = artifact("bench/calls", "make bench");
    let mut runs = Vec::new();
    for _ in 0..ASKING_ROUNDS {
        let inside = |accelerator| {
            let command = container(root, kernel, accelerator, ASKING);
            Steps::of(command, Some(&tool))
        };
        runs.push([
            inside(Accelerator::Um)?,
            inside(Accelerator::Tcg)?,
            Steps::of(host.command(ASKING)?, Some(&tool))?,
        ]);
    }
    let mut rows = Vec::new();
    for (what, name, unit) in ASKED {
        for (place, index) in [("um", 0), ("tcg", 1), ("the host", 2)] {
            let times = runs.iter().map(|run| run[index].seconds(name));
            let times = Sample::of(times.collect::<Result<_>>()?);
            rows.push(Row::new(
                format!("{place}: {what}"),
                Target::None,
                unit,
                times,
            ));
        }
    }
    Ok(rows)
}

fn container(root: &Root, kernel: &Kernel, accelerator: Accelerator, script: &str) -> Command {
    let run = kernel
        .run(root, accelerator)
        .args(["--rm", "-i", "-w", "/root"]);
    run.args(["busybox", "sh", "-ec", script]).into_command()
}

/// The programs of the container's image, on the host.
struct Host {
    programs: std::path::PathBuf,
    folder: std::path::PathBuf,
}

impl Host {
    fn new(root: &Root) -> Result<Self> {
        let programs = root.files().join("bin");
        std::fs::create_dir(&programs)?;
        let mut install = Command::new("/bin/busybox");
        let status = install.args(["--install", "-s"]).arg(&programs).status()?;
        ensure!(status.success(), "busybox --install ended with {status}");
        Ok(Self {
            programs,
            folder: root.files().join("work"),
        })
    }

    /// In an empty folder.
    fn command(&self, script: &str) -> Result<Command> {
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)?;
        }
        std::fs::create_dir(&self.folder)?;
        let mut command = Command::new("/bin/busybox");
        command.args(["sh", "-ec", script]);
        command.env_clear().env("PATH", &self.programs);
        command.current_dir(&self.folder);
        Ok(command)
    }
}

/// What the steps of a script took.
struct Steps(Vec<(String, f64)>);

impl Steps {
    /// Of a script that prints a line with a step's name as it begins, and one with a name and a number of nanoseconds for
    /// what it has measured itself.
    fn of(mut command: Command, input: Option<&Path>) -> Result<Self> {
        command.stdout(Stdio::piped()).stdin(match input {
            Some(path) => File::open(path)?.into(),
            None => Stdio::null(),
        });
        let mut child = command.spawn()?;
        let output = child.stdout.take().context("There is no pipe")?;
        let (mut steps, mut begun) = (Vec::new(), None::<(String, Instant)>);
        for line in BufReader::new(output).lines() {
            let line = line?;
            let now = Instant::now();
            if let Some((name, begin)) = begun.take() {
                steps.push((name, (now - begin).as_secs_f64()));
            }
            match line.split_once(' ') {
                Some((name, nanoseconds)) => {
                    steps.push((name.to_owned(), nanoseconds.parse::<f64>()? / 1e9));
                }
                None => begun = Some((line, now)),
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "A script ended with {status}");
        wait_for_all()?;
        Ok(Self(steps))
    }

    fn seconds(&self, name: &str) -> Result<f64> {
        let step = self.0.iter().find(|(step, _)| step == name);
        let (_, seconds) = step.with_context(|| format!("The script has not told of {name}"))?;
        Ok(*seconds)
    }
}
