//! Sound images, damaged where the fuzzer chooses: the generator of `cargo xtask malformed`.

#![no_main]

use std::cell::RefCell;

use engine::defect::Planted;
use harness::malformed::{Specimens, examine};
use harness::workload::pin::Pins;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SPECIMENS: RefCell<Specimens> = RefCell::new(Specimens::new(1, Pins::default()));
}

fuzz_target!(|data: &[u8]| {
    let specimen = SPECIMENS.with_borrow_mut(|specimens| specimens.chosen_by(data));
    let report = examine(&specimen.image, Planted::NONE);
    assert!(
        report.problems.is_empty(),
        "{:?} after {:?}",
        report.problems,
        specimen.changes
    );
});
