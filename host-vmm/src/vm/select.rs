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
#[error("Cannot run a VM with --accel {asked}: {reasons}")]
pub struct NoAccelerator {
    /// What was asked for.
    asked: &'static str,
    /// Why each does not work.
    reasons: String,
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

    fn hypervisor(self) -> Result<(Box<dyn Hypervisor>, String), String> {
        match self {
            Self::Auto | Self::Kvm | Self::Um => Err("not built into this version".to_owned()),
            Self::Tcg => {
                let qemu = Qemu::from_path();
                let uses = qemu.probe()?;
                Ok((Box::new(qemu), uses))
            }
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
        match accelerator.hypervisor() {
            Ok((hypervisor, _)) => return Ok(hypervisor),
            Err(reason) => reasons.push(format!("{}: {reason}", accelerator.name())),
        }
    }
    Err(NoAccelerator {
        asked: asked.name(),
        reasons: reasons.join("; "),
    })
}

/// What is known of every accelerator, in the order of preference.
#[must_use]
pub fn verdicts() -> Vec<Verdict> {
    let verdict = |accelerator: Accelerator| {
        let (usable, reason) = match accelerator.hypervisor() {
            Ok((_, uses)) => (true, uses),
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
