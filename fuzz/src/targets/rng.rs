//! Requests for random bytes.

use host_vmm::devices::rng::Rng;

use crate::{driver::Driver, input::Input};

const STEPS: usize = 64;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::new(Rng::new(), 0, &mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        driver.step(&mut input);
    }
}
