//! The numbers of a campaign as programs read them: `summary.json`; where it stands, to go on from there; and of an
//! exhaustive search: its certificate.

mod certificate;
mod standing;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::campaign::Campaign;
use crate::guide::rare::Sightings;
use crate::guide::way::{Way, Yield, Yields};
use crate::run::Counts;

pub use certificate::{BadCertificate, Certificate, Circumstances};
pub use standing::{BadStanding, read_standing, write_standing};

/// A campaign in numbers. The fields are the keys of `summary.json`; they are added to, and never
/// change their meaning.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Runs done; the same seed with so many runs comes to the same digest.
    pub runs: u64,
    /// Workloads that lived to their end.
    pub workloads: u64,
    /// Steps of all schedules.
    pub steps: u64,
    /// Moments at which the power was cut.
    pub cuts: u64,
    /// Crash states that were generated, equal ones included.
    pub states_generated: u64,
    /// Crash states that differed, by content or by what may be expected of them.
    pub states_distinct: u64,
    /// Of those, states that differ from a judged one only where its judgement read nothing.
    pub states_spared: u64,
    /// States that would have been spared, and were judged to see whether that holds.
    pub states_audited: u64,
    /// Distinct crash states that were judged, those of a second power loss included.
    pub states_judged: u64,
    /// Judged states that were left by a second power loss, inside a repair or in the work after it.
    pub states_nested: u64,
    /// States of which the disk destroyed something: something was refused, and nothing read wrong.
    pub states_refused: u64,
    /// States of which the disk destroyed something that was read wrong, as nobody can know.
    pub states_undetectable: u64,
    /// Judged states that recovery had to repair.
    pub repairs: u64,
    /// Judged states on which work went on after recovery.
    pub served: u64,
    /// States that could not be judged.
    pub not_measured: u64,
    /// Device requests that went wrong by rule.
    pub faults: u64,
    /// Violations, those of one class in one run included.
    pub violations: u64,
    /// How often each rare situation was there, under its name.
    pub rare: BTreeMap<&'static str, u64>,
    /// The rare situations that never were.
    pub never: Vec<&'static str>,
    /// Features that were seen, by topic.
    pub features: BTreeMap<&'static str, u64>,
    /// All of them.
    pub features_total: u64,
    /// Runs by the way that they were come by.
    pub ways: BTreeMap<&'static str, u64>,
    /// Those of them that showed something new.
    pub kept: BTreeMap<&'static str, u64>,
    /// Neighbours that meant nothing, and in the place of which workloads were drawn.
    pub senseless: u64,
    /// Workloads that had been run before, and were replaced by others.
    pub repeated: u64,
    /// How long it took; not part of the digest.
    pub seconds: f64,
    /// Judged states a second.
    pub states_per_second: f64,
    /// Folds every step and every byte of the campaign, in hexadecimal.
    pub digest: String,
    /// The classes of the violations, in order of discovery.
    pub classes: Vec<String>,
    /// Where the minimised traces are.
    pub traces: Vec<String>,
}

impl Summary {
    /// The numbers of a campaign that took so many seconds.
    pub fn new(seed: u64, campaign: &Campaign, seconds: f64) -> Self {
        let Counts {
            workloads,
            steps,
            cuts,
            cuts_incomplete: _,
            states_covered: _,
            states_audited,
            states_generated,
            states_distinct,
            states_judged,
            states_nested,
            states_spared,
            states_known: _,
            survived: _,
            refused,
            undetectable,
            repairs,
            served,
            not_measured,
            faults,
            violations,
            work: _,
        } = campaign.progress.counts;
        let mut classes: Vec<String> = Vec::new();
        for found in &campaign.found {
            let class = found.finding.violation.class.to_string();
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        let guide = &campaign.guide;
        let topics = guide.topics().into_iter();
        let topics: BTreeMap<&str, u64> = topics.map(|(it, n)| (it.name(), n)).collect();
        let features_total = topics.values().sum();
        Self {
            seed,
            runs: campaign.progress.runs,
            workloads,
            steps,
            cuts,
            states_generated,
            states_distinct,
            states_spared,
            states_audited,
            states_judged,
            states_nested,
            states_refused: refused,
            states_undetectable: undetectable,
            repairs,
            served,
            not_measured,
            faults,
            violations,
            rare: guide.rare.iter().map(|it| (it.name, it.count)).collect(),
            never: never(&guide.rare).collect(),
            features: topics,
            features_total,
            ways: by_way(&guide.yields, |yielded| yielded.runs),
            kept: by_way(&guide.yields, |yielded| yielded.kept),
            senseless: guide.counts.senseless,
            repeated: guide.counts.repeated,
            seconds,
            states_per_second: rate(states_judged, seconds),
            digest: format!("{:032x}", campaign.digest),
            classes,
            traces: Vec::new(),
        }
    }

    /// The summary as text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts are JSON");
        text.push('\n');
        text
    }
}

fn by_way(yields: &Yields, count: impl Fn(Yield) -> u64) -> BTreeMap<&'static str, u64> {
    let ways = Way::ALL.into_iter();
    ways.map(|way| (way.name(), count(yields.of(way))))
        .collect()
}

/// The names of the rare situations that never were.
pub fn never(rare: &Sightings) -> impl Iterator<Item = &'static str> {
    rare.iter().filter(|it| it.count == 0).map(|it| it.name)
}

/// How many a second; 0 where there was no time to tell.
pub fn rate(count: u64, seconds: f64) -> f64 {
    let count = u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    if seconds > 0.0 { count / seconds } else { 0.0 }
}
