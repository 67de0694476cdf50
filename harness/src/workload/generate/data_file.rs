//! External data files in drawn scenarios: whether guest data stand in one, what is then not drawn, and what
//! the image comes to say of it.
//!
//! This is drawn apart from everything else, so that a scenario without one stays what it was.

use engine::manage::RawPromise;
use engine::qcow2::create::DataFileContent;
use engine::qcow2::geometry::Geometry;

use super::super::ops::{DataFileOperation, Operation};
use super::super::pin::{Managed, Pins, Room};
use super::super::shape::{Extent, ImageShape};
use crate::prng::Prng;

/// How large disks with data files are drawn.
struct Bounds {
    virtual_bytes: u64,
    /// How much they grow at a time.
    growth_bytes: u64,
}

/// All of a raw data file is mapped, and looked at in each crash state.
const RAW: Bounds = Bounds {
    virtual_bytes: 256 << 10,
    growth_bytes: 64 << 10,
};
/// What a disk gives up in one piece, its data file gives up in one request; in a crash state each sector of
/// that may be garbage, and is laid by itself.
const CLUSTERS: Bounds = Bounds {
    virtual_bytes: 2 << 20,
    growth_bytes: 512 << 10,
};

/// Whether guest data stand in a file of their own, and what is then not drawn.
pub(super) fn pins(prng: &Prng, pins: &Pins) -> Pins {
    let mut draw = prng.fork("data-file");
    let drawn = match draw.below(24) {
        0 => Some(DataFileContent::Clusters),
        1 if !matches!(pins.backing, Some(Some(_))) => Some(DataFileContent::Raw),
        _ => None,
    };
    let drawn = drawn.filter(|_| pins.data_file_is_free());
    let data_file = pins.data_file.unwrap_or(drawn);
    let Some(content) = data_file else {
        return Pins {
            data_file: Some(None),
            ..*pins
        };
    };
    let raw = content == DataFileContent::Raw;
    Pins {
        data_file: Some(data_file),
        version: Some(3),
        snapshots: Some(false),
        compression: Some(None),
        encryption: Some(None),
        // What the guest writes takes no refcounts.
        room: Some(pins.room.unwrap_or(Room::Any)),
        backing: if raw { Some(None) } else { pins.backing },
        manage: if raw {
            Some(pins.raw_managed())
        } else {
            pins.manage
        },
        ..*pins
    }
}

/// Leaves parts of a raw data file unmapped, as other programs do, or does not.
pub(super) fn unmap(prng: &Prng, shape: &mut ImageShape) {
    let mut draw = prng.fork("unmapped");
    if shape.data_file != Some(DataFileContent::Raw) || !draw.chance(1, 3) {
        return;
    }
    let cluster = shape.geometry.cluster_bytes();
    let clusters = shape.geometry.clusters_for(shape.virtual_bytes);
    let mut ranges: Vec<Extent> = (0..draw.between(1, 3))
        .map(|_| {
            let first = draw.below(clusters);
            let count = draw.between(1, clusters - first);
            let end = ((first + count) * cluster).min(shape.virtual_bytes);
            Extent {
                offset: first * cluster,
                len_bytes: end - first * cluster,
            }
        })
        .collect();
    ranges.sort_unstable();
    ranges.dedup();
    shape.unmapped = ranges;
}

/// Adds changes of what the image says of its data file, or does not. What is promised of a raw one is
/// withdrawn at most once; only then can the image be emptied.
pub(super) fn add(prng: &Prng, pins: &Pins, shape: &ImageShape, operations: &mut Vec<Operation>) {
    let mut draw = prng.fork("data file operations");
    let wanted = match pins.manage {
        None | Some(Managed::All | Managed::Amend) => draw.chance(1, 2),
        Some(Managed::None | Managed::Rename | Managed::Empty) => false,
    };
    let Some(content) = shape.data_file.filter(|_| wanted) else {
        return;
    };
    for _ in 0..draw.between(1, 3) {
        let place = draw.index(operations.len() + 1);
        let operation = DataFileOperation {
            name_bytes: Some(name(&mut draw, shape.geometry)),
            raw: RawPromise::Keep,
        };
        operations.insert(place, Operation::DataFile(operation));
    }
    if content == DataFileContent::Raw && draw.chance(1, 2) {
        let place = draw.index(operations.len() + 1);
        let also = draw.chance(1, 4);
        let operation = DataFileOperation {
            name_bytes: also.then(|| name(&mut draw, shape.geometry)),
            raw: RawPromise::Withdraw,
        };
        operations.insert(place, Operation::DataFile(operation));
        if draw.chance(1, 3) {
            let later = operations.len() - place;
            operations.insert(place + 1 + draw.index(later), Operation::Empty);
        }
    }
}

/// As long as other names, or none.
fn name(draw: &mut Prng, geometry: Geometry) -> u32 {
    if draw.chance(1, 6) {
        0
    } else {
        super::name_bytes(draw, geometry)
    }
}

/// A disk is drawn no larger than this.
pub(super) fn most_bytes(pins: &Pins) -> u64 {
    bounds(pins).map_or(u64::MAX, |bounds| bounds.virtual_bytes)
}

/// It grows by no more at a time.
pub(super) fn most_growth(pins: &Pins) -> u64 {
    bounds(pins).map_or(u64::MAX, |bounds| bounds.growth_bytes)
}

fn bounds(pins: &Pins) -> Option<Bounds> {
    Some(match pins.data_file.flatten()? {
        DataFileContent::Raw => RAW,
        DataFileContent::Clusters => CLUSTERS,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::shape::{Scenario, Start};
    use super::super::scenario;
    use super::*;

    fn drawn(count: u64, pins: &Pins) -> impl Iterator<Item = Scenario> {
        (0..count).map(|run| scenario(&Prng::from_seed(11).fork_indexed("run", run), pins))
    }

    fn shape(scenario: &Scenario) -> &ImageShape {
        match &scenario.image {
            Start::New(shape) => shape,
            Start::Given(_) => unreachable!("drawn scenarios start with new images"),
        }
    }

    #[test]
    fn data_files_are_drawn_and_can_be_pinned() {
        let has = |scenario: &Scenario| shape(scenario).data_file.is_some();
        let by_chance = drawn(1000, &Pins::default()).filter(has).count();
        assert!((40..140).contains(&by_chance), "{by_chance} of 1000");
        for (option, content) in [
            ("data_file=on", Some(DataFileContent::Clusters)),
            ("data_file=raw", Some(DataFileContent::Raw)),
            ("data_file=off", None),
        ] {
            let pins = Pins::parse(option).unwrap();
            for scenario in drawn(500, &pins) {
                let chained = shape(&scenario).chain.is_some();
                assert!(chained || shape(&scenario).data_file == content);
                scenario.check().unwrap();
            }
        }
    }

    #[test]
    fn some_raw_data_files_start_with_unmapped_parts() {
        let pins = Pins::parse("data_file=raw,chain=off").unwrap();
        let unmapped = |scenario: &Scenario| !shape(scenario).unmapped.is_empty();
        let some = drawn(300, &pins).filter(unmapped).count();
        assert!((60..150).contains(&some), "{some} of 300");
        let pins = Pins::parse("data_file=on,chain=off").unwrap();
        assert!(!drawn(300, &pins).any(|scenario| unmapped(&scenario)));
    }

    #[test]
    fn images_come_to_say_something_else_of_their_data_files() {
        let pins = Pins::parse("data_file=raw,chain=off").unwrap();
        let withdraws = |operation: &Operation| matches!(operation, Operation::DataFile(change) if change.raw == RawPromise::Withdraw);
        let (mut withdrawn, mut emptied) = (0, 0);
        for scenario in drawn(300, &pins) {
            let mut operations = scenario.operations.iter();
            let found = operations.any(withdraws);
            withdrawn += u32::from(found);
            emptied += u32::from(operations.any(|operation| *operation == Operation::Empty));
        }
        assert!((40..120).contains(&withdrawn), "{withdrawn} of 300");
        assert!((10..50).contains(&emptied), "{emptied} of 300");
        let pins = Pins::parse("data_file=on,chain=off,manage=off").unwrap();
        for scenario in drawn(300, &pins) {
            let changes = |operation: &Operation| matches!(operation, Operation::DataFile(_));
            assert!(!scenario.operations.iter().any(changes));
        }
    }

    #[test]
    fn disks_with_data_files_stay_small() {
        for (options, bounds) in [
            ("data_file=raw,chain=off", RAW),
            ("data_file=raw,chain=off,shrink=on,preallocation=full", RAW),
            ("data_file=on,chain=off", CLUSTERS),
            ("data_file=on,chain=off,shrink=on", CLUSTERS),
        ] {
            for scenario in drawn(500, &Pins::parse(options).unwrap()) {
                let mut end = shape(&scenario).virtual_bytes;
                assert!(end <= bounds.virtual_bytes);
                for operation in &scenario.operations {
                    if let Operation::Grow { virtual_bytes, .. } = *operation {
                        assert!(
                            virtual_bytes <= end + bounds.growth_bytes,
                            "{operation:?} from {end}"
                        );
                        end = virtual_bytes;
                    }
                    if let Operation::Shrink { virtual_bytes } = *operation {
                        end = virtual_bytes;
                    }
                }
            }
        }
    }
}
