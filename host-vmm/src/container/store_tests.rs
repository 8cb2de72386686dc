#![allow(clippy::unwrap_used)]

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::{
    boot_files::{BootFile, Kind},
    container::spec::{Machine, ProcessSpec, Surroundings},
    sandbox::Sandbox,
    vm::Accelerator,
};

/// A root of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmm-store-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn containers(&self) -> Containers {
        Containers::open(&Paths::find(Some(&self.0), None).unwrap())
    }

    /// What is there beside the store's own files.
    fn leftovers(&self) -> Vec<String> {
        let names = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap())
        };
        let mut all: Vec<String> = names(self.0.join("containers"))
            .chain(names(self.0.join("containers/names")))
            .chain(names(self.0.join("run")))
            .filter(|name| name != "lock" && name != "names")
            .collect();
        all.sort();
        all
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn boot_file(path: &str) -> BootFile {
    BootFile {
        path: path.into(),
        sha256: "0".repeat(64),
    }
}

fn create(
    containers: &Containers,
    name: Option<&str>,
    auto_remove: bool,
) -> Result<(ContainerSpec, Directory, Lock), StoreError> {
    create_with(containers, name, auto_remove, boot_file("/k"))
}

fn create_with(
    containers: &Containers,
    name: Option<&str>,
    auto_remove: bool,
    kernel: BootFile,
) -> Result<(ContainerSpec, Directory, Lock), StoreError> {
    containers.create(name, |id, name| {
        Ok(ContainerSpec {
            id,
            name,
            created_ns: 1,
            auto_remove,
            process: ProcessSpec {
                args: vec!["true".into()],
                env: Vec::new(),
                cwd: "/".into(),
                user: String::new(),
                stdin: false,
                terminal: false,
            },
            surroundings: Surroundings {
                image: "i".into(),
                image_digest: "d".into(),
                rootfs: "/r".into(),
                hostname: "h".into(),
                read_only: false,
                tmpfs: Vec::new(),
            },
            machine: Machine {
                accelerator: Accelerator::Auto,
                kernel,
                initfs: boot_file("/i"),
                mitigations: None,
                sandbox: Sandbox::Minimum,
                cmdline: String::new(),
                memory: 1 << 30,
                start_timeout_s: 60,
                debug_console: false,
                cpu_milli: 1000,
            },
        })
    })
}

#[test]
fn a_container_is_found_by_name_and_by_the_start_of_its_id() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, _, lock) = create(&containers, Some("one"), false).unwrap();
    let (other, ..) = create(&containers, None, false).unwrap();
    assert_ne!(spec.name, other.name);
    for reference in ["one", &spec.id, spec.short_id()] {
        let found = containers.find(reference).unwrap();
        assert_eq!(found.spec.id, spec.id);
        assert!(found.alive);
    }
    drop(lock);
    assert!(!containers.find("one").unwrap().alive);
    for nobody in ["", "two", "../one", "names", &"0".repeat(64)] {
        let error = containers.find(nobody).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{nobody}");
    }
    assert_eq!(containers.list().unwrap().len(), 2);
}

#[test]
fn a_name_belongs_to_one_container_until_that_is_hidden() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, _, _lock) = create(&containers, Some("mine"), false).unwrap();
    let error = create(&containers, Some("mine"), false).unwrap_err();
    assert!(matches!(error, StoreError::NameTaken { .. }), "{error}");
    assert_eq!(folder.leftovers().len(), 2);
    let hidden = containers.hide(&spec).unwrap();
    let (again, ..) = create(&containers, Some("mine"), false).unwrap();
    hidden.delete();
    assert_eq!(containers.find("mine").unwrap().spec.id, again.id);
}

#[test]
fn one_of_many_gets_a_name_that_all_want() {
    let folder = Folder::new();
    let containers = folder.containers();
    let winners: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(create(&containers, Some("it"), false).is_ok())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(winners, 1);
    assert_eq!(folder.leftovers().len(), 2);
}

#[test]
fn what_a_crash_leaves_is_swept_up_and_nothing_else() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (kept, ..) = create(&containers, Some("kept"), false).unwrap();
    let (running, _, lock) = create(&containers, Some("running"), true).unwrap();
    let (dead, ..) = create(&containers, Some("dead"), true).unwrap();
    let base = folder.0.join("containers");
    fs::create_dir(base.join(format!("{NEW}{}", "a".repeat(64)))).unwrap();
    fs::create_dir(base.join(format!("{REMOVED}{}", "b".repeat(64)))).unwrap();
    fs::create_dir(base.join("somebody's")).unwrap();
    for spec in [&running, &dead] {
        fs::create_dir_all(folder.0.join("run").join(spec.short_id())).unwrap();
    }
    containers.sweep();
    let mut expected = vec![
        kept.id.clone(),
        "kept".into(),
        running.id.clone(),
        "running".into(),
        running.short_id().into(),
        "somebody's".into(),
    ];
    expected.sort();
    assert_eq!(folder.leftovers(), expected);
    drop(lock);
    containers.sweep();
    assert!(containers.find("running").is_err());
    assert!(containers.find("kept").is_ok());
}

#[test]
fn a_kernel_goes_with_the_last_container_that_needs_it() {
    let folder = Folder::new();
    let containers = folder.containers();
    let source = folder.0.with_extension("kernel");
    fs::write(&source, "a kernel").unwrap();
    let take = || containers.taken.take(Kind::Kernel, &source).unwrap();

    let (kernel, guard) = take();
    // Nobody needs it yet, but somebody is about to.
    containers.sweep();
    assert!(kernel.path.is_file());
    let (one, _, lock) = create_with(&containers, Some("one"), false, kernel.clone()).unwrap();
    drop((guard, lock));
    let (again, guard) = take();
    assert_eq!(again, kernel);
    create_with(&containers, Some("two"), true, again).unwrap();
    drop(guard);
    // "two" is gone with this, since nobody runs it.
    containers.sweep();
    assert!(containers.find("two").is_err());
    assert!(kernel.path.is_file());

    // What cannot be read may need it.
    let config = containers.at(&one.id).config();
    let readable = fs::read(&config).unwrap();
    fs::write(&config, "{").unwrap();
    containers.sweep();
    assert!(kernel.path.is_file());
    fs::write(&config, readable).unwrap();

    containers.hide(&one).unwrap().delete();
    containers.collect_boot_files();
    assert!(!kernel.path.exists());
    assert_eq!(containers.taken.list(Kind::Kernel), []);
    fs::remove_file(source).unwrap();
}

#[test]
fn a_container_whose_supervisor_was_killed_has_ended() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, directory, lock) = create(&containers, None, false).unwrap();
    let state = State {
        status: Status::Running,
        ..State::default()
    };
    state::write(&directory.state(), &state, state::Durability::Fleeting).unwrap();
    assert_eq!(
        containers.find(&spec.id).unwrap().state.status,
        Status::Running
    );
    drop(lock);
    let found = containers.find(&spec.id).unwrap();
    assert_eq!(found.state.status, Status::Exited);
    assert_eq!(found.state.exit_code, Some(137));
}

#[test]
fn damaged_records_are_named() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, directory, lock) = create(&containers, None, false).unwrap();
    fs::write(directory.config(), b"{\"id\": 3}").unwrap();
    let error = containers.find(&spec.id).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    let (other, ..) = create(&containers, None, false).unwrap();
    fs::copy(containers.at(&other.id).config(), directory.config()).unwrap();
    assert!(containers.find(&spec.id).is_err());
    assert_eq!(containers.list().unwrap().len(), 1);
    drop(lock);
    containers.sweep();
    assert!(directory.path().is_dir());
}

#[test]
fn a_container_ends_whoever_is_stopped_making_another() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, _, _lock) = create(&containers, Some("mine"), true).unwrap();
    let stopped = containers.lock(Duration::ZERO).unwrap();
    // This waits a moment, and leaves everything.
    containers.sweep();
    containers.hide(&spec).unwrap().delete();
    assert_eq!(folder.leftovers(), [] as [&str; 0]);
    let busy = containers.lock(Duration::ZERO).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }));
    drop(stopped);
    create(&containers, Some("mine"), true).unwrap();
}

#[test]
fn a_name_is_free_though_a_link_leads_nowhere() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (spec, directory, lock) = create(&containers, Some("mine"), false).unwrap();
    // As a crash in the middle leaves it.
    fs::rename(directory.path(), folder.0.join("containers/.removed-x")).unwrap();
    assert!(matches!(
        containers.find("mine"),
        Err(StoreError::NotFound(_))
    ));
    drop(lock);
    let (again, ..) = create(&containers, Some("mine"), false).unwrap();
    assert_ne!(spec.id, again.id);
    assert_eq!(containers.find("mine").unwrap().spec.id, again.id);
}

#[test]
fn only_the_containers_own_lock_is_inherited() {
    let folder = Folder::new();
    let containers = folder.containers();
    let (_, one, lock) = create(&containers, None, false).unwrap();
    let (_, two, _other) = create(&containers, None, false).unwrap();
    let inherited = |directory: &Directory, fd: OwnedFd| {
        let kind = |error: io::Error| error.kind();
        directory.inherit_lock(fd).map(drop).map_err(kind)
    };
    let fd = lock.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(inherited(&two, fd), Err(io::ErrorKind::InvalidInput));
    // The right file, opened by somebody who does not have the lock.
    let fd = File::open(one.path().join("lock")).unwrap().into();
    assert_eq!(inherited(&one, fd), Err(io::ErrorKind::WouldBlock));
    let fd = lock.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(inherited(&one, fd), Ok(()));
}
