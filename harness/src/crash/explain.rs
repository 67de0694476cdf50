//! The sentence behind a failing crash state: which request must be durable before which.
//!
//! First everything that can survive without curing the failure does, so that what is still lost is
//! lost for a reason. Then single requests are flipped: a lost one whose survival cures, and a
//! survivor whose loss cures, are a pair in the wrong order. Only the judgement that the caller
//! passes in knows what a failure is; it should accept the same failure only, not any.

use std::fmt;

use blkdebug::mask::SectorMask;
use blkdebug::record::{Recording, RequestId, RequestName, Tick};

use super::durability::Frontier;
use super::state::{CrashState, Fate, Length, Level, Mismatch, Part, Survivors};

/// More missing sectors than this are not put back one by one.
const MOST_SECTORS: usize = 64;

/// A failing state, and where to look for its cause.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// What was recorded.
    pub recording: &'a Recording,
    /// The moment of the power loss.
    pub cut: Tick,
    /// What became of the volatile requests.
    pub survivors: &'a Survivors,
    /// The moments at which the guest was promised something.
    pub promises: &'a [Tick],
}

/// What is wrong with the order of a recording.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The failing state in which as much as possible survived.
    pub state: CrashState,
    /// What should have been otherwise.
    pub relation: Relation,
}

/// An order that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// One must be durable before the other may be.
    MustPrecede {
        /// What was lost.
        first: Loss,
        /// What survived nevertheless.
        then: Feature,
    },
    /// Something must be durable before a moment; no survivor matters.
    MustBeDurable {
        /// What was lost.
        first: Loss,
        /// When the guest was promised so, or `None` where only durable requests rely on it.
        promised: Option<Tick>,
    },
    /// Something survived whose foundations had not been written at the cut; all of it survived.
    TooEarly {
        /// What survived.
        then: Feature,
    },
    /// It fails whatever survives: the order of writes is not the cause.
    Anyhow,
}

/// What a request changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature {
    /// The request.
    pub name: RequestName,
    /// What of it.
    pub aspect: Aspect,
}

/// The two things that a request can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// The bytes of its sectors.
    Content,
    /// The length of the file.
    Length,
}

/// Something that did not survive as it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What.
    pub feature: Feature,
    /// How much of it was lost.
    pub extent: Extent,
}

/// How much of something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Some sectors.
    InPart,
    /// What is there instead is garbage.
    ToGarbage,
}

/// Explains a failing state by asking `fails` about its neighbours. `Ok(None)` where the state itself
/// does not fail.
pub fn explain(
    failing: Failing<'_>,
    fails: &mut dyn FnMut(&CrashState) -> bool,
) -> Result<Option<Explanation>, Mismatch> {
    let frontier = failing.survivors.frontier(failing.recording, failing.cut);
    let survivors = failing.survivors.fit(&frontier)?;
    let mut trial = Trial {
        frontier: &frontier,
        promises: failing.promises,
        fails,
    };
    if !trial.fails_with(&survivors) {
        return Ok(None);
    }
    let survivors = trial.restore(survivors);
    Ok(Some(Explanation {
        relation: trial.relation(&survivors),
        state: CrashState::at(&frontier, survivors, Level::Given),
    }))
}

struct Trial<'a> {
    frontier: &'a Frontier<'a>,
    promises: &'a [Tick],
    fails: &'a mut dyn FnMut(&CrashState) -> bool,
}

impl Trial<'_> {
    fn fails_with(&mut self, survivors: &Survivors) -> bool {
        let state = CrashState::at(self.frontier, survivors.clone(), Level::Given);
        (self.fails)(&state)
    }

    /// Whether it still fails with one part as given.
    fn fails_instead(&mut self, survivors: &Survivors, place: usize, part: Part) -> bool {
        self.fails_with(&replaced(survivors, place, part))
    }

    /// Lets survive what can survive without curing the failure.
    fn restore(&mut self, survivors: Survivors) -> Survivors {
        let everything = Survivors::everything(self.frontier);
        if self.fails_with(&everything) {
            return everything;
        }
        let mut best = survivors;
        loop {
            let mut better = false;
            for (place, whole) in everything.parts().iter().enumerate() {
                better |= self.restore_part(&mut best, place, whole);
            }
            if !better {
                return best;
            }
        }
    }

    /// Restores as much as possible of one request; whether anything was.
    fn restore_part(&mut self, best: &mut Survivors, place: usize, whole: &Part) -> bool {
        let part = best.parts()[place].clone();
        let more_content = Part {
            content: Fate::Whole,
            ..part.clone()
        };
        let more_length = Part {
            length: whole.length,
            ..part.clone()
        };
        // The length first: data beyond the length are there unseen, and prove nothing.
        for candidate in [whole.clone(), more_length, more_content] {
            if candidate != part && self.fails_instead(best, place, candidate.clone()) {
                *best = replaced(best, place, candidate);
                return true;
            }
        }
        match part.content {
            Fate::Torn(mask) => self.restore_sectors(best, place, &mask),
            Fate::Scattered { asked, garbage } => {
                self.restore_scattered(best, place, &asked, &garbage)
            }
            Fate::Lost | Fate::Whole => false,
        }
    }

    /// Less garbage is plainer: none at all, or as asked what need not be garbage.
    fn restore_scattered(
        &mut self,
        best: &mut Survivors,
        place: usize,
        asked: &SectorMask,
        garbage: &SectorMask,
    ) -> bool {
        let count = asked.sector_count();
        let spoilt = |sector: usize| garbage.contains(sector) && !asked.contains(sector);
        let spoilt: Vec<usize> = (0..count).filter(|sector| spoilt(*sector)).collect();
        if spoilt.is_empty() || spoilt.len() > MOST_SECTORS {
            return false;
        }
        let mut candidates = vec![Fate::Torn(asked.clone())];
        if spoilt.len() > 1 {
            candidates.extend(spoilt.iter().map(|sector| {
                let mut more = asked.clone();
                more.insert(*sector);
                Fate::Scattered {
                    asked: more,
                    garbage: garbage.clone(),
                }
            }));
        }
        for content in candidates {
            let candidate = Part {
                content,
                ..best.parts()[place].clone()
            };
            if self.fails_instead(best, place, candidate.clone()) {
                *best = replaced(best, place, candidate);
                return true;
            }
        }
        false
    }

    fn restore_sectors(&mut self, best: &mut Survivors, place: usize, mask: &SectorMask) -> bool {
        let count = mask.sector_count();
        let missing: Vec<usize> = (0..count)
            .filter(|sector| !mask.contains(*sector))
            .collect();
        if missing.len() > MOST_SECTORS {
            return false;
        }
        let mut mask = mask.clone();
        let mut better = false;
        for sector in missing {
            let mut fuller = mask.clone();
            fuller.insert(sector);
            let candidate = Part {
                content: Fate::Torn(fuller.clone()),
                ..best.parts()[place].clone()
            };
            if self.fails_instead(best, place, candidate.clone()) {
                *best = replaced(best, place, candidate);
                mask = fuller;
                better = true;
            }
        }
        better
    }

    /// The order that a failing state with as much as possible restored breaks.
    fn relation(&mut self, survivors: &Survivors) -> Relation {
        let losses: Vec<(RequestId, Loss)> = survivors
            .parts()
            .iter()
            .filter_map(|part| Some((part.request, self.loss(part)?)))
            .collect();
        let decisive: Vec<(RequestId, Feature)> = self.decisive(survivors);
        let Some((lost, first)) = losses.first().copied() else {
            return match decisive.last() {
                Some((_, then)) => Relation::TooEarly { then: *then },
                None => Relation::Anyhow,
            };
        };
        let after = decisive.iter().find(|(request, _)| *request > lost);
        match after.or(decisive.last()) {
            Some((_, then)) => Relation::MustPrecede { first, then: *then },
            None => Relation::MustBeDurable {
                first,
                promised: self.promise_after(lost),
            },
        }
    }

    /// The survivors whose loss cures the failure, in order of submission.
    fn decisive(&mut self, survivors: &Survivors) -> Vec<(RequestId, Feature)> {
        let mut found = Vec::new();
        for (place, part) in survivors.parts().iter().enumerate() {
            let without_content = Part {
                content: Fate::Lost,
                ..part.clone()
            };
            let without_length = Part {
                length: Length::Lost,
                ..part.clone()
            };
            // A change of length has no content of its own.
            let sets_length = part.length == Length::Kept && self.sector_count(place) == 0;
            let aspects = [
                (
                    Aspect::Content,
                    part.content == Fate::Whole && !sets_length,
                    without_content,
                ),
                (Aspect::Length, part.length == Length::Kept, without_length),
            ];
            for (aspect, is_there, without) in aspects {
                if is_there && !self.fails_instead(survivors, place, without) {
                    found.push((part.request, self.feature(part.request, aspect)));
                }
            }
        }
        found.sort_by_key(|(request, _)| *request);
        found
    }

    fn loss(&self, part: &Part) -> Option<Loss> {
        let extent = match &part.content {
            Fate::Whole if part.length == Length::Lost => {
                return Some(Loss {
                    feature: self.feature(part.request, Aspect::Length),
                    extent: Extent::Whole,
                });
            }
            Fate::Whole => return None,
            Fate::Lost => Extent::Whole,
            Fate::Torn(_) => Extent::InPart,
            Fate::Scattered { garbage, .. } if garbage.is_none() => Extent::InPart,
            Fate::Scattered { .. } => Extent::ToGarbage,
        };
        Some(Loss {
            feature: self.feature(part.request, Aspect::Content),
            extent,
        })
    }

    fn feature(&self, request: RequestId, aspect: Aspect) -> Feature {
        Feature {
            name: self.frontier.recording().entries[request.0].name(),
            aspect,
        }
    }

    fn sector_count(&self, place: usize) -> usize {
        self.frontier
            .volatile()
            .nth(place)
            .map_or(0, super::durability::Tail::sector_count)
    }

    /// The last promise up to the cut that was made after a request was submitted.
    fn promise_after(&self, request: RequestId) -> Option<Tick> {
        let submitted = self.frontier.recording().entries[request.0].submitted;
        self.promises
            .iter()
            .copied()
            .filter(|promise| *promise > submitted && *promise <= self.frontier.cut())
            .max()
    }
}

fn replaced(survivors: &Survivors, place: usize, part: Part) -> Survivors {
    let mut survivors = survivors.clone();
    survivors.parts_mut()[place] = part;
    survivors
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MustPrecede { first, then } => write!(
                f,
                "{then} survived while {}: the second must be durable before the first",
                first.in_contrast()
            ),
            Self::MustBeDurable {
                first,
                promised: Some(_),
            } => write!(
                f,
                "{first} although the guest had been promised it: it must be durable before the \
                 guest's flush is acknowledged"
            ),
            Self::MustBeDurable {
                first,
                promised: None,
            } => write!(
                f,
                "{first} although what relies on it was durable: it must be durable first"
            ),
            Self::TooEarly { then } => write!(
                f,
                "{then} survived, and what it relies on had not been written yet: it must wait for that"
            ),
            Self::Anyhow => {
                f.write_str("it fails whatever survives: the order of writes is not the cause")
            }
        }
    }
}

impl Loss {
    /// What follows on "this survived while".
    fn in_contrast(self) -> String {
        let feature = self.feature;
        match self.extent {
            Extent::Whole => format!("{feature} did not"),
            Extent::InPart | Extent::ToGarbage => self.to_string(),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let feature = self.feature;
        match self.extent {
            Extent::Whole => write!(f, "{feature} was lost"),
            Extent::InPart => write!(f, "{feature} was torn"),
            Extent::ToGarbage => write!(f, "{feature} left garbage"),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.aspect {
            Aspect::Content => write!(f, "{}", self.name),
            Aspect::Length => write!(f, "the file length that {} sets", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use blkdebug::mask::Shape;
    use blkdebug::record::Clock;
    use blkdebug::volatile::{Answering, VolatileDisk};
    use engine::device::{Device, Event, Op, PageImage, Request};

    use super::*;

    /// Data, a table that points to it, and noise around them; sectors 0 to 3 exist.
    fn recording() -> Recording {
        let base = PageImage::zeroed(4 * 512);
        let disk = VolatileDisk::new(base, Clock::default(), Answering::AtOnce);
        let write = |event, sector: u64, fill, count: usize| {
            let op = Op::Write {
                offset: sector * 512,
                data: vec![fill; count * 512],
                fua: false,
            };
            drop(disk.submit(Request { event, op }));
        };
        write(Event::WriteAio, 3, 9, 1);
        write(Event::WriteAio, 4, 1, 2);
        write(Event::RefblockUpdatePart, 2, 3, 1);
        write(Event::L2Update, 0, 2, 1);
        write(Event::L1Update, 1, 4, 1);
        disk.into_recording()
    }

    fn byte(state: &CrashState, sector: u64) -> u8 {
        state.disks.image().read_vec(sector * 512, 1)[0]
    }

    fn survivors(recording: &Recording, which: &[usize]) -> Survivors {
        let frontier = Frontier::at(recording, recording.end());
        let part = |tail| {
            let whole = Part::whole(tail);
            if which.contains(&whole.request.0) {
                whole
            } else {
                Part::lost(tail)
            }
        };
        Survivors::from_parts(frontier.volatile().map(part).collect())
    }

    fn explained(
        recording: &Recording,
        survivors: &Survivors,
        mut fails: impl FnMut(&CrashState) -> bool,
    ) -> Option<Explanation> {
        let failing = Failing {
            recording,
            cut: recording.end(),
            survivors,
            promises: &[Tick(1), recording.end()],
        };
        explain(failing, &mut fails).unwrap()
    }

    #[test]
    fn a_link_that_overtook_its_data_is_named_with_them() {
        let recording = recording();
        let survivors = survivors(&recording, &[3]);
        let dangling = |state: &CrashState| byte(state, 0) == 2 && byte(state, 4) != 1;
        let explanation = explained(&recording, &survivors, dangling).unwrap();
        assert_eq!(
            explanation.relation.to_string(),
            "l2_update write #0 (host offset 0x0) survived while write_aio write #1 (host offset \
             0x800) did not: the second must be durable before the first"
        );
        let lost: Vec<usize> = explanation
            .state
            .survivors
            .parts()
            .iter()
            .filter(|part| !part.is_whole())
            .map(|part| part.request.0)
            .collect();
        assert_eq!(lost, [1], "everything that does not matter survives");
    }

    #[test]
    fn a_length_that_was_lost_is_told_from_data_that_were() {
        let recording = recording();
        let survivors = survivors(&recording, &[3]);
        let beyond_end =
            |state: &CrashState| byte(state, 0) == 2 && state.disks.image().len() < 6 * 512;
        let explanation = explained(&recording, &survivors, beyond_end).unwrap();
        assert_eq!(
            explanation.relation.to_string(),
            "l2_update write #0 (host offset 0x0) survived while the file length that write_aio \
             write #1 (host offset 0x800) sets did not: the second must be durable before the first"
        );
    }

    #[test]
    fn a_torn_request_keeps_all_the_sectors_that_do_not_matter() {
        let recording = recording();
        let mut parts = survivors(&recording, &[0, 1, 2, 3, 4]).parts().to_vec();
        parts[1].content = Fate::Torn(SectorMask::none(2));
        let half = |state: &CrashState| byte(state, 0) == 2 && byte(state, 5) != 1;
        let explanation = explained(&recording, &Survivors::from_parts(parts), half).unwrap();
        let part = &explanation.state.survivors.parts()[1];
        assert_eq!(
            part.content,
            Fate::Torn(SectorMask::of_shape(Shape::OnlyFirst, 2))
        );
        let sentence = explanation.relation.to_string();
        assert!(sentence.contains("while write_aio write #1 (host offset 0x800) was torn:"));
    }

    #[test]
    fn what_was_promised_and_lost_must_be_durable_by_itself() {
        let recording = recording();
        let survivors = survivors(&recording, &[]);
        let gone = |state: &CrashState| byte(state, 3) != 9;
        let explanation = explained(&recording, &survivors, gone).unwrap();
        assert_eq!(
            explanation.relation.to_string(),
            "write_aio write #0 (host offset 0x600) was lost although the guest had been promised \
             it: it must be durable before the guest's flush is acknowledged"
        );
    }

    #[test]
    fn what_fails_with_everything_there_came_too_early_or_is_no_matter_of_order() {
        let recording = recording();
        let survivors = survivors(&recording, &[4]);
        let early = |state: &CrashState| byte(state, 1) == 4;
        let relation = explained(&recording, &survivors, early).unwrap().relation;
        assert_eq!(
            relation.to_string(),
            "l1_update write #0 (host offset 0x200) survived, and what it relies on had not been \
             written yet: it must wait for that"
        );
        let relation = explained(&recording, &survivors, |_| true)
            .unwrap()
            .relation;
        assert_eq!(relation, Relation::Anyhow);
    }

    #[test]
    fn what_does_not_fail_is_not_explained() {
        let recording = recording();
        let survivors = survivors(&recording, &[4]);
        assert!(explained(&recording, &survivors, |_| false).is_none());
    }
}
