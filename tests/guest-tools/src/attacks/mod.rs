//! What it does to its machine.

mod io;
mod processor;
mod start;
mod virtio;

use std::{
    fmt::Write,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use io::Console;
use start::start_others;

/// What the command line says.
#[derive(Clone, Copy)]
struct Orders {
    attack: &'static str,
    seed: u64,
    count: u64,
}

/// The order of the first processor, for all.
static SEED: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static DEVICES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static GO: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU32 = AtomicU32::new(0);

/// Numbers that look as if nobody had chosen them: xorshift64*.
pub struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A small one, a large one, an address, or whatever.
    pub fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(16),
            1 => u64::MAX - self.below(16),
            2 => 1 << self.below(64),
            3 => virtio::SCRATCH + self.below(virtio::SCRATCH_LEN),
            4 => 0xd000_0000 + self.below(0x8000),
            _ => self.next(),
        }
    }
}

/// The first processor.
fn first(cmdline: &'static str) -> ! {
    let number = |name: &str, otherwise| {
        let given = word(cmdline, name).and_then(|number| number.parse().ok());
        given.unwrap_or(otherwise)
    };
    let orders = Orders {
        attack: word(cmdline, "evil").unwrap_or("nothing"),
        seed: number("seed", 1),
        count: number("count", 1000),
    };
    let devices = cmdline.split(' ').filter_map(|word| {
        let at = word.strip_prefix("virtio_mmio.device=4K@0x")?;
        u64::from_str_radix(at.split(':').next()?, 16).ok()
    });
    for (place, device) in DEVICES.iter().zip(devices) {
        place.store(device, Ordering::Relaxed);
    }
    let _ = writeln!(Console, "{}: seed {}", orders.attack, orders.seed);
    act(cmdline, orders);
    let _ = writeln!(Console, "{}: done", orders.attack);
    io::reset()
}

/// What stands behind `NAME=`.
fn word<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    let mut words = cmdline.split(' ');
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// All others.
fn other(processor: u32) -> ! {
    while !GO.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
    let seed = SEED.load(Ordering::Relaxed) + u64::from(processor);
    let count = COUNT.load(Ordering::Relaxed);
    everything(&mut Random::new(seed), count, true);
    DONE.fetch_add(1, Ordering::AcqRel);
    processor::halt()
}

fn devices() -> impl Iterator<Item = virtio::Device> + Clone {
    DEVICES
        .iter()
        .map(|device| device.load(Ordering::Relaxed))
        .take_while(|device| *device != 0)
        .map(virtio::Device::new)
}

fn act(
    cmdline: &str,
    Orders {
        attack,
        seed,
        count,
    }: Orders,
) {
    let mut random = Random::new(seed);
    let random = &mut random;
    match attack {
        "nothing" => {}
        "registers" => for_each(|device| virtio::registers(device, random, count)),
        "queues" => for_each(|device| virtio::queues(device, random, count)),
        "chains" => for_each(|device| virtio::chains(device, random, count)),
        "ports" => io::ports(random, count),
        "memory" => processor::memory(random, count),
        "msrs" => processor::msrs(random, count),
        "hypercalls" => processor::hypercalls(random, count),
        "interrupts" => processor::interrupts(random, count),
        "together" => together(seed, count),
        "everything" => everything(random, count, false),

        // A thread of the machine is this program's, by failpoints: it makes a system call.
        "processor" => io::taken_over(cmdline, 0x5e04),
        "devices" => io::taken_over(cmdline, 0x5e08),

        // Ends of their own.
        "triple-fault" => processor::triple_fault(),
        "no-memory-to-execute" => processor::execute_nothing(),
        "no-such-instruction" => processor::wide_access(),
        "halt" => processor::halt(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "kicks" => {
            for device in devices().cycle() {
                virtio::kick(&device, 0);
            }
        }
        "resets" => {
            for device in devices().cycle() {
                virtio::reset(&device);
            }
        }
        "console" => loop {
            let _ = writeln!(Console, "all work and no play makes a console a dull place");
        },
        "console-line" => loop {
            Console.byte(b'x');
        },
        "interrupt-storm" => processor::interrupt_storm(),
        _ => {
            let _ = writeln!(Console, "there is no such attack");
        }
    }
}

/// Does it to each device, and says how often it reached for it.
fn for_each(mut what: impl FnMut(&virtio::Device)) {
    for device in devices() {
        what(&device);
        virtio::reset(&device);
        device.report();
    }
}

fn everything(random: &mut Random, count: u64, quietly: bool) {
    for device in devices() {
        virtio::registers(&device, random, count);
        virtio::queues(&device, random, count);
        virtio::chains(&device, random, count);
        if !quietly {
            device.report();
        }
    }
    io::ports(random, count);
    processor::memory(random, count);
    processor::hypercalls(random, count);
}

/// The same on all processors at once.
fn together(seed: u64, count: u64) {
    let others = start_others();
    let _ = writeln!(Console, "together: {others} others");
    SEED.store(seed, Ordering::Relaxed);
    COUNT.store(count, Ordering::Relaxed);
    GO.store(true, Ordering::Release);
    everything(&mut Random::new(seed), count, true);
    while DONE.load(Ordering::Acquire) < others {
        std::hint::spin_loop();
    }
}
