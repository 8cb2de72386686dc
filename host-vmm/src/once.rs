//! What lasts until the machine is started anew: that a user was told something.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// The name of this start of the machine.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Whether nobody has been told `what` since the machine was started, by a mark in the directory `run`. Of several who ask,
/// one gets to tell. Where no mark can be made nothing is told: it would be told for ever.
#[must_use]
pub fn since_boot(run: &Path, what: &str) -> bool {
    this_boot().is_some_and(|boot| since(run, what, &boot))
}

/// A name for this start of the machine, which no other has; `None` where it cannot be had.
#[must_use]
pub fn this_boot() -> Option<String> {
    let boot = fs::read_to_string(BOOT).ok()?;
    Some(boot.trim().to_owned())
}

fn since(run: &Path, what: &str, boot: &str) -> bool {
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(run);
    let prefix = format!("told-{what}.");
    let mark = format!("{prefix}{boot}");
    if File::create_new(run.join(&mark)).is_err() {
        return false;
    }
    // A directory that outlives the machine's start has the marks of others.
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && *name != *mark {
            let _ = fs::remove_file(entry.path());
        }
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_is_told_once_a_boot() {
        let run = std::env::temp_dir().join(format!("vmm-once-{}", std::process::id()));
        let told = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| since(&run, "kvm", "a")))
                .collect();
            let told = threads.into_iter().map(|thread| thread.join().unwrap());
            told.filter(|told| *told).count()
        });
        assert_eq!(told, 1);
        assert!(!since(&run, "kvm", "a"));
        assert!(since(&run, "other", "a"));
        assert!(since(&run, "kvm", "b"));
        assert!(!since(&run, "kvm", "b"));
        let mut marks: Vec<_> = fs::read_dir(&run)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        marks.sort();
        assert_eq!(marks, ["told-kvm.b", "told-other.a"]);
        fs::remove_dir_all(run).unwrap();
        assert!(!since(Path::new("/proc/nowhere"), "kvm", "a"));
    }
}
