//! How many tests run VMs at once.
//!
//! The test runner starts as many tests as it likes; a VM under emulation keeps a CPU busy. With more VMs than CPUs
//! every wait of every test would get longer.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A test's share of the machine, given back when it is dropped.
#[derive(Debug)]
pub struct Slots(usize);

/// Slots in use.
static USED: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// Held while somebody collects all slots: two that have some and want more would wait for each other.
static COLLECTING: Mutex<()> = Mutex::new(());

impl Slots {
    /// The share of a test that runs one VM at a time, or several that mostly wait.
    pub fn one() -> Self {
        let mut slots = Self(0);
        slots.add_one();
        slots
    }

    /// The whole machine: no other test runs.
    pub fn all() -> Self {
        let _collecting = lock(&COLLECTING);
        let mut slots = Self(0);
        for _ in 0..total() {
            slots.add_one();
        }
        slots
    }

    fn add_one(&mut self) {
        let mut used = lock(&USED);
        while *used >= total() {
            used = GIVEN_BACK
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *used += 1;
        self.0 += 1;
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        *lock(&USED) -= self.0;
        GIVEN_BACK.notify_all();
    }
}

/// One for each CPU.
fn total() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A failed test does not fail the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
