//! Looks at every file that machines may boot from, byte by byte.

use std::path::{Path, PathBuf};

use imagebuilder::{
    hashes::Hashes,
    manifest::{self, Artifact},
    store::{self, Store},
};

use super::{INSTALL, Installation, InstallationError, Kind, TakenFiles};
use crate::{paths::Paths, report::Report};

/// What came of looking at a file.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is, for people.
    pub what: String,
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 that it should have, if that is known.
    pub expected: Option<String>,
    /// The one it has, if it can be read.
    pub found: Option<String>,
    /// What is wrong with it, and what puts it right.
    pub problem: Option<String>,
}

/// Hashes all that the installation, the user's kernels and initfs, and the images in `images` consist of. What is
/// remembered of their hashes is what they are now: a run refuses what was found to be wrong.
///
/// # Errors
/// The store cannot be read.
pub fn verify(paths: &Paths, images: &Store) -> Result<Vec<Finding>, store::Error> {
    let hashes = Hashes::new(paths.hashes());
    let mut findings = match Installation::open(paths) {
        Ok(installation) => installation
            .artifacts()
            .map(|(path, artifact)| {
                let what = name(artifact);
                look(&hashes, what, path, &artifact.origin.sha256, INSTALL)
            })
            .collect(),
        Err(InstallationError::None | InstallationError::Kernel(_)) => Vec::new(),
        Err(InstallationError::Manifest(error)) => vec![Finding {
            what: "manifest".to_owned(),
            path: paths.share().unwrap_or(Path::new("")).join(manifest::FILE),
            expected: None,
            found: None,
            problem: Some(format!("{}; {INSTALL}", in_one_line(&error))),
        }],
    };
    let taken = TakenFiles::open(paths);
    for kind in Kind::ALL {
        for file in taken.list(kind) {
            let remedy = format!("naming it with --{} again puts it right", kind.name());
            let what = format!("{} of a user", kind.name());
            findings.push(look(&hashes, what, file.path, &file.sha256, &remedy));
        }
    }
    for store::Entry { directory, image } in images.entries()? {
        let remedy = "loading the image again puts it right";
        let finding = match image {
            Ok(image) => {
                let name = image.names.first().unwrap_or(&image.digest);
                let what = format!("image {name}");
                look(&hashes, what, image.rootfs, &image.sha256, remedy)
            }
            Err(error) => Finding {
                what: "image".to_owned(),
                path: directory,
                expected: None,
                found: None,
                problem: Some(in_one_line(&error)),
            },
        };
        // Those of the installation are in its manifest.
        if findings.iter().all(|other| other.path != finding.path) {
            findings.push(finding);
        }
    }
    Ok(findings)
}

fn look(hashes: &Hashes, what: String, path: PathBuf, expected: &str, remedy: &str) -> Finding {
    let (found, problem) = match hashes.compute(&path) {
        Ok(found) if found == expected => (Some(found), None),
        Ok(found) => {
            let problem = format!("its SHA-256 should be {expected}; {remedy}");
            (Some(found), Some(problem))
        }
        Err(error) => (None, Some(format!("it cannot be read: {error}; {remedy}"))),
    };
    Finding {
        what,
        path,
        expected: Some(expected.to_owned()),
        found,
        problem,
    }
}

/// What people call a file of the installation.
#[must_use]
pub fn name(artifact: &Artifact) -> String {
    let name = &artifact.origin.name;
    match artifact.kind {
        manifest::Kind::Kernel => format!("kernel {name}"),
        manifest::Kind::Initfs => "initfs".to_owned(),
        manifest::Kind::Image => format!("image {name}"),
        manifest::Kind::Program => format!("program {name}"),
    }
}

/// An error and its causes.
fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    Report::of(error).causes.join(": ")
}
