//! What the kernels of a test's containers said.
//!
//! A container that is removed when it ends takes its log along. So the logs are opened as soon as they appear, and
//! can be read when there is a reason to.

use std::{
    fs::File,
    io::{Read, Seek},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crate::TICK;

/// Last lines of a log that are shown.
const LINES: usize = 80;

/// Most logs that are kept open: the newest, where there are many.
const KEPT: usize = 64;

/// The logs of the containers below one root.
pub struct BootLogs {
    /// In the order in which they appeared.
    files: Arc<Mutex<Vec<(PathBuf, File)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BootLogs {
    /// Watches the containers that appear in the folder `containers`.
    pub fn watch(containers: PathBuf) -> Self {
        let files = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (files, stop) = (Arc::clone(&files), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    open_new(&containers, &files);
                    std::thread::sleep(TICK);
                }
            }
        });
        Self {
            files,
            stop,
            thread: Some(thread),
        }
    }

    /// The end of each log.
    pub fn text(&self) -> String {
        self.newest(KEPT)
    }

    /// The end of each of the `count` logs that appeared last.
    pub fn newest(&self, count: usize) -> String {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files[files.len().saturating_sub(count)..]
            .iter()
            .map(|(path, file)| format!("--- boot log {}\n{}", path.display(), last_lines(file)))
            .collect()
    }
}

impl Drop for BootLogs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has no way to panic that matters here.
            let _ = thread.join();
        }
    }
}

fn open_new(containers: &Path, files: &Mutex<Vec<(PathBuf, File)>>) {
    for container in std::fs::read_dir(containers)
        .into_iter()
        .flatten()
        .flatten()
    {
        // While a container is being removed its folder has another name.
        if container.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = container.path().join("console.log");
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.iter().all(|(known, _)| *known != path)
            && let Ok(file) = File::open(&path)
        {
            files.push((path, file));
            if files.len() > KEPT {
                files.remove(0);
            }
        }
    }
}

fn last_lines(mut file: &File) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = file.rewind().and_then(|()| file.read_to_end(&mut bytes)) {
        return format!("{error}\n");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}
