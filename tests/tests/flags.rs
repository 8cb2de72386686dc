//! The flags of `vmm run` that say what the container's process is, in Docker's meaning.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use end_to_end::Root;

#[test]
fn environment_variables_are_given_by_value_and_by_name() {
    let root = Root::new();
    let script = "echo \"$GIVEN-$PASSED-${MISSING-unset}-$EMPTY-$EQUALS\"";
    let flags = [
        "-e",
        "GIVEN=a b",
        "-e",
        "PASSED",
        "-e",
        "MISSING",
        "--env",
        "EMPTY=",
    ];
    let run = root.run(["--rm"]).args(flags).args(["-e", "EQUALS=x=y"]);
    let run = run.args(["busybox", "sh", "-c", script]);
    let run = run
        .env("PASSED", "from outside")
        .env("NOT_PASSED", "secret");
    run.finish().code(0).stdout("a b-from outside-unset--x=y\n");
}

#[test]
fn nothing_of_the_commands_own_environment_gets_in() {
    let root = Root::new();
    let run = root.run(["--rm", "busybox", "env"]).env("SECRET", "secret");
    let run = run.finish();
    run.code(0).stdout_lacks("SECRET").stdout_lacks("XDG_");
    let text = run.text();
    let mut names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "HOSTNAME", "PATH"]);
    run.stdout_has("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    run.stdout_has("HOME=/root");
}

#[test]
fn an_environment_file_comes_before_flags() {
    let root = Root::new();
    let path = root.files().join("variables");
    let text = "# a comment\n\nFIRST=one\nSECOND=two words # no comment\nPASSED\nMISSING\n";
    std::fs::write(&path, text).expect("a file");
    let run = root
        .run(["--rm", "--env-file"])
        .arg(path)
        .args(["-e", "FIRST=flag"]);
    let script = "echo \"$FIRST|$SECOND|$PASSED|${MISSING-unset}\"";
    let run = run
        .args(["busybox", "sh", "-c", script])
        .env("PASSED", "passed");
    run.finish()
        .code(0)
        .stdout("flag|two words # no comment|passed|unset\n");
}

#[test]
fn bytes_that_are_no_text_survive() {
    let root = Root::new();
    let odd = OsStr::from_bytes(b"\xff\x01\x80 '\"\n\xc3");
    let mut variable = OsString::from("ODD=");
    variable.push(odd);
    let run = root.run(["--rm", "-e"]).arg(variable);
    let run = run
        .args(["busybox", "sh", "-c", "printf %s \"$ODD\" \"$0\""])
        .arg(odd);
    let twice = [odd.as_bytes(), odd.as_bytes()].concat();
    run.finish().code(0).stdout(twice);
}

#[test]
fn many_and_long_arguments_survive() {
    let root = Root::new();
    let long = "x".repeat(100_000);
    let run = root.run(["--rm", "busybox", "sh", "-c", "echo $# ${#0} ${#1} ${#10}"]);
    let run = run.args(std::iter::repeat_n(&long, 15));
    run.finish().code(0).stdout("14 100000 100000 100000\n");
}

#[test]
fn flags_behind_the_image_are_the_commands() {
    let root = Root::new();
    let run = root.run(["--rm", "busybox", "echo", "--rm", "-e", "X=1", "--", "-t"]);
    run.finish().code(0).stdout("--rm -e X=1 -- -t\n");
    // Even the first, which an entrypoint may take.
    let run = root.run([
        "--rm",
        "--entrypoint",
        "echo",
        "busybox",
        "--rm",
        "-e",
        "-h",
    ]);
    run.finish().code(0).stdout("--rm -e -h\n");
    let run = root.run(["--rm", "--entrypoint", "echo", "busybox", "--", "-t"]);
    run.finish().code(0).stdout("-- -t\n");
}

#[test]
fn the_working_directory_is_made_if_it_is_missing() {
    let root = Root::new();
    root.run(["--rm", "busybox", "pwd"])
        .finish()
        .code(0)
        .stdout("/\n");
    let run = root.run(["--rm", "-w", "/some/new/place", "busybox", "pwd"]);
    run.finish().code(0).stdout("/some/new/place\n");
    let run = root.run(["--rm", "--workdir=/etc", "busybox", "pwd"]);
    run.finish().code(0).stdout("/etc\n");
}

#[test]
fn the_user_may_be_a_name_or_numbers() {
    let root = Root::new();
    let id = "id -u; id -g; echo $HOME";
    for (user, expected) in [
        ("1000", "1000\n0\n/\n"),
        ("1000:50", "1000\n50\n/\n"),
        ("nobody", "65534\n65534\n/home\n"),
        ("daemon:users", "1\n100\n/usr/sbin\n"),
    ] {
        let run = root.run(["--rm", "-u", user, "busybox", "sh", "-c", id]);
        run.finish().code(0).stdout(expected);
    }
    let run = root.run(["--rm", "-u", "stranger", "busybox", "true"]);
    run.finish().fails("stranger");
}

#[test]
fn a_user_may_do_no_more_than_a_user() {
    let root = Root::new();
    let script = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status; touch /file; \
                  echo written > /tmp/file && cat /tmp/file";
    let run = root.run(["--rm", "-u", "1000", "busybox", "sh", "-c", script]);
    let run = run.finish();
    let none = "0000000000000000";
    run.code(0).stdout(format!(
        "CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapAmb:\t{none}\nwritten\n"
    ));
    run.stderr("touch: /file: Permission denied\n");
}

#[test]
fn root_may_do_what_dockers_root_may() {
    let root = Root::new();
    // What Docker gives and no more: 00000000a80425fb.
    let run = root.run(["--rm", "busybox", "grep", "CapEff", "/proc/self/status"]);
    run.finish().code(0).stdout("CapEff:\t00000000a80425fb\n");
}

#[test]
fn the_entrypoint_can_be_replaced() {
    let root = Root::new();
    let run = root.run(["--rm", "--entrypoint", "echo", "busybox", "a", "b"]);
    run.finish().code(0).stdout("a b\n");
    // The image's own command goes with its entrypoint.
    let run = root.run(["--rm", "--entrypoint", "echo", "busybox"]);
    run.finish().code(0).stdout("\n");
    let run = root.run(["--rm", "--entrypoint", "/no/such", "busybox"]);
    run.finish().code(127);
}

#[test]
fn without_a_command_the_images_own_runs() {
    let root = Root::new();
    let run = root.run(["--rm", "-i", "busybox"]);
    let run = run.input(end_to_end::Input::Bytes(b"echo from $0; exit 4\n".to_vec()));
    run.finish().code(4).stdout("from sh\n");
}

#[test]
fn the_host_name_is_given_or_the_containers_id() {
    let root = Root::new();
    let script = "hostname; cat /etc/hostname; uname -n; echo $HOSTNAME; grep -c tester /etc/hosts";
    for flag in ["-h", "--hostname"] {
        let run = root.run(["--rm", flag, "tester", "busybox", "sh", "-c", script]);
        let expected = "tester\n".repeat(4) + "1\n";
        run.finish().code(0).stdout(expected);
    }
    let run = root.run(["busybox", "hostname"]).finish();
    let containers = root.containers();
    let id = containers[0]["ID"].as_str().unwrap_or_default();
    run.code(0).stdout(format!("{}\n", &id[..12]));
}

#[test]
fn a_read_only_root_takes_no_writes() {
    let root = Root::new();
    let script = "touch /file; touch /etc/hosts; echo x > /dev/shm/x && cat /dev/shm/x; \
                  echo y > /scratch/y && cat /scratch/y";
    let run = root.run(["--rm", "--read-only", "--tmpfs", "/scratch"]);
    let run = run.args(["busybox", "sh", "-c", script]).finish();
    run.code(0)
        .stdout("x\ny\n")
        .stderr("touch: /file: Read-only file system\ntouch: /etc/hosts: Read-only file system\n");
}

#[test]
fn a_tmpfs_has_the_options_that_it_was_given() {
    let root = Root::new();
    let script = "grep -E ' /(one|two) ' /proc/mounts; stat -c %a /one /two; \
                  head -c 2000000 /dev/zero > /one/file 2>/dev/null || wc -c < /one/file";
    let run = root.run([
        "--rm",
        "--tmpfs",
        "/one:size=1m,mode=0700",
        "--tmpfs",
        "/two:exec",
    ]);
    let run = run.args(["busybox", "sh", "-c", script]).finish();
    let text = run.code(0).text();
    let lines: Vec<&str> = text.lines().collect();
    run.check(lines.len() == 5, "two mounts, two modes and a size");
    for (line, parts) in [
        (
            lines[0],
            ["tmpfs /one ", "noexec", "size=1024k", "mode=700"],
        ),
        (lines[1], ["tmpfs /two ", "nosuid", "nodev", "rw"]),
    ] {
        for part in parts {
            run.check(line.contains(part), &format!("{part:?} in {line:?}"));
        }
    }
    run.check(!lines[1].contains("noexec"), "/two to take programs");
    assert_eq!(lines[2..], ["700", "1777", "1048576"]);
}
