//! The crash model, rule by rule, and the explorer against the model taken literally.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::disks::{Disk, Disks};
use blkdebug::mask::{SectorMask, Shape};
use blkdebug::record::{Clock, Recording, RequestId, Tick};
use blkdebug::rule::{Fault, Rule, Rules, Tear};
use blkdebug::volatile::{Answering, VolatileDisk};
use engine::device::{Cause, ContentHash, Device, Event, Op, OpKind, PageImage, Request};
use proptest::prelude::*;

use super::classes::{Classes, Task};
use super::durability::{Frontier, Standing, volatile_at_end};
use super::explore::{Budget, Explorer};
use super::footprint::Footprint;
use super::reference;
use super::state::{CrashState, Fate, Length, Level, Mismatch, Part, Survivors};

/// A disk of eight sectors that is told what to do and when.
struct Tape(Rc<VolatileDisk>);

impl Tape {
    fn new() -> Self {
        Self::with_rules(Rules::default())
    }

    fn with_rules(rules: Rules) -> Self {
        Self::on(Clock::default(), rules)
    }

    fn on(clock: Clock, rules: Rules) -> Self {
        let base = PageImage::from_bytes(&[0xBB; 8 * 512]);
        let disk = VolatileDisk::new(base, clock, Answering::OnCommand);
        Self(Rc::new(disk.with_rules(rules)))
    }

    fn submit(&self, op: Op) -> RequestId {
        let event = match op.kind() {
            OpKind::Write => Event::WriteAio,
            OpKind::SetLen => Event::L2Update,
            OpKind::Read | OpKind::WriteZeroes | OpKind::Discard | OpKind::Flush => Event::None,
        };
        let next = RequestId(self.0.recording().entries.len());
        drop(self.0.submit(Request { event, op }));
        next
    }

    fn complete(&self, id: RequestId) {
        self.0.complete(id);
    }

    fn done(&self, op: Op) -> RequestId {
        let id = self.submit(op);
        self.complete(id);
        id
    }

    fn recording(&self) -> Recording {
        self.0.recording()
    }

    /// How each request that may be lost stands now.
    fn volatile(&self) -> Vec<(usize, Standing)> {
        let recording = self.recording();
        let frontier = Frontier::at(&recording, recording.end());
        frontier
            .volatile()
            .map(|tail| (tail.request.0, tail.standing))
            .collect()
    }

    /// The state at the end with these parts.
    fn state(&self, parts: Vec<Part>) -> CrashState {
        let recording = self.recording();
        CrashState::build(&recording, recording.end(), &Survivors::from_parts(parts)).unwrap()
    }

    /// The first byte of each sector that the state has.
    fn bytes(&self, parts: Vec<Part>) -> Vec<u8> {
        let image = self.state(parts).disks.into_image();
        (0..image.len() / 512)
            .map(|sector| image.read_vec(sector * 512, 1)[0])
            .collect()
    }
}

fn write(sector: u64, fill: u8, count: usize) -> Op {
    Op::Write {
        offset: sector * 512,
        data: vec![fill; count * 512],
        fua: false,
    }
}

fn write_fua(sector: u64, fill: u8, count: usize) -> Op {
    Op::Write {
        offset: sector * 512,
        data: vec![fill; count * 512],
        fua: true,
    }
}

fn whole(request: RequestId) -> Part {
    Part {
        request,
        content: Fate::Whole,
        length: Length::Kept,
    }
}

fn without_length(request: RequestId) -> Part {
    Part {
        request,
        content: Fate::Whole,
        length: Length::Lost,
    }
}

fn only_length(request: RequestId) -> Part {
    Part {
        request,
        content: Fate::Lost,
        length: Length::Kept,
    }
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted() {
    let tape = Tape::new();
    tape.done(write(0, 1, 1));
    tape.done(Op::Flush);
    assert!(tape.volatile().is_empty());
    assert_eq!(tape.bytes(vec![])[0], 1);
}

#[test]
fn a_write_in_flight_when_the_flush_was_submitted_is_not_covered() {
    let tape = Tape::new();
    let late = tape.submit(write(0, 1, 1));
    let flush = tape.submit(Op::Flush);
    tape.complete(late);
    tape.complete(flush);
    assert_eq!(tape.volatile(), [(late.0, Standing::Completed)]);
    assert_eq!(tape.bytes(vec![])[0], 0xBB);
}

#[test]
fn a_flush_covers_nothing_before_it_is_acknowledged_nor_if_it_fails_or_lies() {
    let tape = Tape::new();
    let id = tape.done(write(0, 1, 1));
    tape.submit(Op::Flush);
    assert_eq!(tape.volatile(), [(id.0, Standing::Completed)]);
    for fault in [Fault::Fail(Cause::IO), Fault::Drop] {
        let rule = Rule {
            kind: Some(OpKind::Flush),
            ..Rule::new(fault)
        };
        let tape = Tape::with_rules(Rules::new(vec![rule], vec![]));
        let id = tape.done(write(0, 1, 1));
        tape.done(Op::Flush);
        assert_eq!(tape.volatile(), [(id.0, Standing::Completed)]);
        tape.done(Op::Flush);
        assert!(tape.volatile().is_empty());
    }
}

#[test]
fn fua_is_durable_at_its_completion_and_drains_nothing_else() {
    let tape = Tape::new();
    let plain = tape.done(write(0, 1, 1));
    let forced = tape.submit(write_fua(1, 2, 1));
    assert_eq!(
        tape.volatile(),
        [
            (plain.0, Standing::Completed),
            (forced.0, Standing::InFlight)
        ]
    );
    tape.complete(forced);
    assert_eq!(tape.volatile(), [(plain.0, Standing::Completed)]);
    assert_eq!(tape.bytes(vec![])[..2], [0xBB, 2]);
}

#[test]
fn a_dropped_write_never_happens_and_a_torn_one_in_part() {
    let hit_by = |fault| Tape::with_rules(Rules::new(vec![Rule::new(fault)], vec![]));
    let tape = hit_by(Fault::Drop);
    tape.done(write(0, 1, 1));
    assert!(tape.volatile().is_empty());
    tape.done(Op::Flush);
    assert_eq!(tape.bytes(vec![])[0], 0xBB);
    let tape = hit_by(Fault::Tear(Tear::Shape(Shape::OnlyLast)));
    let id = tape.done(write(0, 1, 2));
    assert_eq!(tape.bytes(vec![whole(id)])[..2], [0xBB, 1]);
    tape.done(Op::Flush);
    assert_eq!(tape.bytes(vec![])[..2], [0xBB, 1]);
}

#[test]
fn of_one_sector_the_last_survivor_wins() {
    let tape = Tape::new();
    let first = tape.done(write(0, 1, 2));
    let second = tape.done(write(1, 2, 2));
    assert_eq!(
        tape.bytes(vec![whole(first), whole(second)])[..3],
        [1, 2, 2]
    );
    assert_eq!(tape.bytes(vec![whole(first)])[..3], [1, 1, 0xBB]);
    assert_eq!(tape.bytes(vec![whole(second)])[..3], [0xBB, 2, 2]);
}

#[test]
fn completion_makes_the_order_and_what_is_in_flight_comes_last() {
    let tape = Tape::new();
    let slow = tape.submit(write(0, 1, 1));
    let fast = tape.submit(write(0, 2, 1));
    assert_eq!(tape.bytes(vec![whole(slow), whole(fast)])[0], 2);
    tape.complete(fast);
    assert_eq!(tape.bytes(vec![whole(slow), whole(fast)])[0], 1);
    tape.complete(slow);
    assert_eq!(tape.bytes(vec![whole(slow), whole(fast)])[0], 1);
}

#[test]
fn a_volatile_write_before_a_durable_one_of_the_same_sector_does_not_show() {
    let tape = Tape::new();
    let early = tape.done(write(0, 1, 2));
    tape.done(write_fua(0, 2, 1));
    assert_eq!(tape.bytes(vec![whole(early)])[..2], [2, 1]);
    assert_eq!(tape.bytes(vec![])[..2], [2, 0xBB]);
    tape.done(Op::Flush);
    assert_eq!(tape.bytes(vec![])[..2], [2, 1]);
}

#[test]
fn an_extension_is_lost_with_its_data_or_survives_without_them() {
    let tape = Tape::new();
    let id = tape.done(write(7, 5, 2));
    assert_eq!(tape.bytes(vec![whole(id)])[7..], [5, 5]);
    assert_eq!(tape.bytes(vec![without_length(id)])[7..], [5]);
    assert_eq!(tape.bytes(vec![only_length(id)])[7..], [0xBB, 0]);
    assert_eq!(tape.bytes(vec![])[7..], [0xBB]);
}

#[test]
fn a_later_extension_brings_back_the_data_below_it() {
    let tape = Tape::new();
    let first = tape.done(write(8, 5, 1));
    let second = tape.done(write(9, 6, 1));
    let parts = vec![without_length(first), only_length(second)];
    assert_eq!(tape.bytes(parts)[8..], [5, 0]);
}

#[test]
fn a_durable_write_is_within_the_length() {
    let tape = Tape::new();
    let lost = tape.done(write(8, 5, 2));
    tape.done(write_fua(8, 6, 1));
    assert_eq!(tape.bytes(vec![])[8..], [6]);
    assert_eq!(tape.bytes(vec![only_length(lost)])[8..], [6, 0]);
}

#[test]
fn a_change_of_length_is_volatile_too() {
    let tape = Tape::new();
    let shrink = tape.done(Op::SetLen { len_bytes: 2 * 512 });
    let grow = tape.done(Op::SetLen { len_bytes: 4 * 512 });
    assert_eq!(tape.bytes(vec![]).len(), 8);
    assert_eq!(tape.bytes(vec![whole(shrink)]), [0xBB; 2]);
    assert_eq!(tape.bytes(vec![whole(grow)]), [0xBB; 4]);
    let both = tape.bytes(vec![whole(shrink), whole(grow)]);
    assert_eq!(both, [0xBB, 0xBB, 0, 0]);
    tape.done(Op::Flush);
    assert_eq!(tape.bytes(vec![]), [0xBB, 0xBB, 0, 0]);
}

#[test]
fn a_discard_leaves_old_zero_or_garbage_until_it_is_flushed() {
    for op in [
        Op::Discard {
            offset: 0,
            len_bytes: 1536,
        },
        Op::WriteZeroes {
            offset: 0,
            len_bytes: 1536,
            unmap: true,
        },
    ] {
        let tape = Tape::new();
        let id = tape.done(op);
        let mask = |from, to| SectorMask::from_fn(3, |sector| (from..=to).contains(&sector));
        let part = Part {
            request: id,
            content: Fate::Scattered {
                asked: mask(0, 0),
                garbage: mask(0, 1),
            },
            length: Length::Untouched,
        };
        let image = tape.state(vec![part]).disks.into_image();
        assert_eq!(image.read_vec(0, 512), [0; 512]);
        let garbage = image.read_vec(512, 512);
        assert!(garbage != [0; 512] && garbage != [0xBB; 512]);
        assert_eq!(image.read_vec(1024, 512), [0xBB; 512]);
        tape.done(Op::Flush);
        assert_eq!(tape.bytes(vec![])[..4], [0, 0, 0, 0xBB]);
    }
}

#[test]
fn zeroes_that_keep_the_space_are_a_write() {
    let tape = Tape::new();
    let id = tape.done(Op::WriteZeroes {
        offset: 0,
        len_bytes: 512,
        unmap: false,
    });
    let recording = tape.recording();
    let scattered = Part {
        request: id,
        content: Fate::Scattered {
            asked: SectorMask::none(1),
            garbage: SectorMask::from_fn(1, |_| true),
        },
        length: Length::Untouched,
    };
    let survivors = Survivors::from_parts(vec![scattered]);
    let judged = |contract| survivors.destroy_by(&recording, recording.end(), contract);
    assert_eq!(
        judged(Contract::EpochTorn),
        Err(Mismatch::NotAdvice {
            request: id,
            contract: Contract::EpochTorn
        })
    );
    assert_eq!(judged(Contract::EpochTornGarbage), Ok(()));
    assert_eq!(tape.bytes(vec![whole(id)])[..2], [0, 0xBB]);
}

#[test]
fn survivors_that_the_cut_cannot_have_are_refused() {
    let tape = Tape::new();
    let id = tape.done(write(0, 1, 1));
    tape.done(Op::Flush);
    let recording = tape.recording();
    let survivors = Survivors::from_parts(vec![whole(id)]);
    let built = CrashState::build(&recording, recording.end(), &survivors);
    assert_eq!(built.map(drop).unwrap_err(), Mismatch::NotVolatile(id));
    assert!(CrashState::build(&recording, Tick(2), &survivors).is_ok());
}

#[test]
fn survivors_say_what_became_of_each_request() {
    let tape = Tape::new();
    let first = tape.done(write(0, 1, 1));
    tape.done(write(8, 1, 2));
    let recording = tape.recording();
    let frontier = Frontier::at(&recording, recording.end());
    let survivors = Survivors::from_parts(vec![whole(first)])
        .fit(&frontier)
        .unwrap();
    assert_eq!(
        survivors.describe(&recording),
        "write_aio write #0 (host offset 0x0): survived\n\
         write_aio write #1 (host offset 0x1000): lost, its length lost\n"
    );
}

/// What a script does next. Places and counts are in sectors.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u8, usize),
    WriteFua(u64, u8, usize),
    Zero(u64, u64),
    Unmap(u64, u64),
    Discard(u64, u64),
    SetLen(u64),
    Flush,
    /// Completes one of those in flight.
    Complete(usize),
}

impl Step {
    fn op(self) -> Option<Op> {
        let zeroes = |sector, count, unmap| Op::WriteZeroes {
            offset: sector * 512,
            len_bytes: count * 512,
            unmap,
        };
        Some(match self {
            Self::Write(sector, fill, count) => write(sector, fill, count),
            Self::WriteFua(sector, fill, count) => write_fua(sector, fill, count),
            Self::Zero(sector, count) => zeroes(sector, count, false),
            Self::Unmap(sector, count) => zeroes(sector, count, true),
            Self::Discard(sector, count) => Op::Discard {
                offset: sector * 512,
                len_bytes: count * 512,
            },
            Self::SetLen(sectors) => Op::SetLen {
                len_bytes: sectors * 512,
            },
            Self::Flush => Op::Flush,
            Self::Complete(_) => return None,
        })
    }
}

fn step() -> impl Strategy<Value = Step> {
    let place = || 0_u64..12;
    prop_oneof![
        3 => (place(), 1_u8..9, 1_usize..3).prop_map(|(s, fill, n)| Step::Write(s, fill, n)),
        1 => (place(), 1_u8..9, 1_usize..3).prop_map(|(s, fill, n)| Step::WriteFua(s, fill, n)),
        1 => (place(), 1_u64..3).prop_map(|(s, n)| Step::Zero(s, n)),
        1 => (place(), 1_u64..3).prop_map(|(s, n)| Step::Unmap(s, n)),
        1 => (place(), 1_u64..3).prop_map(|(s, n)| Step::Discard(s, n)),
        1 => place().prop_map(Step::SetLen),
        2 => Just(Step::Flush),
        8 => (0_usize..4).prop_map(Step::Complete),
    ]
}

/// Scripts with few enough changes to take the model literally.
fn script() -> impl Strategy<Value = Script> {
    let steps = prop::collection::vec(step(), 1..16);
    (steps, prop::option::weighted(0.2, 0_u64..4)).prop_map(|(steps, torn)| Script { steps, torn })
}

#[derive(Clone, Debug)]
struct Script {
    steps: Vec<Step>,
    /// Which change the disk tears on its own.
    torn: Option<u64>,
}

fn run(script: &Script) -> Recording {
    run_some(script, 4)
}

/// As much of a script as can be taken literally under this contract: garbage triples what a sector may hold, and on
/// a disk that lies everything stays open.
fn run_for(script: &Script, contract: Contract) -> Recording {
    run_some(script, if contract.destroys() { 2 } else { 4 })
}

fn run_some(script: &Script, mut changes_left: u32) -> Recording {
    let tear = |skip| Rule {
        skip,
        ..Rule::new(Fault::Tear(Tear::Shape(Shape::OnlyLast)))
    };
    let tape = Tape::with_rules(Rules::new(
        script.torn.into_iter().map(tear).collect(),
        vec![],
    ));
    for step in &script.steps {
        follow(&tape, *step, &mut changes_left);
    }
    tape.recording()
}

/// Takes a step, unless it is one change too many.
fn follow(tape: &Tape, step: Step, changes_left: &mut u32) {
    match (step.op(), step) {
        (None, Step::Complete(which)) => {
            if let Some(pending) = tape.0.in_flight().get(which) {
                tape.complete(pending.id);
            }
        }
        (Some(Op::Flush), _) => {
            tape.submit(Op::Flush);
        }
        (Some(op), _) if *changes_left > 0 => {
            *changes_left -= 1;
            tape.submit(op);
        }
        _ => {}
    }
}

/// What happens on two disks that lose power together.
fn double() -> impl Strategy<Value = Vec<(Disk, Step)>> {
    let disk = prop_oneof![Just(Disk::Image), Just(Disk::Backing)];
    prop::collection::vec((disk, step()), 1..16)
}

fn run_both(steps: &[(Disk, Step)]) -> Recording {
    let clock = Clock::default();
    let mut tapes = Disks::one((Tape::on(clock.clone(), Rules::default()), 2));
    tapes.put(Disk::Backing, (Tape::on(clock, Rules::default()), 2));
    for (disk, step) in steps {
        let (tape, changes_left) = tapes.get_mut(*disk).unwrap();
        follow(tape, *step, changes_left);
    }
    Recording::join(&tapes.map(|_, (tape, _)| tape.recording()))
}

/// What of a recording happened on one disk; requests keep their numbers, on which garbage depends.
fn on_disk(recording: &Recording, disk: Disk) -> Recording {
    let entries = recording.entries.iter();
    Recording {
        bases: Disks::one(recording.bases.get(disk).unwrap().clone()),
        entries: entries
            .filter(|entry| entry.disk == disk)
            .cloned()
            .collect(),
    }
}

/// What each of two disks may hold after a power loss, in every combination.
fn both_states(recording: &Recording, cut: Tick, contract: Contract) -> BTreeSet<[ContentHash; 2]> {
    let allowed = |disk| reference::states(&on_disk(recording, disk), cut, contract);
    let (images, backings) = (allowed(Disk::Image), allowed(Disk::Backing));
    let pairs = |image: &ContentHash| {
        let image = *image;
        backings.iter().map(move |backing| [image, *backing])
    };
    images.iter().flat_map(pairs).collect()
}

fn both_hashes(state: &CrashState) -> [ContentHash; 2] {
    [Disk::Image, Disk::Backing].map(|disk| state.disks.get(disk).unwrap().content_hash())
}

/// Every choice of these fates and of lengths at a cut, of which there must not be many.
fn every_survivors(frontier: &Frontier<'_>, contents: &[Fate]) -> Vec<Survivors> {
    let mut all = vec![Vec::new()];
    for tail in frontier.volatile() {
        let lengths: &[Length] = if tail.has_length {
            &[Length::Lost, Length::Kept]
        } else {
            &[Length::Untouched]
        };
        let parts = contents.iter().flat_map(|content| {
            lengths.iter().map(|length| Part {
                request: tail.request,
                content: content.clone(),
                length: *length,
            })
        });
        let parts: Vec<Part> = parts.collect();
        all = all
            .iter()
            .flat_map(|before: &Vec<Part>| {
                let longer = |part: &Part| [before.clone(), vec![part.clone()]].concat();
                parts.iter().map(longer)
            })
            .collect();
    }
    let trust = frontier.trust();
    all.into_iter()
        .map(|parts| Survivors::from_parts(parts).with_trust(trust))
        .collect()
}

/// A draw function that anyone can repeat.
fn draws(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |bound| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    }
}

/// Expectations that change at each promise.
fn key(promises: &[Tick], cut: Tick) -> u128 {
    promises
        .iter()
        .filter(|promise| **promise <= cut)
        .map(|promise| u128::from(promise.0))
        .sum()
}

const THOROUGH: Budget = Budget {
    states: u64::MAX,
    every_parts: 30,
    samples: 10,
    torn_masks: 3,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Nothing is visited that the contract does not allow.
    #[test]
    fn every_explored_state_is_one_that_the_contract_allows(
        script in script(), every_parts in 0_u32..6, seed: u64,
    ) {
        let budget = Budget { every_parts, ..THOROUGH };
        for contract in Contract::ALL {
            let recording = run_for(&script, contract);
            let mut known = BTreeMap::new();
            let explorer = Explorer::new(&recording, contract, budget, &[recording.end()]);
            for state in explorer.with_draw(draws(seed)) {
                let allowed = known
                    .entry(state.cut)
                    .or_insert_with(|| reference::states(&recording, state.cut, contract));
                prop_assert!(
                    allowed.contains(&state.hash),
                    "{contract} at {:?} by {}:\n{}",
                    state.cut, state.level.name(), state.survivors.describe(&recording)
                );
                let again = CrashState::build(&recording, state.cut, &state.survivors).unwrap();
                prop_assert_eq!(again.hash, state.hash);
                prop_assert_eq!(state.survivors.destroy_by(&recording, state.cut, contract), Ok(()));
            }
        }
    }

    /// Whatever may be left at any moment was visited, and no later than then under the same
    /// expectation.
    #[test]
    fn every_allowed_state_is_explored_as_early_as_it_is_expected_to_be_legal(
        script in script(), promises in prop::collection::vec((1_u64..20).prop_map(Tick), 0..3),
    ) {
        let recording = run(&script);
        for contract in [Contract::Perfect, Contract::Prefix, Contract::Epoch] {
            let explorer = Explorer::new(&recording, contract, THOROUGH, &promises)
                .with_expectation(|cut| key(&promises, cut));
            let explored: Vec<(ContentHash, Tick)> =
                explorer.map(|state| (state.hash, state.cut)).collect();
            for cut in (0..=recording.end().0).map(Tick) {
                let now = key(&promises, cut);
                let seen: BTreeSet<ContentHash> = explored
                    .iter()
                    .filter(|(_, at)| *at <= cut && key(&promises, *at) == now)
                    .map(|(hash, _)| *hash)
                    .collect();
                let allowed = reference::states(&recording, cut, contract);
                prop_assert!(
                    allowed.is_subset(&seen),
                    "{contract} at {cut:?}: {} of {} seen",
                    allowed.intersection(&seen).count(), allowed.len()
                );
            }
        }
    }

    /// Where everything is read, each state is a class of its own, and none is left out.
    #[test]
    fn every_allowed_state_is_of_a_class_as_early_as_it_is_expected_to_be_legal(
        script in script(), promises in prop::collection::vec((1_u64..20).prop_map(Tick), 0..3),
    ) {
        let recording = run(&script);
        for contract in [Contract::Epoch, Contract::EpochTorn] {
        let mut classes = Classes::new(&recording, contract, &promises, Tick(0), u64::MAX, |cut| key(&promises, cut));
        let mut judged: Vec<(ContentHash, Tick)> = Vec::new();
        while let Some(task) = classes.next() {
            let Task::Judge(state) = task else {
                panic!("a class of one state has no other to be looked at");
            };
            judged.push((state.hash, state.cut));
            classes.learn(None);
        }
        for cut in (0..=recording.end().0).map(Tick) {
            let now = key(&promises, cut);
            let is_told = |at: &Tick| *at <= cut && key(&promises, *at) == now;
            let told = judged.iter().filter(|(_, at)| is_told(at));
            let seen: BTreeSet<ContentHash> = told.map(|(hash, _)| *hash).collect();
            let allowed = reference::states(&recording, cut, contract);
            prop_assert!(
                allowed.is_subset(&seen),
                "{contract} at {cut:?}: {} of {} seen",
                allowed.intersection(&seen).count(), allowed.len()
            );
            if judged.iter().any(|(_, at)| *at == cut) {
                let here = judged.iter().filter(|(_, at)| *at == cut);
                prop_assert!(here.into_iter().all(|(hash, _)| allowed.contains(hash)));
            }
        }
        }
    }

    /// A judge that reads one sector, and another only where the first says so, has seen one of each sort of states
    /// that it can tell apart; and whatever else is of a class looks to it like the state that stands for it.
    #[test]
    fn a_state_stands_for_all_that_its_judge_cannot_tell_from_it(
        script in script(), first in 0_u64..8, second in 0_u64..8,
    ) {
        let recording = run(&script);
        let look = |image: &PageImage| {
            let mut read = vec![first];
            if image.stored_hash(first).is_multiple_of(2) {
                read.push(second);
            }
            let seen: Vec<u128> = read.iter().map(|sector| image.stored_hash(*sector)).collect();
            (read, (image.len(), seen))
        };
        let mut classes = Classes::new(&recording, Contract::Epoch, &[], Tick(0), u64::MAX, |_| 0);
        let mut judged = BTreeSet::new();
        while let Some(task) = classes.next() {
            match task {
                Task::Judge(state) => {
                    let (read, sort) = look(state.disks.image());
                    judged.insert(sort);
                    let sectors = read.iter().map(|sector| *sector..sector + 1);
                    classes.learn(Some(Footprint::of(sectors.collect())));
                }
                Task::Audit(state) => {
                    let (_, sort) = look(state.disks.image());
                    prop_assert!(judged.contains(&sort));
                }
            }
        }
        for cut in (0..=recording.end().0).map(Tick) {
            let frontier = Frontier::at(&recording, cut);
            for parts in every_survivors(&frontier, &[Fate::Lost, Fate::Whole]) {
                let state = CrashState::build(&recording, cut, &parts).unwrap();
                let (_, sort) = look(state.disks.image());
                prop_assert!(judged.contains(&sort), "{}", parts.describe(&recording));
            }
        }
    }

    /// One cut goes through both disks, and each is left as it may be for itself.
    #[test]
    fn each_of_two_disks_is_left_as_the_contract_allows(
        steps in double(), every_parts in 0_u32..6, seed: u64,
    ) {
        let recording = run_both(&steps);
        let budget = Budget { every_parts, ..THOROUGH };
        for contract in Contract::ALL.into_iter().filter(|contract| !contract.destroys()) {
            let mut known = BTreeMap::new();
            let explorer = Explorer::new(&recording, contract, budget, &[recording.end()]);
            for state in explorer.with_draw(draws(seed)) {
                let allowed = known
                    .entry(state.cut)
                    .or_insert_with(|| both_states(&recording, state.cut, contract));
                prop_assert!(
                    allowed.contains(&both_hashes(&state)),
                    "{contract} at {:?} by {}:\n{}",
                    state.cut, state.level.name(), state.survivors.describe(&recording)
                );
                let again = CrashState::build(&recording, state.cut, &state.survivors).unwrap();
                prop_assert_eq!(again.hash, state.hash);
            }
        }
    }

    /// Whatever one disk may be left as is visited beside whatever the other may be left as.
    #[test]
    fn every_combination_of_two_disks_is_explored(steps in double()) {
        let recording = run_both(&steps);
        for contract in [Contract::Perfect, Contract::Epoch] {
            let explored: Vec<([ContentHash; 2], Tick)> =
                Explorer::new(&recording, contract, THOROUGH, &[])
                    .map(|state| (both_hashes(&state), state.cut))
                    .collect();
            for cut in (0..=recording.end().0).map(Tick) {
                let so_far = explored.iter().filter(|(_, at)| *at <= cut);
                let seen: BTreeSet<[ContentHash; 2]> = so_far.map(|(pair, _)| *pair).collect();
                let allowed = both_states(&recording, cut, contract);
                prop_assert!(
                    allowed.is_subset(&seen),
                    "{contract} at {cut:?}: {} of {} seen",
                    allowed.intersection(&seen).count(), allowed.len()
                );
            }
        }
    }

    /// However small the budget, what is left where nothing volatile survives, or everything, is
    /// visited for each moment: before and after each flush, above all.
    #[test]
    fn nothing_and_everything_are_explored_at_every_moment(script in script()) {
        let recording = run(&script);
        let budget = Budget { every_parts: 0, samples: 0, torn_masks: 0, ..THOROUGH };
        let explored: BTreeSet<ContentHash> =
            Explorer::new(&recording, Contract::Epoch, budget, &[])
                .filter(|state| state.level <= Level::Single)
                .map(|state| state.hash)
                .collect();
        for cut in (0..=recording.end().0).map(Tick) {
            let frontier = Frontier::at(&recording, cut);
            for survivors in [Survivors::nothing(&frontier), Survivors::everything(&frontier)] {
                let state = CrashState::build(&recording, cut, &survivors).unwrap();
                prop_assert!(explored.contains(&state.hash), "{:?}: {:?}", cut, survivors);
            }
        }
    }

    /// Each contract allows what the weaker one allows.
    #[test]
    fn contracts_grow(script in script()) {
        for pair in Contract::ALL.windows(2) {
            let recording = run_for(&script, pair[1]);
            for cut in (0..=recording.end().0).map(Tick) {
                let weaker = reference::states(&recording, cut, pair[0]);
                let stronger = reference::states(&recording, cut, pair[1]);
                prop_assert!(weaker.is_subset(&stronger), "{} within {}", pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn the_same_recording_is_explored_the_same_way(script in script(), seed: u64) {
        let recording = run(&script);
        let explore = || -> Vec<(Tick, Survivors, Level)> {
            let budget = Budget { every_parts: 2, ..THOROUGH };
            Explorer::new(&recording, Contract::EpochTorn, budget, &[])
                .with_draw(draws(seed))
                .map(|state| (state.cut, state.survivors, state.level))
                .collect()
        };
        prop_assert_eq!(explore(), explore());
    }

    /// A frontier that moved is the frontier that was made on the spot.
    #[test]
    fn a_frontier_that_moved_stands_where_it_would_have_started(script in script()) {
        let recording = run(&script);
        let mut moving = Frontier::start(&recording);
        for cut in (0..=recording.end().0).map(Tick) {
            moving.advance(cut);
            let fresh = Frontier::at(&recording, cut);
            prop_assert_eq!(moving.settled(), fresh.settled());
            let stands = |frontier: &Frontier<'_>| -> Vec<(RequestId, Standing, bool)> {
                frontier.tail().iter().map(|tail| (tail.request, tail.standing, tail.has_length)).collect()
            };
            prop_assert_eq!(stands(&moving), stands(&fresh));
        }
    }
}

#[test]
fn a_flush_of_one_disk_says_nothing_about_the_other() {
    let steps = [
        (Disk::Image, Step::Write(0, 1, 1)),
        (Disk::Image, Step::Complete(0)),
        (Disk::Backing, Step::Write(8, 2, 1)),
        (Disk::Backing, Step::Complete(0)),
        (Disk::Image, Step::Flush),
        (Disk::Image, Step::Complete(0)),
    ];
    let recording = run_both(&steps);
    let frontier = Frontier::at(&recording, recording.end());
    let volatile: Vec<(Disk, bool)> = frontier
        .volatile()
        .map(|tail| (tail.disk, tail.has_length))
        .collect();
    assert_eq!(volatile, [(Disk::Backing, true)]);
    let nothing = Survivors::nothing(&frontier);
    let state = CrashState::build(&recording, recording.end(), &nothing).unwrap();
    assert_eq!(state.disks.image().read_vec(0, 1), [1]);
    assert_eq!(state.disks.get(Disk::Backing).unwrap().len(), 8 * 512);
    assert_eq!(
        nothing.describe(&recording),
        "write_aio write #0 on backing (host offset 0x1000): lost, its length lost\n"
    );
}

/// Whether the cheap levels visit, at this cut or earlier, the state in which of the volatile requests
/// only these parts survive.
fn is_cheap(tape: &Tape, cut: Tick, contract: Contract, parts: Vec<Part>) -> bool {
    let recording = tape.recording();
    let wanted = CrashState::build(&recording, cut, &Survivors::from_parts(parts)).unwrap();
    let budget = Budget {
        every_parts: 0,
        ..Budget::default()
    };
    Explorer::new(&recording, contract, budget, &[])
        .any(|state| state.hash == wanted.hash && state.cut <= cut)
}

#[test]
fn what_a_flush_settled_is_combined_with_what_was_in_flight() {
    let tape = Tape::new();
    tape.done(write(0, 1, 1));
    tape.done(write(1, 1, 1));
    let flush = tape.submit(Op::Flush);
    let late: Vec<RequestId> = (2..7)
        .map(|sector| tape.submit(write(sector, 2, 1)))
        .collect();
    tape.complete(flush);
    let cut = tape.recording().end();
    tape.done(write(7, 3, 1));
    assert!(is_cheap(&tape, cut, Contract::Epoch, vec![whole(late[4])]));
}

#[test]
fn an_ordered_cache_can_be_overtaken_by_fua() {
    let tape = Tape::new();
    tape.done(write(0, 1, 1));
    tape.done(write_fua(1, 2, 1));
    let cut = tape.recording().end();
    tape.done(Op::Flush);
    assert!(is_cheap(&tape, cut, Contract::Prefix, vec![]));
    assert!(!is_cheap(&tape, cut, Contract::Perfect, vec![]));
}

#[test]
fn everything_up_to_a_request_without_another_is_one_of_the_levels() {
    let tape = Tape::new();
    for sector in 0..8 {
        tape.done(write(sector, 1, 1));
    }
    let recording = tape.recording();
    let budget = Budget {
        every_parts: 0,
        ..Budget::default()
    };
    // At the last cut alone: at an earlier one this is everything but one.
    let explorer = Explorer::new(&recording, Contract::Epoch, budget, &[recording.end()])
        .with_expectation(|cut| u128::from(cut.0))
        .filter(|state| state.cut == recording.end());
    let kept = |state: &CrashState| -> Vec<bool> {
        let first_bytes = state.disks.image().read_vec(0, 8 * 512);
        first_bytes
            .chunks(512)
            .map(|sector| sector[0] == 1)
            .collect()
    };
    let seen: BTreeSet<Vec<bool>> = explorer.map(|state| kept(&state)).collect();
    for count in 2..8 {
        for lost in 0..count {
            let wanted: Vec<bool> = (0..8).map(|at| at < count && at != lost).collect();
            assert!(seen.contains(&wanted), "{wanted:?}");
        }
    }
}

#[test]
fn a_budget_ends_the_exploration() {
    let tape = Tape::new();
    for sector in 0..6 {
        tape.done(write(sector, 1, 1));
    }
    let recording = tape.recording();
    let count = |states: u64| {
        let budget = Budget {
            states,
            ..Budget::default()
        };
        let mut explorer = Explorer::new(&recording, Contract::Epoch, budget, &[]);
        (explorer.by_ref().count(), explorer.explored().cuts)
    };
    assert_eq!(count(1), (1, 1), "a cut that nobody came to is not counted");
    assert_eq!(count(10).0, 10);
    assert_eq!(count(u64::MAX), (64, 8));
}

#[test]
fn what_tears_is_torn_and_what_survives_is_sampled() {
    let tape = Tape::new();
    for sector in 0..4 {
        tape.done(write(2 * sector, 9, 2));
    }
    let recording = tape.recording();
    let budget = Budget {
        every_parts: 0,
        ..Budget::default()
    };
    let levels = |contract| -> BTreeSet<Level> {
        Explorer::new(&recording, contract, budget, &[])
            .with_draw(draws(1))
            .map(|state| state.level)
            .collect()
    };
    assert!(levels(Contract::EpochTorn).contains(&Level::Torn));
    assert!(!levels(Contract::Epoch).contains(&Level::Torn));
    assert!(levels(Contract::Epoch).contains(&Level::Pair));
}

proptest! {
    #[test]
    fn what_is_volatile_at_the_end_is_what_a_power_loss_there_may_take(script in script()) {
        let recording = run(&script);
        let frontier = Frontier::at(&recording, recording.end());
        let lasting = frontier.volatile().filter(|tail| !tail.advisory);
        let first = lasting.map(|tail| tail.request).min();
        prop_assert_eq!(volatile_at_end(&recording).map(|entry| entry.id), first);
    }
}

mod destroying;
