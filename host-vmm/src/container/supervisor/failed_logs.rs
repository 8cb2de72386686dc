//! What the kernels of machines that failed have said, where their containers do not stay: `ROOT/failed/<short id>.log`,
//! and `.log.old` beside it if there was much. The newest few stay.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Logs that stay. Each has two files of 512 KiB at most.
const KEPT: usize = 16;

/// Makes the directory of the file `log`, and room for the file.
///
/// # Errors
/// Those of making and reading the directory.
pub fn make_room(log: &Path) -> io::Result<()> {
    let directory = log.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        if path.extension() == Some(OsStr::new("log")) {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            logs.push((written.unwrap_or(SystemTime::UNIX_EPOCH), path));
        }
    }
    logs.sort();
    let surplus = (logs.len() + 1).saturating_sub(KEPT);
    for (_, path) in logs.into_iter().take(surplus) {
        remove(&path);
    }
    Ok(())
}

/// Somebody else may be doing the same.
fn remove(log: &PathBuf) {
    let _ = fs::remove_file(log.with_extension("log.old"));
    let _ = fs::remove_file(log);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_stay() {
        let directory = std::env::temp_dir().join(format!("vmm-failed-{}", std::process::id()));
        let names = || {
            let mut names: Vec<String> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        for number in 0..40_u64 {
            let log = directory.join(format!("{number:02}.log"));
            make_room(&log).unwrap();
            for path in [log.clone(), log.with_extension("log.old")] {
                fs::write(&path, "x").unwrap();
                let file = fs::File::options().write(true).open(path).unwrap();
                // As if there were time between them.
                let written = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
                file.set_modified(written).unwrap();
            }
        }
        let names = names();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names.len(), 2 * KEPT);
        assert_eq!(names[0], "24.log");
    }
}
