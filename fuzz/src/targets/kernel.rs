//! A kernel that somebody names: its ELF headers and notes.

use host_vmm::vm::kernel;

use crate::input::MemoryFile;

pub fn run(data: &[u8]) {
    if let Err(error) = kernel::check(&MemoryFile::new(data).path()) {
        assert!(!error.to_string().is_empty());
    }
}
