//! From what a user asks for and what the image says to what a container is.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use imagebuilder::store::Image;

use super::{
    limits::{self, OverLimit},
    spec::{ContainerSpec, Machine, ProcessSpec, Surroundings, Tmpfs},
    text::Text,
};
use crate::{
    boot_files::BootFiles,
    sandbox::Sandbox,
    vm::{Accelerator, Mitigations},
};

/// What a user asks for: the flags of `run`, parsed one by one but not yet held against each other or the image.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The image as the user names it.
    pub image: String,
    /// The command that replaces the image's, if it is not empty.
    pub command: Vec<OsString>,
    /// What replaces the image's entry point. Empty text: nothing does, and there is none.
    pub entrypoint: Option<OsString>,
    /// `NAME=value`, in order: later ones win.
    pub env: Vec<OsString>,
    /// Working directory.
    pub workdir: Option<OsString>,
    /// User.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Keep standard input open.
    pub interactive: bool,
    /// Allocate a terminal.
    pub terminal: bool,
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// `tmpfs` mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Memory in bytes.
    pub memory: u64,
    /// Thousandths of a CPU.
    pub cpu_milli: u32,
    /// What runs the machine.
    pub accelerator: Accelerator,
    /// What the kernel does against what its CPU leaks; `None` for what is of use on the accelerator.
    pub mitigations: Option<Mitigations>,
    /// What confines it, if it is a process.
    pub sandbox: Sandbox,
    /// What follows on the kernel's command line.
    pub cmdline: String,
    /// What the machine may take to start the container's process, in s.
    pub start_timeout_s: u32,
    /// Show the guest's console.
    pub debug_console: bool,
}

/// Who a new container is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Now, in ns since the Unix epoch.
    pub created_ns: u64,
}

/// Why the request makes no container.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Neither the user nor the image says what to run.
    #[error("Image {0} names no command; say what to run after the image's name")]
    NoCommand(String),
    /// The command is there but empty.
    #[error("The command is an empty word; say what to run after the image's name")]
    EmptyCommand,
    /// Linux would refuse it.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// A working directory that depends on another.
    #[error("The working directory {0:?} is no absolute path: begin it with /")]
    RelativeWorkdir(String),
}

/// The `PATH` of a process whose image names none, as Docker has it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Request {
    /// The container that this request makes of `image`, in a machine that boots from `boot`.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn resolve(
        self,
        image: &Image,
        boot: &BootFiles,
        identity: Identity,
    ) -> Result<ContainerSpec, RequestError> {
        let process = self.process(image, &identity)?;
        let Identity {
            id,
            name,
            created_ns,
        } = identity;
        let hostname = self
            .hostname
            .unwrap_or_else(|| super::spec::short_id(&id).to_owned());
        let spec = ContainerSpec {
            surroundings: Surroundings {
                image: self.image,
                image_digest: image.digest.clone(),
                rootfs: image.rootfs.clone(),
                hostname,
                read_only: self.read_only,
                tmpfs: self.tmpfs,
            },
            machine: Machine {
                accelerator: self.accelerator,
                kernel: boot.kernel.clone(),
                initfs: boot.initfs.clone(),
                mitigations: self.mitigations,
                sandbox: self.sandbox,
                cmdline: self.cmdline,
                memory: self.memory,
                start_timeout_s: self.start_timeout_s,
                debug_console: self.debug_console,
                cpu_milli: self.cpu_milli,
            },
            auto_remove: self.auto_remove,
            process,
            id,
            name,
            created_ns,
        };
        limits::check(&spec)?;
        Ok(spec)
    }

    fn process(&self, image: &Image, identity: &Identity) -> Result<ProcessSpec, RequestError> {
        let config = image.config.config().clone().unwrap_or_default();
        let words = |words: &Option<Vec<String>>| -> Vec<Text> {
            words
                .iter()
                .flatten()
                .map(|word| word.as_str().into())
                .collect()
        };
        // An entry point of one's own drops the image's command, which was meant for the image's.
        let (mut args, default) = match &self.entrypoint {
            Some(own) if own.is_empty() => (Vec::new(), Vec::new()),
            Some(own) => (vec![Text::from(own.as_os_str())], Vec::new()),
            None => (words(config.entrypoint()), words(config.cmd())),
        };
        match self.command.is_empty() {
            true => args.extend(default),
            false => args.extend(self.command.iter().map(|word| word.as_os_str().into())),
        }
        match args.first() {
            None => return Err(RequestError::NoCommand(self.image.clone())),
            Some(program) if program.as_bytes().is_empty() => {
                return Err(RequestError::EmptyCommand);
            }
            Some(_) => {}
        }
        let image_cwd = config.working_dir().clone().filter(|cwd| !cwd.is_empty());
        let cwd = match (&self.workdir, image_cwd) {
            (Some(own), _) if !own.as_bytes().starts_with(b"/") => {
                return Err(RequestError::RelativeWorkdir(
                    own.to_string_lossy().into_owned(),
                ));
            }
            (Some(own), _) => Text::from(own.as_os_str()),
            // Docker takes a relative one from the image as below the root.
            (None, Some(cwd)) if !cwd.starts_with('/') => format!("/{cwd}").into(),
            (None, Some(cwd)) => cwd.into(),
            (None, None) => "/".into(),
        };
        let user = self.user.clone().or_else(|| config.user().clone());
        let image_env: Vec<Text> = words(config.env());
        Ok(ProcessSpec {
            args,
            env: self.environment(image_env, identity),
            cwd,
            user: user.unwrap_or_default(),
            stdin: self.interactive,
            terminal: self.terminal,
        })
    }

    /// Docker's order: the image's variables, then the user's, each name once, the last value at the first place.
    fn environment(&self, image: Vec<Text>, identity: &Identity) -> Vec<Text> {
        let hostname = self
            .hostname
            .as_deref()
            .unwrap_or_else(|| super::spec::short_id(&identity.id));
        let mut defaults = vec![
            Text::from(DEFAULT_PATH),
            Text::from(format!("HOSTNAME={hostname}")),
        ];
        if self.terminal {
            defaults.push("TERM=xterm".into());
        }
        let own = self.env.iter().map(|entry| entry.clone().into_vec().into());
        let mut env: Vec<Text> = Vec::new();
        // There may be a hundred thousand.
        let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
        for entry in defaults.into_iter().chain(image).chain(own) {
            match places.entry(variable_name(&entry)) {
                Entry::Occupied(place) => env[*place.get()] = entry,
                Entry::Vacant(place) => {
                    place.insert(env.len());
                    env.push(entry);
                }
            }
        }
        env
    }
}

fn variable_name(entry: &Text) -> Vec<u8> {
    let bytes = entry.as_bytes();
    let end = bytes.iter().position(|&byte| byte == b'=');
    bytes[..end.unwrap_or(bytes.len())].to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use imagebuilder::store::Image;

    use super::*;

    fn image(config: &str) -> Image {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        Image {
            names: vec!["test".into()],
            digest: format!("sha256:{}", "a".repeat(64)),
            rootfs: "/rootfs".into(),
            sha256: "b".repeat(64),
            config: serde_json::from_str(&config).unwrap(),
            size: 0,
            size_on_disk: 0,
            removable: true,
        }
    }

    fn resolve(request: Request, config: &str) -> Result<ContainerSpec, RequestError> {
        let identity = Identity {
            id: "0123456789abcdef".repeat(4),
            name: "n".into(),
            created_ns: 1,
        };
        request.resolve(&image(config), &BootFiles::default(), identity)
    }

    fn args(request: Request, config: &str) -> Vec<String> {
        let spec = resolve(request, config).unwrap();
        spec.process.args.iter().map(ToString::to_string).collect()
    }

    const BOTH: &str = r#"{"Entrypoint":["/entry","-x"],"Cmd":["a","b"]}"#;

    #[test]
    fn commands_are_dockers() {
        let plain = Request::default();
        assert_eq!(args(plain.clone(), BOTH), ["/entry", "-x", "a", "b"]);
        let own_command = Request {
            command: vec!["c".into()],
            ..plain.clone()
        };
        assert_eq!(args(own_command.clone(), BOTH), ["/entry", "-x", "c"]);
        let own_entry = Request {
            entrypoint: Some("/own".into()),
            ..plain.clone()
        };
        assert_eq!(args(own_entry, BOTH), ["/own"]);
        let no_entry = Request {
            entrypoint: Some("".into()),
            ..own_command
        };
        assert_eq!(args(no_entry, BOTH), ["c"]);
        assert_eq!(
            resolve(plain.clone(), "{}").unwrap_err(),
            RequestError::NoCommand(String::new())
        );
        let empty = Request {
            command: vec!["".into()],
            ..plain
        };
        assert_eq!(
            resolve(empty, "{}").unwrap_err(),
            RequestError::EmptyCommand
        );
    }

    #[test]
    fn the_last_value_of_a_variable_wins() {
        let request = Request {
            command: vec!["c".into()],
            env: vec!["A=2".into(), "B=1".into(), "PATH=/own".into()],
            ..Request::default()
        };
        let spec = resolve(request, r#"{"Env":["A=1","PATH=/bin"]}"#).unwrap();
        let env: Vec<_> = spec.process.env.iter().map(ToString::to_string).collect();
        assert_eq!(env, ["PATH=/own", "HOSTNAME=0123456789ab", "A=2", "B=1"]);
    }

    #[test]
    fn what_linux_would_refuse_is_refused_and_what_it_takes_fits_into_a_frame() {
        let plain = || Request {
            command: vec!["c".into()],
            ..Request::default()
        };
        let words = |count: usize, len: usize| -> Vec<OsString> {
            (0..count)
                .map(|number| format!("{number:06}={}", "x".repeat(len)).into())
                .collect()
        };
        let verdict = |request: Request| resolve(request, "{}").map(|_| ());
        for (what, request) in [
            ("Argument 1 of the command has 131072 bytes", {
                let command = vec!["c".into(), "x".repeat(128 << 10).into()];
                Request { command, ..plain() }
            }),
            ("Environment variable 000000 has 200007 bytes", {
                let env = words(1, 200_000);
                Request { env, ..plain() }
            }),
            ("Linux takes 2088960 at most", {
                let env = words(21, 100_000);
                Request { env, ..plain() }
            }),
            ("The host name has 65 bytes", {
                let hostname = Some("x".repeat(65));
                Request {
                    hostname,
                    ..plain()
                }
            }),
            ("cannot be a host name", {
                let hostname = Some("a\n127.0.0.1 b".to_owned());
                Request {
                    hostname,
                    ..plain()
                }
            }),
            ("The working directory has 4097 bytes", {
                let workdir = Some(format!("/{}", "x".repeat(4096)).into());
                Request { workdir, ..plain() }
            }),
            ("The user's name has 600 bytes", {
                let user = Some("x".repeat(600));
                Request { user, ..plain() }
            }),
        ] {
            let error = verdict(request).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let largest = Request {
            // As many words as there can be.
            env: words(116_000, 2),
            ..plain()
        };
        let spec = resolve(largest, "{}").unwrap();
        let stdio = agent_protocol::Stdio::Pipes {
            stdin: None,
            stdout: agent_protocol::Token::from_random([1; 16]),
            stderr: agent_protocol::Token::from_random([2; 16]),
        };
        let disks = super::super::boot::DiskNames {
            image: "vda".into(),
            writable: "vdb".into(),
        };
        let boot = super::super::boot::boot_frame(&spec, disks, stdio).unwrap();
        let frame = agent_protocol::HostFrame::Boot(Box::new(boot));
        assert!(agent_protocol::encode(&frame).is_ok());
    }

    #[test]
    fn a_working_directory_is_absolute() {
        let request = |workdir: &str| Request {
            command: vec!["c".into()],
            workdir: Some(workdir.into()),
            ..Request::default()
        };
        assert!(resolve(request("/a"), "{}").is_ok());
        assert_eq!(
            resolve(request("a"), "{}").unwrap_err(),
            RequestError::RelativeWorkdir("a".into())
        );
        let image_says = Request {
            command: vec!["c".into()],
            ..Request::default()
        };
        let spec = resolve(image_says, r#"{"WorkingDir":"srv"}"#).unwrap();
        assert_eq!(spec.process.cwd, "/srv".into());
    }
}
