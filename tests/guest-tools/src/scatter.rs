//! `scatter MIB`: writes to each page of MIB MiB (a power of two) of memory once, in an order that jumps
//! about, then reads all of them in another such order.
//!
//! So neighbours in memory of the program are no neighbours in memory of the machine, and whoever keeps a copy of its page
//! tables cannot keep it small.

use std::process::ExitCode;

/// Bytes.
const PAGE: usize = 4096;

fn main() -> ExitCode {
    let size = std::env::args().nth(1);
    let Some(size) = size.and_then(|size| size.parse::<usize>().ok()) else {
        return fail("usage: scatter MIB");
    };
    let Some(bytes) = size.checked_mul(1 << 20).filter(|_| size.is_power_of_two()) else {
        return fail("MIB has to be a power of two");
    };
    // The allocator takes it from the kernel, which has given no page of it yet.
    let mut memory = vec![0_u8; bytes];
    let pages = bytes / PAGE;
    for page in order(pages, 1) {
        memory[page * PAGE..][..size_of::<usize>()].copy_from_slice(&page.to_ne_bytes());
    }
    for page in order(pages, 2) {
        if memory[page * PAGE..][..size_of::<usize>()] != page.to_ne_bytes() {
            return fail(&format!("page {page} is not what was written"));
        }
    }
    println!("{pages} pages");
    ExitCode::SUCCESS
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("scatter: {reason}");
    ExitCode::FAILURE
}

/// All numbers below `count`, a power of two, in an order that `seed` chooses: a linear congruential generator of full
/// period, whose regular low bits are mixed with the high ones.
fn order(count: usize, seed: usize) -> impl Iterator<Item = usize> {
    let half = count.ilog2().div_ceil(2);
    let mut state = seed;
    (0..count).map(move |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1) % count;
        state ^ (state >> half)
    })
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn an_order_has_every_number_once() {
        for (count, seed) in [(1, 1), (2, 1), (256, 2), (1 << 18, 1), (1 << 19, 2)] {
            let mut seen = vec![false; count];
            for page in order(count, seed) {
                assert!(
                    !std::mem::replace(&mut seen[page], true),
                    "{page} of {count}"
                );
            }
        }
    }

    #[test]
    fn neighbours_in_it_are_seldom_neighbours() {
        let pages: Vec<usize> = order(1 << 18, 1).collect();
        let near = pages.windows(2).filter(|two| two[0].abs_diff(two[1]) < 16);
        assert!(near.count() < 100);
    }
}
