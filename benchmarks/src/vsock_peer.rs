//! `vsock-peer`: the guest's end of what is measured between a guest and its host. It is PID 1 of a machine that has nothing
//! else, dials its host's ports one after the other, and restarts the machine when that is done.

mod vsock_ports;

use std::{
    io::{self, Read, Write},
    net::Shutdown,
};

use nix::sys::reboot::{RebootMode, reboot};
use vsock::{VMADDR_CID_HOST, VsockStream};

use vsock_ports::{BLOCK, BLOCKS, FROM_HOST, ROUND_TRIPS, TO_HOST};

fn main() -> io::Result<()> {
    let done = to_host().and_then(|()| from_host()).and_then(|()| answer());
    if let Err(error) = &done {
        // The machine's end tells the host.
        eprintln!("vsock-peer: {error}");
    }
    reboot(RebootMode::RB_AUTOBOOT)?;
    done
}

fn dial(port: u32) -> io::Result<VsockStream> {
    VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)
}

fn to_host() -> io::Result<()> {
    let mut stream = dial(TO_HOST)?;
    let block = vec![0; BLOCK];
    for _ in 0..BLOCKS {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    end_of(&mut stream)
}

/// Says when it has had everything.
fn from_host() -> io::Result<()> {
    let mut stream = dial(FROM_HOST)?;
    let mut block = vec![0; BLOCK];
    for _ in 0..BLOCKS {
        stream.read_exact(&mut block)?;
    }
    stream.write_all(&[0])?;
    end_of(&mut stream)
}

/// Sends back each byte that comes.
fn answer() -> io::Result<()> {
    let mut stream = dial(ROUND_TRIPS)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Waits until the host has hung up.
fn end_of(stream: &mut VsockStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("the host says something")),
    }
}
