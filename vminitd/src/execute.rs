//! Finding and executing a program.

use std::ffi::{CStr, CString};

use nix::{errno::Errno, unistd::execve};
use rustix::fs::{FileType, stat};

/// Where programs are looked for if the environment has no `PATH`: Docker's default.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Replaces this process by `arguments[0]`, searched for in the `PATH` of `environment` if it has no
/// slash. Returns only if that failed, and says why: `ENOENT` if no such program is there, `EACCES` if one is
/// but may not be executed, `EISDIR` if it is a directory.
pub fn execute(arguments: &[CString], environment: &[CString]) -> Errno {
    let Some(program) = arguments.first() else {
        return Errno::ENOENT;
    };
    let path = environment
        .iter()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    search(program.to_bytes(), path, |candidate| {
        match execve(candidate, arguments, environment) {
            Ok(never) => match never {},
            Err(Errno::EACCES) if is_directory(candidate) => Errno::EISDIR,
            Err(errno) => errno,
        }
    })
}

/// Tries the places where `program` may be in the order of `path`, until `attempt` fails with something else
/// than that it is not there.
fn search(program: &[u8], path: &[u8], mut attempt: impl FnMut(&CStr) -> Errno) -> Errno {
    if program.is_empty() {
        return Errno::ENOENT;
    }
    let mut attempt = |bytes: Vec<u8>| match CString::new(bytes) {
        Ok(candidate) => attempt(&candidate),
        Err(_) => Errno::EINVAL,
    };
    if program.contains(&b'/') {
        return attempt(program.to_vec());
    }
    let mut found = Errno::ENOENT;
    for directory in path.split(|&byte| byte == b':') {
        // An empty element means the working directory (POSIX).
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        match attempt([directory, b"/", program].concat()) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another directory may have one that may be executed.
            errno @ (Errno::EACCES | Errno::EISDIR) => found = errno,
            // Too long for a path: cannot be there.
            Errno::ENAMETOOLONG => {}
            other => return other,
        }
    }
    found
}

fn is_directory(path: &CStr) -> bool {
    stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search in a world where `present` gives the error of executing what exists.
    fn run(program: &str, path: &str, present: &[(&str, Errno)]) -> (Errno, Vec<String>) {
        let mut tried = Vec::new();
        let errno = search(program.as_bytes(), path.as_bytes(), |candidate| {
            let candidate = candidate.to_str().unwrap().to_owned();
            let found = present.iter().find(|(name, _)| *name == candidate);
            tried.push(candidate);
            found.map_or(Errno::ENOENT, |(_, errno)| *errno)
        });
        (errno, tried)
    }

    #[test]
    fn directories_are_tried_in_order() {
        let (errno, tried) = run("ls", "/a:/b::/c", &[]);
        assert_eq!(errno, Errno::ENOENT);
        assert_eq!(tried, ["/a/ls", "/b/ls", "./ls", "/c/ls"]);
    }

    #[test]
    fn a_slash_means_no_search() {
        assert_eq!(
            run("./ls", "/a", &[]),
            (Errno::ENOENT, vec!["./ls".to_owned()])
        );
        assert_eq!(
            run("/x/ls", "/a", &[]),
            (Errno::ENOENT, vec!["/x/ls".to_owned()])
        );
    }

    #[test]
    fn a_program_that_may_not_be_executed_is_remembered() {
        let (errno, tried) = run("ls", "/a:/b", &[("/a/ls", Errno::EACCES)]);
        assert_eq!(errno, Errno::EACCES);
        assert_eq!(tried.len(), 2, "the search goes on");
    }

    #[test]
    fn a_broken_program_ends_the_search() {
        let (errno, tried) = run("ls", "/a:/b", &[("/a/ls", Errno::ENOEXEC)]);
        assert_eq!(errno, Errno::ENOEXEC);
        assert_eq!(tried, ["/a/ls"]);
        assert_eq!(
            run("ls", "/a:/b", &[("/a/ls", Errno::E2BIG)]).0,
            Errno::E2BIG
        );
    }

    #[test]
    fn odd_places_do_not_hide_later_ones() {
        let present = [("/a/ls", Errno::ENOTDIR), ("/b/ls", Errno::ENAMETOOLONG)];
        assert_eq!(run("ls", "/a:/b:/c", &present).1.len(), 3);
    }

    #[test]
    fn an_empty_name_is_not_found() {
        assert_eq!(run("", "/bin", &[]), (Errno::ENOENT, vec![]));
    }

    #[test]
    fn a_missing_program_is_reported() {
        let arguments = [c"no-such-program-anywhere".to_owned()];
        assert_eq!(
            execute(&arguments, &[c"PATH=/bin:/usr/bin".to_owned()]),
            Errno::ENOENT
        );
        assert_eq!(execute(&[c"/".to_owned()], &[]), Errno::EISDIR);
        assert_eq!(execute(&[], &[]), Errno::ENOENT);
    }
}
