//! `escape NAME`: tries as a program of the guest to reach the kernel below its own; `escape` alone tries everything.
//!
//! Each attempt is a process of its own. What comes of it is said in a line, `NAME: exited N` or `NAME: signal N`. Whatever
//! it is, it has to be the guest's kernel that did it: an attempt exits with 1 if a system call had another kernel's answer.
//!
//! `escape --loop N PATH`: N processes that make system calls without end, which would leave something in PATH.

mod escapes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["--loop", count, path] => escapes::swarm(count, path),
        [only] => escapes::run(Some(only)),
        _ => escapes::run(None),
    }
}
