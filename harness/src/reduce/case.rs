//! The simpler neighbours of a case, boldest first.

use std::ops::Range;

use blkdebug::contract::Contract;
use blkdebug::rule::{During, Repeat, Rule};
use engine::image::Unmap;
use engine::manage::{Amend, RawPromise};
use engine::preallocation::Preallocation;
use engine::qcow2::Discards;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::DataFileContent;
use engine::qcow2::geometry::Geometry;

use crate::minimise::{Shrink, stretches, without, without_stretches};
use crate::workload::ops::{DataFileOperation, Operation};
use crate::workload::shape::{
    Backing, Chain, Extent, ImageShape, Management, OptionShape, Scenario, Start,
};

const SECTOR: u64 = 512;

/// A case on its way to become small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Small {
    pub(super) scenario: Scenario,
    pub(super) choices: Vec<u32>,
    /// The schedule no longer belongs to the operations, and may be looked for anew.
    pub(super) fresh: bool,
}

impl Small {
    pub(super) fn new(scenario: Scenario, mut choices: Vec<u32>) -> Self {
        // What follows the last choice is the plainest step.
        let end = choices.iter().rposition(|&choice| choice != 0);
        choices.truncate(end.map_or(0, |last| last + 1));
        Self {
            scenario,
            choices,
            fresh: false,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Scenario)) -> Self {
        let mut scenario = self.scenario.clone();
        change(&mut scenario);
        Self {
            scenario,
            choices: self.choices.clone(),
            fresh: false,
        }
    }

    fn with_operations(&self, operations: Vec<Operation>) -> Self {
        Self {
            fresh: true,
            ..self.with(|scenario| scenario.operations = operations)
        }
    }

    fn with_chain(&self, change: impl FnOnce(&mut Chain)) -> Option<Self> {
        self.with_shape(|shape| {
            if let Some(chain) = &mut shape.chain {
                change(chain);
            }
        })
    }

    fn with_shape(&self, change: impl FnOnce(&mut ImageShape)) -> Option<Self> {
        let mut scenario = self.scenario.clone();
        let Start::New(shape) = &mut scenario.image else {
            return None;
        };
        change(shape);
        let changed = scenario != self.scenario && scenario.check().is_ok();
        changed.then(|| Self {
            scenario,
            choices: self.choices.clone(),
            fresh: true,
        })
    }
}

/// The same rule with less to it.
fn plainer_rules(rule: &Rule) -> Vec<Rule> {
    let variants = [
        Rule {
            chance: None,
            ..rule.clone()
        },
        Rule {
            skip: 0,
            ..rule.clone()
        },
        Rule {
            repeat: Repeat::Once,
            ..rule.clone()
        },
        Rule {
            during: During::default(),
            ..rule.clone()
        },
        Rule {
            state: None,
            ..rule.clone()
        },
        Rule {
            sector: None,
            ..rule.clone()
        },
    ];
    let plainer = variants.into_iter().filter(|variant| variant != rule);
    plainer.collect()
}

/// Where the bound of a range of operations is once a stretch of these is gone.
fn moved_bound(bound: u64, gone: &Range<usize>) -> u64 {
    let at = usize::try_from(bound).unwrap_or(usize::MAX);
    let before = gone.end.min(at).saturating_sub(gone.start);
    bound - u64::try_from(before).expect("a workload is short")
}

/// A smaller file beneath, unless there is none.
fn halved(backing: Backing) -> Backing {
    Backing {
        virtual_bytes: (backing.virtual_bytes / 2).next_multiple_of(SECTOR),
        ..backing
    }
}

impl Shrink for Small {
    fn simpler(&self) -> Vec<Self> {
        let mut simpler = self.fewer_operations();
        simpler.extend(self.plainer_disk());
        simpler.extend(self.plainer_schedule());
        simpler.extend(self.plainer_image());
        simpler.extend(self.plainer_operations());
        simpler
    }
}

impl Small {
    fn fewer_operations(&self) -> Vec<Self> {
        let operations = &self.scenario.operations;
        let fewer = stretches(operations.len()).into_iter().map(|stretch| {
            let mut fewer = self.with_operations(without(operations, &stretch));
            for rule in &mut fewer.scenario.faults {
                let During { from, until } = &mut rule.during;
                for bound in [from, until].into_iter().flatten() {
                    *bound = moved_bound(*bound, &stretch);
                }
            }
            fewer
        });
        fewer.collect()
    }

    fn plainer_disk(&self) -> Vec<Self> {
        let weaker = Contract::ALL
            .into_iter()
            .filter(|contract| *contract < self.scenario.contract)
            .map(|contract| self.with(|scenario| scenario.contract = contract));
        let fewer_faults = without_stretches(&self.scenario.faults)
            .into_iter()
            .map(|faults| self.with(|scenario| scenario.faults = faults));
        let plainer_faults = (0..self.scenario.faults.len()).flat_map(|at| {
            let plainer = plainer_rules(&self.scenario.faults[at]).into_iter();
            plainer.map(move |rule| self.with(|scenario| scenario.faults[at] = rule))
        });
        let fewer_transitions = without_stretches(&self.scenario.transitions)
            .into_iter()
            .map(|transitions| self.with(|scenario| scenario.transitions = transitions));
        weaker
            .chain(fewer_faults)
            .chain(plainer_faults)
            .chain(fewer_transitions)
            .collect()
    }

    fn plainer_schedule(&self) -> Vec<Self> {
        let mut simpler = Vec::new();
        if self.scenario.concurrency > 1 {
            for concurrency in [1, self.scenario.concurrency - 1] {
                simpler.push(Self {
                    fresh: true,
                    ..self.with(|scenario| scenario.concurrency = concurrency)
                });
            }
        }
        if self.scenario.management == Management::Overlapping {
            simpler.push(Self {
                fresh: true,
                ..self.with(|scenario| scenario.management = Management::Alone)
            });
        }
        let len = self.choices.len();
        let shorter = [0, len / 2, len.saturating_sub(1)];
        let lists = shorter
            .into_iter()
            .filter(|&shorter| shorter < len)
            .map(|shorter| self.choices[..shorter].to_vec());
        let zeroed = (0..len).filter(|&at| self.choices[at] != 0).map(|at| {
            let mut choices = self.choices.clone();
            choices[at] = 0;
            choices
        });
        simpler.extend(
            lists
                .chain(zeroed)
                .map(|choices| Self::new(self.scenario.clone(), choices)),
        );
        simpler
    }

    fn plainer_image(&self) -> Vec<Self> {
        let Start::New(shape) = &self.scenario.image else {
            return Vec::new();
        };
        let mut simpler = vec![
            self.with_shape(|shape| shape.backing = None),
            self.with_shape(|shape| shape.chain = None),
            self.with_shape(|shape| {
                shape.data_file = None;
                shape.unmapped.clear();
            }),
            self.with_shape(|shape| {
                shape.data_file = shape.data_file.map(|_| DataFileContent::Clusters);
                shape.unmapped.clear();
            }),
            self.with_shape(|shape| shape.unmapped.clear()),
            self.with_chain(|chain| chain.other = None),
            self.with_chain(|chain| chain.base = None),
            self.with_chain(|chain| chain.held.clear()),
            self.with_chain(|chain| chain.lazy_refcounts = false),
            self.with_chain(|chain| chain.cluster_bits = 12),
            self.with_chain(|chain| chain.other = chain.other.map(halved)),
            self.with_chain(|chain| chain.base = chain.base.map(halved)),
            self.with_shape(|shape| shape.filled.clear()),
            self.with_shape(|shape| shape.packed.clear()),
            self.with_shape(|shape| shape.encryption = None),
            self.with_shape(|shape| shape.compression = Compression::Zlib),
            self.with_shape(|shape| {
                shape.abandoned = false;
                shape.terse_snapshots = false;
            }),
            self.with_shape(|shape| shape.abandoned = false),
            self.with_shape(|shape| shape.terse_snapshots = false),
            self.with_shape(|shape| shape.claiming_snapshots = false),
            self.with_shape(|shape| shape.unknown_autoclear = false),
            self.with_shape(|shape| shape.preallocation = Preallocation::Off),
            self.with_shape(|shape| shape.bitmaps.clear()),
            self.with_shape(|shape| shape.lazy_refcounts = false),
            self.with_shape(|shape| shape.geometry = with_bits(shape.geometry, None, Some(4))),
        ];
        if shape.geometry.has_subclusters() {
            simpler.push(self.with_shape(|shape| {
                shape.geometry = plain(shape.geometry);
                if shape.backing.is_some() {
                    shape.preallocation = Preallocation::Off;
                }
            }));
        }
        for bitmaps in without_stretches(&shape.bitmaps) {
            simpler.push(self.with_shape(|shape| shape.bitmaps = bitmaps));
        }
        for filled in without_stretches(&shape.filled) {
            simpler.push(self.with_shape(|shape| shape.filled = filled));
        }
        for unmapped in without_stretches(&shape.unmapped) {
            simpler.push(self.with_shape(|shape| shape.unmapped = unmapped));
        }
        for packed in without_stretches(&shape.packed) {
            simpler.push(self.with_shape(|shape| shape.packed = packed));
        }
        for (index, extent) in shape.filled.iter().enumerate() {
            let half = (extent.len_bytes / 2).next_multiple_of(SECTOR);
            if half < extent.len_bytes {
                simpler.push(self.with_shape(|shape| shape.filled[index].len_bytes = half));
            }
        }
        simpler.push(self.with_shape(|shape| shape.backing = shape.backing.map(halved)));
        if let Some(chain) = &shape.chain {
            for held in without_stretches(&chain.held) {
                simpler.push(self.with_chain(|chain| chain.held = held));
            }
        }
        simpler.push(self.smaller_disk(shape));
        for bits in [9, 12, shape.geometry.cluster_bits() - 1] {
            if bits < shape.geometry.cluster_bits() && bits >= 9 {
                simpler.push(self.scaled(bits));
            }
        }
        let mut simpler: Vec<Self> = simpler.into_iter().flatten().collect();
        let roomy = crate::workload::shape::CacheShape {
            l2_slices: 16,
            refcount_slices: 16,
            slice_bytes: 4096,
        };
        if self.scenario.caches != roomy {
            simpler.push(self.with(|scenario| scenario.caches = roomy));
        }
        simpler.extend(self.plainer_options());
        simpler
    }

    /// One option after the other as it is where nothing is said.
    fn plainer_options(&self) -> Vec<Self> {
        let now = self.scenario.options;
        let plain = OptionShape::default();
        let candidates = [
            plain,
            OptionShape {
                discards: plain.discards,
                ..now
            },
            OptionShape {
                discards: Discards {
                    cluster: now.discards.cluster,
                    ..plain.discards
                },
                ..now
            },
            OptionShape {
                detect_zeroes: plain.detect_zeroes,
                ..now
            },
            OptionShape {
                overlap_checks: plain.overlap_checks,
                ..now
            },
        ];
        let plainer = candidates.into_iter().filter(|options| *options != now);
        plainer
            .map(|options| self.with(|scenario| scenario.options = options))
            .collect()
    }

    /// No larger than what is used of it.
    fn smaller_disk(&self, shape: &ImageShape) -> Option<Self> {
        let operations = self.scenario.operations.iter().filter_map(|op| op.range());
        let ranges = shape.filled.iter().chain(&shape.packed);
        let used = operations.chain(ranges.chain(&shape.unmapped).copied());
        let end = used.map(Extent::end).max().unwrap_or(SECTOR);
        if end >= shape.virtual_bytes {
            return None;
        }
        self.with_shape(|shape| shape.virtual_bytes = end)
    }

    /// The same in smaller clusters: every offset and length shrinks along.
    fn scaled(&self, cluster_bits: u32) -> Option<Self> {
        let Start::New(shape) = &self.scenario.image else {
            return None;
        };
        let shift = shape.geometry.cluster_bits() - cluster_bits;
        let scale = |bytes: u64| (bytes >> shift).next_multiple_of(SECTOR);
        let scale_len = |bytes: u64| scale(bytes).max(SECTOR);
        let mut small = self.with_shape(|shape| {
            shape.geometry = with_bits(shape.geometry, Some(cluster_bits), None);
            shape.virtual_bytes = scale_len(shape.virtual_bytes);
            let chain = shape.chain.as_mut();
            let lower = chain.map(|chain| [&mut chain.base, &mut chain.other]);
            let lower = lower.into_iter().flatten().chain([&mut shape.backing]);
            for backing in lower.flatten() {
                backing.virtual_bytes = scale_len(backing.virtual_bytes);
            }
            let chain = shape.chain.as_mut();
            for extent in chain.into_iter().flat_map(|chain| &mut chain.held) {
                extent.offset = scale(extent.offset);
                extent.len_bytes = scale_len(extent.len_bytes);
            }
            let ranges = shape.filled.iter_mut().chain(&mut shape.packed);
            for extent in ranges.chain(&mut shape.unmapped) {
                extent.offset = scale(extent.offset);
                extent.len_bytes = scale_len(extent.len_bytes);
                let over = extent.end().saturating_sub(shape.virtual_bytes);
                extent.offset = extent.offset.saturating_sub(over);
            }
        })?;
        for operation in &mut small.scenario.operations {
            *operation = moved(*operation, |extent| Extent {
                offset: scale(extent.offset),
                len_bytes: scale_len(extent.len_bytes),
            });
            if let Operation::Grow { virtual_bytes, .. } | Operation::Shrink { virtual_bytes } =
                operation
            {
                *virtual_bytes = scale_len(*virtual_bytes);
            }
        }
        Some(small)
    }

    fn plainer_operations(&self) -> Vec<Self> {
        let cluster = match &self.scenario.image {
            Start::New(shape) => shape.geometry.cluster_bytes(),
            Start::Given(_) => 1 << 16,
        };
        let mut simpler = Vec::new();
        for (index, operation) in self.scenario.operations.iter().enumerate() {
            for plainer in plainer_operation(*operation, cluster) {
                simpler.push(self.with(|scenario| scenario.operations[index] = plainer));
            }
        }
        simpler
    }
}

fn plainer_operation(operation: Operation, cluster_bytes: u64) -> Vec<Operation> {
    let mut plainer = Vec::new();
    if let Operation::WriteZeroes {
        offset,
        len_bytes,
        unmap: Unmap::Allow,
    } = operation
    {
        plainer.push(Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap: Unmap::Keep,
        });
    }
    if let Operation::Grow {
        virtual_bytes,
        preallocation,
    } = operation
    {
        let less = Preallocation::ALL.into_iter();
        plainer.extend(
            less.take_while(|less| *less < preallocation)
                .map(|less| Operation::Grow {
                    virtual_bytes,
                    preallocation: less,
                }),
        );
        let half = (virtual_bytes / 2).next_multiple_of(SECTOR);
        if half < virtual_bytes {
            plainer.push(Operation::Grow {
                virtual_bytes: half,
                preallocation,
            });
        }
    }
    if let Operation::Amend(amend) = operation {
        let parts = [
            Amend {
                version: None,
                ..amend
            },
            Amend {
                lazy_refcounts: None,
                ..amend
            },
            Amend {
                refcount_order: None,
                ..amend
            },
        ];
        let fewer = parts.into_iter().filter(|part| *part != amend);
        plainer.extend(fewer.map(Operation::Amend));
    }
    if let Operation::DataFile(change) = operation {
        let parts = [
            DataFileOperation {
                name_bytes: None,
                ..change
            },
            DataFileOperation {
                raw: RawPromise::Keep,
                ..change
            },
        ];
        let fewer = parts.into_iter().filter(|part| *part != change);
        plainer.extend(fewer.map(Operation::DataFile));
    }
    let Some(extent) = operation.range() else {
        return plainer;
    };
    let shorter = [
        SECTOR,
        cluster_bytes,
        (extent.len_bytes / 2).next_multiple_of(SECTOR),
    ];
    let lower = [
        0,
        extent.offset / cluster_bytes * cluster_bytes,
        (extent.offset / 2).next_multiple_of(SECTOR),
    ];
    for len_bytes in shorter.into_iter().filter(|&len| len < extent.len_bytes) {
        plainer.push(moved(operation, |extent| Extent {
            len_bytes,
            ..extent
        }));
    }
    for offset in lower.into_iter().filter(|&lower| lower < extent.offset) {
        plainer.push(moved(operation, |extent| Extent { offset, ..extent }));
    }
    plainer
}

/// The same operation on another range.
fn moved(operation: Operation, to: impl FnOnce(Extent) -> Extent) -> Operation {
    match operation.range() {
        Some(extent) => operation.with_range(to(extent)),
        None => operation,
    }
}

/// The same sizes without extended L2 entries.
fn plain(geometry: Geometry) -> Geometry {
    Geometry::new(geometry.cluster_bits(), geometry.refcount_order()).unwrap_or(geometry)
}

fn with_bits(geometry: Geometry, cluster_bits: Option<u32>, order: Option<u32>) -> Geometry {
    let cluster_bits = cluster_bits.unwrap_or(geometry.cluster_bits());
    let order = order.unwrap_or(geometry.refcount_order());
    let plain = Geometry::new(cluster_bits, order).unwrap_or(geometry);
    if geometry.has_subclusters() {
        plain.with_extended_l2().unwrap_or(plain)
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use blkdebug::rule::Fault;
    use engine::device::Cause;

    use super::*;
    use crate::prng::Prng;
    use crate::workload::generate::scenario;
    use crate::workload::pin::Pins;

    #[test]
    fn simpler_cases_mean_something_and_differ() {
        for seed in 0..200 {
            let drawn = scenario(&Prng::from_seed(seed), &Pins::default());
            let small = Small::new(drawn, vec![0, 2, 1, 0]);
            for simpler in small.simpler() {
                simpler.scenario.check().unwrap();
                assert_ne!(simpler, small);
            }
        }
    }

    /// A fault that hits one operation still hits that one, as long as it is there.
    #[test]
    fn faults_move_with_the_operations_that_they_hit() {
        let write = |at: u64| Operation::Write {
            offset: at * SECTOR,
            len_bytes: SECTOR,
        };
        let mut drawn = scenario(&Prng::from_seed(1), &Pins::default());
        drawn.operations = (0..6).map(write).collect();
        drawn.faults = vec![Rule {
            during: During {
                from: Some(3),
                until: Some(4),
            },
            ..Rule::new(Fault::Fail(Cause::IO))
        }];
        let small = Small::new(drawn, Vec::new());
        let fewer = small.fewer_operations();
        assert_eq!(fewer.len(), stretches(6).len());
        for Small { scenario, .. } in fewer {
            let hit = (0..).zip(&scenario.operations).filter(|(at, _)| {
                let during = scenario.faults[0].during;
                during.contains(Some(*at))
            });
            let hit: Vec<Operation> = hit.map(|(_, operation)| *operation).collect();
            let left = scenario.operations.contains(&write(3));
            assert_eq!(hit, if left { vec![write(3)] } else { Vec::new() });
        }
    }

    #[test]
    fn the_plainest_case_has_nothing_simpler() {
        let mut drawn = scenario(&Prng::from_seed(1), &Pins::default());
        drawn.operations.clear();
        let mut small = Small::new(drawn, Vec::new());
        while let Some(simpler) = small.simpler().pop() {
            small = simpler;
        }
        assert_eq!(small.scenario.contract, Contract::Perfect);
        assert_eq!(small.scenario.concurrency, 1);
    }
}
