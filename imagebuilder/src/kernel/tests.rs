use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::{Folder, Layer};

fn variant(options: &str) -> Variant {
    let folder = Folder::new("kernel-variant");
    std::fs::create_dir(folder.path().join("variants")).unwrap();
    let text = "series 6.12\narch x86_64\nfragments a\n";
    std::fs::write(folder.path().join("variants/it"), text).unwrap();
    std::fs::write(folder.path().join("a.config"), options).unwrap();
    Variant::read(folder.path(), "it").unwrap()
}

fn tarball(folder: &Folder, name: &str) -> Source {
    let path = folder.path().join(name);
    std::fs::write(&path, name).unwrap();
    let (cache, progress) = (folder.path(), Progress::silent());
    Source::find(Some(&path), &variant(""), cache, &progress).unwrap()
}

#[test]
fn a_kernel_is_found_by_all_that_it_depends_on_and_by_nothing_else() {
    let folder = Folder::new("kernel-key");
    let (a, b) = (tarball(&folder, "a"), tarball(&folder, "b"));
    let on = variant("CONFIG_A=y # a\n");
    let first = key(&on, &a, "", "gcc 12");
    let others = [
        key(&on, &b, "", "gcc 12"),
        key(&on, &a, "-second", "gcc 12"),
        key(&on, &a, "", "gcc 13"),
        key(&variant("CONFIG_A=n # a\n"), &a, "", "gcc 12"),
    ];
    assert!(!others.contains(&first));
    let reworded = variant("# Head\n\nCONFIG_A=y # another reason\n");
    assert_eq!(key(&reworded, &a, "", "gcc 12"), first);
}

#[test]
fn local_versions_cannot_carry_commands_or_fill_the_release() {
    for suffix in ["", "-second", "+x_1.2"] {
        check_local_version(suffix).unwrap();
    }
    let long = "x".repeat(MAX_LOCAL_VERSION + 1);
    for suffix in ["$(id)", "a b", "\"", "/", "\n", &long] {
        let error = check_local_version(suffix).unwrap_err();
        assert!(matches!(error, Error::LocalVersion { .. }), "{error}");
    }
}

#[test]
fn whoever_is_second_to_keep_a_kernel_keeps_the_first() {
    let folder = Folder::new("kernel-keep");
    let to = folder.path().join("built/key");
    for name in ["first", "second"] {
        let from = folder.path().join(name);
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("vmlinux"), name).unwrap();
        keep(&from, &to).unwrap();
    }
    assert_eq!(std::fs::read(to.join("vmlinux")).unwrap(), b"first");
}

/// A source that is configured and compiled in no time. It loses `CONFIG_LOST`, and fails on `CONFIG_BROKEN`.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 12
config = $(O)/.config
allnoconfig:
	@grep -v CONFIG_LOST $(KCONFIG_ALLCONFIG) >$(config)
vmlinux:
	@echo "  CC      init/main.o"
	@echo "$(LOCALVERSION)" >>$(O)/../../runs
	@if grep -q CONFIG_BROKEN $(config); then echo "main.c:1: error: broken"; exit 1; fi
	@(cat $(config); echo 'const char banner[] = "Linux version 6.12$(LOCALVERSION) (it)"; int main(void) { return 0; }') | \
		grep -v CONFIG_ | gcc -x c - -o $(O)/vmlinux
"#;

/// A tree of fragments, a source and a cache.
struct Workshop {
    folder: Folder,
    request: Request,
}

impl Workshop {
    /// Says so, and gives nothing, where the tools are missing.
    fn new(name: &str) -> Option<Self> {
        if let Err(error) = toolchain::check() {
            let test = std::thread::current();
            eprintln!("skipped: {}: {error}", test.name().unwrap_or("?"));
            return None;
        }
        let folder = Folder::new(name);
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("config/variants")).unwrap();
        let variant = "series 6.12\narch x86_64\nfragments a\n";
        std::fs::write(path("config/variants/it"), variant).unwrap();
        let tarball = Layer::new().file("linux/Makefile", MAKEFILE.as_bytes());
        std::fs::write(path("linux.tar"), tarball.bytes()).unwrap();
        let request = Request {
            config_directory: path("config"),
            variant: "it".into(),
            source: Some(path("linux.tar")),
            local_version: String::new(),
            jobs: NonZero::<usize>::MIN,
            cache: path("cache"),
            out: path("out/vmlinux"),
        };
        let workshop = Self { folder, request };
        workshop.ask_for("CONFIG_A=y # a\n");
        Some(workshop)
    }

    fn ask_for(&self, options: &str) {
        std::fs::write(self.folder.path().join("config/a.config"), options).unwrap();
    }

    fn build(&self) -> Result<Origin, Error> {
        build(&self.request, &Progress::silent())
    }

    /// With which local versions make has run.
    fn runs(&self) -> Vec<String> {
        let runs = self.folder.path().join("cache/kernel/runs");
        let runs = std::fs::read_to_string(runs).unwrap_or_default();
        runs.lines().map(str::to_owned).collect()
    }

    fn kernel(&self) -> Vec<u8> {
        std::fs::read(&self.request.out).unwrap()
    }
}

#[test]
fn a_kernel_is_built_once_for_what_it_is_made_of() {
    let Some(mut workshop) = Workshop::new("kernel-build") else {
        return;
    };
    workshop.build().unwrap();
    let first = workshop.kernel();
    assert!(first.starts_with(b"\x7fELF"));
    let config = std::fs::read_to_string(workshop.folder.path().join("out/config")).unwrap();
    assert_eq!(config, "CONFIG_A=y\n");

    // The second time, and in another tree, it is there.
    workshop.build().unwrap();
    workshop.request.out = workshop.folder.path().join("other/vmlinux");
    workshop.build().unwrap();
    assert_eq!(workshop.runs(), [""]);
    assert_eq!(workshop.kernel(), first);

    workshop.request.local_version = "-second".into();
    let origin = workshop.build().unwrap();
    assert_eq!(origin.name, "it");
    assert_eq!(origin.sha256, sha256::of(workshop.kernel()));
    assert_eq!(origin.versions["release"], "6.12-second");
    assert!(origin.versions["gcc"].starts_with("gcc"));
    assert!(origin.versions["ld"].contains("ld"));
    let tarball = std::fs::read(workshop.folder.path().join("linux.tar")).unwrap();
    let inputs = [
        ("linux.tar", sha256::of(tarball)),
        ("config", sha256::of(&config)),
    ];
    let found = origin.inputs.iter();
    let found = found.map(|input| (input.name.as_str(), input.sha256.clone()));
    assert_eq!(found.collect::<Vec<_>>(), inputs);
    assert_eq!(workshop.runs(), ["", "-second"]);
    assert_ne!(workshop.kernel(), first);

    // Back again, nothing is built, unless the cache is not what it was.
    workshop.request.local_version = String::new();
    workshop.build().unwrap();
    assert_eq!(workshop.kernel(), first);
    let cached = workshop.folder.path().join("cache/kernel/built");
    let cached = std::fs::read_dir(cached).unwrap();
    let cached = cached.map(|entry| entry.unwrap().path().join("vmlinux"));
    let cached = cached
        .into_iter()
        .find(|path| std::fs::read(path).unwrap() == first);
    let cached = cached.unwrap();
    std::fs::write(&cached, "damaged").unwrap();
    let error = workshop.build().unwrap_err().to_string();
    assert!(error.contains("was changed since it was built"), "{error}");
    assert_eq!(workshop.kernel(), first);
    std::fs::write(&cached, &first).unwrap();
    workshop.build().unwrap();
    workshop.ask_for("CONFIG_A=y # a\nCONFIG_B=y # b\n");
    workshop.build().unwrap();
    assert_eq!(workshop.runs(), ["", "-second", ""]);
}

#[test]
fn a_kernel_that_is_a_program_can_be_executed() {
    let Some(workshop) = Workshop::new("kernel-program") else {
        return;
    };
    let variant = workshop.folder.path().join("config/variants/it");
    let is_program = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o100 != 0;
    workshop.build().unwrap();
    assert!(!is_program(&workshop.request.out));
    std::fs::write(variant, "series 6.12\narch um\nfragments a\n").unwrap();
    for _ in 0..2 {
        workshop.build().unwrap();
        assert!(is_program(&workshop.request.out));
    }
    assert_eq!(workshop.runs(), ["", ""]);
}

#[test]
fn two_builds_at_once_build_once() {
    let Some(workshop) = Workshop::new("kernel-race") else {
        return;
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let mut request = workshop.request.clone();
            request.out = workshop.folder.path().join(format!("{number}/vmlinux"));
            scope.spawn(move || build(&request, &Progress::silent()).unwrap());
        }
    });
    assert_eq!(workshop.runs(), [""]);
}

#[test]
fn a_kernel_that_would_lack_an_option_is_not_built() {
    let Some(workshop) = Workshop::new("kernel-lost") else {
        return;
    };
    workshop.ask_for("CONFIG_A=y # a\nCONFIG_LOST=y # b\n");
    let error = workshop.build().unwrap_err().to_string();
    assert!(error.contains("CONFIG_LOST=y (a) came out as n"), "{error}");
    assert!(workshop.runs().is_empty());
    assert!(!workshop.request.out.exists());
}

#[test]
fn a_failed_build_quotes_the_compiler_and_leaves_nothing_in_the_cache() {
    let Some(workshop) = Workshop::new("kernel-broken") else {
        return;
    };
    workshop.ask_for("CONFIG_BROKEN=y # a\n");
    let error = workshop.build().unwrap_err().to_string();
    assert!(error.contains("main.c:1: error: broken"), "{error}");
    assert!(error.contains("build.log"), "{error}");
    assert!(!workshop.request.out.exists());
    workshop.ask_for("CONFIG_A=y # a\n");
    workshop.build().unwrap();
}

#[test]
fn another_source_does_not_meet_the_objects_of_the_old_one() {
    let Some(workshop) = Workshop::new("kernel-resource") else {
        return;
    };
    workshop.build().unwrap();
    let objects = workshop.folder.path().join("cache/kernel/build/6.12-it");
    std::fs::write(objects.join("stale.o"), "").unwrap();
    let makefile = format!("{MAKEFILE}# Patched\n");
    let tarball = Layer::new().file("linux/Makefile", makefile.as_bytes());
    std::fs::write(workshop.folder.path().join("linux.tar"), tarball.bytes()).unwrap();
    workshop.build().unwrap();
    assert_eq!(workshop.runs().len(), 2);
    assert!(!objects.join("stale.o").exists());
}
