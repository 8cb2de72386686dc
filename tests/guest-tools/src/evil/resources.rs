//! More of the host than it was meant to have.

use nix::libc;

use super::{call, say};

/// Does `name`, if it is one of these.
pub fn run(name: &str) -> Option<i64> {
    if let Some(code) = name.strip_prefix("exit-") {
        let code = code.parse().ok()?;
        call(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0]);
    }
    Some(match name {
        "forks" => forks(12_000, sleep),
        "forks-few" => forks(10, sleep),
        "forks-away" => forks(10, leave),
        "descriptors" => descriptors(),
        "memory" => memory(),
        "memory-files" => memory_files(),
        "console" => loop {
            say("evil: all work and no play makes a console a dull place");
        },
        "console-line" => loop {
            // SAFETY: the kernel reads as many bytes as there are.
            unsafe { libc::write(1, [b'x'; 4096].as_ptr().cast(), 4096) };
        },
        "hang" => loop {
            std::hint::spin_loop();
        },
        "sleep" => sleep(),
        "deaf" => {
            for signal in 1..64 {
                // SAFETY: to ignore a signal is no handler that could be wrong.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            sleep()
        }
        "stop" => call(libc::SYS_kill, [own_id(), 19, 0, 0, 0, 0]),
        "segfault" => {
            // SAFETY: that there is nothing is the purpose.
            unsafe {
                std::ptr::dangling_mut::<u8>()
                    .wrapping_add(8)
                    .write_volatile(1)
            };
            0
        }
        "abort" => call(libc::SYS_kill, [own_id(), 6, 0, 0, 0, 0]),
        "environment" => {
            // SAFETY: nobody changes it; it is a list with a null pointer at its end.
            let first = unsafe { *environ };
            i64::from(!first.is_null())
        }
        _ => return None,
    })
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

fn own_id() -> usize {
    usize::try_from(call(libc::SYS_getpid, [0; 6])).unwrap_or(0)
}

fn sleep() -> ! {
    loop {
        call(
            libc::SYS_poll,
            [0, 0, usize::try_from(1000).unwrap_or(0), 0, 0, 0],
        );
    }
}

/// Makes processes until there are no more, but not so many that a host without a limit would have none left; says how
/// many it made.
fn forks(most: u32, child: fn() -> !) -> i64 {
    let mut made = 0;
    while made < most {
        match call(libc::SYS_clone, [17, 0, 0, 0, 0, 0]) {
            0 => child(),
            error if error < 0 => break,
            _ => made += 1,
        }
    }
    say(&format!("forks: {made}"));
    sleep()
}

/// Leaves the session of its parent, has a child of its own, and hears no signal.
fn leave() -> ! {
    call(libc::SYS_setsid, [0; 6]);
    call(libc::SYS_clone, [17, 0, 0, 0, 0, 0]);
    call(libc::SYS_setsid, [0; 6]);
    for signal in 1..64 {
        // SAFETY: to ignore a signal is no handler that could be wrong.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    sleep()
}

/// Opens as many descriptors as there may be, and says how many.
fn descriptors() -> i64 {
    (0..100_000)
        .take_while(|_| call(libc::SYS_dup, [0; 6]) >= 0)
        .count()
        .try_into()
        .unwrap_or(i64::MAX)
}

/// Maps private memory as long as there is any, without touching it; says how much in GiB.
fn memory() -> i64 {
    const GIB: usize = 1 << 30;
    (0..4096)
        .take_while(|_| call(libc::SYS_mmap, [0, GIB, 3, 0x22, usize::MAX, 0]) > 0)
        .count()
        .try_into()
        .unwrap_or(i64::MAX)
}

/// Makes a file in memory as long as it can be, and says how long in MiB.
fn memory_files() -> i64 {
    let name = c"evil";
    let fd = call(
        libc::SYS_memfd_create,
        [name.as_ptr().addr(), 0, 0, 0, 0, 0],
    );
    let Ok(fd) = usize::try_from(fd) else {
        return fd;
    };
    let mut size = 1_usize << 20;
    while size < 1 << 40 && call(libc::SYS_ftruncate, [fd, size, 0, 0, 0, 0]) == 0 {
        size <<= 1;
    }
    i64::try_from(size >> 21).unwrap_or(i64::MAX)
}
