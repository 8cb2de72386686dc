//! Configuration files.

use std::path::Path;

use host_vmm::cli::config::Config;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(error) = Config::parse(Path::new("/etc/vmm/config.toml"), text) {
        let error = error.to_string();
        assert!(error.lines().count() == 1 && error.len() < 2000, "{error}");
    }
}
