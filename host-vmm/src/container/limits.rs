//! What Linux takes, so that what it would refuse in the guest is refused before there is one. It also bounds the `Boot`
//! frame, which has room for all of it.

use super::spec::ContainerSpec;

/// Longest argument or variable, in bytes: `MAX_ARG_STRLEN` without the NUL at its end.
const MAX_WORD: usize = (128 << 10) - 1;

/// Most that arguments and environment may take, in bytes: a quarter of the stack (8 MiB) as `execve(2)` has it, less
/// what the program's own path and the variables that the guest adds may take.
const MAX_WORDS: usize = (2 << 20) - (8 << 10);

/// Longest path, in bytes: `PATH_MAX` without the NUL at its end.
const MAX_PATH: usize = 4095;

/// Longest host name, in bytes: `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;

/// Longest user and group, in bytes: two names of `LOGIN_NAME_MAX`, and the colon.
const MAX_USER: usize = 513;

/// Most `tmpfs` mounts. Linux has no such limit.
const MAX_TMPFS: usize = 256;

/// Longest options of a mount, in bytes: a page without the NUL at its end.
const MAX_OPTIONS: usize = 4095;

/// What Linux would refuse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OverLimit {
    /// One word.
    #[error(
        "{what} has {len} bytes, and Linux takes {MAX_WORD} at most: put it into a file, or on standard input"
    )]
    Word {
        /// Which argument or variable.
        what: String,
        /// Its length.
        len: usize,
    },
    /// All words together.
    #[error(
        "Arguments and environment take {len} bytes, and Linux takes {MAX_WORDS} at most: put what is large into a file, \
         or on standard input"
    )]
    Words {
        /// What they take, ends and pointers included.
        len: usize,
    },
    /// A name or path.
    #[error("{what} has {len} bytes, and Linux takes {max} at most: give a shorter one")]
    Name {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The most.
        max: usize,
    },
    /// A host name that would be more than a name.
    #[error("{0:?} cannot be a host name: it takes letters, digits, and any of _.-")]
    Hostname(String),
    /// More than anybody needs.
    #[error(
        "{0} tmpfs mounts are more than the {MAX_TMPFS} that a container may have; leave some out"
    )]
    Tmpfs(usize),
}

/// Checks that Linux takes all that the container is to have.
///
/// # Errors
/// The first thing that it does not take.
pub fn check(spec: &ContainerSpec) -> Result<(), OverLimit> {
    words(spec)?;
    let surroundings = &spec.surroundings;
    let hostname = &surroundings.hostname;
    let fits = |what, len, max| match len <= max {
        true => Ok(()),
        false => Err(OverLimit::Name { what, len, max }),
    };
    fits("The host name", hostname.len(), MAX_HOSTNAME)?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if hostname.is_empty() || !hostname.chars().all(in_name) {
        return Err(OverLimit::Hostname(hostname.clone()));
    }
    let process = &spec.process;
    fits(
        "The working directory",
        process.cwd.as_bytes().len(),
        MAX_PATH,
    )?;
    fits("The user's name", process.user.len(), MAX_USER)?;
    if surroundings.tmpfs.len() > MAX_TMPFS {
        return Err(OverLimit::Tmpfs(surroundings.tmpfs.len()));
    }
    for tmpfs in &surroundings.tmpfs {
        let target = tmpfs.target.as_bytes().len();
        fits("The directory of a tmpfs", target, MAX_PATH)?;
        fits(
            "The list of options of a tmpfs",
            tmpfs.data.len(),
            MAX_OPTIONS,
        )?;
    }
    Ok(())
}

/// Arguments and environment.
fn words(spec: &ContainerSpec) -> Result<(), OverLimit> {
    let (args, env) = (&spec.process.args, &spec.process.env);
    let mut all = 0;
    for (index, word) in args.iter().chain(env).enumerate() {
        let bytes = word.as_bytes();
        if bytes.len() > MAX_WORD {
            let what = match index.checked_sub(args.len()) {
                None => format!("Argument {index} of the command"),
                Some(_) => {
                    let name = bytes.split(|&byte| byte == b'=').next();
                    let name = String::from_utf8_lossy(name.unwrap_or_default());
                    format!(
                        "Environment variable {}",
                        name.chars().take(64).collect::<String>()
                    )
                }
            };
            let len = bytes.len();
            return Err(OverLimit::Word { what, len });
        }
        all += bytes.len() + 1 + size_of::<u64>();
    }
    match all <= MAX_WORDS {
        true => Ok(()),
        false => Err(OverLimit::Words { len: all }),
    }
}
