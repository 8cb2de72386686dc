//! What happened when, on the host's monotonic clock.

use std::fmt;

use agent_protocol::{Exited, Hello, Started};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::terminal::printable;

/// Characters of a kernel's release that are shown.
const MAX_RELEASE: usize = 64;

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
    /// What the guest has reported, by its own clock.
    #[serde(skip)]
    guest: Vec<(Event, u64)>,
    /// What is to be added to the guest's clock to make it ours: the least that any frame suggests, as each was on its
    /// way for a while. So no event of the guest seems earlier than it was.
    #[serde(skip)]
    guest_offset: Option<i64>,
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

    /// Notes the guest's first word.
    pub fn note_hello(&mut self, hello: &Hello) {
        self.pair_clocks(hello.now_ns);
        self.note(Event::Hello);
        self.guest.push((Event::InitStarted, hello.init_ns));
        tracing::debug!(
            "Hello from the guest's init, on Linux {}: by the guest's clock, init began at {} ms",
            printable(&hello.kernel_release, MAX_RELEASE),
            Ms(hello.init_ns)
        );
    }

    /// Notes what the guest said of the container's start.
    pub fn note_started(&mut self, started: &Started) {
        self.pair_clocks(started.executed_ns);
        let init = self.guest_ns(Event::InitStarted);
        self.guest.push((Event::Mounted, started.mounted_ns));
        self.guest.push((Event::Executed, started.executed_ns));
        tracing::debug!(
            "The container's mounts were made {} ms after init began, and its process executed {} ms later",
            Ms(started.mounted_ns.saturating_sub(init)),
            Ms(started.executed_ns.saturating_sub(started.mounted_ns))
        );
    }

    /// Notes what the guest said of the container's end.
    pub fn note_exited(&mut self, exited: &Exited) {
        self.pair_clocks(exited.synced_ns);
        self.note(Event::ExitReceived);
        let executed = self.guest_ns(Event::Executed);
        self.guest.push((Event::Exited, exited.exited_ns));
        self.guest.push((Event::Synced, exited.synced_ns));
        tracing::debug!(
            "The process exited after {} ms ({:?}); output and files were safe {} ms later",
            Ms(exited.exited_ns.saturating_sub(executed)),
            exited.status,
            Ms(exited.synced_ns.saturating_sub(exited.exited_ns))
        );
    }

    /// When that happened, by the guest's clock.
    fn guest_ns(&self, event: Event) -> u64 {
        let mut events = self.guest.iter();
        events
            .find(|(other, _)| *other == event)
            .map_or(0, |(_, ns)| *ns)
    }

    /// A frame has arrived that was sent when the guest's clock said this.
    fn pair_clocks(&mut self, sent_ns: u64) {
        // A guest's clock may say anything.
        let offset = now_ns().wrapping_sub(sent_ns).cast_signed();
        let least = self.guest_offset.map_or(offset, |known| known.min(offset));
        self.guest_offset = Some(least);
    }

    /// Puts what the guest has reported on our clock.
    pub fn settle(&mut self) {
        let offset = self.guest_offset.unwrap_or(0).cast_unsigned();
        let guest = self.guest.drain(..);
        self.events
            .extend(guest.map(|(event, ns)| (event, ns.wrapping_add(offset))));
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

/// A time in ns, shown in ms.
#[derive(Clone, Copy, Debug)]
pub struct Ms(pub u64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1_000_000, self.0 / 1000 % 1000);
        f.pad(&text)
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
    #[expect(
        clippy::disallowed_methods,
        reason = "records have the wall clock's time, and nothing is decided by it"
    )]
    let now = clock_gettime(clock);
    // Neither clock is set before its epoch.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let ns = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_guest_seems_later_than_the_word_of_it() {
        let mut timeline = Timeline::default();
        let hello = Hello {
            version: 1,
            kernel_release: String::new(),
            now_ns: 500,
            init_ns: 400,
        };
        timeline.note_hello(&hello);
        // Its clock has run for a second, ours has not: the first frame must have been on its way for so long.
        timeline.note_exited(&Exited {
            status: agent_protocol::ExitStatus::Code(0),
            oom: false,
            exited_ns: 1_000_000_000,
            synced_ns: 1_000_000_500,
        });
        timeline.settle();
        let order: Vec<_> = timeline
            .since_start()
            .into_iter()
            .map(|(event, _)| event)
            .collect();
        let expected = [
            Event::InitStarted,
            Event::Hello,
            Event::Exited,
            Event::Synced,
            Event::ExitReceived,
        ];
        let place = |event| order.iter().position(|other| *other == event);
        for pair in expected.windows(2) {
            if pair != [Event::Hello, Event::Exited] {
                assert!(place(pair[0]) < place(pair[1]), "{order:?}");
            }
        }
    }
}
