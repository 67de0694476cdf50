//! Guidance: what a campaign learns from its runs, and what it does next because of that.
//!
//! Each run is watched ([`observe`]) for features that no earlier one had ([`feature`]): events, pairs of them, classes of
//! metadata that survived next to an event, what repairs had to do, rare situations ([`rare`]). A run that has a new one is
//! kept, and of the runs that follow, some are its neighbours ([`mutate`]) instead of drawn anew: as many as pay ([`way`]).
//! A workload that was run before is not run again ([`signature`]).
//!
//! Nothing of this depends on the number of threads: what a batch of runs starts from is what all batches before have left,
//! and a run draws from a generator of its own.

pub mod feature;
pub mod mutate;
pub mod observe;
pub mod rare;
pub mod signature;
pub mod way;

use crate::prng::Prng;
use crate::trace::Crash;
use crate::workload::shape::Scenario;

use feature::{NumberSet, Topic};
use observe::Seen;
use rare::Sightings;
use way::{Way, Yields};

/// Whether a campaign is guided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guidance {
    /// Every workload is drawn.
    #[default]
    Off,
    /// Some are neighbours of those that showed something new.
    On,
}

/// A run that showed something new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub run: u64,
    /// What it started from.
    pub scenario: Scenario,
    /// Its schedule, up to the last choice that is not the plainest.
    pub choices: Vec<u32>,
    /// The last crash state that had a new feature.
    pub crash: Option<Crash>,
    /// What was new about it, by [`Topic::weight`].
    pub gain: u64,
    /// How often a neighbour of it was run.
    pub picked: u64,
    /// Whether the neighbours of its crash state were judged.
    pub toggled: bool,
}

/// What guidance came to, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuideCounts {
    /// Neighbours that meant nothing: a drawn workload took their place.
    pub senseless: u64,
    /// Workloads that had been run before, and were replaced by others.
    pub repeated: u64,
    /// Workloads that were run although they had been run before, since none was found that had not.
    pub run_again: u64,
}

/// What a campaign has learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guide {
    /// The features that were seen.
    pub features: NumberSet,
    /// The runs that are kept.
    pub kept: Vec<Kept>,
    /// The signatures of what was run.
    pub signatures: NumberSet,
    /// The rare situations.
    pub rare: Sightings,
    /// What came of each way to come by a run.
    pub yields: Yields,
    /// What else it came to.
    pub counts: GuideCounts,
}

/// What becomes of a run.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Its number.
    pub run: u64,
    /// What it started from.
    pub scenario: &'a Scenario,
    /// Its schedule.
    pub choices: &'a [u32],
    /// How it was come by.
    pub way: Way,
    /// How many states were judged.
    pub states: u64,
    /// What was seen.
    pub seen: &'a Seen,
}

impl Guide {
    /// Runs are kept up to this number; then the one goes that is worth the least.
    const MOST_KEPT: usize = 512;

    /// A kept run to go on from in this way: of a few that are drawn, the one that showed most for what was made of it.
    pub fn pick(&self, way: Way, draw: &mut Prng) -> Option<usize> {
        const LOOKS: usize = 4;
        let fits = |at: &usize| match way {
            Way::Drawn => false,
            Way::Neighbour => true,
            Way::Schedule => self.kept[*at].scenario.concurrency > 1,
            Way::Toggle => self.kept[*at].crash.is_some() && !self.kept[*at].toggled,
        };
        if self.kept.is_empty() {
            return None;
        }
        let looks = (0..LOOKS).map(|_| draw.index(self.kept.len()));
        let fitting = looks.filter(fits);
        fitting.max_by_key(|at| (self.kept[*at].worth(), *at))
    }

    /// Takes note of a signature; says whether it is new.
    pub fn is_new(&mut self, signature: u64) -> bool {
        self.signatures.insert(signature)
    }

    /// Takes note that a kept run is about to be gone on from.
    pub fn count_pick(&mut self, at: usize, way: Way) {
        if let Some(kept) = self.kept.get_mut(at) {
            kept.picked += 1;
            kept.toggled |= way == Way::Toggle;
        }
    }

    /// Learns from a run.
    pub fn learn(&mut self, report: &Report<'_>) {
        self.rare.add(&report.seen.rare);
        let features = report.seen.features.iter();
        let new = features.filter(|feature| self.features.insert(feature.0));
        let gain = new.map(|it| it.topic().map_or(0, Topic::weight)).sum();
        self.yields.learn(report.way, report.states, gain);
        if gain == 0 {
            return;
        }
        // Where a list ends, whoever follows it goes on with 0, and so traces spell it.
        let end = report.choices.iter().rposition(|choice| *choice != 0);
        self.kept.push(Kept {
            run: report.run,
            scenario: report.scenario.clone(),
            choices: report.choices[..end.map_or(0, |last| last + 1)].to_vec(),
            crash: report.seen.crash.clone(),
            gain,
            picked: 0,
            toggled: false,
        });
    }

    /// Lets go of runs where too many are kept. Between batches only: runs under way name kept ones by their place.
    pub fn trim(&mut self) {
        while self.kept.len() > Self::MOST_KEPT {
            let places = 0..self.kept.len();
            let least = places.min_by_key(|at| (self.kept[*at].worth(), *at));
            self.kept.remove(least.expect("there are some"));
        }
    }

    /// How many features of each topic there are.
    pub fn topics(&self) -> Vec<(Topic, u64)> {
        let numbers = self.features.sorted();
        let topics = Topic::ALL.into_iter();
        topics
            .map(|topic| {
                let of = |number: &&u64| feature::Feature(**number).topic() == Some(topic);
                let count = numbers.iter().filter(of).count();
                (
                    topic,
                    u64::try_from(count).expect("features can be counted"),
                )
            })
            .collect()
    }
}

impl Kept {
    /// The more it showed and the less was made of it, the more it is worth.
    fn worth(&self) -> u64 {
        const SCALE: u64 = 1 << 16;
        self.gain.min(1024) * SCALE / (1 + self.picked)
    }
}
