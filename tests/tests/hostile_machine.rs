//! A kernel that means its machine ill, and does whatever a processor can (`evil-machine`), gets nothing by it but its own end.
//! What whoever comes out of the machine would find is looked at by `kvm_walls`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use end_to_end::{Finished, Process, Root, Running, Signal, Vmm, accelerator, wait_until};

/// Only this kind of machine has these walls.
fn is_kvm() -> Result<(), String> {
    match accelerator().as_str() {
        "kvm" => Ok(()),
        other => Err(format!("{other} has other walls")),
    }
}

/// Accesses to each device, of each kind of attack. `VMM_TEST_HOSTILE` says how many.
fn count() -> u64 {
    let count = std::env::var("VMM_TEST_HOSTILE").ok();
    count.and_then(|count| count.parse().ok()).unwrap_or(1000)
}

/// What chance has brought forth is to be had again: `VMM_TEST_SEED`.
fn seed() -> u64 {
    let seed = std::env::var("VMM_TEST_SEED").ok();
    seed.and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::process::id().into())
}

/// The rest of `vmm run`, with the evil machine, which does `attack`.
fn evil(run: Vmm, attack: &str) -> Vmm {
    let kernel = end_to_end::artifact("test/guest-tools/evil-machine", "make build");
    let words = format!("evil={attack} seed={} count={}", seed(), count());
    run.args(["--rm", "-m", "128m", "--cmdline-append", &words])
        .arg("--kernel")
        .arg(kernel)
        .args(["busybox", "true"])
}

fn attack(root: &Root, flags: &[&str], attack: &str) -> Finished {
    // Some hundred accesses in a second, to each of five devices or more, of three kinds.
    let patience = end_to_end::DEADLINE + Duration::from_secs(count() / 20);
    let start = patience.as_secs().to_string();
    let run = root.run(["--start-timeout", &start]).args(flags);
    evil(run, attack).start().finish_within(patience)
}

/// The machine's process of a run, once it is there.
fn machine(run: &Running) -> Process {
    let found = wait_until(end_to_end::DEADLINE, || {
        let helpers = run.helpers();
        helpers.into_iter().find(|helper| !helper.is_vmm())
    });
    found.expect("a machine's process")
}

/// Ends a run that would go on.
fn end(run: Running) {
    run.signal(Signal::TERM);
    run.finish_within(Duration::from_secs(20)).code(143);
}

#[test]
fn a_kernel_does_its_worst_and_nothing_comes_of_it() {
    end_to_end::need!(is_kvm());
    let root = Root::alone();
    for (name, flags) in [
        ("registers", &[][..]),
        ("queues", &[]),
        ("chains", &[]),
        ("ports", &[]),
        ("memory", &[]),
        ("hypercalls", &[]),
        ("everything", &["--cpus", "2"]),
        ("together", &["--cpus", "2"]),
    ] {
        let run = attack(&root, flags, name);
        // It has come to its own end, which was a reset.
        run.fails("The machine ended before the guest's init came up")
            .complains(&format!("    {name}: done\n"))
            .stdout("");
        let error = run.error_text();
        let counts: Vec<u64> = error
            .lines()
            .filter_map(|line| {
                line.split_once(" of kind ")?
                    .1
                    .split(' ')
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .collect();
        let expected = ["registers", "queues", "chains", "everything"].contains(&name);
        run.check(
            !expected || (counts.len() >= 3 && counts.iter().all(|each| *each >= count())),
            "so many accesses to each device",
        );
        println!("{error}");
    }
    root.sh("echo alive").finish().code(0).stdout("alive\n");
    root.expect_nothing_left();
}

#[test]
fn registers_of_processors_are_the_machines_end_at_most() {
    end_to_end::need!(is_kvm());
    let root = Root::alone();
    // What they stand for may be what the kernel itself needs: then it breaks down, or goes on for ever.
    for name in ["msrs", "interrupts"] {
        for cpus in ["1", "2"] {
            let run = evil(root.run(["--cpus", cpus]), name).start();
            let machine = machine(&run);
            let ended = wait_until(Duration::from_secs(30), || {
                (!Path::new(&format!("/proc/{}", machine.pid.as_raw_pid())).exists()).then_some(())
            });
            if ended.is_none() {
                end(run);
                continue;
            }
            let run = run.finish_within(end_to_end::DEADLINE);
            run.fails("The machine ended before the guest's init came up");
            let error = run.error_text();
            run.check(!error.contains("signal"), "no signal");
        }
    }
    root.sh("echo alive").finish().code(0).stdout("alive\n");
    root.expect_nothing_left();
}

#[test]
fn however_a_machine_ends_there_is_one_message() {
    end_to_end::need!(is_kvm());
    let root = Root::new();
    for (name, message) in [
        ("triple-fault", "broke down (a triple fault)"),
        ("no-memory-to-execute", "cannot execute an instruction"),
        ("no-such-instruction", "cannot execute an instruction"),
    ] {
        attack(&root, &[], name).fails(message).stdout("");
    }
    root.expect_nothing_left();
}

#[test]
fn a_machine_that_does_nothing_or_too_much_can_be_ended() {
    end_to_end::need!(is_kvm());
    let root = Root::alone();
    for name in [
        "halt",
        "spin",
        "kicks",
        "resets",
        "console",
        "console-line",
        "interrupt-storm",
    ] {
        let run = evil(root.run(["--cpus", "2"]), name).start();
        machine(&run);
        std::thread::sleep(Duration::from_secs(1));
        root.sh("echo alive").finish().code(0).stdout("alive\n");
        end(run);
    }
    root.expect_nothing_left();
}

#[test]
fn a_machine_does_not_outlive_its_supervisor() {
    end_to_end::need!(is_kvm());
    let root = Root::new();
    for name in ["spin", "halt"] {
        let run = evil(root.run([""; 0]), name).start();
        let machine = machine(&run);
        let mut supervisors = run.helpers();
        supervisors.retain(Process::is_vmm);
        supervisors.iter().for_each(Process::kill);
        let path = PathBuf::from(format!("/proc/{}", machine.pid.as_raw_pid()));
        let gone = wait_until(Duration::from_secs(10), || (!path.exists()).then_some(()));
        machine.kill();
        assert!(gone.is_some(), "{name}: {machine}");
        drop(run);
    }
}
