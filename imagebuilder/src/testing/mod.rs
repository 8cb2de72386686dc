//! What the tests of this crate share.

mod layer;
mod layout;

pub use layer::Layer;
pub use layout::{Files, Layout, gzip, zstd};

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A folder of one test, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Creates an empty folder whose name holds `name`.
    pub fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("imagebuilder-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Checks the file system in `image` with the real tool; says so and goes on where that is not installed.
pub fn e2fsck(image: &Path) {
    let Some(output) = run("e2fsck", &["-fn"], image) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "e2fsck: {text}");
}

fn run(tool: &str, arguments: &[&str], image: &Path) -> Option<Output> {
    let image = image.to_str().unwrap();
    tool_output(tool, &[arguments, &[image]].concat())
}

/// Runs a program that need not be installed; says so where it is not.
pub fn tool_output(tool: &str, arguments: &[&str]) -> Option<Output> {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(tool);
    match command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(arguments)
        .output()
    {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let test = std::thread::current();
            let test = test.name().unwrap_or("?");
            eprintln!("skipped: {test}: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on `seed`, which is not 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % bound
    }
}

/// What the real tool says about the file system in `image`, unless it is not installed.
pub fn debugfs(image: &Path, request: &str) -> Option<String> {
    let output = run("debugfs", &["-R", request], image)?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
