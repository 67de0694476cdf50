//! What an exhaustive search has covered, for programs and for people.

use serde::{Deserialize, Serialize};

use super::rate;
use crate::exhaust::{Overlap, Repairs, Search, Shard, Space, Standing, Tally};
use crate::trace::operation_text;

/// What was covered, and what it came to. The fields are the keys of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The same in a paragraph.
    pub about: String,
    /// The version of this form.
    pub version: u32,
    /// The image format under test.
    pub format: String,
    /// The set of images.
    pub geometry: String,
    /// The images, each with its operations.
    pub images: Vec<Image>,
    /// The most operations of a workload.
    pub length: u32,
    /// How many operations are in flight at most.
    pub overlap: usize,
    /// How often a schedule deviates from the plainest at most.
    pub deviations: u32,
    /// Whether power was lost inside repairs too, to depth 3.
    pub repairs_interrupted: bool,
    /// The storage contract.
    pub contract: String,
    /// Which blocks of workloads are covered: `number/of`.
    pub shard: String,
    /// Blocks that are done.
    pub blocks: u64,
    /// Blocks that the shard has.
    pub blocks_in_shard: u64,
    /// Workloads in all shards.
    pub workloads_in_space: u64,
    /// What they came to.
    pub counts: Tally,
    /// Hashes the sources of the engine, in hexadecimal.
    pub engine: String,
    /// How long it took, and with how many threads.
    pub seconds: f64,
    /// The threads.
    pub jobs: usize,
}

/// Why a certificate cannot be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCertificate(String);

/// An image of the space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// What it is like.
    pub name: String,
    /// The operations on it, as traces spell them.
    pub operations: Vec<String>,
}

/// How a search was made.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Hashes the sources of the engine.
    pub engine: String,
    /// How long it took in seconds, all sessions of it.
    pub seconds: f64,
    /// The threads.
    pub jobs: usize,
}

/// The version of the form that is written here.
const VERSION: u32 = 2;

impl Certificate {
    /// That of a search of a shard of a space.
    pub fn new(space: &Space, shard: Shard, search: &Search, made: Circumstances) -> Self {
        let images = space.grounds().map(|(ground, operations)| Image {
            name: ground.name.clone(),
            operations: operations.iter().map(|it| operation_text(*it)).collect(),
        });
        let mut certificate = Self {
            about: String::new(),
            version: VERSION,
            format: "qcow2".into(),
            geometry: space.set().name().into(),
            images: images.collect(),
            length: space.length(),
            overlap: space.overlap().requests,
            deviations: space.overlap().deviations,
            repairs_interrupted: space.repairs() == Repairs::Interrupted,
            contract: space.contract().name().into(),
            shard: shard.to_string(),
            blocks: search.standing.blocks_done,
            blocks_in_shard: space.blocks_of(shard),
            workloads_in_space: space.workloads(),
            counts: search.standing.tally,
            engine: made.engine,
            seconds: made.seconds,
            jobs: made.jobs,
        };
        certificate.about = certificate.paragraph();
        certificate
    }

    /// Reads a certificate.
    pub fn from_json(text: &str) -> Result<Self, BadCertificate> {
        let certificate: Self =
            serde_json::from_str(text).map_err(|error| BadCertificate(error.to_string()))?;
        match certificate.version {
            VERSION => Ok(certificate),
            other => {
                let text =
                    format!("its form has version {other}, and this program knows {VERSION}");
                Err(BadCertificate(text))
            }
        }
    }

    /// Where the search stood, for one that goes on with the same shard of the same space and the same engine.
    pub fn standing(
        &self,
        space: &Space,
        shard: Shard,
        engine: &str,
    ) -> Result<Standing, BadCertificate> {
        let same = |what: &str, here: &str, there: &str| {
            let text = || format!("it is of {what} {here}, not of {there}");
            (here == there)
                .then_some(())
                .ok_or_else(|| BadCertificate(text()))
        };
        same(
            "length",
            &self.length.to_string(),
            &space.length().to_string(),
        )?;
        let overlap = space.overlap();
        same(
            "overlapping operations numbering",
            &self.overlap.to_string(),
            &overlap.requests.to_string(),
        )?;
        same(
            "deviations numbering",
            &self.deviations.to_string(),
            &overlap.deviations.to_string(),
        )?;
        same(
            "interrupted repairs being",
            &self.repairs_interrupted.to_string(),
            &(space.repairs() == Repairs::Interrupted).to_string(),
        )?;
        same("geometry", &self.geometry, space.set().name())?;
        same("contract", &self.contract, space.contract().name())?;
        same("shard", &self.shard, &shard.to_string())?;
        same("engine", &self.engine, engine)?;
        same(
            "a space of workloads numbering",
            &self.workloads_in_space.to_string(),
            &space.workloads().to_string(),
        )?;
        Ok(Standing {
            blocks_done: self.blocks.min(space.blocks_of(shard)),
            tally: self.counts,
        })
    }

    /// Whether every workload of the shard was covered, every state of each was judged, and nothing is wrong.
    pub fn holds(&self) -> bool {
        self.blocks == self.blocks_in_shard
            && self.counts.cuts_incomplete == 0
            && self.counts.not_measured == 0
            && self.counts.violations == 0
    }

    /// The certificate as text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts are JSON");
        text.push('\n');
        text
    }

    fn paragraph(&self) -> String {
        let part = match (self.blocks == self.blocks_in_shard, &*self.shard) {
            (true, "1/1") => "Every workload".to_owned(),
            (true, shard) => format!("Shard {shard} of the workloads"),
            (false, shard) => format!(
                "{} of the {} blocks in shard {shard} of the workloads",
                self.blocks, self.blocks_in_shard
            ),
        };
        let operations = self.images.iter().map(|image| image.operations.len());
        let (least, most) = (operations.clone().min(), operations.max());
        let missed = match self.counts.cuts_incomplete {
            0 => "at each of them".to_owned(),
            cuts => format!("at all but {cuts} of them"),
        };
        let found = match (self.counts.violations, self.counts.not_measured) {
            (0, 0) => "No violation was found.".to_owned(),
            (violations, unjudged) => {
                format!(
                    "{violations} violations were found, {unjudged} states could not be judged."
                )
            }
        };
        let nested = match (self.repairs_interrupted, self.counts.states_nested) {
            (false, _) => String::new(),
            (true, states) => format!(
                "{states} of them left by power losses inside repairs, up to three after one another, "
            ),
        };
        let beside = match (self.overlap, self.deviations) {
            (1, _) => String::new(),
            (overlap, Overlap::ALL) => format!(
                ", up to {overlap} of them in flight at once, in every schedule: {} of them",
                self.counts.schedules
            ),
            (overlap, deviations) => format!(
                ", up to {overlap} of them in flight at once, in every schedule that deviates from the plainest up to \
                 {deviations} times: {} schedules",
                self.counts.schedules
            ),
        };
        format!(
            "{part} of up to {} operations, out of {} to {} on each of {} images: {} workloads{beside}, under the \
             contract {}. The power was cut at {} moments, and {missed} every subset of {} that were not durable may have \
             survived, with every length of the file: {} states. They fall into {} classes that no judgement can \
             tell apart; {} states were judged, {nested}{} of them to audit the classes, {} had to be repaired. {found} It took \
             {:.0} seconds on {} threads, {:.0} states judged a second.",
            self.length,
            least.unwrap_or(0),
            most.unwrap_or(0),
            self.images.len(),
            self.counts.workloads,
            self.contract,
            self.counts.cuts,
            if self.contract == "epoch" {
                "whole writes"
            } else {
                "written sectors"
            },
            magnitude(&self.counts.states_covered.to_string()),
            self.counts.classes,
            self.counts.states_judged,
            self.counts.states_audited,
            self.counts.repairs,
            self.seconds,
            self.jobs,
            rate(self.counts.states_judged, self.seconds),
        )
    }
}

/// A number in decimal as people want to read it.
fn magnitude(decimal: &str) -> String {
    match decimal.split_at_checked(1) {
        Some(_) if decimal == u128::MAX.to_string() => "more than 10^38".into(),
        Some((first, rest)) if rest.len() > 12 => {
            let second = rest.get(..1).unwrap_or_default();
            format!("{first}.{second} x 10^{}", rest.len())
        }
        Some(_) | None => decimal.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_told_by_their_magnitude() {
        assert_eq!(magnitude("1234567"), "1234567");
        assert_eq!(magnitude("58614934899064380167913297440"), "5.8 x 10^28");
        assert_eq!(magnitude(&u128::MAX.to_string()), "more than 10^38");
    }
}
