//! What the installation consists of, for `vmm version` and `vmm system info`.

use imagebuilder::manifest::{Artifact, Origin};

use super::output;
use crate::{
    boot_files::{self, Installation},
    paths::Paths,
};

/// Digits of a hash that are shown in a table.
const SHORT: usize = 12;

/// The artifacts of an installation. Where there is no manifest there are none: a run says why.
pub fn list(paths: &Paths) -> Vec<Artifact> {
    let installation = Installation::open(paths).ok();
    let artifacts = installation.iter().flat_map(Installation::artifacts);
    artifacts.map(|(_, artifact)| artifact.clone()).collect()
}

/// A line for each, and below it what it was made of.
pub fn table(artifacts: &[Artifact]) -> String {
    let mut rows = Vec::new();
    for artifact in artifacts {
        rows.push(vec![
            boot_files::name(artifact),
            short(&artifact.origin.sha256),
            output::size(artifact.size),
            versions(&artifact.origin),
        ]);
        inputs(&artifact.origin, 1, &mut rows);
    }
    output::table(&["ARTIFACT", "SHA-256", "SIZE", "VERSIONS"], &rows)
}

fn inputs(origin: &Origin, depth: usize, rows: &mut Vec<Vec<String>>) {
    for input in &origin.inputs {
        rows.push(vec![
            format!("{}{}", "  ".repeat(depth), input.name),
            short(&input.sha256),
            String::new(),
            versions(input),
        ]);
        inputs(input, depth + 1, rows);
    }
}

fn versions(origin: &Origin) -> String {
    let versions = origin.versions.iter();
    let versions: Vec<String> = versions
        .map(|(name, version)| match version.starts_with(name.as_str()) {
            true => version.clone(),
            false => format!("{name} {version}"),
        })
        .collect();
    versions.join(", ")
}

/// The first digits of a hash.
pub fn short(sha256: &str) -> String {
    sha256.chars().take(SHORT).collect()
}
