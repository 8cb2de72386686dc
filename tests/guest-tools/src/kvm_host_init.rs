//! `kvm-host-init`: PID 1 of the emulated host that the tests under KVM run on. `tests/src/bin/kvm-host` boots it.
//!
//! The host's files are those of the machine around it, which it cannot change: what is written stays in its memory. It
//! runs one command there, and is gone when that has ended.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{chroot, symlink},
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        wait::{WaitStatus, wait},
    },
};

/// Where the root directory is put together.
const ROOT: &str = "/mnt";

/// Where it is found what to run, and what came of it is left.
const JOB: &str = "/run/kvm-host";

/// The most that is moved at once between the machine and here, in bytes.
const MESSAGE: u32 = 512_000;

/// How long the kernel may take to find the device that takes the command's output.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much a process may have open, in descriptors: what distributions let root have.
const DESCRIPTORS: u64 = 1 << 20;

fn main() {
    if let Err((what, error)) = run() {
        // The console is the log of the machine around.
        eprintln!("kvm-host-init: {what}: {error}");
    }
    // There is no other way off without ACPI: the emulator ends where the machine would restart.
    let never = reboot(RebootMode::RB_AUTOBOOT);
    panic!("{never:?}");
}

/// An error, and what was being done.
type Failed = (String, io::Error);

fn run() -> Result<(), Failed> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| (what, error)
    };
    file_systems()?;
    // Programs expect to be able to talk to themselves.
    let loopback = Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .status();
    loopback.map_err(failed("Taking the loopback interface up"))?;
    let status = command()
        .and_then(|mut command| command.spawn())
        .and_then(|child| wait_for(child.id()))
        .map_err(failed("Running the command"))?;
    // It has to be on the other side when this machine is gone.
    File::create(format!("{JOB}/status"))
        .and_then(|mut file| {
            io::Write::write_all(&mut file, status.to_string().as_bytes())?;
            file.sync_all()
        })
        .map_err(failed("Telling how the command ended"))
}

/// Makes the root directory out of the machine's, and what the kernel has to show.
fn file_systems() -> Result<(), Failed> {
    let share = format!("trans=virtio,version=9p2000.L,msize={MESSAGE}");
    let none = MsFlags::empty();
    let mounted = |what: &str, kind: &str, target: &str, flags, options: &str| {
        let make = fs::create_dir_all(target);
        let done = make.and_then(|()| {
            let (what, kind, options) = (Some(what), Some(kind), Some(options));
            mount(what, target, kind, flags, options).map_err(io::Error::from)
        });
        done.map_err(|error| (format!("Mounting {kind} on {target}"), error))
    };
    // Nobody changes the machine's files meanwhile, so what is known of them stays true.
    let options = format!("{share},cache=loose");
    mounted("machine", "9p", "/machine", MsFlags::MS_RDONLY, &options)?;
    mounted("memory", "tmpfs", "/memory", none, "size=75%")?;
    for folder in ["/memory/upper", "/memory/work"] {
        fs::create_dir(folder).map_err(|error| (format!("Making {folder}"), error))?;
    }
    let layers = "lowerdir=/machine,upperdir=/memory/upper,workdir=/memory/work";
    mounted("root", "overlay", ROOT, none, layers)?;

    // From here on it is the root of all mounts, as of any host.
    std::env::set_current_dir(ROOT)
        .and_then(|()| {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .map_err(io::Error::from)
        })
        .and_then(|()| chroot("."))
        .and_then(|()| std::env::set_current_dir("/"))
        .map_err(|error| ("Changing the root directory".to_owned(), error))?;

    mounted("proc", "proc", "/proc", none, "")?;
    mounted("sys", "sysfs", "/sys", none, "")?;
    mounted("dev", "devtmpfs", "/dev", none, "")?;
    mounted("pts", "devpts", "/dev/pts", none, "mode=620,ptmxmode=666")?;
    mounted("shm", "tmpfs", "/dev/shm", none, "mode=1777")?;
    mounted("run", "tmpfs", "/run", none, "mode=755")?;
    mounted("cgroup", "cgroup2", "/sys/fs/cgroup", none, "")?;
    mounted("debug", "debugfs", "/sys/kernel/debug", none, "")?;
    mounted("tracing", "tracefs", "/sys/kernel/tracing", none, "")?;
    mounted("job", "9p", JOB, none, &format!("{share},cache=none"))?;
    // What udev makes elsewhere.
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link).map_err(|error| (format!("Making {link}"), error))?;
    }
    Ok(())
}

/// What is to be run, with everything that the files of the job say about it.
fn command() -> io::Result<Command> {
    let words = |name: &str| -> io::Result<Vec<OsString>> {
        let bytes = fs::read(format!("{JOB}/{name}"))?;
        let words = bytes.split(|&byte| byte == 0);
        let words = words.map(|word| OsString::from_vec(word.to_vec()));
        // Each ends with a zero.
        Ok(words
            .take(bytes.iter().filter(|&&b| b == 0).count())
            .collect())
    };
    let arguments = words("arguments")?;
    let [program, arguments @ ..] = arguments.as_slice() else {
        return Err(io::Error::other("there is none"));
    };
    let environment = words("environment")?;
    let environment = environment.iter().filter_map(|variable| {
        let bytes = variable.as_bytes();
        let at = bytes.iter().position(|&byte| byte == b'=')?;
        Some((
            OsStr::from_bytes(&bytes[..at]),
            OsStr::from_bytes(&bytes[at + 1..]),
        ))
    });
    let output = output()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(OsString::from_vec(fs::read(format!("{JOB}/directory"))?))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // SAFETY: the closure makes one system call and touches no memory but its own.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: DESCRIPTORS,
                rlim_max: DESCRIPTORS,
            };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    Ok(command)
}

/// The one port of the one serial device.
fn output() -> io::Result<File> {
    let end = Instant::now() + PATIENCE;
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports");
        if let Some(port) = ports.into_iter().flatten().flatten().next() {
            let device = PathBuf::from("/dev").join(port.file_name());
            return File::options().write(true).open(device);
        }
        if Instant::now() > end {
            return Err(io::Error::other("there is no port for its output"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the child with this id, and for all orphans that end before it. Gives its status as a shell does.
fn wait_for(child: u32) -> io::Result<i32> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw().cast_unsigned() == child => {
                return Ok(code);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw().cast_unsigned() == child => {
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
