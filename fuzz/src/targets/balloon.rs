//! Pages that a guest does without, and what it reports as free.

use host_vmm::devices::balloon::Balloon;
use rustix::fs::fstat;
use vm_memory::{Bytes, GuestAddress};

use crate::{
    driver::Driver,
    guest::{Buffer, MEMORY, put},
    input::Input,
};

const STEPS: usize = 64;

const PAGE: u64 = 4096;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::new(Balloon::new(0), u64::MAX, &mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 4 {
            // A list of pages, most of which exist.
            0 => {
                let list = driver.free();
                let count = u32::from(input.u8() % 64);
                for index in 0..count {
                    let page = match input.u8() {
                        255 => input.u32(),
                        page => u32::from(page % 64),
                    };
                    put(
                        &driver.memory,
                        list + u64::from(index) * 4,
                        &page.to_le_bytes(),
                    );
                }
                let buffer = Buffer {
                    address: list,
                    len: count * 4,
                    writable: false,
                };
                driver.send(usize::from(input.u8() % 2), &[buffer]);
            }
            1 => reports_a_page(&mut driver, u64::from(input.u8())),
            _ => driver.step(&mut input),
        }
    }
    let memory = fstat(&driver.shared).expect("the memory");
    assert_eq!(memory.st_size.unsigned_abs(), MEMORY, "the memory's size");
}

/// A page that is reported is empty after that, and its neighbours are not.
fn reports_a_page(driver: &mut Driver<Balloon>, page: u64) {
    const REPORTING: usize = 2;
    // Not where the rings are.
    let first = driver.free() / PAGE + 1;
    let page = first + page % (MEMORY / PAGE - first - 2);
    let at = |page: u64| GuestAddress(page * PAGE + 8);
    for page in page - 1..=page + 1 {
        driver.memory.write_obj(page, at(page)).expect("a page");
    }
    let buffer = Buffer {
        address: page * PAGE,
        len: 4096,
        writable: true,
    };
    // What is in the ring yet may be anything, and end the device before.
    driver.restart(REPORTING);
    driver.send(REPORTING, &[buffer]);
    assert!(driver.used(REPORTING).is_some(), "a report is taken");
    let there = [page - 1, page, page + 1].map(|page| {
        let found: u64 = driver.memory.read_obj(at(page)).expect("a page");
        found == page
    });
    assert_eq!(there, [true, false, true], "page {page}");
}
