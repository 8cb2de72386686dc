//! What is tested, as `make` leaves it.

use std::path::{Path, PathBuf};

use crate::accelerator;

/// `path` in the folder of artifacts.
///
/// # Panics
/// If it is not there, with `remedy`: a test of something that was not built has not passed.
#[must_use]
pub fn artifact(path: &str, remedy: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../out");
    let path = out.join(path);
    assert!(
        path.exists(),
        "{} is missing: run `{remedy}` first",
        path.display()
    );
    path.canonicalize().expect("a path to an artifact")
}

/// The command under test.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn vmm() -> PathBuf {
    artifact("bin/vmm", "make image build")
}

/// The same with failpoints.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn vmm_with_failpoints() -> PathBuf {
    artifact("test/vmm", "make test")
}

/// The initfs that `vmm` boots.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn initfs() -> PathBuf {
    artifact("share/vmm/initfs.cpio", "make image")
}

/// Which of the installed kernels the accelerator under test boots.
#[must_use]
pub fn kernel_variant() -> &'static str {
    match accelerator().as_str() {
        "um" => "um",
        _ => "default",
    }
}

/// A kernel that differs from the installed one in its `LOCALVERSION`, which is `-second`.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn second_kernel() -> PathBuf {
    artifact(&format!("test/{}-second", kernel_variant()), "make test")
}

/// A static program for the inside of a container.
pub fn guest_tool(name: &str) -> PathBuf {
    artifact(&format!("test/guest-tools/{name}"), "make test")
}

/// A script of the source tree.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts")
        .join(name)
}
