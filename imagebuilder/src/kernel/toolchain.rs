//! The tools that build a kernel.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use super::{Error, child};
use crate::hashes::Hashes;

/// The programs that a build runs, and the packages of Debian that have them.
const PROGRAMS: [(&str, &str); 11] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
    ("patch", "patch"),
    ("xz", "xz-utils"),
];

/// The header that objtool, which checks and rewrites the kernel's code, is compiled with.
const HEADER: (&str, &str) = ("libelf.h", "libelf-dev");

/// What compiler and linker say they are. Another compiler makes another kernel.
pub(super) fn identify() -> Result<String, Error> {
    let mut lines = String::new();
    for program in ["gcc", "ld"] {
        let mut command = child::command(program);
        command.arg("--version").stdin(Stdio::null());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                check()?;
                return Err(Error::Run {
                    program,
                    source: error,
                });
            }
            Err(source) => return Err(Error::Run { program, source }),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        lines += text.lines().next().unwrap_or_default();
        lines.push('\n');
    }
    Ok(lines)
}

/// What the C library is that a kernel which runs as a process is linked with. `hashes` remembers.
pub(super) fn identify_library(hashes: &Hashes) -> Result<String, Error> {
    let program = "gcc";
    let mut command = child::command(program);
    command.arg("-print-file-name=libc.a").stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|source| Error::Run { program, source })?;
    let path = String::from_utf8_lossy(&output.stdout);
    let path = Path::new(path.trim_end());
    // It gives back what it does not find.
    if !path.is_absolute() {
        let (missing, packages) = (vec!["libc.a"], vec!["libc6-dev"]);
        return Err(Error::Tools { missing, packages });
    }
    let sha256 = hashes
        .get(path)
        .map_err(|source| Error::read(path, source))?;
    Ok(format!("libc.a {sha256}\n"))
}

/// Checks that everything is there: a build would notice only after minutes.
///
/// # Errors
/// All that is missing, in one error.
pub(super) fn check() -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut missing = missing_programs(&path);
    let has_compiler = missing.iter().all(|(name, _)| *name != "gcc");
    if has_compiler && !compiles(HEADER.0)? {
        missing.push(HEADER);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (names, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    packages.dedup();
    Err(Error::Tools {
        missing: names,
        packages,
    })
}

fn missing_programs(path: &OsStr) -> Vec<(&'static str, &'static str)> {
    let is_there =
        |name: &str| std::env::split_paths(path).any(|directory| directory.join(name).is_file());
    let missing = PROGRAMS.iter().filter(|(name, _)| !is_there(name));
    missing.copied().collect()
}

/// Whether the compiler finds `header`.
fn compiles(header: &str) -> Result<bool, Error> {
    let mut gcc = child::command("gcc");
    gcc.args(["-fsyntax-only", "-include", header, "-x", "c", "/dev/null"]);
    gcc.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = gcc.status().map_err(|source| Error::Run {
        program: "gcc",
        source,
    })?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn every_missing_program_is_named_with_its_package() {
        let folder = Folder::new("toolchain");
        for (name, _) in PROGRAMS {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let path = folder.path().as_os_str();
        assert_eq!(missing_programs(path), []);
        std::fs::remove_file(folder.path().join("xz")).unwrap();
        std::fs::remove_file(folder.path().join("bc")).unwrap();
        assert_eq!(missing_programs(path), [("bc", "bc"), ("xz", "xz-utils")]);
        assert_eq!(missing_programs(OsStr::new("")).len(), PROGRAMS.len());
    }

    #[test]
    fn the_c_library_is_known_by_its_content() {
        if check().is_err() {
            eprintln!("skipped: the tools that build a kernel are not installed");
            return;
        }
        let folder = Folder::new("libc");
        let line = identify_library(&Hashes::new(folder.path().into())).unwrap();
        let hash = line.strip_prefix("libc.a ").unwrap().trim_end();
        assert!(crate::sha256::is_hash(hash), "{line}");
    }

    #[test]
    fn a_package_is_named_once() {
        let error = Error::Tools {
            missing: vec!["bc", "libelf.h"],
            packages: vec!["bc", "libelf-dev"],
        };
        let expected = "Building a kernel needs bc, libelf.h: make setup installs it, or apt-get install bc libelf-dev";
        assert_eq!(error.to_string(), expected);
    }
}
