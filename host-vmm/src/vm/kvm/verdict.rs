//! What the probe said, kept for as long as it would say the same.

use std::{
    arch::x86_64::{__cpuid, CpuidResult},
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use imagebuilder::atomic;

use super::{
    access::DEVICE,
    probe::{self, Incapable, Refused},
};
use crate::once;

/// Name of the record in the directory of what lasts until the machine is started anew.
const NAME: &str = "kvm-verdict";

/// What was found out, and about what.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    /// Everything that the verdict depends on.
    about: String,
    /// `None` if Linux runs.
    incapable: Option<Incapable>,
}

/// Whether Linux runs on this host's KVM. The directory `run`, if it is there, keeps what was found out.
///
/// # Errors
/// [`Refused`].
pub fn verdict(run: &Path) -> Result<(), Refused> {
    kept(run, about(), probe::probe)
}

/// What `find_out` says, or has said of the same.
fn kept(
    run: &Path,
    about: Option<String>,
    find_out: impl FnOnce() -> Result<(), Refused>,
) -> Result<(), Refused> {
    let Some(about) = about else {
        return find_out();
    };
    let path = run.join(NAME);
    // A record that cannot be read is none.
    let known = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())
        .filter(|record| record.about == about);
    if let Some(record) = known {
        return record.incapable.map_or(Ok(()), |reason| Err(reason.into()));
    }
    let found = find_out();
    let incapable = match &found {
        Ok(()) => None,
        Err(Refused::Incapable(reason)) => Some(*reason),
        // Of what went wrong on the way, the next may see nothing.
        Err(_) => return found,
    };
    let record = Record { about, incapable };
    let written = serde_json::to_vec(&record)
        .map_err(io::Error::other)
        .and_then(|bytes| keep(&path, &bytes));
    if let Err(error) = written {
        tracing::debug!(
            "Cannot keep what is known of KVM in {}: {error}",
            path.display()
        );
    }
    found
}

/// Writes the record. After a power cut nobody wants it.
fn keep(path: &Path, record: &[u8]) -> io::Result<()> {
    let mut writer = atomic::Writer::create(path)?;
    writer.write_all(record)?;
    writer.commit_unsynced()
}

/// The start of this machine, its kernel, its KVM (a module that is loaded again makes its device anew), and its CPU: a
/// virtual machine may go on elsewhere without noticing. `None` if one of them cannot be told.
fn about() -> Option<String> {
    let boot = once::this_boot()?;
    let system = rustix::system::uname();
    let device = fs::metadata(DEVICE).ok()?;
    let words = |CpuidResult { eax, ebx, ecx, edx }| [eax, ebx, ecx, edx];
    let mut cpu = [0, 0x4000_0000, 0x8000_0001]
        .map(|leaf| words(__cpuid(leaf)))
        .concat();
    // Without the second, which says which of the CPUs this is.
    let CpuidResult { eax, ecx, edx, .. } = __cpuid(1);
    // And without what of its features the kernel switches on: OSXSAVE.
    cpu.extend([eax, ecx & !(1 << 27), edx]);
    Some(format!(
        "{} {boot} {} {} {}:{}:{}.{} {cpu:x?}",
        probe::REVISION,
        system.release().to_string_lossy(),
        system.version().to_string_lossy(),
        device.rdev(),
        device.ino(),
        device.ctime(),
        device.ctime_nsec(),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{cell::Cell, path::PathBuf};

    use super::*;

    struct Run(PathBuf);

    impl Run {
        fn new(name: &str) -> Self {
            let name = format!("vmm-verdict-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        /// The verdict about this, and whether it had to be found out.
        fn ask(&self, about: &str, answer: &Result<(), Refused>) -> (Result<(), Refused>, bool) {
            let asked = Cell::new(false);
            let verdict = kept(&self.0, Some(about.to_owned()), || {
                asked.set(true);
                answer.clone()
            });
            (verdict, asked.get())
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn incapable() -> Refused {
        let reason = r#"{"at":"Int3","how":"Unable","hardware":false}"#;
        Refused::Incapable(serde_json::from_str(reason).unwrap())
    }

    #[test]
    fn either_verdict_is_found_out_once() {
        let run = Run::new("once");
        assert_eq!(run.ask("a", &Ok(())), (Ok(()), true));
        assert_eq!(run.ask("a", &Err(incapable())), (Ok(()), false));
        // Something else is there now.
        assert_eq!(run.ask("b", &Err(incapable())), (Err(incapable()), true));
        assert_eq!(run.ask("b", &Ok(())), (Err(incapable()), false));
        assert_eq!(fs::read_dir(&run.0).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_verdict_is_not_kept() {
        let run = Run::new("late");
        assert_eq!(
            run.ask("a", &Err(Refused::Late)),
            (Err(Refused::Late), true)
        );
        assert_eq!(run.ask("a", &Ok(())), (Ok(()), true));
    }

    #[test]
    fn a_record_that_is_broken_or_has_no_place_is_none() {
        let run = Run::new("broken");
        run.ask("a", &Ok(())).0.unwrap();
        let path = run.0.join(NAME);
        let whole = fs::read(&path).unwrap();
        for broken in [&whole[..whole.len() / 2], b"", b"\xff\xfe", b"{}"] {
            fs::write(&path, broken).unwrap();
            assert_eq!(run.ask("a", &Err(incapable())), (Err(incapable()), true));
        }
        let nowhere = Run(run.0.join("nowhere"));
        assert_eq!(nowhere.ask("a", &Ok(())), (Ok(()), true));
        assert!(!nowhere.0.exists());
        let asked = kept(&run.0, None, || Err(Refused::Late));
        assert_eq!(asked, Err(Refused::Late));
    }

    #[test]
    fn what_a_verdict_is_about_stays_the_same() {
        assert_eq!(about(), about());
        println!("{:?}", about());
    }
}
