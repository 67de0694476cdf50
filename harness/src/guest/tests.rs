use blkdebug::disks::Disk;
use engine::chain::Overlay;
use engine::image::Unmap;
use engine::manage::{Amend, RawPromise};
use engine::preallocation::Preallocation;
use proptest::prelude::*;

use super::*;
use crate::oracle::structure::StoredBitmap;
use crate::workload::ops::{
    BitmapChange, BitmapOperation, ChainOperation, DataFileOperation, SnapshotChange,
    SnapshotOperation, bitmap_name,
};
use crate::workload::stamp::{SectorValue, Writer, stamp, stamp_range};

const SECTORS: u64 = 6;

fn write(first: u64, count: u64) -> Operation {
    Operation::Write {
        offset: first * 512,
        len_bytes: count * 512,
    }
}

fn zero(first: u64, count: u64) -> Operation {
    Operation::WriteZeroes {
        offset: first * 512,
        len_bytes: count * 512,
        unmap: Unmap::Keep,
    }
}

fn discard(first: u64, count: u64) -> Operation {
    Operation::Discard {
        offset: first * 512,
        len_bytes: count * 512,
    }
}

/// A history with one operation after the other, each submitted and done at consecutive moments:
/// operation `n` is submitted at `2n` and done at `2n + 1`.
fn serial(operations: &[Operation]) -> Vec<Happening> {
    (0u32..)
        .zip(operations)
        .map(|(id, operation)| Happening {
            id: OperationId(id),
            operation: *operation,
            submitted: Moment(u64::from(id) * 2),
            completed: Some((Moment(u64::from(id) * 2 + 1), Answer::Done)),
        })
        .collect()
}

fn own(id: u32, sector: u64) -> SectorValue {
    SectorValue::Stamp {
        writer: Writer::Operation(OperationId(id)),
        sector,
    }
}

fn ledger(history: &[Happening]) -> Ledger {
    Ledger::new(Content::zeroes(), SECTORS * 512, history)
}

fn level(ledger: &Ledger, cut: u64, sector: u64, found: SectorValue) -> Option<Level> {
    let expectation = ledger.expect(Moment(cut));
    let mut checker = expectation.checker();
    checker
        .check(sector, found)
        .map(|violation| violation.level)
}

#[test]
fn an_unflushed_write_may_be_there_or_not() {
    let ledger = ledger(&serial(&[write(0, 2)]));
    assert_eq!(level(&ledger, 1, 0, own(0, 0)), None);
    assert_eq!(level(&ledger, 1, 0, SectorValue::Zero), None);
    assert_eq!(
        level(&ledger, 1, 2, own(0, 2)),
        Some(Level::StaleForeign),
        "it was never written there"
    );
}

#[test]
fn a_flushed_write_must_be_there() {
    let ledger = ledger(&serial(&[write(0, 2), Operation::Flush]));
    assert_eq!(
        level(&ledger, 2, 0, SectorValue::Zero),
        None,
        "not flushed yet"
    );
    assert_eq!(level(&ledger, 3, 0, SectorValue::Zero), Some(Level::Lost));
    assert_eq!(level(&ledger, 3, 0, own(0, 0)), None);
}

#[test]
fn a_write_in_flight_at_the_submission_of_a_flush_is_not_covered() {
    let mut history = serial(&[write(0, 1), Operation::Flush]);
    history[0].completed = Some((Moment(5), Answer::Done));
    history[1].completed = Some((Moment(6), Answer::Done));
    let ledger = ledger(&history);
    assert_eq!(level(&ledger, 9, 0, SectorValue::Zero), None);
}

#[test]
fn a_failed_flush_settles_nothing() {
    let mut history = serial(&[write(0, 1), Operation::Flush]);
    history[1].completed = Some((Moment(3), Answer::Failed));
    assert_eq!(level(&ledger(&history), 9, 0, SectorValue::Zero), None);
}

#[test]
fn growing_and_reopening_settle_what_came_before() {
    for settling in [
        Operation::Reopen,
        Operation::Grow {
            virtual_bytes: 8192,
            preallocation: Preallocation::Off,
        },
    ] {
        let ledger = ledger(&serial(&[write(0, 1), settling]));
        assert_eq!(level(&ledger, 3, 0, SectorValue::Zero), Some(Level::Lost));
        assert_eq!(level(&ledger, 2, 0, SectorValue::Zero), None);
    }
}

#[test]
fn a_failed_write_may_have_happened_and_replaces_nothing() {
    let mut history = serial(&[write(0, 1), write(0, 1), Operation::Flush]);
    history[1].completed = Some((Moment(3), Answer::Failed));
    let ledger = ledger(&history);
    assert_eq!(level(&ledger, 5, 0, own(0, 0)), None);
    assert_eq!(level(&ledger, 5, 0, own(1, 0)), None);
    assert_eq!(level(&ledger, 5, 0, SectorValue::Zero), Some(Level::Lost));
}

#[test]
fn a_durable_discard_still_leaves_both_answers() {
    let ledger = ledger(&serial(&[
        write(0, 1),
        Operation::Flush,
        discard(0, 1),
        Operation::Flush,
    ]));
    assert_eq!(level(&ledger, 7, 0, own(0, 0)), None);
    assert_eq!(level(&ledger, 7, 0, SectorValue::Zero), None);
}

#[test]
fn each_miss_has_its_level() {
    let mut initial = Content::zeroes();
    initial.stamp(0..2, Writer::Image);
    initial.stamp(2..3, Writer::Backing);
    let base = |writer, sector| SectorValue::Stamp { writer, sector };
    let history = serial(&[write(1, 1), write(1, 2), Operation::Flush]);
    let ledger = Ledger::new(initial, SECTORS * 512, &history);
    for (sector, found, expected) in [
        (0, SectorValue::Zero, Level::Zeros),
        (1, SectorValue::Zero, Level::Zeros),
        (1, base(Writer::Image, 1), Level::Lost),
        (1, own(0, 1), Level::Lost),
        (1, own(1, 2), Level::StaleOwn),
        (1, base(Writer::Image, 0), Level::StaleOwn),
        (1, base(Writer::Backing, 1), Level::StaleForeign),
        (2, base(Writer::Backing, 2), Level::Lost),
        (1, own(7, 1), Level::StaleForeign),
        (1, SectorValue::Other(1), Level::StaleForeign),
        (3, own(1, 2), Level::StaleOwn),
    ] {
        assert_eq!(
            level(&ledger, 5, sector, found),
            Some(expected),
            "{found} at {sector}"
        );
    }
}

#[test]
fn what_is_not_submitted_yet_is_from_the_future() {
    let ledger = ledger(&serial(&[write(0, 1), write(0, 1)]));
    assert!(ledger.expect(Moment(1)).is_from_the_future(own(1, 0)));
    assert!(!ledger.expect(Moment(2)).is_from_the_future(own(1, 0)));
}

#[test]
fn the_disk_has_its_old_size_or_one_that_was_asked_for() {
    let grow = |virtual_bytes| Operation::Grow {
        virtual_bytes,
        preallocation: Preallocation::Off,
    };
    let mut history = serial(&[grow(8192), grow(16384)]);
    history[1].completed = None;
    let ledger = ledger(&history);
    assert_eq!(ledger.expect(Moment(0)).virtual_sizes(), [3072, 8192]);
    assert_eq!(ledger.expect(Moment(1)).virtual_sizes(), [8192]);
    assert_eq!(ledger.expect(Moment(2)).virtual_sizes(), [8192, 16384]);
    assert_ne!(
        ledger.expect(Moment(0)).key(),
        ledger.expect(Moment(1)).key()
    );
}

#[test]
fn the_key_moves_with_the_floor_only() {
    let ledger = ledger(&serial(&[
        write(0, 1),
        Operation::Flush,
        write(0, 1),
        Operation::Flush,
    ]));
    let key = |cut| ledger.expect(Moment(cut)).key();
    assert_eq!(key(0), key(2));
    assert_ne!(key(2), key(3));
    assert_eq!(key(3), key(6));
    assert_ne!(key(6), key(7));
}

#[test]
fn a_read_sees_what_was_done_and_what_was_under_way() {
    let read = Operation::Read {
        offset: 0,
        len_bytes: 512,
    };
    let mut history = serial(&[write(0, 1), write(0, 1), read]);
    // The second write is in flight during the read, and no flush was ever asked for.
    history[1].completed = Some((Moment(7), Answer::Done));
    let ledger = ledger(&history);
    let writer = |id| Writer::Operation(OperationId(id));
    for id in [0, 1] {
        assert_eq!(
            ledger.check_read(&history[2], &stamp(writer(id), 0), None),
            []
        );
    }
    let wrong = ledger.check_read(&history[2], &[0; 512], None);
    assert_eq!(wrong[0].level, Level::Lost);
    assert_eq!(wrong[0].legal, [own(0, 0), own(1, 0)]);
    let shifted = ledger.check_read(&history[2], &stamp_range(writer(0), 512, 512), None);
    assert_eq!(shifted[0].level, Level::StaleForeign);
}

#[test]
fn what_a_flush_forgot_is_anything_in_place_and_old_or_new_once_it_is_looked_for_anew() {
    let read = |offset| Operation::Read {
        offset,
        len_bytes: 512,
    };
    let mut history = serial(&[
        write(0, 1),
        Operation::Flush,
        write(1, 1),
        Operation::Flush,
        read(0),
        read(512),
    ]);
    history[3].completed = Some((Moment(7), Answer::Failed));
    let ledger = ledger(&history);
    let forgot = |in_place| {
        Some(Forgotten {
            at: history[3].submitted,
            in_place,
            cluster_sectors: 1,
        })
    };
    let is_right = |read: usize, in_place| {
        ledger
            .check_read(&history[read], &[7; 512], forgot(in_place))
            .is_empty()
    };
    assert!(is_right(5, true), "it was written since the last flush");
    assert!(!is_right(5, false), "the image was opened again");
    assert!(!is_right(4, true), "it was durable");
}

#[test]
fn a_disk_that_grows_may_lose_the_cluster_that_its_end_cuts_and_no_other() {
    let read = |sector: u64| Operation::Read {
        offset: sector * 512,
        len_bytes: 512,
    };
    let end = SECTORS - 1;
    let operations = [
        Operation::Grow {
            virtual_bytes: (SECTORS + 8) * 512,
            preallocation: Preallocation::Off,
        },
        read(end),
        read(end - 4),
    ];
    let mut history = serial(&operations);
    let failed = history[0].completed.unwrap().0;
    history[0].completed = Some((failed, Answer::Failed));
    let virtual_bytes = SECTORS * 512;
    let mut initial = Content::zeroes();
    initial.stamp(0..SECTORS, Writer::Image);
    let ledger = Ledger::new(initial, virtual_bytes, &history);
    let is_right = |read: usize, at| {
        let forgotten = Some(Forgotten {
            at,
            in_place: true,
            cluster_sectors: 4,
        });
        let wrong = ledger.check_read(&history[read], &[7; 512], forgotten);
        wrong.is_empty()
    };
    assert!(is_right(1, failed), "that cluster was written anew");
    assert!(!is_right(2, failed), "this one was not");
    assert!(!is_right(1, history[0].submitted), "it was lost before");
}

/// The rule of the module's documentation, word by word, for one sector.
fn naive_legal(
    history: &[Happening],
    initial: &Content,
    sector: u64,
    cut: Moment,
) -> Vec<SectorValue> {
    let touches = |operation: &Operation| match *operation {
        Operation::Write { offset, len_bytes }
        | Operation::WriteCompressed { offset, len_bytes } => {
            Some((offset, len_bytes, Effect::Stamp))
        }
        Operation::WriteBlank { offset, len_bytes }
        | Operation::WriteZeroes {
            offset, len_bytes, ..
        } => Some((offset, len_bytes, Effect::Zero)),
        Operation::Discard { offset, len_bytes } => Some((offset, len_bytes, Effect::PerhapsZero)),
        Operation::Empty => Some((0, SECTORS * 512, Effect::Beneath)),
        Operation::Read { .. }
        | Operation::Flush
        | Operation::DropIdle
        | Operation::Grow { .. }
        | Operation::Shrink { .. }
        | Operation::Amend(_)
        | Operation::Rename { .. }
        | Operation::DataFile(_)
        | Operation::Snapshot(_)
        | Operation::Bitmap(_)
        | Operation::KeySlot(_)
        | Operation::Chain(_)
        | Operation::Reopen
        | Operation::Kill => None,
    };
    let effect = |happening: &Happening| {
        touches(&happening.operation)
            .filter(|(offset, len, _)| (*offset..offset + len).contains(&(sector * 512)))
            .map(|(_, _, effect)| effect)
    };
    let done_by = |happening: &Happening, cut: Moment| match happening.completed {
        Some((at, Answer::Done)) if at <= cut => Some(at),
        _ => None,
    };
    let durable = |happening: &Happening| {
        done_by(happening, cut).is_some_and(|done| {
            history.iter().any(|flush| {
                matches!(
                    flush.operation,
                    Operation::Flush | Operation::Reopen | Operation::Grow { .. }
                ) && done_by(flush, cut).is_some()
                    && done < flush.submitted
            })
        })
    };
    let replaced_after = |ended: Option<Moment>| {
        history.iter().any(|other| {
            matches!(effect(other), Some(Effect::Stamp | Effect::Zero))
                && durable(other)
                && ended.is_none_or(|ended| ended < other.submitted)
        })
    };
    let mut values = Vec::new();
    if !replaced_after(None) {
        values.push(initial.value(sector));
    }
    for happening in history
        .iter()
        .filter(|happening| happening.submitted <= cut)
    {
        let Some(effect) = effect(happening) else {
            continue;
        };
        let ended = happening
            .completed
            .map(|(at, _)| at)
            .filter(|at| *at <= cut);
        if ended.is_some() && replaced_after(ended) {
            continue;
        }
        values.push(match effect {
            Effect::Stamp => own(happening.id.0, sector),
            Effect::Zero | Effect::PerhapsZero | Effect::Beneath => SectorValue::Zero,
            Effect::Restore(_) => unreachable!("these histories have no snapshots"),
            Effect::Shows(_) | Effect::MayShow(_) => {
                unreachable!("these histories have no files beneath")
            }
        });
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn operation() -> impl Strategy<Value = Operation> {
    (0u64..SECTORS, 1u64..4, 0u32..10).prop_map(|(first, count, kind)| match kind {
        0..4 => write(first, count),
        4 => zero(first, count),
        5 => discard(first, count),
        6 => Operation::Reopen,
        7 => Operation::Grow {
            virtual_bytes: (SECTORS + first + count) * 512,
            preallocation: Preallocation::Off,
        },
        _ => Operation::Flush,
    })
}

/// Operations that overlap at random: each gets a random start and a random end after it.
fn history() -> impl Strategy<Value = Vec<Happening>> {
    let item = (operation(), any::<u16>(), any::<u16>(), 0u32..8);
    prop::collection::vec(item, 1..14).prop_map(|items| {
        let mut times: Vec<(u16, usize, bool)> = Vec::new();
        for (index, (_, one, other, _)) in items.iter().enumerate() {
            times.push((*one.min(other), index, false));
            times.push((*one.max(other), index, true));
        }
        times.sort_unstable_by_key(|(time, index, end)| (*time, *end, *index));
        let moment = |index: usize, end: bool| {
            let place = times
                .iter()
                .position(|(_, i, e)| (*i, *e) == (index, end))
                .unwrap();
            Moment(u64::try_from(place).unwrap())
        };
        let mut history: Vec<Happening> = items
            .iter()
            .enumerate()
            .map(|(index, (operation, _, _, fate))| Happening {
                id: OperationId(0),
                operation: *operation,
                submitted: moment(index, false),
                completed: match fate {
                    0 => None,
                    1 => Some((moment(index, true), Answer::Failed)),
                    _ => Some((moment(index, true), Answer::Done)),
                },
            })
            .collect();
        history.sort_by_key(|happening| happening.submitted);
        for (id, happening) in (0u32..).zip(&mut history) {
            happening.id = OperationId(id);
        }
        history
    })
}

proptest! {
    #[test]
    fn the_expectation_is_the_rule(history in history()) {
        let mut initial = Content::zeroes();
        initial.stamp(2..5, Writer::Image);
        let ledger = Ledger::new(initial.clone(), SECTORS * 512, &history);
        let operations = u32::try_from(history.len()).unwrap();
        for cut in (0..=u64::from(operations) * 2).map(Moment) {
            let expectation = ledger.expect(cut);
            let mut checker = expectation.checker();
            let mut zeroes = expectation.checker();
            for sector in 0..SECTORS + 4 {
                let legal = naive_legal(&history, &initial, sector, cut);
                prop_assert_eq!(expectation.legal(sector), legal.clone());
                let values = (0..operations)
                    .map(|id| own(id, sector))
                    .chain([SectorValue::Zero, SectorValue::Other(3), own(0, sector + 1)])
                    .chain([Writer::Image, Writer::Backing].map(|writer| SectorValue::Stamp { writer, sector }));
                for value in values {
                    prop_assert_eq!(checker.check(sector, value).is_none(), legal.contains(&value));
                }
            }
            let first_bad = (0..SECTORS + 4)
                .find(|sector| !naive_legal(&history, &initial, *sector, cut).contains(&SectorValue::Zero));
            let found = zeroes.check_zeroes(0..SECTORS + 4);
            prop_assert_eq!(found.map(|violation| violation.sector), first_bad);
        }
    }

    #[test]
    fn equal_keys_mean_that_the_later_cut_allows_all_that_the_earlier_allows(history in history()) {
        let ledger = ledger(&history);
        let cuts = u64::try_from(history.len()).unwrap() * 2;
        for cut in 1..=cuts {
            let (before, after) = (ledger.expect(Moment(cut - 1)), ledger.expect(Moment(cut)));
            if before.key() != after.key() {
                continue;
            }
            for sector in 0..SECTORS + 4 {
                let later = after.legal(sector);
                prop_assert!(before.legal(sector).iter().all(|value| later.contains(value)));
            }
            prop_assert!(before.virtual_sizes().iter().all(|size| after.virtual_sizes().contains(size)));
        }
    }
}

#[test]
fn an_emptied_image_shows_what_lies_beneath_and_for_good() {
    let mut initial = Content::zeroes();
    initial.stamp(0..2, Writer::Image);
    let mut beneath = Content::zeroes();
    beneath.stamp(0..4, Writer::Backing);
    let history = [Happening {
        id: OperationId(0),
        operation: Operation::Empty,
        submitted: Moment(5),
        completed: Some((Moment(9), Answer::Done)),
    }];
    let ledger = Ledger::from_start(
        initial.clone(),
        beneath.clone(),
        8 * 512,
        Vec::new(),
        &history,
    );
    let during = ledger.expect(Moment(7));
    for sector in 0..4 {
        assert!(during.legal(sector).contains(&initial.value(sector)));
        assert!(during.legal(sector).contains(&beneath.value(sector)));
    }
    let after = ledger.expect(Moment(9));
    for sector in 0..4 {
        assert_eq!(after.legal(sector), [beneath.value(sector)]);
    }
    assert_eq!(after.legal(5), [SectorValue::Zero]);
}

#[test]
fn the_header_says_what_it_said_before_a_change_or_after_each_step_of_it() {
    let old = Facts {
        version: 3,
        refcount_order: 6,
        lazy_refcounts: true,
        backing_name_bytes: 7,
        backing_name: 77,
        external_data: false,
        data_file_name_bytes: 0,
        data_file_name: 0,
        raw_data: false,
        key_slots: KeySlots::default(),
    };
    let amend = Amend {
        version: Some(2),
        refcount_order: Some(4),
        lazy_refcounts: None,
    };
    let history = [Happening {
        id: OperationId(0),
        operation: Operation::Amend(amend),
        submitted: Moment(5),
        completed: Some((Moment(9), Answer::Done)),
    }];
    let ledger = Ledger::new(Content::zeroes(), 512, &history).starting(old, &history);
    let between = Facts {
        refcount_order: 4,
        ..old
    };
    let new = Facts {
        version: 2,
        lazy_refcounts: false,
        ..between
    };
    assert_eq!(ledger.expect(Moment(4)).facts(), [old]);
    let during = ledger.expect(Moment(8));
    assert_eq!(during.facts().len(), 3);
    assert!(
        [old, between, new]
            .iter()
            .all(|it| during.facts().contains(it))
    );
    let after = ledger.expect(Moment(9));
    assert_eq!(after.facts(), [new]);
    assert_ne!(after.key(), during.key(), "what was legal is legal no more");
}

#[test]
fn the_header_says_of_the_data_file_what_it_said_before_or_all_that_is_asked_for() {
    let old = Facts {
        version: 3,
        refcount_order: 4,
        lazy_refcounts: false,
        backing_name_bytes: 0,
        backing_name: 0,
        external_data: true,
        data_file_name_bytes: 4,
        data_file_name: 44,
        raw_data: true,
        key_slots: KeySlots::default(),
    };
    let change = DataFileOperation {
        name_bytes: Some(0),
        raw: RawPromise::Withdraw,
    };
    let to_version_2 = Amend {
        version: Some(2),
        lazy_refcounts: Some(true),
        ..Amend::default()
    };
    let happening = |id, operation, submitted, answer| Happening {
        id: OperationId(id),
        operation,
        submitted: Moment(submitted),
        completed: Some((Moment(submitted + 4), answer)),
    };
    let history = [
        happening(0, Operation::Amend(to_version_2), 1, Answer::Failed),
        happening(1, Operation::DataFile(change), 10, Answer::Done),
    ];
    let ledger = Ledger::new(Content::zeroes(), 512, &history).starting(old, &history);
    let new = Facts {
        data_file_name_bytes: 0,
        data_file_name: 0,
        raw_data: false,
        ..old
    };
    let version_2 = "version 2 has no data files, so that nothing of that change is made";
    assert_eq!(ledger.expect(Moment(9)).facts(), [old], "{version_2}");
    let mut during = ledger.expect(Moment(12)).facts().to_vec();
    during.sort_unstable();
    let mut both = [old, new];
    both.sort_unstable();
    assert_eq!(during, both);
    assert_eq!(ledger.expect(Moment(14)).facts(), [new]);
}

/// The operations with these moments of submission and answer, all done.
fn overlapping(operations: &[(Operation, u64, u64)]) -> Vec<Happening> {
    (0..)
        .zip(operations)
        .map(|(id, (operation, from, to))| Happening {
            id: OperationId(id),
            operation: *operation,
            submitted: Moment(*from),
            completed: Some((Moment(*to), Answer::Done)),
        })
        .collect()
}

fn take(snapshot: u32) -> Operation {
    Operation::Snapshot(SnapshotOperation {
        snapshot,
        change: SnapshotChange::Create,
    })
}

#[test]
fn a_snapshot_holds_what_was_done_before_and_perhaps_what_was_under_way() {
    let history = overlapping(&[
        (write(0, 1), 1, 2),
        (write(1, 1), 3, 6),
        (take(0), 4, 8),
        (write(2, 1), 5, 10),
        (write(0, 1), 9, 11),
    ]);
    let ledger = ledger(&history);
    let expectation = ledger.expect(Moment(20));
    let lists = expectation.snapshot_lists();
    assert_eq!(lists.len(), 1);
    let snapshot = expectation.snapshot(&lists[0][0]);
    assert_eq!(snapshot.legal(0), [own(0, 0)]);
    for (id, sector) in [(1, 1), (3, 2)] {
        let legal = snapshot.legal(sector);
        assert!(legal.contains(&own(id, sector)), "{legal:?}");
        assert_eq!(legal.len(), 2, "before, or after: {legal:?}");
    }
    // What was answered before the snapshot was asked for is as durable as the snapshot.
    assert_eq!(ledger.expect(Moment(8)).legal(0), [own(0, 0)]);
    assert_eq!(ledger.expect(Moment(8)).legal(1).len(), 2);
}

/// What is wrong with a bitmap that was enabled and clean at the start, on a disk of `disk_sectors`, if it
/// calls these granules of 8 sectors dirty.
fn check_dirty(
    history: &[Happening],
    cut: u64,
    disk_sectors: u64,
    dirty: &[u64],
) -> Option<&'static str> {
    let bitmap = |dirty: &[u64]| StoredBitmap {
        name: bitmap_name(0).into_bytes(),
        granule_sectors: 8,
        in_use: false,
        enabled: true,
        known: true,
        record_at: 0,
        dirty: dirty.iter().map(|first| *first..first + 8).collect(),
    };
    let ledger = Ledger::new(Content::zeroes(), 64 * 512, history).with_bitmaps(&[bitmap(&[])]);
    let expectation = ledger.expect(Moment(cut));
    let value = |sector: u64| expectation.legal(sector)[0];
    let found = expectation.check_bitmaps(&[bitmap(dirty)], disk_sectors, &value);
    found.map(|violation| violation.kind)
}

/// Sectors 9 to 17 are marked, which are a part of two granules.
#[test]
fn a_marked_range_is_dirty_as_a_whole_or_not_at_all_until_that_is_answered() {
    let range = Extent {
        offset: 9 * 512,
        len_bytes: 8 * 512,
    };
    let change = BitmapChange::Mark { range };
    let mark = Operation::Bitmap(BitmapOperation { number: 0, change });
    let history = overlapping(&[(mark, 1, 3)]);
    let check = |cut, dirty: &[u64]| check_dirty(&history, cut, 64, dirty);
    for cut in [2, 3] {
        assert_eq!(check(cut, &[8, 16]), None);
        assert_eq!(check(cut, &[8]), Some("bitmap-forgotten"));
        assert_eq!(check(cut, &[8, 16, 24]), Some("bitmap-spurious"));
    }
    assert_eq!(check(2, &[]), None);
    assert_eq!(check(3, &[]), Some("bitmap-forgotten"));
}

/// What a smaller disk gave up is no longer dirty when it grows again; what is marked after that is.
#[test]
fn a_marked_range_is_cut_with_the_disk() {
    let mark = |first: u64| {
        let range = Extent {
            offset: first * 512,
            len_bytes: 8 * 512,
        };
        let change = BitmapChange::Mark { range };
        Operation::Bitmap(BitmapOperation { number: 0, change })
    };
    let resized = |sectors: u64| Operation::Grow {
        virtual_bytes: sectors * 512,
        preallocation: Preallocation::Off,
    };
    let history = overlapping(&[
        (mark(48), 1, 2),
        (
            Operation::Shrink {
                virtual_bytes: 32 * 512,
            },
            3,
            4,
        ),
        (resized(64), 5, 6),
        (mark(40), 7, 8),
    ]);
    let check = |dirty: &[u64]| check_dirty(&history, 9, 64, dirty);
    assert_eq!(check(&[40]), None);
    assert_eq!(check(&[48]), Some("bitmap-forgotten"));
    assert_eq!(check(&[]), Some("bitmap-forgotten"));
}

/// A bitmap that is enabled from the start, is cleared while one write is under way, and must note the next.
#[test]
fn a_bitmap_may_note_what_was_under_way_while_it_was_cleared() {
    let change = BitmapChange::Clear;
    let clear = Operation::Bitmap(BitmapOperation { number: 0, change });
    let history = overlapping(&[
        (write(0, 1), 1, 2),
        (write(8, 1), 3, 6),
        (clear, 4, 7),
        (write(16, 1), 8, 9),
        (Operation::Reopen, 10, 11),
    ]);
    let check = |dirty: &[u64]| check_dirty(&history, 20, 64, dirty);
    assert_eq!(check(&[16]), None);
    assert_eq!(check(&[8, 16]), None);
    assert_eq!(check(&[]), Some("bitmap-uncovered"));
    assert_eq!(check(&[8]), Some("bitmap-uncovered"));
    assert_eq!(check(&[0, 16]), Some("bitmap-spurious"));
}

/// A disk of two sectors over a file of three, into which it is committed.
fn committed(answer: Option<u64>) -> Ledger {
    let mut content = Content::zeroes();
    content.stamp(0..3, Writer::Backing);
    let file = File {
        disk: Disk::Backing,
        content: content.clone(),
        virtual_bytes: 3 * 512,
        over: None,
    };
    let happening = |id, operation, submitted, completed: Option<u64>| Happening {
        id: OperationId(id),
        operation,
        submitted: Moment(submitted),
        completed: completed.map(|at| (Moment(at), Answer::Done)),
    };
    let commit = Operation::Chain(ChainOperation::Commit {
        overlay: Overlay::Keep,
    });
    let mut history = vec![
        happening(0, write(0, 1), 1, Some(2)),
        happening(1, commit, 3, answer),
    ];
    history.extend(answer.map(|_| happening(2, write(1, 1), 20, Some(21))));
    Ledger::over_files(content, 2 * 512, 512, vec![file], &history)
}

fn legal_in_file(ledger: &Ledger, sector: u64, cut: u64) -> Vec<SectorValue> {
    let expectation = ledger.expect(Moment(cut));
    let file = expectation.of_file(Disk::Backing).unwrap();
    file.legal(sector)
}

#[test]
fn a_file_that_is_committed_into_holds_what_it_held_or_what_the_disk_showed() {
    let below = |sector| SectorValue::Stamp {
        writer: Writer::Backing,
        sector,
    };
    let ledger = committed(Some(10));
    assert_eq!(legal_in_file(&ledger, 0, 2), [below(0)]);
    assert_eq!(legal_in_file(&ledger, 0, 5), [own(0, 0), below(0)]);
    // What the disk shows later does not matter, nor does what lies behind its end.
    for cut in [10, 21] {
        assert_eq!(legal_in_file(&ledger, 0, cut), [own(0, 0)]);
        assert_eq!(legal_in_file(&ledger, 1, cut), [below(1)]);
        assert_eq!(legal_in_file(&ledger, 2, cut), [below(2)]);
    }
    let unanswered = committed(None);
    assert_eq!(legal_in_file(&unanswered, 0, 21), [own(0, 0), below(0)]);
    let keys = [5, 10].map(|cut| ledger.expect(Moment(cut)).key());
    assert_ne!(keys[0], keys[1]);
    assert!(ledger.promises().any(|moment| moment == Moment(10)));
}

#[test]
fn a_file_that_lies_over_one_that_was_committed_into_may_show_anything() {
    let file = |disk, over| File {
        disk,
        content: Content::zeroes(),
        virtual_bytes: 1024,
        over,
    };
    let files = vec![
        file(Disk::Backing, Some(Disk::Base)),
        file(Disk::Base, None),
    ];
    let operation = |at: u64, operation| Happening {
        id: OperationId(u32::try_from(at).unwrap()),
        operation,
        submitted: Moment(at),
        completed: Some((Moment(at + 1), Answer::Done)),
    };
    let history = [
        operation(
            1,
            Operation::Chain(ChainOperation::Stream {
                base: Some(Disk::Base),
            }),
        ),
        operation(
            5,
            Operation::Chain(ChainOperation::Commit {
                overlay: Overlay::Empty,
            }),
        ),
    ];
    let ledger = Ledger::over_files(Content::zeroes(), 1024, 512, files, &history);
    let stale = [7; 512];
    for (disk, cut, legal) in [
        (Disk::Backing, 4, false),
        (Disk::Backing, 6, true),
        (Disk::Base, 6, false),
    ] {
        let expectation = ledger.expect(Moment(cut));
        let file = expectation.of_file(disk).unwrap();
        let miss = file.checker().check_bytes(0, Some(&stale));
        assert_eq!(miss.is_none(), legal, "{disk:?} at {cut}");
    }
}

/// A disk of four sectors in clusters of two, over a file that another takes the place of at moments 20 to
/// `answer`. `before` was done one after the other.
fn repointed(before: &[Operation], answer: Option<u64>) -> Ledger {
    let file = |disk, writer| {
        let mut content = Content::zeroes();
        content.stamp(0..3, writer);
        File {
            disk,
            content,
            virtual_bytes: 3 * 512,
            over: None,
        }
    };
    let files = vec![
        file(Disk::Backing, Writer::Backing),
        file(Disk::Other, Writer::Other),
    ];
    let happening = |id: usize, operation, submitted, completed: Option<u64>| Happening {
        id: OperationId(u32::try_from(id).unwrap()),
        operation,
        submitted: Moment(submitted),
        completed: completed.map(|at| (Moment(at), Answer::Done)),
    };
    let mut history = Vec::new();
    for (id, at) in (0..before.len()).zip((1..).step_by(2)) {
        history.push(happening(id, before[id], at, Some(at + 1)));
    }
    let onto = Some(Disk::Other);
    let repoint = Operation::Chain(ChainOperation::Repoint { onto });
    history.push(happening(before.len(), repoint, 20, answer));
    let flush = happening(before.len() + 1, Operation::Flush, 40, Some(41));
    history.extend(answer.map(|_| flush));
    let mut initial = files[0].content.clone();
    initial.stamp(0..1, Writer::Image);
    Ledger::over_files(initial, 4 * 512, 1024, files, &history)
}

const EMPTYING: Operation = Operation::Chain(ChainOperation::Commit {
    overlay: Overlay::Empty,
});

fn by(writer: Writer, sector: u64) -> SectorValue {
    SectorValue::Stamp { writer, sector }
}

#[test]
fn an_emptied_image_shows_the_file_it_is_repointed_to() {
    let image = by(Writer::Image, 0);
    let ledger = repointed(&[EMPTYING], Some(30));
    assert_eq!(ledger.expect(Moment(19)).legal(0), [image]);
    assert_eq!(
        ledger.expect(Moment(25)).legal(0),
        [image, by(Writer::Other, 0)]
    );
    for cut in [30, 41] {
        for sector in 0..3 {
            let shown = by(Writer::Other, sector);
            assert_eq!(ledger.expect(Moment(cut)).legal(sector), [shown]);
        }
        // Behind the file's end are zeroes.
        assert_eq!(ledger.expect(Moment(cut)).legal(3), [SectorValue::Zero]);
    }
    assert!(ledger.promises().any(|moment| moment == Moment(30)));
    let keys = [25, 30].map(|cut| ledger.expect(Moment(cut)).key());
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn a_repointing_comes_to_pass_everywhere_or_nowhere() {
    let ledger = repointed(&[EMPTYING], None);
    let expectation = ledger.expect(Moment(25));
    let Some(Alternatives::Repoint([before, after])) = expectation.alternatives() else {
        panic!("the repointing is open");
    };
    assert_eq!(before.legal(0), [by(Writer::Image, 0)]);
    assert_eq!(before.legal(2), [by(Writer::Backing, 2)]);
    for sector in 0..3 {
        assert_eq!(after.legal(sector), [by(Writer::Other, sector)]);
    }
    // The files beneath stay what they are.
    let file = expectation.of_file(Disk::Backing).unwrap();
    assert!(file.alternatives().is_none());
    let answered = repointed(&[EMPTYING], Some(30));
    assert!(answered.expect(Moment(30)).alternatives().is_none());
}

#[test]
fn what_the_image_holds_stays_over_another_file() {
    // What it held at the start.
    let ledger = repointed(&[], Some(30));
    assert_eq!(ledger.expect(Moment(41)).legal(0), [by(Writer::Image, 0)]);
    // The rest of the cluster may have been copied, and what else it holds is not known.
    for sector in [1, 2] {
        let either = [by(Writer::Backing, sector), by(Writer::Other, sector)];
        assert_eq!(ledger.expect(Moment(41)).legal(sector), either);
    }
    // What was written to it since it was emptied, once that is durable; its cluster is not known.
    let ledger = repointed(&[EMPTYING, write(0, 1)], Some(30));
    assert!(
        ledger
            .expect(Moment(30))
            .legal(0)
            .contains(&by(Writer::Other, 0))
    );
    assert_eq!(ledger.expect(Moment(41)).legal(0), [own(1, 0)]);
    let either = [by(Writer::Backing, 1), by(Writer::Other, 1)];
    assert_eq!(ledger.expect(Moment(41)).legal(1), either);
    assert_eq!(ledger.expect(Moment(41)).legal(2), [by(Writer::Other, 2)]);
}

#[test]
fn what_is_not_held_durably_shows_the_last_of_several_files() {
    let onto = None;
    let away = Operation::Chain(ChainOperation::Repoint { onto });
    let ledger = repointed(&[EMPTYING, away, write(0, 1)], None);
    let unheld = [SectorValue::Zero, by(Writer::Other, 0)];
    let expectation = ledger.expect(Moment(25));
    for value in [own(2, 0), unheld[0], unheld[1]] {
        assert!(expectation.legal(0).contains(&value), "{value:?}");
    }
    // Durable, the write stays whatever lies beneath.
    let ledger = repointed(&[EMPTYING, away, write(0, 1)], Some(30));
    assert_eq!(ledger.expect(Moment(41)).legal(0), [own(2, 0)]);
}

#[test]
fn zeroes_and_copies_are_held_or_not_over_another_file() {
    let onto = Some(Disk::Other);
    let rebase = Operation::Chain(ChainOperation::Rebase { onto });
    let ledger = repointed(&[EMPTYING, write(0, 1), zero(0, 1)], Some(30));
    let either = [SectorValue::Zero, by(Writer::Other, 0)];
    for value in either {
        assert!(ledger.expect(Moment(41)).legal(0).contains(&value));
    }
    let ledger = repointed(&[EMPTYING, rebase], Some(30));
    let either = [by(Writer::Backing, 2), by(Writer::Other, 2)];
    assert_eq!(ledger.expect(Moment(41)).legal(2), either);
}

#[test]
fn a_history_after_a_kill_knows_what_came_before_it() {
    let write_to = |id, at| Happening {
        id: OperationId(id),
        operation: write(0, 1),
        submitted: Moment(at),
        completed: Some((Moment(at + 1), Answer::Done)),
    };
    let mut start = Content::zeroes();
    start.stamp(1..2, Writer::Image);
    let first = [write_to(0, 1)];
    let before = Ledger::new(start.clone(), SECTORS * 512, &first);
    let found = Content::from_values([(0, SectorValue::of(Some(&[7; 512])))]);
    let second = [write_to(2, 11)];
    let ledger = Ledger::new(found, SECTORS * 512, &second);
    let ledger = ledger.following(&before, OperationId(2));
    assert_eq!((before.process(), ledger.process()), (0, 1));
    assert_eq!(ledger.next_id(), OperationId(3));
    let expectation = ledger.expect(Moment(20));
    let level = |sector, value| {
        let wrong = expectation.checker().check(sector, value);
        wrong.map(|violation| violation.level)
    };
    let stamped = |id, sector| SectorValue::Stamp {
        writer: Writer::Operation(OperationId(id)),
        sector,
    };
    assert_eq!(level(0, stamped(2, 0)), None);
    // What the killed process wrote, and what was there before it, has been replaced.
    assert_eq!(level(0, stamped(0, 0)), Some(Level::Lost));
    assert_eq!(level(0, SectorValue::Zero), Some(Level::Lost));
    assert_eq!(level(1, start.value(1)), Some(Level::Lost));
    assert_eq!(level(1, stamped(0, 0)), Some(Level::StaleForeign));
    assert!(!expectation.is_from_the_future(stamped(0, 0)));
    assert_ne!(expectation.key(), before.expect(Moment(20)).key());
}
