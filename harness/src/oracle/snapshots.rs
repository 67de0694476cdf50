//! The list of snapshots, and what each of them holds, against what the history allows.

use std::ops::Range;

use super::judge::{Ended, Witness, compare_views, interest};
use super::structure::SnapshotDisk;
use super::sweep::check_guest;
use super::verdict::{Oracle, Verdict, Violation};
use super::view::{Backing, GuestView};
use crate::guest::{Alternatives, Expectation, Past};
use crate::sectors::merge;

impl Witness {
    /// The disks of the snapshots, in the order of the table, with their names.
    pub(super) fn snapshot_disks(&self) -> Vec<(String, SnapshotDisk)> {
        let Some(layout) = self.report.layout else {
            return Vec::new();
        };
        let snapshots = self.report.snapshots.iter();
        snapshots
            .map(|one| (one.name.clone(), one.disk(&self.image, &layout)))
            .collect()
    }

    /// The snapshots, as those from before a history that begins here.
    pub fn past(&self, backing: Option<&Backing>) -> Vec<Past> {
        let disks = self.snapshot_disks();
        let past = disks.iter().map(|(name, disk)| {
            let view = GuestView::of_snapshot(&self.image, disk, backing);
            let sectors: Vec<Range<u64>> = std::iter::once(0..view.virtual_bytes() / 512).collect();
            Past {
                name: name.clone(),
                content: view.content(merge(sectors, view.virtual_bytes() / 512)),
                virtual_bytes: view.virtual_bytes(),
            }
        });
        past.collect()
    }
}

/// Holds the snapshots of an image against what the history allows.
pub(super) fn check_snapshots(
    witness: &Witness,
    backing: Option<&Backing>,
    expectation: &Expectation<'_>,
) -> Result<(), Ended> {
    let disks = witness.snapshot_disks();
    let names: Vec<&str> = disks.iter().map(|(name, _)| name.as_str()).collect();
    let lists = expectation.snapshot_lists();
    let fits = |list: &&Vec<_>| {
        names
            .iter()
            .eq(list.iter().map(|one: &crate::guest::Listed| &one.name))
    };
    let Some(list) = lists.iter().find(fits) else {
        let mut lines = vec![format!("the image lists the snapshots {names:?}")];
        lines.extend(lists.iter().map(|list| {
            let names: Vec<&str> = list.iter().map(|one| one.name.as_str()).collect();
            format!("legal: {names:?}")
        }));
        return Err(Violation::new(Oracle::Guest, "snapshot-list", "snapshot-table", lines).into());
    };
    for ((name, disk), listed) in disks.iter().zip(list) {
        let view = GuestView::of_snapshot(&witness.image, disk, backing);
        let expected = expectation.snapshot(listed);
        let sectors = interest(&view, &expected);
        check_guest(&view, None, &expected, &sectors, None)
            .map_err(|ended| Box::new(in_snapshot(*ended, name)))?;
    }
    Ok(())
}

/// The whole disk is as before an operation that changes all of it, or as after it.
pub(super) fn check_alternatives(
    view: &GuestView<'_>,
    expectation: &Expectation<'_>,
) -> Result<(), Ended> {
    let Some(alternatives) = expectation.alternatives() else {
        return Ok(());
    };
    let (worlds, site, line) = match alternatives {
        Alternatives::Snapshot(worlds) => (
            worlds,
            "snapshot",
            "the disk is neither as it was before the snapshot was applied, nor as the snapshot",
        ),
        Alternatives::Shrink(worlds) => (
            worlds,
            "shrink",
            "the disk is neither as it was before it was made smaller, nor the smaller one",
        ),
        Alternatives::Repoint(worlds) => (
            worlds,
            "repoint",
            "the disk is neither as it was over the old file, nor as it is over the new one",
        ),
    };
    let whole = worlds.iter().any(|alternative| {
        let sectors = interest(view, alternative);
        check_guest(view, None, alternative, &sectors, None).is_ok()
    });
    if whole {
        return Ok(());
    }
    Err(Violation::new(Oracle::Guest, "between", site, vec![line.into()]).into())
}

/// What a repair may not change: the list, and what each snapshot holds.
pub(super) fn compare_snapshots(
    before: &Witness,
    after: &Witness,
    backing: Option<&Backing>,
    doing: &str,
) -> Result<(), Ended> {
    let (old, new) = (before.snapshot_disks(), after.snapshot_disks());
    let names = |disks: &[(String, SnapshotDisk)]| -> Vec<String> {
        disks.iter().map(|(name, _)| name.clone()).collect()
    };
    if names(&old) != names(&new) {
        let line = format!(
            "{doing} changed the list of snapshots from {:?} to {:?}",
            names(&old),
            names(&new)
        );
        let kind = "snapshots-changed";
        return Err(Violation::new(Oracle::Repair, kind, "snapshot-table", vec![line]).into());
    }
    for ((name, old), (_, new)) in old.iter().zip(&new) {
        let old = GuestView::of_snapshot(&before.image, old, backing);
        let new = GuestView::of_snapshot(&after.image, new, backing);
        compare_views(&old, &new, doing).map_err(|ended| Box::new(in_snapshot(*ended, name)))?;
    }
    Ok(())
}

/// The same complaint, about a snapshot.
fn in_snapshot(verdict: Verdict, name: &str) -> Verdict {
    match verdict {
        Verdict::Violated(mut violation) => {
            violation.class.site = "snapshot".into();
            violation
                .lines
                .insert(0, format!("in the snapshot {name}:"));
            Verdict::Violated(violation)
        }
        Verdict::Survived | Verdict::NotMeasured(_) | Verdict::HarnessBroken(_) => verdict,
    }
}
