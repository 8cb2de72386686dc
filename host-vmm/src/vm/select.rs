//! Which accelerator runs a VM.

use super::{Hypervisor, qemu::Qemu};

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

    fn hypervisor(self) -> Result<Box<dyn Hypervisor>, String> {
        match self {
            Self::Auto | Self::Kvm | Self::Um => Err("not built into this version".to_owned()),
            Self::Tcg => Ok(Box::new(Qemu::from_path())),
        }
    }
}

/// The accelerator that `asked` comes to on this host.
///
/// # Errors
/// Why none does.
pub fn select(asked: Accelerator) -> Result<Box<dyn Hypervisor>, NoAccelerator> {
    let tried = match asked {
        Accelerator::Auto => &ORDER[..],
        _ => std::slice::from_ref(&asked),
    };
    let mut reasons = Vec::new();
    for accelerator in tried {
        let found = accelerator.hypervisor();
        match found.and_then(|found| found.probe().map(|()| found)) {
            Ok(hypervisor) => return Ok(hypervisor),
            Err(reason) => reasons.push(format!("{}: {reason}", accelerator.name())),
        }
    }
    Err(NoAccelerator {
        asked: asked.name(),
        reasons,
    })
}

/// What is known of every accelerator, in the order of preference.
#[must_use]
pub fn verdicts() -> Vec<Verdict> {
    let verdict = |accelerator: Accelerator| {
        let found = accelerator.hypervisor();
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
