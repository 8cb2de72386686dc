//! PID 1 of every VM.
//!
//! It dials the host, is told which one container to run, runs it, reports how that ended, and ends the VM. It
//! knows nothing of images, registries or command lines: the host has resolved all that.
//!
//! One thread, one loop ([`events`]), no timer: everything happens because a descriptor says so.

// PID 1 is started without the descriptors 0 to 2 if the initfs has no console, and `std`'s own start-up would
// abort then. The test harness has a `main` of its own.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]

mod cgroup;
mod clock;
mod console;
mod container;
mod control;
mod devices;
mod end;
mod events;
mod execute;
mod failure;
mod host;
mod relay;
mod root;
mod signal;
mod stdio;
mod sys;
mod system;
mod user;

use agent_protocol::{Boot, GuestFrame, Stage};

use crate::{
    cgroup::Cgroup,
    container::Child,
    control::{Control, Lost},
    events::{Container, Loop},
    failure::{During, Failure},
    root::MountedRoot,
    stdio::Dialed,
};

/// The C library's entry into this program.
// SAFETY: there is one `main`, with the signature that the C library calls it by.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let init_ns = clock::monotonic_ns();
    console::open_early();
    end::catch_panics();
    match live(init_ns) {
        Ok(()) => end::restart(),
        Err(lost) => end::give_up(&lost.to_string()),
    }
}

/// From the first word with the host to the last.
fn live(init_ns: u64) -> Result<(), Lost> {
    let signals = events::take_over_signals().map_err(|error| Lost::Io("prepare", error))?;
    let mut control = Control::dial()?;
    // The host can hear of a failure only once it has sent its Boot.
    let mut system = system::leave_initramfs();
    control.hello(init_ns)?;
    system = system.and_then(|()| system::mount_own());
    let boot = control.receive_boot()?;
    match system.and_then(|()| start(&boot)) {
        Ok(container) => {
            drop(boot);
            Loop::new(control, signals, container)
                .map_err(|error| Lost::Io("watch", error))?
                .run()
        }
        Err(failure) => control.say_farewell(&GuestFrame::Error(failure.into())),
    }
}

/// Makes everything around the container's process, and then the process.
fn start(boot: &Boot) -> Result<Container, Failure> {
    let streams = Dialed::dial(&boot.process.stdio)?;
    system::set_up(boot)?;
    let root = MountedRoot::mount(&boot.root)?;
    root::write_files(boot)?;
    let cgroup = Cgroup::create().during(Stage::System, "the container's cgroup")?;
    devices::restrict(&cgroup).during(
        Stage::System,
        "the filter of devices (the kernel needs CONFIG_CGROUP_BPF)",
    )?;
    if let Some(milli) = boot.cpu_limit_milli {
        cgroup
            .limit_cpu(milli)
            .during(Stage::System, "the limit on CPU time")?;
    }
    let connected = streams.connect()?;
    let child = Child::start(boot, connected.streams, &cgroup)?;
    Ok(Container {
        child,
        cgroup,
        root,
        input: connected.input,
        output: connected.output,
        terminal: connected.terminal,
    })
}
