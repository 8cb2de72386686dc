//! Images made by a recipe: what the project ships and tests with.
//!
//! A recipe is a text of one instruction a line, its words separated by blanks; `#` begins a comment. Sources of files
//! are paths beside the recipe, or absolute ones on the machine that builds. The same recipe and sources give the same
//! bytes: everything belongs to root, and was last changed at the beginning of 1970.
//!
//! ```text
//! name busybox:latest
//! directory /tmp 1777
//! file /bin/busybox 755 /bin/busybox
//! symlink /usr/bin/env ../../bin/env
//! applets /bin /bin/busybox            # a link for each name that `/bin/busybox --list` prints
//! env PATH=/bin
//! cmd sh -c ls
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::manifest::Origin;
use crate::oci::{self, Content};
use crate::reference::{self, Reference};
use crate::sha256;

/// Why an image cannot be made by a recipe.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe or a source cannot be read.
    #[error("Cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line of the recipe means nothing.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// The recipe.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// What it calls the image is no name.
    #[error(transparent)]
    Name(#[from] reference::Error),
    /// It does not say what the image is called.
    #[error("{} does not name the image", .path.display())]
    Nameless {
        /// The recipe.
        path: PathBuf,
    },
    /// A program does not list its applets.
    #[error("Cannot list the applets of {}", .path.display())]
    Applets {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("Cannot write {}", .path.display())]
    Write {
        /// The layout directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the image of the recipe at `path`, and writes it as an OCI layout to the directory `out`. Gives what it was made
/// of: its hash is the digest of its manifest.
///
/// # Errors
/// The recipe or a source cannot be read, an instruction is malformed, or the layout cannot be written.
pub fn build(path: &Path, out: &Path) -> Result<Origin, Error> {
    let text = read(path)?;
    let recipe = input("recipe", &text);
    let text = String::from_utf8_lossy(&text);
    let mut image = Image {
        folder: path.parent().unwrap_or(Path::new("")),
        name: None,
        entries: BTreeMap::new(),
        environment: Vec::new(),
        command: Vec::new(),
        sources: vec![recipe],
    };
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        image.follow(&words).map_err(|stop| match stop {
            Stop::Line(reason) => Error::Line {
                path: path.to_path_buf(),
                line: index + 1,
                reason,
            },
            Stop::Error(error) => error,
        })?;
    }
    let name = image.name.take().ok_or_else(|| Error::Nameless {
        path: path.to_path_buf(),
    })?;
    let write_error = |source| Error::Write {
        path: out.to_path_buf(),
        source,
    };
    let content = Content {
        name: name.to_string(),
        layer: archive(&image.entries).map_err(write_error)?,
        config: json!({ "Env": image.environment, "Cmd": image.command }),
    };
    let layout = oci::write(out, &content).map_err(write_error)?;
    Ok(Origin {
        name: name.familiar(),
        sha256: layout.digest.hex().to_owned(),
        inputs: image.sources,
        ..Origin::default()
    })
}

fn input(name: &str, content: &[u8]) -> Origin {
    Origin {
        name: name.to_owned(),
        sha256: sha256::of(content),
        ..Origin::default()
    }
}

/// An image in the making.
struct Image<'a> {
    folder: &'a Path,
    name: Option<Reference>,
    /// By path, without the leading `/`: an archive in the order of its names has each directory before what is in it.
    entries: BTreeMap<String, Entry>,
    environment: Vec<String>,
    command: Vec<String>,
    /// What has been read to make it.
    sources: Vec<Origin>,
}

enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: String },
}

/// Why an instruction is not followed.
enum Stop {
    Line(&'static str),
    Error(Error),
}

impl From<&'static str> for Stop {
    fn from(reason: &'static str) -> Self {
        Self::Line(reason)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Image<'_> {
    fn follow(&mut self, words: &[&str]) -> Result<(), Stop> {
        match words {
            [] => {}
            ["name", name] => self.name = Some(name.parse().map_err(Error::Name)?),
            ["directory", path, mode] => {
                let mode = octal(mode)?;
                self.add(path, Entry::Directory { mode })?;
            }
            ["file", path, mode, source] => {
                let (mode, content) = (octal(mode)?, read(&self.folder.join(source))?);
                self.sources.push(input(source, &content));
                self.add(path, Entry::File { mode, content })?;
            }
            ["symlink", path, target] => {
                let target = (*target).to_owned();
                self.add(path, Entry::Symlink { target })?;
            }
            ["applets", directory, program] => self.add_applets(directory, Path::new(program))?,
            ["env", variable] if variable.contains('=') => {
                self.environment.push((*variable).to_owned());
            }
            ["cmd", command @ ..] if !command.is_empty() => {
                self.command = command.iter().map(|&word| word.to_owned()).collect();
            }
            _ => return Err("There is no such instruction, or it has other arguments".into()),
        }
        Ok(())
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<(), Stop> {
        let path = path.strip_prefix('/').filter(|path| !path.is_empty());
        let path = path.ok_or("The path in the image must begin with / and be more than that")?;
        let parent_is_directory = match path.rsplit_once('/') {
            Some((parent, _)) => matches!(self.entries.get(parent), Some(Entry::Directory { .. })),
            None => true,
        };
        if !parent_is_directory {
            return Err("The directory that it is in must be made first".into());
        }
        match self.entries.insert(path.to_owned(), entry) {
            Some(_) => Err("There is something of this name already".into()),
            None => Ok(()),
        }
    }

    /// Links to `program`, which is in `directory` of the image, by all the names that it goes by.
    fn add_applets(&mut self, directory: &str, program: &Path) -> Result<(), Stop> {
        let applets = list_applets(program).map_err(|source| Error::Applets {
            path: program.to_path_buf(),
            source,
        })?;
        let target = program.file_name().and_then(|name| name.to_str());
        let target = target.ok_or("The program has no name")?.to_owned();
        for applet in applets.lines().filter(|applet| *applet != target) {
            let target = target.clone();
            self.add(&format!("{directory}/{applet}"), Entry::Symlink { target })?;
        }
        Ok(())
    }
}

fn list_applets(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--list").output()?;
    match output.status.success() {
        true => String::from_utf8(output.stdout).map_err(io::Error::other),
        false => Err(io::Error::other(output.status.to_string())),
    }
}

fn octal(mode: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(mode, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("The mode must be an octal number of four digits at most"),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })
}

fn archive(entries: &BTreeMap<String, Entry>) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, entry) in entries {
        let mut header = Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        match entry {
            Entry::Directory { mode } => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Entry::File { mode, content } => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    builder.into_inner()
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
