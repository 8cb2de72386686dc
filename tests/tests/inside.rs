//! What a container sees of the world: its own processes, devices, file systems and network.

use std::time::Duration;

use end_to_end::{Input, Root, accelerator, noise};

#[test]
fn the_main_process_is_the_first() {
    let root = Root::new();
    let script = "echo $$; cat /proc/1/comm; set -- /proc/[0-9]*; echo $*";
    root.sh(script).finish().code(0).stdout("1\nsh\n/proc/1\n");
}

#[test]
fn the_kernel_is_not_the_hosts() {
    let root = Root::new();
    let run = root.run(["--rm", "busybox", "uname", "-r"]).finish();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host's release");
    run.code(0).check(!run.text().is_empty(), "a release");
    assert_ne!(run.text(), host.trim());
}

#[test]
fn ps_shows_the_containers_own_processes_only() {
    let root = Root::new();
    let run = root.sh("sleep 1000 & ps -o pid,args; true").finish();
    let text = run.code(0).text();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    run.check(lines.len() == 4, "a heading, a shell, sleep and ps");
    assert!(lines[1].starts_with("1 sh"), "{text}");
    assert!(lines[2].contains("sleep 1000"), "{text}");
}

#[test]
fn processes_that_lost_their_parent_are_the_main_ones() {
    let root = Root::new();
    let script = "(sleep 60 & echo $!) > /tmp/pid; pid=$(cat /tmp/pid); \
                  awk '/PPid/ { print $2 }' /proc/$pid/status";
    root.sh(script).finish().code(0).stdout("1\n");
}

#[test]
fn devices_are_there() {
    let root = Root::new();
    let script = "for name in null zero full random urandom tty; do \
                    [ -c /dev/$name ] || echo no $name; stat -c '%n %a' /dev/$name; done; \
                  for name in fd stdin stdout stderr ptmx; do readlink /dev/$name; done; \
                  head -c 4 /dev/zero | od -An -tx1; echo x > /dev/null; \
                  echo x > /dev/full; echo out > /dev/stdout; echo err > /dev/stderr";
    let run = root.sh(script).finish();
    let devices = ["null", "zero", "full", "random", "urandom", "tty"];
    let mut expected: String = devices.map(|name| format!("/dev/{name} 666\n")).concat();
    for target in ["fd", "fd/0", "fd/1", "fd/2"] {
        expected += &format!("/proc/self/{target}\n");
    }
    expected += "pts/ptmx\n 00 00 00 00\nout\n";
    run.code(0).stdout(expected);
    assert!(run.error_text().ends_with("\nerr"), "{}", run.description());
    assert!(
        run.error_text().contains("No space left"),
        "{}",
        run.description()
    );
}

#[test]
fn the_machines_own_devices_are_not_there() {
    let root = Root::new();
    let script = "ls /dev | grep -E '^(vd|sd|ubd|vsock|kmsg|mem|kvm)'; true";
    root.sh(script).finish().code(0).stdout("");
}

#[test]
fn a_node_of_ones_own_does_not_open_the_machines_disks() {
    let root = Root::new();
    let script = "for minor in 0 16; do mknod /tmp/disk$minor b 254 $minor; \
                    head -c 1 /tmp/disk$minor > /dev/null 2>&1 && echo read $minor; done; true";
    root.sh(script).finish().code(0).stdout("");
}

#[test]
fn file_systems_are_mounted_as_docker_mounts_them() {
    let root = Root::new();
    let run = root
        .run(["--rm", "busybox", "cat", "/proc/mounts"])
        .finish();
    let text = run.code(0).text();
    for (target, kind, options) in [
        ("/", "overlay", "rw"),
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/sys/fs/cgroup", "cgroup2", "ro,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"),
        ("/proc/sys", "proc", "ro,nosuid,nodev,noexec"),
    ] {
        let found = text.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            (fields.next(), fields.next()) == (Some(target), Some(kind))
                && fields
                    .next()
                    .is_some_and(|found| found.starts_with(options))
        });
        run.check(found, &format!("{kind} on {target} with {options}"));
    }
    // Nothing of PID 1's own tree.
    run.stdout_lacks(" /image ").stdout_lacks(" /writable ");
}

#[test]
fn kernel_settings_cannot_be_changed() {
    let root = Root::new();
    let script = "for file in /proc/sys/kernel/panic /sys/fs/cgroup/cpu.max /sys/kernel/uevent_helper; do \
                    (echo 1 > $file) 2>/dev/null && echo wrote $file; done; \
                  mount -o remount,rw /proc/sys 2>/dev/null && echo mounted; \
                  umount /proc/sys 2>/dev/null && echo unmounted; \
                  reboot -f 2>/dev/null && echo rebooted; echo alive";
    root.sh(script).finish().code(0).stdout("alive\n");
}

#[test]
fn the_cgroup_is_the_containers_and_can_be_read() {
    let root = Root::new();
    let script = "cat /proc/self/cgroup; cd /sys/fs/cgroup; wc -l < cgroup.procs; \
                  for file in memory.max memory.current pids.max cpu.max io.stat cpuset.cpus; do \
                    [ -r $file ] || echo no $file; done";
    // The shell and `wc`. A kernel with one CPU has nothing to choose from.
    let expected = match accelerator().as_str() {
        "um" => "0::/\n2\nno cpuset.cpus\n",
        _ => "0::/\n2\n",
    };
    root.sh(script).finish().code(0).stdout(expected);
}

#[test]
fn loopback_works_and_nothing_else_is_there() {
    let root = Root::new();
    let script = "ping -c 1 -W 5 127.0.0.1 > /dev/null && ping -c 1 -W 5 localhost > /dev/null \
                  && echo answered; ip -o link show up | cut -d: -f2; \
                  echo hello | nc -l -p 80 > /dev/null & sleep 0.3; nc 127.0.0.1 80 < /dev/null; wait";
    root.sh(script)
        .finish()
        .code(0)
        .stdout("answered\n lo\nhello\n");
}

#[test]
fn a_user_may_ping_and_serve_low_ports() {
    let root = Root::new();
    let script = "(echo hello | nc -l -p 80) & sleep 0.3; nc 127.0.0.1 80 < /dev/null; wait";
    let run = root.run(["--rm", "-u", "1000", "busybox", "sh", "-c", script]);
    run.finish().code(0).stdout("hello\n");
}

#[test]
fn the_clock_is_the_hosts() {
    let root = Root::new();
    let now = || {
        #[expect(clippy::disallowed_methods, reason = "it is what is tested")]
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap_or(Duration::ZERO).as_secs()
    };
    let before = now();
    let run = root.run(["--rm", "busybox", "date", "+%s"]).finish();
    let after = now();
    let inside: u64 = run.code(0).text().parse().unwrap_or(0);
    assert!(
        (before..=after).contains(&inside),
        "{before} {inside} {after}"
    );
}

#[test]
fn random_numbers_are_ready_and_differ() {
    let root = Root::new();
    let draw = || {
        let run = root.sh("head -c 16 /dev/random | od -An -tx1").finish();
        run.code(0).text()
    };
    let (first, second) = (draw(), draw());
    assert_eq!(first.len(), 47, "{first}");
    assert_ne!(first, second);
}

#[test]
fn large_files_can_be_written_and_read() {
    let root = Root::new();
    let data = noise(4, 10_000_000);
    let script = "cat > /file && sync && cat /file";
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
    let run = run.input(Input::Bytes(data.clone()));
    run.finish().code(0).stderr("").stdout(data);
}
