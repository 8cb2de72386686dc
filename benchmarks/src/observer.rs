//! `observer`: looks at a machine's PID 1 from beside it, which nothing in a container can.
//!
//! The kernel starts it as PID 1 (`rdinit=/observer`). It leaves a child behind and becomes `/init`. The child waits until
//! a container's program is there, and prints on the console what its `/proc` says of PID 1.

use std::{fs, io, os::unix::process::CommandExt, process::Command, thread::sleep, time::Duration};

use nix::mount::{MsFlags, mount};

/// The name of the container's program.
const PROGRAM: &str = "sleep";

const TICK: Duration = Duration::from_millis(50);

fn main() -> io::Result<()> {
    if std::process::id() != 1 {
        return observe();
    }
    let none = None::<&str>;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    Command::new("/observer").spawn()?;
    Err(Command::new("/init").exec())
}

fn observe() -> io::Result<()> {
    while !runs(PROGRAM)? {
        sleep(TICK);
    }
    // PID 1 has still to say that it is so.
    sleep(10 * TICK);
    println!("{}", fs::read_to_string("/proc/1/status")?);
    Ok(())
}

/// Whether a process has executed `program`.
fn runs(program: &str) -> io::Result<bool> {
    let names = fs::read_dir("/proc")?
        .flatten()
        .map(|entry| entry.path().join("comm"));
    Ok(names
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|name| name.trim_end() == program))
}
