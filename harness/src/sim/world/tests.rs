//! Worlds around a plain image of the tests' own: guest offset equals host offset.

use blkdebug::disks::Disk;
use blkdebug::record::SectorContent;
use blkdebug::volatile::Answering;
use engine::chain::Rebase;
use engine::device::{Completion, Event, PageImage, Port};
use engine::error::{Error, Refused};
use engine::image::{Image, LocalFuture, Unmap};
use engine::manage::Manage;
use engine::preallocation::Preallocation;

use super::*;
use crate::prng::Prng;
use crate::sim::chooser::{Fifo, Random, Replay};
use crate::sim::files::Opened;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    FlushHangs,
    FlushPanics,
    WritesForEver,
}

#[derive(Clone)]
struct Plain {
    port: Port,
    flaw: Flaw,
}

impl Opener for Plain {
    fn open(&self) -> LocalFuture<'static, Opened> {
        let image = self.clone();
        Box::pin(async move {
            image.port.at(Event::L2Load).read(0, 512).await?;
            Ok(Opened::alone(Rc::new(image)))
        })
    }

    fn open_file(&self, _: Disk) -> LocalFuture<'static, Rc<dyn Image>> {
        Box::pin(async { Err(Refused::ReadOnly.into()) })
    }

    fn rebase_onto(&self, _: Option<Disk>) -> Result<Rebase, Error> {
        Err(Refused::ReadOnly.into())
    }
}

impl Image for Plain {
    fn virtual_bytes(&self) -> u64 {
        self.port.len()
    }

    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>> {
        Box::pin(async move { Ok(self.port.at(Event::ReadAio).read(offset, len_bytes).await?) })
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> LocalFuture<'_, ()> {
        Box::pin(async move { Ok(self.port.at(Event::WriteAio).write(offset, data).await?) })
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, _: Unmap) -> LocalFuture<'_, ()> {
        let at = self.port.at(Event::PwritevZero);
        Box::pin(async move { Ok(at.write_zeroes(offset, len_bytes, false).await?) })
    }

    fn discard(&self, _: u64, _: u64) -> LocalFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            match self.flaw {
                Flaw::None => {}
                Flaw::FlushHangs => drop(Completion::pending().0.await),
                Flaw::FlushPanics => panic!("the flush is flawed"),
                Flaw::WritesForEver => loop {
                    self.port.at(Event::Pwritev).write(0, vec![0; 512]).await?;
                },
            }
            Ok(self.port.at(Event::FlushToDisk).flush().await?)
        })
    }

    fn manage(&self, operation: Manage) -> LocalFuture<'_, ()> {
        let Manage::Resize { virtual_bytes, .. } = operation else {
            unreachable!("this image is only ever resized")
        };
        Box::pin(async move { Ok(self.port.at(Event::None).set_len(virtual_bytes).await?) })
    }

    fn close(&self) -> LocalFuture<'_, ()> {
        Box::pin(async move { Ok(self.port.at(Event::FlushToDisk).flush().await?) })
    }
}

fn write(sector: u64) -> Operation {
    Operation::Write {
        offset: sector * 512,
        len_bytes: 1024,
    }
}

fn workload() -> Vec<Operation> {
    let mut operations: Vec<Operation> = (0..6).map(write).collect();
    operations.push(Operation::Flush);
    operations.extend((0..3).map(write));
    operations.push(Operation::Reopen);
    operations.extend([write(1), write(2), write(3)]);
    operations.push(Operation::Read {
        offset: 0,
        len_bytes: 4096,
    });
    operations
}

fn live(operations: &[Operation], flaw: Flaw, chooser: &mut dyn Chooser) -> Lived {
    live_managed(operations, flaw, Management::Alone, chooser)
}

fn live_managed(
    operations: &[Operation],
    flaw: Flaw,
    management: Management,
    chooser: &mut dyn Chooser,
) -> Lived {
    let clock = Clock::default();
    let base = PageImage::zeroed(1 << 20);
    let disk = VolatileDisk::new(base, clock.clone(), Answering::OnCommand);
    let disk = Rc::new(disk);
    let port = Port::new(Rc::<VolatileDisk>::clone(&disk));
    World {
        clock,
        disks: vec![disk],
        opener: Box::new(Plain { port, flaw }),
        operations,
        concurrency: 3,
        management,
        budget_steps: 1000,
    }
    .live(chooser)
}

fn live_random(seed: u64) -> Lived {
    let mut chooser = Random::new(Prng::from_seed(seed));
    live(&workload(), Flaw::None, &mut chooser)
}

/// The largest number of operations in flight together.
fn overlap(history: &[Happening]) -> usize {
    let span = |happening: &Happening| (happening.submitted, happening.completed.unwrap().0);
    let at_start_of = |one: &Happening| {
        history
            .iter()
            .filter(|other| span(other).0 <= one.submitted && one.submitted <= span(other).1)
            .count()
    };
    history.iter().map(at_start_of).max().unwrap()
}

#[test]
fn a_world_lives_to_the_end_of_its_workload() {
    let lived = live_random(1);
    assert_eq!(lived.ending, Ending::Finished);
    assert_eq!(lived.history.len(), workload().len());
    assert_eq!(lived.failures, []);
    assert_eq!(lived.reads.len(), 1);
}

#[test]
fn the_same_choices_make_the_same_world() {
    for seed in 0..50 {
        let lived = live_random(seed);
        let mut replay = Replay::new(lived.choices.clone());
        let again = live(&workload(), Flaw::None, &mut replay);
        assert_eq!(again.digest, lived.digest);
        assert_eq!(again.choices, lived.choices);
    }
}

#[test]
fn other_choices_make_another_world() {
    assert_ne!(live_random(1).digest, live_random(2).digest);
}

#[test]
fn fifo_runs_one_operation_after_another() {
    let lived = live(&workload(), Flaw::None, &mut Fifo);
    assert_eq!(overlap(&lived.history), 1);
}

#[test]
fn operations_overlap_up_to_the_limit() {
    let most = (0..50)
        .map(|seed| overlap(&live_random(seed).history))
        .max();
    assert_eq!(most, Some(3));
}

#[test]
fn reopening_waits_for_all_before_and_holds_up_all_behind() {
    for seed in 0..50 {
        let history = live_random(seed).history;
        let at = workload()
            .iter()
            .position(|operation| *operation == Operation::Reopen)
            .unwrap();
        let (from, to) = (history[at].submitted, history[at].completed.unwrap().0);
        assert!(
            history[..at]
                .iter()
                .all(|other| other.completed.unwrap().0 < from)
        );
        assert!(history[at + 1..].iter().all(|other| other.submitted > to));
    }
}

#[test]
fn a_kill_ends_what_is_in_flight_and_leaves_what_was_carried_out() {
    let read = Operation::Read {
        offset: 0,
        len_bytes: 4096,
    };
    let operations = [write(0), write(3), Operation::Kill, read];
    let mut ended = 0;
    for seed in 0..50 {
        let mut chooser = Random::new(Prng::from_seed(seed));
        let lived = live(&operations, Flaw::None, &mut chooser);
        assert_eq!((lived.ending, lived.failures), (Ending::Finished, vec![]));
        let [first, second, kill, after] = &lived.history[..] else {
            panic!("four operations, four happenings");
        };
        assert!(matches!(kill.completed, Some((at, Answer::Done)) if at < after.submitted));
        let mut image = PageImage::zeroed(1 << 20);
        for happening in [first, second] {
            let (answered, answer) = happening.completed.unwrap();
            assert!(answered < kill.submitted);
            ended += u64::from(answer == Answer::Failed);
        }
        for entry in &lived.recordings[0].entries {
            if !matches!(entry.op, RecordedOp::Write { .. }) {
                continue;
            }
            let carried_out = entry.completed.is_some_and(|(at, _)| at < kill.submitted);
            assert_eq!(carried_out, entry.changes_content());
            for (index, sector) in entry.op.sectors().enumerate().filter(|_| carried_out) {
                if let SectorContent::Bytes(bytes, _) = entry.op.content(index) {
                    image.write(sector * 512, bytes);
                }
            }
        }
        assert_eq!(lived.reads[0].data, image.read_vec(0, 4096));
    }
    assert!(ended > 10, "{ended} operations were ended by a kill");
}

#[test]
fn an_image_that_is_being_opened_can_be_killed_too() {
    let operations = [Operation::Kill, Operation::Kill, write(0)];
    let mut ended = 0;
    for seed in 0..50 {
        let mut chooser = Random::new(Prng::from_seed(seed));
        let lived = live(&operations, Flaw::None, &mut chooser);
        assert_eq!((lived.ending, lived.failures), (Ending::Finished, vec![]));
        let answer = |at: usize| lived.history[at].completed.map(|(_, answer)| answer);
        ended += u64::from(answer(0) == Some(Answer::Failed));
        assert_eq!([answer(1), answer(2)], [Some(Answer::Done); 2]);
    }
    assert!(ended > 10, "{ended} openings were ended by a kill");
}

#[test]
fn growing_overlaps_with_writes_where_it_may_and_never_with_growing() {
    let grow = |mib: u64| Operation::Grow {
        virtual_bytes: mib << 20,
        preallocation: Preallocation::Off,
    };
    let operations = [
        write(0),
        write(1),
        grow(2),
        write(2),
        write(3),
        grow(3),
        grow(4),
    ];
    // How many others are in flight at some moment of an operation, and how many of these grow the disk.
    let beside = |history: &[Happening], at: usize| {
        let one = &history[at];
        let mut others = history.to_vec();
        others.remove(at);
        others.retain(|other| {
            other.submitted < one.completed.unwrap().0 && one.submitted < other.completed.unwrap().0
        });
        let grows = |it: &&Happening| matches!(it.operation, Operation::Grow { .. });
        (others.len(), others.iter().filter(grows).count())
    };
    for (management, overlaps) in [(Management::Alone, false), (Management::Overlapping, true)] {
        let mut met = 0;
        for seed in 0..50 {
            let mut chooser = Random::new(Prng::from_seed(seed));
            let lived = live_managed(&operations, Flaw::None, management, &mut chooser);
            assert_eq!((lived.ending, lived.failures), (Ending::Finished, vec![]));
            for at in [2, 5, 6] {
                let (others, grows) = beside(&lived.history, at);
                assert_eq!(grows, 0);
                met += others;
            }
        }
        assert_eq!(met > 0, overlaps, "{management:?}: {met}");
    }
}

#[test]
fn a_task_that_nothing_wakes_is_noticed() {
    let lived = live(&workload(), Flaw::FlushHangs, &mut Fifo);
    assert!(
        matches!(lived.ending, Ending::Stuck { .. }),
        "{:?}",
        lived.ending
    );
}

#[test]
fn a_task_that_never_ends_is_noticed() {
    let lived = live(&workload(), Flaw::WritesForEver, &mut Fifo);
    assert_eq!(lived.ending, Ending::Endless);
}

#[test]
fn a_panic_ends_the_world_and_keeps_what_happened_before() {
    let lived = live(&workload(), Flaw::FlushPanics, &mut Fifo);
    let Ending::Panicked(panic) = lived.ending else {
        panic!("{:?}", lived.ending);
    };
    assert_eq!(panic.message, "the flush is flawed");
    assert_eq!(lived.recordings[0].entries.len(), 7, "one read, six writes");
}
