//! Which accelerator runs a VM.

use std::path::Path;

use super::{
    Hypervisor,
    kernel::Entry,
    kvm::{self, Kvm},
    qemu::Qemu,
    um::Um,
};

/// What `--accel` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The first that works.
    #[default]
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// A kernel that runs as a process.
    Um,
    /// Software emulation.
    Tcg,
}

/// What a machine's border has to be made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Anything that an accelerator is made of.
    #[default]
    Any,
    /// Hardware virtualization.
    Hardware,
}

impl Isolation {
    /// Its name as `--isolation` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Hardware => "hardware",
        }
    }

    /// Whether an accelerator will do.
    fn admits(self, accelerator: Accelerator) -> bool {
        self == Self::Any || accelerator == Accelerator::Kvm
    }
}

/// The order in which [`Accelerator::Auto`] tries them.
const ORDER: [Accelerator; 3] = [Accelerator::Kvm, Accelerator::Um, Accelerator::Tcg];

/// What is known of an accelerator on this host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Its name as `--accel` takes it.
    pub name: &'static str,
    /// Whether it works.
    pub usable: bool,
    /// What it would use, or why it does not work.
    pub reason: String,
}

/// No accelerator can run the VM.
#[derive(Debug, thiserror::Error)]
#[error("Cannot run a machine with --accel {asked}: {}", .reasons.join("; "))]
pub struct NoAccelerator {
    /// What was asked for.
    asked: &'static str,
    /// Why each does not work.
    reasons: Vec<String>,
}

impl Accelerator {
    /// Its name as `--accel` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Um => "um",
            Self::Tcg => "tcg",
        }
    }

    /// How its kernels are entered.
    #[must_use]
    pub const fn entry(self) -> Entry {
        match self {
            Self::Um => Entry::Program,
            Self::Auto | Self::Kvm | Self::Tcg => Entry::Pvh,
        }
    }

    /// What runs machines on it.
    fn hypervisor(self) -> Box<dyn Hypervisor> {
        match self {
            Self::Auto | Self::Kvm => Box::new(Kvm),
            Self::Um => Box::new(Um),
            Self::Tcg => Box::new(Qemu::from_path()),
        }
    }

    /// The same, where what cannot be told at once speaks for it, too. The directory `run` keeps that.
    fn tried(self, run: &Path) -> Result<Box<dyn Hypervisor>, String> {
        match self {
            Self::Auto | Self::Kvm => kvm::usable(run).map_err(|reason| reason.to_string())?,
            Self::Um | Self::Tcg => {}
        }
        Ok(self.hypervisor())
    }
}

/// The accelerator that `asked` comes to on this host, for a kernel that is entered in a certain way, or for one of
/// those that are `installed`. The directory `run` keeps until the next start of the host what takes long to find out.
///
/// # Errors
/// Why none does.
pub fn decide(
    run: &Path,
    asked: Accelerator,
    isolation: Isolation,
    kernel: Option<Entry>,
    installed: impl Fn(Entry) -> bool,
) -> Result<Accelerator, NoAccelerator> {
    let tried = match asked {
        Accelerator::Auto => &ORDER[..],
        _ => std::slice::from_ref(&asked),
    };
    let mut reasons = Vec::new();
    for &accelerator in tried {
        let fits = match kernel {
            _ if !isolation.admits(accelerator) => {
                Err("its border is software, and --isolation hardware was asked for".to_owned())
            }
            Some(entry) if entry != accelerator.entry() => Err(misfit(entry)),
            None if !has_kernel(accelerator, &installed) => Err(NOT_INSTALLED.to_owned()),
            _ => Ok(()),
        };
        let works = fits
            .and_then(|()| accelerator.tried(run))
            .and_then(|found| found.probe());
        match works {
            Ok(()) => return Ok(accelerator),
            Err(reason) => {
                tracing::debug!("Left out the accelerator {}: {reason}", accelerator.name());
                reasons.push(format!("{}: {reason}", accelerator.name()));
            }
        }
    }
    Err(NoAccelerator {
        asked: asked.name(),
        reasons,
    })
}

/// Whether an accelerator has something to boot. That of the others is never left out, and missed where it is looked for.
fn has_kernel(accelerator: Accelerator, installed: &impl Fn(Entry) -> bool) -> bool {
    accelerator != Accelerator::Um || installed(accelerator.entry())
}

/// Why an accelerator is of no use.
const NOT_INSTALLED: &str = "its kernel is not installed; make image builds it";

/// Why a kernel is the wrong one.
fn misfit(entry: Entry) -> String {
    match entry {
        Entry::Pvh => "the kernel is one for a machine; --accel kvm or tcg runs it".to_owned(),
        Entry::Program => {
            "the kernel is one that is a program (ARCH=um); --accel um runs it".to_owned()
        }
    }
}

/// What runs machines on an accelerator that [`decide`] gave.
///
/// # Errors
/// It does not work any more, as far as that can be told at once.
pub fn open(accelerator: Accelerator) -> Result<Box<dyn Hypervisor>, NoAccelerator> {
    let found = accelerator.hypervisor();
    let works = found.probe().map(|()| found);
    works.map_err(|reason| NoAccelerator {
        asked: accelerator.name(),
        reasons: vec![reason],
    })
}

/// What is known of every accelerator, in the order of preference, where the kernels are `installed`; `run` is as for
/// [`decide`].
#[must_use]
pub fn verdicts(run: &Path, installed: impl Fn(Entry) -> bool) -> Vec<Verdict> {
    let verdict = |accelerator: Accelerator| {
        let found = match has_kernel(accelerator, &installed) {
            true => accelerator.tried(run),
            false => Err(NOT_INSTALLED.to_owned()),
        };
        let (usable, reason) = match found.and_then(|found| found.describe()) {
            Ok(uses) => (true, uses),
            Err(reason) => (false, reason),
        };
        Verdict {
            name: accelerator.name(),
            usable,
            reason,
        }
    };
    ORDER.into_iter().map(verdict).collect()
}
