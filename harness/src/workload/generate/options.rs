//! The options that a drawn scenario's image is opened with, and the operations that they are about.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.
//! Operations that are added take the place of others, so that a pinned number of them is kept.

use engine::qcow2::{DiscardedCluster, Discards, GuestDiscards, OverlapChecks, Pass};
use engine::zeroes::DetectZeroes;

use super::super::ops::Operation;
use super::super::pin::Pins;
use super::super::shape::OptionShape;
use crate::prng::Prng;

/// Draws options, and puts operations among the others that show what they do.
pub(super) fn add(prng: &Prng, pins: &Pins, operations: &mut [Operation]) -> OptionShape {
    let mut draw = prng.fork("options");
    let drawn = draw.chance(1, 3);
    if !pins.options.unwrap_or(drawn || pins.names_an_option()) {
        return OptionShape::default();
    }
    let options = options(&mut draw, pins);
    let blank = if options.detect_zeroes == DetectZeroes::Off {
        1
    } else {
        6
    };
    let idle = if draw.chance(1, 2) { 4 } else { 1 };
    for operation in operations {
        let may_idle = matches!(operation, Operation::Write { .. } | Operation::Flush);
        if may_idle && draw.chance(idle, 24) {
            *operation = Operation::DropIdle;
        } else if let Operation::Write { offset, len_bytes } = *operation
            && draw.chance(blank, 16)
        {
            *operation = Operation::WriteBlank { offset, len_bytes };
        } else if matches!(operation, Operation::Read { .. }) && draw.chance(1, 3) {
            *operation = Operation::DropIdle;
        }
    }
    options
}

fn options(draw: &mut Prng, pins: &Pins) -> OptionShape {
    let mut pass = || {
        if draw.chance(3, 4) {
            Pass::Yes
        } else {
            Pass::No
        }
    };
    let [request, snapshot, other, replaced] = [pass(), pass(), pass(), pass()];
    let ignored = draw.chance(1, 12);
    let kept = draw.chance(1, 2);
    let detect_zeroes = *draw.pick(&DetectZeroes::ALL);
    let (_, overlap_checks) = *draw.pick(&OverlapChecks::TEMPLATES);
    let guest = if ignored {
        GuestDiscards::Ignored
    } else {
        GuestDiscards::Obeyed
    };
    let cluster = if pins.discard_no_unref.unwrap_or(kept) {
        DiscardedCluster::Kept
    } else {
        DiscardedCluster::Freed
    };
    OptionShape {
        discards: Discards {
            guest: pins.discard.unwrap_or(guest),
            cluster,
            request,
            snapshot,
            other,
            replaced,
        },
        detect_zeroes: pins.detect_zeroes.unwrap_or(detect_zeroes),
        overlap_checks: pins.overlap_checks.unwrap_or(overlap_checks),
    }
}
