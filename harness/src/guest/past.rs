//! Snapshots in a guest's history: which exist, and what each holds.
//!
//! Taking, applying and deleting a snapshot are durable when they are answered, one after the other.
//! Applying one waits for everything in flight. A snapshot that is taken holds what the disk held at some moment
//! between question and answer: of each operation in flight meanwhile, what was there before or what it wrote.

use super::{Answer, Content, Happening, Ledger, Moment};
use crate::workload::ops::{Operation, SnapshotChange, SnapshotOperation};

/// A snapshot from before the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: Content,
    /// The size of its disk in bytes.
    pub virtual_bytes: u64,
}

/// Where the content of a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It was there before the history: its place among the past ones.
    Past(usize),
    /// An operation took it: its place among the operations on snapshots.
    Taken(usize),
}

/// A snapshot that may be listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub origin: Origin,
}

/// An operation on snapshots.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) what: What,
    pub(super) name: String,
    pub(super) submitted: Moment,
    pub(super) completed: Option<(Moment, Answer)>,
    /// The sizes that the disk may have had then, in bytes: a change of it that failed may have happened.
    pub(super) virtual_sizes: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Take,
    Apply(Origin),
    Delete,
}

/// The name by which images know a snapshot: no id looks like it.
pub fn name_of(snapshot: u32) -> String {
    format!("s{snapshot}")
}

impl Turn {
    pub(super) fn is_done(&self, cut: Moment) -> bool {
        matches!(self.completed, Some((at, Answer::Done)) if at <= cut)
    }

    /// Whether it may or may not have come to pass at `cut`.
    pub(super) fn is_open(&self, cut: Moment) -> bool {
        self.submitted <= cut && !self.is_done(cut)
    }
}

impl Ledger {
    /// The snapshots that were there before the history.
    pub fn past(&self) -> &[Past] {
        &self.past
    }

    /// The lists of snapshots that may be found after a power loss at `cut`.
    pub(super) fn lists_at(&self, cut: Moment) -> Vec<Vec<Listed>> {
        let start = self.past.iter().enumerate().map(|(index, past)| Listed {
            name: past.name.clone(),
            origin: Origin::Past(index),
        });
        let mut lists = vec![start.collect::<Vec<_>>()];
        for (index, turn) in self.turns.iter().enumerate() {
            if turn.submitted > cut || matches!(turn.what, What::Apply(_)) {
                continue;
            }
            let mut after = lists.clone();
            for list in &mut after {
                if turn.what == What::Take {
                    list.push(Listed {
                        name: turn.name.clone(),
                        origin: Origin::Taken(index),
                    });
                } else {
                    list.retain(|listed| listed.name != turn.name);
                }
            }
            if turn.is_done(cut) {
                lists = after;
            } else {
                lists.append(&mut after);
            }
            lists.sort();
            lists.dedup();
        }
        lists
    }

    /// The sizes in bytes that a snapshot's disk may have, the likeliest first.
    pub(super) fn sizes_of(&self, origin: Origin) -> Vec<u64> {
        match origin {
            Origin::Past(index) => vec![self.past[index].virtual_bytes],
            Origin::Taken(index) => self.turns[index].virtual_sizes.clone(),
        }
    }

    /// The application of a snapshot that may or may not have come to pass at `cut`.
    pub(super) fn open_application(&self, cut: Moment) -> Option<(&Turn, Origin)> {
        // What came after a refused one has changed the disk since.
        let is_last = |turn: &Turn| {
            let mut submissions = self.submissions.iter();
            submissions.all(|(_, at)| *at <= turn.submitted || *at > cut)
        };
        self.turns.iter().rev().find_map(|turn| match turn.what {
            What::Apply(origin) if turn.is_open(cut) && is_last(turn) => Some((turn, origin)),
            What::Apply(_) | What::Take | What::Delete => None,
        })
    }

    /// Notes an operation on snapshots, and yields where an application takes its content from.
    pub(super) fn turn(&mut self, happening: &Happening) -> Option<Origin> {
        let Operation::Snapshot(SnapshotOperation { snapshot, change }) = happening.operation
        else {
            return None;
        };
        let what = match change {
            SnapshotChange::Create => Some(What::Take),
            SnapshotChange::Delete => Some(What::Delete),
            SnapshotChange::Apply => None,
        };
        let name = name_of(snapshot);
        let lists = self.lists_at(Moment(u64::MAX));
        let known = lists
            .iter()
            .flatten()
            .rev()
            .find(|listed| listed.name == name);
        let origin = known.map(|listed| listed.origin);
        let what = what.or(origin.map(What::Apply))?;
        let turn = Turn {
            what,
            name,
            submitted: happening.submitted,
            completed: happening.completed,
            virtual_sizes: self.sizes_now(),
        };
        if let (What::Apply(origin), Some((_, Answer::Done))) = (what, happening.completed) {
            self.size_now = self.sizes_of(origin)[0];
        }
        self.turns.push(turn);
        match what {
            What::Apply(origin) => Some(origin),
            What::Take | What::Delete => None,
        }
    }
}
