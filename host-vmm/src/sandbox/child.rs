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

use super::{
    EMPTY, Namespaces, Sandbox, filter, landlock,
    layers::{Layer, is_forbidden},
    limits, namespaces,
};

/// What a child does one after the other. If it fails at one, nothing of its program has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Descriptors,
    Identity,
    Root,
    Capabilities,
    Limits,
    Landlock,
    Filter,
    Execute,
}

/// What the child needs to know.
pub struct Child<'a> {
    /// What it executes; without it nothing is tried but the layers.
    pub program: Option<RawFd>,
    /// Ends with a null pointer.
    pub arguments: &'a [*const libc::c_char],
    pub inherited: &'a [RawFd],
    pub input: RawFd,
    pub output: RawFd,
    pub landlock: Option<RawFd>,
    pub filter: &'a filter::Program,
    /// For who is under a guard.
    pub session: &'a seccompiler::BpfProgram,
    pub limits: [limits::Limit; limits::COUNT],
    pub sandbox: Sandbox,
    /// Whether we are root.
    pub is_root: bool,
    /// A socket that takes messages: the descriptor that tells of forbidden calls, with one byte; and a [`report`] for each
    /// step that could not be done. It is closed when the program is executed.
    pub report: RawFd,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Descriptors,
        Self::Identity,
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
            Self::Descriptors => "arrange descriptors",
            Self::Identity => "become nobody",
            Self::Root => "enter an empty root",
            Self::Capabilities => "drop capabilities",
            Self::Limits => "limit resources",
            Self::Landlock => "enter the Landlock domain",
            Self::Filter => "enter the filter of system calls",
            Self::Execute => "execute the program",
        }
    }

    /// The layer that the step puts on, if a host may not permit it.
    pub fn layer(self) -> Option<Layer> {
        match self {
            Self::Descriptors | Self::Execute => None,
            Self::Identity => Some(Layer::User),
            Self::Root => Some(Layer::Root),
            Self::Capabilities => Some(Layer::Privileges),
            Self::Limits => Some(Layer::Limits),
            Self::Landlock => Some(Layer::Landlock),
            Self::Filter => Some(Layer::Filter),
        }
    }
}

/// Length of a report in bytes.
pub const REPORT_LEN: usize = 6;

/// What the child says of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub step: Step,
    /// The child went on without it.
    pub went_on: bool,
    pub errno: i32,
}

impl Report {
    fn to_bytes(self) -> [u8; REPORT_LEN] {
        let mut bytes = [self.step as u8, u8::from(self.went_on), 0, 0, 0, 0];
        bytes[2..].copy_from_slice(&self.errno.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; REPORT_LEN]) -> Self {
        let [step, went_on, a, b, c, d] = bytes;
        let step = Step::ALL.get(usize::from(step)).copied();
        Self {
            step: step.unwrap_or(Step::Execute),
            went_on: went_on == 1,
            errno: i32::from_le_bytes([a, b, c, d]),
        }
    }
}

impl Child<'_> {
    /// Confines this process and executes its program. If that cannot be done it says why, and gives its exit status.
    pub fn run(&self, namespaces: Namespaces) -> i32 {
        let mut step = Step::Descriptors;
        match self.confine(namespaces, &mut step) {
            Ok(()) => 0,
            Err(error) => {
                self.report(step, false, &error);
                1
            }
        }
    }

    /// Returns only if a step failed, or if there is no program.
    fn confine(&self, namespaces: Namespaces, step: &mut Step) -> io::Result<()> {
        let mut attempt = |what: Step, result: io::Result<()>| {
            *step = what;
            self.settle(what, result)
        };
        let apart = namespaces == Namespaces::Own;
        attempt(Step::Descriptors, self.begin())?;
        // While there is a right to.
        drop_bounding_set();
        if apart {
            attempt(Step::Identity, namespaces::become_nobody())?;
        } else if self.is_root {
            attempt(Step::Identity, namespaces::leave_root())?;
        }
        // Becoming somebody else undoes it.
        attempt(Step::Identity, die_with_parent())?;
        if apart {
            attempt(Step::Root, namespaces::enter_empty_root())?;
        }
        attempt(Step::Capabilities, drop_capabilities())?;
        attempt(Step::Limits, limits::enter(&self.limits))?;
        if let Some(ruleset) = self.landlock {
            attempt(Step::Landlock, landlock::enter(ruleset))?;
        }
        attempt(Step::Filter, self.enter_filter(apart))?;
        match self.program {
            Some(program) => attempt(Step::Execute, self.execute(program)),
            None => Ok(()),
        }
    }

    /// Whether a step that could not be done is no reason not to go on: the host does not permit it, and it is no part of
    /// what everything has that runs.
    fn settle(&self, step: Step, result: io::Result<()>) -> io::Result<()> {
        let Err(error) = result else {
            return Ok(());
        };
        let can_do_without = |layer: Layer| !layer.is_minimum() || self.sandbox == Sandbox::Weak;
        if step.layer().is_none_or(|layer| !can_do_without(layer)) || !is_forbidden(&error) {
            return Err(error);
        }
        self.report(step, true, &error);
        Ok(())
    }

    fn report(&self, step: Step, went_on: bool, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let report = Report {
            step,
            went_on,
            errno,
        };
        // SAFETY: the descriptor is the parent's, of which this process has a copy.
        let fd = unsafe { BorrowedFd::borrow_raw(self.report) };
        let _ = rustix::io::write(fd, &report.to_bytes());
    }

    fn begin(&self) -> io::Result<()> {
        die_with_parent()?;
        allow_signals();
        self.arrange_descriptors()
    }

    fn enter_filter(&self, apart: bool) -> io::Result<()> {
        if !apart {
            filter::enter_plain(self.session)?;
        }
        if let Some(listener) = filter::enter(self.filter)? {
            self.hand_over(&listener)?;
        }
        Ok(())
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
    fn execute(&self, program: RawFd) -> io::Result<()> {
        let environment = [std::ptr::null::<libc::c_char>()];
        // SAFETY: both lists end with a null pointer, and their texts live in the parent's memory, of which this is a
        // copy.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program,
                EMPTY.as_ptr(),
                self.arguments.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        Err(io::Error::last_os_error())
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

/// It is killed when the thread ends that started it.
fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

fn drop_bounding_set() {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel knows no more; or we have no right to, and nothing to lose then.
        if remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
}

/// Gives up all privileges, and the chance of any.
fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    Ok(set_no_new_privs(true)?)
}
