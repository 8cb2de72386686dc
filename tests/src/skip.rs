//! Tests that need what a machine may lack.

use std::io::Write;

/// Leaves the test, by name and with the reason, if what it needs is not there.
///
/// ```no_run
/// end_to_end::need!(end_to_end::installed("tmux"));
/// ```
#[macro_export]
macro_rules! need {
    ($what:expr) => {
        if let Err(reason) = $what {
            fn here() {}
            return $crate::skipped(std::any::type_name_of_val(&here), &reason);
        }
    };
}

/// Says on the real standard error, which the test runner does not withhold, that a test was skipped. `place` is the
/// path of something inside the test's function.
pub fn skipped(place: &str, reason: &str) {
    let test = place.strip_suffix("::here").unwrap_or(place);
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}

/// Whether `program` is in the `PATH`.
///
/// # Errors
/// That it is not, for people.
pub fn installed(program: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        true => Ok(()),
        false => Err(format!("{program} is not installed")),
    }
}
