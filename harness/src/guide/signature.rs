//! By what a workload is known again, so that it is not run twice.
//!
//! Two workloads have one signature where the image, the circumstances and the operations are the same but for the numbers
//! under which the run itself takes snapshots and makes bitmaps, and for flushes right behind a flush, which have
//! nothing to do. The schedule counts where it is given; where it is drawn, it does where operations overlap: then it is
//! another one in every run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use xxhash_rust::xxh3::Xxh3;

use crate::run::{Case, Schedule};
use crate::trace::{Crash, operation_text};
use crate::workload::ops::{BitmapChange, BitmapOperation, Operation, SnapshotOperation};
use crate::workload::shape::{Scenario, Start};

/// The signature of a case, run number `run`, whose crash states are those around a power loss where one is given.
pub fn signature(case: &Case, around: Option<&Crash>, run: u64) -> u64 {
    let mut text = Text(Xxh3::new());
    text.scenario(&case.scenario);
    match &case.schedule {
        Schedule::Given(choices) => {
            let end = choices.iter().rposition(|choice| *choice != 0);
            let told = &choices[..end.map_or(0, |last| last + 1)];
            text.add(format_args!("given {told:?}"));
        }
        Schedule::Drawn(_) if case.scenario.concurrency > 1 => {
            text.add(format_args!("drawn {run}"));
        }
        Schedule::Drawn(_) => text.add(format_args!("alone")),
    }
    if let Some(crash) = around {
        text.add(format_args!("{crash:?}"));
    }
    // 0 stands for nothing in a set.
    text.0.digest().max(1)
}

/// What a workload is, as text of which only the hash is kept.
struct Text(Xxh3);

impl Text {
    fn add(&mut self, part: std::fmt::Arguments<'_>) {
        // Writing to a hash never fails.
        let _ = self.write_fmt(part);
        let _ = self.write_str("\n");
    }

    fn scenario(&mut self, scenario: &Scenario) {
        let Scenario {
            image,
            caches,
            options,
            operations,
            concurrency,
            management,
            contract,
            faults,
            transitions,
            flaw,
        } = scenario;
        match image {
            Start::New(shape) => self.add(format_args!("{shape:?}")),
            Start::Given(given) => self.add(format_args!("{}", given.path)),
        }
        self.add(format_args!(
            "{caches:?} {options:?} {concurrency} {management:?}"
        ));
        self.add(format_args!("{contract:?} {faults:?} {flaw:?}"));
        if !transitions.is_empty() {
            self.add(format_args!("{transitions:?}"));
        }
        let mut names = Names::of(image);
        let mut before = None;
        for operation in operations {
            let operation = names.plain(*operation);
            if operation != Operation::Flush || before != Some(Operation::Flush) {
                self.add(format_args!("{}", operation_text(operation)));
            }
            before = Some(operation);
        }
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

/// The numbers that the run gave away, in order of their first use.
struct Names {
    snapshots: BTreeMap<u32, u32>,
    bitmaps: BTreeMap<u8, u8>,
    /// From here on numbers are of the run.
    first_snapshot: u32,
    first_bitmap: u8,
}

impl Names {
    fn of(image: &Start) -> Self {
        let (first_snapshot, first_bitmap) = match image {
            Start::New(shape) => {
                let bitmaps = shape.bitmaps.iter().map(|bitmap| bitmap.number);
                (
                    shape.snapshots,
                    bitmaps.max().map_or(0, |last| last.saturating_add(1)),
                )
            }
            Start::Given(_) => (0, 0),
        };
        Self {
            snapshots: BTreeMap::new(),
            bitmaps: BTreeMap::new(),
            first_snapshot,
            first_bitmap,
        }
    }

    fn plain(&mut self, operation: Operation) -> Operation {
        if let Operation::Snapshot(SnapshotOperation { snapshot, change }) = operation
            && snapshot >= self.first_snapshot
        {
            let next = u32::try_from(self.snapshots.len()).unwrap_or(u32::MAX);
            let next = self.first_snapshot.saturating_add(next);
            let snapshot = *self.snapshots.entry(snapshot).or_insert(next);
            return Operation::Snapshot(SnapshotOperation { snapshot, change });
        }
        if let Operation::Bitmap(BitmapOperation { number, change }) = operation {
            let change = match change {
                BitmapChange::Merge { source } => BitmapChange::Merge {
                    source: self.bitmap(source),
                },
                BitmapChange::Create { .. }
                | BitmapChange::Remove
                | BitmapChange::SetState(_)
                | BitmapChange::Clear
                | BitmapChange::Mark { .. } => change,
            };
            let number = self.bitmap(number);
            return Operation::Bitmap(BitmapOperation { number, change });
        }
        operation
    }

    fn bitmap(&mut self, number: u8) -> u8 {
        if number < self.first_bitmap {
            return number;
        }
        let next = u8::try_from(self.bitmaps.len()).unwrap_or(u8::MAX);
        let next = self.first_bitmap.saturating_add(next);
        *self.bitmaps.entry(number).or_insert(next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use engine::image::Unmap;
    use engine::preallocation::Preallocation;

    use super::*;
    use crate::prng::Prng;
    use crate::workload::generate::scenario;
    use crate::workload::ops::SnapshotChange;
    use crate::workload::pin::Pins;
    use crate::workload::shape::Extent;

    fn case(operations: &[Operation], concurrency: usize) -> Case {
        let pins = Pins::parse("snapshots=off,bitmaps=off,version=3").unwrap();
        let mut scenario = scenario(&Prng::from_seed(1), &pins);
        scenario.operations = operations.to_vec();
        scenario.concurrency = concurrency;
        Case {
            scenario,
            schedule: Schedule::Drawn(Box::new(Prng::from_seed(1))),
        }
    }

    fn take(snapshot: u32) -> Operation {
        let change = SnapshotChange::Create;
        Operation::Snapshot(SnapshotOperation { snapshot, change })
    }

    #[test]
    fn names_and_idle_flushes_make_no_difference() {
        let write = Operation::Write {
            offset: 0,
            len_bytes: 512,
        };
        let of = |operations: &[Operation]| signature(&case(operations, 1), None, 0);
        let plain = of(&[write, Operation::Flush, take(0), take(1)]);
        let renamed = [write, Operation::Flush, Operation::Flush, take(7), take(3)];
        assert_eq!(of(&renamed), plain);
        assert_ne!(of(&[write, take(0), Operation::Flush, take(1)]), plain);
        assert_ne!(of(&[write, Operation::Flush, take(0)]), plain);
    }

    #[test]
    fn every_part_of_an_operation_counts() {
        let of = |operation| signature(&case(&[operation], 1), None, 0);
        let (offset, len_bytes) = (512, 1024);
        let range = Extent { offset, len_bytes };
        let (keep, allow) = (Unmap::Keep, Unmap::Allow);
        let zeroes = |unmap| Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        };
        let change = BitmapChange::Mark { range };
        let ranged = [
            Operation::Read { offset, len_bytes },
            Operation::Write { offset, len_bytes },
            Operation::WriteCompressed { offset, len_bytes },
            Operation::WriteBlank { offset, len_bytes },
            Operation::Discard { offset, len_bytes },
            zeroes(keep),
            zeroes(allow),
            Operation::Bitmap(BitmapOperation { number: 0, change }),
        ];
        let elsewhere = Extent {
            offset: 1024,
            ..range
        };
        let longer = Extent {
            len_bytes: 1536,
            ..range
        };
        let on_each = |it: Operation| [it, it.with_range(elsewhere), it.with_range(longer)];
        let signatures: BTreeSet<u64> = ranged.into_iter().flat_map(on_each).map(of).collect();
        assert_eq!(signatures.len(), 3 * ranged.len());
        let grown = |virtual_bytes| Operation::Grow {
            virtual_bytes,
            preallocation: Preallocation::Off,
        };
        assert_ne!(of(grown(4096)), of(grown(8192)));
        let shrunk = |virtual_bytes| Operation::Shrink { virtual_bytes };
        assert_ne!(of(shrunk(4096)), of(shrunk(8192)));
        let named = |name_bytes| Operation::Rename { name_bytes };
        assert_ne!(of(named(4)), of(named(5)));
    }

    #[test]
    fn a_drawn_schedule_counts_where_operations_overlap() {
        let of = |concurrency, run| signature(&case(&[take(0)], concurrency), None, run);
        assert_eq!(of(1, 0), of(1, 1));
        assert_ne!(of(2, 0), of(2, 1));
        let given = |choices: &[u32]| {
            let case = Case {
                schedule: Schedule::Given(choices.to_vec()),
                ..case(&[take(0)], 2)
            };
            signature(&case, None, 0)
        };
        assert_eq!(given(&[1, 2, 0, 0]), given(&[1, 2]));
        assert_ne!(given(&[1, 2]), given(&[1, 3]));
    }
}
