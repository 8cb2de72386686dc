//! What lies on the disk.

use anyhow::{Context, Result};
use end_to_end::{Root, artifact};

use crate::{
    Kernel,
    table::{Row, Target, Unit},
};

const MIB: f64 = 1048576.0;

pub fn measure(_root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let vmlinux = kernel
        .kernel
        .clone()
        .unwrap_or_else(|| artifact("share/vmm/kernels/default/vmlinux", "make image"));
    [
        (
            "vminitd",
            artifact("build/vminitd", "make build"),
            1.2 * MIB,
            Unit::Mebibytes,
        ),
        (
            "initfs",
            artifact("share/vmm/initfs.cpio", "make image"),
            1.5 * MIB,
            Unit::Mebibytes,
        ),
        ("vmlinux", vmlinux, 20e6, Unit::Megabytes),
    ]
    .into_iter()
    .map(|(name, path, most, unit)| {
        let file = path
            .metadata()
            .with_context(|| format!("Cannot find {}", path.display()))?;
        #[allow(clippy::cast_precision_loss)]
        Ok(Row::once(
            format!("{name}, on disk"),
            Target::AtMost(most),
            unit,
            file.len() as f64,
        ))
    })
    .collect()
}
