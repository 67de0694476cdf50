//! What a guest may find after a power loss, taken from the log alone.
//!
//! The history of the guest's operations is not known. But whatever the guest could see is what the image shows once all
//! requests up to some point have been carried out: a *version*, one behind each request. At a power loss everything up to
//! the last flush is durable, so that the version there, the *floor*, is what the guest has at least, and each sector may
//! also read what it reads in a later version up to the last request that was submitted.
//!
//! There is one more thing that an honest image may show. Data may be written twice to a new cluster before any table names
//! it: no version shows the first, and a power loss may keep it and the table, and lose the second. So a sector may also
//! read what was written to the place where a version has it, since that place was last in use for anything else.
//!
//! A sector that reads something else has lost what was durable, or shows what was never put there. What is not noticed:
//! a program that writes in the wrong order makes versions that are wrong themselves.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use blkdebug::record::{RecordedOp, Recording, SectorContent, Tick};
use engine::device::PageImage;

use super::import::apply;
use crate::guest::{Content, Level};
use crate::oracle::structure::{Mapping, StructureReport};
use crate::oracle::view::{Backing, GuestView};
use crate::oracle::{Oracle, Violation, Witness};
use crate::sectors::merge;
use crate::workload::stamp::{SectorValue, identify};

/// So many sectors that are wrong are told of.
const TOLD: usize = 4;
/// More are not looked for.
const ENOUGH: usize = 256;

/// What the image shows behind each request.
#[derive(Debug)]
pub struct Versions<'a> {
    recording: &'a Recording,
    backing: Option<&'a Backing>,
    /// The first is what the recording begins with, and each of the others is behind one more request.
    all: Vec<Version>,
    /// By guest sector: from which version on it reads what.
    changes: BTreeMap<u64, Vec<(usize, SectorValue)>>,
}

#[derive(Clone, Debug)]
struct Version {
    image: PageImage,
    report: Rc<StructureReport>,
    snapshots: Rc<Vec<Snapshot>>,
}

/// A snapshot's name, the size of its disk in bytes, and what that holds.
type Snapshot = (String, u64, Content);

/// The versions that a power loss may leave something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// All of this is durable.
    pub floor: usize,
    /// Nothing later was submitted.
    pub last: usize,
}

/// A guest sector that reads what it must not.
struct Miss {
    sector: u64,
    found: SectorValue,
    legal: Vec<SectorValue>,
    level: Level,
}

impl<'a> Versions<'a> {
    /// The versions of what was recorded on one disk.
    pub fn of(recording: &'a Recording, backing: Option<&'a Backing>) -> Self {
        let mut image = recording.bases.image().clone();
        let mut versions = vec![Version::new(image.clone(), backing)];
        for entry in &recording.entries {
            apply(&mut image, &entry.op);
            let before = versions.last().expect("there is a first");
            versions.push(before.next(image.clone(), &entry.op, backing));
        }
        let mut made = Self {
            recording,
            backing,
            all: versions,
            changes: BTreeMap::new(),
        };
        for index in 1..made.all.len() {
            made.note_changes(index);
        }
        made
    }

    /// Takes note of the guest sectors that read something else than in the version before.
    fn note_changes(&mut self, index: usize) {
        let (Some(before), Some(after)) = (self.view(index - 1), self.view(index)) else {
            return;
        };
        let mut changed = Vec::new();
        for sector in differences(&before, &after) {
            changed.push((sector, value(&after, sector)));
        }
        for (sector, value) in changed {
            self.changes.entry(sector).or_default().push((index, value));
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The bytes of a version.
    pub fn image(&self, version: usize) -> &PageImage {
        &self.all[version].image
    }

    /// A version with its walk.
    pub fn witness(&self, version: usize) -> Witness {
        let Version { image, report, .. } = &self.all[version];
        Witness {
            image: image.clone(),
            report: Rc::clone(report),
        }
    }

    /// Whether a version is an image that can be gone on from: it was not yet one, perhaps, when the log began.
    pub fn is_image(&self, version: usize) -> bool {
        let report = &self.all[version].report;
        report.layout.is_some() && report.finding_count == 0 && !report.corrupt()
    }

    /// Whether a version asks to be repaired as it is opened.
    pub fn is_dirty(&self, version: usize) -> bool {
        self.all[version].report.dirty()
    }

    /// Why nothing can be said of an image like this version, if so.
    pub fn beyond_reach(&self, version: usize) -> Option<&'static str> {
        let report = &self.all[version].report;
        let layout = report.layout?;
        if layout.encryption != 0 {
            return Some("the image is encrypted, and what a guest sees of it is not known");
        }
        if layout.external_data {
            return Some(
                "the image's data are in a file of their own, of which the log tells nothing",
            );
        }
        report.not_measured
    }

    fn view(&self, version: usize) -> Option<GuestView<'_>> {
        let Version { image, report, .. } = &self.all[version];
        GuestView::new(image, report, self.backing)
    }

    /// What a power loss at a moment may leave something of.
    pub fn window(&self, cut: Tick) -> Window {
        let entries = &self.recording.entries;
        let flushed = |entry: &blkdebug::record::Entry| {
            matches!(entry.op, RecordedOp::Flush) && entry.succeeded().is_some_and(|at| at <= cut)
        };
        Window {
            floor: entries.iter().rposition(flushed).unwrap_or(0),
            last: entries.partition_point(|entry| entry.submitted <= cut),
        }
    }

    /// The guest clusters, in ranges of sectors, in which a sound image shows something else than the floor does.
    pub fn changed_clusters(&self, found: &Witness, floor: usize) -> Vec<Range<u64>> {
        let (Some(before), Some(after)) = (self.view(floor), found_view(found, self.backing))
        else {
            return Vec::new();
        };
        let unit = after.cluster_sectors();
        let ranges = differences(&before, &after)
            .map(|sector| sector / unit * unit..(sector / unit + 1) * unit);
        merge(ranges.collect(), after.virtual_bytes() / 512)
    }

    /// What is wrong with what a sound image shows of the guest's disk and of its snapshots; what misses by no more than
    /// `accept` is let pass.
    pub fn check(
        &self,
        found: &Witness,
        window: Window,
        accept: Option<Level>,
    ) -> Option<Violation> {
        let (before, after) = (self.view(window.floor)?, found_view(found, self.backing)?);
        if let Some(violation) = self.check_size(&after, window) {
            return Some(violation);
        }
        let mut misses: Vec<Miss> = Vec::new();
        for sector in differences(&before, &after) {
            let found = value(&after, sector);
            let known = value(&before, sector);
            misses.extend(self.check_sector(sector, known, found, window));
            if misses.len() >= ENOUGH {
                break;
            }
        }
        misses.retain(|miss| {
            miss.level == Level::Lost || accept.is_none_or(|mild| miss.level > mild)
        });
        if let Some(worst) = misses.iter().map(|miss| miss.level).max() {
            return Some(Self::explain(worst, &misses, window));
        }
        self.check_snapshots(found, window)
    }

    fn check_size(&self, view: &GuestView<'_>, window: Window) -> Option<Violation> {
        let versions = window.floor..=window.last;
        let mut sizes: Vec<u64> = versions
            .filter_map(|version| Some(self.view(version)?.virtual_bytes()))
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        let found = view.virtual_bytes();
        (!sizes.contains(&found)).then(|| {
            let line = format!("the guest's disk has {found} bytes; it may have one of {sizes:?}");
            Violation::new(Oracle::Guest, "size", "header", vec![line])
        })
    }

    fn check_sector(
        &self,
        sector: u64,
        known: SectorValue,
        found: SectorValue,
        window: Window,
    ) -> Option<Miss> {
        let changes = self.changes.get(&sector).map_or(&[][..], Vec::as_slice);
        let mut legal = vec![known];
        let later = changes
            .iter()
            .filter(|(version, _)| (window.floor + 1..=window.last).contains(version));
        legal.extend(later.map(|(_, value)| *value));
        if legal.contains(&found) || self.was_written(sector, found, window) {
            return None;
        }
        legal.sort_unstable();
        legal.dedup();
        Some(Miss {
            sector,
            found,
            legal,
            level: self.level(sector, found, window),
        })
    }

    fn level(&self, sector: u64, found: SectorValue, window: Window) -> Level {
        let start = self
            .view(0)
            .map_or(SectorValue::Zero, |view| value(&view, sector));
        let changes = self.changes.get(&sector).map_or(&[][..], Vec::as_slice);
        let mut earlier = changes
            .iter()
            .filter(|(version, _)| *version <= window.floor);
        if found == start || earlier.any(|(_, value)| *value == found) {
            return Level::Lost;
        }
        if found == SectorValue::Zero {
            return Level::Zeros;
        }
        let mut all = self.changes.values().flatten();
        if all.any(|(_, value)| *value == found) {
            Level::StaleOwn
        } else {
            Level::StaleForeign
        }
    }

    /// Whether this was written to where a version of the window has the sector, since that place was in use for anything
    /// else.
    fn was_written(&self, sector: u64, wanted: SectorValue, window: Window) -> bool {
        let mut tried: Vec<u64> = Vec::new();
        for version in window.floor..=window.last {
            let Some(host) = self.host_sector(version, sector) else {
                continue;
            };
            if tried.contains(&host) {
                continue;
            }
            tried.push(host);
            let born = self.born(host, sector, version);
            for index in (born..window.last).rev() {
                let op = &self.recording.entries[index].op;
                let sectors = op.sectors();
                if !sectors.contains(&host) {
                    continue;
                }
                let place = usize::try_from(host - sectors.start)
                    .expect("a request's sectors can be counted");
                let value = match op.content(place) {
                    SectorContent::Zero => SectorValue::Zero,
                    SectorContent::Bytes(bytes, _) => identify(bytes),
                };
                if value == wanted {
                    return true;
                }
                // What this one replaced is not there any more, whatever is lost.
                if index < window.floor {
                    break;
                }
            }
        }
        false
    }

    /// Behind which version this sector of the file has been the guest's sector's, up to `version`, which has it there: back
    /// through the time in which it has the place, and then through that in which nothing has it. What it held in an
    /// earlier life of the same place is as foreign as what another held there.
    fn born(&self, host: u64, sector: u64, version: usize) -> usize {
        let mut is_free = false;
        for earlier in (0..version).rev() {
            let report = &self.all[earlier].report;
            if report.layout.is_none() {
                continue;
            }
            is_free |= self.host_sector(earlier, sector) != Some(host);
            if is_free && is_within(&report.referred, host) {
                return earlier;
            }
        }
        0
    }

    /// Where a version has a guest sector as it is, and not packed.
    fn host_sector(&self, version: usize, sector: u64) -> Option<u64> {
        let report = &self.all[version].report;
        let unit = report.layout?.cluster_sectors();
        let cluster = sector / unit;
        let index = report
            .mapped
            .binary_search_by_key(&cluster, |mapped| mapped.guest_cluster)
            .ok()?;
        match report.mapped[index].mapping {
            Mapping::Data(offset)
            | Mapping::Split {
                offset,
                allocated: 1..,
                ..
            } => Some(offset / 512 + sector % unit),
            Mapping::Split { .. } | Mapping::Zero | Mapping::Compressed { .. } | Mapping::Bad => {
                None
            }
        }
    }

    /// The list of snapshots with all that they hold is that of one version: each of them happens or does not.
    fn check_snapshots(&self, found: &Witness, window: Window) -> Option<Violation> {
        let snapshots = snapshots(found, self.backing);
        let mut versions = window.floor..=window.last;
        if versions.any(|version| *self.all[version].snapshots == snapshots) {
            return None;
        }
        let names = |snapshots: &[Snapshot]| -> Vec<String> {
            snapshots.iter().map(|(name, ..)| name.clone()).collect()
        };
        let (found, before) = (names(&snapshots), names(&self.all[window.floor].snapshots));
        let line = format!(
            "the snapshots {found:?}, with what they hold, are those of no moment since the last flush, when there were {before:?}"
        );
        Some(Violation::new(
            Oracle::Guest,
            "snapshots",
            "snapshot-table",
            vec![line],
        ))
    }

    fn explain(worst: Level, misses: &[Miss], window: Window) -> Violation {
        let line = |miss: &Miss| {
            let legal: Vec<String> = miss.legal.iter().map(ToString::to_string).collect();
            let since = match miss.legal.as_slice() {
                [_] => "as it has read since the last flush",
                _ => "each of which it has read since the last flush",
            };
            let Miss { sector, found, .. } = miss;
            format!(
                "guest sector {sector} reads {found}; legal: {}, {since}",
                legal.join(", or ")
            )
        };
        let mut lines: Vec<String> = misses
            .iter()
            .filter(|miss| miss.level == worst)
            .take(TOLD)
            .map(line)
            .collect();
        if misses.len() > lines.len() {
            lines.push(format!("and {} sectors more", misses.len() - lines.len()));
        }
        let (floor, last) = (window.floor, window.last);
        lines.push(format!(
            "all up to request {floor} is durable, and {last} had been submitted"
        ));
        Violation::new(Oracle::Guest, worst.name(), "", lines)
    }
}

impl Version {
    fn new(image: PageImage, backing: Option<&Backing>) -> Self {
        let witness = Witness::new(image);
        let snapshots = snapshots(&witness, backing);
        let Witness { image, report } = witness;
        Self {
            image,
            report,
            snapshots: Rc::new(snapshots),
        }
    }

    /// The version behind one more request.
    fn next(&self, image: PageImage, op: &RecordedOp, backing: Option<&Backing>) -> Self {
        let sectors = op.sectors();
        let mut referred = self.report.referred.iter();
        let meets = referred.any(|range| range.start < sectors.end && sectors.start < range.end);
        // What nothing refers to means nothing, unless the file was not an image before, or ends elsewhere.
        let same_length = image.len() == self.image.len();
        let same = !meets && same_length && self.report.layout.is_some();
        if same || image.content_hash() == self.image.content_hash() {
            return Self {
                image,
                ..self.clone()
            };
        }
        Self::new(image, backing)
    }
}

fn found_view<'v>(found: &'v Witness, backing: Option<&'v Backing>) -> Option<GuestView<'v>> {
    GuestView::new(&found.image, &found.report, backing)
}

fn snapshots(witness: &Witness, backing: Option<&Backing>) -> Vec<Snapshot> {
    // An image that is not sound may claim any size for a snapshot's disk.
    if witness.report.finding_count > 0 {
        return Vec::new();
    }
    let past = witness.past(backing).into_iter();
    past.map(|one| (one.name, one.virtual_bytes, one.content))
        .collect()
}

/// The guest sectors that read differently on two disks, ascending; what only one of them has is compared with zeroes.
fn differences<'v>(
    before: &'v GuestView<'v>,
    after: &'v GuestView<'v>,
) -> impl Iterator<Item = u64> + 'v {
    let end = before.virtual_bytes().max(after.virtual_bytes()) / 512;
    let common = before.virtual_bytes().min(after.virtual_bytes()) / 512;
    let both = before.mapped_sectors().chain(after.mapped_sectors());
    let mapped = both.chain(std::iter::once(common..end)).collect();
    merge(mapped, end).into_iter().flat_map(move |range| {
        let mut at = range.start;
        let shared = range.end.min(common);
        std::iter::from_fn(move || {
            if at < shared {
                let next = before.difference(after, at..shared);
                at = next.map_or(shared, |difference| difference.sector + 1);
                if next.is_some() {
                    return Some(at - 1);
                }
            }
            let mut rest = at..range.end;
            let found = rest.find(|sector| value(before, *sector) != value(after, *sector));
            at = rest.start;
            found
        })
    })
}

/// What a guest sector reads; zeroes beyond the end.
fn value(view: &GuestView<'_>, sector: u64) -> SectorValue {
    if sector >= view.virtual_bytes() / 512 {
        return SectorValue::Zero;
    }
    let run = view.runs(sector..sector + 1).next();
    run.map_or(SectorValue::Zero, |run| run.content(sector).value())
}

fn is_within(ranges: &[Range<u64>], sector: u64) -> bool {
    let index = ranges.partition_point(|range| range.end <= sector);
    ranges
        .get(index)
        .is_some_and(|range| range.contains(&sector))
}
