//! Between the names of a trace and the requests of a recording.
//!
//! A crash is found by its moment where the same thing stands at it, and by name otherwise: an engine
//! that has learned to write something more moves every later moment, and no name.

use std::fmt;

use blkdebug::mask::SectorMask;
use blkdebug::record::{Entry, Recording, Tick};

use super::{Crash, Cut, Edge, Left, LengthLeft, RequestRef, Survivor};
use crate::crash::durability::{Trust, acknowledged};
use crate::crash::state::{Fate, Length, Mismatch, Part, Survivors};

/// A crash that a recording does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// The request is not in the recording.
    #[error("the run makes no request {0}")]
    NoRequest(RequestRef),
    /// The request was never answered.
    #[error("the run ends before {0} completes")]
    NeverCompleted(RequestRef),
    /// What is said to have been ignored promises nothing.
    #[error("the run is not promised anything by {0}, so that no disk can ignore it")]
    NoPromise(RequestRef),
    /// The survivors do not fit the cut.
    #[error("the survivors do not fit the cut: {0}")]
    Survivors(#[from] Mismatch),
}

impl RequestRef {
    fn of(entry: &Entry) -> Self {
        Self {
            disk: entry.disk,
            event: entry.event,
            kind: entry.op.kind(),
            ordinal: entry.ordinal,
        }
    }

    fn find(self, recording: &Recording) -> Result<&Entry, Misplaced> {
        recording
            .find(self.disk, self.event, self.kind, self.ordinal)
            .ok_or(Misplaced::NoRequest(self))
    }
}

impl Cut {
    /// The cut at a moment of a recording.
    pub fn at(recording: &Recording, moment: Tick) -> Self {
        let next = recording
            .entries
            .iter()
            .flat_map(|entry| {
                let request = RequestRef::of(entry);
                let submission = (entry.submitted, Edge::Submission, request);
                let completion = entry
                    .completed
                    .map(|(tick, _)| (tick, Edge::Completion, request));
                [Some(submission), completion]
            })
            .flatten()
            .filter(|(tick, _, _)| *tick > moment)
            .min_by_key(|(tick, _, _)| *tick);
        Self {
            before: next.map(|(_, edge, request)| (edge, request)),
            moment: moment.0,
        }
    }

    /// The moment of this cut in a recording.
    pub fn find(&self, recording: &Recording) -> Result<Tick, Misplaced> {
        let counted = Tick(self.moment);
        if Self::at(recording, counted) == *self {
            return Ok(counted);
        }
        let Some((edge, request)) = self.before else {
            return Ok(recording.end());
        };
        let entry = request.find(recording)?;
        let next = match edge {
            Edge::Submission => entry.submitted,
            Edge::Completion => {
                let completed = entry.completed.ok_or(Misplaced::NeverCompleted(request))?;
                completed.0
            }
        };
        Ok(Tick(next.0 - 1))
    }
}

impl Crash {
    /// The crash with this cut and these survivors, by name.
    pub fn of(recording: &Recording, moment: Tick, survivors: &Survivors) -> Self {
        let named = survivors
            .parts()
            .iter()
            .filter(|part| !part.is_lost())
            .filter_map(|part| Some((recording.entry(part.request)?, part)))
            .map(|(entry, part)| Survivor {
                request: RequestRef::of(entry),
                content: match &part.content {
                    Fate::Lost => Left::Sectors(Vec::new()),
                    Fate::Whole => Left::Whole,
                    Fate::Torn(mask) => Left::Sectors(mask.iter().collect()),
                    Fate::Scattered { asked, garbage } => Left::Scattered {
                        asked: asked.iter().collect(),
                        garbage: garbage.iter().collect(),
                    },
                },
                length: match part.length {
                    Length::Untouched | Length::Kept => LengthLeft::Kept,
                    Length::Lost => LengthLeft::Lost,
                },
            });
        Self {
            cut: Cut::at(recording, moment),
            survivors: named.collect(),
            ignored_from: first_ignored(recording, moment, survivors.trust()),
            then: None,
        }
    }

    /// How long the disks of a recording keep their word.
    fn trust(&self, recording: &Recording) -> Result<Trust, Misplaced> {
        let Some(request) = self.ignored_from else {
            return Ok(Trust::Always);
        };
        let entry = request.find(recording)?;
        let moment = acknowledged(entry).ok_or(Misplaced::NoPromise(request))?;
        Ok(Trust::Until(Tick(moment.0 - 1)))
    }

    /// The moment and the survivors of this crash in a recording; a crash inside the repair is left to
    /// the recording of the repair.
    pub fn find(&self, recording: &Recording) -> Result<(Tick, Survivors), Misplaced> {
        let moment = self.cut.find(recording)?;
        let parts = self
            .survivors
            .iter()
            .map(|survivor| {
                let entry = survivor.request.find(recording)?;
                Ok(Part {
                    request: entry.id,
                    content: survivor.content.fate(entry.op.sector_count()),
                    length: match survivor.length {
                        LengthLeft::Kept => Length::Kept,
                        LengthLeft::Lost => Length::Lost,
                    },
                })
            })
            .collect::<Result<Vec<_>, Misplaced>>()?;
        let survivors = Survivors::from_parts(parts).with_trust(self.trust(recording)?);
        let frontier = survivors.frontier(recording, moment);
        Ok((moment, survivors.fit(&frontier)?))
    }
}

/// The first flush, or write with FUA, up to a cut that the disks acknowledged and ignored.
fn first_ignored(recording: &Recording, cut: Tick, trust: Trust) -> Option<RequestRef> {
    let Trust::Until(last) = trust else {
        return None;
    };
    let promises = recording
        .entries
        .iter()
        .filter_map(|entry| Some((acknowledged(entry)?, entry)));
    let ignored = promises.filter(|(moment, _)| *moment > last && *moment <= cut);
    let first = ignored.min_by_key(|(moment, _)| *moment);
    first.map(|(_, entry)| RequestRef::of(entry))
}

impl Left {
    /// The same for a request of `count` sectors; sectors that it does not have are left out.
    fn fate(&self, count: usize) -> Fate {
        let mask = |sectors: &[usize]| {
            SectorMask::from_fn(count, |sector| sectors.binary_search(&sector).is_ok())
        };
        match self {
            Self::Whole => Fate::Whole,
            Self::Sectors(sectors) if sectors.is_empty() => Fate::Lost,
            Self::Sectors(sectors) => Fate::Torn(mask(sectors)),
            Self::Scattered { asked, garbage } => Fate::Scattered {
                asked: mask(asked),
                garbage: mask(garbage),
            },
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::text::cut_text(self))
    }
}
