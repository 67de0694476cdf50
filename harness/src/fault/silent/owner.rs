//! Whether an engine wrote to a cluster that belongs to somebody else, on an image that holds what it should not.
//!
//! A cluster is somebody's where the undamaged image says so, and where the damaged one still does as the engine writes
//! to it. Four things the format has no means to tell, and they are counted and not reported: that a cluster is in use
//! whose refcount says that it is free, or that fewer use it; that the entries which name it are not those that were
//! written; which of two entries that name one cluster is wrong; and that metadata stand where checks against overlaps
//! are not to look. Everything else is a violation. Active metadata is protected by these checks whatever the refcounts
//! say.
//!
//! Whose a table is, it does not say: an L2 table in place of another is not seen, nor a refcount block in place of
//! another. Data say it by their stamp, or by the operation for which they were written; compressed data may share a
//! cluster, and are not seen over others that are compressed.

use std::collections::BTreeMap;
use std::ops::Range;

use blkdebug::class::Class;
use blkdebug::disks::Disk;
use blkdebug::record::{Entry, RecordedOp, Recording, SectorContent};
use blkdebug::volatile::lay;
use engine::device::{Event, OpKind, PageImage};
use engine::qcow2::{OverlapChecks, Region};

use super::land::Land;
use crate::oracle::structure::{Layout, Owner};
use crate::oracle::{Oracle, Violation};
use crate::workload::stamp::{SectorValue, identify};

/// What nobody can know by the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blind {
    /// The refcount of a cluster in use is too low.
    Uncounted,
    /// What names a cluster in the file is not what was written there.
    Misnamed,
    /// Two entries name one cluster.
    NamedTwice,
    /// Checks against overlaps are not to look there.
    Unchecked,
}

/// What an engine wrote where it does not belong.
#[derive(Clone, Debug, Default)]
pub struct Trespasses {
    /// What it could not know.
    pub blind: BTreeMap<Blind, u64>,
    /// The first that it should have known.
    pub violation: Option<Violation>,
}

impl Blind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Uncounted,
        Self::Misnamed,
        Self::NamedTwice,
        Self::Unchecked,
    ];

    /// What reports say.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncounted => "the refcount of a cluster in use is too low",
            Self::Misnamed => "what names a cluster is not what was written",
            Self::NamedTwice => "two entries name one cluster",
            Self::Unchecked => "the image was opened without checks of what stands there",
        }
    }
}

impl Trespasses {
    pub(crate) fn add(&mut self, other: Self) {
        for (blind, count) in other.blind {
            *self.blind.entry(blind).or_default() += count;
        }
        self.violation = self.violation.take().or(other.violation);
    }
}

/// What an engine knows of an image as it writes to it.
pub(crate) struct Sight<'a> {
    /// The image before it was damaged.
    pub(crate) truth: &'a Land,
    /// The image as it was opened, where that is known.
    pub(crate) opened: Option<&'a Land>,
    /// What the file holds, and what whoever was told of no failure takes it to hold.
    pub(crate) seen: &'a [PageImage],
    /// What writes are checked against.
    pub(crate) checks: OverlapChecks,
    /// Why what this owner has there, as [`Land::owners_at`] says it, was in doubt since the damage: it may have been given
    /// away then.
    pub(crate) past: &'a dyn Fn(u64, Owner) -> Option<Blind>,
}

/// Holds everything that a recording of an engine changes against who owned it. The engine was alone with the image, and
/// made one request after the other.
pub(crate) fn trespasses(truth: &Land, recording: &Recording, checks: OverlapChecks) -> Trespasses {
    let mut image = recording.bases.image().clone();
    let opened = Land::of(&image);
    let mut found = Trespasses::default();
    for entry in &recording.entries {
        let seen = std::slice::from_ref(&image);
        let sight = Sight {
            truth,
            opened: Some(&opened),
            seen,
            checks,
            past: &|place, _| opened.is_low(place).then_some(Blind::Uncounted),
        };
        found.add(sight.look_at(entry, None));
        if entry.succeeded().is_some() {
            lay(&mut image, entry);
        }
    }
    found
}

impl Sight<'_> {
    /// Looks at one request before it happens. `guests` are the guest clusters that it was made for, where that is known.
    pub(crate) fn look_at(&self, entry: &Entry, guests: Option<&Range<u64>>) -> Trespasses {
        let mut found = Trespasses::default();
        let Some(layout) = self.truth.layout() else {
            return found;
        };
        if !matches!(
            entry.op,
            RecordedOp::Write { .. } | RecordedOp::WriteZeroes { .. }
        ) || entry.disk != Disk::Image
            || entry.op.sector_count() == 0
            || matches!(entry.event, Event::EmptyImagePrepare | Event::ClusterFree)
        {
            return found;
        }
        let per_cluster = layout.cluster_sectors();
        let sectors = entry.op.sectors();
        let mut seen: Option<Vec<Land>> = None;
        for cluster in sectors.start / per_cluster..sectors.end.div_ceil(per_cluster) {
            let what = What::of(entry, cluster, layout, guests);
            if !what.is_foreign_to(self.truth.owners(cluster)) {
                continue;
            }
            let seen = seen.get_or_insert_with(|| self.seen.iter().map(Land::of).collect());
            let place = sectors.start.max(self.truth.start_of(cluster));
            let Some((owner, at)) = self.still_there(seen, place) else {
                continue;
            };
            match self.excuse(seen, place, &what, (owner, at)) {
                Some(blind) => *found.blind.entry(blind).or_default() += 1,
                None => found.violation = Some(violation(entry, cluster, &what, owner)),
            }
        }
        found
    }

    /// An owner of a sector who had it before the damage, and has it by all that is seen; and what it has there, as
    /// [`Land::owners_at`] says it.
    fn still_there(&self, seen: &[Land], place: u64) -> Option<(Owner, Owner)> {
        let now: Vec<Vec<Owner>> = seen.iter().map(|land| land.owners_at(place)).collect();
        let mine = self.truth.owners_of(place).iter().copied();
        let mut mine = mine.zip(self.truth.owners_at(place));
        mine.find(|(_, at)| now.iter().all(|owners| owners.contains(at)))
    }

    /// Why nobody can know that a sector is this owner's, and not there for what is put into it.
    fn excuse(
        &self,
        seen: &[Land],
        place: u64,
        what: &What,
        (owner, at): (Owner, Owner),
    ) -> Option<Blind> {
        let is_active = || seen.iter().all(|land| land.is_active_l2(place));
        let region = if matches!(owner, Owner::L2Table(_)) && !is_active() {
            Some(Region::InactiveL2)
        } else {
            region(owner)
        };
        let is_checked = region.is_some_and(|region| self.checks.has(region));
        let as_opened = self.opened.map_or(&[][..], |land| land.owners_of(place));
        let mut named = seen.iter().map(|land| land.owners_of(place));
        let named_twice = named.any(|owners| !what.is_foreign_to(owners))
            || as_opened.iter().any(|owner| owner != &as_opened[0]);
        // Data have nothing to be taken for, wherever an entry says that they stand.
        let is_refused = is_checked && what.class == Class::Data;
        if named_twice && !is_refused {
            Some(Blind::NamedTwice)
        } else if is_checked {
            None
        } else if seen.iter().any(|land| land.refcount(place) == 0) {
            Some(Blind::Uncounted)
        } else {
            let past = (self.past)(place, at);
            past.or(region.map(|_| Blind::Unchecked))
        }
    }
}

/// What a request puts into a cluster.
struct What {
    class: Class,
    /// Whether it is compressed.
    packed: bool,
    /// The guest cluster that its bytes say they are of, if they do.
    guest: Option<u64>,
    /// The guest clusters that it was written for, where that is known.
    guests: Option<Range<u64>>,
}

impl What {
    fn of(entry: &Entry, cluster: u64, layout: &Layout, guests: Option<&Range<u64>>) -> Self {
        let is_data = matches!(
            entry.event,
            Event::WriteAio | Event::WriteCompressed | Event::PwritevZero
        );
        // The header is made to name another table.
        let is_switch = matches!(
            entry.event,
            Event::L1GrowActivateTable | Event::RefblockAllocSwitchTable
        );
        let class = if is_data {
            Class::Data
        } else if is_switch {
            Class::Header
        } else {
            Class::of(entry)
        };
        let per_cluster = layout.cluster_sectors();
        let first = entry.op.sectors().start;
        let guest = (0..entry.op.sector_count()).find_map(|index| {
            let sector = first + u64::try_from(index).ok()?;
            if sector / per_cluster != cluster || entry.op.kind() != OpKind::Write {
                return None;
            }
            match entry.op.content(index) {
                SectorContent::Bytes(bytes, _) => match identify(bytes) {
                    SectorValue::Stamp { sector, .. } => Some(sector / per_cluster),
                    SectorValue::Zero | SectorValue::Other(_) => None,
                },
                SectorContent::Zero => None,
            }
        });
        Self {
            class,
            packed: entry.event == Event::WriteCompressed,
            guest,
            guests: guests.cloned(),
        }
    }

    /// Whether it belongs into no cluster of these owners, who are somebody.
    fn is_foreign_to(&self, owners: &[Owner]) -> bool {
        !owners.is_empty() && !owners.iter().any(|owner| self.may_be_in(*owner))
    }

    /// Whether it belongs into a cluster of this owner.
    fn may_be_in(&self, owner: Owner) -> bool {
        match owner {
            Owner::L1Table => self.class == Class::L1,
            // Both are copied from where the other stands, under either event.
            Owner::SnapshotL1Table(_) => matches!(self.class, Class::L1 | Class::Header),
            Owner::RefcountTable => self.class == Class::RefcountTable,
            Owner::RefcountBlock(_) => self.class == Class::RefcountBlock,
            Owner::L2Table(_) => self.class == Class::L2,
            Owner::Header
            | Owner::SnapshotTable
            | Owner::EncryptionHeader
            | Owner::BitmapDirectory
            | Owner::BitmapTable(_)
            | Owner::BitmapData(_) => self.class == Class::Header,
            Owner::Data(guest) => {
                let is_asked = self.guests.as_ref().is_none_or(|it| it.contains(&guest));
                let is_said = self.guest.is_none_or(|mine| mine == guest);
                self.class == Class::Data && is_asked && is_said
            }
            // Others' compressed bytes may stand beside.
            Owner::Compressed => self.class == Class::Data && self.packed,
        }
    }
}

/// What overlap checks call it where the active image uses it.
fn region(owner: Owner) -> Option<Region> {
    match owner {
        Owner::Header | Owner::EncryptionHeader => Some(Region::MainHeader),
        Owner::L1Table => Some(Region::ActiveL1),
        Owner::L2Table(_) => Some(Region::ActiveL2),
        Owner::RefcountTable => Some(Region::RefcountTable),
        Owner::RefcountBlock(_) => Some(Region::RefcountBlock),
        Owner::SnapshotTable => Some(Region::SnapshotTable),
        Owner::SnapshotL1Table(_) => Some(Region::InactiveL1),
        Owner::BitmapDirectory | Owner::BitmapTable(_) => Some(Region::BitmapDirectory),
        Owner::BitmapData(_) | Owner::Data(_) | Owner::Compressed => None,
    }
}

fn violation(entry: &Entry, cluster: u64, what: &What, owner: Owner) -> Violation {
    let lines = vec![format!(
        "{} went to host cluster {cluster}, which is another's: {owner}",
        entry.name()
    )];
    let site = format!("{}-over-{}", what.class.name(), owner.kind());
    Violation::new(Oracle::Structure, "wrong-owner", site, lines)
}
