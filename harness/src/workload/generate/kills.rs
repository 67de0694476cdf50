//! Kills in drawn scenarios: the process goes, in the middle of whatever it does, and another opens the image.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.

use super::super::ops::Operation;
use super::super::pin::Pins;
use crate::prng::Prng;

/// Adds kills to a workload, or does not: before any operation or behind the last, now and then two in a row, of
/// which the second meets an image that is being opened. Where that begins with a repair, most meet it.
pub(super) fn add(prng: &Prng, pins: &Pins, is_repaired: bool, operations: &mut Vec<Operation>) {
    let mut draw = prng.fork("kills");
    let drawn = draw.chance(1, 8);
    if !pins.kill.unwrap_or(drawn) {
        return;
    }
    let early = if is_repaired { 6 } else { 2 };
    for _ in 0..draw.between(1, 3) {
        let place = if draw.chance(early, 8) {
            0
        } else {
            draw.index(operations.len() + 1)
        };
        operations.insert(place, Operation::Kill);
    }
}
