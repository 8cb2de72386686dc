//! Failpoints: a test holds this program at a named phase of a run, and does to it there what bad luck would do.
//!
//! They exist with the feature `failpoints` alone, which no release is built with: there, [`reach`] is nothing, and
//! `scripts/lint` looks into the program for it. With the feature, nothing happens as long as `VMM_FAILPOINTS` is not set.
//! It names a directory of sockets, one for each phase to be held at. Whoever reaches a phase connects to its socket,
//! says its process id, and goes on when that connection is closed.

/// The phase called `name` is reached.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_name: &str) {}

/// The phase called `name` is reached: waits here if a test wants that.
#[cfg(feature = "failpoints")]
pub fn reach(name: &str) {
    if let Some(sockets) = std::env::var_os("VMM_FAILPOINTS") {
        held::at(&std::path::Path::new(&sockets).join(name));
    }
}

/// What a machine's process is to try at the place called `name`, which it may not: a system call. Only where a test wants
/// that, by `VMM_MISBEHAVE=NAME`, which whoever starts the process hands down as its last argument: its environment is empty.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn misbehave(_name: &str, _call: libc::c_long) {}

/// The same, where a test may want it.
#[cfg(feature = "failpoints")]
pub fn misbehave(name: &str, call: libc::c_long) {
    if std::env::args_os()
        .nth(3)
        .is_some_and(|wanted| wanted == name)
    {
        // SAFETY: without arguments none of the calls that are tried comes to anything, if it is made at all.
        unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
    }
}

/// The last argument of a machine's process.
#[must_use]
pub fn misbehaviour() -> Option<std::ffi::CString> {
    #[cfg(feature = "failpoints")]
    {
        let name = std::env::var("VMM_MISBEHAVE").ok()?;
        std::ffi::CString::new(name).ok()
    }
    #[cfg(not(feature = "failpoints"))]
    None
}

/// A machine that its guest has taken over: the guest writes to ports of its own what system calls the machine's threads are
/// to make, as who has found a way into them would.
///
/// To the first port, 4 bytes: an argument, of which the last six count. To the second the number of a call, which the
/// processor's thread makes; to the third one that the devices' thread makes. What came of it is said on standard output.
#[cfg(feature = "failpoints")]
pub mod taken_over {
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    };

    const ARGUMENT: u16 = 0x5e00;
    const PROCESSOR: u16 = 0x5e04;
    const DEVICES: u16 = 0x5e08;

    static ARGUMENTS: Mutex<[i64; 6]> = Mutex::new([0; 6]);
    static ASKED: AtomicI64 = AtomicI64::new(-1);

    /// The guest writes to a port. Whether the devices' thread has to look.
    pub fn port(port: u16, data: &[u8]) -> bool {
        let Ok(value) = data.try_into().map(i32::from_le_bytes) else {
            return false;
        };
        match port {
            ARGUMENT => {
                let mut arguments = ARGUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
                arguments.rotate_left(1);
                arguments[5] = value.into();
            }
            PROCESSOR => call(value.into()),
            DEVICES => ASKED.store(value.into(), Ordering::Release),
            _ => {}
        }
        port == DEVICES
    }

    /// Where the devices' thread looks.
    pub fn devices() {
        let number = ASKED.swap(-1, Ordering::AcqRel);
        if number >= 0 {
            call(number);
        }
    }

    fn call(number: i64) {
        let arguments = ARGUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
        let [a, b, c, d, e, f] = *arguments;
        drop(arguments);
        // SAFETY: none. It is what somebody does who has this process.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        let error = std::io::Error::last_os_error().raw_os_error();
        let result = if result < 0 {
            -i64::from(error.unwrap_or(0))
        } else {
            result
        };
        println!("call {number}: {result}");
    }
}

#[cfg(feature = "failpoints")]
mod held {
    use std::{
        io::{self, Read, Write},
        os::unix::net::UnixStream,
        path::Path,
    };

    /// Waits until whoever listens at `socket` lets us go.
    pub fn at(socket: &Path) {
        // Nobody wants us to wait here.
        let Ok(mut stream) = UnixStream::connect(socket) else {
            return;
        };
        let _ = writeln!(stream, "{}", std::process::id());
        loop {
            match stream.read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}
