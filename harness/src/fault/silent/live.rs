//! Damage while an engine has the image open: requests that go wrong without a word.
//!
//! What an engine makes of tables that change in its hands is its own affair; but it ends, does not panic, and writes
//! nothing to a cluster that is another's as far as it can know. And a read that is wrong must hang on something that
//! went wrong before it:
//!
//! - on bytes of the guest: those of the same guest cluster, wherever they stood, or of the operation's own range where
//!   no entry names them yet;
//! - on an L2 table: whatever it maps;
//! - on the L1 table or the header: everything;
//! - on any table or refcount: what somebody else wrote over, since entries that are wrong, or counts that are too low,
//!   give one cluster to two. Somebody else it was where the sector names another as its place, or where its host cluster
//!   changed while nothing was asked of that part of the disk.
//!
//! Nothing but the tables could know any of that, and they have no checksum. A wrong read that hangs on none of it is a
//! violation.

use std::ops::Range;

use blkdebug::class::Class;
use blkdebug::disks::Disk;
use blkdebug::record::{Entry, RecordedOp, Recording, Tick};
use blkdebug::rule::Fault;
use blkdebug::volatile::{Injected, lay};
use engine::device::{OpKind, PageImage, SECTOR_BYTES, SectorRun};

use super::land::Land;
use super::owner::{Blind, Sight, Trespasses};
use crate::fault::oracle::happening;
use crate::guest::SectorViolation;
use crate::oracle::structure::{Layout, Mapping, Owner, layout, walk};
use crate::oracle::{Oracle, Readings, Violation};
use crate::run::Life;
use crate::trace::operation_text;
use crate::workload::ops::{Answer, Happening, Moment, Operation};
use crate::workload::shape::Extent;
use crate::workload::stamp::SectorValue;

/// What came of a life in which requests went wrong without a word.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What came of what the guest read.
    pub readings: Readings,
    /// What was written where it does not belong.
    pub trespasses: Trespasses,
    /// The first read that nothing explains.
    pub unexplained: Option<Violation>,
}

/// Judges such a life.
pub fn judge(life: &Life) -> Told {
    let film = Film::of(life);
    let mut told = Told::default();
    let harms: Vec<Harm> = hits(life).flat_map(|hit| film.harms(life, hit)).collect();
    for read in &life.lived.reads {
        let history = &mut life.lived.history.iter();
        let Some(it) = history.find(|it| it.id == read.id) else {
            continue;
        };
        let wrong = life.misread(it, &read.data);
        let count = u64::try_from(read.data.len() / 512).expect("a read fits memory");
        told.readings.right += count - u64::try_from(wrong.len()).expect("no more than there are");
        for miss in wrong {
            match film.reason(life, &harms, it, &miss) {
                Some(reason) => *told.readings.undetectable.entry(reason).or_default() += 1,
                None => {
                    told.unexplained = told.unexplained.or_else(|| Some(unexplained(it, &miss)));
                }
            }
        }
    }
    let failed = life.lived.history.iter().filter_map(|it| match it {
        Happening {
            operation: Operation::Read { len_bytes, .. },
            completed: Some((_, Answer::Failed)),
            ..
        } => Some(len_bytes / SECTOR_BYTES),
        _ => None,
    });
    told.readings.refused = failed.sum();
    told.trespasses = film.trespasses(life);
    told
}

/// The requests of the image that went wrong without a word.
fn hits(life: &Life) -> impl Iterator<Item = &Injected> {
    let mine = life
        .injected
        .iter()
        .filter(|(disk, _)| *disk == Disk::Image);
    mine.map(|(_, hit)| hit)
        .filter(|hit| !hit.fault.is_honest())
}

fn unexplained(it: &Happening, miss: &SectorViolation) -> Violation {
    let line = format!(
        "operation {} ({}) read {} from guest sector {}, and nothing that went wrong before explains it",
        it.id.0,
        operation_text(it.operation),
        miss.found,
        miss.sector
    );
    let legal = miss.legal.iter().map(|value| format!("legal: {value}"));
    let lines = std::iter::once(line).chain(legal).collect();
    Violation::new(Oracle::Guest, miss.level.name(), "silent-read", lines)
}

/// What a request that went wrong can have done to the guest's disk.
struct Harm {
    /// To which bytes.
    class: Class,
    at: Tick,
    /// The guest clusters that hang on them.
    guests: Vec<Range<u64>>,
}

const EVERYTHING: Range<u64> = 0..u64::MAX;

/// What the image held, moment by moment.
struct Film<'a> {
    base: &'a PageImage,
    /// The requests that changed it, as they were answered.
    changes: Vec<&'a Entry>,
    /// The same as whoever made them takes them to have happened; without those that nobody made.
    asked: Vec<Entry>,
    /// When somebody looked at the file anew.
    openings: Vec<Tick>,
    /// The guest's data, where they stand.
    data: &'a Recording,
}

impl<'a> Film<'a> {
    fn of(life: &'a Life) -> Self {
        let recording = &life.lived.recordings[0];
        let answered = |entry: &&Entry| entry.answered().is_some();
        let mut changes: Vec<&Entry> = recording.entries.iter().filter(answered).collect();
        changes.sort_by_key(|entry| entry.answered());
        let asked = changes.iter().filter(|entry| entry.repeats.is_none());
        let asked = asked.map(|entry| as_asked(life, entry)).collect();
        let openings = life.lived.history.iter().filter_map(|it| {
            let opens = matches!(it.operation, Operation::Reopen | Operation::Kill);
            let (at, _) = it.completed.filter(|_| opens)?;
            Some(Tick(at.0))
        });
        let external = walk(&life.stage.image)
            .layout
            .is_some_and(|layout| layout.external_data);
        let data = life.lived.recordings.last().filter(|_| external);
        Self {
            base: recording.bases.image(),
            changes,
            asked,
            openings: openings.collect(),
            data: data.unwrap_or(recording),
        }
    }

    /// What the file held.
    fn actual(&self, at: Tick) -> PageImage {
        let mut image = self.base.clone();
        for entry in self.until(at) {
            lay(&mut image, entry);
        }
        image
    }

    fn until(&self, at: Tick) -> impl Iterator<Item = &'a Entry> {
        let changes = self.changes.iter().copied();
        changes.take_while(move |entry| entry.answered() <= Some(at))
    }

    /// What whoever had it open took it to hold: what it found as it opened it, and what it has asked for since.
    fn believed(&self, at: Tick) -> PageImage {
        let opened = self.openings.iter().copied().filter(|it| *it <= at).max();
        let mut image = opened.map_or_else(|| self.base.clone(), |opened| self.actual(opened));
        for entry in &self.asked {
            if entry.answered() > opened && entry.answered() <= Some(at) {
                lay(&mut image, entry);
            }
        }
        image
    }

    /// The last layout that the header told of by then: what destroys it does not change where anything stands.
    fn last_layout(&self, at: Tick) -> Option<Layout> {
        let now = layout(&self.actual(at));
        now.or_else(|| {
            let mut image = self.base.clone();
            let mut last = layout(&image);
            for entry in self.until(at) {
                lay(&mut image, entry);
                last = layout(&image).or(last);
            }
            last
        })
    }

    /// What one request can have done.
    fn harms(&self, life: &Life, hit: &Injected) -> Vec<Harm> {
        let kind = hit.kind;
        let repeated = self.repeated(hit);
        // Without a power loss, and where it was advice, nothing hangs on it; but where it went astray, or came once more
        // when the sectors may have been somebody's.
        let is_harmless = match kind {
            OpKind::Flush => true,
            OpKind::Discard => !matches!(hit.fault, Fault::Misdirect(_)) && repeated.is_none(),
            OpKind::Read | OpKind::Write | OpKind::WriteZeroes | OpKind::SetLen => false,
        };
        if is_harmless {
            return Vec::new();
        }
        let (offset, len_bytes) = hit.range;
        let own = offset / SECTOR_BYTES..(offset + len_bytes).div_ceil(SECTOR_BYTES);
        let mut harms = Vec::new();
        let end = Tick(u64::MAX);
        let lands = [hit.at, end].map(|at| Land::of(&self.actual(at)));
        if kind != OpKind::Discard {
            let class = Class::of_request(hit.event, kind);
            harms.push(Harm {
                class,
                at: hit.at,
                guests: of_class(life, class, hit, &lands),
            });
            for land in &lands {
                harms.extend(of_owners(land, &own, hit.at));
            }
        }
        if let Some(at) = repeated {
            let then = Land::of(&self.actual(at));
            for land in [&then, &lands[1]] {
                harms.extend(of_owners(land, &own, at));
            }
            harms.extend(of_coming_owners(life, at, &then));
        }
        if let (Fault::Misdirect(by), true) = (&hit.fault, kind != OpKind::Read) {
            let start = own.start.saturating_add_signed(*by);
            let there = start..start + (own.end - own.start);
            let land_then = lands.iter();
            harms.extend(land_then.flat_map(|land| of_owners(land, &there, hit.at)));
            harms.extend(of_coming_owners(life, hit.at, &lands[0]));
        }
        harms
    }

    /// Why a sector of an owner was in doubt between two moments: whoever looked at it then may have given it away.
    fn doubt(&self, truth: &Land, place: u64, owner: Owner, between: Range<Tick>) -> Option<Blind> {
        let ticks = self.changes.iter().filter_map(|entry| entry.answered());
        let mut ticks = ticks.filter(|tick| between.contains(tick));
        let was_low = truth.is_low(place);
        ticks.find_map(|tick| {
            let seen = [self.actual(tick), self.believed(tick)].map(|image| Land::of(&image));
            // Postponed counts are low in what was asked for, too.
            let [is_low, is_asked_low] = seen.each_ref().map(|land| land.is_low(place));
            let is_lost = is_low && !is_asked_low;
            if is_lost || !was_low && is_asked_low {
                return Some(Blind::Uncounted);
            }
            let [held, asked] = seen.each_ref().map(|land| land.references(place));
            let mut seen = seen.iter();
            let is_named = seen.all(|land| land.owners_at(place).contains(&owner));
            (!is_named || held != asked).then_some(Blind::Misnamed)
        })
    }

    /// When the device carried out once more what it had been asked for once.
    fn repeated(&self, hit: &Injected) -> Option<Tick> {
        let mut changes = self.changes.iter();
        let repeat = changes.find(|entry| entry.repeats.is_some() && entry.repeats == hit.request);
        repeat.and_then(|entry| entry.answered())
    }

    /// Why nobody can know that a guest sector is wrong.
    fn reason(
        &self,
        life: &Life,
        harms: &[Harm],
        it: &Happening,
        miss: &SectorViolation,
    ) -> Option<Class> {
        let (answered, _) = it.completed?;
        let answered = Tick(answered.0);
        let layout = self.last_layout(answered);
        let guest = layout.map(|layout| miss.sector / layout.cluster_sectors());
        let before = || harms.iter().filter(|harm| harm.at < answered);
        let covers = |range: &Range<u64>| {
            *range == EVERYTHING || guest.is_some_and(|guest| range.contains(&guest))
        };
        let direct = before().find(|harm| harm.guests.iter().any(covers));
        if let Some(harm) = direct {
            return Some(harm.class);
        }
        let (layout, guest) = layout.zip(guest)?;
        let image = self.actual(answered);
        let table = before().rfind(|harm| harm.class != Class::Data)?;
        let is_foreign = match miss.found {
            SectorValue::Stamp { sector, .. } => sector != miss.sector,
            SectorValue::Zero | SectorValue::Other(_) => false,
        };
        let changed = || self.is_changed_by_another(life, &image, &layout, guest, table.at);
        (is_foreign || changed()).then_some(table.class)
    }

    /// Whether the host cluster of a guest cluster changed while nothing was asked of it.
    fn is_changed_by_another(
        &self,
        life: &Life,
        image: &PageImage,
        layout: &Layout,
        guest: u64,
        since: Tick,
    ) -> bool {
        let report = walk(image);
        let mut mapped = report.mapped.iter();
        let place = mapped.find_map(|it| match it.mapping {
            _ if it.guest_cluster != guest => None,
            Mapping::Data(offset) | Mapping::Split { offset, .. } => {
                Some(offset..offset + layout.cluster_bytes())
            }
            Mapping::Compressed { offset, len_bytes } => Some(offset..offset + len_bytes),
            Mapping::Zero | Mapping::Bad => None,
        });
        let Some(place) = place else { return false };
        let host = place.start / SECTOR_BYTES..place.end.div_ceil(SECTOR_BYTES);
        let bytes = layout.cluster_bytes();
        let mine = guest * bytes..(guest + 1) * bytes;
        let is_asked = |at: Tick| {
            life.lived.history.iter().any(|it| {
                let is_over = it.completed.is_some_and(|(over, _)| over < Moment(at.0));
                let touches = it.operation.range().is_some_and(|extent| {
                    extent.offset < mine.end && mine.start < extent.offset + extent.len_bytes
                });
                it.submitted <= Moment(at.0) && !is_over && touches
            })
        };
        let entries = self.data.entries.iter();
        let mut changing =
            entries.filter(|entry| entry.submitted > since && entry.changes_content());
        changing.any(|entry| {
            let sectors = entry.op.sectors();
            sectors.start < host.end && host.start < sectors.end && !is_asked(entry.submitted)
        })
    }

    /// What was written where it does not belong, from the first damage on, as long as every table was read as it stood.
    fn trespasses(&self, life: &Life) -> Trespasses {
        let mut found = Trespasses::default();
        let Some(first) = hits(life).map(|hit| hit.at).min() else {
            return found;
        };
        let misled = hits(life).find(|hit| {
            hit.kind == OpKind::Read && Class::of_request(hit.event, hit.kind) != Class::Data
        });
        let truth = Land::of(&self.actual(first));
        let bytes = truth.layout().map_or(1, Layout::cluster_bytes);
        let entries = life.lived.recordings[0].entries.iter();
        let entries = entries.zip(&life.lived.requesters[0]);
        for (entry, requester) in entries.filter(|(entry, _)| entry.submitted > first) {
            if misled.is_some_and(|hit| hit.at < entry.submitted) {
                break;
            }
            // What the device carried out once more nobody asked for, and what it put elsewhere was asked for where it
            // was to be.
            if entry.repeats.is_some() {
                continue;
            }
            let entry = &as_asked(life, entry);
            let seen = [self.actual(entry.submitted), self.believed(entry.submitted)];
            let sight = Sight {
                truth: &truth,
                opened: None,
                seen: &seen,
                checks: life.overlap_checks,
                past: &|place, owner| self.doubt(&truth, place, owner, first..entry.submitted),
            };
            let it = requester.and_then(|id| happening(life, id));
            let extent = it.and_then(|it| it.operation.range());
            let guests = extent.map(|it| clusters(it, bytes));
            found.add(sight.look_at(entry, guests.as_ref()));
        }
        found
    }
}

/// What hangs on bytes of a class that somebody asked for.
fn of_class(life: &Life, class: Class, hit: &Injected, lands: &[Land]) -> Vec<Range<u64>> {
    let layout = lands.iter().find_map(Land::layout);
    let it = hit.operation.and_then(|id| happening(life, id));
    let extent = it.and_then(|it| it.operation.range());
    let clusters = layout
        .zip(extent)
        .map(|(layout, extent)| clusters(extent, layout.cluster_bytes()));
    match class {
        Class::L1 | Class::Header => vec![EVERYTHING],
        Class::RefcountBlock | Class::RefcountTable | Class::Length => Vec::new(),
        Class::Data => clusters.into_iter().collect(),
        Class::L2 => match (layout, clusters) {
            (Some(layout), Some(clusters)) => vec![mapped_with(layout, clusters)],
            (None, _) | (_, None) => vec![EVERYTHING],
        },
    }
}

/// The clusters of so many bytes that a range of the guest's disk touches.
fn clusters(extent: Extent, bytes: u64) -> Range<u64> {
    extent.offset / bytes..(extent.offset + extent.len_bytes).div_ceil(bytes)
}

/// What was being done to the guest's disk at a moment.
fn in_flight_then(life: &Life, class: Class, at: Tick, land: &Land) -> Vec<Range<u64>> {
    let Some(layout) = land.layout() else {
        return Vec::new();
    };
    let bytes = layout.cluster_bytes();
    let then = life.lived.history.iter().filter(|it| {
        let is_over = it.completed.is_some_and(|(over, _)| over < Moment(at.0));
        it.submitted <= Moment(at.0) && !is_over
    });
    let extents = then.filter_map(|it| it.operation.range());
    extents
        .map(|extent| clusters(extent, bytes))
        .map(|clusters| match class {
            Class::L2 => mapped_with(layout, clusters),
            Class::Data
            | Class::L1
            | Class::RefcountBlock
            | Class::RefcountTable
            | Class::Header
            | Class::Length => clusters,
        })
        .collect()
}

/// What hangs on sectors that had no owner at a moment, and may have been about to get one.
fn of_coming_owners(life: &Life, at: Tick, land: &Land) -> [Harm; 2] {
    [Class::Data, Class::L2].map(|class| Harm {
        class,
        at,
        guests: in_flight_then(life, class, at, land),
    })
}

/// What hangs on sectors by what an image says of them.
fn of_owners(land: &Land, sectors: &Range<u64>, at: Tick) -> Vec<Harm> {
    let Some(layout) = land.layout() else {
        return Vec::new();
    };
    let per_cluster = layout.cluster_sectors();
    let clusters = sectors.start / per_cluster..sectors.end.div_ceil(per_cluster);
    let owners = clusters.flat_map(|cluster| land.owners(cluster).to_vec());
    let of_one = |owner: Owner| {
        let (class, guests) = match owner {
            Owner::Header | Owner::EncryptionHeader | Owner::SnapshotTable => {
                (Class::Header, vec![EVERYTHING])
            }
            Owner::L1Table | Owner::SnapshotL1Table(_) => (Class::L1, vec![EVERYTHING]),
            Owner::RefcountTable => (Class::RefcountTable, Vec::new()),
            Owner::RefcountBlock(_) => (Class::RefcountBlock, Vec::new()),
            Owner::L2Table(index) => {
                let entries = layout.l2_entries();
                let first = index.saturating_mul(entries);
                (Class::L2, one(first..first.saturating_add(entries)))
            }
            Owner::Data(guest) => (Class::Data, one(guest..guest + 1)),
            Owner::Compressed => (Class::Data, packed_in(land, sectors)),
            Owner::BitmapDirectory | Owner::BitmapTable(_) | Owner::BitmapData(_) => {
                (Class::Header, Vec::new())
            }
        };
        Harm { class, at, guests }
    };
    owners.map(of_one).collect()
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// A request as whoever made it takes it to have happened.
fn as_asked(life: &Life, entry: &Entry) -> Entry {
    let mut asked = entry.clone();
    if matches!(entry.completed, Some((_, Ok(())))) {
        asked.effect = blkdebug::record::Effect::Whole;
    }
    for hit in hits(life).filter(|hit| hit.request == Some(entry.id)) {
        let start = hit.range.0 / SECTOR_BYTES;
        asked.op = match (&hit.fault, &entry.op) {
            (Fault::Misdirect(_), RecordedOp::Write { run, fua }) => {
                let count = entry.op.sector_count();
                let bytes: Vec<u8> = (0..count).flat_map(|index| *run.sector(index)).collect();
                RecordedOp::Write {
                    run: std::rc::Rc::new(SectorRun::new(start, bytes)),
                    fua: *fua,
                }
            }
            (Fault::Misdirect(_), RecordedOp::WriteZeroes { sectors, unmap }) => {
                RecordedOp::WriteZeroes {
                    sectors: start..start + (sectors.end - sectors.start),
                    unmap: *unmap,
                }
            }
            (_, op) => op.clone(),
        };
    }
    asked
}

/// All that the L2 tables map that map these clusters.
fn mapped_with(layout: &Layout, clusters: Range<u64>) -> Range<u64> {
    let entries = layout.l2_entries();
    clusters.start / entries * entries..clusters.end.div_ceil(entries).saturating_mul(entries)
}

/// The guest clusters whose compressed bytes stand in these sectors.
fn packed_in(land: &Land, sectors: &Range<u64>) -> Vec<Range<u64>> {
    let mapped = land.mapped().into_iter();
    let within = mapped.filter_map(|it| match it.mapping {
        Mapping::Compressed { offset, len_bytes } => {
            let end = offset.saturating_add(len_bytes).div_ceil(SECTOR_BYTES);
            let touches = offset / SECTOR_BYTES < sectors.end && sectors.start < end;
            touches.then_some(it.guest_cluster..it.guest_cluster + 1)
        }
        Mapping::Zero | Mapping::Data(_) | Mapping::Split { .. } | Mapping::Bad => None,
    });
    within.collect()
}
