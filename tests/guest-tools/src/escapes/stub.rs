//! The pages by which the kernel runs our own process: code, then two pages of data, below the end of our addresses.

use std::arch::asm;

use nix::libc;

use super::{ELSEWHERE, HERE, Way, own};

const PAGE: usize = 4096;
const PAGES: usize = 3;

/// Where addresses of programs end on x86-64 without the fifth level.
const END: usize = 0x7fff_ffff_f000;

/// Which pages below the end are looked at.
const LOOKED_AT: usize = 64;

/// What is asked for by the stub's own instruction: number and arguments.
const CALLS: [(&str, [u64; 7]); 9] = [
    ("getpid", [39, 0, 0, 0, 0, 0, 0]),
    ("mkdir", [83, 0, 0o755, 0, 0, 0, 0]),
    ("open", [2, 0, 0o102, 0o644, 0, 0, 0]),
    ("kill", [62, 1, 9, 0, 0, 0, 0]),
    ("socket", [41, 1, 1, 0, 0, 0, 0]),
    ("execve", [59, 0, 0, 0, 0, 0, 0]),
    ("munmap", [11, 0, 0x7fff_ffff_0000, 0, 0, 0, 0]),
    ("mmap", [9, 0x1000_0000, 0x10_0000, 7, 0x11, 13, 0]),
    ("exit_group", [231, 0, 0, 0, 0, 0, 0]),
];

pub fn ways() -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    let mut add = |name: &str, attempt: fn(usize) -> i32| {
        let name = format!("stub-{name}");
        ways.push((name, Box::new(move || find().map_or(HERE, attempt))));
    };
    add("write-code", write);
    add("unmap", |stub| {
        change(stub, |at, len| {
            call(libc::SYS_munmap, [at, len, 0, 0, 0, 0])
        })
    });
    add("protect", |stub| {
        change(stub, |at, len| {
            call(libc::SYS_mprotect, [at, len, 7, 0, 0, 0])
        })
    });
    add("map-over", |stub| {
        change(stub, |at, len| {
            call(libc::SYS_mmap, [at, len, 7, 0x32, usize::MAX, 0])
        })
    });
    add("remap", |stub| {
        change(stub, |at, len| {
            call(libc::SYS_mremap, [at, len, len, 3, 0x1000_0000, 0])
        })
    });
    add("remap-onto", |stub| {
        let from = call(libc::SYS_mmap, [0, PAGE, 3, 0x22, usize::MAX, 0]);
        let from = usize::try_from(from).unwrap_or(0);
        change(stub, |at, _| {
            call(libc::SYS_mremap, [from, PAGE, PAGE, 3, at, 0])
        })
    });
    add("advise", |stub| {
        change(stub, |at, len| {
            call(libc::SYS_madvise, [at, len, 4, 0, 0, 0])
        })
    });
    add("shared-memory", |stub| {
        let id = call(libc::SYS_shmget, [0, PAGE, 0o1700, 0, 0, 0]);
        let id = usize::try_from(id).unwrap_or(0);
        change(stub, |at, _| {
            call(libc::SYS_shmat, [id, at, 0o40000, 0, 0, 0])
        })
    });
    add("unmap-everything", |_| {
        call(libc::SYS_munmap, [0, 0x7fff_ffff_f000, 0, 0, 0, 0]);
        HERE
    });
    add("read-by-kernel", |stub| {
        // A pointer of ours into the stub is none that the guest's kernel takes.
        match call(libc::SYS_write, [1, stub, 16, 0, 0, 0]) < 0 {
            true => HERE,
            false => ELSEWHERE,
        }
    });
    add("write-by-kernel", |stub| {
        let read = call(libc::SYS_getrandom, [stub + PAGE, 16, 0, 0, 0, 0]);
        match read < 0 {
            true => HERE,
            false => ELSEWHERE,
        }
    });
    add("memory-file", memory_file);
    add("traced", traced);
    add("forged-calls", forged);
    add("fault-on-its-stack", fault_on_its_stack);
    for offset in [0, 16, 4096, 8192 - 1024, 8192 - 16, 8192] {
        ways.push((
            format!("stub-fault-at-{offset}"),
            Box::new(move || find().map_or(HERE, |stub| fault(stub + PAGE + offset))),
        ));
    }
    for (name, words) in CALLS {
        ways.push((
            format!("stub-jump-{name}"),
            Box::new(move || find().map_or(HERE, |stub| jump_to_all(stub, words, false))),
        ));
        ways.push((
            format!("stub-jump-step-{name}"),
            Box::new(move || find().map_or(HERE, |stub| jump_to_all(stub, words, true))),
        ));
    }
    // Every descriptor there could be: read, write, sendmsg, close.
    for (name, number) in [
        ("read", 0),
        ("write", 1),
        ("close", 3),
        ("sendmsg", 46),
        ("ioctl", 16),
    ] {
        ways.push((
            format!("stub-descriptors-{name}"),
            Box::new(move || find().map_or(HERE, |stub| descriptors(stub, number))),
        ));
    }
    for offset in (0..PAGE).step_by(64) {
        ways.push((
            format!("stub-enter-{offset}"),
            Box::new(move || find().map_or(HERE, |stub| jump(stub + offset, [0; 7], false))),
        ));
    }
    ways
}

/// A system call: a value, or a negative error number.
fn call(number: libc::c_long, arguments: [usize; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what it does to us is what is tried here.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => value,
    }
}

/// Where the stub is: the first of three pages that are there, though no mapping of ours is.
fn find() -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let known = |address: usize| {
        maps.lines().any(|line| {
            let Some((start, end)) = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'))
            else {
                return false;
            };
            let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            (number(start)..number(end)).contains(&address)
        })
    };
    (PAGES..LOOKED_AT)
        .rev()
        .map(|pages| END - pages * PAGE)
        .find(|&at| !known(at) && is_there(at))
}

/// Whether `address` can be read by a program.
fn is_there(address: usize) -> bool {
    // SAFETY: a child has one thread, and reads an address that may be none.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            (address as *const u8).read_volatile();
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        status == 0
    }
}

fn write(stub: usize) -> i32 {
    // SAFETY: it is a fault, or should be.
    unsafe { (stub as *mut u8).write_volatile(0x90) };
    ELSEWHERE
}

/// Does `with` to each page of the stub and to all of it. Those are none of ours, so that it has to be refused; whatever it
/// answers, the pages have to be there, and as they were.
fn change(stub: usize, with: impl Fn(usize, usize) -> i64) -> i32 {
    // SAFETY: the page is there, or we were not called.
    let code = || unsafe { std::slice::from_raw_parts(stub as *const u8, PAGE).to_vec() };
    let before = code();
    for (at, len) in [(0, 1), (1, 1), (2, 1), (0, PAGES)] {
        with(stub + at * PAGE, len * PAGE);
        with((stub + at * PAGE).saturating_sub(PAGE), (len + 1) * PAGE);
    }
    match code() == before {
        true => own(call(libc::SYS_getpid, [0; 6])),
        false => ELSEWHERE,
    }
}

/// Writes through `/proc/self/mem`, which knows no protection.
fn memory_file(stub: usize) -> i32 {
    let path = c"/proc/self/mem".as_ptr().addr();
    let fd = usize::try_from(call(libc::SYS_open, [path, 2, 0, 0, 0, 0])).unwrap_or(0);
    let bytes = [0xcc_u8; 16];
    for page in 0..PAGES {
        let at = stub + page * PAGE;
        if call(
            libc::SYS_pwrite64,
            [fd, bytes.as_ptr().addr(), 16, at, 0, 0],
        ) > 0
        {
            return ELSEWHERE;
        }
    }
    HERE
}

/// A child is traced: its memory written to at the stub, its registers set to it, and let go.
fn traced(stub: usize) -> i32 {
    // SAFETY: the child has one thread and makes system calls only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        call(libc::SYS_ptrace, [0, 0, 0, 0, 0, 0]);
        call(libc::SYS_kill, [id(), 19, 0, 0, 0, 0]);
        // SAFETY: the end of the child.
        unsafe { libc::_exit(0) };
    }
    let child = usize::try_from(pid).unwrap_or(0);
    let mut status = 0_i32;
    let wait = |status: &mut i32| {
        // SAFETY: the status is ours.
        unsafe { libc::waitpid(pid, status, 0) }
    };
    wait(&mut status);
    const POKEDATA: usize = 5;
    const SETREGS: usize = 13;
    const GETREGS: usize = 12;
    const CONT: usize = 7;
    for page in 0..PAGES {
        let at = stub + page * PAGE;
        if call(libc::SYS_ptrace, [POKEDATA, child, at, usize::MAX, 0, 0]) >= 0 {
            return ELSEWHERE;
        }
    }
    // SAFETY: all fields are numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let ask = |request: usize, registers: &mut libc::user_regs_struct| {
        let space = std::ptr::from_mut(registers).expose_provenance();
        call(libc::SYS_ptrace, [request, child, 0, space, 0, 0]);
    };
    ask(GETREGS, &mut registers);
    registers.rip = syscalls_of(stub).first().map_or(stub, |&at| at) as u64;
    registers.rax = 83;
    registers.orig_rax = 83;
    registers.rdi = super::entries::PLACE.as_ptr().addr() as u64;
    registers.cs = 0x23;
    ask(SETREGS, &mut registers);
    registers.cs = 0x33;
    registers.fs_base = u64::MAX / 2;
    ask(SETREGS, &mut registers);
    call(libc::SYS_ptrace, [CONT, child, 0, 0, 0, 0]);
    wait(&mut status);
    call(libc::SYS_kill, [child, 9, 0, 0, 0, 0]);
    HERE
}

fn id() -> usize {
    usize::try_from(call(libc::SYS_getpid, [0; 6])).unwrap_or(0)
}

/// Writes calls of its own into the stub's data, all over it, and makes the kernel use the stub.
fn forged(stub: usize) -> i32 {
    for round in 0..64_usize {
        for at in (0..2 * PAGE).step_by(8) {
            // Small numbers for what is a count or a kind, addresses for what is one.
            let word = match (at / 8 + round) % 4 {
                0 => 1,
                1 => round,
                2 => stub,
                _ => usize::MAX,
            };
            // SAFETY: the data pages are ours to write as far as the host is concerned.
            unsafe { ((stub + PAGE + at) as *mut usize).write_volatile(word) };
        }
        // A page that is not there yet, and a mapping that goes.
        let page = call(libc::SYS_mmap, [0, PAGE, 3, 0x22, usize::MAX, 0]);
        let page = usize::try_from(page).unwrap_or(0);
        if page != 0 {
            // SAFETY: it was mapped just now.
            unsafe { (page as *mut u8).write_volatile(1) };
            call(libc::SYS_munmap, [page, PAGE, 0, 0, 0, 0]);
        }
    }
    own(call(libc::SYS_getpid, [0; 6]))
}

/// Faults with the stack pointer in the stub's data, where the host puts a frame for the stub's handler.
fn fault_on_its_stack(stub: usize) -> i32 {
    for offset in (0..2 * PAGE).step_by(512) {
        // SAFETY: the child has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                fault(stub + PAGE + offset);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
        }
    }
    own(call(libc::SYS_getpid, [0; 6]))
}

fn fault(stack: usize) -> i32 {
    // SAFETY: nothing comes back.
    unsafe {
        asm!("mov rsp, {0}", "xor eax, eax", "mov byte ptr [rax], 1", "ud2", in(reg) stack,
             options(noreturn));
    }
}

/// Where the stub's code has a `syscall` instruction.
fn syscalls_of(stub: usize) -> Vec<usize> {
    // SAFETY: the page is there, or we were not called.
    let code = unsafe { std::slice::from_raw_parts(stub as *const u8, PAGE) };
    let pairs = code.windows(2).enumerate();
    pairs
        .filter(|(_, pair)| *pair == [0x0f, 0x05])
        .map(|(at, _)| stub + at)
        .collect()
}

/// Jumps to each `syscall` of the stub with these registers, each in a child.
fn jump_to_all(stub: usize, mut words: [u64; 7], step: bool) -> i32 {
    if matches!(words[0], 2 | 83) {
        words[1] = super::entries::PLACE.as_ptr().addr() as u64;
    }
    for at in syscalls_of(stub) {
        // SAFETY: the child has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                jump(at, words, step);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            // That would have been a call that ends the process.
            if libc::WIFEXITED(status) && words[0] != 231 {
                return ELSEWHERE;
            }
        }
    }
    own(call(libc::SYS_getpid, [0; 6]))
}

fn descriptors(stub: usize, number: u64) -> i32 {
    let Some(&at) = syscalls_of(stub).first() else {
        return HERE;
    };
    for fd in 0..1024 {
        // SAFETY: the child has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                jump(at, [number, fd, stub as u64, 16, 0, 0, 0], false);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
        }
    }
    own(call(libc::SYS_getpid, [0; 6]))
}

/// Goes on at `address` with these registers, and perhaps with the trap flag. Its stack is in the stub's data, where a return
/// finds something.
fn jump(address: usize, words: [u64; 7], step: bool) -> i32 {
    let flag = if step { 0x100_u64 } else { 0 };
    // SAFETY: nothing comes back.
    unsafe {
        asm!(
            "mov r10, [r12 + 32]",
            "mov r8, [r12 + 40]",
            "mov r9, [r12 + 48]",
            "mov rdi, [r12 + 8]",
            "mov rsi, [r12 + 16]",
            "mov rdx, [r12 + 24]",
            "mov rax, [r12]",
            "pushfq",
            "or [rsp], r14",
            "popfq",
            "jmp r13",
            in("r12") words.as_ptr(),
            in("r13") address,
            in("r14") flag,
            options(noreturn),
        );
    }
}
