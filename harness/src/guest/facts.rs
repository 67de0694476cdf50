//! What the image says of itself: legal before or after each change of it, never between.
//!
//! Changes are made one after the other, and are durable once answered. So after a power
//! loss the header says what the last answered change made of it, or what a change that was under way
//! makes of it, step by step.

use std::fmt;

use engine::manage::{Amend, RawPromise};
use xxhash_rust::xxh3::xxh3_64;

use super::key_slots::KeySlots;
use crate::workload::ops::{Answer, DataFileOperation, Happening, Moment, Operation};
use crate::workload::perform::{backing_after, data_file_name};

/// What the header says that an amendment can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Facts {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the refcount width in bits.
    pub refcount_order: u32,
    /// Whether the header asks for lazy refcounts.
    pub lazy_refcounts: bool,
    /// The length of the backing file's name; 0 without one.
    pub backing_name_bytes: u32,
    /// A digest of that name; 0 without one.
    pub backing_name: u64,
    /// Whether guest data stand in another file, which no operation here changes.
    pub external_data: bool,
    /// The length of that file's name; 0 without one.
    pub data_file_name_bytes: u64,
    /// A digest of that name; 0 without one.
    pub data_file_name: u64,
    /// Whether that file is said to be a raw image of the disk.
    pub raw_data: bool,
    /// What the key slots hold; nothing where there are none.
    pub key_slots: KeySlots,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lazy = if self.lazy_refcounts { "on" } else { "off" };
        let data = match (self.external_data, self.raw_data) {
            (false, _) => String::new(),
            (true, false) => self.named("another"),
            (true, true) => self.named("a raw"),
        };
        write!(
            f,
            "version {}, refcounts of {} bits, lazy refcounts {lazy}, a backing file name of {} bytes ({:016x}){data}{}",
            self.version,
            1u64 << self.refcount_order,
            self.backing_name_bytes,
            self.backing_name,
            self.key_slots
        )
    }
}

impl Facts {
    fn named(&self, kind: &str) -> String {
        let (bytes, digest) = (self.data_file_name_bytes, self.data_file_name);
        format!(", data in {kind} file with a name of {bytes} bytes ({digest:016x})")
    }

    /// What they become in an operation, step by step; the last is what is asked for. `None` where it
    /// changes nothing of what the header says.
    fn steps(self, operation: Operation) -> Option<Vec<Self>> {
        if let Operation::Amend(amend) = operation {
            return Some(self.amended(amend));
        }
        if let Operation::DataFile(operation) = operation {
            return Some(vec![self.with_data_file(operation)]);
        }
        if let Operation::KeySlot(operation) = operation {
            let steps = self.key_slots.steps(operation);
            let step = |key_slots| Self { key_slots, ..self };
            return Some(steps.into_iter().map(step).collect());
        }
        Some(vec![self.over(&backing_after(operation)?)])
    }

    /// The same with that name of a backing file; without one where it is empty.
    fn over(self, name: &str) -> Self {
        Self {
            backing_name_bytes: u32::try_from(name.len()).expect("a name is short"),
            backing_name: if name.is_empty() {
                0
            } else {
                xxh3_64(name.as_bytes())
            },
            ..self
        }
    }

    /// The same after a change of what is said of the data file.
    fn with_data_file(self, operation: DataFileOperation) -> Self {
        let DataFileOperation { name_bytes, raw } = operation;
        let raw_data = self.raw_data && raw == RawPromise::Keep;
        let Some(name_bytes) = name_bytes else {
            return Self { raw_data, ..self };
        };
        let name = data_file_name(name_bytes);
        Self {
            raw_data,
            data_file_name_bytes: name_bytes.into(),
            data_file_name: if name.is_empty() {
                0
            } else {
                xxh3_64(name.as_bytes())
            },
            ..self
        }
    }

    fn amended(self, amend: Amend) -> Vec<Self> {
        if amend.version == Some(2) && self.external_data {
            // That is refused before anything else of it is done.
            return vec![self];
        }
        let mut steps = Vec::new();
        let mut facts = self;
        if amend.version == Some(3) {
            facts.version = 3;
            steps.push(facts);
        }
        if let Some(refcount_order) = amend.refcount_order {
            facts.refcount_order = refcount_order;
            steps.push(facts);
        }
        if let Some(lazy_refcounts) = amend.lazy_refcounts {
            facts.lazy_refcounts = lazy_refcounts;
            steps.push(facts);
        }
        if amend.version == Some(2) {
            facts.version = 2;
            facts.lazy_refcounts = false;
        }
        steps.push(facts);
        steps
    }

    /// What the header may say at `cut`, and how many changes are beyond doubt by then.
    pub(super) fn at(self, history: &[Happening], cut: Moment) -> (Vec<Self>, u64) {
        let mut legal = vec![self];
        let mut settled = 0;
        for happening in history.iter().filter(|it| it.submitted <= cut) {
            let steps = legal.iter().map(|facts| facts.steps(happening.operation));
            let Some(steps) = steps.collect::<Option<Vec<_>>>() else {
                continue;
            };
            let done = matches!(happening.completed, Some((at, Answer::Done)) if at <= cut);
            if done {
                settled += 1;
                legal = steps
                    .iter()
                    .filter_map(|steps| steps.last().copied())
                    .collect();
            } else {
                legal.extend(steps.into_iter().flatten());
            }
            legal.sort_unstable();
            legal.dedup();
        }
        (legal, settled)
    }
}
