//! Whether Linux would run on this host's KVM.
//!
//! A `/dev/kvm` that opens is not enough. There are hosts whose KVM has no hardware below it: it runs programs natively and
//! emulates kernels, passes every check of capabilities, and gives up on the first instruction that nobody taught it. So
//! it is tried: a throw-away machine of a few pages does what every kernel does while it boots ([`guest`]), and what it did
//! is checked. All of it takes 2 to 4 ms where the host has a CPU for it.
//!
//! Nothing here is trusted to end. The machine runs on a thread of its own with all signals blocked but inside of `KVM_RUN`,
//! which one therefore ends whenever it comes, handlers or not; and a thread that does not even come back from that is left
//! behind.

mod guest;
mod machine;

use std::{
    arch::x86_64::__cpuid,
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::{
    pthread::pthread_kill,
    signal::{SigSet, Signal},
};
use rustix::time::{ClockId, clock_gettime};

use guest::Step;
use machine::{End, HostError, How, Machine};

/// To be raised whenever something else is tried, or judged otherwise.
pub const REVISION: u32 = 1;

/// How long it may take. It takes a few thousandths of that where nobody else wants the CPU.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long the thread may take to come back when it is told to.
const GRACE: Duration = Duration::from_millis(200);

/// A guest that has had so much of a CPU's time in vain would have gone on for ever.
const ENOUGH: Duration = Duration::from_millis(500);

/// Why KVM is not used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What it was given to execute it did not.
    #[error(transparent)]
    Incapable(#[from] Incapable),
    /// There is not even a machine.
    #[error("this host's KVM was tried: {0}")]
    Host(#[from] HostError),
    /// No verdict: this host had other things to do.
    #[error("this host's KVM was tried, and had not answered after {} s", DEADLINE.as_secs())]
    Late,
}

/// An instruction that every kernel uses, and KVM here does not execute.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize,
)]
#[error("this host's KVM cannot run Linux ({} {}); {}", .at.name(), said(*.how), advice(*.hardware))]
pub struct Incapable {
    at: Step,
    how: How,
    /// The CPU says that it could.
    hardware: bool,
}

fn said(how: How) -> String {
    match how {
        How::Unable => "fails".to_owned(),
        How::Exception(vector) => format!("raises exception {vector}"),
        How::Shutdown => "shuts the CPU down".to_owned(),
        How::Wrong => "does something else".to_owned(),
        How::Endless => "never ends".to_owned(),
    }
}

fn advice(hardware: bool) -> &'static str {
    match hardware {
        false => {
            "its CPU has neither VMX nor SVM, so that KVM emulates kernels; have the hypervisor below allow nesting"
        }
        true => {
            "its CPU has VMX or SVM: a newer kernel of the host, or of the hypervisor below, may do better"
        }
    }
}

/// Tries it.
///
/// # Errors
/// [`Refused`].
pub fn probe() -> Result<(), Refused> {
    attempt(guest::code(), DEADLINE)
}

/// Runs `code` for so long at most.
fn attempt(code: &'static [u8], deadline: Duration) -> Result<(), Refused> {
    let attempt = Attempt::start(code)?;
    match attempt.end(deadline)? {
        (End::Done, _) => Ok(()),
        (End::Failed(at, how), _) => Err(incapable(at, how)),
        (End::Stopped(at), used) if used >= ENOUGH.min(deadline / 4) => {
            Err(incapable(at, How::Endless))
        }
        (End::Stopped(_), _) => Err(Refused::Late),
    }
}

fn incapable(at: Step, how: How) -> Refused {
    Refused::Incapable(Incapable {
        at,
        how,
        hardware: has_hardware(),
    })
}

/// Whether the CPU has VMX or SVM.
fn has_hardware() -> bool {
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    vmx || svm
}

/// How a guest ended, and how much of a CPU's time it had.
type Ended = Result<(End, Duration), HostError>;

/// A guest on a thread of its own.
struct Attempt {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    ended: Receiver<Ended>,
}

impl Attempt {
    fn start(code: &'static [u8]) -> Result<Self, Refused> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ended) = channel();
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("kvm-probe".into())
            .spawn(move || {
                // Ours to be killed by is none but what KVM lets in.
                let _ = SigSet::all().thread_block();
                let mut machine = Machine::new(code, &told);
                let ended = machine
                    .as_mut()
                    .map(|machine| (machine.run(&told), own_time()));
                // The verdict does not wait for the machine to be taken apart.
                let _ = sender.send(ended.map_err(|error| error.clone()));
            })
            .map_err(|error| HostError::of("start a thread", &error))?;
        Ok(Self {
            thread,
            stop,
            ended,
        })
    }

    /// Waits for it, and stops it if that takes too long.
    fn end(self, deadline: Duration) -> Result<(End, Duration), Refused> {
        let ended = match self.ended.recv_timeout(deadline) {
            Err(RecvTimeoutError::Timeout) => {
                self.stop.store(true, Ordering::SeqCst);
                // If it is not in KVM_RUN yet it will find the signal there. It fails only for a thread that has ended.
                let _ = pthread_kill(
                    self.thread.as_pthread_t() as libc::pthread_t,
                    Signal::SIGUSR1,
                );
                self.ended.recv_timeout(GRACE)
            }
            ended => ended,
        };
        ended.map_or(Err(Refused::Late), |ended| Ok(ended?))
    }
}

/// What this thread has had of a CPU.
fn own_time() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "the thread's own time, which nobody sets"
    )]
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A guest that begins with these bytes, and then has int3 everywhere.
    fn page(start: &[u8]) -> &'static [u8] {
        let mut page = vec![0xcc; 4096];
        page[..start.len()].copy_from_slice(start);
        page.leak()
    }

    fn has_device() -> bool {
        let opened = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        if let Err(error) = &opened {
            println!("no /dev/kvm to try: {error}");
        }
        opened.is_ok()
    }

    #[test]
    fn this_hosts_kvm_is_judged_by_what_it_does() {
        let before = Instant::now();
        let verdict = probe();
        println!("{verdict:?} after {:?}", before.elapsed());
        if !has_device() {
            assert!(matches!(verdict, Err(Refused::Host(_))), "{verdict:?}");
            return;
        }
        match verdict {
            Ok(()) => {}
            Err(Refused::Incapable(reason)) => {
                let text = reason.to_string();
                println!("{text}");
                assert!(text.contains(reason.at.name()), "{text}");
                assert!(!has_hardware() || text.contains("has VMX or SVM"), "{text}");
                // The same again.
                assert_eq!(probe(), Err(Refused::Incapable(reason)));
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_guest_that_never_ends_is_ended() {
        if !has_device() {
            return;
        }
        let before = Instant::now();
        // jmp .
        let verdict = attempt(page(&[0xeb, 0xfe]), Duration::from_millis(300));
        println!("{verdict:?} after {:?}", before.elapsed());
        match verdict {
            Err(Refused::Incapable(Incapable {
                at: Step::Entry,
                how: How::Endless,
                ..
            })) => {}
            // Nobody promises the thread a CPU.
            Err(Refused::Late) => {}
            other => panic!("{other:?}"),
        }
        // No thread and no machine is left.
        assert!(before.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_guest_that_dies_is_told_from_one_that_is_done() {
        if !has_device() {
            return;
        }
        // ud2 without handlers; out to the port with nothing said; hlt.
        for guest in [&[0x0f, 0x0b][..], &[0xe6, 0x10], &[0xf4]] {
            let verdict = attempt(page(guest), DEADLINE);
            println!("{guest:x?}: {verdict:?}");
            assert!(
                matches!(verdict, Err(Refused::Incapable(_))),
                "{guest:x?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn what_is_said_names_the_instruction_and_what_to_do() {
        let reason = Incapable {
            at: Step::Int3,
            how: How::Shutdown,
            hardware: false,
        };
        let text = reason.to_string();
        for part in [
            "cannot run Linux (int3 shuts",
            "neither VMX nor SVM",
            "nesting",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
