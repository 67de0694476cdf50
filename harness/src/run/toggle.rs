//! The neighbours of a crash state: what else could have survived there, or a moment earlier or later.

use blkdebug::contract::Contract;
use blkdebug::mask::{SectorMask, Shape};
use blkdebug::record::{Recording, Tick};

use crate::crash::state::{Fate, Length, Part, Survivors};
use crate::prng::Prng;

/// So many requests are toggled one by one.
const MOST_SINGLE: usize = 64;
/// So many times a few are toggled together.
const TOGETHER: usize = 32;
/// So many moments before the cut are tried, and as many behind it.
const MOMENTS: usize = 2;

/// Survivors near these, each with its cut. None where the contract decides by order what survives.
pub(super) fn neighbours(
    recording: &Recording,
    contract: Contract,
    cut: Tick,
    survivors: &Survivors,
    draw: &mut Prng,
) -> Vec<(Tick, Survivors)> {
    if contract < Contract::Epoch {
        return Vec::new();
    }
    let parts = survivors.parts();
    let mut singles = Vec::new();
    let with = |at: usize, part: Part| {
        let mut parts = parts.to_vec();
        parts[at] = part;
        parts
    };
    for (at, part) in parts.iter().enumerate().take(MOST_SINGLE) {
        singles.push(with(at, flipped(part)));
        if contract > Contract::Epoch {
            singles.extend(torn(recording, part, draw).map(|part| with(at, part)));
            singles.extend(of_other_length(part).map(|part| with(at, part)));
        }
    }
    // Whoever has no time for all of them shall not always miss the same.
    for at in (1..singles.len()).rev() {
        singles.swap(at, draw.index(at + 1));
    }
    let mut together = Vec::new();
    if parts.len() > 1 {
        for _ in 0..TOGETHER {
            let mut few = parts.to_vec();
            for _ in 0..draw.between(2, 4) {
                let at = draw.index(parts.len());
                few[at] = flipped(&few[at]);
            }
            together.push(few);
        }
    }
    let near = singles.into_iter().chain(together);
    let near = near.map(|parts| {
        let near = Survivors::from_parts(parts);
        (cut, near.with_trust(survivors.trust()))
    });
    std::iter::once((cut, survivors.clone()))
        .chain(at_other_moments(recording, cut, survivors))
        .chain(near)
        .collect()
}

/// What is left of a request, the other way round.
fn flipped(part: &Part) -> Part {
    let (content, length) = if part.is_lost() {
        (Fate::Whole, Length::Kept)
    } else {
        (Fate::Lost, Length::Lost)
    };
    let length = match part.length {
        Length::Untouched => Length::Untouched,
        Length::Lost | Length::Kept => length,
    };
    Part {
        request: part.request,
        content,
        length,
    }
}

/// The same with some of its sectors, where it has more than one.
fn torn(recording: &Recording, part: &Part, draw: &mut Prng) -> Option<Part> {
    let sectors = recording.entry(part.request)?.op.sector_count();
    if sectors < 2 {
        return None;
    }
    let shape = *draw.pick(&Shape::ALL);
    Some(Part {
        content: Fate::Torn(SectorMask::of_shape(shape, sectors)),
        ..part.clone()
    })
}

/// The same with the other length, where one hangs on it.
fn of_other_length(part: &Part) -> Option<Part> {
    let length = match part.length {
        Length::Untouched => return None,
        Length::Lost => Length::Kept,
        Length::Kept => Length::Lost,
    };
    Some(Part {
        length,
        ..part.clone()
    })
}

/// The same survivors a little earlier and later, so far as they are volatile there; what they do not speak of is lost.
fn at_other_moments(
    recording: &Recording,
    cut: Tick,
    survivors: &Survivors,
) -> Vec<(Tick, Survivors)> {
    let mut moments: Vec<Tick> = recording
        .entries
        .iter()
        .filter(|entry| entry.changes_content())
        .flat_map(|entry| [Some(entry.submitted), entry.answered()])
        .flatten()
        .filter(|moment| *moment != cut)
        .collect();
    moments.sort_unstable();
    let at = moments.partition_point(|moment| *moment < cut);
    let before = moments[..at].iter().rev().take(MOMENTS);
    let behind = moments[at..].iter().take(MOMENTS);
    let there = |moment: &Tick| {
        let frontier = survivors.frontier(recording, *moment);
        let parts = survivors.parts().iter();
        let volatile = parts.filter(|part| {
            let mut tails = frontier.volatile();
            tails.any(|tail| tail.request == part.request)
        });
        let near = Survivors::from_parts(volatile.cloned().collect());
        (*moment, near.with_trust(survivors.trust()))
    };
    before.chain(behind).map(there).collect()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use blkdebug::record::Clock;
    use blkdebug::volatile::{Answering, VolatileDisk};
    use engine::device::{Device, Event, Op, PageImage, Request};

    use super::*;
    use crate::crash::durability::{Frontier, Trust};
    use crate::crash::state::CrashState;

    /// What a disk lied about is volatile around there as well.
    #[test]
    fn the_neighbours_of_a_lie_are_lies() {
        let base = PageImage::from_bytes(&[0xBB; 8 * 512]);
        let disk = VolatileDisk::new(base, Clock::default(), Answering::AtOnce);
        let disk = Rc::new(disk);
        for sector in 0..3_u64 {
            let write = Op::Write {
                offset: sector * 512,
                data: vec![1; 512],
                fua: false,
            };
            for op in [write, Op::Flush] {
                drop(disk.submit(Request {
                    event: Event::None,
                    op,
                }));
            }
        }
        let recording = disk.recording();
        let trust = Trust::Until(Tick(0));
        let cut = recording.end();
        let mut lying = Frontier::trusting(&recording, trust);
        lying.advance(cut);
        let survivors = Survivors::everything(&lying);
        assert_eq!(survivors.parts().len(), 3);
        let mut draw = Prng::from_seed(1);
        let near = neighbours(&recording, Contract::Liar, cut, &survivors, &mut draw);
        assert!(near.iter().any(|(moment, _)| *moment != cut));
        for (moment, near) in near {
            assert_eq!(near.trust(), trust);
            let state = CrashState::build(&recording, moment, &near);
            assert!(state.is_ok(), "{:?} at {moment:?}", state.err());
        }
    }
}
