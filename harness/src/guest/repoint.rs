//! Another file beneath the image, without a copy: where the guest's disk shows it.
//!
//! It shows wherever the image itself holds nothing, and the history does not tell everything about that. It is
//! certain that the image holds what the guest wrote and nothing has zeroed or given up since; and that
//! an image that was emptied holds nothing in clusters that nobody has touched since, unless the operations that
//! copy by themselves came between. Everywhere else what was there is legal too, and so is what the new
//! file shows: zeroes may be held or not, and what shares a cluster with a write is copied along.

use std::ops::Range;

use blkdebug::disks::Disk;
use engine::chain::Overlay;

use super::{Answer, Effect, Entry, Happening, Ledger, Moment};
use crate::workload::ops::{ChainOperation, Operation};
use crate::workload::stamp::{SectorValue, Writer};

/// An operation that names another file beneath.
#[derive(Clone, Debug)]
pub(super) struct Repoint {
    /// The file, or `None` for none.
    pub(super) onto: Option<Disk>,
    pub(super) submitted: Moment,
    pub(super) completed: Option<(Moment, Answer)>,
}

impl Repoint {
    pub(super) fn is_done(&self, cut: Moment) -> bool {
        matches!(self.completed, Some((at, Answer::Done)) if at <= cut)
    }
}

/// What is known of what an image holds, but for what the guest has done since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stock {
    /// When that was so.
    since: Moment,
    held: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// What it held at the start, which has stamps of its own.
    AsAtStart,
    Nothing,
    Unknown,
}

impl Default for Stock {
    fn default() -> Self {
        Self {
            since: Moment(0),
            held: Held::AsAtStart,
        }
    }
}

impl Stock {
    /// Notes what an operation does to it.
    pub(super) fn enter(&mut self, happening: &Happening) {
        match happening.operation {
            Operation::Empty
            | Operation::Chain(ChainOperation::Commit {
                overlay: Overlay::Empty,
            }) => {
                let ended = happening.completed.map(|(at, _)| at);
                self.since = ended.unwrap_or(happening.submitted);
                self.held = match happening.completed {
                    Some((_, Answer::Done)) => Held::Nothing,
                    Some((_, Answer::Failed)) | None => Held::Unknown,
                };
            }
            // These store what nobody wrote; but whatever was held stays so.
            Operation::Chain(ChainOperation::Rebase { .. } | ChainOperation::Stream { .. })
            | Operation::Grow { .. }
            | Operation::Shrink { .. } => {
                if self.held == Held::Nothing {
                    self.held = Held::Unknown;
                }
            }
            Operation::Chain(
                ChainOperation::Commit {
                    overlay: Overlay::Keep,
                }
                | ChainOperation::Repoint { .. },
            )
            | Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::WriteCompressed { .. }
            | Operation::WriteBlank { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Discard { .. }
            | Operation::Flush
            | Operation::DropIdle
            | Operation::Amend(_)
            | Operation::Rename { .. }
            | Operation::DataFile(_)
            | Operation::Snapshot(_)
            | Operation::Bitmap(_)
            | Operation::KeySlot(_)
            | Operation::Reopen
            | Operation::Kill => {}
        }
    }
}

/// What of some sectors the image holds.
enum Place {
    /// All, durably.
    Held,
    /// All, unless every write from this moment on is lost.
    Written(Moment),
    Empty,
    Unknown,
}

impl Ledger {
    /// Notes the last of the repointings. It waits for all before it, and all after it waits for it.
    pub(super) fn repoint(&self, happening: &Happening, effects: &mut Vec<(Range<u64>, Entry)>) {
        let Some(index) = self.chain.repoints().len().checked_sub(1) else {
            return;
        };
        let stock = self.chain.stock();
        // A file shows by itself, and never makes the image hold anything.
        let stores = |(_, entry): &&(Range<u64>, Entry)| {
            let shows = matches!(entry.effect, Effect::Shows(_) | Effect::MayShow(_));
            entry.submitted >= stock.since && !shows
        };
        let stored: Vec<_> = effects.iter().filter(stores).cloned().collect();
        let entry = |effect, completed| Entry {
            id: happening.id,
            effect,
            submitted: happening.submitted,
            completed,
        };
        for piece in self.pieces(&stored) {
            let entry = match self.place(&stored, piece.start, stock) {
                Place::Held => continue,
                Place::Empty => entry(Effect::Shows(index), happening.completed),
                Place::Unknown => entry(Effect::MayShow(index), happening.completed),
                // It shows where the write is lost, as if it had lain beneath since just before the write.
                Place::Written(at) => {
                    let before = Moment(at.0.saturating_sub(1));
                    entry(Effect::MayShow(index), Some((before, Answer::Done)))
                }
            };
            effects.push((piece, entry));
        }
    }

    /// The disk in pieces of which [`Ledger::place`] says the same for each sector.
    fn pieces(&self, stored: &[(Range<u64>, Entry)]) -> Vec<Range<u64>> {
        let end = self.size_now / 512;
        let cluster = self.chain.cluster_sectors();
        let mut bounds = vec![0, end];
        for (sectors, _) in stored {
            let first = sectors.start / cluster * cluster;
            let last = sectors.end.checked_next_multiple_of(cluster);
            bounds.extend([sectors.start, sectors.end, first, last.unwrap_or(end)]);
        }
        for sectors in self.initial.ranges() {
            let is_own = |sector| self.held_at_start(sector);
            bounds.extend([sectors.start, sectors.end]);
            let mut inner = sectors.start + 1..sectors.end;
            bounds.extend(inner.by_ref().filter(|at| is_own(*at) != is_own(at - 1)));
        }
        bounds.retain(|bound| *bound <= end);
        bounds.sort_unstable();
        bounds.dedup();
        bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    fn held_at_start(&self, sector: u64) -> bool {
        let own = SectorValue::Stamp {
            writer: Writer::Image,
            sector,
        };
        self.initial.value(sector) == own
    }

    /// What the image holds at `sector`, where these were entered since the stock was known.
    fn place(&self, stored: &[(Range<u64>, Entry)], sector: u64, stock: Stock) -> Place {
        let here = stored
            .iter()
            .filter(|(sectors, _)| sectors.contains(&sector));
        let here: Vec<&Entry> = here.map(|(_, entry)| entry).collect();
        let (stamps, others): (Vec<&Entry>, Vec<&Entry>) =
            here.iter().partition(|entry| entry.effect == Effect::Stamp);
        if stock.held == Held::AsAtStart && others.is_empty() && self.held_at_start(sector) {
            return Place::Held;
        }
        let is_last = |stamp: &&Entry| {
            let ended = |other: &&Entry| other.completed.map(|(at, _)| at);
            let mut others = others.iter();
            matches!(stamp.completed, Some((_, Answer::Done)))
                && others.all(|other| ended(other).is_some_and(|at| at < stamp.submitted))
        };
        let last = stamps.iter().filter(|stamp| is_last(stamp));
        if let Some(first) = last.map(|stamp| stamp.submitted).min() {
            return Place::Written(first);
        }
        let cluster = self.chain.cluster_sectors();
        let first = sector / cluster * cluster;
        let touches = |(sectors, _): &(Range<u64>, Entry)| {
            sectors.start < first + cluster && sectors.end > first && !sectors.is_empty()
        };
        if stock.held == Held::Nothing && !stored.iter().any(touches) {
            return Place::Empty;
        }
        Place::Unknown
    }

    /// The repointing that may or may not have come to pass at `cut`, where nothing has come after it.
    pub(super) fn open_repoint(&self, cut: Moment) -> Option<(usize, &Repoint)> {
        let repoints = self.chain.repoints();
        let index = repoints.iter().rposition(|one| one.submitted <= cut)?;
        let repoint = &repoints[index];
        let mut later = self.submissions.iter();
        let is_last = later.all(|(_, at)| *at <= repoint.submitted || *at > cut);
        (is_last && !repoint.is_done(cut)).then_some((index, repoint))
    }
}
