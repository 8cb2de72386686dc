//! What happened when, on the host's monotonic clock.

use agent_protocol::{Exited, Hello, Started};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The command's `main` began.
    CliStart,
    /// The image was found.
    ImageResolved,
    /// The container's directory was made.
    ContainerPrepared,
    /// The supervisor's `main` began.
    SupervisorStarted,
    /// The machine was started.
    VmStarted,
    /// `main` of PID 1 began.
    InitStarted,
    /// PID 1's `Hello` arrived.
    Hello,
    /// `Boot` was sent.
    BootSent,
    /// The container's root and mounts were ready.
    Mounted,
    /// The container's program was executed.
    Executed,
    /// The first byte of output arrived.
    FirstOutput,
    /// The container's main process was reaped.
    Exited,
    /// Its output had been delivered and its files synced.
    Synced,
    /// The word of that arrived.
    ExitReceived,
}

impl Event {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CliStart => "cli-start",
            Self::ImageResolved => "image-resolved",
            Self::ContainerPrepared => "container-prepared",
            Self::SupervisorStarted => "supervisor-started",
            Self::VmStarted => "vm-started",
            Self::InitStarted => "init-started",
            Self::Hello => "hello",
            Self::BootSent => "boot-sent",
            Self::Mounted => "mounted",
            Self::Executed => "executed",
            Self::FirstOutput => "first-output",
            Self::Exited => "exited",
            Self::Synced => "synced",
            Self::ExitReceived => "exit-received",
        }
    }
}

/// Events with the time of each, in ns of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    events: Vec<(Event, u64)>,
    /// What is to be added to the guest's clock to make it the host's.
    #[serde(skip)]
    guest_offset: i64,
}

impl Timeline {
    /// Notes that something happens now.
    pub fn note(&mut self, event: Event) {
        self.events.push((event, now_ns()));
    }

    /// Notes that something happened at this time.
    pub fn note_at(&mut self, event: Event, ns: u64) {
        self.events.push((event, ns));
    }

    /// Notes the guest's first word, which pairs its clock with ours. It was on its way for a moment, which is added to
    /// all of the guest's times.
    pub fn note_hello(&mut self, hello: &Hello) {
        let now = now_ns();
        // A guest's clock may say anything.
        self.guest_offset = now.wrapping_sub(hello.now_ns).cast_signed();
        self.note_guest(Event::InitStarted, hello.init_ns);
        self.note_at(Event::Hello, now);
    }

    /// Notes what the guest said of the container's start.
    pub fn note_started(&mut self, started: &Started) {
        self.note_guest(Event::Mounted, started.mounted_ns);
        self.note_guest(Event::Executed, started.executed_ns);
    }

    /// Notes what the guest said of the container's end.
    pub fn note_exited(&mut self, exited: &Exited) {
        self.note_guest(Event::Exited, exited.exited_ns);
        self.note_guest(Event::Synced, exited.synced_ns);
        self.note(Event::ExitReceived);
    }

    fn note_guest(&mut self, event: Event, guest_ns: u64) {
        let ns = guest_ns.wrapping_add(self.guest_offset.cast_unsigned());
        self.events.push((event, ns));
    }

    /// Adds another's events.
    pub fn merge(&mut self, other: &Self) {
        self.events.extend_from_slice(&other.events);
    }

    /// The events in order of time, each with the ns since the first.
    #[must_use]
    pub fn since_start(&self) -> Vec<(Event, u64)> {
        let mut events = self.events.clone();
        events.sort_by_key(|(_, ns)| *ns);
        let first = events.first().map_or(0, |(_, ns)| *ns);
        events
            .into_iter()
            .map(|(event, ns)| (event, ns.saturating_sub(first)))
            .collect()
    }
}

/// `CLOCK_MONOTONIC` in ns.
#[must_use]
pub fn now_ns() -> u64 {
    ns_of(ClockId::Monotonic)
}

/// The wall clock, in ns since the Unix epoch.
#[must_use]
pub fn wall_clock_ns() -> u64 {
    ns_of(ClockId::Realtime)
}

fn ns_of(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Neither clock is set before its epoch.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let ns = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}
