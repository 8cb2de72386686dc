//! What a shell offers when somebody presses the tab key.

use end_to_end::{Root, Running, Terminal, installed, need};

/// What is typed, and what the tab key makes of it.
const COMPLETED: [(&str, &str); 9] = [
    ("vmm ru", "vmm run "),
    ("vmm image lo", "vmm image load "),
    ("vmm run --rm --read", "vmm run --rm --read-only "),
    ("vmm run --rm -e A=1 busy", "vmm run --rm -e A=1 busybox "),
    ("vmm run here:50", "vmm run here:5000/mine:1 "),
    ("vmm run here:", "vmm run here:5000/mine:1 "),
    ("vmm rm gree", "vmm rm greeter "),
    ("vmm ps --format=j", "vmm ps --format=json "),
    ("vmm run --kernel a-fi", "vmm run --kernel a-file "),
];

/// A root with a container, an image with a colon in its name, and a file in the working directory.
fn root() -> Root {
    let root = Root::new();
    let greeter = root.run(["--name", "greeter", "busybox", "true"]);
    greeter.finish().code(0);
    let layout = root.layout(
        "name here:5000/mine:1\ndirectory /bin 755\nfile /bin/busybox 755 /bin/busybox\ncmd sh\n",
    );
    let load = root.vmm(["image", "load"]).arg(layout);
    load.finish().code(0);
    std::fs::write(root.as_ref().join("a-file"), "").expect("a file");
    root
}

/// Has `setup` typed into `shell`, and then everything else.
fn check(root: &Root, shell: &str, flags: &[&str], setup: &str) {
    let terminal = Terminal::new(50, 200);
    let program = root.program(shell).args(flags).env("PS1", "> ");
    let program = program.env("TERM", "dumb").env("PATH", path());
    let mut shell = program.start_in(&terminal);
    shell.expect("> ");
    type_line(&terminal, &mut shell, setup);
    for (typed, completed) in COMPLETED {
        terminal.type_keys(&format!("{typed}\t"));
        shell.expect(completed);
        // Away with the line.
        type_line(&terminal, &mut shell, "\x15");
    }
    terminal.type_keys("exit\r");
    shell.finish().code(0);
}

/// Types a line and waits until the shell is through with it.
fn type_line(terminal: &Terminal, shell: &mut Running, line: &str) {
    terminal.type_keys(&format!("{line}\r echo do''ne\r"));
    shell.expect("done\r\n");
}

/// Where programs are, the command under test before others.
fn path() -> String {
    let vmm = end_to_end::vmm();
    let folder = vmm.parent().expect("the folder of a program");
    let rest = std::env::var("PATH").unwrap_or_default();
    format!("{}:{rest}", folder.display())
}

#[test]
fn bash_completes() {
    let setup = "source <(vmm completion bash)";
    check(&root(), "bash", &["--noprofile", "--norc", "-i"], setup);
}

#[test]
fn zsh_completes() {
    need!(installed("zsh"));
    let setup = "autoload -U compinit; compinit -D; source <(vmm completion zsh)";
    check(&root(), "zsh", &["-f", "-i"], setup);
}

#[test]
fn fish_completes() {
    need!(installed("fish"));
    let root = root();
    for (typed, completed) in COMPLETED {
        // It tells what it would offer: the last word, and behind a tab what that means.
        let script = "source (vmm completion fish | psub); complete -C $argv[1]";
        let fish = root
            .program("fish")
            .args(["--no-config", "-c", script, typed]);
        let fish = fish.env("PATH", path()).finish();
        let word = completed.trim_end().rsplit(' ').next().unwrap_or_default();
        let text = fish.code(0).text();
        let offered = text
            .lines()
            .any(|line| line.split('\t').next() == Some(word));
        fish.check(offered, &format!("{word:?} for {typed:?}"));
    }
}
