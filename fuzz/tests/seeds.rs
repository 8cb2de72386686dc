//! Every target with its seeds, and with what comes of them by the mistakes that are made most.

use std::path::Path;

use fuzz::TARGETS;

/// Seeds of every target: name and content.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let files = std::fs::read_dir(&folder).expect("a folder of seeds for every target");
    let mut seeds: Vec<_> = files
        .map(|file| {
            let path = file.expect("a seed").path();
            let name = path.display().to_string();
            (name, std::fs::read(path).expect("a seed"))
        })
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn every_target_takes_its_seeds_whole_cut_and_changed() {
    for target in TARGETS {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for (name, seed) in seeds {
            println!("{name}");
            (target.run)(&seed);
            for part in 1..8 {
                (target.run)(&seed[..seed.len() * part / 8]);
                let mut changed = seed.clone();
                for at in (part..seed.len()).step_by(61) {
                    changed[at] ^= 1 << part;
                }
                (target.run)(&changed);
            }
        }
    }
}

#[test]
fn every_folder_of_seeds_is_a_targets() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for folder in std::fs::read_dir(folders).expect("seeds") {
        let name = folder.expect("a folder").file_name();
        let name = name.to_string_lossy();
        assert!(fuzz::find(&name).is_some(), "{name}");
    }
}
