//! The thread that has the devices: it waits for everything that happens to them, does what drivers ask, and sees to the
//! machine's end.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::thread::JoinHandleExt,
    },
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    bus::{Asked, End},
    vcpu::{Shared, kick_signal},
};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Event, EventLoop, Interest},
        transport::mmio::Slot,
    },
    process::is_readable_within,
};

/// Who is told of an event: the thread itself, or by turns the kicks of a device and its own descriptors.
const OURS: u32 = 0;
const FIRST: u32 = 1;

/// How long processors may take to stop. They are in the guest, or at work for it that is bounded.
const STOP: Duration = Duration::from_secs(2);

/// How long what a guest that has ended has sent may take to reach whoever reads it on the host.
const DRAIN: Duration = Duration::from_secs(5);

/// The devices, and by what they are told of something.
pub struct Worker {
    events: EventLoop,
    slots: Vec<Slot>,
    /// What their queues are kicked by.
    kicks: Vec<OwnedFd>,
    /// Which of them have something to do.
    due: Vec<bool>,
    asked: Receiver<Asked>,
    wake: Arc<OwnedFd>,
}

/// How the machine's process is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest restarted.
    Reset,
    /// It cannot go on.
    Failed(String),
    /// A disk of the host is full.
    NoRoom,
}

impl Worker {
    /// A thread without devices. Whoever sends to `asked` writes to `wake` then.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(asked: Receiver<Asked>, wake: Arc<OwnedFd>) -> io::Result<Self> {
        let events = EventLoop::new()?;
        events.registry(OURS).add(&*wake, 0, Interest::Read)?;
        Ok(Self {
            events,
            slots: Vec::new(),
            kicks: Vec::new(),
            due: Vec::new(),
            asked,
            wake,
        })
    }

    /// Gives the device that comes next its descriptors.
    ///
    /// # Errors
    /// The host is out of them.
    pub fn attach(&self, device: &mut dyn VirtioDevice) -> io::Result<()> {
        device.attach(self.events.registry(self.owner() + 1))
    }

    /// Adds a device, and what its queues are kicked by.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn add(&mut self, slot: Slot, kicks: Vec<OwnedFd>) -> io::Result<()> {
        let registry = self.events.registry(self.owner());
        for (queue, kick) in (0..).zip(&kicks) {
            registry.add(kick, queue, Interest::Read)?;
        }
        self.kicks.extend(kicks);
        self.slots.push(slot);
        self.due.push(false);
        Ok(())
    }

    /// Who is told of the kicks of the device that comes next.
    fn owner(&self) -> u32 {
        FIRST + 2 * u32::try_from(self.slots.len()).unwrap_or(u32::MAX / 4)
    }

    /// Serves the devices until the machine ends, and says how it did, when everything that the guest had sent is
    /// delivered.
    pub fn work(mut self, shared: &Shared, vcpus: &[JoinHandle<()>]) -> Outcome {
        let outcome = self.serve(shared);
        self.stop(shared, vcpus);
        let finished = self.finish();
        shared.bus.flush();
        match finished {
            Err(DeviceError::NoRoom) if outcome == Outcome::Reset => Outcome::NoRoom,
            _ => outcome,
        }
    }

    fn serve(&mut self, shared: &Shared) -> Outcome {
        loop {
            if let Some(end) = shared.bus.end() {
                return match end {
                    End::Reset => Outcome::Reset,
                    End::Failed(why) => Outcome::Failed(why.clone()),
                };
            }
            match self.turn() {
                Ok(()) => {}
                Err(DeviceError::NoRoom) => return Outcome::NoRoom,
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        }
    }

    /// Takes what has happened, or waits for something, and lets the devices work that are concerned.
    fn turn(&mut self) -> Result<(), DeviceError> {
        let mut events = Vec::new();
        // An error is a defect, and shows in that nothing happens.
        let _ = self.events.wait(self.due.contains(&true), &mut events);
        for event in events {
            self.take(event);
        }
        while let Ok(asked) = self.asked.try_recv() {
            self.slots[asked.slot].handle(asked.request);
            self.due[asked.slot] = true;
            let _ = asked.done.send(());
        }
        for (slot, due) in self.slots.iter_mut().zip(&mut self.due) {
            if std::mem::take(due) {
                *due = slot.run()? == Progress::More;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        if event.owner == OURS {
            #[cfg(feature = "failpoints")]
            crate::failpoint::taken_over::devices();
            let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
            return;
        }
        let (index, is_own) = ((event.owner - FIRST) / 2, (event.owner - FIRST) % 2 == 1);
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        match is_own {
            true => slot.ready(event.token, event.readiness),
            false => slot.kick(event.token as usize),
        }
        self.due[index as usize] = true;
    }

    /// Has the processors stop.
    fn stop(&self, shared: &Shared, vcpus: &[JoinHandle<()>]) {
        shared.stop.store(true, Ordering::Release);
        let until = Instant::now() + STOP;
        loop {
            // Who waits for a device must not wait for ever.
            while let Ok(asked) = self.asked.try_recv() {
                drop(asked);
            }
            if shared.stopped.load(Ordering::Acquire) as usize >= vcpus.len() {
                return;
            }
            for vcpu in vcpus {
                // SAFETY: the threads never end, and nobody joins or detaches them.
                unsafe {
                    libc::pthread_kill(vcpu.as_pthread_t() as libc::pthread_t, kick_signal())
                };
            }
            let left = until.saturating_duration_since(Instant::now());
            if !is_readable_within(self.wake.as_fd(), left) {
                return;
            }
            let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        }
    }

    /// Takes what the guest had made available before it went, and delivers it.
    fn finish(&mut self) -> Result<(), DeviceError> {
        let mut result = Ok(());
        for slot in &mut self.slots {
            result = slot.finish().and(result);
        }
        let until = Instant::now() + DRAIN;
        while !self.slots.iter().all(Slot::drained) {
            let left = until.saturating_duration_since(Instant::now());
            if !is_readable_within(self.events.as_fd(), left) {
                break;
            }
            self.due.fill(true);
            result = self.turn().and(result);
        }
        result
    }
}
