//! Whether refcounts are wide enough for what an operation on snapshots adds to them.

use std::collections::BTreeMap;

use engine::device::PageImage;

use super::references::{self, Reference};
use super::{Layout, Scan, StructureReport};

/// What gets a reference more to each of its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain<'a> {
    /// The disk, as a snapshot of it is taken.
    Disk,
    /// What the snapshot of this name holds and the disk does not, as the disk goes back to it.
    Snapshot(&'a str),
}

/// Whether each cluster's references are few enough for one more of these. Where the image cannot be read, or has no such
/// snapshot, there is nothing that would not fit.
pub fn has_room(image: &PageImage, gain: Gain<'_>) -> bool {
    let Ok(layout) = Layout::read(image) else {
        return true;
    };
    let mut report = StructureReport::default();
    let mut scan = Scan::new(image, layout, &mut report);
    let held = counted(&references::collect(&mut scan));
    let disk = tree(image, layout, (layout.l1_offset, layout.l1_entries));
    let gained = match gain {
        Gain::Disk => disk,
        Gain::Snapshot(name) => {
            let found = report.snapshots.iter().find(|one| one.name == name);
            let mut gained = found.map_or_else(BTreeMap::new, |it| tree(image, layout, it.l1()));
            for (cluster, count) in &mut gained {
                *count = count.saturating_sub(disk.get(cluster).copied().unwrap_or(0));
            }
            gained
        }
    };
    let most = u64::MAX >> (64 - (1u32 << layout.refcount_order));
    gained.iter().all(|(cluster, gain)| {
        let held = held.get(cluster).copied().unwrap_or(0);
        held.saturating_add(*gain) <= most
    })
}

/// How often an L1 table leads to each cluster.
fn tree(
    image: &PageImage,
    layout: Layout,
    (l1_offset, l1_entries): (u64, u64),
) -> BTreeMap<u64, u64> {
    let mut unheard = StructureReport::default();
    let mut scan = Scan::new(image, layout, &mut unheard);
    counted(&references::of_table(&mut scan, l1_offset, l1_entries))
}

fn counted(references: &[Reference]) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for reference in references {
        let count: &mut u64 = counts.entry(reference.cluster).or_default();
        *count = count.saturating_add(reference.count);
    }
    counts
}
