//! Many processes that do nothing but system calls: if their kernel is gone for a moment and one of them goes on, it is the
//! host that answers.

use std::{ffi::CString, process::ExitCode};

use nix::libc;

/// Starts `count` of them, which make directories and files in `path` and send signals to everybody, and says so.
pub fn swarm(count: &str, path: &str) -> ExitCode {
    let (Ok(count), Ok(folder), Ok(file)) = (
        count.parse::<u32>(),
        CString::new(format!("{path}/folder")),
        CString::new(format!("{path}/file")),
    ) else {
        return ExitCode::FAILURE;
    };
    for _ in 0..count {
        // SAFETY: we have one thread, and the child makes system calls only.
        match unsafe { libc::fork() } {
            -1 => return ExitCode::FAILURE,
            0 => work(&folder, &file),
            _ => {}
        }
    }
    println!("{count} at work");
    loop {
        // SAFETY: it waits.
        unsafe { libc::pause() };
    }
}

fn work(folder: &CString, file: &CString) -> ! {
    loop {
        // SAFETY: the paths are strings that end. The signal is none that does anything.
        unsafe {
            libc::mkdir(folder.as_ptr(), 0o755);
            let fd = libc::open(file.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o644);
            libc::close(fd);
            libc::kill(2, libc::SIGURG);
        }
    }
}
