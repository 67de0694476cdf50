//! Disks that leave garbage and disks that lie, and what tells what they destroyed from what any disk may leave.

use blkdebug::record::{Effect, RecordedOp};

use super::super::destroyed::{Destroyed, Honest, Ruin};
use super::super::durability::Trust;
use super::*;

fn destroyed(honest: &Honest, state: &CrashState) -> Destroyed {
    honest.destroyed(&state.disks).into_image()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Each request as it was, as asked or as garbage is visited in every combination.
    #[test]
    fn every_choice_of_garbage_is_explored(script in script()) {
        let recording = run_for(&script, Contract::EpochTornGarbage);
        let explorer = Explorer::new(&recording, Contract::EpochTornGarbage, THOROUGH, &[]);
        let seen: BTreeSet<ContentHash> = explorer.map(|state| state.hash).collect();
        for cut in (0..=recording.end().0).map(Tick) {
            let frontier = Frontier::at(&recording, cut);
            let nowhere = |count| SectorMask::none(count);
            let everywhere = |count| SectorMask::from_fn(count, |_| true);
            // The masks are made to fit each request below.
            let spoilt = Fate::Scattered { asked: nowhere(0), garbage: everywhere(0) };
            for survivors in every_survivors(&frontier, &[Fate::Lost, Fate::Whole, spoilt]) {
                let fitted = survivors.parts().iter().zip(frontier.volatile()).map(|(part, tail)| {
                    let count = tail.sector_count();
                    let content = match &part.content {
                        Fate::Scattered { .. } if count > 0 => {
                            Fate::Scattered { asked: nowhere(count), garbage: everywhere(count) }
                        }
                        Fate::Scattered { .. } => Fate::Lost,
                        Fate::Lost | Fate::Whole | Fate::Torn(_) => part.content.clone(),
                    };
                    Part { content, ..part.clone() }
                });
                let survivors = Survivors::from_parts(fitted.collect());
                let state = CrashState::build(&recording, cut, &survivors).unwrap();
                prop_assert!(seen.contains(&state.hash), "{}", survivors.describe(&recording));
            }
        }
    }

    /// What a liar has at a cut is what an honest disk would have that had been asked for no flush behind the moment
    /// up to which it kept its word.
    #[test]
    fn a_liar_is_an_honest_disk_that_was_asked_for_less(script in script(), last in 0_u64..20) {
        let recording = run(&script);
        let mut asked_less = recording.clone();
        for entry in &mut asked_less.entries {
            let late = entry.answered().is_some_and(|tick| tick > Tick(last));
            if late && matches!(entry.op, RecordedOp::Flush) {
                entry.effect = Effect::Dropped;
            }
            if let (true, RecordedOp::Write { fua, .. }) = (late, &mut entry.op) {
                *fua = false;
            }
        }
        for cut in (0..=recording.end().0).map(Tick) {
            let mut lying = Frontier::trusting(&recording, Trust::Until(Tick(last)));
            lying.advance(cut);
            let honest = Frontier::at(&asked_less, cut);
            prop_assert_eq!(lying.settled(), honest.settled());
            let stands = |frontier: &Frontier<'_>| -> Vec<(RequestId, Standing, bool)> {
                frontier.tail().iter().map(|tail| (tail.request, tail.standing, tail.has_length)).collect()
            };
            prop_assert_eq!(stands(&lying), stands(&honest));
        }
    }

    /// What an honest disk may leave is not called destroyed, and everything else is. Where the length is set, sectors hang
    /// together as no look at one of them can tell.
    #[test]
    fn destroyed_is_what_no_honest_disk_could_have_left(script in script(), seed: u64) {
        for contract in [Contract::EpochTorn, Contract::EpochTornGarbage, Contract::Liar] {
            let recording = run_for(&script, Contract::Liar);
            let mut known = BTreeMap::new();
            let explorer = Explorer::new(&recording, contract, THOROUGH, &[recording.end()]);
            for state in explorer.with_draw(draws(seed)) {
                let (allowed, honest) = known.entry(state.cut).or_insert_with(|| {
                    let allowed = reference::states(&recording, state.cut, Contract::EpochTorn);
                    (allowed, Honest::at(&recording, state.cut))
                });
                let is_honest = allowed.contains(&state.hash);
                let found = destroyed(honest, &state);
                if is_honest || found.is_exact() || contract != Contract::Liar {
                    prop_assert_eq!(
                        found.is_none(), is_honest,
                        "{} at {:?}: {:?}\n{}",
                        contract, state.cut, found, state.survivors.describe(&recording)
                    );
                }
            }
        }
    }
}

#[test]
fn garbage_is_told_from_what_was_there_once() {
    let tape = Tape::new();
    tape.done(write(0, 1, 1));
    tape.done(Op::Flush);
    let id = tape.done(write(1, 2, 2));
    let recording = tape.recording();
    let honest = Honest::at(&recording, recording.end());
    let spoilt = Part {
        request: id,
        content: Fate::Scattered {
            asked: SectorMask::none(2),
            garbage: SectorMask::of_shape(Shape::OnlyLast, 2),
        },
        length: Length::Untouched,
    };
    let lie = Survivors::from_parts(vec![spoilt]).with_trust(Trust::Until(Tick(0)));
    let state = CrashState::build(&recording, recording.end(), &lie).unwrap();
    let found = destroyed(&honest, &state);
    assert_eq!(found.within(0..1), Some(Ruin::Stale));
    assert_eq!(found.within(1..2), None);
    assert_eq!(found.within(2..3), Some(Ruin::Garbage));
    assert_eq!(found.within(0..3), Some(Ruin::Garbage));
}

#[test]
fn a_file_without_its_durable_end_is_short_of_that() {
    let tape = Tape::new();
    tape.done(write(9, 1, 1));
    tape.done(Op::Flush);
    let recording = tape.recording();
    let honest = Honest::at(&recording, recording.end());
    let lie = Survivors::from_parts(vec![]).with_trust(Trust::Until(Tick(0)));
    let state = CrashState::build(&recording, recording.end(), &lie).unwrap();
    let found = destroyed(&honest, &state);
    assert_eq!(state.disks.image().len(), 8 * 512);
    assert_eq!(found.within(7..8), None);
    assert_eq!(found.within(9..10), Some(Ruin::Stale));
}

#[test]
fn a_liar_loses_what_it_had_acknowledged() {
    let tape = Tape::new();
    tape.done(write(0, 1, 1));
    tape.done(Op::Flush);
    tape.done(write_fua(1, 2, 1));
    let recording = tape.recording();
    let explored = |contract| -> BTreeSet<Vec<u8>> {
        let states = Explorer::new(&recording, contract, Budget::default(), &[])
            .with_expectation(|cut| u128::from(cut.0))
            .filter(|state| state.cut == recording.end());
        let bytes = states.map(|state| state.disks.image().read_vec(0, 1024));
        bytes.map(|bytes| vec![bytes[0], bytes[512]]).collect()
    };
    let of_liar = explored(Contract::Liar);
    for lost in [vec![0xBB, 0xBB], vec![1, 0xBB], vec![0xBB, 2]] {
        assert!(of_liar.contains(&lost), "{lost:?}");
    }
    assert_eq!(explored(Contract::EpochTorn), BTreeSet::from([vec![1, 2]]));
}
