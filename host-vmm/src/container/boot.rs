//! From what a container is to what its guest is told.

use std::io;

use agent_protocol::{Boot, Mount, Process, Root, Stdio};

use super::{spec::ContainerSpec, text::Text, timeline};

/// Docker's default set, by the numbers of `<linux/capability.h>`: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
/// SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const CAPABILITIES: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// The container's disks, in the order of [`disks`](super::supervisor).
pub struct DiskNames {
    /// The image's name under `/dev`.
    pub image: String,
    /// The writable layer's.
    pub writable: String,
}

/// The answer to the guest's `Hello`.
///
/// # Errors
/// The host has no random numbers.
pub fn boot_frame(spec: &ContainerSpec, disks: DiskNames, stdio: Stdio) -> io::Result<Boot> {
    let mut entropy = [0; 32];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    let surroundings = &spec.surroundings;
    let bytes = |words: &[Text]| words.iter().cloned().map(Text::into_bytes).collect();
    Ok(Boot {
        realtime_ns: timeline::wall_clock_ns(),
        entropy,
        hostname: surroundings.hostname.clone(),
        hosts: hosts(&surroundings.hostname).into_bytes(),
        // There is no network, and so nobody to ask.
        resolv_conf: Vec::new(),
        root: Root {
            image_device: disks.image,
            writable_device: disks.writable,
            read_only: surroundings.read_only,
            ephemeral: spec.auto_remove,
        },
        mounts: surroundings
            .tmpfs
            .iter()
            .map(|tmpfs| Mount::Tmpfs {
                target: tmpfs.target.clone().into_bytes(),
                flags: tmpfs.flags,
                data: tmpfs.data.clone().into_bytes(),
            })
            .collect(),
        cpu_limit_milli: spec.machine.cpu_limit_milli(),
        process: Process {
            args: bytes(&spec.process.args),
            env: bytes(&spec.process.env),
            cwd: spec.process.cwd.clone().into_bytes(),
            user: spec.process.user.clone(),
            capabilities: CAPABILITIES.iter().fold(0, |mask, bit| mask | 1 << bit),
            stdio,
        },
    })
}

/// As Docker writes it for a container without a network, and the container's own name, which many programs look up.
fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{hostname}\n"
    )
}
