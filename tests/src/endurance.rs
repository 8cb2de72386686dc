//! Many runs in a row, several at a time, beside a container that runs all along: all alike, and nothing adds up.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Pid;

use crate::{Input, Root, Running, accelerator};

/// What each run does, and what it puts out.
const SCRIPT: &str = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done | md5sum >&2; \
                      echo out; cat /etc/hosts | head -1; exit 3";
const OUTPUT: &str = "out\n127.0.0.1\tlocalhost\n";
const ERRORS: &str = "4f43a83159554ac7a75a02ccc97d84a9  -\n";
const CODE: i32 = 3;

/// Runs before anything is measured: what is kept once is no growth.
const WARM_UP: usize = 16;

/// How often a word about progress is said.
const WORD: Duration = Duration::from_secs(60);

/// How long the last machines may take to be gone.
const TEAR_DOWN: Duration = Duration::from_secs(10);

/// How much more memory the container that runs all along may take in the end, in KiB: half a KiB for each of a thousand
/// runs, with which it has nothing to do.
const GROWTH: i64 = 512;

/// What there is to measure, in the order of [`Figures::names`].
struct Figures([i64; 9]);

impl Figures {
    const fn names() -> [&'static str; 9] {
        [
            "PSS of the supervisor that runs all along, KiB",
            "its descriptors",
            "its threads",
            "mounts",
            "files in /dev/shm",
            "System V shared memory segments",
            "Unix sockets",
            "MemAvailable, MiB",
            "Slab, MiB",
        ]
    }

    fn take(supervisor: Pid) -> Self {
        let process = format!("/proc/{}", supervisor.as_raw_nonzero());
        let lines = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            count(text.lines())
        };
        let entries = |path: &Path| count(std::fs::read_dir(path).into_iter().flatten());
        Self([
            field(&format!("{process}/smaps_rollup"), "Pss:"),
            entries(Path::new(&format!("{process}/fd"))),
            entries(Path::new(&format!("{process}/task"))),
            lines("/proc/self/mountinfo"),
            entries(Path::new("/dev/shm")),
            lines("/proc/sysvipc/shm"),
            lines("/proc/net/unix"),
            field("/proc/meminfo", "MemAvailable:") >> 10,
            field("/proc/meminfo", "Slab:") >> 10,
        ])
    }

    /// What has grown that nothing but a leak of ours makes grow.
    fn leaks(&self, before: &Self) -> Vec<&'static str> {
        let grown = self.0.iter().zip(before.0).map(|(now, then)| now - then);
        // Sockets and memory are those of everybody on the machine.
        let allowed = [GROWTH, 0, 0, 0, 0, 0, i64::MAX, i64::MAX, i64::MAX];
        let leaks = grown.zip(allowed).zip(Self::names());
        leaks
            .filter_map(|((grown, allowed), name)| (grown > allowed).then_some(name))
            .collect()
    }
}

/// The figures before and after.
struct Comparison<'a>(&'a Figures, &'a Figures);

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | before | after |\n|---|---|---|")?;
        for ((name, before), after) in Figures::names().iter().zip(self.0.0).zip(self.1.0) {
            writeln!(f, "| {name} | {before} | {after} |")?;
        }
        Ok(())
    }
}

/// Runs `count` containers, `in_flight` of them at a time, and prints what came of it. Says whether all went well.
///
/// # Panics
/// If the container that is to run all along does not.
#[must_use]
pub fn runs(count: usize, in_flight: usize) -> bool {
    let root = Root::alone();
    let (mut neighbour, supervisor) = start_neighbour(&root);
    let known: BTreeSet<i32> = pids(&root);
    let warm_up = in_turn(&root, WARM_UP, in_flight);
    wait_for_others(&root, &known);
    let before = Figures::take(supervisor);
    let began = Instant::now();
    println!(
        "{count} runs, {in_flight} at a time, under {}",
        accelerator()
    );
    let failed = in_turn(&root, count, in_flight);
    let took = began.elapsed();
    wait_for_others(&root, &known);
    let after = Figures::take(supervisor);
    neighbour.send("end\n");
    neighbour.expect("pong end\n");
    neighbour.end_input();
    neighbour.finish().code(0).stderr("");
    root.expect_nothing_left();
    println!("\n{}", Comparison(&before, &after));
    let leaks = after.leaks(&before);
    println!(
        "{count} runs in {:.0} s, {:.2} s each; {failed} failed; grown: {}",
        took.as_secs_f64(),
        took.as_secs_f64() / f64::from(u32::try_from(count).unwrap_or(u32::MAX)),
        if leaks.is_empty() {
            "nothing".to_owned()
        } else {
            leaks.join(", ")
        }
    );
    warm_up + failed == 0 && leaks.is_empty()
}

/// A container that answers, and its supervisor.
fn start_neighbour(root: &Root) -> (Running, Pid) {
    let script = "while read word; do echo pong $word; done";
    let run = root.run(["--rm", "-i", "-m", "128m", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    run.send("begin\n");
    run.expect("pong begin\n");
    let supervisor = run.helpers().into_iter().find(|process| process.is_vmm());
    let supervisor = supervisor.expect("a supervisor").pid;
    (run, supervisor)
}

/// Runs `count` containers; gives how many did not do what they should.
fn in_turn(root: &Root, count: usize, in_flight: usize) -> usize {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let said = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..in_flight {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(root))).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.elapsed() > WORD {
                        *said = Instant::now();
                        println!(
                            "{number} of {count}, {} failed",
                            failed.load(Ordering::Relaxed)
                        );
                    }
                }
            });
        }
    });
    failed.into_inner()
}

fn run(root: &Root) {
    let arguments = ["--rm", "-m", "128m", "busybox", "sh", "-c", SCRIPT];
    let run = root.run(arguments).finish();
    run.code(CODE).stdout(OUTPUT).stderr(ERRORS);
}

/// Waits until no process is left but those that are `known`.
fn wait_for_others(root: &Root, known: &BTreeSet<i32>) {
    let gone = crate::wait_until(TEAR_DOWN, || pids(root).is_subset(known).then_some(()));
    assert!(gone.is_some(), "left: {:#?}", root.processes());
}

fn pids(root: &Root) -> BTreeSet<i32> {
    let processes = root.processes();
    processes
        .iter()
        .map(|process| process.pid.as_raw_pid())
        .collect()
}

/// The number behind `name` in a file of lines.
fn field(path: &str, name: &str) -> i64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(-1)
}

fn count(things: impl Iterator) -> i64 {
    i64::try_from(things.count()).unwrap_or(i64::MAX)
}
