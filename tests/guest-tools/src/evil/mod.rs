//! What an evil kernel tries.

mod calls;
mod devices;
mod resources;

use nix::libc;

/// The exit code of an evil kernel that is still there when it has tried everything.
const THERE: i32 = 77;

/// Does what `evil=NAME` among `words` says.
pub fn run(words: &[&'static str]) -> i32 {
    let name = words.iter().find_map(|word| word.strip_prefix("evil="));
    let name = name.unwrap_or("nothing");
    let done = calls::run(name, words)
        .or_else(|| resources::run(name))
        .or_else(|| devices::run(name, words));
    match done {
        Some(value) => say(&format!("{name}: {value}")),
        None => say(&format!("{name}: nobody knows how")),
    }
    THERE
}

/// Writes a line to the console.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: the kernel reads as many bytes as there are.
    unsafe {
        libc::write(1, line.as_ptr().cast(), line.len());
    }
}

/// A system call as the host sees it: a value, or a negative error number.
pub fn call(number: libc::c_long, arguments: [usize; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: callers give pointers to what lives long enough; what else it does is what is tried here.
    let value = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match value {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => value,
    }
}

/// The descriptor behind the word `WORDfdN` or `WORDfdN:…`.
pub fn descriptor(words: &[&str], word: &str) -> Option<i32> {
    let word = words.iter().find_map(|other| other.strip_prefix(word))?;
    let number = word.strip_prefix("fd")?;
    number.split(':').next()?.parse().ok()
}
