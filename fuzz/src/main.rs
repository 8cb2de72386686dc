//! With the feature `libfuzzer`: a fuzzer of the target that `FUZZ_TARGET` names, with libFuzzer's options. Without: gives
//! targets the content of files. `fuzz` lists the targets, `fuzz TARGET FILE...` runs one.
#![cfg_attr(feature = "libfuzzer", no_main)]

#[cfg(feature = "libfuzzer")]
mod fuzzer {
    use std::sync::OnceLock;

    static TARGET: OnceLock<fuzz::Target> = OnceLock::new();

    fn chosen() -> fuzz::Target {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::find(&name).expect("FUZZ_TARGET must name a target")
    }

    libfuzzer_sys::fuzz_target!(|data: &[u8]| {
        (TARGET.get_or_init(chosen).run)(data);
    });
}

#[cfg(not(feature = "libfuzzer"))]
fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(name) = words.next() else {
        for target in fuzz::TARGETS {
            println!("{}", target.name);
        }
        return std::process::ExitCode::SUCCESS;
    };
    let Some(target) = fuzz::find(&name) else {
        eprintln!("There is no target {name}");
        return std::process::ExitCode::FAILURE;
    };
    for file in words {
        match std::fs::read(&file) {
            Ok(data) => (target.run)(&data),
            Err(error) => {
                eprintln!("Cannot read {file}: {error}");
                return std::process::ExitCode::FAILURE;
            }
        }
        println!("{file}: nothing happened");
    }
    std::process::ExitCode::SUCCESS
}
