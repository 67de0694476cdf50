//! The files beneath an image in a guest's history: which of them it lies over, and what each may hold.
//!
//! Only a commit writes to them, and to none but the one that the image lies over. It is carried out
//! alone, and what it leaves there is what the disk showed when it was asked for; while it is under way
//! each sector holds that, or what it held before. Rebasing, streaming and repointing write to none of them.

use std::ops::Range;

use blkdebug::disks::Disk;

use super::repoint::{Repoint, Stock};
use super::{Answer, Content, Happening, Moment};
use crate::workload::ops::{ChainOperation, Operation};

/// A file that an image can lie over, as it is before a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it stands.
    pub disk: Disk,
    /// What it shows, with what lies beneath it in turn.
    pub content: Content,
    /// The size of its disk in bytes.
    pub virtual_bytes: u64,
    /// What it lies over.
    pub over: Option<Disk>,
}

/// The files, and what became of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    files: Vec<File>,
    /// What the image may lie over behind the operations entered so far.
    over: Vec<Option<Disk>>,
    commits: Vec<Commit>,
    repoints: Vec<Repoint>,
    /// What the image may hold behind the operations entered so far.
    stock: Stock,
    /// Bytes in a cluster of the image.
    cluster_bytes: u64,
}

/// A commit: into which of these files is certain where there is but one.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    into: Vec<Disk>,
    submitted: Moment,
    completed: Option<(Moment, Answer)>,
    /// The size of the image's disk then, in bytes.
    virtual_bytes: u64,
}

/// Where some sectors of a file may have their content from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct World {
    pub(super) sectors: Range<u64>,
    pub(super) source: Source,
}

/// Where content may be from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The file held it at the start: its place among the files.
    Start(usize),
    /// The image's disk showed it at this moment, when all that was asked before had been answered.
    Shown(Moment),
    /// From anywhere: what lies beneath the file was committed into.
    Anywhere,
}

/// What a file may be at a moment.
#[derive(Clone, Debug)]
pub(super) struct FileWorlds {
    pub(super) worlds: Vec<World>,
    /// The sizes in bytes that its disk may have.
    pub(super) sizes: Vec<u64>,
}

impl Commit {
    fn is_done(&self, cut: Moment) -> bool {
        matches!(self.completed, Some((at, Answer::Done)) if at <= cut)
    }
}

impl Chain {
    pub(super) fn new(files: Vec<File>, over: Option<Disk>, cluster_bytes: u64) -> Self {
        Self {
            files,
            over: vec![over],
            commits: Vec::new(),
            repoints: Vec::new(),
            stock: Stock::default(),
            cluster_bytes,
        }
    }

    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// Notes an operation on an image whose disk has that size.
    pub(super) fn enter(&mut self, happening: &Happening, virtual_bytes: u64) {
        self.stock.enter(happening);
        let Operation::Chain(operation) = happening.operation else {
            return;
        };
        match operation {
            ChainOperation::Commit { .. } => self.commits.push(Commit {
                into: self.over.iter().copied().flatten().collect(),
                submitted: happening.submitted,
                completed: happening.completed,
                virtual_bytes,
            }),
            ChainOperation::Rebase { onto } | ChainOperation::Stream { base: onto } => {
                self.put_over(onto, happening);
            }
            ChainOperation::Repoint { onto } => {
                self.repoints.push(Repoint {
                    onto,
                    submitted: happening.submitted,
                    completed: happening.completed,
                });
                self.put_over(onto, happening);
            }
        }
    }

    fn put_over(&mut self, onto: Option<Disk>, happening: &Happening) {
        if matches!(happening.completed, Some((_, Answer::Done))) {
            self.over.clear();
        }
        if !self.over.contains(&onto) {
            self.over.push(onto);
        }
    }

    pub(super) fn repoints(&self) -> &[Repoint] {
        &self.repoints
    }

    pub(super) fn stock(&self) -> Stock {
        self.stock
    }

    pub(super) fn cluster_sectors(&self) -> u64 {
        self.cluster_bytes / 512
    }

    /// How many commits and repointings are beyond doubt at `cut`.
    pub(super) fn settled(&self, cut: Moment) -> usize {
        let commits = self.commits.iter().filter(|commit| commit.is_done(cut));
        let repoints = self.repoints.iter().filter(|repoint| repoint.is_done(cut));
        commits.count() + repoints.count()
    }

    /// When commits and repointings were answered.
    pub(super) fn promises(&self) -> impl Iterator<Item = Moment> {
        let commits = self.commits.iter().filter_map(|commit| commit.completed);
        let repoints = self.repoints.iter().filter_map(|repoint| repoint.completed);
        let answered = commits.chain(repoints);
        answered
            .filter(|(_, answer)| *answer == Answer::Done)
            .map(|(at, _)| at)
    }

    /// The sectors where what is legal may change: the ends of all disks.
    pub(super) fn bounds(&self) -> impl Iterator<Item = u64> {
        let files = self.files.iter().map(|file| file.virtual_bytes / 512);
        let commits = self.commits.iter().map(|commit| commit.virtual_bytes / 512);
        files.chain(commits)
    }

    /// What a file may be after a power loss at `cut`.
    pub(super) fn worlds(&self, disk: Disk, cut: Moment) -> Option<FileWorlds> {
        let index = self.files.iter().position(|file| file.disk == disk)?;
        let mut found = FileWorlds {
            worlds: vec![World {
                sectors: 0..u64::MAX,
                source: Source::Start(index),
            }],
            sizes: vec![self.files[index].virtual_bytes],
        };
        for commit in self.commits.iter().filter(|it| it.submitted <= cut) {
            if commit.into.iter().any(|into| self.is_beneath(*into, disk)) {
                found.worlds.push(World {
                    sectors: 0..u64::MAX,
                    source: Source::Anywhere,
                });
            }
            if commit.into.contains(&disk) {
                if commit.is_done(cut) && commit.into.len() == 1 {
                    found.settle(commit);
                } else {
                    found.begin(commit);
                }
            }
        }
        Some(found)
    }

    /// Whether one file lies beneath another, at any depth.
    fn is_beneath(&self, lower: Disk, upper: Disk) -> bool {
        let mut files = self.files.iter();
        let over = files
            .find(|file| file.disk == upper)
            .and_then(|file| file.over);
        over.is_some_and(|over| over == lower || self.is_beneath(lower, over))
    }
}

impl FileWorlds {
    /// Notes a commit into the file that has come to pass.
    fn settle(&mut self, commit: &Commit) {
        let end = commit.virtual_bytes / 512;
        for world in &mut self.worlds {
            world.sectors.start = world.sectors.start.max(end);
        }
        self.worlds.retain(|world| !world.sectors.is_empty());
        self.sizes = self.grown(commit).collect();
        self.sizes.dedup();
        self.worlds.push(World {
            sectors: 0..end,
            source: Source::Shown(commit.submitted),
        });
    }

    /// Notes a commit into the file that may have come to pass, in part or not at all.
    fn begin(&mut self, commit: &Commit) {
        let grown: Vec<u64> = self.grown(commit).collect();
        self.sizes.extend(grown);
        self.sizes.sort_unstable();
        self.sizes.dedup();
        self.worlds.push(World {
            sectors: 0..commit.virtual_bytes / 512,
            source: Source::Shown(commit.submitted),
        });
    }

    /// The sizes that a commit makes of those there were, ascending as they are.
    fn grown(&self, commit: &Commit) -> impl Iterator<Item = u64> {
        let sizes = self.sizes.iter();
        sizes.map(|size| commit.virtual_bytes.max(*size))
    }
}
