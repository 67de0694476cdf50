//! The recovery-read filter of drawn searches: crash states that differ from a judged one only where its judgement read
//! nothing need no judgement of their own.
//!
//! What a judgement read is its [`Footprint`] on the image's disk, the length, and all of every other disk. Few footprints
//! are different, so a state is told by what it holds within each of those that were seen. One in a hundred that the
//! filter would leave out is judged all the same, and must be judged by the same sectors.

use std::collections::BTreeMap;
use std::rc::Rc;

use blkdebug::disks::Disk;
use blkdebug::record::Tick;
use engine::device::{ContentHash, PageImage, SectorHash};
use xxhash_rust::xxh3::xxh3_128;

use super::durability::{Frontier, Tail, set_len};
use super::footprint::Footprint;
use super::forecast::Difference;

/// So many different footprints are remembered for each expectation: to hold a state against more of them would cost
/// more than to judge it.
const MOST_FOOTPRINTS: usize = 48;
/// One state in so many that would be left out is judged; which, its content says.
const AUDIT_EVERY: u128 = 100;

/// What was judged, by what it hangs on.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// By expectation, as [`super::dedupe::Visited`] knows it.
    readings: BTreeMap<u128, Vec<Reading>>,
    /// The state that was let through last.
    last: Option<Last>,
    /// How many states were left out.
    pub(super) spared: u64,
    /// How many would have been, and were let through.
    pub(super) audited: u64,
}

/// The sectors that some judgements read, and what stood there.
#[derive(Debug)]
struct Reading {
    footprint: Footprint,
    /// By content within the footprint, the earliest cut at which it passed: the stricter, of two with one expectation.
    passed: BTreeMap<u128, Tick>,
    /// By cut.
    shares: BTreeMap<usize, Share>,
}

/// What of a cut lies within a footprint.
#[derive(Debug)]
struct Share {
    /// What the settled content adds up to there.
    settled: SectorHash,
    /// Which of the sectors that may differ between the states of the cut.
    within: Vec<bool>,
}

/// The state that was let through.
#[derive(Debug)]
struct Last {
    key: u128,
    sight: Sight,
    /// The footprint by which it would have been left out.
    told: Option<Footprint>,
}

/// A state, as far as the states of its cut differ.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) cut: Tick,
    pub(super) at: Rc<Place>,
    pub(super) difference: Difference,
}

/// A cut, and what may differ between its states.
#[derive(Debug)]
pub(super) struct Place {
    /// Its place in the plan.
    pub(super) index: usize,
    /// What is beyond doubt on the image's disk.
    pub(super) settled: PageImage,
    /// The sectors that may differ, ascending.
    pub(super) touched: Vec<u64>,
}

impl Place {
    /// That of a cut; `None` where a length may cut off what is settled.
    pub(super) fn of(index: usize, frontier: &Frontier<'_>) -> Option<Self> {
        let mut touched = Vec::new();
        let of_image = |tail: &&Tail| tail.disk == Disk::Image;
        for tail in frontier.tail().iter().filter(of_image) {
            if set_len(&frontier.entry(tail).op).is_some() {
                return None;
            }
            touched.extend(tail.sectors.clone());
        }
        touched.sort_unstable();
        touched.dedup();
        Some(Self {
            index,
            settled: frontier.settled_on(Disk::Image).clone(),
            touched,
        })
    }
}

impl Filter {
    /// Whether the state with this content has to be judged that the survivors leave at a cut. Of it the same is expected
    /// as of others with this key.
    pub(super) fn lets_through(&mut self, hash: ContentHash, sight: Sight, key: u128) -> bool {
        self.last = None;
        let readings = self.readings.entry(key).or_default();
        let known = readings.iter_mut().find_map(|reading| {
            let tag = reading.tag(&sight);
            let passed = reading.passed.get(&tag);
            let stands_for = passed.is_some_and(|earliest| *earliest <= sight.cut);
            stands_for.then(|| reading.footprint.clone())
        });
        if known.is_some() {
            if !hash.0.is_multiple_of(AUDIT_EVERY) {
                self.spared += 1;
                return false;
            }
            self.audited += 1;
        }
        self.last = Some(Last {
            key,
            sight,
            told: known,
        });
        true
    }

    /// Knows nothing of the state that is judged next.
    pub(super) fn look_away(&mut self) {
        self.last = None;
    }

    /// Takes note of what judging the state read that was let through last; `None` where it did not pass. Whether that is
    /// what it would have been left out for: a judge that reads elsewhere has read something that it did not tell of
    /// before.
    pub(super) fn learn(&mut self, footprint: Option<Footprint>) -> bool {
        let Some(last) = self.last.take() else {
            return true;
        };
        if last.told.is_some() {
            return last.told == footprint;
        }
        let Some(footprint) = footprint else {
            return true;
        };
        let readings = self.readings.entry(last.key).or_default();
        let same = readings.iter().position(|it| it.footprint == footprint);
        let index = match same {
            Some(index) => index,
            None if readings.len() < MOST_FOOTPRINTS => {
                readings.push(Reading {
                    footprint,
                    passed: BTreeMap::new(),
                    shares: BTreeMap::new(),
                });
                readings.len() - 1
            }
            None => return true,
        };
        let reading = &mut readings[index];
        let (tag, cut) = (reading.tag(&last.sight), last.sight.cut);
        let earliest = reading.passed.entry(tag).or_insert(cut);
        *earliest = cut.min(*earliest);
        true
    }
}

impl Reading {
    /// What names the content of a state within the footprint.
    fn tag(&mut self, state: &Sight) -> u128 {
        let at = &state.at;
        let footprint = &self.footprint;
        let share = self.shares.entry(at.index).or_insert_with(|| Share {
            settled: footprint
                .ranges()
                .map(|sectors| at.settled.hash_of(sectors.clone()))
                .fold(0, SectorHash::wrapping_add),
            within: at
                .touched
                .iter()
                .map(|sector| footprint.meets(&(*sector..sector + 1)))
                .collect(),
        });
        let changes = state.difference.sectors.iter().zip(&share.within);
        let within = changes.filter(|(_, within)| **within);
        let sum = within.fold(share.settled, |sum, (change, _)| sum.wrapping_add(*change));
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&sum.to_le_bytes());
        bytes[16..].copy_from_slice(&state.difference.rest.to_le_bytes());
        xxh3_128(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use blkdebug::record::{Clock, Recording};
    use blkdebug::volatile::{Answering, VolatileDisk};
    use engine::device::{Device, Event, Op, Request};

    use super::*;
    use crate::crash::forecast::Forecast;
    use crate::crash::state::{CrashState, Length, Part, Survivors};

    /// Two writes of a sector each, the second in place of the first, and one elsewhere.
    fn recording() -> Recording {
        let disk = VolatileDisk::new(PageImage::zeroed(8192), Clock::default(), Answering::AtOnce);
        for (sector, fill) in [(0, 1), (0, 2), (9, 3)] {
            let op = Op::Write {
                offset: sector * 512,
                data: vec![fill; 512],
                fua: false,
            };
            let event = Event::None;
            drop(disk.submit(Request { event, op }));
        }
        disk.into_recording()
    }

    /// The state in which these writes survive.
    fn state(frontier: &Frontier<'_>, survive: [bool; 3]) -> CrashState {
        let parts = frontier.volatile().zip(survive).map(|(tail, survives)| {
            if survives {
                Part::whole(tail)
            } else {
                Part::lost(tail)
            }
        });
        let survivors = Survivors::from_parts(parts.collect());
        assert!(
            survivors
                .parts()
                .iter()
                .all(|part| part.length == Length::Untouched)
        );
        CrashState::build(frontier.recording(), frontier.cut(), &survivors).unwrap()
    }

    fn sight(frontier: &Frontier<'_>, state: &CrashState) -> Sight {
        let at = Rc::new(Place::of(0, frontier).unwrap());
        Sight {
            cut: state.cut,
            difference: Forecast::difference_of(state, &at),
            at,
        }
    }

    #[test]
    fn what_nobody_read_makes_no_other_state() {
        let recording = recording();
        let frontier = Frontier::at(&recording, recording.end());
        let mut filter = Filter::default();
        let mut passes = |survive: [bool; 3], key: u128| {
            let state = state(&frontier, survive);
            let through = filter.lets_through(state.hash, sight(&frontier, &state), key);
            if through {
                let footprint = filter.last.as_ref().and_then(|last| last.told.clone());
                assert!(filter.learn(Some(
                    footprint.unwrap_or_else(|| Footprint::of(std::iter::once(0..1).collect()))
                )));
            }
            (through, filter.audited)
        };
        assert_eq!(passes([true, false, false], 7), (true, 0));
        // Other bytes where nobody looked, and the same where somebody did.
        let again = passes([true, false, true], 7);
        assert!(again == (false, 0) || again == (true, 1));
        let audited = again.1;
        assert_eq!(
            passes([true, true, false], 7),
            (true, audited),
            "other bytes that were read"
        );
        assert_eq!(
            passes([true, false, true], 8),
            (true, audited),
            "something else is expected"
        );
    }

    #[test]
    fn a_state_that_was_judged_by_other_sectors_is_told() {
        let recording = recording();
        let frontier = Frontier::at(&recording, recording.end());
        let last = |told: Option<Vec<std::ops::Range<u64>>>| Filter {
            last: Some(Last {
                key: 0,
                sight: sight(&frontier, &state(&frontier, [true; 3])),
                told: told.map(Footprint::of),
            }),
            ..Filter::default()
        };
        let here = || Some(Footprint::of(std::iter::once(0..4).collect()));
        let told = || Some(std::iter::once(0..4).collect());
        assert!(last(told()).learn(here()));
        assert!(!last(told()).learn(None), "it did not even pass");
        let elsewhere = Footprint::of(vec![0..4, 9..10]);
        assert!(!last(told()).learn(Some(elsewhere)));
        assert!(last(None).learn(None));
    }
}
