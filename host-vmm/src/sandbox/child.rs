//! What the confined process does before it is its program. It runs on a copy of a process that may have had several
//! threads, so it makes system calls only and allocates nothing.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Signal, set_parent_process_death_signal},
    thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use super::{EMPTY, Namespaces, filter, landlock, limits, namespaces};

/// What a child failed at: nothing of its program has run then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Identity,
    Descriptors,
    Root,
    Capabilities,
    Limits,
    Landlock,
    Filter,
    Execute,
}

/// What the child needs to know.
pub struct Child<'a> {
    pub program: RawFd,
    /// Ends with a null pointer.
    pub arguments: &'a [*const libc::c_char],
    pub inherited: &'a [RawFd],
    pub input: RawFd,
    pub output: RawFd,
    pub landlock: Option<RawFd>,
    pub filter: &'a filter::Program,
    pub limits: [limits::Limit; limits::COUNT],
    /// A socket that takes messages: the descriptor that tells of forbidden calls, with one byte; and a [`report`] if this
    /// process cannot be confined. It is closed when the program is executed.
    pub report: RawFd,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Identity,
        Self::Descriptors,
        Self::Root,
        Self::Capabilities,
        Self::Limits,
        Self::Landlock,
        Self::Filter,
        Self::Execute,
    ];

    /// For an error: "Cannot …".
    pub fn doing(self) -> &'static str {
        match self {
            Self::Identity => "become nobody",
            Self::Descriptors => "arrange descriptors",
            Self::Root => "enter an empty root",
            Self::Capabilities => "drop capabilities",
            Self::Limits => "limit resources",
            Self::Landlock => "enter the Landlock domain",
            Self::Filter => "enter the filter of system calls",
            Self::Execute => "execute the program",
        }
    }
}

/// Length of a report in bytes.
pub const REPORT_LEN: usize = 5;

/// A failed step as the child tells it.
fn report(step: Step, error: &io::Error) -> [u8; REPORT_LEN] {
    let mut bytes = [0; REPORT_LEN];
    bytes[0] = step as u8;
    bytes[1..].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_le_bytes());
    bytes
}

/// What a report says.
pub fn read_report(bytes: [u8; REPORT_LEN]) -> (Step, io::Error) {
    let [step, a, b, c, d] = bytes;
    let step = Step::ALL.get(usize::from(step)).copied();
    let error = io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]));
    (step.unwrap_or(Step::Execute), error)
}

impl Child<'_> {
    /// Confines this process and executes its program. If that cannot be done it says why, and gives its exit status.
    pub fn run(&self, namespaces: Namespaces, told: bool) -> i32 {
        let (step, error) = match told {
            true => self.confine(namespaces),
            false => (Step::Identity, io::Error::from_raw_os_error(libc::EPERM)),
        };
        // SAFETY: the descriptor is the parent's, of which this process has a copy.
        let fd = unsafe { BorrowedFd::borrow_raw(self.report) };
        let _ = rustix::io::write(fd, &report(step, &error));
        1
    }

    /// Returns only if a step failed.
    fn confine(&self, namespaces: Namespaces) -> (Step, io::Error) {
        let mut step = Step::Descriptors;
        let error = self.try_confine(namespaces, &mut step).err();
        (step, error.unwrap_or_else(|| io::ErrorKind::Other.into()))
    }

    fn try_confine(&self, namespaces: Namespaces, step: &mut Step) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        allow_signals();
        self.arrange_descriptors()?;
        if namespaces == Namespaces::Own {
            *step = Step::Identity;
            namespaces::become_nobody()?;
            // Becoming somebody else undoes it.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            *step = Step::Root;
            namespaces::enter_empty_root()?;
        }
        *step = Step::Capabilities;
        drop_capabilities()?;
        *step = Step::Limits;
        limits::enter(&self.limits)?;
        set_no_new_privs(true)?;
        *step = Step::Landlock;
        if let Some(ruleset) = self.landlock {
            landlock::enter(ruleset)?;
        }
        *step = Step::Filter;
        if let Some(listener) = filter::enter(self.filter)? {
            self.hand_over(&listener)?;
        }
        *step = Step::Execute;
        Err(self.execute())
    }

    /// Sends the descriptor that tells of forbidden calls. Ours is closed when the program is executed.
    fn hand_over(&self, listener: &OwnedFd) -> io::Result<()> {
        // SAFETY: the descriptor is the parent's, of which this process has a copy.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        let descriptors = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let byte = [IoSlice::new(&[0])];
        sendmsg(report, &byte, &mut ancillary, SendFlags::empty())?;
        Ok(())
    }

    /// Returns only if it failed.
    fn execute(&self) -> io::Error {
        let environment = [std::ptr::null::<libc::c_char>()];
        // SAFETY: both lists end with a null pointer, and their texts live in the parent's memory, of which this is a
        // copy.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                EMPTY.as_ptr(),
                self.arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }

    /// Leaves the program its standard descriptors and what it was given.
    fn arrange_descriptors(&self) -> io::Result<()> {
        let standard = [
            (self.input, libc::STDIN_FILENO),
            (self.output, libc::STDOUT_FILENO),
            (self.output, libc::STDERR_FILENO),
        ];
        // SAFETY: the numbers are those of descriptors that the parent has open; what is behind the standard ones is not
        // ours alone.
        unsafe {
            for (from, to) in standard {
                if libc::dup2(from, to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let marked = libc::syscall(
                libc::SYS_close_range,
                libc::STDERR_FILENO + 1,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            if marked != 0 {
                return Err(io::Error::last_os_error());
            }
            for &number in self.inherited {
                fcntl_setfd(BorrowedFd::borrow_raw(number), FdFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// A signal that is ignored or blocked here would be so in the program.
fn allow_signals() {
    // SAFETY: the set is ours, and made before it is used; the calls keep no pointer to it.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn drop_capabilities() -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more; or we have no right to, and nothing to lose then.
            Err(_) => break,
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, none)?)
}
