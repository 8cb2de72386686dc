//! `evil-kernel`: a program that is started in place of a kernel and tries what whoever owns a kernel would try.
//!
//! A word of its command line, `evil=NAME`, says what. On the console it says `NAME: VALUE`, VALUE being what the system
//! call gave or a negative error number, and ends with exit code 77: whoever reads that knows that the call came back.
//!
//! It has a `main` of C: Rust's own start makes system calls that a kernel has no need of, and so may not make.
#![no_main]

mod evil;

use std::ffi::{CStr, c_char, c_int};

/// The name by which `vmm` knows a kernel that it may start as a program: `LINUX_ELFNOTE_BUILD_SALT`.
#[repr(C, align(4))]
struct Salt {
    name_len: u32,
    content_len: u32,
    kind: u32,
    name: [u8; 8],
    content: [u8; 12],
}

#[unsafe(link_section = ".note.Linux")]
#[used]
static SALT: Salt = Salt {
    name_len: 6,
    content_len: 9,
    kind: 0x100,
    name: *b"Linux\0\0\0",
    content: *b"vmm-um-1\0\0\0\0",
};

/// Runs what the command line says.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let words: Vec<&'static str> = (0..count)
        .filter_map(|index| {
            // SAFETY: the host gives as many words as it says, and they stay where they are.
            let word = unsafe { CStr::from_ptr(*words.add(index)) };
            word.to_str().ok()
        })
        .collect();
    evil::run(&words)
}
