//! The guest's socket to its host, with nothing else at its ends: a PID 1 in the guest, and a thread here.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use end_to_end::{DEADLINE, Root, artifact};
use host_vmm::{devices::vsock::HostPorts, vm::Accelerator};
use imagebuilder::initfs;

use super::ROUNDS;
use crate::{
    Kernel,
    machine::Machine,
    sample::Sample,
    table::{Row, Target, Unit},
    vsock_ports::{BLOCK, BLOCKS, FROM_HOST, ROUND_TRIPS, TO_HOST},
};

/// Round trips in each round, of which the one in the middle is taken.
const TRIPS: usize = 2000;

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let machine = Machine::of_container(root, kernel, Accelerator::Um, &[], peer(root)?)?;
    let runs = (0..ROUNDS).map(|_| Run::of(&machine));
    let runs: Vec<Run> = runs.collect::<Result<_>>()?;
    let each = |part: fn(&Run) -> f64| Sample::of(runs.iter().map(part).collect());
    let (rate, wait) = (Target::AtLeast(300e6), Target::AtMost(150e-6));
    Ok(vec![
        Row::new(
            "um: vsock, guest to host",
            rate,
            Unit::Rate,
            each(|run| run.to_host),
        ),
        Row::new(
            "um: vsock, host to guest",
            rate,
            Unit::Rate,
            each(|run| run.from_host),
        ),
        Row::new(
            "um: vsock, there and back",
            wait,
            Unit::Microseconds,
            each(|run| run.round_trip),
        ),
    ])
}

/// The initfs with what dials us.
fn peer(root: &Root) -> Result<PathBuf> {
    let path = root.files().join("vsock-peer.cpio");
    initfs::build(&artifact("bench/vsock-peer", "make bench"), &path)?;
    Ok(path)
}

/// What one machine has shown.
struct Run {
    /// Bytes in a second.
    to_host: f64,
    from_host: f64,
    /// Seconds, the median of many.
    round_trip: f64,
}

impl Run {
    fn of(machine: &Machine) -> Result<Self> {
        let (sender, dialed) = channel();
        std::thread::scope(|scope| {
            let host = scope.spawn(move || Self::serve(&dialed));
            let ran = machine.run_with(Box::new(Ports(sender)));
            // Nobody dials any more: it does not wait.
            let run = host.join().ok().context("The host's thread panicked")?;
            ran?;
            run
        })
    }

    fn serve(dialed: &Receiver<(u32, UnixStream)>) -> Result<Self> {
        let next = |expected| {
            let (port, stream) = dialed
                .recv_timeout(DEADLINE)
                .context("The guest has not dialed")?;
            ensure!(
                port == expected,
                "The guest dialed {port} instead of {expected}"
            );
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream)
        };
        Ok(Self {
            to_host: receive(next(TO_HOST)?)?,
            from_host: send(next(FROM_HOST)?)?,
            round_trip: trips(next(ROUND_TRIPS)?)?,
        })
    }
}

/// Bytes in a second, from the first that arrive to the last.
fn receive(mut stream: UnixStream) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let first = stream.read(&mut buffer)?;
    let (begin, mut count) = (Instant::now(), 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            more => count += more,
        }
    }
    let time = begin.elapsed();
    ensure!(
        first + count == BLOCK * BLOCKS,
        "{} bytes came, not {}",
        first + count,
        BLOCK * BLOCKS
    );
    Ok(rate(count, time))
}

/// Bytes in a second, until the guest says that it has had all.
fn send(mut stream: UnixStream) -> Result<f64> {
    let block = vec![0; BLOCK];
    let begin = Instant::now();
    for _ in 0..BLOCKS {
        stream.write_all(&block)?;
    }
    stream.read_exact(&mut [0])?;
    Ok(rate(BLOCK * BLOCKS, begin.elapsed()))
}

/// Seconds until a byte has come back, the median of many.
fn trips(mut stream: UnixStream) -> Result<f64> {
    let trip = |_| {
        let begin = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let trips = (0..TRIPS).map(trip).collect::<Result<_>>()?;
    Ok(Sample::of(trips).median())
}

#[allow(clippy::cast_precision_loss)]
fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// Takes every connection.
struct Ports(Sender<(u32, UnixStream)>);

impl HostPorts for Ports {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        let (device, host) = UnixStream::pair().ok()?;
        self.0.send((port, host)).ok()?;
        Some(device)
    }
}
