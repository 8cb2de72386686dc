//! The container's root file system: a read-only image under a writable layer.

use std::os::fd::OwnedFd;

use agent_protocol::{Boot, Root, Stage};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, open, stat, syncfs},
    mount::{MountFlags, mount},
};

use crate::{
    failure::{During, Failure},
    system::make_directory,
};

const IMAGE: &str = "/image";
/// The image's root in its file system, beside that file system's own `lost+found`.
const IMAGE_ROOT: &str = "/image/rootfs";
const WRITABLE: &str = "/writable";
const UPPER: &str = "/writable/upper";
const WORK: &str = "/writable/work";

/// Where the container's root is mounted in PID 1's tree.
pub const ROOT: &str = "/container";

/// The files that a container gets from its host, by their path in the container and, with the same name,
/// in PID 1's tree.
pub const FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The mounted root.
pub struct MountedRoot {
    writable: OwnedFd,
    ephemeral: bool,
}

impl MountedRoot {
    /// Mounts what the host describes at [`ROOT`].
    ///
    /// # Errors
    /// Which disk or file system could not be mounted.
    pub fn mount(root: &Root) -> Result<Self, Failure> {
        for directory in [IMAGE, WRITABLE, ROOT] {
            make_directory(directory).during(Stage::Root, directory)?;
        }
        // Nobody has written to it: its journal says nothing, and is not even looked at.
        mount_disk(
            &root.image_device,
            IMAGE,
            MountFlags::RDONLY,
            Some(c"noload"),
        )?;
        // What nobody will read again need not be safe on the disk, and needs no journal. The tables of the inodes may stay
        // unwritten: writing zeroes in the background would only fill the host's sparse file.
        let options = if root.ephemeral {
            c"discard,noinit_itable,nobarrier,noload"
        } else {
            c"discard,noinit_itable"
        };
        mount_disk(
            &root.writable_device,
            WRITABLE,
            MountFlags::NOATIME,
            Some(options),
        )?;
        prepare_layer().during(Stage::Root, "the writable layer's directories")?;
        let options = if root.ephemeral {
            c"lowerdir=/image/rootfs,upperdir=/writable/upper,workdir=/writable/work,volatile"
        } else {
            c"lowerdir=/image/rootfs,upperdir=/writable/upper,workdir=/writable/work"
        };
        mount("overlay", ROOT, "overlay", MountFlags::empty(), options)
            .during(Stage::Root, "the overlay of image and writable layer")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let writable = open(WRITABLE, flags, Mode::empty()).during(Stage::Root, WRITABLE)?;
        Ok(Self {
            writable,
            ephemeral: root.ephemeral,
        })
    }

    /// Makes what the container wrote safe on the host's disk, unless nobody will want it.
    ///
    /// # Errors
    /// Those of `syncfs(2)`: writes have been lost.
    pub fn sync(&self) -> rustix::io::Result<()> {
        match self.ephemeral {
            true => Ok(()),
            false => syncfs(&self.writable),
        }
    }
}

/// Writes the files of [`FILES`] into PID 1's tree, for the container to have them mounted over its own.
///
/// # Errors
/// Which file could not be written.
pub fn write_files(boot: &Boot) -> Result<(), Failure> {
    make_directory("/etc").during(Stage::Mount, "/etc")?;
    let hostname = format!("{}\n", boot.hostname);
    let contents = [hostname.as_bytes(), &boot.hosts, &boot.resolv_conf];
    for (path, content) in FILES.into_iter().zip(contents) {
        std::fs::write(path, content).during(Stage::Mount, path)?;
    }
    Ok(())
}

fn mount_disk(
    device: &str,
    target: &str,
    flags: MountFlags,
    options: Option<&std::ffi::CStr>,
) -> Result<(), Failure> {
    let path = format!("/dev/{device}");
    mount(path.as_str(), target, "ext4", flags, options)
        .during(Stage::Root, format_args!("ext4 of {path}"))
}

/// The layer's root directory is the one the container sees: it looks like the image's.
fn prepare_layer() -> rustix::io::Result<()> {
    make_directory(UPPER)?;
    make_directory(WORK)?;
    let image = stat(IMAGE_ROOT)?;
    let upper = stat(UPPER)?;
    if (image.st_uid, image.st_gid) != (upper.st_uid, upper.st_gid) {
        let (owner, group) = (Uid::from_raw(image.st_uid), Gid::from_raw(image.st_gid));
        chownat(
            CWD,
            UPPER,
            Some(owner),
            Some(group),
            rustix::fs::AtFlags::empty(),
        )?;
    }
    if image.st_mode != upper.st_mode {
        chmodat(
            CWD,
            UPPER,
            Mode::from_raw_mode(image.st_mode),
            rustix::fs::AtFlags::empty(),
        )?;
    }
    Ok(())
}
