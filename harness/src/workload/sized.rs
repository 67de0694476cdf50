//! One workload on disks of any size: what it costs to judge a crash state as images grow.

use blkdebug::contract::Contract;
use engine::image::Unmap;
use engine::qcow2::geometry::Geometry;

use super::ops::Operation;
use super::shape::{CacheShape, Extent, ImageShape, Management, OptionShape, Scenario, Start};

const MIB: u64 = 1 << 20;
/// Ranges that are filled in one go.
const STEP: u64 = 16 * MIB;

/// Writes, zeroes and discards all over a disk of whole MiB that is full of data but for its last MiB, with lazy refcounts
/// and clusters of 64 KiB.
pub fn sized(disk_bytes: u64) -> Scenario {
    let geometry = Geometry::new(16, 4).expect("the sizes are allowed");
    let virtual_bytes = disk_bytes + MIB;
    let starts = (0..disk_bytes).step_by(usize::try_from(STEP).expect("a small constant"));
    let filled = starts.map(|offset| Extent {
        offset,
        len_bytes: STEP.min(disk_bytes - offset),
    });
    let image = ImageShape {
        lazy_refcounts: true,
        filled: filled.collect(),
        ..ImageShape::plain(geometry, virtual_bytes)
    };
    Scenario {
        image: Start::New(image),
        caches: CacheShape {
            l2_slices: 16,
            refcount_slices: 16,
            slice_bytes: 4096,
        },
        options: OptionShape::default(),
        operations: operations(disk_bytes),
        concurrency: 1,
        management: Management::Alone,
        contract: Contract::EpochTorn,
        faults: Vec::new(),
        transitions: Vec::new(),
        flaw: None,
    }
}

fn operations(disk_bytes: u64) -> Vec<Operation> {
    let mut operations = Vec::new();
    for quarter in 0..4 {
        let at = disk_bytes / 4 * quarter;
        let fresh = disk_bytes + quarter * (128 << 10);
        operations.extend([
            Operation::Write {
                offset: at + 4096,
                len_bytes: 8192,
            },
            Operation::Write {
                offset: fresh,
                len_bytes: 4096,
            },
            Operation::WriteZeroes {
                offset: at + (64 << 10),
                len_bytes: 64 << 10,
                unmap: Unmap::Allow,
            },
            Operation::Flush,
            Operation::Discard {
                offset: at + (128 << 10),
                len_bytes: 64 << 10,
            },
            Operation::Write {
                offset: fresh + 4096,
                len_bytes: 4096,
            },
        ]);
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_one_mebibyte_and_of_a_hundred_can_be_made() {
        for mebibytes in [1, 10, 100] {
            sized(mebibytes * MIB).check().unwrap();
        }
    }
}
