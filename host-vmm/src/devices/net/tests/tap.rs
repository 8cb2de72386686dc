//! An interface of the host's kernel, in a network of its own: no other has it, and it goes with the test.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{CSUM, Driver, GUEST_CSUM, GUEST_TSO4, HEADER, HOST_TSO4, MERGEABLE, frame};
use crate::devices::{
    VirtioDevice,
    net::{Tap, TapError},
};

const NAME: &[u8] = b"vmm-test\0";

/// Runs a test in a network of its own, if this user may have one.
fn alone(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: the network of this thread is no other's business, and it ends with the test.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result != 0 || !std::path::Path::new("/dev/net/tun").exists() {
            println!("skipped: no network of its own, or no /dev/net/tun");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: an `ifreq` of zeroes is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    request
}

fn open(flags: libc::c_int) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    let file = file.unwrap();
    let request = request(flags);
    // SAFETY: the request reads an `ifreq`, which outlives the call.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    file
}

const KIND: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What sends to and hears all of the interface, which is up from now on.
fn wire() -> OwnedFd {
    let every = libc::c_int::from(0x0003_u16.to_be());
    // SAFETY: makes a descriptor, which nobody else owns.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    let up = request(libc::IFF_UP | libc::IFF_NOARP);
    let mut index = request(0);
    let fd = socket.as_raw_fd();
    // SAFETY: both read and write an `ifreq`, which outlives the call; the second fills in the index.
    let index = unsafe {
        assert_eq!(
            libc::ioctl(fd, libc::SIOCSIFFLAGS as libc::Ioctl, &raw const up),
            0
        );
        assert_eq!(
            libc::ioctl(fd, libc::SIOCGIFINDEX as libc::Ioctl, &raw mut index),
            0
        );
        index.ifr_ifru.ifru_ifindex
    };
    // SAFETY: an address of zeroes is one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = 0x0003_u16.to_be();
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the address has this length, and outlives the call.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    assert_eq!(bound, 0);
    socket
}

/// The next frame on the wire of those with our own type, if there is one.
fn hear(wire: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    loop {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let (count, _) = rustix::net::recv(wire, &mut buffer[..], flags).ok()?;
        if buffer[..count].get(12..14) == Some(&TYPE) {
            return Some(buffer[..count].to_vec());
        }
    }
}

/// A type of frames that is for experiments (RFC 5342).
const TYPE: [u8; 2] = [0x88, 0xb5];

fn typed(number: usize, len: usize) -> Vec<u8> {
    let mut frame = frame(number, len);
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&TYPE);
    frame
}

#[test]
fn frames_go_both_ways() {
    alone(|| {
        let tap = Tap::new(open(KIND)).unwrap();
        let wire = wire();
        let mut driver = Driver::new(tap, MERGEABLE);
        for (number, len) in [(1, 60), (2, 1514)] {
            driver.send([0; HEADER], &typed(number, len));
            assert_eq!(hear(&wire), Some(typed(number, len)));
        }
        driver.offer(100, 500);
        for (number, len) in [(3, 60), (4, 1514)] {
            rustix::net::send(&wire, &typed(number, len), rustix::net::SendFlags::empty()).unwrap();
        }
        driver.run().unwrap();
        let mut found = Vec::new();
        while let Some((_, frame)) = driver.received(500) {
            found.push(frame);
        }
        // Beside what the host's kernel has to say of its own.
        for expected in [typed(3, 60), typed(4, 1514)] {
            assert!(found.contains(&expected));
        }
    });
}

#[test]
fn segments_and_checksums_are_left_to_the_hosts_kernel() {
    alone(|| {
        let tap = Tap::new(open(KIND)).unwrap();
        let wire = wire();
        let features = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4;
        let mut driver = Driver::new(tap, features);
        assert_eq!(driver.device.features() & features, features);
        // An IPv4 header and a TCP header, of 60000 bytes with what they carry.
        let mut packet = typed(1, 60_000);
        packet[12..14].copy_from_slice(&[0x08, 0x00]);
        packet[14..34].fill(0);
        packet[14] = 0x45;
        packet[16..18].copy_from_slice(&(60_000_u16 - 14).to_be_bytes());
        packet[22..24].copy_from_slice(&[64, 6]);
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[34..54].fill(0);
        packet[46] = 0x50;
        let [low, high] = 1448_u16.to_le_bytes();
        driver.send([1, 1, 54, 0, low, high, 34, 0, 16, 0, 0, 0], &packet);
        let mut longest = 0;
        let mut buffer = vec![0; 70_000];
        while let Ok((count, _)) =
            rustix::net::recv(&wire, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT)
        {
            longest = longest.max(count);
        }
        assert_eq!(longest, 60_000, "it came in one piece");
        assert!(driver.link_is_up());
    });
}

#[test]
fn an_interface_that_is_removed_is_a_link_that_is_down() {
    alone(|| {
        let file = open(KIND);
        let keep = file.try_clone().unwrap();
        let mut driver = Driver::new(Tap::new(file).unwrap(), 0);
        let _wire = wire();
        driver.offer(4, 2048);
        driver.run().unwrap();
        assert!(driver.link_is_up());
        let gone = std::process::Command::new("ip")
            .args(["link", "delete", "vmm-test"])
            .status();
        if !gone.is_ok_and(|status| status.success()) {
            println!("skipped: ip is not installed");
            return;
        }
        driver.post([0; HEADER], &typed(1, 60));
        driver.run().unwrap();
        assert!(!driver.link_is_up() && driver.device.config_changed());
        drop(keep);
    });
}

#[test]
fn what_is_no_tap_interface_is_refused() {
    alone(|| {
        let mut file = tempfile();
        file.write_all(b"x").unwrap();
        assert!(matches!(Tap::new(file), Err(TapError::Kind)));
        let fresh = File::options().read(true).write(true).open("/dev/net/tun");
        assert!(matches!(Tap::new(fresh.unwrap()), Err(TapError::Kind)));
        for kind in [
            libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
            libc::IFF_TAP | libc::IFF_NO_PI,
        ] {
            let tap = Tap::new(open(kind));
            assert!(matches!(tap, Err(TapError::Kind)), "{kind:#x} {tap:?}");
        }
    });
}

fn tempfile() -> File {
    rustix::fs::memfd_create("none", rustix::fs::MemfdFlags::CLOEXEC)
        .unwrap()
        .into()
}
