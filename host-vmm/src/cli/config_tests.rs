//! Configuration files that are read as they are meant, and those that are refused.
#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/c"), text).map_err(|error| error.to_string())
}

#[test]
fn every_key_has_the_values_of_its_flag() {
    let text = "# ours\nroot = '/srv/vmm'\naccel = \"um\"\nisolation = \"hardware\"\nmemory = \"512m\"\ncpus = 0.5\n";
    let config = parse(text).unwrap();
    assert_eq!(config.root, Some("/srv/vmm".into()));
    assert_eq!(config.accelerator, Some(Accelerator::Um));
    assert_eq!(config.isolation, Some(Isolation::Hardware));
    assert_eq!(config.memory, Some(512 << 20));
    assert_eq!(config.cpu_milli, Some(500));
    assert_eq!(config.files, [PathBuf::from("/c")]);
    assert_eq!(parse("cpus = 2").unwrap().cpu_milli, Some(2000));
    assert_eq!(parse("cpus = '2'").unwrap().cpu_milli, Some(2000));
    let memory = parse("memory = 67_108_864").unwrap().memory;
    assert_eq!(memory, Some(64 << 20));
    assert_eq!(parse("").unwrap().memory, None);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, parts) in [
        (
            "accel = 'um'\n\nacel = 'um'\n",
            &[
                "Line 3 of",
                "/c",
                "\"acel\"",
                "accel, cpus, isolation, memory and root",
            ][..],
        ),
        (
            "\naccel = 'hvf'",
            &["Line 2 of", "\"hvf\" for accel", "auto, kvm, um or tcg"],
        ),
        (
            "isolation = true",
            &["Line 1 of", "isolation", "any or hardware"],
        ),
        ("memory = '1x'", &["Line 1 of", "\"1x\" for memory", "512m"]),
        ("memory = 1", &["Line 1 of", "\"1\" for memory", "32 MiB"]),
        ("cpus = 0", &["Line 1 of", "\"0\" for cpus"]),
        ("cpus = nan", &["Line 1 of", "\"NaN\" for cpus"]),
        (
            "root = 'here'",
            &["Line 1 of", "\"here\" for root", "absolute"],
        ),
        ("[run]\nmemory = '1g'", &["Line 1 of", "\"run\""]),
        (
            "accel = 'um'\naccel = 'tcg'",
            &["Line 2 of", "duplicate key"],
        ),
        ("cpus = 2\naccel", &["Line 2 of", "not right"]),
        ("a = \"\u{1b}[2J", &["Line 1 of", "not right"]),
        ("'\u{202e}' = 1", &["Line 1 of", "unknown key \"\u{fffd}\""]),
    ] {
        let error = parse(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
}

#[test]
fn what_comes_later_wins() {
    let system = parse("memory = '1g'\naccel = 'tcg'").unwrap();
    let user = parse("memory = '2g'\ncpus = 3").unwrap();
    let both = user.over(system);
    assert_eq!(both.memory, Some(2 << 30));
    assert_eq!(both.accelerator, Some(Accelerator::Tcg));
    assert_eq!(both.cpu_milli, Some(3000));
    assert_eq!(both.files.len(), 2);
}

#[test]
fn what_others_can_write_is_refused() {
    let folder = std::env::temp_dir().join(format!("vmm-config-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("config.toml");
    let refusal = |of_user| match content(&path, of_user) {
        Err(error) => error.to_string(),
        Ok(found) => panic!("{found:?} was taken"),
    };
    assert_eq!(content(&path, true).unwrap(), None);
    fs::write(&path, "cpus = 1").unwrap();
    let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o664, 0o646, 0o666] {
        allow(mode);
        assert!(refusal(true).contains("chmod go-w"));
    }
    allow(0o644);
    assert_eq!(content(&path, true).unwrap().unwrap(), "cpus = 1");
    if rustix::process::geteuid().is_root() {
        assert!(content(&path, false).unwrap().is_some());
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        assert!(refusal(true).contains("uid 12345"));
    } else {
        assert!(refusal(false).contains("give it to root"));
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refusal(true).contains("no regular file"));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "#".repeat(20_000)).unwrap();
    assert!(refusal(true).contains("longer than 16384 bytes"));
    fs::remove_dir_all(folder).unwrap();
}
