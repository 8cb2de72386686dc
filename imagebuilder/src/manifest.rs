//! The manifest of an installation: what it consists of, by hashes, and what that was made of.
//!
//! `share/vmm/manifest.json` has nothing in it that depends on when or where it was made. It goes wherever the files go;
//! what it says of them holds in every copy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sha256;

/// The manifest's name in `share/vmm`.
pub const FILE: &str = "manifest.json";

/// Version of the manifest's own form.
const FORMAT: u32 = 1;

/// The largest manifest, or origin, that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// What something is, and what it was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What people call it.
    pub name: String,
    /// The SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
    /// What there is to know beside its inputs: what it calls itself, and the tools that made it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// What it was made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Origin>,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What machines boot.
    Kernel,
    /// The archive with PID 1.
    Initfs,
    /// The root disk of an image.
    Image,
    /// What runs on the host.
    Program,
}

/// A file of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is for.
    pub kind: Kind,
    /// Where it is, from the directory that has `bin` and `share` in it.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What it is, and what it was made of.
    #[serde(flatten)]
    pub origin: Origin,
}

/// All files of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The version of the project.
    pub version: String,
    /// The files.
    pub artifacts: Vec<Artifact>,
}

/// Why there is no manifest, or none can be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or a file that it would name, cannot be read.
    #[error("Cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error("{} was written by another version of this program", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// It names what is not below its directory.
    #[error("{} names {}, which is no path in an installation", .path.display(), .named.display())]
    Elsewhere {
        /// The manifest.
        path: PathBuf,
        /// What it names.
        named: PathBuf,
    },
    /// A file is not what was made.
    #[error("{} was changed after it had been made; make it again", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

impl Origin {
    /// The file at `path`, of which no more is known than its content.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(name: &str, path: &Path) -> Result<Self, Error> {
        let file = File::open(path).and_then(sha256::of_reader);
        let sha256 = file.map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            sha256,
            ..Self::default()
        })
    }

    /// The file at `path`, whose SHA-256 is known.
    pub fn of_known(path: &Path, sha256: String) -> Self {
        let name = path.file_name().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            sha256,
            ..Self::default()
        }
    }

    /// What was written about something that was made.
    ///
    /// # Errors
    /// It cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        read_json(path)
    }

    /// Puts what else is known of an input in the place of it.
    pub fn explain(&mut self, known: &Self) {
        let same = self.inputs.iter_mut();
        for input in same.filter(|input| input.sha256 == known.sha256) {
            *input = known.clone();
        }
    }

    /// Where a file of this origin is in an installation. A root disk's first input is the image's manifest.
    fn place(&self, kind: Kind) -> PathBuf {
        let name = &self.name;
        let input = self.inputs.first().map_or("", |input| &input.sha256);
        PathBuf::from(match kind {
            Kind::Kernel => format!("share/vmm/kernels/{name}/vmlinux"),
            Kind::Initfs => "share/vmm/initfs.cpio".to_owned(),
            Kind::Image => format!("share/vmm/images/{input}/rootfs.ext4"),
            Kind::Program => format!("bin/{name}"),
        })
    }
}

impl Manifest {
    /// The manifest of what is below `prefix`, and is what `origins` say of it.
    ///
    /// # Errors
    /// A file cannot be read, or is not what was made.
    pub fn gather(
        prefix: &Path,
        origins: impl IntoIterator<Item = (Kind, Origin)>,
    ) -> Result<Self, Error> {
        let artifact = |(kind, origin): (Kind, Origin)| {
            let place = origin.place(kind);
            let path = prefix.join(&place);
            let found = Origin::of_file(&origin.name, &path)?;
            if found.sha256 != origin.sha256 {
                return Err(Error::Changed { path });
            }
            let size = path.metadata().map(|metadata| metadata.len());
            let size = size.map_err(|source| Error::Read { path, source })?;
            Ok(Artifact {
                kind,
                path: place,
                size,
                origin,
            })
        };
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            artifacts: origins
                .into_iter()
                .map(artifact)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Reads the manifest at `path`.
    ///
    /// # Errors
    /// It cannot be read, or is not what this version writes.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let manifest: Self = read_json(path)?;
        if manifest.format != FORMAT {
            let path = path.to_path_buf();
            return Err(Error::Format { path });
        }
        for artifact in &manifest.artifacts {
            let mut parts = artifact.path.components();
            if !parts.all(|part| matches!(part, Component::Normal(_))) {
                return Err(Error::Elsewhere {
                    path: path.to_path_buf(),
                    named: artifact.path.clone(),
                });
            }
        }
        Ok(manifest)
    }
}

/// As what is written about something is written: for people, too.
///
/// # Errors
/// Never, of what is here.
pub fn to_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes))
        .map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Damaged {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    /// An installation of a kernel and a program.
    fn install(folder: &Folder) -> [(Kind, Origin); 2] {
        let put = |kind, name: &str, content: &str| {
            let mut origin = Origin {
                name: name.to_owned(),
                sha256: sha256::of(content),
                ..Origin::default()
            };
            origin.versions.insert("release".into(), "6.12".into());
            let path = folder.path().join(origin.place(kind));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
            (kind, origin)
        };
        [
            put(Kind::Kernel, "default", "a kernel"),
            put(Kind::Program, "vmm", "a program"),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = Folder::new("manifest");
        let manifest = Manifest::gather(folder.path(), install(&folder)).unwrap();
        let kernel = &manifest.artifacts[0];
        assert_eq!(kernel.path, Path::new("share/vmm/kernels/default/vmlinux"));
        assert_eq!(kernel.size, 8);
        assert_eq!(manifest.artifacts[1].path, Path::new("bin/vmm"));
        let path = folder.path().join(FILE);
        std::fs::write(&path, to_json(&manifest).unwrap()).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
    }

    #[test]
    fn what_was_changed_after_it_was_made_gets_no_manifest() {
        let folder = Folder::new("manifest-changed");
        let origins = install(&folder);
        std::fs::write(folder.path().join("bin/vmm"), "another").unwrap();
        let error = Manifest::gather(folder.path(), origins).unwrap_err();
        assert!(error.to_string().contains("bin/vmm"), "{error}");
    }

    #[test]
    fn a_manifest_that_is_none_is_refused() {
        let folder = Folder::new("manifest-bad");
        let path = folder.path().join(FILE);
        let put = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Manifest::read(&path).unwrap_err()
        };
        assert!(matches!(put("{"), Error::Damaged { .. }));
        let other = r#"{"format":2,"version":"1","artifacts":[]}"#;
        assert!(matches!(put(other), Error::Format { .. }));
        for named in ["/etc/shadow", "../x", "a/../../b"] {
            let text = format!(
                r#"{{"format":1,"version":"1","artifacts":[
                    {{"kind":"kernel","path":"{named}","size":1,"name":"x","sha256":""}}]}}"#
            );
            assert!(matches!(put(&text), Error::Elsewhere { .. }), "{named}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Manifest::read(&path), Err(Error::Read { .. })));
    }

    #[test]
    fn an_input_is_explained_by_its_content() {
        let input = |name: &str, sha256: &str| Origin {
            name: name.into(),
            sha256: sha256.into(),
            ..Origin::default()
        };
        let mut initfs = Origin {
            inputs: vec![input("vminitd", "1"), input("other", "2")],
            ..input("initfs", "0")
        };
        let known = Origin {
            inputs: vec![input("Cargo.lock", "3")],
            ..input("vminitd", "1")
        };
        initfs.explain(&known);
        assert_eq!(initfs.inputs, [known.clone(), input("other", "2")]);
        initfs.explain(&input("somebody else's", "4"));
        assert_eq!(initfs.inputs[0], known);
    }
}
