//! Clusters that lie one after the other are judged together, and are judged as each of them would be.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::Structure;
use engine::preallocation::Preallocation;
use engine::qcow2::check::{Finding, Repair};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::Header;
use engine::qcow2::refblock;
use kit::damage::checked;
use kit::{Ram, run};
use proptest::prelude::*;

const CLUSTER_BITS: u32 = 12;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Entries of an L2 table.
const ENTRIES: usize = CLUSTER / 8;
/// Enough for runs that go over the seams of refcount blocks and of whatever the check counts in.
const TABLES: usize = 5;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What is done to an image, at an entry of the guest's disk.
#[derive(Clone, Debug)]
enum Damage {
    /// In adjacent entries, the first and how many.
    FlipCopied(usize, usize),
    /// The entry names the cluster of another.
    Share(usize, usize),
    Refcount(usize, u64),
    Dirty,
}

fn damage() -> impl Strategy<Value = Damage> {
    // The last clusters are the likeliest to be cut off, the first of a table to begin a run.
    let entry = || prop_oneof![4 => 0..TABLES * ENTRIES, 1 => 0..4usize, 1 => (TABLES - 1) * ENTRIES..TABLES * ENTRIES];
    prop_oneof![
        (entry(), 1..100usize).prop_map(|(at, entries)| Damage::FlipCopied(at, entries)),
        (entry(), entry()).prop_map(|(from, to)| Damage::Share(from, to)),
        (entry(), 0..4u64).prop_map(|(at, value)| Damage::Refcount(at, value)),
        Just(Damage::Dirty),
    ]
}

struct Built {
    bytes: Vec<u8>,
    header: Header,
}

impl Built {
    fn new(refcount_order: u32) -> Self {
        let ram = Ram::empty();
        let options = CreateOptions {
            virtual_bytes: u64::try_from(TABLES * ENTRIES * CLUSTER).unwrap(),
            cluster_bits: CLUSTER_BITS,
            refcount_order,
            preallocation: Preallocation::Metadata,
            ..CreateOptions::default()
        };
        run(create(&ram.port, &options)).unwrap();
        let mut bytes = ram.bytes();
        bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
        let header = Header::decode(&bytes, u64::try_from(bytes.len()).unwrap()).unwrap();
        Self { bytes, header }
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Where the L2 table of that number stands.
    fn table(&self, number: usize) -> usize {
        let l1 = usize::try_from(self.header.l1_offset.0).unwrap();
        usize::try_from(self.word(l1 + number * 8) & OFFSET).unwrap()
    }

    /// Where an entry of the guest's disk stands.
    fn entry(&self, number: usize) -> usize {
        self.table(number / ENTRIES) + number % ENTRIES * 8
    }

    fn inflict(&mut self, damage: &Damage) {
        match *damage {
            Damage::FlipCopied(first, entries) => {
                for number in first..(first + entries).min(TABLES * ENTRIES) {
                    let at = self.entry(number);
                    self.put(at, self.word(at) ^ COPIED);
                }
            }
            Damage::Share(from, to) => {
                let word = self.word(self.entry(from));
                self.put(self.entry(to), word);
            }
            Damage::Refcount(at, value) => {
                let geometry = self.header.geometry;
                let cluster = (self.word(self.entry(at)) & OFFSET) >> CLUSTER_BITS;
                let per_block = geometry.refcounts_per_block();
                let table = usize::try_from(self.header.reftable_offset.0).unwrap();
                let word = table + usize::try_from(cluster / per_block).unwrap() * 8;
                let block = usize::try_from(self.word(word)).unwrap();
                refblock::set_refcount(
                    &mut self.bytes[block..block + CLUSTER],
                    usize::try_from(cluster % per_block).unwrap(),
                    geometry.refcount_order(),
                    value.min(geometry.max_refcount()),
                );
            }
            Damage::Dirty => self.bytes[79] |= 1,
        }
    }

    /// The same disk from back to front within each table, so that no cluster follows the one before.
    fn reversed(&self) -> Self {
        let mut bytes = self.bytes.clone();
        for table in (0..TABLES).map(|number| self.table(number)) {
            if let Some(table) = bytes.get_mut(table..table + CLUSTER) {
                table.as_chunks_mut::<8>().0.reverse();
            }
        }
        let header = self.header.clone();
        Self { bytes, header }
    }

    fn findings(&self) -> (Vec<Finding>, [u64; 4]) {
        let report = checked(&Ram::from_bytes(&self.bytes), Repair::None);
        let (found, totals) = (report.found, report.totals);
        let counted = [
            found.corruptions,
            found.leaks,
            totals.allocated_clusters,
            totals.image_end_offset,
        ];
        (report.findings, counted)
    }
}

/// What is found in the disk from back to front, as it would be found in the other.
fn turn(findings: &mut [Finding]) {
    for finding in findings {
        if finding.structure == Structure::L2Table {
            finding.index = u64::try_from(ENTRIES).unwrap() - 1 - finding.index;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn neighbours_are_judged_as_each_would_be_alone(
        refcount_order in Geometry::REFCOUNT_ORDER,
        damages in prop::collection::vec(damage(), 0..6),
        missing in prop_oneof![Just(0), 1..300usize],
    ) {
        let mut built = Built::new(refcount_order);
        for damage in &damages {
            built.inflict(damage);
        }
        built.bytes.truncate(built.bytes.len() - missing * CLUSTER);
        let (mut together, counted) = built.findings();
        let (mut alone, counted_alone) = built.reversed().findings();
        prop_assert_eq!(counted, counted_alone);
        turn(&mut alone);
        let place = |found: &Finding| (found.structure.to_string(), found.offset, found.index);
        together.sort_by_key(place);
        alone.sort_by_key(place);
        prop_assert_eq!(together, alone);
    }
}
