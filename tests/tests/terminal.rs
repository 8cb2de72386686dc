//! `-t`: a terminal in the container for the one outside.

use std::{process::Command, time::Duration};

use end_to_end::{DEADLINE, Root, Signal, Terminal, installed, need, wait_until};

#[test]
fn a_shell_at_a_terminal() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let before = terminal.modes();
    let run = root.run(["--rm", "-it", "busybox", "sh"]);
    let mut shell = run.start_in(&terminal);
    shell.expect("# ");
    assert!(terminal.modes().are_raw());

    terminal.type_keys("tty; stty size\r");
    shell.expect("/dev/pts/");
    shell.expect("\r\n24 80\r\n");
    shell.expect("# ");

    // What is typed is not what is awaited.
    terminal.type_keys("sh -c 'echo be\"\"gun; exec sleep 1000'\r");
    shell.expect("begun\r\n");
    terminal.type_keys("\x03");
    shell.expect("# ");
    terminal.type_keys("echo code $?\r");
    shell.expect("code 130\r\n");

    terminal.resize(40, 120);
    terminal.type_keys("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo resi\"\"zed\r");
    shell.expect("resized\r\n");

    terminal.type_keys("exit 3\r");
    shell.finish().code(3);
    assert_eq!(terminal.modes(), before);
    assert!(terminal.blocks());
}

#[test]
fn a_resize_is_announced_to_the_program() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done";
    let run = root.run(["--rm", "-it", "busybox", "sh", "-c", script]);
    let mut run = run.start_in(&terminal);
    run.expect("ready\r\n");
    terminal.resize(50, 132);
    run.expect("50 132\r\n");
    run.finish().code(0);
}

#[test]
fn both_outputs_are_the_terminal() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all three >&2; tty; ls -l /dev/console";
    let run = root.run(["--rm", "-it", "busybox", "sh", "-c", script]);
    let mut run = run.start_in(&terminal);
    run.expect("all three\r\n");
    run.expect("/dev/pts/");
    run.expect("/dev/console");
    run.finish().code(0);
}

#[test]
fn the_end_of_typing_is_ctrl_d() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let run = root.run(["--rm", "-it", "busybox", "cat"]);
    let mut run = run.start_in(&terminal);
    // The echo of the terminal inside, and then what `cat` has read.
    terminal.type_keys("hello\r");
    run.expect("hello\r\nhello\r\n");
    terminal.type_keys("\x04");
    run.finish().code(0);
}

#[test]
fn a_terminal_without_standard_input_ignores_what_is_typed() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let run = root.run([
        "--rm",
        "-t",
        "busybox",
        "sh",
        "-c",
        "[ -t 1 ] && echo term\"\"inal",
    ]);
    let mut run = run.start_in(&terminal);
    run.expect("terminal\r\n");
    run.finish().code(0);
}

#[test]
fn ctrl_c_ends_a_container_that_has_a_terminal_and_no_input() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let before = terminal.modes();
    // PID 1, which asks for no signal, is to end: `tail` shows that it is there, and goes on.
    let run = root.run(["--rm", "-t", "busybox", "tail", "-f", "/etc/passwd"]);
    let mut run = run.start_in(&terminal);
    run.expect("root:");
    terminal.type_keys("\x03");
    run.finish().code(130);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let before = terminal.modes();
    let script = "echo ready; exec sleep 1000";
    let run = root.run(["--rm", "-it", "busybox", "sh", "-c", script]);
    let mut run = run.start_in(&terminal);
    run.expect("ready\r\n");
    assert!(terminal.modes().are_raw());
    run.signal(Signal::TERM);
    run.finish().code(143);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_failure_leaves_the_terminal_as_it_was() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let before = terminal.modes();
    for (arguments, code) in [
        (["--rm", "-it", "no-such-image", "sh"], 125),
        (["--rm", "-it", "busybox", "no-such-command"], 127),
    ] {
        let mut run = root.run(arguments).start_in(&terminal);
        run.expect("vmm: ");
        run.finish().code(code);
        assert_eq!(terminal.modes(), before);
    }
}

#[test]
fn a_dead_supervisor_leaves_the_terminal_as_it_was() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let before = terminal.modes();
    let script = "echo ready; exec sleep 1000";
    let run = root.run(["--rm", "-it", "busybox", "sh", "-c", script]);
    let mut run = run.start_in(&terminal);
    run.expect("ready\r\n");
    let supervisor = run.helpers().into_iter().find(|process| process.is_vmm());
    supervisor
        .expect("a process of vmm for the container")
        .kill();
    run.finish().code(125);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_shell_in_tmux() {
    need!(installed("tmux"));
    let root = Root::new();
    let tmux = Tmux(root.files().join("tmux").display().to_string());
    let run = root.run(["--rm", "-it", "busybox", "sh"]).shell_line();
    tmux.command(&[
        "-f",
        "/dev/null",
        "new-session",
        "-d",
        "-x",
        "80",
        "-y",
        "24",
        "sh",
    ]);
    tmux.keys(&format!("{run}; echo code $?"));
    tmux.wait_for("/ #");
    tmux.keys("stty size");
    tmux.wait_for("24 80");
    tmux.command(&["resize-window", "-x", "100", "-y", "30"]);
    tmux.keys("clear; stty size");
    tmux.wait_for("30 100");
    tmux.keys("sleep 1000");
    tmux.wait_for("sleep 1000");
    tmux.command(&["send-keys", "C-c"]);
    tmux.keys("exit 3");
    tmux.wait_for("code 3");
}

/// A tmux server of a test's own, by its socket.
struct Tmux(String);

impl Tmux {
    fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        let output = command.args(["-S", &self.0]).args(arguments).output();
        let output = output.expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line.
    fn keys(&self, line: &str) {
        self.command(&["send-keys", "-l", line]);
        self.command(&["send-keys", "Enter"]);
    }

    /// Waits until `text` is on the screen.
    fn wait_for(&self, text: &str) {
        let screen = || self.command(&["capture-pane", "-p"]);
        let found = wait_until(DEADLINE, || {
            std::thread::sleep(Duration::from_millis(100));
            screen().contains(text).then_some(())
        });
        assert!(found.is_some(), "expected {text:?} on\n{}", screen());
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.command(&["kill-server"]);
    }
}
