//! A simulated process on its disks, from the opening of the image to the end of the workload; and where it is
//! killed, another in its place.
//!
//! At every step a [`Chooser`] decides what happens next: a task that was woken goes on, a device
//! request in flight completes, or the next operation is submitted. A step without an alternative is
//! taken without asking. The disks' recordings say what a power loss at any moment would have left;
//! the world itself never loses power.

use std::rc::Rc;

use blkdebug::record::{Clock, RecordedOp, Recording};
use blkdebug::volatile::VolatileDisk;
use xxhash_rust::xxh3::Xxh3;

use super::chooser::{Chooser, RequestKey, Step};
use super::client::{Client, Failure, Log, Opener, Opening, Read};
use super::executor::{Executor, TaskId};
use crate::caught::{Panic, catch};
use crate::workload::ops::{Answer, Happening, Manners, Operation, OperationId};
use crate::workload::shape::Management;

/// What a world is made of.
pub struct World<'a> {
    /// Orders the events of guest and disks; the disks hold clones of it.
    pub clock: Clock,
    /// The disks, answering on command; the image's own first.
    pub disks: Vec<Rc<VolatileDisk>>,
    /// Opens the image on them.
    pub opener: Box<dyn Opener>,
    /// The workload.
    pub operations: &'a [Operation],
    /// How many operations may be in flight at once.
    pub concurrency: usize,
    /// Whether operations on the image as a whole are among them.
    pub management: Management,
    /// After so many steps a world that has not ended counts as one that never will.
    pub budget_steps: u64,
}

/// What came of a world.
#[derive(Debug)]
pub struct Lived {
    /// What happened on each disk.
    pub recordings: Vec<Recording>,
    /// For which operation each recorded request was made, by its place in the history, disk by disk; `None` for the first
    /// opening.
    pub requesters: Vec<Vec<Option<u64>>>,
    /// What the guest did.
    pub history: Vec<Happening>,
    /// What its reads yielded.
    pub reads: Vec<Read>,
    /// What failed.
    pub failures: Vec<Failure>,
    /// Whether the first opening of the image succeeded.
    pub was_opened: bool,
    /// When the image was opened, in order.
    pub openings: Vec<Opening>,
    /// The operations that opened the image behind a process that had not closed it: that was killed, or failed at it.
    pub revived: Vec<OperationId>,
    /// Which step was taken wherever there was more than one.
    pub choices: Vec<u32>,
    /// How many steps there were to choose from, for each choice.
    pub widths: Vec<u32>,
    /// How many steps were taken.
    pub steps: u64,
    /// How it ended.
    pub ending: Ending,
    /// Folds every step, every byte written and everything the guest saw.
    pub digest: u128,
}

/// How a world ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every operation was answered.
    Finished,
    /// Tasks wait, and nothing is left that could wake them.
    Stuck {
        /// How many tasks wait.
        unfinished: usize,
    },
    /// The budget of steps was used up.
    Endless,
    /// A fault cut the power of a disk, and with it that of all.
    PowerLost,
    /// The engine panicked.
    Panicked(Panic),
}

impl World<'_> {
    /// Lets the world run to its end.
    pub fn live(self, chooser: &mut dyn Chooser) -> Lived {
        let client = Rc::new(Client::new(self.opener, self.clock));
        let mut life = Life {
            client,
            executor: Executor::default(),
            disks: self.disks,
            operations: self.operations,
            concurrency: self.concurrency.max(1),
            management: self.management,
            submitted: 0,
            choices: Vec::new(),
            widths: Vec::new(),
            steps: 0,
            digest: Xxh3::new(),
        };
        let ending = match catch(|| life.run(chooser, self.budget_steps)) {
            Ok(ending) => ending,
            Err(panic) => Ending::Panicked(panic),
        };
        life.into_lived(ending)
    }
}

struct Life<'a> {
    client: Rc<Client>,
    executor: Executor,
    disks: Vec<Rc<VolatileDisk>>,
    operations: &'a [Operation],
    concurrency: usize,
    management: Management,
    submitted: usize,
    choices: Vec<u32>,
    widths: Vec<u32>,
    steps: u64,
    digest: Xxh3,
}

impl Life<'_> {
    fn run(&mut self, chooser: &mut dyn Chooser, budget_steps: u64) -> Ending {
        let start = self.executor.spawn(Rc::clone(&self.client).start());
        self.poll(start);
        let mut enabled = Vec::new();
        loop {
            if !self.disks.iter().all(|disk| disk.is_powered()) {
                return Ending::PowerLost;
            }
            self.list_enabled(&mut enabled);
            if enabled.is_empty() {
                return match self.executor.unfinished() {
                    0 => Ending::Finished,
                    unfinished => Ending::Stuck { unfinished },
                };
            }
            if self.steps == budget_steps {
                return Ending::Endless;
            }
            let step = self.choose(&enabled, chooser);
            self.take(step);
        }
    }

    fn list_enabled(&self, enabled: &mut Vec<Step>) {
        enabled.clear();
        enabled.extend(self.executor.runnable().map(Step::Run));
        let mut place = 0;
        for (disk, number) in self.disks.iter().zip(0..) {
            disk.each_in_flight(|id| {
                let request = RequestKey {
                    disk: number,
                    request: id.0,
                };
                enabled.push(Step::Complete { place, request });
                place += 1;
            });
        }
        if self.may_submit() {
            enabled.push(Step::Submit);
        }
    }

    fn may_submit(&self) -> bool {
        let Some(next) = self.operations.get(self.submitted) else {
            return false;
        };
        if self.manners(*next) == Manners::Abrupt {
            return true;
        }
        if !self.client.is_open() && self.executor.unfinished() > 0 {
            return false;
        }
        let last = self.submitted.checked_sub(1).map(|at| self.operations[at]);
        let alone = |operation| matches!(self.manners(operation), Manners::Alone | Manners::Abrupt);
        if alone(*next) || last.is_some_and(alone) {
            return self.executor.unfinished() == 0;
        }
        let managed = self
            .client
            .in_flight()
            .find(|operation| self.manners(*operation) == Manners::OneAtATime);
        let fits = match (self.manners(*next), managed) {
            (_, None) => true,
            (Manners::Free, Some(_)) => next
                .range()
                .is_none_or(|range| range.end() <= self.client.disk_bytes()),
            (Manners::OneAtATime | Manners::Alone | Manners::Abrupt, Some(_)) => false,
        };
        fits && self.executor.unfinished() < self.concurrency
    }

    fn manners(&self, operation: Operation) -> Manners {
        match (operation.manners(), self.management) {
            (Manners::OneAtATime, Management::Alone) => Manners::Alone,
            (manners, Management::Alone | Management::Overlapping) => manners,
        }
    }

    fn choose(&mut self, enabled: &[Step], chooser: &mut dyn Chooser) -> Step {
        self.steps += 1;
        if let [only] = enabled {
            return *only;
        }
        let index = chooser.choose(enabled);
        let small = |count: usize| u32::try_from(count).expect("few steps are possible at once");
        self.choices.push(small(index));
        self.widths.push(small(enabled.len()));
        enabled[index]
    }

    fn take(&mut self, step: Step) {
        let (kind, detail) = match step {
            Step::Run(id) => (0u64, id.0),
            Step::Complete { place, .. } => (1, place),
            Step::Submit => (2, self.submitted),
        };
        fold(&mut self.digest, kind);
        fold(&mut self.digest, to_u64(detail));
        match step {
            Step::Run(id) => self.poll(id),
            Step::Complete { place, .. } => self.complete(place),
            Step::Submit => {
                let operation = self.operations[self.submitted];
                self.submitted += 1;
                if self.manners(operation) == Manners::Abrupt {
                    self.kill();
                }
                let task = Rc::clone(&self.client).submit(operation);
                let id = self.executor.spawn(task);
                self.poll(id);
            }
        }
    }

    /// Lets a task go on. What it asks of the disks it asks for its operation; the first task opens the image.
    fn poll(&mut self, id: TaskId) {
        let operation = id.0.checked_sub(1).map(to_u64);
        for disk in &self.disks {
            disk.on_behalf_of(operation);
        }
        self.executor.poll(id);
    }

    /// Ends the process: its tasks, its requests, and all that it had in memory.
    fn kill(&mut self) {
        for disk in &self.disks {
            disk.withdraw();
        }
        self.executor.kill();
        self.client.die();
    }

    fn complete(&self, at: usize) {
        let mut at = at;
        for disk in &self.disks {
            let in_flight = disk.in_flight();
            if let Some(pending) = in_flight.get(at) {
                disk.complete(pending.id);
                return;
            }
            at -= in_flight.len();
        }
        unreachable!("the request was in flight when it was chosen")
    }

    fn into_lived(self, ending: Ending) -> Lived {
        let Self {
            client,
            executor,
            disks,
            choices,
            widths,
            steps,
            mut digest,
            ..
        } = self;
        for disk in &disks {
            disk.power_off();
        }
        // What a panic left behind may panic again as it is thrown away.
        let _ = catch(|| drop(executor));
        let Log {
            history,
            reads,
            failures,
            was_opened,
            openings,
            revived,
        } = client.take_log();
        let _ = catch(|| drop(client));
        let recordings: Vec<Recording> = disks.iter().map(|disk| disk.recording()).collect();
        for recording in &recordings {
            fold_recording(&mut digest, recording);
        }
        fold_log(&mut digest, &history, &reads);
        Lived {
            requesters: disks.iter().map(|disk| disk.operations()).collect(),
            recordings,
            history,
            reads,
            failures,
            was_opened,
            openings,
            revived,
            choices,
            widths,
            steps,
            ending,
            digest: digest.digest128(),
        }
    }
}

fn fold_recording(digest: &mut Xxh3, recording: &Recording) {
    for entry in &recording.entries {
        digest.update(entry.event.name().as_bytes());
        digest.update(entry.op.kind().name().as_bytes());
        fold(digest, entry.op.offset());
        fold(digest, entry.submitted.0);
        fold(digest, entry.completed.map_or(0, |(tick, _)| tick.0));
        fold(digest, u64::from(entry.succeeded().is_some()));
        fold(digest, u64::from(entry.op.is_advisory()));
        fold(digest, to_u64(entry.op.sector_count()));
        if let RecordedOp::Write { run, fua } = &entry.op {
            fold(digest, u64::from(*fua));
            for index in 0..entry.op.sector_count() {
                digest.update(&run.hash(index).to_le_bytes());
            }
        }
    }
}

fn fold_log(digest: &mut Xxh3, history: &[Happening], reads: &[Read]) {
    for happening in history {
        fold(digest, happening.submitted.0);
        let (moment, failed) = happening.completed.map_or((0, 0), |(moment, answer)| {
            (moment.0, u64::from(answer == Answer::Failed))
        });
        fold(digest, moment);
        fold(digest, failed);
    }
    for read in reads {
        digest.update(&read.data);
    }
}

fn fold(digest: &mut Xxh3, word: u64) {
    digest.update(&word.to_le_bytes());
}

fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("an index fits 64 bits")
}

#[cfg(test)]
mod tests;
