//! The configuration files: what is meant where neither a flag nor the environment says it.
//!
//! The system's file comes first, then the user's, and what comes later wins. They hold defaults and no policy: whoever may
//! run this program may say something else. What they say decides what is run, and as how strong an isolation, so a file
//! that somebody else could have written is refused.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};
use toml_span::{Span, value::ValueInner};

use super::values;
use crate::{
    paths,
    terminal::printable,
    vm::{Accelerator, Isolation},
};

/// What may stand in a file.
const KEYS: [&str; 5] = ["accel", "cpus", "isolation", "memory", "root"];

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 16 << 10;

/// Characters of a key or value that an error shows.
const SHOWN: usize = 60;

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The directory of images and containers.
    pub root: Option<PathBuf>,
    /// What runs machines.
    pub accelerator: Option<Accelerator>,
    /// What has to isolate them.
    pub isolation: Option<Isolation>,
    /// Memory of a machine in bytes.
    pub memory: Option<u64>,
    /// CPUs that a container may use, in thousandths.
    pub cpu_milli: Option<u32>,
    /// The files that there are, in the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// Why a configuration file is not used. Nothing is done then.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("Cannot read the configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could change what is run.
    #[error("The configuration file {} {why}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// It does not say what it could.
    #[error("Line {line} of the configuration file {} {why}", .path.display())]
    Line {
        /// Which line, from 1.
        line: usize,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to write instead.
        why: String,
    },
}

impl Config {
    /// Reads the files that there are.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read() -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let system = Some((PathBuf::from(paths::SYSTEM_CONFIG), false));
        let user = paths::user_config().map(|path| (path, true));
        for (path, of_user) in [system, user].into_iter().flatten() {
            if let Some(text) = content(&path, of_user)? {
                tracing::debug!("Read the configuration file {}", path.display());
                let said = Self::parse(&path, &text)?;
                config = said.over(config);
            }
        }
        Ok(config)
    }

    /// What the content of the file `path` says.
    ///
    /// # Errors
    /// [`ConfigError::Line`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line = |span: Span, why: String| ConfigError::Line {
            line: 1 + text
                .bytes()
                .take(span.start)
                .filter(|&b| b == b'\n')
                .count(),
            path: path.to_owned(),
            why,
        };
        let mut document = toml_span::parse(text)
            .map_err(|error| (error.span, printable(&error.to_string(), 2 * SHOWN)))
            .map_err(|(span, why)| line(span, format!("is not right: {why}")))?;
        let ValueInner::Table(table) = document.take() else {
            return Err(line(document.span, "is not right: no key".to_owned()));
        };
        let mut config = Self {
            files: vec![path.to_owned()],
            ..Self::default()
        };
        for (key, mut value) in table.into_iter().collect::<BTreeMap<_, _>>() {
            let said = match value.take() {
                ValueInner::String(text) => text.into_owned(),
                ValueInner::Integer(number) => number.to_string(),
                ValueInner::Float(number) => number.to_string(),
                _ => String::new(),
            };
            config.set(&key.name, &said).map_err(|why| match why {
                Some(why) => {
                    let (key, said) = (printable(&key.name, SHOWN), printable(&said, SHOWN));
                    line(value.span, format!("has {said:?} for {key}: {why}"))
                }
                None => {
                    let key = printable(&key.name, SHOWN);
                    let (last, others) = KEYS.split_last().unwrap_or((&"", &[]));
                    let known = others.join(", ");
                    let why = format!("has the unknown key {key:?}; there are {known} and {last}");
                    line(value.span, why)
                }
            })?;
        }
        Ok(config)
    }

    /// Takes what is said of a key. The error is what to say instead; `None` if there is no such key.
    fn set(&mut self, key: &str, said: &str) -> Result<(), Option<String>> {
        match key {
            "root" => {
                let root = PathBuf::from(said);
                if !root.is_absolute() {
                    return Err(Some("give an absolute path".to_owned()));
                }
                self.root = Some(root);
            }
            "accel" => self.accelerator = Some(values::accelerator(said)?),
            "isolation" => self.isolation = Some(values::isolation(said)?),
            "memory" => self.memory = Some(values::memory(said)?),
            "cpus" => self.cpu_milli = Some(values::cpus(said)?),
            _ => return Err(None),
        }
        Ok(())
    }

    /// The files for people.
    #[must_use]
    pub fn files_text(&self) -> String {
        let names = self.files.iter().map(|path| path.display().to_string());
        names.collect::<Vec<_>>().join(" and ")
    }

    /// This, and what `below` says where this says nothing.
    fn over(self, below: Self) -> Self {
        Self {
            root: self.root.or(below.root),
            accelerator: self.accelerator.or(below.accelerator),
            isolation: self.isolation.or(below.isolation),
            memory: self.memory.or(below.memory),
            cpu_milli: self.cpu_milli.or(below.cpu_milli),
            files: [below.files, self.files].concat(),
        }
    }
}

/// The text of a file; `None` if there is none. The system's belongs to root, a user's to that user or to root.
fn content(path: &Path, of_user: bool) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let refused = |why: String| ConfigError::Refused {
        path: path.to_owned(),
        why,
    };
    // A pipe that nobody writes into would be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = match open(path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused("is no regular file; remove it".to_owned()));
    }
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && !(of_user && owner == own) {
        let to = if of_user { "yourself" } else { "root" };
        return Err(refused(format!(
            "belongs to another user (uid {owner}), who could change what is run; look through it, and give it to {to}"
        )));
    }
    if metadata.mode() & 0o022 != 0 {
        let path = path.display();
        return Err(refused(format!(
            "can be written by others, who could change what is run; look through it, and chmod go-w {path}"
        )));
    }
    let mut text = String::new();
    let bounded = &mut file.take(MAX_SIZE + 1);
    bounded.read_to_string(&mut text).map_err(failed)?;
    match text.len() as u64 <= MAX_SIZE {
        true => Ok(Some(text)),
        false => Err(refused(format!("is longer than {MAX_SIZE} bytes"))),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
