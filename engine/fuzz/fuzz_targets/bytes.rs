//! Files of any bytes whatsoever.

#![no_main]

use engine::defect::Planted;
use engine::device::PageImage;
use harness::malformed::examine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let report = examine(&PageImage::from_bytes(data), Planted::NONE);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
});
