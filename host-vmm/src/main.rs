//! Entry point of the `vmm` command.
fn main() {}
