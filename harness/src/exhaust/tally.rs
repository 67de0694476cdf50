//! What workloads came to, as it adds up in any order.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::run::{Counts, Outcome};

/// What workloads came to. The fields are keys of a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Workloads that were lived through.
    pub workloads: u64,
    /// Schedules of them.
    pub schedules: u64,
    /// Moments at which the power was cut.
    pub cuts: u64,
    /// Moments of which not every state was visited, since there were too many.
    pub cuts_incomplete: u64,
    /// The crash states of these moments: every subset of whole requests, times every length; in decimal, and 2^128 - 1
    /// where there are more.
    #[serde(with = "decimal")]
    pub states_covered: u128,
    /// Classes of them that no judgement can tell apart, those known from an earlier moment included.
    pub classes: u64,
    /// Crash states that were judged.
    pub states_judged: u64,
    /// Judged states that a power loss inside a repair left.
    pub states_nested: u64,
    /// Judged states whose class was judged by another before: the audit of the classes.
    pub states_audited: u64,
    /// Judged states that recovery had to repair.
    pub repairs: u64,
    /// States that could not be judged.
    pub not_measured: u64,
    /// Violations.
    pub violations: u64,
    /// Sums up every step, every byte written and every verdict, whatever the order: the sum of a hash of each workload's
    /// number, schedule and digest. In hexadecimal.
    #[serde(with = "hexadecimal")]
    pub digest: u128,
}

impl Tally {
    /// Adds a schedule of a workload, told by its first choices; the workload counts with the plainest.
    pub fn add_schedule(&mut self, number: u64, begun: &[u32], outcome: &Outcome) {
        let Counts {
            cuts,
            cuts_incomplete,
            states_covered,
            states_generated,
            states_judged,
            states_nested,
            states_audited,
            repairs,
            not_measured,
            violations,
            ..
        } = outcome.counts;
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.extend_from_slice(&outcome.digest.to_le_bytes());
        bytes.extend(begun.iter().flat_map(|choice| choice.to_le_bytes()));
        self.add(&Self {
            workloads: u64::from(begun.is_empty()),
            schedules: 1,
            cuts,
            cuts_incomplete,
            states_covered,
            classes: states_generated - states_audited,
            states_judged,
            states_nested,
            states_audited,
            repairs,
            not_measured,
            violations,
            digest: xxh3_128(&bytes),
        });
    }

    /// Adds what others came to.
    pub fn add(&mut self, other: &Self) {
        let Self {
            workloads,
            schedules,
            cuts,
            cuts_incomplete,
            states_covered,
            classes,
            states_judged,
            states_nested,
            states_audited,
            repairs,
            not_measured,
            violations,
            digest,
        } = *other;
        self.workloads += workloads;
        self.schedules += schedules;
        self.cuts += cuts;
        self.cuts_incomplete += cuts_incomplete;
        self.states_covered = self.states_covered.saturating_add(states_covered);
        self.classes += classes;
        self.states_judged += states_judged;
        self.states_nested += states_nested;
        self.states_audited += states_audited;
        self.repairs += repairs;
        self.not_measured += not_measured;
        self.violations += violations;
        self.digest = self.digest.wrapping_add(digest);
    }
}

/// Many readers of JSON keep no more than 53 bits of a number.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(number: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&number.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        text.parse()
            .map_err(|_| de::Error::custom(format!("`{text}` is no number")))
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(number: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        u128::from_str_radix(&text, 16)
            .map_err(|_| de::Error::custom(format!("`{text}` is no digest")))
    }
}
