//! What takes too long for every change: `soak matrix ROUNDS [PHASE]`, `soak runs COUNT IN_FLIGHT`.
//!
//! `make soak` runs both; VMM_TEST_ACCEL names the accelerator, as for all tests.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use end_to_end::{
    accelerator, endurance,
    matrix::{Case, Matrix, Table},
};

/// How often a word about progress is said.
const WORD: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().ok();
    let passed = match words.as_slice() {
        ["matrix", rounds, rest @ ..] if rest.len() < 2 => {
            number(rounds).map(|rounds| matrix(rounds, rest.first().copied()))
        }
        ["runs", count, in_flight] => number(count)
            .zip(number(in_flight))
            .map(|(count, in_flight)| endurance::runs(count as usize, in_flight as usize)),
        _ => None,
    };
    match passed {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("usage: soak matrix ROUNDS [PHASE] | soak runs COUNT IN_FLIGHT");
            ExitCode::from(2)
        }
    }
}

/// All cases, or those of one phase; says whether all went well.
fn matrix(rounds: u32, phase: Option<&str>) -> bool {
    let mut matrix = Matrix::new();
    let mut cases = Case::all(matrix.machine_is_a_process());
    cases.retain(|case| phase.is_none_or(|phase| phase == case.phase.name()));
    println!(
        "{} kinds of bad luck, {rounds} rounds each, under {}",
        cases.len(),
        accelerator()
    );
    let mut table = Table::default();
    let mut said = Instant::now();
    for round in 0..rounds {
        for case in &cases {
            match catch_unwind(AssertUnwindSafe(|| matrix.round(*case, round))) {
                Ok(measured) => table.add(*case, true, measured.gone_after),
                Err(_) => {
                    eprintln!("failed in round {round}: {case:?}");
                    table.add(*case, false, None);
                    matrix.clear_up();
                }
            }
            if said.elapsed() > WORD {
                said = Instant::now();
                println!(
                    "round {round}: {}, {} failed",
                    case.phase.name(),
                    table.failed()
                );
            }
        }
    }
    matrix.finish();
    println!("\n{table}");
    table.failed() == 0
}
