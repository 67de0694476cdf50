//! Holds what a guest's disk shows against what is legal, sector by sector.
//!
//! A stretch that was found legal with the same content before is not looked at again: [`Stretch`] names all that
//! decides it.

use std::ops::Range;

use super::explain;
use super::judge::Ended;
use super::verdict::Verdict;
use super::view::{self, GuestView, Run};
use crate::guest::{Checker, Expectation, Level, SectorViolation, Stretch};
use crate::sectors::append;

/// What there is to read of a disk.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What is not zero, without what is untouched and as in the base, in order.
    pub(super) written: Vec<Range<u64>>,
    /// The first and the last sector of every stretch with a common source, in order.
    pub(super) ends: Vec<Range<u64>>,
}

/// Holds the guest's sectors against what is legal.
pub(super) fn check_guest(
    view: &GuestView<'_>,
    base: Option<&GuestView<'_>>,
    expectation: &Expectation<'_>,
    sectors: &[Range<u64>],
    accept: Option<Level>,
) -> Result<Seen, Ended> {
    if !expectation.virtual_sizes().contains(&view.virtual_bytes()) {
        return Err(explain::size(view.virtual_bytes(), expectation).into());
    }
    let mut sweep = Sweep {
        view,
        base,
        expectation,
        checker: expectation.checker(),
        misses: Misses::default(),
        seen: Seen::default(),
    };
    for range in sectors {
        for run in view.runs(range.clone()) {
            sweep.look_at(&run);
        }
        if sweep.misses.count >= Misses::ENOUGH {
            break;
        }
    }
    let Sweep {
        mut misses, seen, ..
    } = sweep;
    misses.retain(accept);
    let Some(worst) = misses.worst else {
        return Ok(seen);
    };
    if let Some(miss) = misses
        .kept
        .iter()
        .find(|miss| expectation.is_from_the_future(miss.found))
    {
        return Err(Box::new(Verdict::HarnessBroken(format!(
            "guest sector {} holds {}, which had not been submitted at the cut",
            miss.sector, miss.found
        ))));
    }
    Err(explain::guest(worst, &misses.kept, misses.count).into())
}

/// One walk over the guest's sectors.
struct Sweep<'a, 'l> {
    view: &'a GuestView<'a>,
    base: Option<&'a GuestView<'a>>,
    expectation: &'a Expectation<'l>,
    checker: Checker<'a, 'l>,
    misses: Misses,
    seen: Seen,
}

impl Sweep<'_, '_> {
    /// Shorter runs are looked at as quickly as they are recognised.
    const SHORT: u64 = 4;

    fn look_at(&mut self, run: &Run<'_>) {
        let Range { start, end } = run.sectors;
        self.seen.ends.extend([start..start + 1, end - 1..end]);
        if run.is_zeroes() {
            self.misses.zeroes(&mut self.checker, run.sectors.clone());
            return;
        }
        let Some(stretch) = self.stretch(run) else {
            let written = self.look_closely(run);
            self.append(&written);
            return;
        };
        if let Some(written) = self.expectation.known(&stretch) {
            self.append(&written);
            return;
        }
        let misses = self.misses.count;
        let written = self.look_closely(run);
        self.append(&written);
        if self.misses.count == misses {
            self.expectation.found_legal(&stretch, written.into());
        }
    }

    /// What decides all that comes of looking at a run.
    fn stretch(&self, run: &Run<'_>) -> Option<Stretch> {
        let sectors = run.sectors.clone();
        if sectors.end - sectors.start < Self::SHORT {
            return None;
        }
        Some(Stretch {
            sectors,
            content: run.content_hash()?,
            manner: self.view.cluster_sectors() << 1 | u64::from(self.base.is_some()),
        })
    }

    /// Looks at every sector, and yields those with something to read.
    fn look_closely(&mut self, run: &Run<'_>) -> Vec<Range<u64>> {
        let mut written = Vec::new();
        if self.is_as_before(&run.sectors) {
            return written;
        }
        for piece in run.pieces(self.view.cluster_sectors()) {
            if piece != run.sectors && self.is_as_before(&piece) {
                continue;
            }
            for sector in piece {
                let content = run.content(sector);
                if content != view::Content::Zeroes {
                    append(&mut written, sector..sector + 1);
                }
                self.misses
                    .extend(self.checker.check(sector, content.value()));
            }
        }
        written
    }

    fn is_as_before(&mut self, sectors: &Range<u64>) -> bool {
        self.checker.is_untouched(sectors)
            && self
                .base
                .is_some_and(|base| shows_the_same(self.view, base, sectors))
    }

    fn append(&mut self, written: &[Range<u64>]) {
        for range in written {
            append(&mut self.seen.written, range.clone());
        }
    }
}

/// Sectors that are not legal.
#[derive(Default)]
struct Misses {
    count: usize,
    kept: Vec<SectorViolation>,
    worst: Option<Level>,
}

impl Misses {
    /// More are not looked for.
    const ENOUGH: usize = 4096;

    fn extend(&mut self, misses: impl IntoIterator<Item = SectorViolation>) {
        for miss in misses {
            self.count += 1;
            self.kept.push(miss);
        }
    }

    fn zeroes(&mut self, checker: &mut Checker<'_, '_>, sectors: Range<u64>) {
        let mut at = sectors.start;
        while let Some(miss) = checker.check_zeroes(at..sectors.end) {
            at = miss.sector + 1;
            self.extend([miss]);
            if self.count >= Self::ENOUGH {
                return;
            }
        }
    }

    /// Forgets the levels that are let pass.
    fn retain(&mut self, accept: Option<Level>) {
        self.kept.retain(|miss| {
            miss.level == Level::Lost || accept.is_none_or(|mild| miss.level > mild)
        });
        self.count = self.kept.len();
        self.worst = self.kept.iter().map(|miss| miss.level).max();
    }
}

pub(super) fn shows_the_same(
    view: &GuestView<'_>,
    base: &GuestView<'_>,
    sectors: &Range<u64>,
) -> bool {
    sectors.end <= base.virtual_bytes() / 512 && view.difference(base, sectors.clone()).is_none()
}
