//! The log on standard error: what `--debug` tells.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use crate::{
    container::timeline::{Ms, now_ns},
    terminal,
};

/// Begins to log messages of this level and above; `None`: warnings and errors. Times count from `began_ns`.
pub fn start(level: Option<tracing::Level>, began_ns: u64) {
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::WARN))
        .with_writer(|| terminal::Stderr)
        .with_target(false)
        .with_timer(Since {
            began_ns,
            last_ns: AtomicU64::new(began_ns),
        })
        .with_ansi(false)
        .init();
}

/// Tells how long ago the command began, and how long ago this process logged its last line.
struct Since {
    /// In ns of `CLOCK_MONOTONIC`.
    began_ns: u64,
    last_ns: AtomicU64,
}

impl FormatTime for Since {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let now = now_ns();
        let last = self.last_ns.swap(now, Ordering::Relaxed);
        let since = Ms(now.saturating_sub(self.began_ns));
        let step = Ms(now.saturating_sub(last));
        write!(w, "{since:>9} ms {step:>9}")
    }
}
