//! How the VM ends. PID 1 never exits: the kernel would panic.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::system::{RebootCommand, reboot};

use crate::{console, sys};

/// Whether this process is the container's child, which may exit.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

/// Ends the VM at once. Kernels without ACPI cannot power off, so every accelerator takes a restart for the
/// end.
pub fn restart() -> ! {
    loop {
        // Fails only without CAP_SYS_BOOT, which PID 1 has.
        let _ = reboot(RebootCommand::Restart);
    }
}

/// Prints `line` and ends the VM.
pub fn give_up(line: &str) -> ! {
    console::say(line);
    restart()
}

/// From here on a panic ends the process, not the VM.
pub fn become_child() {
    IS_CHILD.store(true, Ordering::Relaxed);
}

/// Makes a panic print one line and end the VM.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        console::say(&panic.to_string());
        if IS_CHILD.load(Ordering::Relaxed) {
            sys::exit_child(101);
        }
        restart();
    }));
}
